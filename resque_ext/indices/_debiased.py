"""RESQUE_dist without the bias of few samples, and an interval for it, from sums kept in blocks.

Noise turns a class sum away from its direction whatever the shift, so the plain index of few
samples is too large. Inner products of different blocks have no such bias: their noise is
independent. With sums u_i of n_i old rows and v_j of m_j new ones,

    p = sum_{i != j} <u_i, u_j> / sum_{i != j} n_i n_j        estimates |mean u|^2
    q likewise                                                estimates |mean v|^2
    a = sum_{i, j} <u_i, v_j> / (n m)                         estimates <mean u, mean v>

(i != j for paired sides in a too), and delta = 2 - 2 a / sqrt(p q) estimates the squared distance
of the unit vectors, 4 sin^2(theta / 2), on both sides of zero where there is no shift.

NumPy on purpose: its sums do not depend on a number of threads.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from resque_ext.indices._angles import Array, chunks

Counts = NDArray[np.int64]
_PLAUSIBLE = 2.0  # standard deviations that a class's true delta may be away from its estimate


@dataclass(frozen=True)
class DebiasedAngle:
    """The mean angle over classes that infinitely many samples would show, in units of pi.

    Attributes:
        value: the estimate, in [0, 1].
        low, high: the interval, which holds the true one in at least the share of `confidence` of
            cases; wide rather than wrong where classes cannot be told from no shift.
        confidence: that share.
    """

    value: float
    low: float
    high: float
    confidence: float

    def __float__(self) -> float:
        return self.value


def debiased(
    old: Array,
    new: Array,
    old_counts: Counts,
    new_counts: Counts,
    paired: bool,
    confidence: float,
) -> DebiasedAngle | None:
    """The debiased index and its interval.

    Args:
        old, new: [C, B, D] sums of C classes in B blocks.
        old_counts, new_counts: [C, B] rows behind them.
        paired: whether row i of the old side belongs to row i of the new.
        confidence: of the interval, between 0 and 1.

    Returns:
        None where a class has fewer than three blocks with rows on a side, or so few rows that not
        even the length of its mean is known: more have to be read.
    """
    for counts in (old_counts, new_counts):
        if ((counts > 0).sum(axis=1) < 3).any():
            return None
    parts = [
        _deltas(old[part], new[part], old_counts[part], new_counts[part], paired)
        for part in chunks(len(old), 2 * old.shape[1] * old.shape[2])
    ]
    delta, variance = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    if not (np.isfinite(delta).all() and np.isfinite(variance).all()):
        return None
    freedom = min((counts > 0).sum(axis=1).min() for counts in (old_counts, new_counts)) - 1
    return _mean_angle(delta, np.sqrt(variance), float(freedom), confidence)


def _deltas(u: Array, v: Array, n: Counts, m: Counts, paired: bool) -> tuple[Array, Array]:
    """delta [C] and its jackknife variance [C]; NaN where a mean's length is not known."""
    with np.errstate(all="ignore"):  # a sum that overflows has no angle: NaN says so
        p = _Products(u, u, n, n, distinct=True)
        q = _Products(v, v, m, m, distinct=True)
        a = _Products(u, v, n, m, distinct=paired)
        delta = _delta(a.all(), p.all(), q.all())
        if paired:
            without = _delta(a.without_both(), p.without_both(), q.without_both())
            return delta[:, 0], _jackknife(delta, without, n)
        no_old = _delta(a.without_first(), p.without_both(), q.all())
        no_new = _delta(a.without_second(), p.all(), q.without_both())
        return delta[:, 0], _jackknife(delta, no_old, n) + _jackknife(delta, no_new, m)


def _jackknife(whole: Array, without: Array, counts: NDArray[np.int64]) -> Array:
    """Variances [C] of `whole` [C, 1], from its values without each block.

    Blocks may differ in size by a row; the weights are those of Busing, Meijer and van der Leeden,
    "Delete-m Jackknife for Unequal m" (1999).
    """
    there = counts > 0
    rows = counts.sum(axis=1, keepdims=True)
    h = rows / np.where(there, counts, 1)
    g = there.sum(axis=1, keepdims=True)
    pseudo = np.where(there, h * whole - (h - 1) * without, 0)
    weight = np.where(there, counts / rows, 0)
    centre = g * whole - ((1 - weight) * np.where(there, without, 0)).sum(axis=1, keepdims=True)
    squares = np.where(there, np.square(pseudo - centre) / np.where(there, h - 1, 1), 0)
    return squares.sum(axis=1) / g[:, 0]


def _delta(a: Array, p: Array, q: Array) -> Array:
    lengths = np.where((p > 0) & (q > 0), p * q, np.nan)
    return 2 - 2 * a / np.sqrt(lengths)


class _Products:
    """Mean inner products of rows of two sides, [C, 1] or, without one block each, [C, B].

    Args:
        u, v: [C, B, D] sums in blocks.
        n, m: [C, B] rows behind them.
        distinct: leave pairs of rows of the same block out.
    """

    def __init__(self, u: Array, v: Array, n: Counts, m: Counts, distinct: bool) -> None:
        su, sv = u.sum(axis=1), v.sum(axis=1)
        self.u_all = np.einsum("cbd,cd->cb", u, sv), n * m.sum(axis=1, keepdims=True)
        self.all_v = np.einsum("cbd,cd->cb", v, su), m * n.sum(axis=1, keepdims=True)
        self.same = np.einsum("cbd,cbd->cb", u, v), n * m
        whole = np.einsum("cd,cd->c", su, sv)[:, None], (n.sum(1) * m.sum(1))[:, None]
        self.whole = [
            w - (s.sum(axis=1, keepdims=True) if distinct else 0)
            for w, s in zip(whole, self.same, strict=True)
        ]

    def all(self) -> Array:
        return self.whole[0] / self.whole[1]

    def without_first(self) -> Array:
        (x, rows), (less, fewer) = self.whole, self.u_all
        return (x - less) / (rows - fewer)

    def without_second(self) -> Array:
        (x, rows), (less, fewer) = self.whole, self.all_v
        return (x - less) / (rows - fewer)

    def without_both(self) -> Array:
        """Of distinct blocks: what block b shares with itself was never in, and is taken off twice
        with what it shares with all."""
        (x, rows), (a, i), (b, j), (c, k) = self.whole, self.u_all, self.all_v, self.same
        return (x - a - b + 2 * c) / (rows - i - j + 2 * k)


def _mean_angle(delta: Array, sigma: Array, freedom: float, confidence: float) -> DebiasedAngle:
    """The mean of angle(delta_c) with an interval, for independent delta_c with errors sigma_c.

    angle(delta) = 2 asin(sqrt(delta) / 2) / pi is as steep as a square root at zero, so the mean of
    angles of noisy deltas is off by up to 0.41 sqrt(sigma) / pi a class, which does not average
    out. Bias and variance of sqrt(max(r + Z, 0)) for normal Z are tabled; the interval allows for
    the worst that a class's true r = delta / sigma within `_PLAUSIBLE` of its estimate can do.
    """
    classes = len(delta)
    inside = np.clip(delta, 0, 4)
    value = float((2 * np.arcsin(np.sqrt(inside) / 2) / np.pi).mean())
    noisy = sigma > 0
    r = np.where(noisy, inside / np.where(noisy, sigma, 1), np.inf)
    above, below, spread = _allowances(r)
    root = np.where(noisy, np.sqrt(sigma), 0) / np.pi
    # d angle / d sqrt(delta) is 1 / pi / sqrt(1 - delta / 4): steeper for opposite directions.
    steeper = 1 / np.sqrt(np.maximum(1 - inside / 4, 1e-3))
    variances = (spread * root * steeper) ** 2
    total = variances.sum()
    # Welch and Satterthwaite: the degrees of freedom of a sum of independent variances.
    freedom = freedom * total**2 / np.square(variances).sum() if total > 0 else math.inf
    reach = _t_quantile((1 + confidence) / 2, freedom) * math.sqrt(total) / classes
    low = value - float((above * root * steeper).mean()) - reach
    high = value + float((below * root * steeper).mean()) + reach
    return DebiasedAngle(value, max(low, 0.0), min(high, 1.0), confidence)


@functools.cache
def _table() -> tuple[Array, Array, Array, Array]:
    """r, and for noise Z of deviation 1 the bias of sqrt(max(r + Z, 0)), at most above and at most
    below, and its deviation.

    Each is the larger of two laws of Z, between which that of a delta lies: normal where noise has
    many directions, a centred chi-square with one degree of freedom where it has a single one.
    """
    r = np.linspace(0, 12, 241)
    z = np.linspace(-9, 9, 3601)
    density = np.exp(-z * z / 2)
    density /= density.sum()
    biases, deviations = [], []
    for noise in (z, (z * z - 1) / math.sqrt(2)):
        positive = np.maximum(r[:, None] + noise, 0)
        mean = np.sqrt(positive) @ density
        biases.append(mean - np.sqrt(r))
        deviations.append(np.sqrt(np.maximum(positive @ density - mean**2, 0)))
    above, below = np.max(biases, axis=0), -np.min(biases, axis=0)
    return r, np.maximum(above, 0), np.maximum(below, 0), np.max(deviations, axis=0)


def _allowances(r: Array) -> tuple[Array, Array, Array]:
    """How far sqrt(max(r + Z, 0)) may be above and below its aim on average, and its deviation:
    the largest of each for a true r within `_PLAUSIBLE` of the given."""
    grid, *columns = _table()
    tries = np.maximum(r[:, None] + np.linspace(-_PLAUSIBLE, _PLAUSIBLE, 17), 0)
    beyond = tries > grid[-1]
    far = np.where(beyond, tries, 1)  # where the first terms of the series are exact enough
    series = (np.zeros_like(far), 1 / (8 * far**1.5), 1 / (2 * np.sqrt(far)))
    found = [
        np.where(beyond, ends, np.interp(tries, grid, column)).max(axis=1)
        for column, ends in zip(columns, series, strict=True)
    ]
    return found[0], found[1], found[2]


def _t_quantile(share: float, freedom: float) -> float:
    """Student's t by the expansion about the normal one (Abramowitz and Stegun 26.7.5)."""
    z = NormalDist().inv_cdf(share)
    if math.isinf(freedom):
        return z
    g1 = (z**3 + z) / 4
    g2 = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    g4 = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
    return z + g1 / freedom + g2 / freedom**2 + g3 / freedom**3 + g4 / freedom**4
