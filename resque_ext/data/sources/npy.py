"""Features and labels in .npy files, as large as they like."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from resque_ext.data.files import content, npy_header
from resque_ext.data.sources.base import Kind
from resque_ext.data.sources.raw import RawArray, RawSource
from resque_ext.errors import ArgumentError

_DTYPES = {
    np.dtype(name): getattr(torch, name)
    for name in (
        *("float16", "float32", "float64", "int8", "int16", "int32", "int64"),
        *("uint8", "uint16", "uint32", "uint64"),
    )
}


class NpySource(RawSource):
    """Features and labels in two .npy files, whose rows are read when they are wanted.

    Args:
        features: .npy [N, D], [N, C, H, W] or [N, T, D] of floats or integers, of any byte order;
            of kind "inputs" [N, ...], of which uint8 are images that become floats in [0, 1]. Or a
            folder that has features.npy (inputs.npy) and labels.npy. A file in Fortran order is
            read through a mapping, more slowly.
        labels: .npy [N] of integers; None for a folder.
        name: how reports call it; default the path.
        kind: "embeddings" or "inputs".
        transforms: of a batch of inputs, in turn: functions, or texts as
            :func:`resque_ext.data.transforms.make_transform` takes.

    Raises:
        FileNotFoundError, ValueError: one line: path, what was expected, what was found.
    """

    def __init__(
        self,
        features: str | os.PathLike[str],
        labels: str | os.PathLike[str] | None = None,
        name: str | None = None,
        kind: Kind = "embeddings",
        transforms: Sequence[Any] = (),
    ) -> None:
        path = Path(features)
        if path.is_dir():
            name = name or str(path)
            labels = path / "labels.npy" if labels is None else labels
            path = path / ("features.npy" if kind == "embeddings" else "inputs.npy")
        if labels is None:
            raise ArgumentError(path, "labels, the path of a .npy file", "None")
        super().__init__(
            "npy",
            open_npy(path),
            open_npy(Path(labels)),
            name,
            kind,
            transforms,
            {},
        )


def open_npy(path: Path) -> RawArray:
    """Where the array of a .npy file lies.

    Raises:
        FileNotFoundError, ValueError: one line: path, what was expected, what was found.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected a .npy file, found none")
    if not path.is_file():
        raise ArgumentError(path, "a .npy file", "no regular file")
    found = content(path)
    if found != "a single .npy array":
        raise ArgumentError(path, "a single .npy array", found)
    with path.open("rb") as file:
        try:
            shape, columns_first, dtype = npy_header(file)
        except ValueError as error:
            raise ArgumentError(path, "numbers", error) from None
        offset = file.tell()
    native = dtype.newbyteorder("=")
    if native not in _DTYPES:
        raise ArgumentError(path, f"one of {', '.join(map(str, _DTYPES))}", f"numpy {dtype}")
    if len(shape) == 0:
        raise ArgumentError(path, "at least one axis", "a single number")
    array = RawArray(
        path,
        None,
        offset,
        shape,
        _DTYPES[native],
        swapped=not dtype.isnative,
        columns_first=columns_first and len(shape) > 1,
    )
    check_size(array, path.stat().st_size)
    return array


def check_size(array: RawArray, size: int) -> None:
    """Raises ValueError where the file is not exactly as long as the array needs it."""
    wanted = array.offset + array.row_bytes * array.shape[0]
    if size != wanted:
        how = "truncated" if size < wanted else "with something behind the array"
        raise ArgumentError(array.path, f"{wanted} bytes for {array.describe()}", f"{size} ({how})")
