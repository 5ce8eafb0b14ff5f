"""Transforms of inputs by name, with JSON arguments, and what a fingerprint says of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from resque_ext.data.checks import check_count, describe
from resque_ext.errors import ArgumentError, ArgumentTypeError
from resque_ext.storage.json_text import parse_json


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
        if channels != len(self.mean):
            raise ArgumentError(
                "mean, std",
                f"one value for each channel of images of shape {list(x.shape)}",
                len(self.mean),
            )
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
    if not holds or not values:
        plain = isinstance(given, (list, tuple, str, int, float))
        found = repr(given if plain else type(given).__name__)
        raise ArgumentError(name, "a list of numbers", found)
    return tuple(float(v) for v in values)


def _resize(size: int) -> Callable[[Tensor], Tensor]:
    size = check_count(size, "resize: size")

    def resize(x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        scale = size / min(height, width)
        to = [max(round(height * scale), size), max(round(width * scale), size)]
        return nn.functional.interpolate(x, to, mode="bilinear", antialias=True).clamp(0, 1)

    return resize


def _center_crop(size: int) -> Callable[[Tensor], Tensor]:
    size = check_count(size, "center_crop: size")

    def center_crop(x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if min(height, width) < size:
            raise ArgumentError(
                "center_crop", f"images of at least {size}x{size}", f"{height}x{width}"
            )
        top, left = (height - size) // 2, (width - size) // 2
        return x[..., top : top + size, left : left + size]

    return center_crop


def _grayscale() -> Callable[[Tensor], Tensor]:
    """ITU-R BT.601 luma, as image libraries compute it."""
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    return lambda x: (x * weights.to(x)).sum(-3, keepdim=True)


def _normalize(mean: Sequence[float], std: Sequence[float]) -> Normalize:
    try:
        return as_normalize(mean, std)
    except ValueError as error:
        raise ValueError(f"normalize: {error}") from None


TRANSFORMS: dict[str, Callable[..., Callable[[Tensor], Tensor]]] = {
    "resize": _resize,
    "center_crop": _center_crop,
    "grayscale": _grayscale,
    "normalize": _normalize,
}


def make_transform(text: str) -> Callable[[Tensor], Tensor]:
    """A transform of the registry from ``NAME`` or ``NAME=JSON``, such as ``resize={"size": 256}``.

    Raises:
        ValueError: no such name, no JSON object, or arguments that do not fit.
    """
    name, _, arguments = text.partition("=")
    make = TRANSFORMS.get(name)
    if make is None:
        raise ArgumentError("transform", f"one of {', '.join(TRANSFORMS)}", f"{name!r}")
    try:
        given = parse_json(arguments or "{}")
    except ValueError as error:
        raise ArgumentError("transform", f"JSON after {name}=", error) from None
    if not isinstance(given, dict):
        raise ArgumentError("transform", f"a JSON object after {name}=", f"{given!r}")
    try:
        return make(**given)
    except TypeError as error:
        raise ValueError(f"transform: {name}: {error}") from None


class Transforms:
    """Functions of a batch of inputs, in turn.

    Args:
        given: functions, or texts as :func:`make_transform` takes.

    Raises:
        TypeError, ValueError: neither.
    """

    def __init__(self, given: Sequence[Any] = ()) -> None:
        if isinstance(given, str) or not isinstance(given, Sequence):
            raise ArgumentTypeError("transforms", "a list", f"{given!r}")
        for one in given:
            if not isinstance(one, str) and not callable(one):
                raise ArgumentTypeError("transforms", "names or functions", describe(one))
        self._calls = [make_transform(one) if isinstance(one, str) else one for one in given]
        self._texts = list(given) if all(isinstance(one, str) for one in given) else None

    def __call__(self, x: Tensor) -> Tensor:
        for call in self._calls:
            x = call(x)
        return x

    def inputs(self, x: Tensor) -> Tensor:
        """Inputs as a model takes them: images of bytes become floats in [0, 1]."""
        return self(x.float() / 255 if x.dtype == torch.uint8 else x)

    def one(self, image: Tensor) -> Tensor:
        """Of a single image."""
        return self.inputs(image.unsqueeze(0))[0]

    def named(self, fingerprint: dict[str, Any] | None) -> dict[str, Any] | None:
        """A fingerprint with these transforms; None for functions, which nothing tells apart."""
        if fingerprint is None or self._texts is None:
            return None
        return fingerprint | {"transforms": self._texts}
