"""What the ops should give, in plain Python and NumPy, sharing no code with the package."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Order:
    order: list[int]
    offsets: list[int]
    status: list[int]


def class_order(
    labels: Sequence[int], classes: int, blocks: int = 1, seen: Sequence[int] | None = None
) -> Order:
    """Deals the rows one by one into lists, one list a group."""
    groups: dict[int, list[int]] = {}
    turn = list(seen) if seen is not None else [0] * classes
    status = [0] * 5
    for row, label in enumerate(labels):
        if 0 <= label < classes:
            groups.setdefault(label * blocks + turn[label] % blocks, []).append(row)
            turn[label] += 1
        elif status[0] == 0:
            status[:2] = [len(labels) - row, label]
    sizes = np.zeros(classes * blocks + 1, np.int64)
    for group, rows in groups.items():
        sizes[group + 1] = len(rows)
    order = [row for group in sorted(groups) for row in groups[group]]
    return Order(order, np.cumsum(sizes).tolist(), status)


@dataclass(frozen=True)
class Moments:
    """Sums of features and squares; `absolute` holds the sums of absolute values."""

    counts: NDArray[np.int64]  # [K]
    sums: NDArray[np.float64]  # [K, D]
    sumsq: NDArray[np.float64]  # [K, D]
    absolute: NDArray[np.float64]  # [K, D]

    def check(self, found: Sequence[np.ndarray], allowed: float) -> None:
        """Asserts the allowed error, as a share of the sums of absolute values."""
        counts, sums, sumsq = found
        np.testing.assert_array_equal(counts, self.counts)
        assert sums.shape == sumsq.shape == self.sums.shape
        # Denormal results are rounded to a multiple of the least number.
        least = np.finfo(np.float64).smallest_subnormal
        assert (np.abs(sums - self.sums) <= allowed * self.absolute + least).all()
        assert (np.abs(sumsq - self.sumsq) <= allowed * self.sumsq + least).all()


def class_moments(features: np.ndarray, labels: np.ndarray, classes: int) -> Moments:
    """Exact sums, rounded once: every value in two float64, added by math.fsum.

    Rows with a label outside 0..classes-1 or with a value that is not finite are left out.
    """
    x = pooled(features)
    width = x.shape[1]
    out = Moments(np.zeros(classes, np.int64), *(np.zeros((classes, width)) for _ in range(3)))
    good = np.isfinite(x).all(1)
    for c in np.unique(labels):
        if not 0 <= c < classes:
            continue
        rows = x[(labels == c) & good]
        out.counts[c] = len(rows)
        for d in range(width):
            column = rows[:, d]
            out.sums[c, d] = _sum(column)
            out.sumsq[c, d] = _sum(column * column)
            out.absolute[c, d] = _sum(np.abs(column))
    return out


def class_moments_of_integers(features: np.ndarray, labels: np.ndarray, classes: int) -> Moments:
    """For many rows of small integers: float64 adds those without any rounding."""
    x = features.astype(np.float64)
    out = Moments(
        np.bincount(labels, minlength=classes), *(np.zeros((classes, x.shape[1])) for _ in "123")
    )
    for to, values in ((out.sums, x), (out.sumsq, x * x), (out.absolute, np.abs(x))):
        np.add.at(to, labels, values)
    return out


def pooled(features: np.ndarray) -> np.ndarray:
    """The features [N, D] in more than float64: the mean over H and W, or over the tokens."""
    x = features.astype(np.longdouble)
    with np.errstate(invalid="ignore"):
        return x if x.ndim == 2 else x.mean(1) if x.ndim == 3 else x.mean((2, 3))


def _sum(values: np.ndarray) -> float:
    high = values.astype(np.float64)
    return math.fsum([*high.tolist(), *(values - high).astype(np.float64).tolist()])
