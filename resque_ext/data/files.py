"""Arrays from .npz, .npy and .safetensors files; nothing in a file is ever executed."""

from __future__ import annotations

import os
import struct
import sys
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors
import torch
from numpy.typing import NDArray

from resque_ext.errors import ArgumentError

Array = NDArray[Any] | torch.Tensor
NAMES = ("features", "labels")


STANDARD_INPUT = "-"
_OPENED = ("/dev/fd/", "/proc/self/fd/", "/dev/stdin")  # what a process has open already


def read_bytes(path: str | os.PathLike[str], what: str) -> bytes:
    """The content of a file, a pipe that the shell opened, or of standard input for "-".

    Args:
        path: of the file.
        what: is expected there, for the message of an error.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a folder, a device, or a FIFO, which may have no writer and block for ever.
    """
    if os.fspath(path) == STANDARD_INPUT:
        if sys.stdin is None:
            raise ArgumentError("-", f"{what} on standard input", "it closed")
        return (
            sys.stdin.buffer.read() if hasattr(sys.stdin, "buffer") else sys.stdin.read().encode()
        )
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected {what}, found no such file")
    if not path.is_file() and not str(path).startswith(_OPENED):
        kind = "a directory" if path.is_dir() else "a FIFO" if path.is_fifo() else "a device"
        raise ArgumentError(path, f"{what} in a file", kind, fix="- reads standard input")
    return path.read_bytes()


def load_arrays(path: str | os.PathLike[str], names: Sequence[str] = NAMES) -> tuple[Array, ...]:
    """The arrays called `names`, in that order: NumPy's from .npz, torch's (CPU) from .safetensors.

    Other arrays of the file are not read. What shapes and dtypes mean is the caller's to check.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a regular file, another suffix, a truncated, damaged or foreign file, an
            array missing or of Python objects. One line: path, what was expected, what was found.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected a .npz or .safetensors file, found none")
    if not path.is_file():
        kind = "a directory" if path.is_dir() else "something else"
        raise ArgumentError(path, "a file", kind)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ArgumentError(path, "the suffix .npz or .safetensors", f"{path.suffix or 'none'!r}")
    try:
        return reader(path, tuple(names))
    except MemoryError:
        raise ArgumentError(path, "arrays that fit in memory", "larger ones") from None


def map_array(path: str | os.PathLike[str]) -> NDArray[Any]:
    """The array of a .npy file, mapped into memory: rows are read when they are looked at.

    Nothing that is written to it reaches the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a regular file, or not one whole array of numbers, in one line as above.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected a .npy file, found none")
    if not path.is_file():
        raise ArgumentError(path, "a .npy file", "no regular file")
    found = content(path)
    if found != "a single .npy array":
        raise ArgumentError(path, "a single .npy array", found)
    try:
        with path.open("rb") as file:
            npy_header(file)
        return np.load(path, mmap_mode="c", allow_pickle=False)
    except (ValueError, OSError, EOFError, OverflowError) as error:
        raise ArgumentError(path, "a whole numeric array", error) from None


def npy_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether the columns come first, and dtype of a .npy file, read up to its data.

    Raises:
        ValueError: a damaged header, or Python objects, which need pickle.
    """
    try:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0
        if version != (1, 0):
            header = np.lib.format.read_array_header_2_0
        shape, columns_first, dtype = header(file)
    # NumPy parses the header as Python: damaged ones end in exceptions of nearly every type.
    except Exception as error:
        line = " ".join(str(error).split())[:200]
        raise ValueError(f"a damaged header ({type(error).__name__}: {line})") from None
    if dtype.hasobject:
        raise ValueError("Python objects, which need pickle: save plain numbers")
    if any(isinstance(n, bool) or n < 0 for n in shape):
        raise ValueError(f"a damaged header (shape {shape})")
    return tuple(shape), columns_first, dtype


def _read_npz(path: Path, names: tuple[str, ...]) -> tuple[Array, ...]:
    found = content(path)
    if found != "a zip archive":
        raise ArgumentError(path, "an .npz archive", found)
    arrays: dict[str, NDArray[Any]] = {}
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                present = [m.removesuffix(".npy") for m in archive.namelist() if m.endswith(".npy")]
                for name in set(names).intersection(present):
                    with archive.open(f"{name}.npy") as member:
                        arrays[name] = np.lib.format.read_array(member, allow_pickle=False)
        except MemoryError:
            raise
        # In damaged bytes zipfile, zlib and NumPy come upon exceptions of nearly every type.
        except Exception as error:
            found = f"it damaged ({type(error).__name__}: {error})"
            if "Object arrays" in str(error):
                found = f"Python objects in {name!r}, which need pickle: save plain numbers"
            raise ArgumentError(path, "numeric arrays", found) from None
    _check_names(path, names, present)
    return tuple(arrays[name] for name in names)


def _read_safetensors(path: Path, names: tuple[str, ...]) -> tuple[Array, ...]:
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as archive:
            _check_names(path, names, archive.keys())
            return tuple(archive.get_tensor(name) for name in names)
    except safetensors.SafetensorError as error:
        raise ArgumentError(
            path, "a whole safetensors file", f"{content(path)} ({error})"
        ) from None


_READERS: dict[str, Callable[[Path, tuple[str, ...]], tuple[Array, ...]]] = {
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
}


def _check_names(path: Path, names: tuple[str, ...], found: Iterable[str]) -> None:
    present = sorted(found)
    absent = [name for name in names if name not in present]
    if absent:
        listed = ", ".join(map(repr, present[:8])) + (", ..." if len(present) > 8 else "")
        raise ArgumentError(
            path,
            f"the arrays {', '.join(map(repr, names))}",
            f"{listed or 'none at all'} ({', '.join(map(repr, absent))} missing)",
        )


def content(path: Path) -> str:
    """What a file is by its first bytes, for the message of an error."""
    with path.open("rb") as file:
        head = file.read(9)
    if not head:
        return "an empty file"
    if head.startswith(b"PK"):
        whole = zipfile.is_zipfile(path)  # the directory of a zip is at its end
        return "a zip archive" if whole else "a truncated zip archive"
    if head.startswith(b"\x93NUMPY"):
        return "a single .npy array"
    # A safetensors file: the length of its header, at most 100 MB, then a header in JSON.
    if head[8:] == b"{" and struct.unpack("<Q", head[:8])[0] <= 100_000_000:
        return "a truncated or damaged one"
    if head[0] == 0x80:
        return "a pickle, which is never read"
    return f"another format that begins with {head!r}"
