"""lloyd_step: one iteration of Lloyd's k-means, assignment and next sums together."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from resque_ext.data.checks import as_float, describe, raises_at_once
from resque_ext.errors import ArgumentError
from resque_ext.ops import backend, reference
from resque_ext.ops._features import channel_view, expect_memory, kernel_view
from resque_ext.ops._library import define
from resque_ext.ops.class_moments import SEGMENT_ROWS
from resque_ext.ops.status import Status, merge_status


class LloydStep(NamedTuple):
    """What one iteration gives.

    Attributes:
        labels: [N] int64, the nearest centre of every row.
        inertia: [] float64, the sum of the squared distances to those centres.
        sums: [K, D] float64, of the rows of each label; the next centres are ``sums / counts``.
        counts: [K] int64, rows of each label.
    """

    labels: Tensor
    inertia: Tensor
    sums: Tensor
    counts: Tensor


def lloyd_step(features: Any, centers: Any, *, check: bool | None = None) -> LloydStep:
    """Assigns every row to its nearest centre and sums the rows of each centre.

    The distance is the sum over columns of (x - c)^2 in float64; a row at the same distance from
    several centres goes to the lowest index. Where the fast product of lower precision cannot tell
    which centre is nearest, the candidates' distances decide. N < K leaves centres without rows.

    Args:
        features: [N, D] float32, float64, float16 or bfloat16, on CPU or CUDA; a NumPy array is
            welcome. Gradients do not flow.
        centers: [K, D], at least one, on the same device, of any of these dtypes; read as float64.
        check: whether wrong values (features or centres that are NaN or infinite) raise at once.
            The default is True on the CPU and False on CUDA, where raising needs a
            synchronisation; unchecked, a row with a non-finite feature has label 0 and makes
            inertia and sums non-finite.

    Returns:
        labels [N] int64, inertia [] float64, sums [K, D] float64 and counts [K] int64. The same
        input gives the same bits, for any number of CPU threads; labels are the same on any device.

    Raises:
        TypeError: a dtype, layout or device that is not taken.
        ValueError: a rank, width, device or value that does not fit.
    """
    x, c = _check(features, centers)
    return LloydStep(*torch.ops.resque_ext.lloyd_step(x, c, raises_at_once(check, x.device)))


def _check(features: Any, centers: Any) -> tuple[Tensor, Tensor]:
    tensors = []
    for name, value, shape in (("features", features, "[N, D]"), ("centers", centers, "[K, D]")):
        x = as_float(value, name)
        if x.dim() != 2:
            raise ArgumentError(name, shape, describe(x))
        tensors.append(x)
    x, c = tensors
    if x.shape[1] != c.shape[1] or x.device != c.device:
        what = "one width" if x.device == c.device else "one device"
        raise ArgumentError(
            "features, centers", what, f"features ({describe(x)}) and centers ({describe(c)})"
        )
    if c.shape[0] == 0:
        raise ArgumentError("centers", "at least one centre", describe(c))
    return x, c


def _segment(
    features: Tensor, centers: Tensor, update: bool, distances: bool
) -> tuple[Tensor, ...]:
    # Without a column all distances are 0: nothing that a kernel could do better.
    if backend.current_backend() == "torch" or features.shape[1] == 0:
        return reference.lloyd_step(features, centers, update, distances)
    x = channel_view(features)
    device, (n, width, _), k = x.device, x.shape, centers.shape[0]
    expect_memory(centers, "centers")
    kernels, view = backend.kernels(device), kernel_view(x)
    labels = torch.empty(n, dtype=torch.int64, device=device)
    squared = torch.empty(n if distances else 0, dtype=torch.float64, device=device)
    inertia = torch.empty((), dtype=torch.float64, device=device)
    sums = torch.empty(k if update else 0, width, dtype=torch.float64, device=device)
    counts = torch.empty(k if update else 0, dtype=torch.int64, device=device)
    rechecked = torch.empty((), dtype=torch.int64, device=device)
    status = torch.zeros(5, dtype=torch.int64, device=device)
    size = kernels.lloyd_step_workspace(view, k, update)
    workspace = torch.empty(size, dtype=torch.uint8, device=device)
    backend.launch(
        "lloyd_step",
        device,
        view,
        centers,
        k,
        labels,
        squared if distances else None,
        inertia,
        sums if update else None,
        counts if update else None,
        rechecked,
        status,
        workspace,
    )
    return labels, squared, inertia, sums, counts, rechecked, status


@define(
    "lloyd_step_status(Tensor features, Tensor centers, bool update=True, bool distances=False) -> "
    "(Tensor labels, Tensor squared, Tensor inertia, Tensor sums, Tensor counts, Tensor rechecked, "
    "Tensor status)"
)
def lloyd_step_status(
    features: Tensor, centers: Tensor, update: bool = True, distances: bool = False
) -> tuple[Tensor, ...]:
    """The step and what the same pass tells besides.

    squared [N] float64 are the squared distances ([0] unless `distances`), sums and counts are [0,
    D] and [0] without `update`, rechecked [] int64 counts the rows that the fast product left open,
    and status is that of csrc/resque.h for the features.
    """
    # Again, for who calls the registered op itself: what follows hands out raw pointers.
    features, centers = _check(features, centers)
    centers = centers.to(torch.float64).contiguous()
    n, width = features.shape
    if n <= SEGMENT_ROWS:
        return _segment(features, centers, update, distances)
    starts = range(0, n, SEGMENT_ROWS)
    parts = [_segment(features[i : i + SEGMENT_ROWS], centers, update, distances) for i in starts]
    labels, squared = (torch.cat([part[i] for part in parts]) for i in range(2))
    inertia, sums, counts, rechecked = (sum(part[i] for part in parts) for i in range(2, 6))
    rows_after = [max(n - i - SEGMENT_ROWS, 0) for i in starts]
    status = merge_status([part[6] for part in parts], rows_after, width)
    return labels, squared, inertia, sums, counts, rechecked, status


@lloyd_step_status.fake
def _(features, centers, update=True, distances=False):
    labels, inertia, sums, counts = _fake(features, centers)
    squared = features.new_empty(features.shape[0] if distances else 0, dtype=torch.float64)
    if not update:
        sums, counts = sums[:0].clone(), counts[:0].clone()
    return labels, squared, inertia, sums, counts, labels.new_empty(()), labels.new_empty(5)


@define(
    "lloyd_step(Tensor features, Tensor centers, bool check=False) -> "
    "(Tensor labels, Tensor inertia, Tensor sums, Tensor counts)"
)
def _lloyd_step(features: Tensor, centers: Tensor, check: bool = False) -> tuple[Tensor, ...]:
    if check:
        raise_for_centers(centers)
    labels, _, inertia, sums, counts, _, status = lloyd_step_status(features, centers)
    if check:
        Status.read(status, *features.shape).raise_for_nonfinite("features", fix=None)
    return labels, inertia, sums, counts


@_lloyd_step.fake
def _(features, centers, check=False):
    return _fake(features, centers)


def _fake(features: Tensor, centers: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inertia = features.new_empty((), dtype=torch.float64)
    labels = features.new_empty(features.shape[0], dtype=torch.int64)
    sums = features.new_empty(centers.shape, dtype=torch.float64)
    return labels, inertia, sums, features.new_empty(centers.shape[0], dtype=torch.int64)


def raise_for_centers(centers: Tensor, name: str = "centers") -> None:
    """ValueError with the number of values that are NaN or infinite and the first one's position.

    On CUDA this waits for the device.
    """
    bad = ~centers.isfinite()
    if count := int(bad.sum()):
        row, column = divmod(int(bad.flatten().int().argmax()), centers.shape[1])
        raise ArgumentError(
            name,
            "finite values",
            f"{count} NaN or infinite, the first at row {row}, column {column}",
        )
