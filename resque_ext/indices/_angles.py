"""Angles between class sums, their standard error and their noise floor, from sums kept in blocks.

NumPy on purpose: its sums do not depend on a number of threads.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SPLITS = 8  # random halvings that the noise floor averages over
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
    """Standard error of the mean angle over classes, by a delete-a-block jackknife.

    Classes share no samples, so their variances add. Blocks may differ in size by a row; the
    weights are those of Busing, Meijer and van der Leeden, "Delete-m Jackknife for Unequal m"
    (1999). Where the sides are paired a block is deleted from both at once, else from one at a
    time.

    Args:
        old, new: [C, B, D] sums of C classes in B blocks.
        old_counts, new_counts: [C, B] rows behind them.
        paired: whether row i of the old side belongs to row i of the new.

    Returns:
        The standard error in units of pi, None where a class has fewer than two blocks with rows.
    """
    classes, blocks, width = old.shape
    for counts in (old_counts, new_counts):
        if ((counts > 0).sum(axis=1) < 2).any():
            return None
    variance = 0.0
    for part in chunks(classes, blocks * width * 4):
        u, v = old[part], new[part]
        u_all, v_all = u.sum(axis=1, keepdims=True), v.sum(axis=1, keepdims=True)
        whole = angles(u_all, v_all)
        if paired:
            variance += jackknife(whole, angles(u_all - u, v_all - v), old_counts[part]).sum()
        else:
            variance += jackknife(whole, angles(u_all - u, v_all), old_counts[part]).sum()
            variance += jackknife(whole, angles(u_all, v_all - v), new_counts[part]).sum()
    error = float(np.sqrt(variance)) / classes
    return error if np.isfinite(error) else None


def jackknife(whole: Array, without: Array, counts: NDArray[np.int64]) -> Array:
    """Variances [C] of `whole` [C, 1], from its values without each block."""
    there = counts > 0
    rows = counts.sum(axis=1, keepdims=True)
    h = rows / np.where(there, counts, 1)
    g = there.sum(axis=1, keepdims=True)
    pseudo = np.where(there, h * whole - (h - 1) * without, 0)
    weight = np.where(there, counts / rows, 0)
    centre = g * whole - ((1 - weight) * np.where(there, without, 0)).sum(axis=1, keepdims=True)
    squares = np.where(there, np.square(pseudo - centre) / np.where(there, h - 1, 1), 0)
    return squares.sum(axis=1) / g[:, 0]


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
    there = old_counts > 0
    filled = there.sum(axis=1)
    if (filled < 2).any():
        return None
    keys = np.random.default_rng(0).random((classes, SPLITS, blocks))
    keys[~there[:, None, :].repeat(SPLITS, axis=1)] = 2  # empty blocks come last
    rank = keys.argsort(axis=2).argsort(axis=2)
    first_half = rank < (filled // 2)[:, None, None]  # [C, SPLITS, B]
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
