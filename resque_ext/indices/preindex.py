"""PreIndex: the representation distance of every layer and the disorder of the new embeddings."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from resque_ext.data.checks import check_choice, check_count
from resque_ext.errors import ArgumentError, ArgumentTypeError, InputError, renamed
from resque_ext.indices import chance_level
from resque_ext.indices.base import Result
from resque_ext.indices.chance_level import Chance
from resque_ext.indices.representation_distance import (
    RepresentationDistanceResult,
    representation_distance,
)
from resque_ext.indices.resque_task import (
    STARTS,
    ResqueTaskResult,
    class_means,
    open_classes,
    resque_task,
    task_warnings,
)
from resque_ext.ops.eager import eager
from resque_ext.ops.row_distances import DISTANCES, SHARED_DISTANCES

ARIS = ("new", "old", "new_from_old_centers")
RANGES = ("own", "shared")


@dataclass(frozen=True)
class PreIndexResult(Result):
    """PreIndex and the parts that it is made of, in every published combination.

    Attributes:
        value: x / (1 + s * x) - s_bar with x = p + (1 - ARI), of the parts that were chosen.
        distances: the representation distance of every layer, number of bins and name.
        inv_ari: 1 - ARI of the embeddings: "new", from its own class means; "old"; and
            "new_from_old_centers", the new side from the old side's class means.
        chance: what permuted labels give in place of the chosen 1 - ARI: see :class:`Chance`;
            None where it was not asked for, and for a single class.
        reliable: whether both parts of `value` say something; `warnings` says why not, and what to
            do.
        distance, bins, ranges, ari, s, s_bar: as asked.
        std_error: at most what `value` has: the errors of p and of 1 - ARI added up, because both
            come from the same samples and how they go together is not known; None where one is.
        skipped: layers of a model that were not read, each with the reason, where one was run.
        layer: the embedding's layer, where a model was run.
        old_accuracy, new_accuracy: of the model, where one was run and it is a classifier.
        pooling: how positions of a layer's output became a vector, where a model was run: "vector"
            (there was nothing to pool), "token" (the one whose scores the model returns), "mean",
            "masked mean", "first", "last", "flattened", "none" or a function's name.
        labels: "given" or "predicted" (by the model, on the new side), where a model was run.
    """

    value: float
    distances: RepresentationDistanceResult
    inv_ari: Mapping[str, float]
    distance: str
    bins: int
    ranges: str
    ari: str
    s: float
    s_bar: float
    std_error: float | None
    chance: Chance | None = None
    reliable: bool = True
    warnings: tuple[str, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    layer: str | None = None
    old_accuracy: float | None = None
    new_accuracy: float | None = None
    pooling: str | None = None
    labels: str | None = None

    noise_floor = None  # it has none

    @property
    def p(self) -> Mapping[int, Mapping[str, float]]:
        """The representation distance by number of bins and name, over the rows' own ranges."""
        return self.distances.p

    @property
    def layer_values(self) -> dict[str, float]:
        """The distance of every layer, of the number of bins and name that were chosen."""
        table = self.distances if self.ranges == "own" else self.distances.shared
        assert table is not None  # it was asked for
        return {name: found[self.bins][self.distance] for name, found in table.layers.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and None, for JSON."""
        return {
            "value": self.value,
            "std_error": self.std_error,
            "reliable": self.reliable,
            "warnings": list(self.warnings),
            "inv_ari": dict(self.inv_ari),
            "chance": self.chance and self.chance.to_dict(),
            "distance": self.distance,
            "bins": self.bins,
            "ranges": self.ranges,
            "ari": self.ari,
            "s": self.s,
            "s_bar": self.s_bar,
            "distances": self.distances.to_dict(),
            "skipped": dict(self.skipped),
            "layer": self.layer,
            "old_accuracy": self.old_accuracy,
            "new_accuracy": self.new_accuracy,
            "pooling": self.pooling,
            "labels": self.labels,
        }


@dataclass(frozen=True)
class PreIndexOptions:
    """Which parts make the index; checked when made.

    Args:
        distance: the name of a distance: wasserstein_heights, jensen_shannon, bhattacharyya or kl;
            over shared ranges wasserstein, jensen_shannon, bhattacharyya or kl.
        bins: the number of bins of that distance.
        ranges: "own", as published, or "shared".
        ari: "new", "old" or "new_from_old_centers".
        s, s_bar: the "noise-variance scaling" and its mean. No public text or code defines them:
            with the defaults, 0, the index is p + (1 - ARI).
        all_bins: every number of bins that is in the result; `bins` is one of them.
        chance: permutations of the labels behind the result's `chance`: 3 give the level, 19 a
            p-value, 0 none. Each takes as long as one of the three clusterings.
        start: whose class means the clusters of `ari` start from: "same-rows", as published, or
            "held-out", which does not leak: see :func:`resque_task`. With ari="new" or "old".

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """

    distance: str = "jensen_shannon"
    bins: int = 32
    ari: str = "new"
    s: float = 0.0
    s_bar: float = 0.0
    ranges: str = "own"
    all_bins: Sequence[int] = (16, 32, 64)
    chance: int = chance_level.PERMUTATIONS
    start: str = "same-rows"

    def __post_init__(self) -> None:
        check_count(self.chance, "chance", least=0)
        check_choice(self.start, STARTS, "start")
        if self.start == "held-out" and self.ari == "new_from_old_centers":
            raise ArgumentError(
                "start",
                "'same-rows' with ari='new_from_old_centers'",
                "'held-out'",
                fix="use ari='new'",
            )
        check_choice(self.ranges, RANGES, "ranges")
        names = DISTANCES if self.ranges == "own" else SHARED_DISTANCES
        check_choice(self.distance, names, "distance")
        check_choice(self.ari, ARIS, "ari")
        if self.bins not in self.all_bins:
            raise ArgumentError("bins", f"one of {tuple(self.all_bins)}", f"{self.bins!r}")
        for name in ("s", "s_bar"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
                raise ArgumentTypeError(name, "a number", f"{value!r}")
            if not math.isfinite(value):
                raise ArgumentError(name, "a finite number", f"{value!r}")

    @property
    def shared(self) -> bool:
        return self.ranges == "shared"


@dataclass(frozen=True)
class PairDistanceResult(Result):
    """p of a model and two sides of pairs: the part of PreIndex that reads no labels.

    Attributes:
        value: p by the distance, number of bins and ranges that were chosen.
        distances: of every layer, number of bins and name.
        distance, bins, ranges: as asked.
        std_error: of `value`, by a jackknife; None with fewer than two samples.
        skipped: layers of the model that were not read, each with the reason.
        old_accuracy, new_accuracy: of the model, if it is a classifier and labels were given.
        pooling: how positions became a vector, see :class:`ArmResult`; tokens are compared side by
            side, not pooled, unless `score(pooling=)` says otherwise.
    """

    value: float
    distances: RepresentationDistanceResult
    distance: str
    bins: int
    ranges: str
    std_error: float | None
    skipped: Mapping[str, str] = field(default_factory=dict)
    old_accuracy: float | None = None
    new_accuracy: float | None = None
    pooling: str | None = None

    @classmethod
    def of(
        cls, distances: RepresentationDistanceResult, options: PreIndexOptions
    ) -> PairDistanceResult:
        """The distance that was chosen, of all that are known."""
        table = distances.shared if options.shared else distances
        assert table is not None  # the options asked for it
        bins, name = options.bins, options.distance
        value, error = table.p[bins][name], table.std_error[bins][name]
        return cls(value, distances, name, bins, options.ranges, error)

    noise_floor = None  # it has none

    @property
    def reliable(self) -> bool:
        """Whether there are samples enough for a standard error; `warnings` says so."""
        return self.distances.reliable

    @property
    def warnings(self) -> tuple[str, ...]:
        return self.distances.warnings

    @property
    def layer_values(self) -> dict[str, float]:
        """The distance of every layer, as chosen."""
        table = self.distances if self.ranges == "own" else self.distances.shared
        assert table is not None  # it was asked for
        return {name: found[self.bins][self.distance] for name, found in table.layers.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and None, for JSON."""
        names = ("value", "std_error", "distance", "bins", "ranges", "skipped")
        names += ("old_accuracy", "new_accuracy", "pooling")
        found = {name: getattr(self, name) for name in names}
        return found | {"distances": self.distances.to_dict(), "skipped": dict(self.skipped)}


@eager
def preindex(
    old_layers: Mapping[str, Any],
    new_layers: Mapping[str, Any],
    old_embedding: Any,
    new_embedding: Any,
    labels: Any,
    distance: str = "jensen_shannon",
    bins: int = 32,
    ari: str = "new",
    s: float = 0.0,
    s_bar: float = 0.0,
    *,
    ranges: str = "own",
    all_bins: Sequence[int] = (16, 32, 64),
    embedding: str = "flattened",
    nonfinite: str = "error",
    chance: int = chance_level.PERMUTATIONS,
    start: str = "same-rows",
) -> PreIndexResult:
    """PreIndex of activations at hand, the same samples before and after a shift.

    With x = p + (1 - ARI), PreIndex = x / (1 + s * x) - s_bar.

    Args:
        old_layers, new_layers: by layer, paired activations [N, M], [N, C, H, W] (pooled) or
            [N, T, D] (all T * D values), as :class:`RepresentationDistance` takes them.
        old_embedding, new_embedding: [N, D], [N, C, H, W] or [N, T, D], clustered by k-means.
        labels: [N] class indices, int32 or int64, any values.
        distance, bins, ari, s, s_bar, ranges, all_bins, chance, start: see
            :class:`PreIndexOptions`.
        embedding: "flattened", as published, or "pooled".
        nonfinite: "error", or "skip" for pairs of layers; embeddings have to be finite.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Source: PreIndex as published; the terms behind `s` and `s_bar` are open there.
    """
    options = PreIndexOptions(distance, bins, ari, s, s_bar, ranges, tuple(all_bins), chance, start)
    distances = representation_distance(
        old_layers, new_layers, bins=options.all_bins, shared=options.shared, nonfinite=nonfinite
    )
    return combine(options, distances, old_embedding, new_embedding, labels, embedding)


def combine(
    options: PreIndexOptions,
    distances: RepresentationDistanceResult,
    old_embedding: Any,
    new_embedding: Any,
    labels: Any,
    embedding: str,
) -> PreIndexResult:
    """PreIndex of distances that are known, and embeddings as :func:`resque_task` takes them."""
    tasks = _cluster(options, old_embedding, new_embedding, labels, embedding)
    table = distances.shared if options.shared else distances
    assert table is not None  # the options asked for it
    p = table.p[options.bins][options.distance]
    x = p + tasks[options.ari].value
    scale = 1 + options.s * x
    if scale == 0:
        raise ArgumentError("s", f"1 + s * x other than 0 for x = {x}", f"s = {options.s}")
    errors = (table.std_error[options.bins][options.distance], tasks[options.ari].std_error)
    error = None
    task = tasks[options.ari]
    if None not in errors:
        error = sum(errors) / scale**2  # type: ignore[arg-type]
    return PreIndexResult(
        value=x / scale - options.s_bar,
        distances=distances,
        inv_ari={name: tasks[name].value for name in ("old", "new", "new_from_old_centers")},
        distance=options.distance,
        bins=options.bins,
        ranges=options.ranges,
        ari=options.ari,
        s=float(options.s),
        s_bar=float(options.s_bar),
        std_error=error,
        chance=task.chance,
        reliable=task.reliable and distances.reliable,
        warnings=distances.warnings + tuple(f"1 - ARI: {line}" for line in task.warnings),
    )


def _cluster(
    options: PreIndexOptions, old: Any, new: Any, labels: Any, embedding: str
) -> dict[str, ResqueTaskResult]:
    """The three clusterings; what is wrong with an embedding is said of it by its own name."""

    def named(name: str, function: Any, features: Any, **more: Any) -> Any:
        try:
            return function(features, labels, embedding=embedding, **more)
        except InputError as error:
            raise renamed(error, features=name) from None

    plain: dict[str, Any] = {"chance": 0}
    asked = {"start": options.start, "chance": options.chance}
    found = {}
    for side, features in (("old", old), ("new", new)):
        given = asked if side == options.ari else plain
        found[side] = named(f"{side}_embedding", resque_task, features, **given)
    centers = named("old_embedding", class_means, old)
    if centers.shape[1] != found["new"].centers.shape[-1]:
        raise ArgumentError(
            "old_embedding, new_embedding",
            "one width",
            f"{centers.shape[1]} and {found['new'].centers.shape[-1]}",
        )
    task = named("new_embedding", resque_task, new, init=centers, **plain)
    if options.ari == "new_from_old_centers" and len(centers) > 1:
        # Its centres are made from the labels too, so they are made again of the permuted ones.
        y, _ = open_classes(labels)

        def value_of(order: Tensor) -> float:
            other = y[order.to(y.device)]
            init = class_means(old, other, embedding=embedding)
            return resque_task(new, other, init=init, embedding=embedding, **plain).value

        by_chance = chance_level.permuted(task.value, len(y), options.chance, 0, value_of)
        dimension = found["old"].dimension
        warnings = task_warnings(task.table, by_chance, dimension, held_out=False)
        task = dataclasses.replace(
            task,
            chance=by_chance,
            dimension=dimension,
            reliable=not warnings,
            warnings=warnings,
        )
    found["new_from_old_centers"] = task
    return found
