"""The Wasserstein distance of distributions that are points with counts, as histograms are.

NumPy on purpose: its sums do not depend on a number of threads.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from resque_ext.errors import ArgumentTypeError
from resque_ext.ops.eager import eager
from resque_ext.ops.value_histogram import ValueHistogram

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class Distance(float):
    """A distance, and how far the true one may be from it.

    Attributes:
        bound: the distance of the values themselves is between :attr:`lower` and :attr:`upper`,
            `bound` to either side; 0 where it is exact.
    """

    bound: float

    def __new__(cls, value: float, bound: float = 0.0) -> Distance:
        distance = super().__new__(cls, value)
        distance.bound = bound
        return distance

    @property
    def lower(self) -> float:
        """The distance is at least this."""
        return max(float(self) - self.bound, 0.0)

    @property
    def upper(self) -> float:
        """The distance is at most this."""
        return float(self) + self.bound


@eager
def wasserstein_from_histograms(a: ValueHistogram, b: ValueHistogram) -> Distance:
    """The Wasserstein distance W1 of two sets of values, from their histograms.

    The integral of the absolute difference of the two distribution functions, as
    scipy.stats.wasserstein_distance gives it for the representatives of the bins; the sets may have
    different sizes and the histograms different dtypes or bits. Where a bin is one value (16-bit
    dtypes with all bits) that is the distance of the values. Else it is off by at most `bound`: the
    mean of how far the values may lie from the representatives, of both sets (moving every value of
    a set by up to r moves the distance by no more than their mean).

    Waits for the device.

    Raises:
        TypeError: not two histograms.
        ValueError: one is empty or has several channels.
    """
    for histogram, name in ((a, "a"), (b, "b")):
        if not isinstance(histogram, ValueHistogram):
            raise ArgumentTypeError(name, "a ValueHistogram", type(histogram).__name__)
    (x, n, x_reach), (y, m, y_reach) = a.points(), b.points()
    one = np.zeros(len(x) + len(y), dtype=np.int64)
    (distance,), _ = wasserstein_by_group(one, *joined(x, n, y, m), 1)
    bound = float((n * x_reach).sum() / n.sum() + (m * y_reach).sum() / m.sum())
    return Distance(float(distance), bound)


def joined(x: Floats, n: Integers, y: Floats, m: Integers) -> tuple[Floats, Integers, Integers]:
    """The points of both sides, and how often each occurs on either."""
    zeros = np.zeros_like
    return np.concatenate([x, y]), np.concatenate([n, zeros(m)]), np.concatenate([zeros(n), m])


def wasserstein_by_group(
    groups: Integers, values: Floats, n: Integers, m: Integers, size: int
) -> tuple[Floats, Floats]:
    """W1 of two sides in every group of points, in any order, and how much chance there is in it.

    Args:
        groups: [K] the group of each point, 0..size-1; each has points of both sides.
        values: [K]
        n, m: [K] how often the point occurs on either side.
        size: the number of groups.

    Returns:
        W1: [size] float64, the integral of abs(F - G), the two sides' distribution functions.
        spread: [size] float64, that of sqrt(F (1 - F)) of the first side alone.
    """
    order = np.argsort(values)
    if size > 1:  # a stable sort of 16 bits is a radix sort
        narrow = groups.astype(np.uint16) if size <= 2**16 else groups
        order = order[np.argsort(narrow[order], kind="stable")]
    groups, values = groups[order], values[order]
    within = groups[1:] == groups[:-1]  # from a point to the next of its group
    widths = np.where(within, np.diff(values), 0)
    ends = np.bincount(groups, minlength=size).cumsum() - 1

    def functions(counts: Integers) -> tuple[Floats, Floats]:
        """F and 1 - F behind each point but the last."""
        up_to = counts[order].cumsum()
        before = np.concatenate([[0], up_to[ends[:-1]]])
        total = up_to[ends] - before
        inside = (up_to - before[groups])[:-1]
        total = total[groups][:-1]
        return inside / total, (total - inside) / total

    (f, f_rest), (g, g_rest) = functions(n), functions(m)
    # 1 - F is as exact as F and has more digits in the upper tail, where a wide gap may follow.
    difference = np.abs(np.where(f + g <= 1, f - g, g_rest - f_rest))
    spread = np.sqrt(f * f_rest)
    return tuple(  # type: ignore[return-value]
        np.bincount(groups[:-1], part * widths, minlength=size) for part in (difference, spread)
    )
