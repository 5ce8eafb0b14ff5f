"""class_moments: count, sum and sum of squares of the features of every class, in one pass."""

from __future__ import annotations

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
from resque_ext.ops._features import channel_view, expect_memory, kernel_view
from resque_ext.ops._library import define
from resque_ext.ops.class_order import class_order
from resque_ext.ops.status import Status, merge_status

# Rows of one call into the extension, whose `order` is int32; more rows go in several calls.
SEGMENT_ROWS = 2**30


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
    return torch.ops.resque_ext.class_moments(x, y, num_classes, nonfinite == "skip", check)


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
    if check:
        found = Status.read(status, features.shape[0], moments[1].shape[1])
        found.raise_for_labels("labels", num_classes)
        if not skip_nonfinite:
            found.raise_for_nonfinite("features")
    return tuple(moments)


@_class_moments.fake
def _(features, labels, num_classes, skip_nonfinite=False, check=False):
    return _fake(features, num_classes)


def _fake(features: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    width = features.shape[2] if features.dim() == 3 else features.shape[1]
    sums = features.new_empty((num_classes, width), dtype=torch.float64)
    return features.new_empty(num_classes, dtype=torch.int64), sums, torch.empty_like(sums)
