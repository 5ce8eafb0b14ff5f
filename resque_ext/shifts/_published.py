"""The noises of the published code of RESQUE, for those who reproduce its figures.

Images leave that code as 8 bits: 255 x, cut off towards 0, so they are images of 256 levels here
too. Additive noise is not clamped before: it wraps around, and 1.02 becomes 0.02.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from resque_ext.shifts import _basic
from resque_ext.shifts._filters import blur, draw, veins
from resque_ext.shifts._registry import PUBLISHED, SHIFTS, register

Generator = torch.Generator | None


def _like(
    shift: Callable[..., Tensor], levels: tuple[float, ...] | None = None
) -> Callable[[Callable[..., None]], Callable[..., Tensor]]:
    """Register with the unit and range of that shift."""
    kind = SHIFTS[shift.__name__]
    return register(PUBLISHED, kind.unit, kind.range, levels or kind.levels, kind.options)


def _to_bytes(images: Tensor) -> None:
    """In place: 255 x without its fraction, modulo 256, as a conversion to uint8 does."""
    images.mul_(255).trunc_().remainder_(256).div_(255)


@_like(_basic.gaussian)
def gaussian(images: Tensor, level: float, generator: Generator = None) -> None:
    """Add normal noise that wraps around. Level: standard deviation, 0 to 10."""
    images.add_(draw(torch.randn, images, images.shape, generator).mul_(level))
    _to_bytes(images)


@_like(_basic.salt_and_pepper)
def salt_and_pepper(images: Tensor, level: float, generator: Generator = None) -> None:
    """Black, then white pixels, each with probability level / 2: level - level^2 / 4 in all."""
    shape = (len(images), 1, *images.shape[2:])
    for value in (0.0, 1.0):
        images.masked_fill_(draw(torch.rand, images, shape, generator) < level / 2, value)
    _to_bytes(images)


@_like(_basic.gaussian_blur)
def gaussian_blur(images: Tensor, level: float, generator: Generator = None) -> None:
    """Blur every channel by a Gaussian, without draws. Level: sigma in pixels, 0 to 1000."""
    images.copy_(blur(images, level).clamp_(0, 1))
    _to_bytes(images)


@_like(_basic.frost, (0.2,))
def frost(
    images: Tensor, level: float, generator: Generator = None, *, texture: Tensor | None = None
) -> None:
    """0.98 x + level * texture, clamped. The papers' level is 0.2; a texture as for `frost`."""
    images.mul_(0.98).add_((veins(images, generator) if texture is None else texture) * level)
    images.clamp_(0, 1)
    _to_bytes(images)


@_like(_basic.none)
def none(images: Tensor, level: float, generator: Generator = None) -> None:
    """No shift: a copy of the images. Any finite level is accepted, and ignored."""
