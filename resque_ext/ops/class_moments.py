"""class_moments: count, sum and sum of squares of the features of every class, in one pass."""

from __future__ import annotations

import mmap
from typing import Any

import torch
from torch import Tensor

from resque_ext.data.checks import (
    check_choice,
    check_count,
    check_features,
    check_labels,
    check_pair,
    raises_at_once,
)
from resque_ext.ops import backend, reference
from resque_ext.ops._features import channel_view, expect_memory, features_view, kernel_view
from resque_ext.ops._library import define
from resque_ext.ops.class_order import class_order
from resque_ext.ops.status import Status, merge_status

# Rows of one call into the extension, whose `order` is int32; more rows go in several calls.
SEGMENT_ROWS = 2**30
# Results of at least so many bytes are mapped, not allocated, where most of them stay zero. Each of
# the two costs some 10 us to map, as much as 256 KB of zeros to write.
UNTOUCHED_BYTES = 2**20


def class_moments(
    features: Any,
    labels: Any,
    num_classes: int,
    *,
    nonfinite: str = "error",
    check: bool | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Count, sum and sum of squares of the features of every class, accumulated in float64.

    Args:
        features: [N, D], or [N, C, H, W] (the mean over H and W is the feature, for any memory
            format), or [N, T, D] (the mean over the T tokens). float32, float64, float16 or
            bfloat16, on CPU or CUDA; a NumPy array is welcome. Gradients do not flow.
        labels: [N] class indices 0..num_classes-1, int32 or int64.
        num_classes: K, at least 1.
        nonfinite: "error": a NaN or infinite feature is a ValueError. "skip": rows with one are
            left out of all three results.
        check: whether wrong values (labels out of range, non-finite features) raise at once. The
            default is True on the CPU and False on CUDA, where raising needs a synchronisation;
            unchecked rows with a label out of range are left out, non-finite features propagate.

    Returns:
        counts: [K] int64.
        sums: [K, D] float64.
        sumsq: [K, D] float64, of the (pooled) features.

        The error is at most 1e-12 of the sum of absolute values whatever N and dtype. The same
        input gives the same bits, for any number of CPU threads.

    Raises:
        TypeError: a dtype, layout or device that is not taken.
        ValueError: a rank, length, device or value that does not fit.
    """
    x, y = check_features(features), check_labels(labels)
    check_pair(x, y, ("features", "labels"))
    num_classes = check_count(num_classes, "num_classes")
    check_choice(nonfinite, ("error", "skip"), "nonfinite")
    check = raises_at_once(check, x.device)
    return _op(x, y, num_classes, nonfinite == "skip", check)


def grouped_moments(
    features: Tensor,
    order: Tensor,
    offsets: Tensor,
    *,
    squares: bool = True,
    skip_nonfinite: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Moments of the groups of :func:`resque_ext.ops.class_order.class_order`; raises for no value.

    Returns:
        counts [G] int64, sums [G, D] float64, sumsq [G, D] float64 ([0, D] without squares), and a
        status [5] int64 with the non-finite features that the same pass found.
    """
    x, groups = channel_view(features), offsets.numel() - 1
    if backend.current_backend() == "torch":
        group = reference.groups_of(order, offsets, len(x))
        return reference.class_moments(x, group, groups, squares, skip_nonfinite)
    device = x.device
    channels = x.shape[1]
    kernels, view = backend.kernels(device), kernel_view(x)
    counts = torch.empty(groups, dtype=torch.int64, device=device)
    sums = torch.empty(groups, channels, dtype=torch.float64, device=device)
    sumsq = torch.empty(groups if squares else 0, channels, dtype=torch.float64, device=device)
    status = torch.zeros(5, dtype=torch.int64, device=device)
    size = kernels.class_moments_workspace(view, groups, squares)
    workspace = torch.empty(size, dtype=torch.uint8, device=device)
    backend.launch(
        "class_moments",
        device,
        view,
        order,
        offsets,
        groups,
        squares,
        skip_nonfinite,
        counts,
        sums,
        sumsq,
        status,
        workspace,
    )
    return counts, sums, sumsq, status


def in_one_call(features: Tensor) -> bool:
    """Whether :func:`add_labelled` takes these features: on the CPU, with the compiled kernels."""
    if backend.current_backend() == "torch" or len(features) > SEGMENT_ROWS:
        return False
    return hasattr(backend.kernels(features.device), "labelled_moments")


def add_labelled(
    features: Tensor,
    labels: Tensor,
    seen: Tensor,
    counts: Tensor,
    sums: Tensor,
    *,
    skip_nonfinite: bool = False,
) -> Tensor:
    """Adds a batch on the CPU to sums by class and block, in one call of the compiled kernels.

    Args:
        features: [N, D], [N, C, H, W] or [N, T, D] for which :func:`in_one_call` holds.
        labels: [N] int32 or int64.
        seen: [C] int64, rows of each class so far; these rows are added.
        counts: [C * B] int64, added to; rows are dealt to the B blocks of their class as
            :func:`resque_ext.ops.class_order.class_order` deals them.
        sums: [C * B, D] float64, added to.

    Returns:
        The status [5] int64. Where it tells of a label out of range, or of a non-finite feature
        that was not to be skipped, nothing has been added.
    """
    status = torch.empty(5, dtype=torch.int64)
    blocks = len(counts) // len(seen)
    _labelled(features, labels, blocks, skip_nonfinite, False, seen, counts, sums, None, status)
    return status


def _labelled(
    features: Tensor,
    labels: Tensor,
    blocks: int,
    skip_nonfinite: bool,
    zeroed: bool,
    seen: Tensor | None,
    counts: Tensor,
    sums: Tensor,
    sumsq: Tensor | None,
    status: Tensor,
) -> None:
    expect_memory(labels, "labels")
    backend.launch(
        "labelled_moments",
        labels.device,
        features_view(features),
        labels,
        labels.dtype == torch.int64,
        labels.stride(0),
        len(counts) // blocks,
        blocks,
        sumsq is not None,
        skip_nonfinite,
        zeroed,
        seen,
        counts,
        sums,
        sumsq,
        status,
    )


def _results(rows: int, num_classes: int, width: int) -> tuple[bool, Tensor, Tensor]:
    """Room for sums and sums of squares on the CPU, and whether it is zero already.

    Where few rows meet large results, most classes get none: their zeros are then pages that the
    system has yet to fill, which cost nothing until somebody reads them.
    """
    size = num_classes * width * 8
    if size < UNTOUCHED_BYTES or 2 * rows > num_classes:
        sums, sumsq = (torch.empty(num_classes, width, dtype=torch.float64) for _ in range(2))
        return False, sums, sumsq
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    pages = (mmap.mmap(-1, size, flags=flags) for _ in range(2))
    sums, sumsq = (torch.frombuffer(p, dtype=torch.float64).view(-1, width) for p in pages)
    return True, sums, sumsq


def _segment(
    x: Tensor, y: Tensor, num_classes: int, skip_nonfinite: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if backend.current_backend() == "torch":  # which needs no order
        expect_memory(x, "features")
        group, status = reference.labelled(y, num_classes)
        *moments, faults = reference.class_moments(
            channel_view(x), group, num_classes, True, skip_nonfinite
        )
        return (*moments, status + faults)
    if in_one_call(x):
        width = x.shape[2] if x.dim() == 3 else x.shape[1]
        counts = torch.empty(num_classes, dtype=torch.int64)
        zeroed, *moments = _results(len(x), num_classes, width)
        status = torch.empty(5, dtype=torch.int64)
        _labelled(x, y, 1, skip_nonfinite, zeroed, None, counts, *moments, status)
        return (counts, *moments, status)
    order, offsets, status = class_order(y, num_classes)
    *moments, faults = grouped_moments(x, order, offsets, skip_nonfinite=skip_nonfinite)
    return (*moments, status + faults)


@define(
    "class_moments_status(Tensor features, Tensor labels, int num_classes, "
    "bool skip_nonfinite=False) -> (Tensor counts, Tensor sums, Tensor sumsq, Tensor status)"
)
def _class_moments_status(
    features: Tensor, labels: Tensor, num_classes: int, skip_nonfinite: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The moments and, from the same pass, what was found wrong: see Status in csrc/resque.h."""
    # Again, for who calls the registered op itself: what follows hands out raw pointers.
    features, labels = check_features(features), check_labels(labels)
    check_pair(features, labels, ("features", "labels"))
    check_count(num_classes, "num_classes")
    n = features.shape[0]
    if n <= SEGMENT_ROWS:
        return _segment(features, labels, num_classes, skip_nonfinite)
    starts = range(0, n, SEGMENT_ROWS)
    parts = [
        _segment(
            features[i : i + SEGMENT_ROWS],
            labels[i : i + SEGMENT_ROWS],
            num_classes,
            skip_nonfinite,
        )
        for i in starts
    ]
    counts, sums, sumsq = (sum(part[k] for part in parts) for k in range(3))
    rows_after = [max(n - i - SEGMENT_ROWS, 0) for i in starts]
    return counts, sums, sumsq, merge_status([p[3] for p in parts], rows_after, sums.shape[1])


@_class_moments_status.fake
def _(features, labels, num_classes, skip_nonfinite=False):
    counts, sums, sumsq = _fake(features, num_classes)
    return counts, sums, sumsq, counts.new_empty(5)


@define(
    "class_moments(Tensor features, Tensor labels, int num_classes, bool skip_nonfinite=False, "
    "bool check=False) -> (Tensor counts, Tensor sums, Tensor sumsq)"
)
def _class_moments(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    skip_nonfinite: bool = False,
    check: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    *moments, status = _class_moments_status(features, labels, num_classes, skip_nonfinite)
    if check and any(status.tolist()):
        found = Status.read(status, features.shape[0], moments[1].shape[1])
        found.raise_for_labels("labels", num_classes)
        if not skip_nonfinite:
            found.raise_for_nonfinite("features")
    return tuple(moments)


# Found once: looking it up, and among its overloads, is what a small batch would feel.
_op = torch.ops.resque_ext.class_moments.default


@_class_moments.fake
def _(features, labels, num_classes, skip_nonfinite=False, check=False):
    return _fake(features, num_classes)


def _fake(features: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    width = features.shape[2] if features.dim() == 3 else features.shape[1]
    sums = features.new_empty((num_classes, width), dtype=torch.float64)
    return features.new_empty(num_classes, dtype=torch.int64), sums, torch.empty_like(sums)
