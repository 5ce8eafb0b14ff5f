"""A model's normalization taken to new data, forward only: what of a shift is undone for free.

Batch-norm, and instance norm with `track_running_stats`, has running statistics, which are
re-estimated on the new data. Normalization without them (group, layer, instance and RMS norm) has
nothing to re-estimate. Instead, the input of each such layer is matched, channel by channel, to its
mean and deviation on the old data, one layer after another within the same forward pass.
"""

from __future__ import annotations

import copy
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from resque_ext.data.checks import FLOATS, describe
from resque_ext.errors import ArgumentError
from resque_ext.model.hooks import LayerError, evaluating, forward, no_hooks_left
from resque_ext.model.layout import channel_dim
from resque_ext.model.pooling import matches
from resque_ext.model.streams import TokenMasks
from resque_ext.ops import class_moments

MATCHED = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, _InstanceNorm)
EPS = 1e-5  # added to variances, as normalization layers do: a channel that is constant stays so
Key = tuple[str, int]  # a module's name, and which of its runs in a forward pass


class ChannelMoments:
    """Means and variances over all samples and positions of a layer's channels, batch by batch."""

    def __init__(self) -> None:
        self.rows = 0
        self._sums: Tensor | None = None  # [2, C] float64: of values, of squares

    def add(self, x: Tensor, channel: int) -> None:
        """Adds an activation that has its channels in dimension `channel`."""
        flat = x.movedim(channel, -1).flatten(0, -2)  # [rows, C]
        if len(flat):
            zeros = torch.zeros(len(flat), dtype=torch.int64, device=x.device)
            _, sums, squares = class_moments(flat, zeros, 1)
            both = torch.cat([sums, squares])
            self._sums = both if self._sums is None else self._sums + both
            self.rows += len(flat)

    def mean_and_variance(self) -> tuple[Tensor, Tensor]:
        """Both [C] float64."""
        assert self._sums is not None
        mean, square = self._sums / self.rows
        return mean, (square - mean.square()).clamp_(min=0)


@dataclass(frozen=True)
class _Map:
    """(x - mean) * scale + target, channel by channel: [C] float64 each."""

    mean: Tensor
    scale: Tensor
    target: Tensor

    @classmethod
    def between(cls, new: ChannelMoments, old: ChannelMoments) -> _Map:
        (mean, variance), (old_mean, old_variance) = (m.mean_and_variance() for m in (new, old))
        scale = ((old_variance + EPS) / (variance + EPS)).sqrt()
        return cls(mean, scale, old_mean)

    def __call__(self, x: Tensor, channel: int) -> Tensor:
        shape = [-1 if d == channel % x.dim() else 1 for d in range(x.dim())]
        kind = torch.float64 if x.dtype == torch.float64 else torch.float32
        mean, scale, target = (t.to(kind).view(shape) for t in (self.mean, self.scale, self.target))
        return ((x - mean) * scale + target).to(x.dtype)


class _Layers(ABC):
    """Hooks on a model's normalization layers that have no running statistics."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.masks = TokenMasks()  # of the batch's tokens
        self._runs: dict[str, int] = {}

    def attach(self) -> list[Any]:
        """Registers the hooks; the caller removes them, or keeps them for good."""
        handles = [self.model.register_forward_pre_hook(self._begin)]
        for name, module in matchable(self.model).items():
            hook = functools.partial(self._hook, name)
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        return handles

    def _begin(self, _module: nn.Module, _args: Any) -> None:
        self._runs = {}

    def _hook(
        self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        run = self._runs[name] = self._runs.get(name, 0) + 1
        x = args[0] if args else kwargs.get("input")
        if not isinstance(x, Tensor) or x.dtype not in FLOATS or x.dim() < 2:
            return None
        taken = self.take((name, run), x, channel_dim(module, x))
        if taken is None:
            return None
        return ((taken, *args[1:]), kwargs) if args else (args, {**kwargs, "input": taken})

    def add(self, key: Key, moments: ChannelMoments, x: Tensor, channel: int) -> None:
        """Adds what counts of x: of masked tokens [N, T, D] the real ones."""
        name, run = key
        mask = self.masks.of(name, self.model, run)
        masked = channel == 2 and matches(x, mask)
        moments.add(*((x[mask], 1) if masked else (x, channel)))

    @abstractmethod
    def take(self, key: Key, x: Tensor, channel: int) -> Tensor | None:
        """What the layer reads in place of x; None: x itself."""


class _Observed(_Layers):
    """Takes the old side's moments."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.moments: dict[Key, ChannelMoments] = {}

    def take(self, key: Key, x: Tensor, channel: int) -> None:
        self.add(key, self.moments.setdefault(key, ChannelMoments()), x, channel)


class _Matched(_Layers):
    """Takes the new side's moments and matches with those of all batches so far; then no more."""

    def __init__(self, model: nn.Module, old: dict[Key, ChannelMoments]) -> None:
        super().__init__(model)
        self.old = old
        self.moments: dict[Key, ChannelMoments] = {}
        self.maps: dict[Key, _Map] | None = None

    def fix(self) -> None:
        """From here on with what was found, whatever the batches."""
        self.maps = {k: _Map.between(m, self.old[k]) for k, m in self.moments.items()}
        self.moments, self.old, self.masks = {}, {}, TokenMasks()

    def take(self, key: Key, x: Tensor, channel: int) -> Tensor | None:
        if self.maps is not None:
            return self.maps[key](x, channel) if key in self.maps else None
        if key not in self.old:
            raise LayerError(
                f"adapt_normalization: expected {key[0]!r} to run as often on both sides, found "
                "more on the new side"
            )
        moments = self.moments.setdefault(key, ChannelMoments())
        self.add(key, moments, x, channel)
        return _Map.between(moments, self.old[key])(x, channel) if moments.rows else None


def matchable(model: nn.Module) -> dict[str, nn.Module]:
    """The normalization layers without running statistics, by name."""
    return {
        name: m
        for name, m in model.named_modules()
        if isinstance(m, MATCHED) and getattr(m, "running_mean", None) is None
    }


def reestimable(model: nn.Module) -> dict[str, nn.Module]:
    """The batch-norm and instance norm layers with running statistics, by name."""
    return {
        name: m
        for name, m in model.named_modules()
        if isinstance(m, (_BatchNorm, _InstanceNorm)) and m.running_mean is not None
    }


def adapted(
    model: nn.Module,
    new: Callable[[], Iterable[Any]],
    old: Callable[[], Iterable[Any]] | None = None,
    join: Callable[[Mapping[str, nn.Module]], None] | None = None,
    masks: Callable[[Any], TokenMasks] | None = None,
) -> nn.Module:
    """A copy of the model with its normalization taken to the new side.

    Running statistics are re-estimated as cumulative averages over the batches: of a batch's means
    and variances (batch-norm), or of the averages over its samples of each one's own (instance
    norm), as training takes them. With `old`, all other normalization is matched, too: the copy
    keeps hooks that map what each such layer reads, x, to (x - m) s / t + n, for mean and deviation
    m, t of a channel on the new side and n, s on the old. While these are estimated, every batch is
    matched by what the batches so far have shown, so that the layers after see matched activations.

    Args:
        model: run in eval mode without gradients, and left as it is.
        new, old: each call begins a pass over that side's inputs: what `model` takes, a mapping as
            keyword arguments. Without `old` only running statistics are adapted.
        join: called at the end with the layers that have them by name: makes their statistics,
            after so many batches (`num_batches_tracked`), those of data that others have read.
        masks: of inputs, which of their tokens are real: what is matched are the moments of these
            alone. Running statistics are torch's own, of all tokens.

    Raises:
        KeyError: a layer that runs more often on the new side than on the old.
        ValueError: `old` gives no inputs; a batch (instance norm: a sample) that has a single value
            a channel, and so no variance.
    """
    found = None
    if old is not None:
        observed, passed = _Observed(model), 0
        with evaluating(model), no_hooks_left(observed.attach()):
            for inputs in old():
                observed.masks = TokenMasks() if masks is None else masks(inputs)
                forward(model, inputs)
                passed += 1
        if not passed:
            raise ArgumentError("old", "rows to match the new side to", "none")
        found = observed.moments
    model = copy.deepcopy(model)
    matched = None if found is None else _Matched(model, found)
    if matched is not None:
        matched.attach()
    layers = reestimable(model)
    hooks = [
        module.register_forward_pre_hook(functools.partial(hook, name), with_kwargs=True)
        for name, module in layers.items()
        for hook in (_check_batch, *([_count_batch] if isinstance(module, _InstanceNorm) else []))
    ]
    with evaluating(model), no_hooks_left(hooks):
        for module in layers.values():
            module.reset_running_stats()
            module.momentum, module.training = None, True
        for inputs in new():
            if matched is not None and masks is not None:
                matched.masks = masks(inputs)
            forward(model, inputs)
    if join is not None:
        join(layers)
    if matched is not None:
        matched.fix()
    return model


def _check_batch(
    name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    x = args[0] if args else kwargs.get("input")
    if not isinstance(x, Tensor) or x.dim() < 2:
        return
    sample = isinstance(module, _InstanceNorm)
    if x[:1].numel() == x.shape[1] if sample else x.numel() == x.shape[1]:
        raise ArgumentError(
            "new",
            "two or more values a channel in every "
            f"{'sample' if sample else 'batch'}, because "
            "adapt_normalization takes their variance",
            f"{describe(x)} at {name!r}",
        )


def _count_batch(
    _name: str, module: nn.Module, _args: tuple[Any, ...], _kwargs: dict[str, Any]
) -> None:
    """The batch's share in a cumulative average, which instance norm does not have by itself."""
    module.momentum = 1 / (1 + 1 / module.momentum) if module.momentum else 1.0
    module.num_batches_tracked += 1
