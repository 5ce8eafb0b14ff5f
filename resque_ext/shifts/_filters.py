"""What several shifts are made of. Images are [N, C, H, W] in the compute dtype.

Products and sums are kept apart and added in a fixed order (see `_registry.register`), and no
constant is copied to the images' device, which would wait for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Generator = torch.Generator | None


def draw(
    law: Callable[..., Tensor],
    like: Tensor,
    shape: Sequence[int],
    generator: Generator,
) -> Tensor:
    """Of a law as `torch.rand`, in the dtype and on the device of `like`."""
    return law(shape, dtype=like.dtype, device=like.device, generator=generator)


def uniform(
    low: float, high: float, like: Tensor, shape: Sequence[int], generator: Generator
) -> Tensor:
    return draw(torch.rand, like, shape, generator).mul_(high - low).add_(low)


def blend(images: Tensor, target: Tensor, level: float) -> None:
    """In place; exactly the target at level 1."""
    images.sub_(target).mul_(1.0 - level).add_(target)


def means(images: Tensor, start: int) -> Tensor:
    """Over all dimensions from `start` on, which stay with size 1.

    Summed in float64 by halves: a fixed order of additions, where torch.sum would split a single
    image by the number of threads.
    """
    sums = images.flatten(start).to(torch.float64)
    count = sums.shape[-1]
    sums = torch.nn.functional.pad(sums, (0, (1 << (count - 1).bit_length()) - count))
    while sums.shape[-1] > 1:
        sums = torch.add(*sums.chunk(2, -1))
    return (sums / count).to(images.dtype).reshape(*images.shape[:start], *[1] * (4 - start))


def mirror(index: Tensor, size: int) -> Tensor:
    """Integer places beyond the image, mirrored about its edge: d c b a | a b c d | d c b a."""
    index = index % (2 * size)
    return torch.minimum(index, 2 * size - 1 - index)


def mirror_inside(index: Tensor, size: int) -> Tensor:
    """Likewise about the middle of the edge's pixels: d c b | a b c d | c b a."""
    period = max(2 * (size - 1), 1)
    index = index % period
    return torch.minimum(index, 2 * (size - 1) - index) if size > 1 else index


def blur(images: Tensor, sigma: float, truncate: float = 4.0, nearest: bool = False) -> Tensor:
    """A separable Gaussian, cut at radius int(truncate * sigma + 0.5) and normalised to sum 1.

    The image is mirrored at its edges as often as the radius needs, or repeats its edge pixels
    (`nearest`): scipy.ndimage.gaussian_filter with mode "reflect" or "nearest".
    """
    radius = int(truncate * sigma + 0.5)
    if not radius:
        return images
    return _blur(_blur(images, 2, sigma, radius, nearest), 3, sigma, radius, nearest)


def _blur(images: Tensor, dim: int, sigma: float, radius: int, nearest: bool) -> Tensor:
    size = images.shape[dim]
    # The mirrored image repeats every 2 * size, so offsets fold into 1 - size..size: the border is
    # never wider than the image and the work is bounded whatever the radius.
    taps: dict[int, float] = {}
    for offset in range(-radius, radius + 1):
        folded = offset if nearest else (offset + size - 1) % (2 * size) - (size - 1)
        taps[folded] = taps.get(folded, 0.0) + math.exp(-0.5 * (offset / sigma) ** 2)
    total = math.fsum(taps.values())
    border = radius if nearest else min(radius, size)
    place = torch.arange(-border, size + border, device=images.device)
    place = place.clamp(0, size - 1) if nearest else mirror(place, size)
    padded = images.index_select(dim, place)
    blurred = torch.zeros(images.shape, dtype=images.dtype, device=images.device)
    for offset, weight in taps.items():
        blurred.add_(padded.narrow(dim, border + offset, size) * (weight / total))
    return blurred


def correlate(images: Tensor, kernel: Sequence[Sequence[float]]) -> Tensor:
    """With a square kernel of odd size whose rows are symmetric, mirrored inside the edges.

    A row is a sum of boxes, k[w] - k[w + 1] high and 2 w + 1 wide, which all rows share: a disk of
    441 weights is about 100 additions.
    """
    reach = len(kernel) // 2
    _, _, h, w = images.shape
    rows = mirror_inside(torch.arange(-reach, h + reach, device=images.device), h)
    columns = mirror_inside(torch.arange(-reach, w + reach, device=images.device), w)
    padded = images.index_select(2, rows).index_select(3, columns)
    box = padded.narrow(3, reach, w).clone()
    found = torch.zeros(images.shape, dtype=images.dtype, device=images.device)
    for half in range(reach + 1):
        if half:
            box.add_(padded.narrow(3, reach - half, w)).add_(padded.narrow(3, reach + half, w))
        for i, row in enumerate(kernel):
            step = row[reach + half] - (row[reach + half + 1] if half < reach else 0.0)
            if step:
                found.add_(box.narrow(2, i, h) * step)
    return found


def motion_blur(images: Tensor, radius: float, sigma: float, angle: Tensor) -> Tensor:
    """ImageMagick's: half a Gaussian of 2 * radius + 1 whole pixels, from each pixel on along the
    angle [N] (degrees, clockwise from the x axis); beyond the image its edge pixels go on."""
    n, c, h, w = images.shape
    width = 2 * math.ceil(radius) + 1
    weights = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(width)]
    radians = angle.to(torch.float64).mul(math.pi / 180)
    across, down = radians.cos(), radians.sin()
    flat = images.flatten(2)
    found = torch.zeros(images.shape, dtype=images.dtype, device=images.device)
    for i, weight in enumerate(weights):
        rows = _shifted(down * i, h)
        columns = _shifted(across * i, w)
        index = (rows[:, :, None] * w + columns[:, None, :]).view(n, 1, h * w).expand(n, c, h * w)
        found.add_(flat.gather(2, index).view(n, c, h, w) * (weight / math.fsum(weights)))
    return found


def _shifted(offsets: Tensor, size: int) -> Tensor:
    """[N, size]: each place moved by the image's offset, rounded half down."""
    moved = (offsets - 0.5).ceil().to(torch.int64)[:, None]
    return (torch.arange(size, device=offsets.device) + moved).clamp_(0, size - 1)


def zoom(images: Tensor, factor: float) -> Tensor:
    """The middle of the images, enlarged linearly to their size, corner on corner."""
    for dim in (2, 3):
        size = images.shape[dim]
        crop = math.ceil(size / factor)
        whole = round(crop * factor)
        first, trim = (size - crop) // 2, (whole - size) // 2
        place = torch.arange(trim, trim + size, dtype=torch.float64, device=images.device)
        place = (place * ((crop - 1) / max(whole - 1, 1))).clamp_(0, crop - 1)
        low = place.floor()
        share = (place - low).to(images.dtype)
        if dim == 2:
            share = share[:, None]
        low = low.to(torch.int64) + first
        high = (low + 1).clamp_(max=size - 1)
        images = images.index_select(dim, low) * (1 - share) + (
            images.index_select(dim, high) * share
        )
    return images


def sample(
    images: Tensor, rows: Tensor, columns: Tensor, fold: Callable[[Tensor, int], Tensor]
) -> Tensor:
    """The images at rows and columns [N, H, W] in float64, linear in between."""
    n, c, h, w = images.shape
    flat = images.flatten(2)
    top, left = rows.floor(), columns.floor()
    down = (rows - top).to(images.dtype)[:, None]
    right = (columns - left).to(images.dtype)[:, None]
    top, left = top.to(torch.int64), left.to(torch.int64)

    def pixels(i: int, j: int) -> Tensor:
        index = fold(top + i, h) * w + fold(left + j, w)
        return flat.gather(2, index.view(n, 1, h * w).expand(n, c, h * w)).view(n, c, h, w)

    upper = pixels(0, 0) * (1 - right) + pixels(0, 1) * right
    lower = pixels(1, 0) * (1 - right) + pixels(1, 1) * right
    return upper * (1 - down) + lower * down


def box_resize(images: Tensor, height: int, width: int) -> Tensor:
    """Means of the pixels whose centres lie in each new one, as Pillow's BOX filter."""
    return _box_resize(_box_resize(images, 3, width), 2, height)


def _box_resize(images: Tensor, dim: int, size: int) -> Tensor:
    old = images.shape[dim]
    ratio = old / size
    support = max(ratio, 1.0) / 2
    place = torch.arange(size, dtype=torch.float64, device=images.device)
    middle = (place + 0.5) * ratio
    first = (middle - support + 0.5).clamp(min=0).floor()
    last = (middle + support + 0.5).clamp(max=old).floor()
    shape = [-1 if d == dim else 1 for d in range(4)]
    total, count = (
        torch.zeros((), dtype=images.dtype, device=images.device),
        torch.zeros_like(place),
    )
    for k in range(2 * math.ceil(support) + 1):
        index = first + k
        off = (index - middle + 0.5) / (2 * support)
        inside = (index < last) & (off > -0.5) & (off <= 0.5)
        taken = images.index_select(dim, index.clamp(max=old - 1).to(torch.int64))
        total = total + taken * inside.view(shape)
        count = count + inside
    return total / count.to(images.dtype).view(shape)


def veins(images: Tensor, generator: Generator) -> Tensor:
    """Textures [N, 1, H, W] in [0, 1], bright where smooth normal noise (3 scales) crosses 0."""
    n, _, h, w = images.shape
    found = torch.zeros((n, 1, h, w), dtype=images.dtype, device=images.device)
    for sigma in (1, 3, 9):
        noise = draw(torch.randn, images, found.shape, generator)
        smooth = blur(noise, sigma, 3)
        # Blurred white noise has the standard deviation 1 / (2 sqrt(pi) sigma).
        ridge = 1 - smooth.abs() * (2 * math.sqrt(math.pi) * sigma)
        found.add_(ridge.clamp_(min=0) * (1 / 3))
    return found.sqrt_().clamp_(max=1)
