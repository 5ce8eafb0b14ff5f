"""What comes in, made one kind of tensor or refused: the checks that every op and index shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
DEVICES = ("cpu", "cuda")


def describe(x: Any) -> str:
    """How an error message names what came: shape, dtype and device, or the type."""
    if isinstance(x, Tensor):
        return f"shape {tuple(x.shape)}, {x.dtype}, {x.device}"
    if isinstance(x, np.ndarray):
        return f"shape {x.shape}, numpy {x.dtype}"
    return type(x).__name__


def as_tensor(x: Any, name: str) -> Tensor:
    """A tensor or NumPy array as a detached tensor that shares its memory where that is possible.

    Raises:
        TypeError: anything else, or a sparse, quantized or complex tensor, or another device.
    """
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected an array without a mask, found a numpy masked array")
    if isinstance(x, np.ndarray):
        if x.dtype.kind not in "fiub":
            raise TypeError(f"{name}: expected real numbers, found numpy dtype {x.dtype}")
        if x.dtype == np.longdouble and x.dtype != np.float64:
            raise TypeError(f"{name}: expected at most float64, found numpy dtype {x.dtype}")
        x = x.astype(x.dtype.newbyteorder("="), copy=False)
        # torch has no negative or odd strides, warns of read-only memory, and lacks the wide
        # unsigned types.
        if any(s < 0 or s % x.itemsize for s in x.strides) or not x.flags.writeable:
            x = x.copy()
        if x.dtype.kind == "u" and x.dtype.itemsize > 1:
            if x.size and x.max() > np.iinfo(np.int64).max:
                raise TypeError(f"{name}: expected values below 2^63, found {x.max()}")
            x = x.astype(np.int64)
        x = torch.from_numpy(x)
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor or numpy.ndarray, found {describe(x)}")
    if x.is_nested:
        raise TypeError(f"{name}: expected a dense tensor, found a nested one")
    if x.layout != torch.strided or x.is_quantized or x.is_complex():
        kind = "quantized" if x.is_quantized else "complex" if x.is_complex() else str(x.layout)
        raise TypeError(f"{name}: expected a dense real tensor, found {kind} ({describe(x)})")
    if x.device.type not in DEVICES:
        raise TypeError(f"{name}: expected a tensor on cpu or cuda, found {describe(x)}")
    return x.detach().resolve_neg()


def check_float(x: Tensor, name: str) -> None:
    """Raises TypeError for a dtype that is none of FLOATS."""
    if x.dtype not in FLOATS:
        raise TypeError(
            f"{name}: expected float32, float64, float16 or bfloat16, found {describe(x)}"
        )


def check_features(features: Any, name: str = "features") -> Tensor:
    """Activations [N, D], [N, C, H, W] or [N, T, D] of a floating dtype, detached.

    Raises:
        TypeError: another dtype.
        ValueError: another rank, or nothing to average over.
    """
    x = as_tensor(features, name)
    check_float(x, name)
    if x.dim() not in (2, 3, 4):
        raise ValueError(f"{name}: expected [N, D], [N, C, H, W] or [N, T, D], found {describe(x)}")
    if x.dim() > 2 and (x.shape[2:].numel() if x.dim() == 4 else x.shape[1]) == 0:
        raise ValueError(f"{name}: expected at least one position to average, found {describe(x)}")
    return x


def check_labels(labels: Any, name: str = "labels") -> Tensor:
    """Class labels [N] as int32 or int64, detached.

    Raises:
        TypeError: floating, bool or other dtypes.
        ValueError: not one-dimensional (one-hot labels among them).
    """
    y = as_tensor(labels, name)
    if y.dtype in (torch.uint8, torch.int8, torch.int16):
        y = y.to(torch.int32)
    hint = " (one-hot labels: pass labels.argmax(1))" if y.dim() == 2 else ""
    if y.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name}: expected int32 or int64 class indices, found {describe(y)}{hint}")
    if y.dim() != 1:
        raise ValueError(f"{name}: expected shape [N], found {describe(y)}{hint}")
    return y


def check_pair(features: Tensor, labels: Tensor, names: tuple[str, str]) -> None:
    """One label a row, on one device.

    Raises:
        ValueError: lengths or devices differ; the message has both arguments.
    """
    if features.shape[0] != labels.shape[0] or features.device != labels.device:
        what = "one label a row" if features.device == labels.device else "one device"
        raise ValueError(
            f"{names[0]}, {names[1]}: expected {what}, found {names[0]} ({describe(features)}) "
            f"and {names[1]} ({describe(labels)})"
        )


def check_choice(value: Any, choices: tuple[str, ...], name: str) -> None:
    """Raises ValueError when `value` is none of `choices`."""
    if value not in choices:
        raise ValueError(
            f"{name}: expected one of {', '.join(map(repr, choices))}, found {value!r}"
        )


def raises_at_once(check: Any, device: torch.device) -> bool:
    """What `check=` of an op says; None is True on the CPU and False on CUDA, which would wait.

    Raises:
        TypeError: neither True, False nor None.
    """
    if check is None:
        return device.type == "cpu"
    if not isinstance(check, bool):
        raise TypeError(f"check: expected True, False or None, found {check!r}")
    return check


def unpack_batch(
    batch: Any, name: str, adapter: Callable[[Any], tuple[Any, Any]] | None
) -> tuple[Any, Any]:
    """Inputs and labels of a batch, which `adapter` makes a pair of where there is one.

    Raises:
        TypeError: no pair; the message has what is in the batch.
    """
    if adapter is not None:
        batch = adapter(batch)
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        found = describe(batch)
        if isinstance(batch, (tuple, list)):
            found = f"{type(batch).__name__} of ({'; '.join(map(describe, batch))})"
        elif isinstance(batch, dict):
            found = f"dict of ({'; '.join(f'{k}: {describe(v)}' for k, v in batch.items())})"
        raise TypeError(
            f"{name}: expected batches (inputs, labels), found {found}; batch_adapter= turns any "
            "batch into such a pair"
        )
    inputs, labels = batch
    return inputs, labels


def check_count(value: Any, name: str, least: int = 1) -> int:
    """An integer of at least `least`.

    Raises:
        TypeError: not an integer (bool is none).
        ValueError: too small, or 2^31 and more.
    """
    if isinstance(value, torch.SymInt):
        return value  # type: ignore[return-value]
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: expected an integer, found {value!r}")
    if not least <= value < 2**31:
        raise ValueError(f"{name}: expected {least} <= {name} < 2^31, found {value}")
    return int(value)
