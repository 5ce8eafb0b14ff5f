"""One vector a sample: how the positions of a layer's output become it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resque_ext.data.checks import FLOATS, as_tensor, check_features, describe
from resque_ext.errors import ArgumentError
from resque_ext.ops import spatial_mean

POOLINGS = ("auto", "mean", "first", "last")
Pooling = str | Callable[..., Any]
OTHERS = "the mask is of other positions: all count"


@dataclass(frozen=True)
class Features:
    """One layer's output for one batch.

    Attributes:
        x: vectors [N, D], tokens [N, T, D] or a map [N, C, H, W].
        mask: of tokens, [N, T] bool, which of them are real; None: all.
        convolved: a convolution over the tokens made it, so p compares its pooled channels.
        others: the batch has padding, but its mask is of other positions than these.
    """

    x: Tensor
    mask: Tensor | None = None
    convolved: bool = False
    others: bool = False

    @property
    def is_tokens(self) -> bool:
        return self.x.dim() == 3 and not self.convolved

    def pooled(self, pooling: Pooling = "mean") -> Tensor:
        """[N, D]; what is a vector already comes back as it is."""
        if self.x.dim() == 2:
            return self.x
        if callable(pooling):
            return _called(pooling, self.x, self.mask)
        if pooling in ("first", "last"):
            return _one_position(self.x, self.mask, pooling == "last")
        return spatial_mean(self.x) if self.mask is None else masked_mean(self.x, self.mask)

    def for_sums(self, pooling: Pooling) -> Tensor:
        """As `pooled`, but a plain mean over all positions is left to the op that sums."""
        return self.x if self.mask is None and pooling in ("auto", "mean") else self.pooled(pooling)

    def whole(self) -> Tensor:
        """Every position: of masked tokens the real ones in front, zeros behind the last."""
        if self.mask is None:
            return self.x
        order = (~self.mask).int().argsort(dim=1, stable=True)
        longest = int(self.mask.sum(1).max()) if len(self.mask) else 0
        order = order[:, :longest]
        front = self.x.gather(1, order[..., None].expand(-1, -1, self.x.shape[2]))
        return front.masked_fill_(~self.mask.gather(1, order)[..., None], 0)

    def described(self, pooling: Pooling) -> str:
        """What `pooled` does to it, for a result."""
        if self.x.dim() == 2:
            return "vector"
        if callable(pooling):
            return getattr(pooling, "__name__", type(pooling).__name__)
        plain = pooling if pooling in ("first", "last") else "mean"
        if self.others:
            return f"{plain} ({OTHERS})"
        return plain if self.mask is None or plain != "mean" else "masked mean"


def together(done: str, more: str) -> str:
    """What was done to positions, of two such notes: masked if either is, with either's remark."""
    what, _, remark = done.partition(" (")
    other, _, later = more.partition(" (")
    what = other if not what or ("masked" in other and "masked" not in what) else what
    remark = remark or later
    return f"{what} ({remark}" if remark else what


def check_pooling(pooling: Any) -> None:
    """Raises ValueError for what is neither one of POOLINGS nor a function."""
    if not callable(pooling) and pooling not in POOLINGS:
        raise ArgumentError(
            "pooling",
            f"{', '.join(map(repr, POOLINGS))} or a function of (x, mask)",
            f"{pooling!r}",
        )


def matches(x: Tensor, mask: Tensor | None) -> bool:
    """Whether x is tokens [N, T, D] that the mask [N, T] is of."""
    return mask is not None and x.dim() == 3 and x.shape[:2] == mask.shape


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """The mean over the real tokens of [N, T, D], summed in float64; dtypes as `spatial_mean`."""
    mean = spatial_mean(x.masked_fill(~mask[..., None], 0))
    share = mask.shape[1] / mask.sum(1, keepdim=True, dtype=torch.float64)
    return (mean * share).to(mean.dtype)


def pooled(features: Any, pooling: Pooling = "mean", mask: Any = None) -> Tensor:
    """One vector a sample from a layer's output.

    Args:
        features: [N, D] (returned as it is), tokens [N, T, D] or a map [N, C, H, W]; float32,
            float64, float16 or bfloat16, on CPU or CUDA; a NumPy array is welcome.
        pooling: "mean" ("auto" is the same here), over the real tokens or all positions, summed in
            float64; "first" or "last", of the real tokens, or of a map's positions row by row; or a
            function of x, or of (x, mask), that returns [N, D].
        mask: [N, T], nonzero for real tokens; None: all are. For tokens alone.

    Returns:
        [N, D]; a mean is float32 (float64 for float64).

    Raises:
        TypeError, ValueError: naming the argument; a row without a real token.
    """
    check_pooling(pooling)
    x = check_features(features)
    real = None if mask is None else check_mask(mask, "mask").to(x.device)
    if real is not None and not matches(x, real):
        raise ArgumentError(
            "features, mask",
            "tokens [N, T, D] and their mask [N, T]",
            f"features ({describe(x)}) and mask ({describe(real)})",
        )
    return Features(x, real).pooled(pooling)


def check_mask(mask: Any, name: str) -> Tensor:
    """A mask [N, T] as bool.

    Raises:
        TypeError, ValueError: another rank, or a row without a real token.
    """
    real = as_tensor(mask, name) != 0
    if real.dim() != 2:
        raise ArgumentError(name, "shape [N, T]", describe(real))
    empty = ~real.any(1)
    if bool(empty.any()):
        raise ArgumentError(
            name, "a real token in every sequence", f"none in row {int(empty.int().argmax())}"
        )
    return real


def _one_position(x: Tensor, mask: Tensor | None, last: bool) -> Tensor:
    if x.dim() == 4:
        return x[:, :, -1, -1].clone() if last else x[:, :, 0, 0].clone()
    if mask is None:
        return x[:, -1].clone() if last else x[:, 0].clone()
    places = torch.arange(mask.shape[1], device=mask.device)
    at = (places * mask).amax(1) if last else mask.int().argmax(1)
    return x[torch.arange(len(x), device=x.device), at]


def _called(pooling: Callable[..., Any], x: Tensor, mask: Tensor | None) -> Tensor:
    found = pooling(x, mask) if _takes_mask(pooling) else pooling(x)
    right = isinstance(found, Tensor) and found.dim() == 2 and len(found) == len(x)
    if not right or found.dtype not in FLOATS:
        raise ArgumentError(
            "pooling", f"the function to return floats [N, D] of {describe(x)}", describe(found)
        )
    return found


def _takes_mask(function: Callable[..., Any]) -> bool:
    """Whether it has a second parameter that has to be given."""
    try:
        parameters = inspect.signature(getattr(function, "forward", function)).parameters.values()
    except (TypeError, ValueError):  # of a builtin
        return False
    needed = [
        p
        for p in parameters
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    return len(needed) > 1 or any(p.kind == p.VAR_POSITIONAL for p in parameters)
