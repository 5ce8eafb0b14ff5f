"""What RESQUE_task gives: 1 - ARI, the clustering behind it, and its uncertainty."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resque_ext.indices import _contingency
from resque_ext.indices.base import Result
from resque_ext.indices.chance_level import Chance


@dataclass(frozen=True)
class ResqueTaskResult(Result):
    """RESQUE_task, the clustering behind it, and what is known of its uncertainty.

    Attributes:
        value: 1 - ARI: 0 where the clusters are the classes, about 1 where they agree no more than
            by chance, at most 1.5.
        chance: what permuted labels give, to hold `value` against: see :class:`Chance`; None where
            it was not asked for, and for a single class.
        reliable: whether `value` says something of the classes; False where any labels would look
            good. `warnings` says why not, and what to do.
        ari: the adjusted Rand index of labels and clusters.
        cluster_labels: [N] int64, the cluster of every row.
        centers: [K, D] float64; with start="held-out" those of each fold, [folds, K, D].
        n_iter: iterations of Lloyd's algorithm, as scikit-learn counts them; of several folds the
            most.
        converged: whether it came to rest before `max_iter`, in every fold.
        inertia: the sum of the squared distances of the rows to their centres; of several folds the
            mean.
        classes: [C] int64, the distinct labels in ascending order.
        table: [C, K] int64, rows of each class in each cluster.
        seed: of the resampling behind `std_error` (and of k-means++).
        nearest_class_mean_error, linear_probe_error: of two classifiers of the same embeddings,
            made without the rows that they are judged by; None where they were not asked for, and
            for one row (the probe's also for more than 4,096 columns).
        dimension: effective dimension (tr S)^2 / tr S^2 of the covariance S within classes, from a
            sample of 512 rows; None where no class means were made.
        layer: what was read, where a model was run.
        pooling: how positions of a layer's output became a vector, where a model was run: "vector"
            (there was nothing to pool), "token" (the one whose scores the model returns), "mean",
            "masked mean", "first", "last", "flattened", "none" or a function's name.
        labels: "given" or "predicted" (by the model, on the new side), where a model was run.
    """

    value: float
    ari: float
    cluster_labels: NDArray[np.int64]
    centers: NDArray[np.float64]
    n_iter: int
    converged: bool
    inertia: float
    classes: NDArray[np.int64]
    table: NDArray[np.int64]
    chance: Chance | None = None
    reliable: bool = True
    warnings: tuple[str, ...] = ()
    dimension: float | None = None
    seed: int = 0
    nearest_class_mean_error: float | None = None
    linear_probe_error: float | None = None
    layer: str | None = None
    pooling: str | None = None
    labels: str | None = None

    noise_floor = None  # it has none: see `chance`

    @functools.cached_property
    def _bootstrap(self) -> _contingency.Bootstrap | None:
        return _contingency.bootstrap(self.table, self.seed)

    @property
    def std_error(self) -> float | None:
        """Standard error of `value` by 1,000 bootstrap samples, None for one row.

        Made when first asked for. Drawn from is the table with one sample more, spread over all
        cells as chance would, so a table without a single disagreement is not taken for certain. It
        tells how the value would scatter with other samples of the same data and the clusters as
        they are: how other samples would move the clusters, or how another start would, is not in
        it.
        """
        return self._bootstrap and self._bootstrap.std_error

    @property
    def confidence_interval(self) -> tuple[float, float] | None:
        """The 95% interval of `value` from the same bootstrap, which says the same and no more."""
        found = self._bootstrap
        return found and (1 - found.high, 1 - found.low)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and None, for JSON; without the rows and the centres."""
        interval = self.confidence_interval
        return {
            "value": self.value,
            "std_error": self.std_error,
            "confidence_interval": interval and list(interval),
            "chance": self.chance and self.chance.to_dict(),
            "reliable": self.reliable,
            "warnings": list(self.warnings),
            "ari": self.ari,
            "n_iter": self.n_iter,
            "converged": self.converged,
            "inertia": self.inertia,
            "dimension": self.dimension,
            "classes": self.classes.tolist(),
            "table": self.table.tolist(),
            "nearest_class_mean_error": self.nearest_class_mean_error,
            "linear_probe_error": self.linear_probe_error,
            "layer": self.layer,
            "pooling": self.pooling,
            "labels": self.labels,
        }
