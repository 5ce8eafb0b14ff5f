"""RESQUE_task: the cost of a new task, as the disagreement of its classes with clusters."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resque_ext.data.checks import (
    FLOATS,
    IGNORED,
    IGNORED_FIX,
    as_tensor,
    check_choice,
    check_count,
    check_device,
    check_pair,
    class_indices,
    describe,
)
from resque_ext.data.files import load_arrays
from resque_ext.errors import ArgumentError, ArgumentTypeError
from resque_ext.indices import _baselines, _contingency, _kmeans, chance_level
from resque_ext.indices._folds import FOLDS, fold_of_rows, fold_sums, positions_of
from resque_ext.indices._resque_task_result import ResqueTaskResult
from resque_ext.indices.chance_level import Chance
from resque_ext.indices.segments import (
    EMBEDDINGS,
    Batches,
    Embeddings,
    open_labels,
    open_source,
)
from resque_ext.ops.eager import eager
from resque_ext.ops.lloyd_step import raise_for_centers
from resque_ext.ops.pair_counts import pair_counts

INITS = ("class-means", "k-means++")
STARTS = ("same-rows", "held-out")
# Of clusters x effective dimensions / rows. Beyond the first, rows are drawn to the class means
# that they are part of; beyond the second, class means of other rows lead nowhere.
_LEAKS, _LOST = 0.5, 60.0
_LEAST_CHANCE = 0.9  # of permuted labels, where nothing leaks


@eager
def resque_task(
    features: Any,
    labels: Any = None,
    num_classes: int | None = None,
    init: Any = "class-means",
    max_iter: int = 300,
    tol: float = 1e-4,
    seed: int = 0,
    *,
    embedding: str = "pooled",
    device: torch.device | str | None = None,
    baselines: bool = False,
    start: str = "same-rows",
    chance: int = chance_level.PERMUTATIONS,
) -> ResqueTaskResult:
    """RESQUE_task: 1 - ARI between the classes of a task and the clusters of its embeddings.

    The embeddings of the new task's data under the old model are clustered by Lloyd's k-means, as
    scikit-learn's KMeans with one start does it: the same tolerance, iterations and empty clusters.
    Distances are float64's, so labels do not depend on the precision of the features' products.

    Args:
        features: [N, D], [N, C, H, W] or [N, T, D] of floats or integers: a tensor, array, data
            frame or list of rows in memory; or data larger than that, read in passes: a
            numpy.memmap, the path of a .npy file, a list of shards (any of these, one after
            another), a function that returns an iterable of batches, or an iterable that begins
            anew every time. A pass is made for the class means, for a sample of rows and for every
            iteration. All give the same bits.
        labels: [N] class indices of any values, or names of classes; likewise an array, the path of
            a .npy file or a list of shards. None where batches are pairs (features, labels), which
            takes one more pass.
        num_classes: K, the number of clusters; by default that of the distinct labels. Another one
            needs an `init` other than "class-means".
        init: "class-means", the means of the classes; "k-means++", K rows as scikit-learn would
            draw them of the same seed; or centres [K, D].
        max_iter: iterations at most, at least 1.
        tol: where the squared shift of all centres is at most this times the mean variance of the
            features, the centres have come to rest.
        seed: of k-means++, of the permutations and of the bootstrap behind `std_error`.
        embedding: what is clustered of [N, C, H, W] or [N, T, D]: "pooled", the mean over positions
            or tokens, or "flattened", all values of a row.
        device: where to compute, by default where the features are. Features in host memory go to a
            CUDA device segment by segment, once a pass, copied while it works: put them there
            yourself if they fit.
        start: whose class means the clusters start from. "same-rows", as published: the means of
            all rows. They leak the labels unless clusters x dimensions is far below the number of
            rows; the result says so. "held-out": in five folds, all rows are clustered from the
            class means of the other four folds, and the fold's own rows keep their cluster. That
            does not leak, and takes 5.5 times as long. Every class needs two rows.
        chance: permutations of the labels behind the result's `chance`: 3 give the level, 19 a
            p-value, 0 none. Each takes as long as the value itself (1.1 times; so the default
            takes 4.3 times as long as 0), but next to none where the start needs no labels. The
            same seed gives the same permutations.
        baselines: also the errors of a nearest-class-mean classifier and of a linear probe by five
            folds, in four passes more: see :func:`resque_ext.indices._baselines.baselines`.

    Raises:
        TypeError: a dtype, layout or device that is not taken; a one-shot iterator.
        ValueError: naming the argument, what was expected and what came: lengths that differ, no
            rows, fewer rows than clusters, features that are not finite.
        FileNotFoundError: no such file.

    Source: RESQUE_task as published (class-mean start, pooled embedding, ARI), in float64; the
    chance level and the held-out start are ours.
    """
    check_choice(start, STARTS, "start")
    permutations = check_count(chance, "chance", least=0)
    check_choice(embedding, EMBEDDINGS, "embedding")
    max_iter, seed = check_count(max_iter, "max_iter"), check_count(seed, "seed", least=0)
    tol = _check_tolerance(tol)
    if num_classes is not None:
        num_classes = check_count(num_classes, "num_classes")
    with torch.no_grad():
        data, index, classes = _prepare(features, labels, embedding, device)
        held_out = start == "held-out"
        fixed = _start(data, index, classes, num_classes, init, seed, held_out)
        means = _kmeans.class_means(data, index, len(classes)) if fixed is None else fixed
        fold_of = functools.partial(fold_of_rows, positions_of(data)) if held_out else None

        def clustering(index: Tensor, centers: Tensor | None = None) -> _kmeans.Clustering:
            if fold_of is not None:
                return _held_out(data, index, fold_of(index), len(classes), max_iter, tol)
            if centers is None:
                centers = _kmeans.class_means(data, index, len(classes))
            return _kmeans.kmeans(data, centers, max_iter, tol)

        found = clustering(index, means)
        clusters = len(means)

        def table(index: Tensor, labels: Tensor) -> NDArray[np.int64]:
            return pair_counts(index, labels, len(classes), clusters, check=False).cpu().numpy()

        def value_of(order: Tensor) -> float:
            other = index[order.to(index.device)]
            labels = clustering(other).labels if fixed is None else found.labels
            return 1 - _contingency.adjusted_rand_index(table(other, labels))

        counts = table(index, found.labels)
        ari = _contingency.adjusted_rand_index(counts)
        dimension = by_chance = None
        if len(classes) > 1:
            by_chance = chance_level.permuted(1 - ari, data.rows, permutations, seed, value_of)
            if fixed is None:
                dimension = chance_level.effective_dimension(data, index, means)
        errors = _baselines.Baselines()
        if baselines:
            errors = _baselines.baselines(data, index, len(classes))
    warnings = task_warnings(counts, by_chance, dimension, held_out)
    return ResqueTaskResult(
        value=1 - ari,
        ari=ari,
        chance=by_chance,
        reliable=not warnings,
        warnings=warnings + errors.warnings,
        dimension=dimension,
        cluster_labels=found.labels.cpu().numpy(),
        centers=found.centers.cpu().numpy(),
        n_iter=found.n_iter,
        converged=found.converged,
        inertia=found.inertia,
        classes=classes,
        table=counts,
        seed=seed,
        nearest_class_mean_error=errors.nearest_class_mean_error,
        linear_probe_error=errors.linear_probe_error,
    )


def classifier_errors(
    features: Any, labels: Any, errors: Sequence[str] = _baselines.ERRORS
) -> _baselines.Baselines:
    """The errors of simple classifiers of embeddings, as :func:`resque_task` has them; without a
    clustering."""
    with torch.no_grad():
        data, index, classes = _prepare(features, labels, "pooled", None)
        return _baselines.baselines(data, index, len(classes), errors)


def one_minus_ari(
    features: Any,
    labels: Any,
    centers: Tensor | None = None,
    *,
    embedding: str = "flattened",
    device: torch.device | str | None = None,
) -> float:
    """The value of :func:`resque_task` from `centers` [K, D], or from the class means."""
    init = "class-means" if centers is None else centers
    found = resque_task(features, labels, init=init, embedding=embedding, device=device, chance=0)
    return found.value


def class_means(
    features: Any,
    labels: Any,
    *,
    embedding: str = "flattened",
    device: torch.device | str | None = None,
) -> Tensor:
    """The means [C, D] float64 of the classes in ascending order of their labels."""
    with torch.no_grad():
        data, index, classes = _prepare(features, labels, embedding, device)
        return _kmeans.class_means(data, index, len(classes))


def resque_task_of_file(
    path: str | os.PathLike[str],
    labels: str | os.PathLike[str] | None = None,
    **options: Any,
) -> ResqueTaskResult:
    """:func:`resque_task` of a file with the arrays `features` and `labels`.

    Args:
        path: an .npz or .safetensors file with both arrays, or a .npy file of features, which is
            read in passes and may be larger than memory.
        labels: a .npy file of labels, with a .npy file of features.
        options: those of :func:`resque_task`.

    Raises:
        FileNotFoundError, ValueError: no such file, or another content, in one line.
    """
    mapped = Path(path).suffix.lower() == ".npy"
    if mapped != (labels is not None):
        raise ArgumentError(
            "labels",
            "a .npy file of labels with a .npy file of features, and none with other files",
            f"{path} and labels {labels}",
        )
    features, found = (path, labels) if mapped else load_arrays(path)
    return resque_task(features, found, **options)


def _check_tolerance(tol: Any) -> float:
    if isinstance(tol, (bool, np.bool_)) or not isinstance(tol, (int, float, np.number)):
        raise ArgumentTypeError("tol", "a number", f"{tol!r}")
    if not 0 <= tol < math.inf:
        raise ArgumentError("tol", "a finite number of at least 0", tol)
    return float(tol)


def _prepare(
    features: Any, labels: Any, embedding: str, device: torch.device | str | None
) -> tuple[Embeddings, Tensor, NDArray[np.int64]]:
    """The embeddings, the class of every row counted from 0, and the classes' labels or names."""
    y, names = (None, None) if labels is None else open_classes(labels)
    source = open_source(features, y)
    if isinstance(source, Batches):
        y = source.labels
    elif y is None:
        raise ArgumentTypeError("labels", "class indices [N]", "None")
    elif isinstance(features, Tensor) and y.device != source.device and device is None:
        check_pair(features, y, ("features", "labels"))
    if source.rows != len(y):
        raise ArgumentError(
            "features, labels",
            "one label a row",
            f"{source.rows} rows of features and {len(y)} labels",
        )
    if source.rows == 0:
        raise ArgumentError("features", "at least one row", "none")
    data = Embeddings(source, embedding, source.device if device is None else check_device(device))
    if data.width == 0:
        raise ArgumentError("features", "at least one column", f"rows of shape {source.row_shape}")
    index, classes = _class_index(y.to(data.device))
    return data, index, classes if names is None else names[classes]


def open_classes(labels: Any) -> tuple[Tensor, NDArray[Any] | None]:
    """Labels [N] as numbers, and the names that they stand for, where they were names."""
    names = None
    if not _paths(labels):
        (labels,), names = class_indices(labels=labels)
    return open_labels(labels), names


def _paths(labels: Any) -> bool:
    """Whether these are files of labels, and no names of classes."""
    if isinstance(labels, (list, tuple)) and labels:
        return all(map(_paths, labels))
    return isinstance(labels, os.PathLike) or (
        isinstance(labels, str) and labels.lower().endswith(".npy")
    )


def _class_index(labels: Tensor) -> tuple[Tensor, NDArray[np.int64]]:
    """Labels of any values as 0..C-1, and the values, ascending."""
    low, high = int(labels.min()), int(labels.max())
    if low <= IGNORED <= high and bool((labels == IGNORED).any()):
        raise ArgumentError("labels", "class indices", IGNORED, fix=IGNORED_FIX)
    if high - low >= max(100_000, 4 * len(labels)):  # then looking them up would be no cheaper
        values, index = torch.unique(labels, return_inverse=True)
        return index, values.cpu().long().numpy()
    shifted = labels.long() - low
    there = torch.bincount(shifted, minlength=high - low + 1) > 0
    values = there.nonzero()[:, 0] + low
    return (there.cumsum(0) - 1)[shifted], values.cpu().numpy()


def _start(
    data: Embeddings,
    index: Tensor,
    values: NDArray[np.int64],
    clusters: int | None,
    init: Any,
    seed: int,
    held_out: bool,
) -> Tensor | None:
    """The centres to start from, [K, D] float64; None for the class means."""
    classes = len(values)
    if held_out and not (isinstance(init, str) and init == "class-means"):
        raise ArgumentError("start", "'same-rows' where init is not 'class-means'", "'held-out'")
    if isinstance(init, str):
        check_choice(init, INITS, "init")
        if clusters is None:
            clusters = classes
        if init == "class-means" and clusters != classes:
            raise ArgumentError(
                "num_classes",
                f"{classes}, the number of distinct labels, with init='class-means'",
                clusters,
            )
        _check_rows(data.rows, clusters)
        if held_out:
            single = (torch.bincount(index) == 1).nonzero()[:, 0].tolist()
            if single:
                raise ArgumentError(
                    "labels",
                    "at least two rows of every class with start='held-out'",
                    f"one of class {values[single[0]]}",
                )
        if init == "class-means":
            return None
        return _kmeans.plus_plus(data, clusters, seed)
    centers = as_tensor(init, "init")
    if centers.dtype not in FLOATS:
        raise ArgumentTypeError("init", "centres of a floating dtype", describe(centers))
    if centers.dim() != 2 or centers.shape[1] != data.width or len(centers) == 0:
        raise ArgumentError(
            "init", f"centres [K, {data.width}] for features of that width", describe(centers)
        )
    if clusters not in (None, len(centers)):
        raise ArgumentError(
            "num_classes", f"{len(centers)}, the number of centres of init", clusters
        )
    raise_for_centers(centers, "init")
    _check_rows(data.rows, len(centers))
    return centers.to(data.device, torch.float64)


def _held_out(
    data: Embeddings, index: Tensor, fold: Tensor, classes: int, max_iter: int, tol: float
) -> _kmeans.Clustering:
    """Every row's cluster from the class means of folds that it is not in.

    All rows are clustered each time, from the class means of the other folds, and those of the fold
    keep the labels. Cluster k begins at class k in every fold, so that the folds' labels agree.
    """
    sums, counts = fold_sums(data, index, fold, classes)
    labels = torch.empty_like(index)
    found = []
    for f in range(FOLDS):
        own = fold == f
        if not counts[:, f].any():
            continue
        others = (sums.sum(1) - sums[:, f]) / (counts.sum(1) - counts[:, f])[:, None]
        found.append(_kmeans.kmeans(data, others, max_iter, tol))
        labels[own] = found[-1].labels[own]
    return _kmeans.Clustering(
        labels=labels,
        centers=torch.stack([each.centers for each in found]),
        inertia=sum(each.inertia for each in found) / len(found),
        n_iter=max(each.n_iter for each in found),
        converged=all(each.converged for each in found),
    )


def task_warnings(
    table: NDArray[np.int64], chance: Chance | None, dimension: float | None, held_out: bool
) -> tuple[str, ...]:
    """Why a value is not to be relied on, and what to do; nothing where it is."""
    rows, (classes, clusters) = int(table.sum()), table.shape
    if classes < 2:
        return ("value: says nothing, as there is a single class; use labels of at least two",)
    level = f" (permuted labels give {chance.mean:.2f} on average)" if chance else ""
    few = f"{rows} rows are few for {clusters} clusters"
    if dimension is not None:
        few += f" in {dimension:.0f} effective dimensions"
    load = 0.0 if dimension is None else clusters * dimension / rows
    by_chance = chance is not None and chance.mean < _LEAST_CHANCE
    if held_out:
        fewest = int(table.sum(1).min())
        if fewest < FOLDS:
            return (
                f"value: uncertain, as a class has {fewest} rows, fewer than there are folds; use "
                f"at least {FOLDS} rows a class",
            )
        if load > _LOST:
            return (f"value: may be much too large, as {few}; use more rows",)
    elif dimension is not None and (load > _LEAKS or by_chance):
        return (
            f"value: too small, as class means of the same rows leak the labels where {few}"
            f"{level}; use start='held-out', or more rows",
        )
    if by_chance:
        return (f"value: too small by chance, as {few}{level}; use more rows",)
    return ()


def _check_rows(rows: int, clusters: int) -> None:
    if rows < clusters:
        raise ArgumentError(
            "features", "at least one row a cluster", f"{rows} rows for {clusters} clusters"
        )
