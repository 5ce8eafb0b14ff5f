"""Ridge regression to one-hot classes in folds, its penalty chosen from the same sums of products.

NumPy on purpose: its sums do not depend on torch's number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resque_ext.errors import ArgumentError

Array = NDArray[np.float64]

# Penalties over the mean eigenvalue of the centred products; beyond the last, infinity: no weights.
PENALTIES = 10.0 ** np.arange(-3, 3.25, 0.5)
# Errors that are equal to this many decimals are equal: the choice does not hang on rounding.
_DECIMALS = 10
_ROUNDING = 1e-12


@dataclass(frozen=True)
class FoldPath:
    """The ridge regressions made without one fold, for every penalty, and their errors on it.

    Attributes:
        fold: the fold that is left out.
        errors: [P + 1] sums over its rows of |one-hot - prediction|^2; the last one is that of the
            shares of the classes in the other folds.
    """

    fold: int
    errors: Array
    _shares: Array  # [C] of the classes in the other folds
    _mean: Array  # [D] of their rows
    _values: Array  # [D] of their centred products: eigenvalues
    _vectors: Array  # [D, D] and eigenvectors
    _targets: Array  # [D, C] products with the one-hot classes, along the eigenvectors

    def fit(self, penalty: int) -> tuple[Array, Array]:
        """Weights [D, C] and intercepts [C] with the penalty of this place in `errors`."""
        if penalty == len(PENALTIES) or not self._values.mean() > 0:
            return np.zeros((len(self._mean), len(self._shares))), self._shares
        shrunk = self._values + PENALTIES[penalty] * self._values.mean()
        weights = self._vectors @ (self._targets / shrunk[:, None])
        return weights, self._shares - self._mean @ weights


def fold_paths(counts: Array, sums: Array, products: Array) -> Iterator[FoldPath]:
    """The regressions of every fold that has rows, in turn.

    Args:
        counts: [C, F] rows of each class and fold.
        sums: [C, F, D] of their features, about any one point near the mean.
        products: [F, D, D] of features with features, about the same point.

    Raises:
        ValueError: products beyond float64.
    """
    whole = products.sum(axis=0)
    if not np.isfinite(whole).all():
        raise ArgumentError(
            "features",
            "products of features within float64",
            "their sum infinite",
            fix="scale the features",
        )
    for f in range(counts.shape[1]):
        if counts[:, f].sum():
            yield _path(f, counts, sums, products[f], whole - products[f])


def _path(f: int, counts: Array, sums: Array, own: Array, others: Array) -> FoldPath:
    rows = counts.sum(axis=1) - counts[:, f]
    by_class = sums.sum(axis=1) - sums[:, f]
    n, shares = rows.sum(), rows / rows.sum()
    mean = by_class.sum(axis=0) / n
    values, vectors = np.linalg.eigh(others - n * np.outer(mean, mean))
    # What rounding leaves where all rows are equal is no variance.
    varies = values.sum() > _ROUNDING * np.trace(others)
    values = np.maximum(values, 0) if varies else np.zeros_like(values)
    targets = vectors.T @ (by_class - rows[:, None] * mean).T
    # The left-out rows about the same mean, along the same eigenvectors.
    left, left_sums = counts[:, f], sums[:, f] - counts[:, f, None] * mean
    total = left_sums.sum(axis=0)
    shift = np.outer(mean, total + left.sum() * mean)
    about = own - shift - shift.T + left.sum() * np.outer(mean, mean)
    along = ((vectors.T @ (left_sums - shares[:, None] * total).T) * targets).sum(axis=1)
    square = (vectors.T @ about @ vectors) * (targets @ targets.T)
    none = left.sum() - 2 * left @ shares + left.sum() * shares @ shares
    errors = np.full(len(PENALTIES) + 1, none)
    if values.mean() > 0:
        h = 1 / (values + PENALTIES[:, None] * values.mean())
        errors[:-1] += ((h @ square) * h).sum(axis=1) - 2 * h @ along
    return FoldPath(f, errors, shares, mean, values, vectors, targets)


def chosen_penalties(errors: Array) -> list[int]:
    """The penalty of each fold: the one of least error on the others, of equal ones the smallest.

    Args:
        errors: [F, P + 1], as in :class:`FoldPath`; at least two folds.
    """
    shares = errors / (errors[:, -1].sum() or 1)  # 0 where all rows are of one class
    others = [np.delete(shares, f, axis=0).sum(axis=0) for f in range(len(errors))]
    return [int(np.round(share, _DECIMALS).argmin()) for share in others]
