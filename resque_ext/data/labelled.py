"""Labelled inputs by name, in batches: files of arrays and folders of images."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resque_ext.data.checks import as_tensor, check_count, check_labels, class_indices, describe
from resque_ext.data.files import load_arrays
from resque_ext.data.images import image_decoder, list_images, stack_images
from resque_ext.errors import ArgumentError


@dataclass(frozen=True)
class Batches:
    """Labelled inputs in batches of one size, readable again and again.

    Attributes:
        classes: names of the classes, where the data have names for them.
        sorted_names: whether names in a file were numbered in their sorted order.
    """

    read: Callable[[slice], tuple[Tensor, Tensor]]
    samples: int
    batch_size: int
    classes: tuple[str, ...] | None = None
    sorted_names: bool = False

    def __len__(self) -> int:
        return -(-self.samples // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, self.samples, self.batch_size):
            yield self.read(slice(start, min(start + self.batch_size, self.samples)))


def open_batches(
    path: str | os.PathLike[str],
    transforms: Sequence[Callable[[Tensor], Tensor]] = (),
    batch_size: int = 64,
    like: Batches | None = None,
) -> Batches:
    """The labelled inputs of a file or folder.

    Args:
        path: .npz or .safetensors with the arrays `inputs` [N, ...] and `labels` [N] (uint8 inputs
            are images: they become floats in [0, 1]; labels are class indices, or names of classes
            in a .npz), or a folder with one subfolder of images a class, in the order of their
            names.
        transforms: functions of a batch of inputs, in turn; of one image [1, C, H, W] for a folder,
            whose images may differ in size.
        batch_size: samples of a batch, at least 1.
        like: the first side, whose classes a second one has to have, by the same numbers.

    Raises:
        FileNotFoundError, ValueError, TypeError: one line: path, what was expected, what was found.
    """
    path, batch_size = Path(path), check_count(batch_size, "batch_size")
    classes = None if like is None else like.classes
    if path.is_dir():
        return _open_folder(path, transforms, batch_size, classes)
    inputs, labels = load_arrays(path, ARRAYS)
    inputs = as_tensor(inputs, "inputs")
    (labels,), names = class_indices(**{f"{path}: labels": labels})
    if like is not None:
        here = "numbers" if names is None else "names of classes"
        there = "numbers" if classes is None else "names of classes"
        # A folder's classes have a known order; names in a file are numbered as they sort.
        if here != there and (names is not None or like.sorted_names):
            raise ArgumentError(f"{path}: labels", f"{there}, as on the other side", here)
    if names is not None and classes is not None:
        labels = _numbered(names, classes, path)[labels]
    labels = check_labels(labels, f"{path}: labels")
    if inputs.dim() < 2 or len(inputs) != len(labels) or len(labels) == 0:
        raise ArgumentError(
            path,
            "inputs [N, ...] and as many labels",
            f"inputs ({describe(inputs)}) and labels ({describe(labels)})",
        )

    def read(rows: slice) -> tuple[Tensor, Tensor]:
        x = inputs[rows]
        x = x.float() / 255 if x.dtype == torch.uint8 else x
        return functools.reduce(lambda value, f: f(value), transforms, x), labels[rows]

    found = classes if names is None else classes or tuple(names.tolist())
    return Batches(read, len(labels), batch_size, found, names is not None)


def _numbered(names: NDArray[Any], classes: Sequence[str], path: Path) -> NDArray[np.int64]:
    """The number of each name among the classes of the other side."""
    places = {name: i for i, name in enumerate(classes)}
    unknown = [name for name in names.tolist() if name not in places]
    if unknown:
        raise ArgumentError(
            f"{path}: labels", f"classes of the other side ({', '.join(classes)})", unknown[0]
        )
    return np.array([places[name] for name in names.tolist()])


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
