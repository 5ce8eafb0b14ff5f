"""What a baseline JPEG file keeps of images, as libjpeg makes and reads it.

Without the file: its entropy coding loses nothing. The transform is exact where libjpeg's has
integers, so single values may differ from a file's by what a coefficient's rounding makes of that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# ISO/IEC 10918-1, Annex K: the tables that libjpeg scales by the quality.
LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *[(99, 99, 99, 99, 99, 99, 99, 99)] * 4,
)
# [frequency][place] of the orthonormal cosine transform of 8 values.
COSINES = tuple(
    tuple(
        math.cos((2 * x + 1) * u * math.pi / 16) * (0.5 if u else math.sqrt(1 / 8))
        for x in range(8)
    )
    for u in range(8)
)


def compress(images: Tensor, quality: int) -> Tensor:
    """Images [N, C, H, W] in [0, 1] through JPEG of a quality from 1 to 100."""
    pixels = _round(images * 255)
    if images.shape[1] != 3:
        return _coded(pixels, LUMA, quality) / 255
    red, green, blue = pixels.unbind(1)
    luma = _round(red * 0.299 + green * 0.587 + blue * 0.114)
    colours = (
        _round((blue - luma) * (0.5 / 0.886) + 128),
        _round((red - luma) * (0.5 / 0.701) + 128),
    )
    luma = _coded(luma, LUMA, quality)
    h, w = luma.shape[-2:]
    cb, cr = (_doubled(_coded(_halved(x), CHROMA, quality))[..., :h, :w] - 128 for x in colours)
    rgb = (
        luma + cr * 1.402,
        luma - cb * (0.114 * 1.772 / 0.587) - cr * (0.299 * 1.402 / 0.587),
        luma + cb * 1.772,
    )
    return _round(torch.stack(rgb, 1)).clamp_(0, 255) / 255


def _round(x: Tensor) -> Tensor:
    return (x + 0.5).floor_()


def _coded(plane: Tensor, table: Sequence[Sequence[int]], quality: int) -> Tensor:
    """Values [..., H, W] of 8 bits, what is left of them after quantisation."""
    *_, h, w = plane.shape
    lines = _blocks(_padded(plane, 8) - 128)
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    coded = [
        [
            _quantised(lines[u][v], min(max((table[u][v] * scale + 50) // 100, 1), 255))
            for v in range(8)
        ]
        for u in range(8)
    ]
    return _round(_images(coded) + 128).clamp_(0, 255)[..., :h, :w]


def _quantised(x: Tensor, step: int) -> Tensor:
    """To the nearest multiple; halves, which whole pixels make often, away from 0."""
    return torch.sign(x) * (x.abs() / step + (0.5 + 1e-6)).floor_().mul_(step)


def _blocks(plane: Tensor) -> list[list[Tensor]]:
    """Coefficients [..., H / 8, W / 8] by their frequencies, down and across."""
    rows = _transformed([plane[..., x::8, :] for x in range(8)], COSINES)
    return [_transformed([row[..., x::8] for x in range(8)], COSINES) for row in rows]


def _images(coefficients: list[list[Tensor]]) -> Tensor:
    """The inverse of `_blocks`."""
    back = tuple(zip(*COSINES, strict=True))
    rows = [torch.stack(_transformed(row, back), -1).flatten(-2) for row in coefficients]
    return torch.stack(_transformed(rows, back), -2).flatten(-3, -2)


def _transformed(values: Sequence[Tensor], weights: Sequence[Sequence[float]]) -> list[Tensor]:
    """Sums over eight tensors, in their order."""
    found = []
    for row in weights:
        total = values[0] * row[0]
        for value, weight in zip(values[1:], row[1:], strict=True):
            total.add_(value * weight)
        found.append(total)
    return found


def _padded(plane: Tensor, multiple: int) -> Tensor:
    """The last row and column repeated until both are multiples."""
    for dim in (-2, -1):
        size = plane.shape[dim]
        place = torch.arange(-(-size // multiple) * multiple, device=plane.device)
        plane = plane.index_select(dim, place.clamp_(max=size - 1))
    return plane


def _halved(plane: Tensor) -> Tensor:
    """Means of 2 x 2, rounded up and down in turn from column to column."""
    plane = _padded(plane, 2)
    total = plane[..., ::2, ::2] + plane[..., ::2, 1::2] + plane[..., 1::2, ::2]
    total = total + plane[..., 1::2, 1::2]
    bias = torch.arange(total.shape[-1], device=plane.device) % 2 + 1
    return ((total + bias) / 4).floor_()


def _doubled(plane: Tensor) -> Tensor:
    """Twice the places each way: three quarters of the nearest value and one of the next, rounded;
    exact halves up and down in turn. Edges repeat."""
    for dim in (-2, -1):
        size = plane.shape[dim]
        place = torch.arange(2 * size, device=plane.device)
        near = place // 2
        far = (near + place % 2 * 2 - 1).clamp_(0, size - 1)
        plane = plane.index_select(dim, near) * 0.75 + plane.index_select(dim, far) * 0.25
    half = 0.5 - torch.arange(plane.shape[-1], device=plane.device) % 2 / 16
    return (plane + half).floor_()
