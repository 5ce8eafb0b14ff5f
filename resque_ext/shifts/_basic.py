"""The nine shifts with a level of their own."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from resque_ext.shifts._filters import blend, blur, draw, means, veins
from resque_ext.shifts._registry import SHIFTS, register

_shift = functools.partial(register, SHIFTS)


@_shift("standard deviation of the noise", (0, 10), (0.02, 0.05, 0.1, 0.2, 0.4))
def gaussian(images, level, generator=None):
    """Add normal noise, independent for every channel value. Level: standard deviation, 0 to 10."""
    images.add_(draw(torch.randn, images, images.shape, generator).mul_(level))


@_shift("1 / photons at full scale", (0, 1), (0.005, 0.02, 0.05, 0.1, 0.3))
def shot(images, level, generator=None):
    """Photon-counting (Poisson) noise, independent for every channel value.

    Level: 1 / photons at full scale, 0 to 1. x becomes Poisson(x / level) * level, of mean x and
    variance level * x, before clamping. Below 1e-6 (over a million photons) the normal law of
    that mean and variance is drawn: CUDA's Poisson counts end at 2^32.
    """
    add_shot_noise(images, level, generator)


@_shift("fraction of channel values replaced", (0, 1), (0.02, 0.05, 0.1, 0.2, 0.4))
def impulse(images, level, generator=None):
    """Replace channel values, each independently, by 0 or 1 with equal chances.

    Level: probability that a value is replaced, 0 to 1 (the fraction, in expectation; it may be
    replaced by what it was). Draws have 24 bits (float64: 53): finer levels round up.
    """
    replace(images, images.shape, level, generator)


@_shift("fraction of pixels replaced", (0, 1), (0.02, 0.05, 0.1, 0.2, 0.4))
def salt_and_pepper(images, level, generator=None):
    """As `impulse`, but whole pixels, black or white: one mask for all channels of an image."""
    replace(images, (len(images), 1, *images.shape[2:]), level, generator)


@_shift("sigma in pixels", (0, 1000), (0.5, 1.0, 2.0, 3.0, 5.0))
def gaussian_blur(images, level, generator=None):
    """Blur every channel by a separable Gaussian, without draws. Level: sigma in pixels, 0 to 1000.

    The kernel is cut at radius int(4 * sigma + 0.5) and normalised to sum 1, so a sigma below 0.125
    does nothing. The image is mirrored at its edges (d c b a | a b c d | d c b a) as often as the
    radius needs, which keeps the mean. Both are the defaults of scipy.ndimage.gaussian_filter.
    """
    images.copy_(blur(images, level))


@_shift("fraction of the contrast taken away", (0, 1), (0.2, 0.4, 0.6, 0.8, 0.95))
def contrast(images, level, generator=None):
    """Pull values to their image's mean, without draws: x becomes mean + (1 - level) * (x - mean).

    Level: 0 to 1; 1 leaves a uniform grey. The mean is one number an image, over all its channels
    and pixels.
    """
    blend(images, means(images, 1), level)


@_shift("amount added", (-1, 1), (-0.4, -0.2, 0.1, 0.2, 0.4))
def brightness(images, level, generator=None):
    """Add the level, -1 to 1, to every value; negative darkens. No draws are made."""
    images.add_(level)


@_shift("weight of the texture", (0, 1), (0.1, 0.2, 0.3, 0.45, 0.6), options=("texture",))
def frost(images, level, generator=None, *, texture=None):
    """Overlay a texture of weight `level`, 0 to 1: x becomes (1 - level) * x + level * texture.

    `texture`: floating [H, W] or [C, H, W] on the images' device, values in [0, 1], the same for
    every image, without draws. None generates bright grey veins of frost, others for each image.
    """
    blend(images, veins(images, generator) if texture is None else texture, level)


@_shift("ignored", (-math.inf, math.inf), (0.0,))
def none(images, level, generator=None):
    """No shift: a copy of the images. Any finite level is accepted, and ignored."""


def replace(
    images: Tensor, shape: Sequence[int], level: float, generator: torch.Generator | None
) -> None:
    """Fill with 0 where a draw is below the level, of these with 1 where it is below level / 2."""
    draws = draw(torch.rand, images, shape, generator)
    images.masked_fill_(draws < level, 0.0).masked_fill_(draws < level / 2, 1.0)


def add_shot_noise(images: Tensor, level: float, generator: torch.Generator | None) -> None:
    clean = images.clamp(0, 1).contiguous()  # contiguous: draws must not follow the memory format
    if level < 1e-6:
        noise = draw(torch.randn, images, images.shape, generator)
        images.add_(noise.mul_(clean.mul_(level).sqrt_()))
    else:
        # A NaN rate would trip a device-side assertion, which ends the CUDA context: draw it as 0,
        # and multiply the images by 0 rather than overwrite them, which leaves NaN in the result.
        counts = torch.poisson(clean.nan_to_num_(0.0).div_(level), generator=generator)
        images.mul_(0).add_(counts.mul_(level))
