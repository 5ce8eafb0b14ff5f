"""Angles between class sums, their standard error and noise floors, from sums kept in blocks.

NumPy on purpose: its sums do not depend on a number of threads.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SPLITS = 8  # random halvings that the noise floor averages over
SIGN_DRAWS = 199  # random exchanges of the sign test: p-values are multiples of 1 / 200
_CHUNK_BYTES = 2**25  # of temporaries: classes are taken in chunks


def _unit(x: Array) -> Array:
    """Vectors of length 1, NaN where x is zero or not finite; scaled first against overflow."""
    with np.errstate(all="ignore"):
        scaled = x / np.abs(x).max(axis=-1, keepdims=True, initial=0)
        return scaled / np.sqrt(np.square(scaled).sum(axis=-1, keepdims=True))


def angles(u: Array, v: Array) -> Array:
    """Angle between u and v [..., D] over pi, in [0, 1]; NaN where one is zero or not finite.

    2 atan2(|u - v|, |u + v|) of the unit vectors keeps full precision for all angles, where the
    arccos of a dot product loses half the digits near 0 (W. Kahan, "How Futile are Mindless
    Assessments of Roundoff in Floating-Point Computation?", section 12).
    """
    u, v = _unit(u), _unit(v)
    apart = np.sqrt(np.square(u - v).sum(axis=-1))
    along = np.sqrt(np.square(u + v).sum(axis=-1))
    return 2 * np.arctan2(apart, along) / np.pi


def chunks(classes: int, doubles_per_class: int) -> list[slice]:
    size = max(1, _CHUNK_BYTES // (8 * max(doubles_per_class, 1)))
    return [slice(i, i + size) for i in range(0, classes, size)]


def std_error(
    old: Array,
    new: Array,
    old_counts: NDArray[np.int64],
    new_counts: NDArray[np.int64],
    paired: bool,
) -> float | None:
    """Standard error of the mean angle over classes, from the scatter of the block means.

    The angle is a length, so its square is quadratic in the class sums, and near no shift a
    jackknife doubles the variance of a quadratic form. Here the scatter of the blocks gives the
    covariance K of each class direction; the angle's first-order variance is q / sin^2, and t, an
    unbiased estimate of tr K^2, takes off what the noise in the direction of the difference itself
    adds to q. Classes share no samples, so their variances add.

    Args:
        old, new: [C, B, D] sums of C classes in B blocks.
        old_counts, new_counts: [C, B] rows behind them.
        paired: whether row i of the old side belongs to row i of the new.

    Returns:
        The standard error in units of pi, None where a class has fewer than three blocks with rows.
    """
    classes, blocks, width = old.shape
    for counts in (old_counts, new_counts):
        if ((counts > 0).sum(axis=1) < 3).any():
            return None
    variance = floor = 0.0
    for part in chunks(classes, blocks * width * 4):
        with np.errstate(all="ignore"):  # a class without an angle gives NaN, which None says
            first, second = _angle_variances(
                old[part], new[part], old_counts[part], new_counts[part], paired
            )
        variance += first.sum()
        floor += second.sum()
    error = float(np.sqrt(max(variance, floor))) / classes
    return error if np.isfinite(error) else None


def _angle_variances(
    u: Array, v: Array, n: NDArray[np.int64], m: NDArray[np.int64], paired: bool
) -> tuple[Array, Array]:
    """(variance, the least that it may be) of the angle of each class, [C], in units of pi^2."""
    width = u.shape[2]
    whole_u, whole_v = _unit(u.sum(axis=1)), _unit(v.sum(axis=1))
    ru, rv = _scatter(u, n), _scatter(v, m)
    # An angle beyond a right one is that of the opposite direction, mirrored.
    obtuse = (whole_u * whole_v).sum(axis=1) < 0
    sign = np.where(obtuse, -1.0, 1.0)
    whole_v, rv = whole_v * sign[:, None], rv * sign[:, None, None]
    apart = whole_v - whole_u
    squared = np.square(apart).sum(axis=1)
    cos = 1 - squared / 2
    sin2 = squared * (1 + cos) / 2
    direction = _unit(apart)  # NaN where there is no difference
    parts = [(rv - ru, n)] if paired else [(ru, n), (rv, m)]
    q = t = trace = 0.0
    for r, counts in parts:
        q = q + np.square(np.einsum("cbd,cd->cb", r, direction)).sum(axis=1)
        products = r @ r.transpose(0, 2, 1)
        own = np.trace(products, axis1=1, axis2=2)
        nu = (counts > 0).sum(axis=1) - 1
        squares = np.square(products).sum(axis=(1, 2))
        t = t + nu**2 / ((nu - 1) * (nu + 2)) * (squares - own**2 / nu)
        trace = trace + own
    if not paired:
        t = t + 2 * np.square(ru @ rv.transpose(0, 2, 1)).sum(axis=(1, 2))
    t = np.maximum(t, trace**2 / width)
    # q is along the unit vector of the difference, of length 2 sin(theta / 2); so is t.
    q, t = q * 2 / (1 + cos), t * cos**2
    half = np.where(squared > 0, q / 2, np.where(trace > 0, t / (2 * trace), 0.0))
    full = np.where(squared > 0, q - t / (2 * sin2), half)
    return full / np.pi**2, half / np.pi**2


def _scatter(sums: Array, counts: NDArray[np.int64]) -> Array:
    """r [C, B, D] of which sum r r' is the covariance of the direction of each class's sum."""
    there = counts > 0
    rows = counts.sum(axis=1)[:, None, None]
    sums = sums / np.abs(sums).max(axis=(1, 2), keepdims=True)  # against overflow
    whole = sums.sum(axis=1, keepdims=True)
    each = np.where(there, counts, 1)[:, :, None]
    r = np.where(there[:, :, None], (sums / each - whole / rows) * np.sqrt(each), 0)
    direction = _unit(whole)
    r = r - (r @ direction.transpose(0, 2, 1)) * direction
    filled = there.sum(axis=1)[:, None, None]
    length = np.sqrt(np.square(whole).sum(axis=2, keepdims=True)) / rows
    return r / (length * np.sqrt(rows * (filled - 1)))


def noise_floor(
    old: Array, old_counts: NDArray[np.int64], new_rows: NDArray[np.int64]
) -> float | None:
    """What the index would show for no shift at all at these sample sizes.

    Per class, the angle between random halves of the old blocks, n1 and n2 rows, scaled from the
    variance of their difference (1/n1 + 1/n2) to that of the two sides (1/N + 1/M); averaged over
    SPLITS halvings, drawn from a fixed seed, and over classes.

    Args:
        old: [C, B, D] sums of the old side in blocks.
        old_counts: [C, B] rows behind them.
        new_rows: [C] rows of the new side.

    Returns:
        The floor in units of pi, None where a class has fewer than two blocks with rows.
    """
    classes, blocks, width = old.shape
    first_half = _halvings(old_counts)
    if first_half is None:
        return None
    rows = old_counts.sum(axis=1)
    n1 = (first_half * old_counts[:, None, :]).sum(axis=2)
    scale = np.sqrt((1 / rows + 1 / new_rows)[:, None] / (1 / n1 + 1 / (rows[:, None] - n1)))
    total = 0.0
    for part in chunks(classes, SPLITS * width * 4):
        u = np.zeros((*first_half[part].shape[:2], width))
        for b in range(blocks):
            u += first_half[part, :, b, None] * old[part, None, b]
        rest = old[part].sum(axis=1, keepdims=True) - u
        total += float((angles(u, rest) * scale[part]).mean(axis=1).sum())
    floor = total / classes
    return floor if np.isfinite(floor) else None


def _halvings(counts: NDArray[np.int64]) -> NDArray[np.bool_] | None:
    """Which blocks are in the first of two halves, [C, SPLITS, B], drawn from a fixed seed.

    None where a class has fewer than two blocks with rows.
    """
    there = counts > 0
    filled = there.sum(axis=1)
    if (filled < 2).any():
        return None
    keys = np.random.default_rng(0).random((len(counts), SPLITS, counts.shape[1]))
    keys[~there[:, None, :].repeat(SPLITS, axis=1)] = 2  # empty blocks come last
    rank = keys.argsort(axis=2).argsort(axis=2)
    return rank < (filled // 2)[:, None, None]


class Exchange(NamedTuple):
    """What a random exchange of old and new within pairs would show.

    Attributes:
        floor: the mean angle after exchanging random halves of the blocks, in units of pi: 0 where
            the sides are equal.
        p_value: of the sign test, whose statistic is the mean angle over classes: the share of
            random exchanges of blocks, the data's own counted in, that turn the class sums apart
            by no less.
    """

    floor: float
    p_value: float


def exchange(old: Array, new: Array, counts: NDArray[np.int64]) -> Exchange | None:
    """Floor and sign test of paired sides, from the differences of their blocks.

    Args:
        old, new: [C, B, D] sums of C classes in B blocks, row i of the old side paired with row i
            of the new.
        counts: [C, B] rows behind them, the same on both sides.

    Returns:
        None where a class has fewer than two blocks with rows.
    """
    classes, blocks, width = old.shape
    first_half = _halvings(counts)
    if first_half is None:
        return None
    n1 = (first_half * counts[:, None, :]).sum(axis=2)
    n2 = counts.sum(axis=1)[:, None] - n1
    halves = np.where(first_half, np.sqrt(n2 / n1)[:, :, None], -np.sqrt(n1 / n2)[:, :, None])
    signs = np.random.default_rng(0).choice((-1.0, 1.0), (classes, SIGN_DRAWS + 1, blocks))
    signs[:, 0] = 1  # the data as they are
    floor, index = 0.0, np.zeros(SIGN_DRAWS + 1)
    for part in chunks(classes, blocks * width * 4):
        with np.errstate(all="ignore"):
            shown = _exchanged(old[part], new[part], np.concatenate([halves, signs], axis=1)[part])
        floor += shown[:, :SPLITS].mean(axis=1).sum()
        index += shown[:, SPLITS:].sum(axis=0)
    if not (np.isfinite(floor) and np.isfinite(index).all()):
        return None
    # What is equal but for rounding counts as equal.
    reached = index[1:] >= index[0] * (1 - 1e-12)
    return Exchange(float(floor / classes), float((1 + reached.sum()) / (1 + SIGN_DRAWS)))


def _exchanged(u: Array, v: Array, weights: Array) -> Array:
    """Angles [C, R] of S - D and S + D over pi: S the sum of both sides, D the weighted [C, R, B]
    sum of the blocks' differences."""
    largest = np.maximum(np.abs(u), np.abs(v)).max(axis=(1, 2), keepdims=True)
    u, v = u / largest, v / largest
    total = (u + v).sum(axis=1)
    length2 = np.square(total).sum(axis=1)[:, None]
    d = v - u
    along = np.einsum("cbd,cd->cb", d, total) / length2
    across = d - along[:, :, None] * total[:, None]
    # |S|^2 |D|^2 - <S, D>^2 is |S|^2 times the square of what of D is across S.
    products = across @ across.transpose(0, 2, 1)
    across2 = np.einsum("crb,crb->cr", weights @ products, weights)
    along2 = np.square(np.einsum("crb,cb->cr", weights, along)) * length2
    apart = 2 * np.sqrt(np.maximum(across2, 0) * length2)
    return np.arctan2(apart, length2 - across2 - along2) / np.pi
