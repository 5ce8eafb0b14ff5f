"""Models and labelled inputs by name: what the command line takes, and nothing is ever evaluated.

A model is `module:callable` and weights in a file of plain tensors; inputs are arrays, or a folder
of images with one subfolder a class; transforms are names from a registry with JSON arguments.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resque_ext.data.checks import as_tensor, check_count, check_labels, describe
from resque_ext.data.files import load_arrays
from resque_ext.data.images import image_decoder
from resque_ext.model.weights import load_weights
from resque_ext.shifts import Shift
from resque_ext.shifts._normalize import Normalize, as_normalize
from resque_ext.storage.json_text import parse_json

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".pbm", ".tif", ".tiff")


def load_model(name: str, weights: str | os.PathLike[str] | None = None) -> nn.Module:
    """The model that `module:callable` returns when called without arguments, in eval mode.

    Args:
        name: such as ``torchvision.models:resnet18`` or ``mine:make_model`` for ``mine.py`` in the
            current folder.
        weights: a state_dict: .safetensors, or .pt, .pth or .bin read with ``weights_only=True``.
            Known nesting (``{"state_dict": ...}``, ``{"model": ...}``) and prefixes (``module.``,
            ``_orig_mod.``, ``model.``) are left out and tied weights filled in, with a warning.

    Raises:
        ValueError: no such module or callable; weights that are damaged or of another model.
        TypeError: what it returns is no model.
        FileNotFoundError: no such file.
    """
    with current_folder_first():
        found = find_callable(name, "model")
        with returning("model", name):
            model = found if isinstance(found, nn.Module) else found()
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model: expected {name!r} to return a torch.nn.Module, found {describe(model)}"
        )
    if weights is not None:
        load_weights(model, Path(weights))
    return model.eval()


def find_callable(name: str, what: str) -> Callable[..., Any]:
    """What `module:callable` names; `what` it is for begins the message of an error.

    Raises:
        ValueError: no such module or callable.
        TypeError: it is not callable.
    """
    module_name, colon, path = name.partition(":")
    if not colon or not module_name or not path:
        raise ValueError(f"{what}: expected module:callable, found {name!r}")
    try:
        with returning(what, module_name):
            found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if missing != module_name and not module_name.startswith(f"{missing}."):
            raise  # of the caller's own imports
        raise ValueError(f"{what}: expected a module, found none called {missing!r}") from None
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise ValueError(
                f"{what}: expected {module_name} to have {path!r}, found no {part!r}"
            ) from None
    if not callable(found):
        raise TypeError(f"{what}: expected {name!r} to be callable, found {describe(found)}")
    return found


@contextlib.contextmanager
def returning(what: str, name: str) -> Iterator[None]:
    """Raises ValueError where a function or module of the caller's ends the program instead."""
    try:
        yield
    except SystemExit as error:
        raise ValueError(
            f"{what}: expected {name!r} to return, found that it ended the program "
            f"(SystemExit: {error.code})"
        ) from None


@contextlib.contextmanager
def current_folder_first() -> Iterator[None]:
    """As `python -m` does; a program started by its name does not look there."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)


@dataclass(frozen=True)
class Batches:
    """Labelled inputs in batches of one size, readable again and again.

    Attributes:
        classes: names of the classes, where the data have names for them.
    """

    read: Callable[[slice], tuple[Tensor, Tensor]]
    samples: int
    batch_size: int
    classes: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return -(-self.samples // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, self.samples, self.batch_size):
            yield self.read(slice(start, min(start + self.batch_size, self.samples)))


def open_batches(
    path: str | os.PathLike[str],
    transforms: Sequence[Callable[[Tensor], Tensor]] = (),
    batch_size: int = 64,
    classes: Sequence[str] | None = None,
) -> Batches:
    """The labelled inputs of a file or folder.

    Args:
        path: .npz or .safetensors with the arrays `inputs` [N, ...] and `labels` [N] (uint8 inputs
            are images: they become floats in [0, 1]), or a folder with one subfolder of images a
            class, in the order of their names.
        transforms: functions of a batch of inputs, in turn; of one image [1, C, H, W] for a folder,
            whose images may differ in size.
        batch_size: samples of a batch, at least 1.
        classes: names that the subfolders may have, in order; for a second side.

    Raises:
        FileNotFoundError, ValueError, TypeError: one line: path, what was expected, what was found.
    """
    path, batch_size = Path(path), check_count(batch_size, "batch_size")
    if path.is_dir():
        return _open_folder(path, transforms, batch_size, classes)
    inputs, labels = (
        as_tensor(a, n) for a, n in zip(load_arrays(path, ARRAYS), ARRAYS, strict=True)
    )
    labels = check_labels(labels, f"{path}: labels")
    if inputs.dim() < 2 or len(inputs) != len(labels) or len(labels) == 0:
        raise ValueError(
            f"{path}: expected inputs [N, ...] and as many labels, found inputs "
            f"({describe(inputs)}) and labels ({describe(labels)})"
        )

    def read(rows: slice) -> tuple[Tensor, Tensor]:
        x = inputs[rows]
        x = x.float() / 255 if x.dtype == torch.uint8 else x
        return functools.reduce(lambda value, f: f(value), transforms, x), labels[rows]

    return Batches(read, len(labels), batch_size)


ARRAYS = ("inputs", "labels")


def _open_folder(
    path: Path,
    transforms: Sequence[Callable[[Tensor], Tensor]],
    batch_size: int,
    classes: Sequence[str] | None,
) -> Batches:
    decode = image_decoder()
    found, files = list_images(path, classes)

    def read_one(file: Path) -> Tensor:
        try:
            image = decode(file)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
        return functools.reduce(lambda value, f: f(value), transforms, image.unsqueeze(0))[0]

    def read(rows: slice) -> tuple[Tensor, Tensor]:
        images = [read_one(file) for file, _ in files[rows]]
        return stack_images(images, path), torch.tensor([label for _, label in files[rows]])

    return Batches(read, len(files), batch_size, found)


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
        raise ValueError(
            f"{path}: expected the subfolders of the other side, one a class, found others: "
            f"{', '.join(unknown[:5])} on one side alone"
        )
    files = [
        (file, names.index(name))
        for name in found
        for file in sorted((path / name).rglob("*"))
        if file.suffix.lower() in IMAGES and file.is_file()
    ]
    if not files:
        raise ValueError(
            f"{path}: expected subfolders of images, one a class, found none "
            f"({len(found)} subfolders; images end in {', '.join(IMAGES)})"
        )
    return names, files


def stack_images(images: Sequence[Tensor], where: Any) -> Tensor:
    """Images of one size as a batch.

    Raises:
        ValueError: of several sizes.
    """
    sizes = {tuple(image.shape) for image in images}
    if len(sizes) > 1:
        raise ValueError(
            f"{where}: expected rows or images of one size, found {sorted(sizes)[:3]} (the "
            "transforms resize and center_crop make them one)"
        )
    return torch.stack(list(images))


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
            raise ValueError(
                f"center_crop: expected images of at least {size}x{size}, found {height}x{width}"
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
        raise ValueError(f"transform: expected one of {', '.join(TRANSFORMS)}, found {name!r}")
    try:
        given = parse_json(arguments or "{}")
    except ValueError as error:
        raise ValueError(f"transform: expected JSON after {name}=, found {error}") from None
    if not isinstance(given, dict):
        raise ValueError(f"transform: expected a JSON object after {name}=, found {given!r}")
    try:
        return make(**given)
    except TypeError as error:
        raise ValueError(f"transform: {name}: {error}") from None


def shifted_before(shift: Shift, transforms: Sequence[Callable[[Tensor], Tensor]]) -> Shift:
    """`shift`, which is defined on images in [0, 1], for inputs that `transforms` normalized."""
    if not transforms or not isinstance(transforms[-1], Normalize):
        return shift
    return shift.normalized(transforms[-1].mean, transforms[-1].std)
