"""What a batch holds: inputs, labels where there are any, and which of its tokens are real."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resque_ext.data.checks import check_labels, describe
from resque_ext.errors import ArgumentError, ArgumentTypeError

LABELS = "labels"  # the key of a mapping's labels
MASK = "attention_mask"
MaskOf = Callable[[Any], Any]


def unpack(
    batch: Any, name: str, adapter: Callable[[Any], Any] | None = None
) -> tuple[Any, Any | None]:
    """Inputs and labels of a batch; labels are None where it has none.

    Args:
        batch: a pair ``(inputs, labels)``; a mapping, whose labels are under "labels" if it has
            them; or inputs alone: a tensor, an array, or a tuple or list of one.
        name: of the argument, for messages.
        adapter: makes one of these of any other batch.

    Raises:
        TypeError: something else.
    """
    if adapter is not None:
        batch = adapter(batch)
    if isinstance(batch, Mapping):
        if LABELS not in batch:
            return batch, None
        return {key: x for key, x in batch.items() if key != LABELS}, batch[LABELS]
    if isinstance(batch, (tuple, list)) and len(batch) in (1, 2):
        return batch[0], batch[1] if len(batch) == 2 else None
    if isinstance(batch, (Tensor, np.ndarray)):
        return batch, None
    raise ArgumentTypeError(
        name,
        "batches (inputs, labels)",
        f"{described(batch)}; batch_adapter= turns any batch into such a pair",
    )


def described(batch: Any) -> str:
    """How an error message names a batch."""
    if isinstance(batch, (tuple, list)):
        return f"{type(batch).__name__} of ({'; '.join(map(describe, batch))})"
    if isinstance(batch, Mapping):
        parts = (f"{key}: {describe(x)}" for key, x in batch.items())
        return f"{type(batch).__name__} of ({'; '.join(parts)})"
    return describe(batch)


def labelled(
    batch: Any, name: str, adapter: Callable[[Any], Any] | None = None, hint: str = ""
) -> tuple[Any, Any]:
    """Inputs and labels of a batch that has to have labels.

    Args:
        batch, name, adapter: see :func:`unpack`.
        hint: what else can be done, for the message.

    Raises:
        TypeError: a batch without labels.
    """
    batch = batch if adapter is None else adapter(batch)
    inputs, labels = unpack(batch, name)
    pair = isinstance(batch, (tuple, list)) and len(batch) == 2
    if labels is None and not pair:
        raise ArgumentTypeError(
            name,
            "batches (inputs, labels)",
            f"{described(batch)}; {hint}batch_adapter= turns any batch into such a pair",
        )
    return inputs, labels


def class_labels(labels: Any) -> Tensor | None:
    """Class indices [N], or None for labels of any other kind."""
    try:
        return check_labels(labels)
    except (TypeError, ValueError):
        return None


def rows_of(inputs: Any) -> int | None:
    """The rows of inputs: those of the first tensor or array in them; None if there is none."""
    if isinstance(inputs, (Tensor, np.ndarray)):
        return inputs.shape[0] if inputs.ndim else None
    parts = inputs.values() if isinstance(inputs, Mapping) else inputs
    if not isinstance(inputs, (Mapping, tuple, list)):
        return None
    return next((rows for rows in map(rows_of, parts) if rows is not None), None)


def token_mask(inputs: Any, mask: str | MaskOf | None, name: str) -> Tensor | None:
    """Which tokens of the inputs are real, [N, T] bool; None where nothing says so.

    Args:
        inputs: what the model takes.
        mask: the key of a mapping's mask, whose nonzero entries are real tokens; or a function of
            the inputs that returns such a mask or None; or None.
        name: of the inputs' side, for messages.

    Raises:
        TypeError, ValueError: no mask [N, T], negative entries, or a row without a real token.
    """
    if callable(mask):
        found, what = mask(inputs), f"{name}: mask"
    else:
        found = inputs.get(mask) if mask is not None and isinstance(inputs, Mapping) else None
        what = f"{name}: {mask}"
    if found is None:
        return None
    if not isinstance(found, Tensor) or found.is_complex():
        raise ArgumentTypeError(what, "a tensor [N, T]", describe(found))
    fix = "mask= takes another key, a function of the inputs, or None"
    if found.dim() != 2:
        raise ArgumentError(what, "shape [N, T]", describe(found), fix=fix)
    if found.dtype != torch.bool and found.numel() and bool((found < 0).any()):
        raise ArgumentError(
            what, "0 for padding and nonzero for real tokens", "values below 0", fix=fix
        )
    real = found != 0
    empty = ~real.any(1)
    if bool(empty.any()):
        row = int(empty.int().argmax())
        raise ArgumentError(what, "a real token in every sequence", "none in row {row}", row=row)
    return real


def is_one_batch(data: Any) -> bool:
    """Inputs, or a pair of inputs and labels, where batches of them are expected."""
    kinds = (Tensor, np.ndarray)
    pair = isinstance(data, tuple) and len(data) == 2 and all(isinstance(x, kinds) for x in data)
    return isinstance(data, kinds) or (pair and data[0].ndim > data[1].ndim == 1)
