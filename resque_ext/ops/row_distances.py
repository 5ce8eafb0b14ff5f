"""row_distances: how far the histograms of paired rows are apart, for several numbers of bins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from resque_ext.data.checks import check_choice, check_features, describe
from resque_ext.errors import ArgumentError, ArgumentTypeError
from resque_ext.ops import backend, reference
from resque_ext.ops._features import channel_view, kernel_view
from resque_ext.ops._library import define
from resque_ext.ops.status import Status

#: The columns of the result, each row's histogram over its own range.
DISTANCES = ("wasserstein_heights", "jensen_shannon", "bhattacharyya", "kl")
#: The columns that follow with ``shared=True``, both histograms over the pair's joint range.
SHARED_DISTANCES = ("wasserstein", "jensen_shannon", "bhattacharyya", "kl")

MAX_BIN_COUNTS = 64


class RowDistancesResult(NamedTuple):
    """Distances summed over the pairs of rows.

    Attributes:
        sums: [len(bins), 4 or 8] float64, the columns DISTANCES, then SHARED_DISTANCES.
        used: [] int64, the pairs behind the sums; the rest was left out (nonfinite="skip").
        rows: [N, len(bins), 4 or 8] float64, each pair's own distances, NaN for one with a value
            that is not finite; None if they were not asked for.
        float64_edges: [len(bins)] int64, histograms whose edges the data's precision (float32 for
            16-bit floats) cannot tell apart, or whose range it cannot hold.
    """

    sums: Tensor
    used: Tensor
    rows: Tensor | None
    float64_edges: Tensor


def row_distances(
    old: Any,
    new: Any,
    *,
    bins: int | Sequence[int] = (16, 32, 64),
    shared: bool = False,
    rows: bool = False,
    nonfinite: str = "error",
    check: bool | None = None,
) -> RowDistancesResult:
    """Distances between the histograms of row i of `old` and row i of `new`, summed over i.

    Each row is binned between its own least and greatest value, as ``numpy.histogram`` does it
    (numpy 2: edges in the data's precision, the last bin closed, -+0.5 around a constant row;
    float16 and bfloat16 as float32), so the counts are numpy's. With h the counts over their sum:

    - wasserstein_heights: mean over bins of abs(sort(h_old) - sort(h_new)), the heights taken as
      if they were samples, as the published code does it
    - jensen_shannon: the divergence in nats, at most log 2
    - bhattacharyya: 1 - sum of sqrt(h_old * h_new)
    - kl: sum of h_old * log(h_old / h_new) over the bins where both are positive, so it can be
      negative

    Own ranges hide any shift or rescaling of a row: all four are 0 for new = 2 * old + 3. With
    `shared` the pair is also binned between its joint least and greatest value, for jensen_shannon,
    bhattacharyya and kl and

    - wasserstein: the L1 distance of the two cumulative histograms times the width of a bin, in
      the unit of the data.

    numpy refuses a range too narrow for the bins' edges to differ, and one that overflows. Such
    histograms have float64 edges and are counted. For float64 rows, which have no wider type: one
    that overflows is binned by its halves; in one too narrow the bin is that of
    ``(x - min) / (max - min) * bins``, or of 0.5 if it is constant.

    Args:
        old, new: paired activations of one shape, dtype and device: [N, M], or [N, C, H, W] (the
            row is the mean over H and W, summed in float64 and rounded to float32, or float64 for
            float64; any memory format), or tokens [N, T, D], which are flattened to rows of T * D
            values, not averaged. float32, float64, float16 or bfloat16, on CPU or CUDA; NumPy
            arrays are welcome. Gradients do not flow.
        bins: numbers of bins, each from 2 to 256, no two alike, 64 at most.
        shared: whether to add the distances over shared ranges.
        rows: whether to return each pair's distances too.
        nonfinite: "error": a NaN or infinite (pooled) value is a ValueError. "skip": pairs with
            one on either side are left out.
        check: whether values that are not finite raise at once. The default is True on the CPU and
            False on CUDA, where raising needs a synchronisation; unchecked, their pairs are NaN.

    Returns:
        RowDistancesResult. The same input gives the same bits, for any number of CPU threads.

    Raises:
        TypeError: a dtype, layout or device that is not taken.
        ValueError: a shape, device, number of bins or value that does not fit.
    """
    x, y = check_features(old, "old"), check_features(new, "new")
    check_rows(x, y, ("old", "new"))
    bins = check_bins(bins)
    check_choice(nonfinite, ("error", "skip"), "nonfinite")
    if check is None:
        check = x.device.type == "cpu"
    for flag, name in ((shared, "shared"), (rows, "rows"), (check, "check")):
        if not isinstance(flag, (bool, np.bool_)):
            raise ArgumentTypeError(name, "True or False", f"{flag!r}")
    sums, used, each, float64_edges = torch.ops.resque_ext.row_distances(
        x, y, bins, bool(shared), bool(rows), nonfinite == "skip", bool(check)
    )
    return RowDistancesResult(sums, used, each if rows else None, float64_edges)


def check_bins(bins: Any, name: str = "bins") -> tuple[int, ...]:
    """Numbers of bins as a tuple of int.

    Raises:
        TypeError: not an integer or a sequence of integers.
        ValueError: none or too many of them, one below 2 or above 256, or two alike.
    """
    one = isinstance(bins, (int, np.integer)) and not isinstance(bins, bool)
    if isinstance(bins, (str, bytes)) or not (one or isinstance(bins, (Sequence, np.ndarray))):
        raise ArgumentTypeError(name, "an integer or a sequence of them", f"{bins!r}")
    found = (bins,) if one else tuple(bins)
    for b in found:
        if isinstance(b, (bool, np.bool_)) or not isinstance(b, (int, np.integer)):
            raise ArgumentTypeError(name, "integers", f"{b!r}")
        if not 2 <= b <= 256:
            raise ArgumentError(name, "2 to 256 bins", b)
    if not 1 <= len(found) <= MAX_BIN_COUNTS or len(set(found)) < len(found):
        raise ArgumentError(name, f"1 to {MAX_BIN_COUNTS} different numbers", f"{found!r}")
    return tuple(int(b) for b in found)


def check_rows(old: Tensor, new: Tensor, names: tuple[str, str]) -> None:
    """Paired rows of at least one value.

    Raises:
        ValueError: shapes, dtypes or devices differ, or rows are empty; the message has both
            arguments.
    """
    for what, mine, theirs in (
        ("one shape", old.shape, new.shape),
        ("one dtype", old.dtype, new.dtype),
        ("one device", old.device, new.device),
    ):
        if mine != theirs:
            raise ArgumentError(
                f"{names[0]}, {names[1]}",
                what,
                f"{names[0]} ({describe(old)}) and {names[1]} ({describe(new)})",
            )
    if row_width(old) == 0:
        raise ArgumentError(names[0], "at least one value a row", describe(old))


def check_tokens(
    old: Tensor,
    new: Tensor,
    masks: tuple[Tensor | None, Tensor | None],
    names: tuple[str, str],
) -> None:
    """Paired tokens [N, T, D], whose T may differ where a mask says which are real.

    Raises:
        ValueError: as :func:`check_rows`.
    """
    as_one = new
    if old.dim() == new.dim() == 3 and any(mask is not None for mask in masks):
        as_one = new[:, :1].expand(-1, old.shape[1], -1)  # to compare all but T
    check_rows(old, as_one, names)


def row_width(x: Tensor) -> int:
    """M, the values of a row of [N, M], [N, C, H, W] or [N, T, D]."""
    return x.shape[1] * x.shape[2] if x.dim() == 3 else x.shape[1]


def row_distances_with_status(
    old: Tensor,
    new: Tensor,
    bins: Sequence[int],
    *,
    shared: bool = False,
    rows: bool = False,
    counts: bool = False,
    skip_nonfinite: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The sums, and from the same pass what was found wrong; raises for no value.

    Returns:
        sums, used, rows and float64_edges as in :class:`RowDistancesResult`; counts [N, 2 or 4, sum
        of bins] int32, the histograms of old and new (with `shared` also those over the shared
        range); status [2, 5] int64, the values of old and new that are not finite. What was not
        asked for is [0, ...].
    """
    x, y = (channel_view(t.flatten(1) if t.dim() == 3 else t) for t in (old, new))
    if backend.current_backend() == "torch":
        return reference.row_distances(x, y, bins, shared, rows, counts, skip_nonfinite)
    device, n = x.device, x.shape[0]
    kernels, views = backend.kernels(device), (kernel_view(x, "old"), kernel_view(y, "new"))
    columns, sides, all_bins = (8, 4, sum(bins)) if shared else (4, 2, sum(bins))

    def empty(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    sums = empty(len(bins), columns, dtype=torch.float64)
    each = empty(n if rows else 0, len(bins), columns, dtype=torch.float64)
    histograms = empty(n if counts else 0, sides, all_bins, dtype=torch.int32)
    float64_edges, left_out = empty(len(bins)), empty(1)
    status = torch.zeros(2, 5, dtype=torch.int64, device=device)
    size = kernels.row_distances_workspace(views[0], len(bins), all_bins, shared)
    workspace = empty(size, dtype=torch.uint8)
    backend.launch(
        "row_distances",
        device,
        *views,
        bins,
        shared,
        skip_nonfinite,
        sums,
        each if rows else None,
        histograms if counts else None,
        float64_edges,
        status[0],
        status[1],
        left_out,
        workspace,
    )
    return sums, n - left_out[0], each, float64_edges, histograms, status


def token_distances_with_status(
    old: Tensor,
    new: Tensor,
    masks: tuple[Tensor | None, Tensor | None],
    bins: Sequence[int],
    *,
    shared: bool = False,
    skip_nonfinite: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Distances of paired samples of which each has its own number of real tokens.

    A row is the values of a sample's real tokens; a sample may have more of them on one side. Reads
    the masks, so on CUDA this waits for the device.

    Args:
        old, new: [N, T, D], of any two T.
        masks: [N, T] bool each, or None where all are real.

    Returns:
        rows [N, len(bins), 4 or 8] float64 and float64_edges as in :class:`RowDistancesResult`, and
        status [2, 5] int64, positions in it being those of rows of T * D values.
    """
    full = [
        torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
        for x, mask in zip((old, new), masks, strict=True)
    ]
    n, width = len(old), old.shape[2]
    each = old.new_full((n, len(bins), 8 if shared else 4), torch.nan, dtype=torch.float64)
    edges = torch.zeros(len(bins), dtype=torch.int64, device=old.device)
    status = torch.stack([_status(x, real) for x, real in zip((old, new), full, strict=True)])
    lengths = torch.stack([real.sum(1) for real in full], 1)
    for pair in lengths.unique(dim=0).tolist():
        rows = (lengths == lengths.new_tensor(pair)).all(1).nonzero()[:, 0]
        x, y = (
            side[rows][real[rows]].view(len(rows), length * width)
            for side, real, length in zip((old, new), full, pair, strict=True)
        )
        options = {"shared": shared, "rows": True, "skip_nonfinite": skip_nonfinite}
        if x.shape == y.shape:
            found = row_distances_with_status(x, y, bins, **options)
        else:
            found = reference.row_distances(
                x[..., None], y[..., None], bins, counts=False, **options
            )
        each[rows] = found[2]
        edges += found[3]
    return each, edges, status


def _status(x: Tensor, real: Tensor) -> Tensor:
    """The status words of tokens of which some are not finite: see csrc/resque.h."""
    bad = (~x.isfinite() & real[..., None]).flatten(1)
    first = bad.numel() - bad.flatten().int().argmax() if bad.numel() else 0
    words = torch.zeros(5, dtype=torch.int64, device=x.device)
    words[2], words[4] = bad.sum(), bad.any(1).sum()
    words[3] = torch.where(words[2] > 0, first, 0)
    return words


@define(
    "row_distances_status(Tensor old, Tensor new, int[] bins, bool shared=False, bool rows=False, "
    "bool counts=False, bool skip_nonfinite=False) -> (Tensor sums, Tensor used, Tensor each, "
    "Tensor float64_edges, Tensor histograms, Tensor status)"
)
def _row_distances_status(
    old: Tensor,
    new: Tensor,
    bins: Sequence[int],
    shared: bool = False,
    rows: bool = False,
    counts: bool = False,
    skip_nonfinite: bool = False,
) -> tuple[Tensor, ...]:
    """The distances, the histograms behind them, and what was found wrong."""
    # Again, for who calls the registered op itself: what follows hands out raw pointers.
    old, new = check_features(old, "old"), check_features(new, "new")
    check_rows(old, new, ("old", "new"))
    return row_distances_with_status(
        old,
        new,
        check_bins(bins),
        shared=shared,
        rows=rows,
        counts=counts,
        skip_nonfinite=skip_nonfinite,
    )


@_row_distances_status.fake
def _(old, new, bins, shared=False, rows=False, counts=False, skip_nonfinite=False):
    found = _fake(old, bins, shared, rows)
    n = old.shape[0] if counts else 0
    histograms = old.new_empty((n, 4 if shared else 2, sum(bins)), dtype=torch.int32)
    return (*found, histograms, old.new_empty((2, 5), dtype=torch.int64))


@define(
    "row_distances(Tensor old, Tensor new, int[] bins, bool shared=False, bool rows=False, "
    "bool skip_nonfinite=False, bool check=False) -> (Tensor sums, Tensor used, Tensor each, "
    "Tensor float64_edges)"
)
def _row_distances(
    old: Tensor,
    new: Tensor,
    bins: Sequence[int],
    shared: bool = False,
    rows: bool = False,
    skip_nonfinite: bool = False,
    check: bool = False,
) -> tuple[Tensor, ...]:
    *found, _, status = _row_distances_status(
        old, new, bins, shared, rows, skip_nonfinite=skip_nonfinite
    )
    if check and not skip_nonfinite:
        for words, name in zip(status, ("old", "new"), strict=True):
            Status.read(words, old.shape[0], row_width(old)).raise_for_nonfinite(name)
    return tuple(found)


@_row_distances.fake
def _(old, new, bins, shared=False, rows=False, skip_nonfinite=False, check=False):
    return _fake(old, bins, shared, rows)


def _fake(old: Tensor, bins: Sequence[int], shared: bool, rows: bool) -> tuple[Tensor, ...]:
    columns = 8 if shared else 4
    whole = torch.int64
    return (
        old.new_empty((len(bins), columns), dtype=torch.float64),
        old.new_empty((), dtype=whole),
        old.new_empty((old.shape[0] if rows else 0, len(bins), columns), dtype=torch.float64),
        old.new_empty(len(bins), dtype=whole),
    )
