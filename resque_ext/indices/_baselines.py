"""What simple classifiers make of the same embeddings: honest company for an index of a task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from resque_ext.indices._folds import FOLDS, fold_of_rows, fold_sums, positions_of
from resque_ext.indices._ridge import chosen_penalties, fold_paths
from resque_ext.indices.segments import Embeddings
from resque_ext.ops.lloyd_step import lloyd_step_status as lloyd_step

WIDEST = 4096  # a probe's products of features with features are 134 MB a fold there
ROWS_A_COLUMN = 2  # with fewer, a readout may explain less than half of what it could
_CHUNK = 2**22  # elements widened to float64 at a time
ERRORS = ("nearest_class_mean_error", "linear_probe_error")


@dataclass(frozen=True)
class Baselines:
    """Errors of two classifiers, 0 to 1, each row judged by what was made without its fold.

    Attributes:
        nearest_class_mean_error: of giving a row to the nearest class mean; None for one row.
        linear_probe_error: of a linear classifier; None for one row or more than 4,096 columns.
        warnings: why the probe's error is not to be relied on, and what to do.
    """

    nearest_class_mean_error: float | None = None
    linear_probe_error: float | None = None
    warnings: tuple[str, ...] = ()


def baselines(
    data: Embeddings, index: Tensor, classes: int, errors: Sequence[str] = ERRORS
) -> Baselines:
    """Errors by five folds: three passes over the data, four with the linear probe.

    Folds are those of :func:`resque_ext.indices._folds.fold_of_rows`: they and the errors depend
    neither on the order of rows nor on any chance. A row whose class has no other rows than those
    of its own fold cannot be right.

    The linear probe is ridge regression to one-hot targets with an intercept, solved from sums of
    products in float64. The penalty of each fold is the one of 1e-3 to 1e3 times the mean
    eigenvalue of the centred products, in steps of half a decade, or infinity, that leaves the
    least squared error on the other folds. The highest score wins, of equal ones the first.

    Args:
        data: the embeddings [N, D].
        index: [N] the class of every row, 0..classes-1.
        classes: C.
        errors: which of the two; the other is None.

    Raises:
        ValueError: features that are not finite.
    """
    if data.rows < 2:
        return Baselines()
    fold = fold_of_rows(positions_of(data), index)
    sums, counts = fold_sums(data, index, fold, classes)
    held_in = sums.sum(1, keepdim=True) - sums  # [C, FOLDS, D] of the other folds
    rows = counts.sum(1, keepdim=True) - counts  # [C, FOLDS]
    mean = sums.sum((0, 1)) / data.rows
    nearest, probes = "nearest_class_mean_error" in errors, "linear_probe_error" in errors
    probes &= data.width <= WIDEST
    if not (nearest or probes):
        return Baselines()
    wrong = torch.zeros((), dtype=torch.int64, device=data.device)
    products = held_in.new_zeros(FOLDS if probes else 0, data.width, data.width)
    present = [(rows[:, f] > 0).nonzero()[:, 0] for f in range(FOLDS)]
    for f, x, y in _by_fold(data, index, fold):
        if nearest:
            means = held_in[present[f], f] / rows[present[f], f, None]
            chosen = lloyd_step(x, means, update=False)[0]
            wrong += (present[f][chosen] != y).sum()
        if probes:
            centred = x.double() - mean
            products[f] += centred.T @ centred
    nearest_error = int(wrong) / data.rows if nearest else None
    if not probes:
        return Baselines(nearest_error)
    fits = _probes(sums - counts[:, :, None] * mean, counts, products)
    wrong.zero_()
    for f, x, y in _by_fold(data, index, fold):
        weights, intercept = fits[f]
        # Scores that are equal but for rounding are equal: which wins must not depend on how many
        # threads a product was made by.
        scores = ((x.double() - mean) @ weights + intercept).float()
        wrong += (scores.argmax(1) != y).sum()
    warnings = few_rows("linear_probe_error", data.rows, data.width)
    return Baselines(nearest_error, int(wrong) / data.rows, warnings)


def few_rows(what: str, rows: int, columns: int) -> tuple[str, ...]:
    """The warning that a linear readout of so few rows says little; none where there are enough."""
    if rows >= ROWS_A_COLUMN * columns:
        return ()
    return (
        f"{what}: may be much too large, as a linear readout of {columns} columns needs more than "
        f"{rows} rows; use at least {ROWS_A_COLUMN * columns}",
    )


def _by_fold(data: Embeddings, index: Tensor, fold: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(fold, rows of it, their classes), few rows at a time."""
    most = max(1, _CHUNK // data.width)
    for start, x in data.segments():
        for f in range(FOLDS):
            rows = (fold[start : start + len(x)] == f).nonzero()[:, 0]
            for part in rows.split(most) if len(rows) else ():
                yield f, x[part], index[start + part]


def _probes(sums: Tensor, counts: Tensor, products: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
    """Weights [D, C] and intercepts [C] of the probe made without each fold; `sums` [C, FOLDS, D]
    and `products` [FOLDS, D, D] are about the mean of all rows."""
    arrays = [x.double().cpu().numpy() for x in (counts, sums, products)]
    paths = list(fold_paths(*arrays))
    chosen = chosen_penalties(np.stack([path.errors for path in paths]))
    fits = {}
    for path, penalty in zip(paths, chosen, strict=True):
        weights, intercept = (torch.from_numpy(x).to(sums) for x in path.fit(penalty))
        fits[path.fold] = weights, intercept
    return fits
