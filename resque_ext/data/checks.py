"""What comes in, made one kind of tensor or refused: the checks that every op and index shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resque_ext.errors import ArgumentError, ArgumentTypeError

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
DEVICES = ("cpu", "cuda")
WIDE_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
IGNORED = -100  # what losses pass over, torch's `ignore_index`
_ONE_HOT = " (one-hot labels: pass labels.argmax(1))"
IGNORED_FIX = f"{IGNORED} marks rows to ignore: leave them out, labels != {IGNORED}"


def describe(x: Any) -> str:
    """How an error message names what came: shape, dtype and device, or the type."""
    if isinstance(x, Tensor):
        return f"shape {tuple(x.shape)}, {x.dtype}, {x.device}"
    if isinstance(x, np.ndarray):
        return f"shape {x.shape}, numpy {x.dtype}"
    return type(x).__name__


def as_tensor(x: Any, name: str) -> Tensor:
    """Numbers as a detached tensor that shares its memory where that is possible.

    Args:
        x: a tensor; a NumPy array of any byte order; an object with `__dlpack__`,
            `__cuda_array_interface__` or `__array__` (CuPy, JAX, pandas, polars, pyarrow); a
            sequence of numbers, or of rows of one length. Lists of floats become float64.
        name: begins the message of an error.

    Raises:
        TypeError: anything else, text or objects, or a sparse, quantized or complex tensor, or
            another device.
        ValueError: rows that differ in length.
    """
    if not isinstance(x, Tensor):
        x = _converted(x, name)
        if isinstance(x, np.ndarray):
            x = _from_numpy(x, name)
    if x.is_nested:
        raise ArgumentTypeError(name, "a dense tensor", "a nested one")
    if x.layout != torch.strided or x.is_quantized or x.is_complex():
        kind = "quantized" if x.is_quantized else "complex" if x.is_complex() else str(x.layout)
        raise ArgumentTypeError(name, "a dense real tensor", f"{kind} ({describe(x)})")
    if not (x.is_cpu or x.is_cuda):
        raise ArgumentTypeError(name, "a tensor on cpu or cuda", describe(x))
    # A view more is what a small batch would feel.
    return (x.detach() if type(x) is not Tensor or x.requires_grad else x).resolve_neg()


def as_array(x: Any, name: str, row_dims: int = 1) -> Any:
    """A tensor or NumPy array of whatever holds numbers as `as_tensor` takes it; else `x` itself.

    So a list of shards, an iterable of batches and a function come back as they are.

    Args:
        x: anything.
        name: begins the message of an error.
        row_dims: axes that a row may have, for lists of arrays: of more they are a list of shards.

    Raises:
        TypeError, ValueError: as those of `as_tensor`.
    """
    if isinstance(x, Tensor):
        return x
    if isinstance(x, (list, tuple)):
        return _converted(x, name) if x and _is_row(x[0], row_dims) else x
    sequence = isinstance(x, Sequence) and not isinstance(x, (str, bytes))
    return _converted(x, name) if sequence or is_array_like(x) else x


def _is_row(x: Any, dims: int) -> bool:
    if isinstance(x, (list, tuple)):
        return dims > 0 and len(x) > 0 and _is_row(x[0], dims)
    if isinstance(x, (str, bytes)):
        return False
    return np.isscalar(x) or getattr(x, "ndim", dims + 1) <= dims


def is_array_like(x: Any) -> bool:
    """Whether it says that it converts to a tensor or an array, as these do themselves."""
    names = ("__dlpack__", "__cuda_array_interface__", "__array__", "__array_interface__")
    return type(x).__name__ == "PyCapsule" or any(hasattr(x, name) for name in names)


def _converted(x: Any, name: str) -> Any:
    """A tensor, or a NumPy array of numbers or text."""
    if isinstance(x, memoryview):
        x = np.asarray(x)
    if isinstance(x, np.ndarray):
        return _plain(x, name)
    if isinstance(x, Sequence) and not isinstance(x, (str, bytes)):
        return _of_sequence(list(x), name)
    if not is_array_like(x):
        raise ArgumentTypeError(name, "a torch.Tensor or numpy.ndarray", describe(x))
    converts = hasattr(x, "__array__") or hasattr(x, "__array_interface__")
    try:
        if hasattr(x, "__dlpack__") or type(x).__name__ == "PyCapsule":
            try:
                return torch.from_dlpack(x)
            except Exception:  # of text, nulls or strides, which DLPack does not have
                if not converts:
                    raise
        if hasattr(x, "__cuda_array_interface__"):
            return torch.as_tensor(x, device="cuda")
        found = np.asarray(x)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ArgumentTypeError(name, f"{describe(x)} to convert to an array", reason) from None
    return _plain(found, name)


def _of_sequence(x: list[Any], name: str) -> Any:
    try:
        if x and all(isinstance(row, Tensor) for row in x):
            return torch.stack(x)
        found = np.array(x)
        if found.dtype.kind == "U" and not all(isinstance(v, str) for v in x):
            found = np.array(x, dtype=object)  # NumPy makes text of numbers beside text
        return _plain(found, name)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ArgumentError(name, "rows of one length", reason) from None


def _plain(x: np.ndarray, name: str) -> np.ndarray:
    """An array of objects, such as a column of lists, as the numbers or the text that they are."""
    if isinstance(x, np.ma.MaskedArray):
        raise ArgumentTypeError(name, "an array without a mask", "a numpy masked array")
    if x.dtype != object or x.size == 0:
        return x
    try:
        found = np.array(x.tolist())
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise ArgumentError(name, "rows of one length", reason) from None
    if found.dtype.kind == "U" and not all(isinstance(v, str) for v in x.flat):
        return x
    return found


def _from_numpy(x: np.ndarray, name: str) -> Tensor:
    if x.dtype.kind not in "fiub":
        found = f"numpy dtype {x.dtype}"
        if x.dtype == object:
            kinds = sorted({type(v).__name__ for v in x.flat})
            found += f" (of {', '.join(kinds[:4])})" if kinds else ""
        raise ArgumentTypeError(name, "real numbers", found)
    if x.dtype == np.longdouble and x.dtype != np.float64:
        raise ArgumentTypeError(name, "at most float64", f"numpy dtype {x.dtype}")
    x = x.astype(x.dtype.newbyteorder("="), copy=False)
    # torch has no negative or odd strides, warns of read-only memory, and lacks the wide unsigned
    # types.
    if any(s < 0 or s % x.itemsize for s in x.strides) or not x.flags.writeable:
        x = x.copy()
    if x.dtype.kind == "u" and x.dtype.itemsize > 1:
        if x.size and x.max() > np.iinfo(np.int64).max:
            raise ArgumentTypeError(name, "values below 2^63", x.max())
        x = x.astype(np.int64)
    return torch.from_numpy(x)


def as_float(x: Any, name: str) -> Tensor:
    """`as_tensor` in one of FLOATS: integers and floats of 8 bits in a type that has their values.

    Up to 16 bits that is float32, else float64.

    Raises:
        TypeError: bool, and what `as_tensor` refuses.
        ValueError: integers beyond 2^53, which float64 does not have. On CUDA they are rounded:
            to look at them would wait for the device.
    """
    x = as_tensor(x, name)
    if x.dtype in FLOATS:
        return x
    wider = _WIDER.get(x.dtype)
    if wider is None:
        raise ArgumentTypeError(
            name, "float32, float64, float16, bfloat16 or integers", describe(x)
        )
    if x.dtype.itemsize == 8 and x.device.type == "cpu" and x.numel():
        low, high = (int(value) for value in torch.aminmax(x.long()))
        if low < -(2**53) or high > 2**53:
            raise ArgumentError(
                name,
                "integers up to 2^53, which float64 holds exactly",
                low if low < -(2**53) else high,
            )
    return x.to(wider)


_WIDER = {
    getattr(torch, narrow): wide
    for wide, names in (
        (torch.float32, "int8 uint8 int16 uint16 float8_e4m3fn float8_e5m2"),
        (torch.float64, "int32 uint32 int64 uint64"),
    )
    for narrow in names.split()
}


def check_features(features: Any, name: str = "features") -> Tensor:
    """Activations [N, D], [N, C, H, W] or [N, T, D] in one of FLOATS, as `as_float` gives them.

    Raises:
        TypeError: another dtype.
        ValueError: another rank, or nothing to average over.
    """
    x = as_float(features, name)
    if x.dim() not in (2, 3, 4):
        raise ArgumentError(name, "[N, D], [N, C, H, W] or [N, T, D]", describe(x))
    if x.dim() > 2 and (x.shape[2:].numel() if x.dim() == 4 else x.shape[1]) == 0:
        raise ArgumentError(name, "at least one position to average", describe(x))
    return x


def check_labels(labels: Any, name: str = "labels") -> Tensor:
    """Class labels [N] as int32 or int64, detached.

    Raises:
        TypeError: floating, bool or other dtypes; names of classes.
        ValueError: not one-dimensional (one-hot labels among them).
    """
    labels = _as_labels(labels, name)
    if not isinstance(labels, Tensor) and _texts(labels, name) is not None:
        raise ArgumentTypeError(
            name,
            "int32 or int64 class indices",
            "names of classes: part of the data does not show which "
            "names there are, so number them first, the same on both "
            "sides",
        )
    y = as_tensor(labels, name)
    if y.dtype in (torch.uint8, torch.int8, torch.int16):
        y = y.to(torch.int32)
    elif y.dtype in WIDE_UNSIGNED:
        y = y.to(torch.int64)
    hint = ""
    if y.dim() == 2:
        column = y.shape[1] == 1
        hint = " (one column: pass labels.squeeze(1))" if column else _ONE_HOT
    if y.dtype not in (torch.int32, torch.int64):
        raise ArgumentTypeError(name, "int32 or int64 class indices", f"{describe(y)}{hint}")
    if y.dim() != 1:
        raise ArgumentError(name, "shape [N]", f"{describe(y)}{hint}")
    return y


def check_device(device: Any) -> torch.device:
    """A device of this machine, one of CUDA with its index.

    Raises:
        ValueError: no cpu or cuda device, or one that is not there.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        found = None
    if found is None or found.type not in DEVICES:
        raise ArgumentError("device", "a cpu or cuda device", f"{device!r}")
    if found.type == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count()
    index = found.index
    if index is None:
        index = torch.cuda.current_device() if count else 0
    if index >= count:
        raise ArgumentError(
            "device",
            f"one of this machine's {count} CUDA devices",
            f"{device!r}",
            fix=None
            if count
            else "device='cpu' needs none; resque-ext doctor says what CUDA lacks",
        )
    return torch.device("cuda", index)


def class_indices(**labels: Any) -> tuple[list[Any], NDArray[Any] | None]:
    """Names of classes as their places in the sorted list of all of them; other labels unchanged.

    Args:
        labels: those of every side, so that a name means the same class on all; by the name of the
            argument, which begins the message of an error.

    Returns:
        The labels in order, and the names [C]; None where the labels are no names.

    Raises:
        TypeError: names on one side and numbers on the other, or a row without a name.
    """
    given = {name: _as_labels(y, name) for name, y in labels.items()}
    texts = [_texts(y, name) for name, y in given.items()]
    if all(text is None for text in texts):
        return list(given.values()), None
    if any(text is None for text in texts):
        raise ArgumentTypeError(
            ", ".join(given), "names of classes on every side", "numbers on one"
        )
    names = np.unique(np.concatenate([text.ravel() for text in texts]))
    return [np.searchsorted(names, text) for text in texts], names


def _as_labels(labels: Any, name: str) -> Any:
    """A tensor, or an array of numbers or text; `labels` itself where it is neither."""
    if isinstance(labels, Tensor):
        return labels
    if isinstance(labels, (list, tuple)) and any(isinstance(y, str) for y in labels):
        return _converted(labels, name)
    return as_array(labels, name, row_dims=0)


def _texts(x: Any, name: str) -> NDArray[np.str_] | None:
    """The labels as an array of text, None where they are something else."""
    if not isinstance(x, np.ndarray):
        return None
    if x.dtype.kind in "UT":
        return x.astype(str)
    if x.dtype == object and any(isinstance(y, str) for y in x.flat):
        kinds = sorted({type(y).__name__ for y in x.flat if not isinstance(y, str)})
        raise ArgumentTypeError(name, "the name of a class in every row", ", ".join(kinds))
    return None


def check_pair(features: Tensor, labels: Tensor, names: tuple[str, str]) -> None:
    """One label a row, on one device.

    Raises:
        ValueError: lengths or devices differ; the message has both arguments.
    """
    if features.shape[0] != labels.shape[0] or features.device != labels.device:
        what = "one label a row" if features.device == labels.device else "one device"
        raise ArgumentError(
            f"{names[0]}, {names[1]}",
            what,
            f"{names[0]} ({describe(features)}) and {names[1]} ({describe(labels)})",
        )


def check_choice(value: Any, choices: tuple[str, ...], name: str) -> None:
    """Raises ValueError when `value` is none of `choices`."""
    if value not in choices:
        raise ArgumentError(name, f"one of {', '.join(map(repr, choices))}", f"{value!r}")


def raises_at_once(check: Any, device: torch.device) -> bool:
    """What `check=` of an op says; None is True on the CPU and False on CUDA, which would wait.

    Raises:
        TypeError: neither True, False nor None.
    """
    if check is None:
        return device.type == "cpu"
    if not isinstance(check, bool):
        raise ArgumentTypeError("check", "True, False or None", f"{check!r}")
    return check


def check_count(value: Any, name: str, least: int = 1) -> int:
    """An integer of at least `least`.

    Raises:
        TypeError: not an integer (bool is none).
        ValueError: too small, or 2^31 and more.
    """
    if isinstance(value, torch.SymInt):
        return value  # type: ignore[return-value]
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise ArgumentTypeError(name, "an integer", f"{value!r}")
    if not least <= value < 2**31:
        raise ArgumentError(name, f"{least} <= {name} < 2^31", value)
    return int(value)
