"""pair_counts: the contingency table of two labellings of the same rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from resque_ext.data.checks import check_count, check_labels, check_pair, raises_at_once
from resque_ext.errors import ArgumentError
from resque_ext.ops import backend, reference
from resque_ext.ops._features import expect_memory
from resque_ext.ops._library import define
from resque_ext.ops.class_moments import SEGMENT_ROWS
from resque_ext.ops.status import Status, merge_status

NAMES = ("labels_a", "labels_b")
_MOST_CELLS = 2**31  # a table of 16 GiB


def pair_counts(
    labels_a: Any,
    labels_b: Any,
    num_a: int | None = None,
    num_b: int | None = None,
    *,
    check: bool | None = None,
) -> Tensor:
    """How many rows carry each pair of labels: the contingency table of two labellings.

    Args:
        labels_a: [N] class indices 0..num_a-1, int32 or int64, on CPU or CUDA, of any stride; a
            NumPy array is welcome.
        labels_b: [N] class indices 0..num_b-1, likewise, on the same device.
        num_a, num_b: rows and columns of the table, at least 1; by default 1 + the largest label,
            which on CUDA has to wait for the device.
        check: whether labels out of range raise at once. The default is True on the CPU and False
            on CUDA, where raising needs a synchronisation; unchecked rows with such a label are in
            no cell.

    Returns:
        table: [num_a, num_b] int64; `table[i, j]` rows have ``labels_a == i`` and
        ``labels_b == j``.

    Raises:
        TypeError: labels of another dtype, layout or device.
        ValueError: a rank, length, device or label that does not fit, or a table of 2^31 cells and
            more.
    """
    a, b = check_labels(labels_a, NAMES[0]), check_labels(labels_b, NAMES[1])
    check_pair(a, b, NAMES)
    num_a = _count(a, NAMES[0], "num_a") if num_a is None else check_count(num_a, "num_a")
    num_b = _count(b, NAMES[1], "num_b") if num_b is None else check_count(num_b, "num_b")
    if num_a * num_b >= _MOST_CELLS:
        raise ArgumentError("num_a, num_b", "num_a * num_b < 2^31 cells", f"{num_a} * {num_b}")
    check = raises_at_once(check, a.device)
    return torch.ops.resque_ext.pair_counts(a, b, num_a, num_b, check)


def _count(labels: Tensor, name: str, size: str) -> int:
    """1 + the largest label; refused where that cannot be meant."""
    top = int(labels.max()) if len(labels) else 0
    if top >= max(100_000, len(labels)):
        raise ArgumentError(size, f"it to be given for {name} as large as {top}", "None")
    return max(top + 1, 1)


def _segment(a: Tensor, b: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Adds the rows to the table, and returns both sides' status."""
    for labels, name in zip((a, b), NAMES, strict=True):
        expect_memory(labels, name)
    device, n = a.device, a.numel()
    kernels = backend.kernels(device)
    status_a, status_b = (torch.zeros(5, dtype=torch.int64, device=device) for _ in NAMES)
    size = kernels.pair_counts_workspace(n, *table.shape)
    workspace = torch.empty(size, dtype=torch.uint8, device=device)
    backend.launch(
        "pair_counts",
        device,
        a,
        a.dtype == torch.int64,
        a.stride(0),
        b,
        b.dtype == torch.int64,
        b.stride(0),
        n,
        *table.shape,
        table,
        status_a,
        status_b,
        workspace,
    )
    return status_a, status_b


@define(
    "pair_counts_status(Tensor labels_a, Tensor labels_b, int num_a, int num_b) "
    "-> (Tensor table, Tensor status_a, Tensor status_b)"
)
def _pair_counts_status(
    labels_a: Tensor, labels_b: Tensor, num_a: int, num_b: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The table and what was found wrong on either side: see Status in csrc/resque.h."""
    # Again, for who calls the registered op itself: what follows hands out raw pointers.
    a, b = check_labels(labels_a, NAMES[0]), check_labels(labels_b, NAMES[1])
    check_pair(a, b, NAMES)
    check_count(num_a, "num_a")
    check_count(num_b, "num_b")
    if backend.current_backend() == "torch":
        return reference.pair_counts(a, b, num_a, num_b)
    table = torch.zeros(num_a, num_b, dtype=torch.int64, device=a.device)
    n = a.numel()
    starts = range(0, max(n, 1), SEGMENT_ROWS)
    parts = [_segment(*(x[i : i + SEGMENT_ROWS] for x in (a, b)), table) for i in starts]
    if len(parts) == 1:
        return table, *parts[0]
    rows_after = [max(n - i - SEGMENT_ROWS, 0) for i in starts]
    return table, *(merge_status([part[k] for part in parts], rows_after, 1) for k in (0, 1))


@_pair_counts_status.fake
def _(labels_a, labels_b, num_a, num_b):
    table = labels_a.new_empty((num_a, num_b), dtype=torch.int64)
    return table, table.new_empty(5), table.new_empty(5)


@define(
    "pair_counts(Tensor labels_a, Tensor labels_b, int num_a, int num_b, bool check=False) "
    "-> Tensor"
)
def _pair_counts(
    labels_a: Tensor, labels_b: Tensor, num_a: int, num_b: int, check: bool = False
) -> Tensor:
    table, *status = _pair_counts_status(labels_a, labels_b, num_a, num_b)
    if check:
        for name, words, size in zip(NAMES, status, table.shape, strict=True):
            Status.read(words, labels_a.shape[0], 1).raise_for_labels(name, size)
    return table


@_pair_counts.fake
def _(labels_a, labels_b, num_a, num_b, check=False):
    return labels_a.new_empty((num_a, num_b), dtype=torch.int64)
