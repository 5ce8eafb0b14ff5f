"""RESQUE_task: the cost of a new task, as the disagreement of its classes with clusters."""

from __future__ import annotations

import functools
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resque_ext._eager import eager
from resque_ext._inputs import (
    DEVICES,
    FLOATS,
    as_tensor,
    check_choice,
    check_count,
    check_pair,
    describe,
)
from resque_ext.files import load_arrays
from resque_ext.indices import _baselines, _contingency, _kmeans
from resque_ext.indices._sources import (
    EMBEDDINGS,
    Batches,
    Embeddings,
    open_labels,
    open_source,
)
from resque_ext.ops.lloyd_step import raise_for_centers
from resque_ext.ops.pair_counts import pair_counts

INITS = ("class-means", "k-means++")


@dataclass(frozen=True)
class ResqueTaskResult:
    """RESQUE_task, the clustering behind it, and what is known of its uncertainty.

    Attributes:
        value: 1 - ARI: 0 where the clusters are the classes, about 1 where they agree no more than
            by chance, at most 1.5.
        ari: the adjusted Rand index of labels and clusters.
        cluster_labels: [N] int64, the cluster of every row.
        centers: [K, D] float64.
        n_iter: iterations of Lloyd's algorithm, as scikit-learn counts them.
        converged: whether it came to rest before `max_iter`.
        inertia: the sum of the squared distances of the rows to their centres.
        classes: [C] int64, the distinct labels in ascending order.
        table: [C, K] int64, rows of each class in each cluster.
        seed: of the resampling behind `std_error` (and of k-means++).
        nearest_class_mean_error, linear_probe_error: of two classifiers of the same embeddings,
            made without the rows that they are judged by; None where they were not asked for, and
            for one row (the probe's also for more than 4,096 columns).
        layer: what was read, where a model was run.
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
    seed: int = 0
    nearest_class_mean_error: float | None = None
    linear_probe_error: float | None = None
    layer: str | None = None

    def __float__(self) -> float:
        return self.value

    @functools.cached_property
    def _bootstrap(self) -> _contingency.Bootstrap | None:
        return _contingency.bootstrap(self.table, self.seed)

    @property
    def std_error(self) -> float | None:
        """Standard error of `value` by 1,000 bootstrap samples of the table, None for one row.

        Made when first asked for. It tells how the value would scatter with other samples of the
        same data and the clusters as they are: how other samples would move the clusters, or how
        another start would, is not in it.
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
            "ari": self.ari,
            "n_iter": self.n_iter,
            "converged": self.converged,
            "inertia": self.inertia,
            "classes": self.classes.tolist(),
            "table": self.table.tolist(),
            "nearest_class_mean_error": self.nearest_class_mean_error,
            "linear_probe_error": self.linear_probe_error,
            "layer": self.layer,
        }


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
) -> ResqueTaskResult:
    """RESQUE_task: 1 - ARI between the classes of a task and the clusters of its embeddings.

    The embeddings of the new task's data under the old model are clustered by Lloyd's k-means, as
    scikit-learn's KMeans with one start does it: the same tolerance, iterations and empty clusters.
    Distances are float64's, so labels do not depend on the precision of the features' products.

    Args:
        features: [N, D], [N, C, H, W] or [N, T, D] float32, float64, float16 or bfloat16: a tensor
            or NumPy array in memory; or data larger than that, read in passes: a numpy.memmap, the
            path of a .npy file, a list of shards (any of these, one after another), a function that
            returns an iterable of batches, or an iterable that begins anew every time. A pass
            is made for the class means and for every iteration. All give the same bits.
        labels: [N] class indices, int32 or int64, any values; likewise an array, the path of a .npy
            file or a list of shards. None where batches are pairs (features, labels), which takes
            one pass more.
        num_classes: K, the number of clusters; by default that of the distinct labels. Another one
            needs an `init` other than "class-means".
        init: "class-means", the means of the classes; "k-means++", K rows as scikit-learn would
            draw them of the same seed; or centres [K, D].
        max_iter: iterations at most, at least 1.
        tol: where the squared shift of all centres is at most this times the mean variance of the
            features, the centres have come to rest.
        seed: of k-means++ and of the bootstrap behind the result's `std_error`.
        embedding: what is clustered of [N, C, H, W] or [N, T, D]: "pooled", the mean over positions
            or tokens, or "flattened", all values of a row.
        device: where to compute, by default where the features are. Features in host memory go to a
            CUDA device segment by segment, once a pass, copied while it works: put them there
            yourself if they fit.
        baselines: also the errors of a nearest-class-mean classifier and of a linear probe by five
            folds, in three passes more: see :func:`resque_ext.indices._baselines.baselines`.

    Raises:
        TypeError: a dtype, layout or device that is not taken; a one-shot iterator.
        ValueError: naming the argument, what was expected and what came: lengths that differ, no
            rows, fewer rows than clusters, features that are not finite.
        FileNotFoundError: no such file.

    Source: RESQUE_task as published (class-mean start, pooled embedding, ARI), in float64.
    """
    check_choice(embedding, EMBEDDINGS, "embedding")
    max_iter, seed = check_count(max_iter, "max_iter"), check_count(seed, "seed", least=0)
    tol = _check_tolerance(tol)
    if num_classes is not None:
        num_classes = check_count(num_classes, "num_classes")
    with torch.no_grad():
        data, index, classes = _prepare(features, labels, embedding, device)
        start = _start(data, index, len(classes), num_classes, init, seed)
        found = _kmeans.kmeans(data, start, max_iter, tol)
        table = pair_counts(index, found.labels, len(classes), len(start), check=False)
        errors = _baselines.Baselines(None, None)
        if baselines:
            errors = _baselines.baselines(data, index, len(classes))
    counts = table.cpu().numpy()
    ari = _contingency.adjusted_rand_index(counts)
    return ResqueTaskResult(
        value=1 - ari,
        ari=ari,
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
    return resque_task(features, labels, init=init, embedding=embedding, device=device).value


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
        raise ValueError(
            "labels: expected a .npy file of labels with a .npy file of features, and none with "
            f"other files, found {path} and labels {labels}"
        )
    features, found = (path, labels) if mapped else load_arrays(path)
    return resque_task(features, found, **options)


def _check_tolerance(tol: Any) -> float:
    if isinstance(tol, (bool, np.bool_)) or not isinstance(tol, (int, float, np.number)):
        raise TypeError(f"tol: expected a number, found {tol!r}")
    if not 0 <= tol < math.inf:
        raise ValueError(f"tol: expected a finite number of at least 0, found {tol}")
    return float(tol)


def _prepare(
    features: Any, labels: Any, embedding: str, device: torch.device | str | None
) -> tuple[Embeddings, Tensor, NDArray[np.int64]]:
    """The embeddings, the class of every row counted from 0, and the classes' labels."""
    y = None if labels is None else open_labels(labels)
    source = open_source(features, y)
    if isinstance(source, Batches):
        y = source.labels
    elif y is None:
        raise TypeError("labels: expected class indices [N], found None")
    elif isinstance(features, Tensor) and y.device != source.device and device is None:
        check_pair(features, y, ("features", "labels"))
    if source.rows != len(y):
        raise ValueError(
            f"features, labels: expected one label a row, found {source.rows} rows of features and "
            f"{len(y)} labels"
        )
    if source.rows == 0:
        raise ValueError("features: expected at least one row, found none")
    data = Embeddings(source, embedding, _device(device, source.device))
    if data.width == 0:
        raise ValueError(
            f"features: expected at least one column, found rows of shape {source.row_shape}"
        )
    return data, *_class_index(y.to(data.device))


def _device(wanted: torch.device | str | None, own: torch.device) -> torch.device:
    if wanted is None:
        return own
    try:
        device = torch.device(wanted)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in DEVICES:
        raise ValueError(f"device: expected a cpu or cuda device, found {wanted!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device: expected one of this machine's {torch.cuda.device_count()} CUDA devices, "
            f"found {wanted!r}"
        )
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _class_index(labels: Tensor) -> tuple[Tensor, NDArray[np.int64]]:
    """Labels of any values as 0..C-1, and the values, ascending."""
    low, high = int(labels.min()), int(labels.max())
    if high - low >= max(100_000, 4 * len(labels)):  # then looking them up would be no cheaper
        values, index = torch.unique(labels, return_inverse=True)
        return index, values.cpu().long().numpy()
    shifted = labels.long() - low
    there = torch.bincount(shifted, minlength=high - low + 1) > 0
    values = there.nonzero()[:, 0] + low
    return (there.cumsum(0) - 1)[shifted], values.cpu().numpy()


def _start(
    data: Embeddings, index: Tensor, classes: int, clusters: int | None, init: Any, seed: int
) -> Tensor:
    """The centres to start from, [K, D] float64."""
    if isinstance(init, str):
        check_choice(init, INITS, "init")
        if clusters is None:
            clusters = classes
        if init == "class-means" and clusters != classes:
            raise ValueError(
                f"num_classes: expected {classes}, the number of distinct labels, with "
                f"init='class-means', found {clusters}"
            )
        _check_rows(data.rows, clusters)
        if init == "class-means":
            return _kmeans.class_means(data, index, classes)
        return _kmeans.plus_plus(data, clusters, seed)
    centers = as_tensor(init, "init")
    if centers.dtype not in FLOATS:
        raise TypeError(f"init: expected centres of a floating dtype, found {describe(centers)}")
    if centers.dim() != 2 or centers.shape[1] != data.width or len(centers) == 0:
        raise ValueError(
            f"init: expected centres [K, {data.width}] for features of that width, found "
            f"{describe(centers)}"
        )
    if clusters not in (None, len(centers)):
        raise ValueError(
            f"num_classes: expected {len(centers)}, the number of centres of init, found {clusters}"
        )
    raise_for_centers(centers, "init")
    _check_rows(data.rows, len(centers))
    return centers.to(data.device, torch.float64)


def _check_rows(rows: int, clusters: int) -> None:
    if rows < clusters:
        raise ValueError(
            f"features: expected at least one row a cluster, found {rows} rows for {clusters} "
            "clusters"
        )
