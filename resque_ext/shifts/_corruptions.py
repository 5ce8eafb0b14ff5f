"""The fifteen corruptions of ImageNet-C, in five severities each.

After Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations" (2019). Each has two rows of five parameters: those of ImageNet-C, for images of 224
pixels a side, and those of CIFAR-10-C, for 32. `variant` chooses one: "imagenet", "cifar", or
"auto", CIFAR-10-C's for a shorter side of at most 64 pixels. Nothing is rounded to 8 bits on the
way, where the published code does so; only `jpeg_compression` is, as its format is.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resque_ext.shifts import _basic
from resque_ext.shifts._filters import (
    blend,
    blur,
    box_resize,
    correlate,
    draw,
    means,
    mirror,
    mirror_inside,
    sample,
    uniform,
    veins,
    zoom,
)
from resque_ext.shifts._filters import (
    motion_blur as blur_along,
)
from resque_ext.shifts._jpeg import compress
from resque_ext.shifts._registry import CORRUPTIONS, SEVERITY, expect, register

VARIANTS = ("auto", "imagenet", "cifar")
SMALL = 64  # pixels of the shorter side; up to here "auto" takes CIFAR-10-C's parameters

Generator = torch.Generator | None
_register = functools.partial(register, CORRUPTIONS, SEVERITY, (0, 5), (1, 2, 3, 4, 5))


def _corruption(
    imagenet: tuple[Any, ...], cifar: tuple[Any, ...], options: tuple[str, ...] = ()
) -> Callable[[Callable[..., None]], Callable[..., Tensor]]:
    """Register a corruption; its body gets the parameters of its severity, an entry of a row."""

    def add(body: Callable[..., None]) -> Callable[..., Tensor]:
        @functools.wraps(body)
        def chosen(
            images: Tensor, level: float, generator: Generator, variant: str = "auto", **given: Any
        ) -> None:
            expect(variant in VARIANTS, "variant", f"one of {', '.join(VARIANTS)}", repr(variant))
            small = variant == "cifar" or (variant == "auto" and min(images.shape[2:]) <= SMALL)
            body(images, (cifar if small else imagenet)[int(level) - 1], generator, **given)

        return _register(("variant", *options))(chosen)

    return add


@_corruption((0.08, 0.12, 0.18, 0.26, 0.38), (0.04, 0.06, 0.08, 0.09, 0.1))
def gaussian_noise(images: Tensor, sigma: float, generator: Generator) -> None:
    """Normal noise, independent for every channel value. Parameter: standard deviation."""
    images.add_(draw(torch.randn, images, images.shape, generator).mul_(sigma))


@_corruption((60, 25, 12, 5, 3), (500, 250, 100, 75, 50))
def shot_noise(images: Tensor, photons: float, generator: Generator) -> None:
    """Photon-counting (Poisson) noise, as `shot`. Parameter: photons at full scale."""
    _basic.add_shot_noise(images, 1 / photons, generator)


@_corruption((0.03, 0.06, 0.09, 0.17, 0.27), (0.01, 0.02, 0.03, 0.05, 0.07))
def impulse_noise(images: Tensor, fraction: float, generator: Generator) -> None:
    """Channel values replaced by 0 or 1, as `impulse`. Parameter: the fraction."""
    _basic.replace(images, images.shape, fraction, generator)


@_corruption(
    ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
)
def defocus_blur(images: Tensor, disk: tuple[float, float], _: Generator) -> None:
    """Correlation with a disk, without draws. Parameters: its radius, sigma of its soft edge."""
    images.copy_(correlate(images, _disk(*disk)))


@_corruption(
    ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
)
def glass_blur(images: Tensor, glass: tuple[float, int, int], generator: Generator) -> None:
    """Pixels taken from their neighbourhood, between two blurs.

    From the last row and column to the first, every pixel takes the value of one that is up to
    `delta` away, which may have taken another's before: so the benchmark's images were made, whose
    code reads as if the two were exchanged. Parameters: sigma of the blurs, delta, rounds.
    """
    sigma, delta, rounds = glass
    work = blur(images, sigma, nearest=True).contiguous()
    for _ in range(rounds):
        _take_from_neighbours(work, delta, generator)
    images.copy_(blur(work, sigma, nearest=True))


@_corruption(
    ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)), ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))
)
def motion_blur(images: Tensor, motion: tuple[float, float], generator: Generator) -> None:
    """Blur along a line at -45 to 45 degrees, drawn for each image. Parameters: the radius and
    sigma of ImageMagick's motion blur."""
    angle = uniform(-45, 45, images, (len(images),), generator)
    images.copy_(blur_along(images, *motion, angle))


@_corruption(
    ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
)
def zoom_blur(images: Tensor, factors: tuple[float, float], _: Generator) -> None:
    """The mean of the image and of it enlarged, without draws. Parameters: end and step of the
    factors, from 1 on, as numpy.arange gives them."""
    zooms = np.arange(1, *factors).tolist()
    total = images.clone()
    for factor in zooms:
        total.add_(zoom(images, factor))
    images.copy_(total.div_(len(zooms) + 1))


@_corruption(
    (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
    (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
)
def snow(images: Tensor, flakes: tuple[float, ...], generator: Generator) -> None:
    """Whitened images under streaks of flakes at -135 to -45 degrees, drawn for each image.

    Parameters: mean and standard deviation of normal noise, its enlargement, the threshold below
    which there is no flake, radius and sigma of the motion blur, weight of the image.
    """
    mean, deviation, factor, threshold, radius, sigma, weight = flakes
    n, _, h, w = images.shape
    layer = draw(torch.randn, images, (n, 1, h, w), generator).mul_(deviation).add_(mean)
    layer = zoom(layer, factor)
    layer = layer.masked_fill(layer < threshold, 0.0).clamp_(0, 1)
    layer = blur_along(layer, radius, sigma, uniform(-135, -45, images, (n,), generator))
    white = torch.maximum(images, _grey(images) * 1.5 + 0.5)
    images.mul_(weight).add_(white * (1 - weight)).add_(layer).add_(layer.flip(2, 3))


@_corruption(
    ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    options=("texture",),
)
def frost(
    images: Tensor,
    weights: tuple[float, float],
    generator: Generator,
    texture: Tensor | None = None,
) -> None:
    """A weighted sum with a texture of frost. Parameters: weights of image and texture.

    The benchmark cuts its textures out of photographs. Here they are generated, as for the shift
    `frost`, or given: `texture`, floating [H, W] or [C, H, W] in [0, 1].
    """
    texture = veins(images, generator) if texture is None else texture
    images.mul_(weights[0]).add_(texture * weights[1])


@_corruption(
    ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
)
def fog(images: Tensor, plasma: tuple[float, float], generator: Generator) -> None:
    """A cloud of the diamond-square algorithm added, and all scaled back to the image's maximum.

    Parameters: height of the cloud, by how much its displacements decay from one scale to the next.
    """
    height, decay = plasma
    most = images.amax((1, 2, 3), keepdim=True)
    cloud = _plasma(images, decay, generator)[:, None, : images.shape[2], : images.shape[3]]
    images.add_(cloud * height).mul_(most / (most + height))


@_corruption((0.1, 0.2, 0.3, 0.4, 0.5), (0.05, 0.1, 0.15, 0.2, 0.3))
def brightness(images: Tensor, amount: float, _: Generator) -> None:
    """HSV's value, the largest of the channels, raised, without draws. Parameter: by how much."""
    value = images.amax(1, keepdim=True)
    raised = (value + amount).clamp_(max=1)
    # Hue and saturation stay where all channels grow by one factor; black has none of either.
    images.copy_(torch.where(value > 0, images * (raised / value), raised.expand_as(images)))


@_corruption((0.4, 0.3, 0.2, 0.1, 0.05), (0.75, 0.5, 0.4, 0.3, 0.15))
def contrast(images: Tensor, share: float, _: Generator) -> None:
    """Values pulled to their channel's mean, without draws. Parameter: the contrast that stays."""
    blend(images, means(images, 2), 1 - share)


@_corruption(
    tuple(
        tuple(244 / 224 * value for value in row)
        for row in (
            (2, 0.7, 0.1),
            (2, 0.08, 0.2),
            (0.05, 0.01, 0.02),
            (0.07, 0.01, 0.02),
            (0.12, 0.01, 0.02),
        )
    ),
    ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
)
def elastic_transform(
    images: Tensor, parameters: tuple[float, float, float], generator: Generator
) -> None:
    """A random affine map, then a smooth random displacement, linear between pixels.

    Parameters, in shorter sides of the image: height of the displacement, sigma of its blur, and by
    how much the three points that make the affine map are moved either way.
    """
    n, _, h, w = images.shape
    side = min(h, w)
    height, sigma, moved = (side * value for value in parameters)
    jitter = uniform(-moved, moved, images, (n, 3, 2), generator).to(torch.float64)
    rows = torch.arange(h, dtype=torch.float64, device=images.device).view(1, h, 1)
    columns = torch.arange(w, dtype=torch.float64, device=images.device).view(1, 1, w)
    third = side // 3
    if third:
        images.copy_(sample(images, *_affine(rows, columns, jitter, third), mirror_inside))
    if sigma:
        noise = uniform(-1, 1, images, (n, 2, h, w), generator)
        shift = blur(noise, sigma, 3).mul_(height).to(torch.float64)
        images.copy_(sample(images, rows + shift[:, 1], columns + shift[:, 0], mirror))


@_corruption((0.6, 0.5, 0.4, 0.3, 0.25), (0.95, 0.9, 0.85, 0.75, 0.65))
def pixelate(images: Tensor, share: float, _: Generator) -> None:
    """Fewer pixels, enlarged again, without draws. Parameter: share of a side's pixels."""
    _, _, h, w = images.shape
    small = box_resize(images, max(int(h * share), 1), max(int(w * share), 1))
    images.copy_(box_resize(small, h, w))


@_corruption((25, 18, 15, 10, 7), (80, 65, 58, 50, 40))
def jpeg_compression(images: Tensor, quality: int, _: Generator) -> None:
    """A JPEG file made and read, without draws. Parameter: the quality of the IJG's tables.

    Images of three channels are RGB, with colour at half the resolution; every channel of others is
    an image of greys. The values are those of 8 bits, before and after.
    """
    images.copy_(compress(images, quality))


def _disk(radius: float, sigma: float) -> list[list[float]]:
    """Rows of a kernel of sum about 1: a disk of whole pixels, smoothed within its frame."""
    reach, half = (8, 1) if radius <= 8 else (math.ceil(radius), 2)
    places = range(-reach, reach + 1)
    whole = [[float(x * x + y * y <= radius * radius) for x in places] for y in places]
    area = sum(map(sum, whole))
    taps = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(-half, half + 1)]
    taps = [tap / sum(taps) for tap in taps]

    def smooth(row: list[float]) -> list[float]:
        # Mirrored inside the frame's edge, so a disk that fills its frame weighs a little over 1.
        last = len(row) - 1
        return [
            sum(t * row[last - abs(last - abs(i + j - half))] for j, t in enumerate(taps))
            for i in range(len(row))
        ]

    rows = [smooth([value / area for value in row]) for row in whole]
    return [list(row) for row in zip(*map(smooth, map(list, zip(*rows, strict=True))), strict=True)]


def _take_from_neighbours(images: Tensor, delta: int, generator: Generator) -> None:
    """One round of `glass_blur`, in place.

    Pixels (delta + 1) columns apart in neighbouring rows have no neighbour in common, so the order
    of the rule, pixel after pixel, can be gone through along such lines at once.
    """
    n, c, h, w = images.shape
    first = delta + 1  # of the rows and columns that change; the last is h - delta, w - delta
    rows, columns = h - delta - first + 1, w - delta - first + 1
    if rows < 1 or columns < 1:
        return
    moves = [
        torch.randint(-delta, delta, (n, rows * columns), generator=generator, device=images.device)
        for _ in range(2)
    ]
    offsets = moves[0] * w + moves[1]
    flat = images.view(n, c, h * w)
    for line in range(first * (rows - 1) + columns - 1, -1, -1):
        low = max(0, -(-(line - columns + 1) // first))
        high = min(rows - 1, line // first)
        if low > high:
            continue
        row = torch.arange(low, high + 1, device=images.device)
        column = line - first * row
        at = (row + first) * w + column + first
        other = at + offsets.index_select(1, row * columns + column)
        flat.index_copy_(2, at, flat.gather(2, other[:, None].expand(n, c, len(row))))


def _grey(images: Tensor) -> Tensor:
    """[N, 1, H, W]: the luma of RGB (ITU-R BT.601), else the mean of the channels."""
    count = images.shape[1]
    weights = (0.299, 0.587, 0.114) if count == 3 else (1 / count,) * count
    grey = images[:, :1] * weights[0]
    for channel, weight in enumerate(weights[1:], start=1):
        grey = grey + images[:, channel : channel + 1] * weight
    return grey


def _plasma(images: Tensor, decay: float, generator: Generator) -> Tensor:
    """[N, M, M] from 0 to 1 by the diamond-square algorithm, M the next power of 2; periodic."""
    n, _, h, w = images.shape
    size = 1 << max(1, (max(h, w) - 1).bit_length())
    cloud = torch.zeros((n, size, size), dtype=images.dtype, device=images.device)
    step, wibble = size, 100.0

    def displaced(total: Tensor) -> Tensor:
        return total / 4 + uniform(-wibble, wibble, images, total.shape, generator) * wibble

    while step >= 2:
        half = step // 2
        corners = cloud[:, ::step, ::step]
        sides = corners + corners.roll(-1, 1)
        cloud[:, half::step, half::step] = displaced(sides + sides.roll(-1, 2))
        centres = cloud[:, half::step, half::step]
        across = centres + centres.roll(1, 1) + (corners + corners.roll(-1, 2))
        cloud[:, ::step, half::step] = displaced(across)
        down = centres + centres.roll(1, 2) + (corners + corners.roll(-1, 1))
        cloud[:, half::step, ::step] = displaced(down)
        step, wibble = half, wibble / decay
    cloud -= cloud.amin((1, 2), keepdim=True)
    return cloud / cloud.amax((1, 2), keepdim=True)


def _affine(rows: Tensor, columns: Tensor, jitter: Tensor, third: int) -> tuple[Tensor, Tensor]:
    """Where each pixel comes from, if three corners of the middle square move by `jitter`."""
    y0, x0 = rows.shape[1] // 2, columns.shape[2] // 2
    # The corners (x + t, y + t), (x + t, y - t), (x - t, y - t), from the second of them.
    corner = jitter[:, 1]
    right = jitter[:, 0] - corner
    up = jitter[:, 2] - corner
    ax, ay = right[:, 0, None, None], right[:, 1, None, None] + 2 * third
    bx, by = up[:, 0, None, None] - 2 * third, up[:, 1, None, None]
    x = columns - (corner[:, 0, None, None] + (x0 + third))
    y = rows - (corner[:, 1, None, None] + (y0 - third))
    scale = 2 * third / (ax * by - ay * bx)
    return (
        (y0 - third) + scale * (by * x - bx * y),
        (x0 + third) + scale * (ay * x - ax * y),
    )
