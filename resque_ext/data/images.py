"""Images of any mode and depth as floats [3, H, W] in [0, 1], upright."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resque_ext.errors import ArgumentError, needing

# What image files end in.
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".pbm", ".tif", ".tiff")
ORIENTATION = 0x0112  # EXIF
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # TIFF
WHITE_IS_ZERO, SIGNED = 0, 2
MOST_16_BIT = 2**16 - 1


def image_decoder() -> Callable[[Any], Tensor]:
    """Makes floats [3, H, W] in [0, 1] of an image: a file, its bytes opened as one, or PIL's own.

    The image is turned as its EXIF orientation says. Grey images of 16 bits are divided by 65,535
    (by 2^bits - 1 where a TIFF says that it has fewer), those of floats are taken as they are.
    Colours have 8 bits, as PIL reads them. Transparency is left out.

    What it returns raises ValueError for what is no whole image, or one whose mode or values do not
    tell what white is.
    """
    with needing("data", "PIL", "Pillow, which reads images", "models"):
        from PIL import Image

    def decode(file: Any) -> Tensor:
        try:
            if isinstance(file, Image.Image):
                return _pixels(file)
            with Image.open(file) as image:
                return _pixels(image)
        except (MemoryError, _NotUnderstood):
            raise
        # In damaged bytes the decoders come upon exceptions of nearly every type.
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ValueError(f"expected an image, found {lines[0]}") from None

    return decode


class _NotUnderstood(ValueError):
    """A whole image whose values do not tell what white is."""


def _pixels(image: Any) -> Tensor:
    image.load()
    if image.mode == "F" or image.mode.startswith("I"):
        # The only modes with more than 8 bits: `convert` cuts their values off at 255.
        grey = torch.from_numpy(_grey(image, _upright(image)))
        return grey.expand(3, *grey.shape)
    upright = _upright(image)
    try:
        # By way of RGBA, because PIL warns where a palette's transparency is dropped.
        palette = upright.mode in ("P", "PA")
        colours = (upright.convert("RGBA") if palette else upright).convert("RGB")
    except ValueError:
        raise _NotUnderstood(
            f"expected an image that can be converted to RGB, found one of mode {image.mode}"
        ) from None
    values = torch.from_numpy(np.array(colours))  # [H, W, 3], a copy
    return values.permute(2, 0, 1).contiguous().float() / 255


def _grey(image: Any, upright: Any) -> np.ndarray:
    """[H, W] float32 of an image of 16-bit, 32-bit or floating grey."""
    tags = getattr(image, "tag_v2", {})
    values = np.asarray(upright)
    low, high = values.min(), values.max()
    if image.mode == "F":
        white, expected = 1.0, "values in [0, 1]"
    else:
        bits = tags.get(BITS_PER_SAMPLE, (16,))[0]
        white = float(2**bits - 1 if bits < 16 else MOST_16_BIT)
        expected = f"values from 0 to {white:,.0f}"
        if bits <= 16 and tags.get(SAMPLE_FORMAT, (1,))[0] == SIGNED:
            expected, low = "values without a sign", -1
        # A file of 32 bits may hold numbers of 8 or of 16; those of a format of 16 bits are clear.
        elif image.mode == "I" and image.format not in ("PNG", "PPM") and low >= 0 < high <= 255:
            expected, low = "16-bit values in 32 bits (one above 255)", -1
    if not (low >= 0 and high <= white):
        raise _NotUnderstood(
            f"expected {expected} in an image of mode {image.mode}, found "
            f"{values.min():g} to {values.max():g}: save it as 8-bit or 16-bit grey (L, I;16)"
        )
    scaled = values.astype(np.float32) / np.float32(white)
    # PIL inverts such images of 8 bits itself.
    return 1 - scaled if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else scaled


def _upright(image: Any) -> Any:
    """The image as its EXIF orientation says it is to be seen."""
    from PIL import Image

    turns = (
        Image.Transpose.FLIP_LEFT_RIGHT,
        Image.Transpose.ROTATE_180,
        Image.Transpose.FLIP_TOP_BOTTOM,
        Image.Transpose.TRANSPOSE,
        Image.Transpose.ROTATE_270,
        Image.Transpose.TRANSVERSE,
        Image.Transpose.ROTATE_90,
    )  # of the orientations 2 to 8
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except MemoryError:
        raise
    except Exception:  # EXIF data that cannot be read state no orientation
        return image
    if not isinstance(orientation, int) or not 2 <= orientation <= 8:
        return image
    return image.transpose(turns[orientation - 2])


def list_images(
    path: Path, classes: Sequence[str] | None = None
) -> tuple[tuple[str, ...], list[tuple[Path, int]]]:
    """The classes, one a subfolder, and the images with their class, in the order of their names.

    Args:
        path: the folder.
        classes: names that subfolders may have, in order; default those that there are, sorted.

    Raises:
        ValueError: no images, or subfolders other than `classes`.
    """
    found = tuple(sorted(f.name for f in path.iterdir() if f.is_dir() and f.name[0] != "."))
    names = found if classes is None else tuple(classes)
    if not set(found) <= set(names):
        unknown = sorted(set(found) - set(names))
        raise ArgumentError(
            path,
            "the subfolders of the other side, one a class",
            f"others: {', '.join(unknown[:5])} on one side alone",
        )
    files = [
        (file, names.index(name))
        for name in found
        for file in sorted((path / name).rglob("*"))
        if file.suffix.lower() in IMAGES and file.is_file()
    ]
    if not files:
        raise ArgumentError(
            path,
            "subfolders of images, one a class",
            f"none ({len(found)} subfolders; images end in {', '.join(IMAGES)})",
        )
    return names, files


def stack_images(images: Sequence[Tensor], where: Any) -> Tensor:
    """Images of one size as a batch.

    Raises:
        ValueError: of several sizes.
    """
    sizes = {tuple(image.shape) for image in images}
    if len(sizes) > 1:
        raise ArgumentError(
            where,
            "rows or images of one size",
            sorted(sizes)[:3],
            fix="the transforms resize and center_crop make them one",
        )
    return torch.stack(list(images))
