"""Correlations of many bootstrap samples at once.

A sample of n runs drawn with replacement is a row of counts: how often each run was drawn. Sums
over the sample are then products with the counts, and so are its ranks: with the runs sorted once,
the average rank of a value is the number of draws below it plus (draws equal to it + 1) / 2.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
LEAST = 3  # runs: two points are always perfectly correlated


def draw(generator: np.random.Generator, runs: int, samples: int) -> Array:
    """Counts [samples, runs] of draws with replacement; every row sums to `runs`."""
    drawn = generator.integers(runs, size=(samples, runs))
    flat = (drawn + runs * np.arange(samples)[:, None]).ravel()
    return np.bincount(flat, minlength=samples * runs).reshape(samples, runs).astype(np.float64)


def correlations(x: Array, y: Array, counts: Array, ranks: bool) -> Array:
    """Pearson's or, of `ranks`, Spearman's correlation of each sample; NaN where there is none.

    Args:
        x, y: [n], finite, or infinite where only the rank counts.
        counts: [B, n] how often each sample has each run.
        ranks: correlate average ranks.

    Returns:
        [B]; NaN where x or y has a single value in the sample, or it is of fewer than three runs.
    """
    group_x, group_y = (np.unique(v, return_inverse=True)[1].reshape(-1) for v in (x, y))
    if ranks:
        x, y = _ranks(group_x, counts), _ranks(group_y, counts)
    else:
        # To the middle and to one scale, so that squares neither overflow nor cancel.
        x, y = (_scaled(v)[None, :] for v in (x, y))
    total = counts.sum(1, keepdims=True)
    x = x - (counts * x).sum(1, keepdims=True) / total
    y = y - (counts * y).sum(1, keepdims=True) / total
    both = (counts * x * y).sum(1)
    scale = np.sqrt((counts * x * x).sum(1)) * np.sqrt((counts * y * y).sum(1))
    varies = _varies(group_x, counts) & _varies(group_y, counts) & (scale > 0)
    varies &= (counts > 0).sum(1) >= LEAST
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(varies, np.clip(both / scale, -1.0, 1.0), np.nan)


def _sums(group: NDArray[np.intp], counts: Array) -> Array:
    """[B, G] draws of every group."""
    member = group[:, None] == np.arange(group.max() + 1)
    return counts @ member.astype(np.float64)


def _ranks(group: NDArray[np.intp], counts: Array) -> Array:
    """[B, n] average ranks; of a run that was not drawn something that counts nothing."""
    equal = _sums(group, counts)
    below = equal.cumsum(1) - equal
    return (below + (equal + 1) / 2)[:, group]


def _varies(group: NDArray[np.intp], counts: Array) -> NDArray[np.bool_]:
    """[B]: exactly, where a variance would be rounded."""
    return (_sums(group, counts) > 0).sum(1) > 1


def _scaled(values: Array) -> Array:
    """Within [-1, 1]: halves first, because a difference of two values may overflow."""
    half = values / 2
    centred = half - (half.max() / 2 + half.min() / 2)
    largest = np.abs(centred).max()
    return centred / largest if largest > 0 else centred
