"""What simple classifiers make of the same embeddings: honest company for an index of a task."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from resque_ext.indices._kmeans import Faults
from resque_ext.indices._sources import Embeddings
from resque_ext.ops.class_moments import grouped_moments
from resque_ext.ops.class_order import class_order
from resque_ext.ops.lloyd_step import _lloyd_step_status as lloyd_step

FOLDS = 5
RIDGE = 1e-3  # of the mean variance of the features
WIDEST = 4096  # a probe's products of features with features are 134 MB a fold there
_CHUNK = 2**22  # elements widened to float64 at a time


@dataclass(frozen=True)
class Baselines:
    """Errors of two classifiers, 0 to 1, each row judged by what was made without its fold.

    Attributes:
        nearest_class_mean_error: of giving a row to the nearest class mean; None for one row.
        linear_probe_error: of a linear classifier; None for one row or more than 4,096 columns.
    """

    nearest_class_mean_error: float | None
    linear_probe_error: float | None


def baselines(data: Embeddings, index: Tensor, classes: int) -> Baselines:
    """Both errors by five folds: two passes over the data, three with the linear probe.

    The rows of each class are dealt to the folds in turn, so folds and errors do not depend on any
    chance. A row whose class has no other rows than those of its own fold cannot be right.

    The linear probe is ridge regression to one-hot targets with an intercept, solved from sums of
    products in float64; the penalty is 1e-3 of the mean variance of the features, on their mean
    square. The highest score wins, of equal ones the first.

    Args:
        data: the embeddings [N, D].
        index: [N] the class of every row, 0..classes-1.
        classes: C.

    Raises:
        ValueError: features that are not finite.
    """
    if data.rows < 2:
        return Baselines(None, None)
    sums, counts = _moments(data, index, classes)
    held_in = sums.sum(1, keepdim=True) - sums  # [C, FOLDS, D] of the other folds
    rows = counts.sum(1, keepdim=True) - counts  # [C, FOLDS]
    mean = sums.sum((0, 1)) / data.rows
    probes = data.width <= WIDEST
    wrong = torch.zeros((), dtype=torch.int64, device=data.device)
    products = held_in.new_zeros(FOLDS if probes else 0, data.width, data.width)
    present = [(rows[:, f] > 0).nonzero()[:, 0] for f in range(FOLDS)]
    for f, x, y in _by_fold(data, index, classes):
        means = held_in[present[f], f] / rows[present[f], f, None]
        nearest = lloyd_step(x, means, update=False)[0]
        wrong += (present[f][nearest] != y).sum()
        if probes:
            centred = x.double() - mean
            products[f] += centred.T @ centred
    nearest_error = int(wrong) / data.rows
    if not probes:
        return Baselines(nearest_error, None)
    fits = [_ridge(products, held_in[:, f], rows[:, f], mean, f) for f in range(FOLDS)]
    wrong.zero_()
    for f, x, y in _by_fold(data, index, classes):
        weights, intercept = fits[f]
        # Scores that are equal but for rounding are equal: which wins must not depend on how many
        # threads a product was made by.
        scores = (x.double() @ weights + intercept).float()
        wrong += (scores.argmax(1) != y).sum()
    return Baselines(nearest_error, int(wrong) / data.rows)


def _moments(data: Embeddings, index: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Sums [C, FOLDS, D] and counts [C, FOLDS]."""
    sums = torch.zeros(classes * FOLDS, data.width, dtype=torch.float64, device=data.device)
    counts = torch.zeros(classes * FOLDS, dtype=torch.int64, device=data.device)
    faults = Faults(data)
    for start, x, order, offsets in _dealt(data, index, classes):
        part_counts, part_sums, _, status = grouped_moments(x, order, offsets, squares=False)
        faults.add(status, start, len(x))
        counts += part_counts
        sums += part_sums
    faults.raise_if_any()
    return sums.view(classes, FOLDS, -1), counts.view(classes, FOLDS)


def _dealt(
    data: Embeddings, index: Tensor, classes: int
) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """(first row, segment, order, offsets): groups are class * FOLDS + fold.

    Class c begins with fold c % FOLDS: classes of few rows do not all fall into the first folds.
    """
    seen = torch.arange(classes, device=data.device)
    for start, x in data.segments():
        labels = index[start : start + len(x)]
        order, offsets, _ = class_order(labels, classes, FOLDS, seen)
        seen = seen + offsets[::FOLDS].diff()
        yield start, x, order, offsets


def _by_fold(data: Embeddings, index: Tensor, classes: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(fold, rows of it, their classes), few rows at a time."""
    most = max(1, _CHUNK // data.width)
    for start, x, order, offsets in _dealt(data, index, classes):
        # The group of every place of `order`: how many groups end at it or before.
        ends = offsets[1:-1]
        group = offsets.new_zeros(len(x) + 1).index_add_(0, ends, torch.ones_like(ends)).cumsum(0)
        for f in range(FOLDS):
            rows = order[group[: len(x)] % FOLDS == f].long().sort().values
            for part in rows.split(most):
                yield f, x[part], index[start + part]


def _ridge(
    products: Tensor, sums: Tensor, rows: Tensor, mean: Tensor, fold: int
) -> tuple[Tensor, Tensor]:
    """Weights [D, C] and intercepts [C] of the probe made without `fold`.

    With the training rows' own mean t taken off, the products are theirs about `mean` less n (t -
    mean)(t - mean)', and the products with the targets are each class's sum less its rows times t.
    """
    n = int(rows.sum())
    own = sums.sum(0) / n
    away = own - mean
    about_own = products.sum(0) - products[fold] - n * torch.outer(away, away)
    penalty = RIDGE * float(about_own.diagonal().mean())
    if penalty <= 0:  # nothing varies: the most frequent class is the best there is
        return sums.new_zeros(len(mean), len(rows)), rows / n
    about_own.diagonal().add_(penalty)
    targets = (sums - rows[:, None] * own).T
    weights = torch.linalg.solve(about_own, targets)
    return weights, rows / n - own @ weights
