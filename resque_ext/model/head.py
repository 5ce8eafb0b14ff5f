"""The layer whose output a model returns as its scores, found by comparing values.

Neither names nor widths tell a classifier's last layer from any other: a backbone's output can be
as wide as its last linear layer's. Its scores are that layer's output, or softmax or sigmoid of it;
or one token's of it, or the mean over positions.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.nn.modules.conv import _ConvNd

from resque_ext.data.checks import FLOATS
from resque_ext.model.layers import makes_features
from resque_ext.model.outputs import LOGITS, score_tensors
from resque_ext.model.pooling import masked_mean
from resque_ext.model.streams import TokenMasks

_NARROW = (torch.float16, torch.bfloat16)
_GROWN = 1e-4  # of the largest: what devices make of a resize
# How the scores of a coarse grid are brought to the size of the image.
_RESIZED = (("bilinear", False), ("bilinear", True), ("bicubic", False), ("nearest", None))


@dataclass(frozen=True)
class Head:
    """What a model's output is made by.

    Attributes:
        name: the module whose output it is; None where no one module's is.
        path: where its scores are: "" the output itself, a key or a position; None: nowhere.
        reads: "vector", one a sample; "token", one of several; "mean", of all positions;
            "positions", each by itself; None where there is no such module.
        classes: K of scores [N, K]; None for other models.
        also: further modules, where the scores are the mean of several heads.
    """

    name: str | None = None
    path: str | None = None
    reads: str | None = None
    classes: int | None = None
    also: tuple[str, ...] = ()


@dataclass(eq=False)
class Run:
    """What a module read and gave when it last ran, and how often it has run."""

    name: str
    module: nn.Module
    read: Tensor
    gave: Tensor
    times: int


class HeadFinder:
    """Watches the layers that could give scores through one forward pass.

    Attributes:
        last: the one that ran last; None if none did.
    """

    def __init__(self, model: nn.Module) -> None:
        # Parts in TorchScript take no hooks.
        self._modules = {
            m: n
            for n, m in model.named_modules()
            if _could_score(m) and not isinstance(m, torch.jit.ScriptModule)
        }
        # Two, for the auxiliary head that a segmentation model runs behind its own.
        self._latest: deque[Run] = deque(maxlen=2)
        self._vectors: dict[int, list[Run]] = {}  # by width, those that gave one vector a sample
        self._times: dict[nn.Module, int] = {}

    @property
    def last(self) -> Run | None:
        return self._latest[-1] if self._latest else None

    def attach(self) -> list[Any]:
        """Registers the hooks; the caller removes them."""
        return [m.register_forward_hook(self._on_run, with_kwargs=True) for m in self._modules]

    def _on_run(self, module: nn.Module, args: Any, kwargs: dict[str, Any], gave: Any) -> None:
        read = args[0] if args else kwargs.get("input")
        if not all(isinstance(x, Tensor) and x.dtype in FLOATS for x in (read, gave)):
            return
        self._times[module] = self._times.get(module, 0) + 1
        # Copies: what comes after may change them in place.
        run = Run(self._modules[module], module, read.clone(), gave.clone(), self._times[module])
        self._latest.append(run)
        if gave.dim() == 2:
            self._vectors.setdefault(gave.shape[1], []).append(run)

    def find(self, output: Any, masks: TokenMasks, rows: int) -> tuple[Head, Run | None]:
        """The head, and its run; after the forward pass that returned `output`."""
        named = Head()
        for path, scores in score_tensors(output):
            scored = scores.dim() == 2 and scores.shape[1] > 1 and len(scores) == rows
            classes = scores.shape[1] if scored else None
            if scores.shape[2:].numel() == 1:  # [N, K, 1, 1] too
                scores = scores.flatten(1)
            vectors = self._vectors.get(scores.shape[-1], [])
            for run in dict.fromkeys((*reversed(self._latest), *vectors[-1:])):
                mask = masks.of(run.name, run.module, run.times)
                if (reads := _relation(scores, run.gave, mask)) is not None:
                    return Head(run.name, path, reads, classes), run
            several = len(vectors) > 1 and all(run.gave.shape == scores.shape for run in vectors)
            if several and _close(scores, sum(run.gave.double() for run in vectors) / len(vectors)):
                names = tuple(run.name for run in vectors)
                return Head(names[0], path, "vector", classes, names[1:]), vectors[0]
            if len(both := [run.gave for run in self._latest]) == 2 and _resized(scores, *both):
                names = tuple(run.name for run in reversed(self._latest))
                return Head(names[0], path, "positions", classes, names[1:]), self.last
            if path == LOGITS and named.path is None:
                named = Head(path=path, classes=classes)  # it says itself what it is
        return named, None


def tokens_read(scores: Tensor, given: Tensor, mask: Tensor | None) -> Tensor | None:
    """[N] the token whose scores [N, K] are in `given` [N, T, K]; None where a row has none."""
    if given.dim() != 3 or scores.dim() != 2 or given[:, 0].shape != scores.shape:
        return None
    apart = (given.double() - scores.double()[:, None]).abs().amax(2)
    if mask is not None and mask.shape == apart.shape:
        apart = apart.masked_fill(~mask, torch.inf)
    least, token = apart.min(1)
    odd = ~scores.isfinite().all(1)  # whoever sums the embedding says so
    close = least <= _tolerance(scores, given) * scores.double().abs().amax(1)
    return token if bool((close | odd).all()) else None


def _relation(scores: Tensor, given: Tensor, mask: Tensor | None) -> str | None:
    """How a layer's output becomes the scores; None: not at all."""
    if scores.dim() == 2 and given.shape == scores.shape:
        return "vector" if _follows(scores, given) else None
    if scores.dim() == 2 and given.dim() in (3, 4):
        if given.shape[0] != scores.shape[0] or not len(scores):
            return None
        if given.dim() == 4 and given.shape[1] == scores.shape[1]:
            means = [x.double().mean((2, 3)) for x in (given, given.relu())]
        elif given.shape[-1] == scores.shape[1]:
            given = given.flatten(1, -2)
            if tokens_read(scores, given, mask) is not None:
                return "token"
            masked = mask is not None and mask.shape == given.shape[:2]
            means = [masked_mean(given, mask) if masked else given.double().mean(1)]
        else:
            return None
        return "mean" if any(_close(scores, mean) for mean in means) else None
    if scores.shape == given.shape:
        return "positions" if _close(scores, given) else None
    return "positions" if _resized(scores, given) else None


def _resized(scores: Tensor, *given: Tensor) -> bool:
    """Scores of pixels [N, K, H, W] are those of a coarser grid, or the sum of several, brought to
    the image's size. A map that was pooled, as at the end of a backbone, is not."""
    size, grid = scores.shape[2:], given[0].shape
    if scores.dim() != 4 or any(x.shape != grid for x in given) or len(grid) != 4:
        return False
    if scores.shape[:2] != grid[:2] or any(a < b for a, b in zip(size, grid[2:], strict=True)):
        return False
    coarse = torch.stack([x.float() for x in given]).sum(0)
    grown = (interpolate(coarse, size, mode=m, align_corners=a) for m, a in _RESIZED)
    tolerance = max(_tolerance(scores, *given), _GROWN)
    return any(_near(scores.double(), x.double(), tolerance) for x in grown)


def _follows(scores: Tensor, given: Tensor) -> bool:
    """Scores [N, K] are `given`, its softmax or sigmoid, or row by row a scaling and a shift of it
    (as log-softmax, or a temperature)."""
    rows = scores.isfinite().all(1) & given.isfinite().all(1)
    a, b = scores[rows].double(), given[rows].double()
    if not len(a):
        return True
    tolerance = _tolerance(scores, given)
    if any(_near(a, x, tolerance) for x in (b, b.softmax(1), b.sigmoid())):
        return True
    if a.shape[1] < 2 or _normalized(a):
        return False
    a, b = (x - x.mean(1, keepdim=True) for x in (a, b))
    if _normalized(a):
        return False
    along, size = (a * b).sum(1).square(), a.square().sum(1) * b.square().sum(1)
    there = size > 0
    strict = 1e-3 if tolerance > 1e-3 else 1e-8  # tanh of small numbers is nearly linear
    return bool(there.any()) and bool((along[there] >= (1 - strict) * size[there]).all())


def _normalized(x: Tensor) -> bool:
    """All rows have one length, as embeddings have that were brought to it."""
    lengths = x.norm(dim=1)
    return len(x) > 1 and bool(lengths.max() - lengths.min() <= 1e-3 * lengths.max())


def _close(scores: Tensor, given: Tensor) -> bool:
    return _near(scores.double(), given.double(), _tolerance(scores, given))


def _near(a: Tensor, b: Tensor, tolerance: float) -> bool:
    scale = a.abs().amax() if a.numel() else 0
    return bool(((a - b).abs() <= tolerance * scale).all())


def _tolerance(*tensors: Tensor) -> float:
    return 2e-2 if any(x.dtype in _NARROW for x in tensors) else 2e-6


def _could_score(module: nn.Module) -> bool:
    """A linear layer, a convolution of single pixels, or any other product with a matrix."""
    if isinstance(module, _ConvNd):
        return set(module.kernel_size) == {1} and module.groups == 1
    others = (nn.Embedding, nn.EmbeddingBag, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
    return makes_features(module) and not isinstance(module, others)
