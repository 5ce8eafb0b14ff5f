"""Features and labels in .npy files, as large as they like."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from resque_ext.files import content
from resque_ext.screening.sources.base import Kind
from resque_ext.screening.sources.raw import RawArray, RawSource

# Labels may be of any of these, features of some.
_DTYPES = {
    np.dtype(name): getattr(torch, name)
    for name in ("float16", "float32", "float64", "uint8", "int8", "int16", "int32", "int64")
}


class NpySource(RawSource):
    """Features and labels in two .npy files, whose rows are read when they are wanted.

    Args:
        features: .npy [N, D], [N, C, H, W] or [N, T, D] of float16, float32 or float64; of kind
            "inputs" also [N, ...] of uint8, images that become floats in [0, 1]. Or a folder that
            has features.npy (inputs.npy) and labels.npy.
        labels: .npy [N] of integers; None for a folder.
        name: how reports call it; default the path.
        kind: "embeddings" or "inputs".
        transforms: functions of a batch of inputs, in turn.

    Raises:
        FileNotFoundError, ValueError: one line: path, what was expected, what was found.
    """

    def __init__(
        self,
        features: str | os.PathLike[str],
        labels: str | os.PathLike[str] | None = None,
        name: str | None = None,
        kind: Kind = "embeddings",
        transforms: tuple[Any, ...] = (),
        options: dict[str, Any] | None = None,
    ) -> None:
        path = Path(features)
        if path.is_dir():
            name = name or str(path)
            labels = path / "labels.npy" if labels is None else labels
            path = path / ("features.npy" if kind == "embeddings" else "inputs.npy")
        if labels is None:
            raise ValueError(f"{path}: expected labels, the path of a .npy file, found None")
        super().__init__(
            "npy",
            open_npy(path),
            open_npy(Path(labels)),
            name,
            kind,
            transforms,
            options or {},
        )


def open_npy(path: Path) -> RawArray:
    """Where the array of a .npy file lies.

    Raises:
        FileNotFoundError, ValueError: one line: path, what was expected, what was found.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected a .npy file, found none")
    if not path.is_file():
        raise ValueError(f"{path}: expected a .npy file, found no regular file")
    found = content(path)
    if found != "a single .npy array":
        raise ValueError(f"{path}: expected a single .npy array, found {found}")
    with path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, columns_first, dtype = read(file)
        except (ValueError, KeyError, EOFError, OSError) as error:
            first = " ".join(str(error).split())[:200]
            raise ValueError(f"{path}: expected the header of a .npy file, found {first}") from None
        offset = file.tell()
    if dtype.hasobject:
        raise ValueError(
            f"{path}: expected numbers, found Python objects, which need pickle: save plain numbers"
        )
    if dtype not in _DTYPES:
        raise ValueError(
            f"{path}: expected one of {', '.join(map(str, _DTYPES))}, found numpy {dtype}"
        )
    if len(shape) == 0:
        raise ValueError(f"{path}: expected at least one axis, found a single number")
    if columns_first and len(shape) > 1:
        raise ValueError(
            f"{path}: expected rows one behind the other (C order), found Fortran order: save "
            "numpy.ascontiguousarray(features)"
        )
    array = RawArray(path, None, offset, tuple(shape), _DTYPES[dtype])
    check_size(array, path.stat().st_size)
    return array


def check_size(array: RawArray, size: int) -> None:
    """Raises ValueError where the file is not exactly as long as the array needs it."""
    wanted = array.offset + array.row_bytes * array.shape[0]
    if size != wanted:
        how = "truncated" if size < wanted else "with something behind the array"
        raise ValueError(
            f"{array.path}: expected {wanted} bytes for {array.describe()}, found {size} ({how})"
        )
