"""Lloyd's k-means in float64, by scikit-learn's rules, over data in memory or in passes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resque_ext.errors import ArgumentError
from resque_ext.indices.segments import Embeddings
from resque_ext.ops.class_moments import grouped_moments
from resque_ext.ops.class_order import class_order
from resque_ext.ops.lloyd_step import lloyd_step_status as lloyd_step
from resque_ext.ops.status import Status, merge_status


@dataclass(frozen=True)
class Clustering:
    """Where k-means ended.

    Attributes:
        labels: [N] int64, the nearest of `centers` for every row.
        centers: [K, D] float64.
        inertia: the sum of the squared distances to them.
        n_iter: iterations, as scikit-learn counts them.
        converged: whether the labels repeated, or the centres came to rest, within `max_iter`.
    """

    labels: Tensor
    centers: Tensor
    inertia: float
    n_iter: int
    converged: bool


def kmeans(data: Embeddings, centers: Tensor, max_iter: int, tol: float) -> Clustering:
    """Lloyd's algorithm from `centers` [K, D] float64.

    As scikit-learn's KMeans with one start: it ends when an iteration repeats the labels, or when
    the squared shift of all centres together is at most `tol` times the mean variance of the
    features, and in that case, as after `max_iter` iterations, labels are assigned once more. A
    centre without rows moves to the row farthest from its own centre; several, in the order of
    their index, to the farthest rows in descending order (scikit-learn's order is that of a partial
    sort), of rows at the same distance the first.

    Raises:
        ValueError: features that are not finite, or whose squared distances are not.
    """
    labels = torch.full((data.rows,), -1, dtype=torch.int64, device=data.device)
    allowed = None
    converged = False
    for n_iter in range(1, max_iter + 1):
        step = _assign(data, centers, labels, check=n_iter == 1)
        if allowed is None:
            allowed = tol * _mean_variance(step, centers) if tol > 0 else 0.0
        moved = _moved(data, step, centers, labels)
        shift = _total((moved - centers).square())
        centers = moved
        if not step.changed:
            # Rows that a centre was moved to still have the label of another, as in scikit-learn.
            apart = bool((step.counts == 0).any())
            inertia = _inertia(data, centers, labels) if apart else step.inertia
            return Clustering(labels, centers, inertia, n_iter, True)
        if shift <= allowed:
            converged = True
            break
    step = _assign(data, centers, labels, update=False)
    return Clustering(labels, centers, step.inertia, n_iter, converged)


@dataclass(frozen=True)
class _Step:
    """One pass: what :func:`resque_ext.ops.lloyd_step` gives, and whether any label changed."""

    inertia: float
    sums: Tensor  # [K, D], or [0, D] where no next centres are wanted
    counts: Tensor  # [K], or [0]
    changed: bool


def _assign(
    data: Embeddings, centers: Tensor, labels: Tensor, update: bool = True, check: bool = False
) -> _Step:
    """Every row to its nearest centre; `labels` are replaced in place."""
    sums = torch.zeros_like(centers[: None if update else 0])
    counts = torch.zeros(len(sums), dtype=torch.int64, device=data.device)
    inertia = torch.zeros((), dtype=torch.float64, device=data.device)
    changed = torch.zeros((), dtype=torch.bool, device=data.device)
    faults = Faults(data)
    for start, x in data.segments():
        found, _, part, part_sums, part_counts, _, status = lloyd_step(x, centers, update)
        faults.add(status, start, len(x))
        before = labels[start : start + len(x)]
        changed |= (before != found).any()
        before.copy_(found)
        inertia += part
        sums += part_sums
        counts += part_counts
    total = float(inertia)
    if check or not np.isfinite(total):
        faults.raise_if_any()
    if not np.isfinite(total):
        raise ArgumentError(
            "features",
            "squared distances within float64",
            "their sum infinite",
            fix="scale the features",
        )
    return _Step(total, sums, counts, bool(changed))


class Faults:
    """The status words of a pass, segment by segment."""

    def __init__(self, data: Embeddings) -> None:
        self._data = data
        self._words: list[Tensor] = []
        self._rows_after: list[int] = []

    def add(self, status: Tensor, start: int, rows: int) -> None:
        self._words.append(status)
        self._rows_after.append(self._data.rows - start - rows)

    def raise_if_any(self) -> None:
        """ValueError with the number of non-finite features and the first one's position."""
        words = merge_status(self._words, self._rows_after, self._data.width)
        found = Status.read(words, self._data.rows, self._data.width)
        found.raise_for_nonfinite("features", fix=None)


def _total(x: Tensor) -> float:
    """The sum, which does not depend on the number of threads: NumPy adds on one."""
    return float(x.numpy().sum() if x.device.type == "cpu" else x.sum())


def _mean_variance(step: _Step, centers: Tensor) -> float:
    """The mean over the features of their variance, from the first assignment.

    The sum of squares about the overall mean m is, cluster by cluster with n rows of sum s about
    the centre c, the inertia + 2 (s - n c).(c - m) + n |c - m|^2: no large numbers cancel, however
    far from zero the data are.
    """
    from_mean = centers - _mean(step)
    counts = step.counts[:, None]
    between = 2 * (step.sums - counts * centers) * from_mean + counts * from_mean.square()
    total = max(step.inertia + _total(between), 0.0)
    return total / (int(step.counts.sum()) * centers.shape[1])


def _mean(step: _Step) -> Tensor:
    """The mean of all rows, [D]."""
    total = torch.from_numpy(step.sums.cpu().numpy().sum(0)).to(step.sums)
    return total / step.counts.sum()


def _moved(data: Embeddings, step: _Step, centers: Tensor, labels: Tensor) -> Tensor:
    """The means of the clusters; those without rows move."""
    empty = (step.counts == 0).nonzero()[:, 0].tolist()
    if not empty:
        return step.sums / step.counts[:, None]
    sums, counts = step.sums.clone(), step.counts.clone()
    for k, row in zip(empty, _farthest(data, centers, len(empty)), strict=False):
        x = data.rows_at([row])[0].double()
        sums[labels[row]] -= x
        counts[labels[row]] -= 1
        sums[k], counts[k] = x, 1
    # Where all rows lie on their centres nothing was moved, and a row moved away may have been the
    # last of its cluster. Such a centre joins that of the largest cluster; in scikit-learn it finds
    # there what is not yet divided by the count where the largest cluster comes later, the sum of
    # its rows about the mean of all. No row is near, and labels agree only if this does the same.
    means = sums / counts[:, None]
    largest = int(counts.argmax())
    mean = _mean(step)
    undivided = mean + (sums[largest] - counts[largest] * mean)
    for k in (counts == 0).nonzero()[:, 0].tolist():
        means[k] = undivided if k < largest else means[largest].clone()
    return means


def _farthest(data: Embeddings, centers: Tensor, count: int) -> list[int]:
    """The rows farthest from their nearest centre; none where all distances are zero."""
    parts = []
    for _, x in data.segments():
        parts.append(lloyd_step(x, centers, update=False, distances=True)[1].cpu().numpy())
    squared = np.concatenate(parts)
    if not squared.any():
        return []
    count = min(count, len(squared))
    least = np.partition(squared, -count)[-count]
    rows = np.flatnonzero(squared >= least)
    return rows[np.argsort(-squared[rows], kind="stable")][:count].tolist()


def _inertia(data: Embeddings, centers: Tensor, labels: Tensor) -> float:
    """The sum of the squared distances to the centres of `labels`, nearest or not."""
    total = 0.0
    rows = max(1, 2**20 // data.width)
    for start, segment in data.segments():
        for i in range(0, len(segment), rows):
            x = segment[i : i + rows].double()
            total += _total((x - centers[labels[start + i :][: len(x)]]).square())
    return total


def class_means(data: Embeddings, index: Tensor, classes: int) -> Tensor:
    """The mean of every class, [classes, D] float64; `index` [N] are classes that all have rows.

    Raises:
        ValueError: features that are not finite.
    """
    sums = torch.zeros(classes, data.width, dtype=torch.float64, device=data.device)
    counts = torch.zeros(classes, dtype=torch.int64, device=data.device)
    faults = Faults(data)
    for start, x in data.segments():
        order, offsets, _ = class_order(index[start : start + len(x)], classes)
        part_counts, part_sums, _, status = grouped_moments(x, order, offsets, squares=False)
        faults.add(status, start, len(x))
        counts += part_counts
        sums += part_sums
    faults.raise_if_any()
    return sums / counts[:, None]


def plus_plus(data: Embeddings, clusters: int, seed: int) -> Tensor:
    """Rows to start from, [clusters, D] float64: k-means++ as scikit-learn has it, greedy.

    Every centre is the best of 2 + log(clusters) rows drawn with probability in proportion to the
    squared distance from the nearest centre so far. The draws are those that scikit-learn makes of
    the same seed.

    Source: D. Arthur and S. Vassilvitskii, k-means++: the advantages of careful seeding, 2007.
    """
    random = np.random.RandomState(seed)
    trials = 2 + int(np.log(clusters))
    chosen = [min(int(random.random_sample() * data.rows), data.rows - 1)]
    centers = [data.rows_at(chosen)]
    nearest = _distances(data, centers[0])[0]
    total = nearest.sum()
    while len(chosen) < clusters:
        drawn = random.uniform(size=trials) * total
        rows = np.searchsorted(np.cumsum(nearest), drawn).clip(max=data.rows - 1).tolist()
        candidates = data.rows_at(rows)
        left = np.minimum(_distances(data, candidates), nearest)
        totals = left.sum(1)
        best = int(totals.argmin())
        nearest, total = left[best], totals[best]
        chosen.append(rows[best])
        centers.append(candidates[best : best + 1])
    return torch.cat(centers).double()


def _distances(data: Embeddings, points: Tensor) -> NDArray[np.float64]:
    """The squared distances of all rows from each of a few points: [points, N], on the CPU."""
    out = np.empty((len(points), data.rows))
    centers = points.double()
    faults = Faults(data)
    for start, x in data.segments():
        for i in range(len(points)):
            step = lloyd_step(x, centers[i : i + 1], update=False, distances=True)
            out[i, start : start + len(x)] = step[1].cpu().numpy()
        faults.add(step[-1], start, len(x))
    faults.raise_if_any()
    return out
