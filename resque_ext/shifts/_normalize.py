"""The normalization of a loader, channel by channel, and back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from resque_ext.shifts._registry import describe, expect


@dataclass(frozen=True)
class Normalize:
    """(x - mean) / std for every channel of images [..., C, H, W]; one value holds for all."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, x: Tensor) -> Tensor:
        x = x.clone()
        for channel, mean, std in self._by_channel(x):
            channel.sub_(mean).div_(std)  # numbers, not tensors: those would wait for the device
        return x

    def undo(self, x: Tensor) -> Tensor:
        """x * std + mean."""
        x = x.clone()
        for channel, mean, std in self._by_channel(x):
            channel.mul_(std).add_(mean)
        return x

    def _by_channel(self, x: Tensor) -> Iterator[tuple[Tensor, float, float]]:
        if len(self.mean) == 1:
            return iter([(x, self.mean[0], self.std[0])])
        channels = x.shape[-3] if x.dim() >= 3 else None
        expected = f"one value for each channel of images of shape {list(x.shape)}"
        expect(channels == len(self.mean), "mean, std", expected, len(self.mean))
        return zip(x.unbind(-3), self.mean, self.std, strict=True)


def as_normalize(mean: Any, std: Any) -> Normalize:
    """Checks both: as many numbers, a list, tuple or 1-d array or tensor, or a number each.

    Raises:
        ValueError: something else, or a standard deviation that is not above 0.
    """
    means, stds = (_numbers(name, given) for name, given in (("mean", mean), ("std", std)))
    if len(means) != len(stds) or not all(value > 0 for value in stds):
        raise ValueError(
            f"expected as many std above 0 as mean, found mean {list(means)} and std {list(stds)}"
        )
    return Normalize(means, stds)


def _numbers(name: str, given: Any) -> tuple[float, ...]:
    values = given.tolist() if hasattr(given, "tolist") else given
    values = [values] if isinstance(values, (int, float)) else values
    holds = isinstance(values, (list, tuple)) and all(
        isinstance(v, (int, float)) and not isinstance(v, bool) for v in values
    )
    found = given if isinstance(given, (list, tuple, str)) else describe(given)
    expect(holds and bool(values), name, "a list of numbers", repr(found))
    return tuple(float(v) for v in values)
