"""The adjusted Rand index of a contingency table, exactly, and what resampling says of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from resque_ext.data.checks import as_tensor, describe
from resque_ext.errors import ArgumentError, ArgumentTypeError
from resque_ext.ops.eager import eager

_LOW = 2**32 - 1
_CELLS = 2**18  # squared at a time: what that takes stays in the cache, 2 MB an array


@eager
def adjusted_rand_index(table: Any) -> float:
    """The adjusted Rand index of two labellings, from their contingency table, in exact integers.

    With the pairs of samples counted by whether each labelling keeps them together (tp: both do;
    fp, fn: one does; tn: neither), 2 (tp tn - fn fp) / ((tp + fn)(fn + tn) + (tp + fp)(fp + tn)).
    Numbers of pairs are squares of numbers of samples and their products fourth powers, beyond
    int64 from 55,000 samples on; here they are Python's integers, rounded once, in the last
    division.

    Args:
        table: [Ka, Kb] counts of int32 or int64, such as :func:`resque_ext.ops.pair_counts` gives;
            a tensor of any device, or a NumPy array.

    Returns:
        -0.5 to 1. 1 for equal partitions, 0 on average by chance. As in scikit-learn it is also 1
        without samples, and if both sides are one cluster or one cluster a sample.

    Raises:
        TypeError: counts that are not integers.
        ValueError: another rank, or a negative count.

    Source: L. Hubert and P. Arabie, Comparing partitions, 1985.
    """
    return _from_counts(check_table(table))


def check_table(table: Any) -> NDArray[np.int64]:
    """A contingency table on the CPU, or the errors of :func:`adjusted_rand_index`."""
    x = as_tensor(table, "table")
    if x.dtype == torch.bool or x.is_floating_point():
        raise ArgumentTypeError("table", "int32 or int64 counts", describe(x))
    if x.dim() != 2:
        raise ArgumentError("table", "shape [Ka, Kb]", describe(x))
    counts = x.cpu().to(torch.int64).numpy()
    if counts.size and counts.min() < 0:
        i, j = np.unravel_index(int(counts.argmin()), counts.shape)
        raise ArgumentError(
            "table", "counts of at least 0", f"{counts[i, j]} at row {i}, column {j}"
        )
    return counts


def _from_counts(counts: NDArray[np.int64]) -> float:
    rows, columns = _sums(counts, axis=1), _sums(counts, axis=0)
    n = sum(rows)
    together = _sum_of_squares(counts)
    in_rows, in_columns = sum(a * a for a in rows), sum(b * b for b in columns)
    # Ordered pairs of two different samples.
    tp, fp, fn = together - n, in_columns - together, in_rows - together
    tn = n * n - in_rows - fp
    if fp == fn == 0:
        return 1.0
    return 2 * (tp * tn - fn * fp) / ((tp + fn) * (fn + tn) + (tp + fp) * (fp + tn))


def _sums(counts: NDArray[np.int64], axis: int) -> list[int]:
    """Sums along an axis that no size of counts overflows: upper and lower halves apart."""
    upper, lower = (part.sum(axis).tolist() for part in (counts >> 32, counts & _LOW))
    return [(high << 32) + low for high, low in zip(upper, lower, strict=True)]


def _sum_of_squares(counts: NDArray[np.int64]) -> int:
    total = 0
    cells = counts.reshape(-1)
    for i in range(0, cells.size, _CELLS):
        part = cells[i : i + _CELLS]
        large = part > _LOW
        if large.any():
            total += sum(count * count for count in part[large].tolist())
            part = part[~large]
        squares = part.view(np.uint64) ** 2  # below 2^64
        total += (int((squares >> 32).sum()) << 32) + int((squares & _LOW).sum())
    return total


@dataclass(frozen=True)
class Bootstrap:
    """What resampling the samples of a contingency table says of its adjusted Rand index.

    Attributes:
        std_error: standard deviation over the replicates.
        low, high: the central 95% of the replicates, centred on the index.
    """

    std_error: float
    low: float
    high: float


def bootstrap(counts: NDArray[np.int64], seed: int, replicates: int = 1000) -> Bootstrap | None:
    """Samples drawn again, with replacement, from a table; None for fewer than two.

    A sample keeps its cell, so this is the uncertainty from which samples there happened to be,
    with both labellings as they stand, and no more.

    Drawn from is the table with one sample more, which is spread over all cells as chance would:
    by the row's share times the column's. Cells that happened to stay empty are so possible, and a
    table without a single disagreement is not certain to be one of a distribution without any.

    The replicates scatter about the index of that distribution, that of infinitely many samples
    from it, which chance agreement in thinly filled cells makes larger than the index of the table.
    Plain percentiles would miss the index altogether there (100 x 100 cells, 3,000 samples); so the
    interval is that of the differences, put around the index. Of a table without a disagreement it
    reaches at least to the index of three in N: with more, one would have been seen in 95% of
    cases.
    """
    filled = np.flatnonzero(counts)
    cells = counts.reshape(-1)[filled]
    n = int(cells.sum())
    if n < 2:
        return None
    rng = np.random.default_rng(seed)
    margins = [counts.sum(axis) / n for axis in (1, 0)]
    # How many of each replicate's samples are drawn by chance, and which cells those fall into.
    others = rng.binomial(n, 1 / (n + 1), replicates)
    drawn = [rng.choice(len(share), others.sum(), p=share) for share in margins]
    extra = drawn[0] * counts.shape[1] + drawn[1]
    replicate = np.repeat(np.arange(replicates), others)
    cells_of_all = np.union1d(filled, extra)
    own_place, extra_place = (np.searchsorted(cells_of_all, x) for x in (filled, extra))
    rows, columns = np.unravel_index(cells_of_all, counts.shape)
    by_column = np.argsort(columns, kind="stable")
    row_starts = _starts(rows)
    column_starts = _starts(columns[by_column])

    def indices(first: int, last: int) -> NDArray[np.float64]:
        """The ARI of replicates first..last - 1."""
        samples = np.zeros((last - first, len(cells_of_all)))
        samples[:, own_place] = _draw(rng, cells, n - others[first:last])
        here = (first <= replicate) & (replicate < last)
        np.add.at(samples, (replicate[here] - first, extra_place[here]), 1)
        in_rows = np.add.reduceat(samples, row_starts, axis=1)
        in_columns = np.add.reduceat(samples[:, by_column], column_starts, axis=1)
        both, a, b = ((x * (x - 1)).sum(1) for x in (samples, in_rows, in_columns))
        return _ratio(both, a, b, n * (n - 1.0))

    part = max(1, 2**20 // len(cells_of_all))  # replicates at a time, 8 MB
    found = [indices(i, min(i + part, replicates)) for i in range(0, replicates, part)]
    # That of infinitely many samples, by the sums of squares of the smoothed shares.
    shares, (a, b) = cells / n, (np.square(share).sum() for share in margins)
    product = margins[0][rows[own_place]] * margins[1][columns[own_place]]
    both = (n * n * np.square(shares).sum() + 2 * n * shares @ product + a * b) / (n + 1) ** 2
    difference = np.concatenate(found) - _ratio(both, a, b, 1.0)
    index = _from_counts(counts)
    low, high = index + np.quantile(difference, [0.025, 0.975])
    if index == 1:
        low = min(low, _with_disagreements(margins[0], min(3 / n, 1.0)))
    return Bootstrap(
        std_error=float(difference.std(ddof=1)),
        low=max(float(low), -0.5),
        high=min(float(high), 1.0),
    )


def _with_disagreements(shares: NDArray[np.float64], share: float) -> float:
    """The index of infinitely many samples of which this share disagrees, as chance would have it.

    Args:
        shares: [K] of the classes, which are the clusters but for those samples.
    """
    squares = float(np.square(shares).sum())
    if squares == 1:  # one class, which no sample can leave
        return 1.0
    apart = share * shares * (1 - shares) / (1 - squares)  # of each class
    away = (squares**2 - float((shares**4).sum())) / (1 - squares) ** 2
    both = (1 - share) ** 2 * squares + share**2 * away
    margin = float(np.square((1 - share) * shares + apart).sum())
    return float(_ratio(both, margin, margin, 1.0))


def _ratio(both: Any, a: Any, b: Any, pairs: float) -> Any:
    """The ARI of pairs together in cells, rows and columns, of so many pairs in all."""
    expected, most = a * b / pairs, (a + b) / 2
    with np.errstate(invalid="ignore"):  # one cluster on either side, or none but singletons
        return np.where(most == expected, 1.0, (both - expected) / (most - expected))


def _draw(
    rng: np.random.Generator, cells: NDArray[np.int64], sizes: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Multinomial counts [len(sizes), cells]: a cell costs about as much as ten samples do."""
    n = int(cells.sum())
    if 10 * len(cells) < n:
        return rng.multinomial(sizes, cells / n).astype(np.float64)
    of_sample = np.repeat(np.arange(len(cells)), cells)
    draws = (of_sample[rng.integers(n, size=size)] for size in sizes)
    return np.stack([np.bincount(d, minlength=len(cells)) for d in draws]).astype(np.float64)


def _starts(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each of the sorted groups begins."""
    return np.flatnonzero(np.diff(groups, prepend=-1))
