"""What lloyd_step should give, in NumPy alone, sharing no code with the package."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Step:
    labels: NDArray[np.int64]  # [N]
    distances: NDArray[np.float64]  # [N], squared
    inertia: float
    sums: NDArray[np.float64]  # [K, D]
    counts: NDArray[np.int64]  # [K]
    absolute: NDArray[np.float64]  # [K, D], sums of absolute values


def lloyd_step(features: np.ndarray, centers: np.ndarray) -> Step:
    """Every distance by NumPy in float64, the first of equal ones; sums exact, rounded once."""
    x, c = features.astype(np.float64), centers.astype(np.float64)
    labels = np.zeros(len(x), np.int64)
    distances = np.zeros(len(x))
    with np.errstate(over="ignore"):
        for i, row in enumerate(x):
            each = np.square(row - c).sum(1)
            labels[i] = each.argmin()
            distances[i] = each[labels[i]]
    sums, absolute = np.zeros(c.shape), np.zeros(c.shape)
    for k in np.unique(labels):
        for column, values in enumerate(x[labels == k].T):
            sums[k, column] = _sum(values)
            absolute[k, column] = _sum(np.abs(values))
    counts = np.bincount(labels, minlength=len(c))
    return Step(labels, distances, _sum(distances), sums, counts, absolute)


def _sum(values: np.ndarray) -> float:
    try:
        return math.fsum(values.tolist())
    except OverflowError:
        return math.inf
