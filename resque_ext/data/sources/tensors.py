"""Features and labels in a .safetensors file, as large as it likes; and in .npz, read whole."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch

from resque_ext.data.files import content, load_arrays
from resque_ext.data.sources.base import Kind, check_kind, file_fingerprint
from resque_ext.data.sources.raw import RawArray, RawSource
from resque_ext.data.sources.rows import ArraySource
from resque_ext.errors import ArgumentError

_DTYPES = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
}


class SafetensorsSource(RawSource):
    """Features and labels in one .safetensors file, whose rows are read when they are wanted.

    Args:
        path: the file.
        features: name of the tensor; default "features", or "inputs" for that kind.
        labels: name of the other.
        name: how reports call it; default the path.
        kind: "embeddings" or "inputs".
        transforms: of a batch of inputs, in turn: functions, or texts as
            :func:`resque_ext.data.transforms.make_transform` takes.

    Raises:
        FileNotFoundError, ValueError: one line: path, what was expected, what was found.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        features: str | None = None,
        labels: str = "labels",
        name: str | None = None,
        kind: Kind = "embeddings",
        transforms: Sequence[Any] = (),
    ) -> None:
        path, names = Path(path), (features or features_name(kind), labels)
        x, y = _open_safetensors(path, names)
        options = {"features": names[0], "labels": names[1]}
        super().__init__("safetensors", x, y, name or str(path), kind, transforms, options)


def features_name(kind: Kind) -> str:
    """What the features of a kind are called where nobody says otherwise."""
    return "features" if check_kind(kind) == "embeddings" else "inputs"


def _open_safetensors(path: Path, names: tuple[str, ...]) -> list[RawArray]:
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected a .safetensors file, found none")
    if not path.is_file():
        raise ArgumentError(path, "a .safetensors file", "no regular file")
    try:
        # The library's check of the whole header against the length of the file.
        with safetensors.safe_open(path, framework="pt", device="cpu") as archive:
            present = sorted(archive.keys())
    except safetensors.SafetensorError as error:
        raise ArgumentError(
            path, "a whole safetensors file", f"{content(path)} ({error})"
        ) from None
    absent = [name for name in names if name not in present]
    if absent:
        listed = ", ".join(map(repr, present[:8])) + (", ..." if len(present) > 8 else "")
        raise ArgumentError(
            path,
            f"the tensors {', '.join(map(repr, names))}",
            f"{listed or 'none at all'} ({', '.join(map(repr, absent))} missing)",
        )
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    found = []
    for name in names:
        entry = header[name]
        if entry["dtype"] not in _DTYPES:
            raise ArgumentError(f"{path}: {name}", f"one of {', '.join(_DTYPES)}", entry["dtype"])
        if not entry["shape"]:
            raise ArgumentError(f"{path}: {name}", "at least one axis", "a single number")
        offset = 8 + length + entry["data_offsets"][0]
        found.append(RawArray(path, name, offset, tuple(entry["shape"]), _DTYPES[entry["dtype"]]))
    return found


def open_npz(
    path: str | os.PathLike[str],
    features: str | None = None,
    labels: str = "labels",
    name: str | None = None,
    kind: Kind = "embeddings",
    transforms: Sequence[Any] = (),
) -> ArraySource:
    """Features and labels of an .npz archive, read into memory whole; arguments as above."""
    path, names = Path(path), (features or features_name(kind), labels)
    stamp = file_fingerprint(
        "npz", [path] if path.exists() else [], {"kind": kind, "names": list(names)}
    )
    x, y = load_arrays(path, names)
    try:
        return ArraySource(x, y, name or str(path), kind, stamp, transforms)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
