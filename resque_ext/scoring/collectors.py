"""What each index takes from the forward passes, and its result: one collector an index."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resque_ext.data.checks import check_choice
from resque_ext.indices import (
    Arm,
    ArmResult,
    LinearResidual,
    LinearResidualResult,
    PairDistanceResult,
    PreIndexResult,
    RepresentationDistance,
    ResqueTaskResult,
    resque_task,
)
from resque_ext.indices.chance_level import PERMUTATIONS
from resque_ext.indices.preindex import PreIndexOptions, combine
from resque_ext.indices.representation_distance import paired_layers
from resque_ext.indices.resque_dist import (
    SIDES,
    ResqueDist,
    ResqueDistResult,
    Side,
    raise_for_missing,
)
from resque_ext.indices.segments import EMBEDDINGS
from resque_ext.model.pooling import Features
from resque_ext.ops import spatial_mean
from resque_ext.ops.status import row_error

if TYPE_CHECKING:
    from resque_ext.distributed import Ranks


@dataclass(frozen=True)
class Facts:
    """What the passes know of the model, for every index's result.

    Attributes:
        layer: the embedding's layer.
        layers: the layers that were read.
        skipped: layers that were not, each with the reason.
        old_accuracy, new_accuracy: of the model, where it is a classifier.
        pooling: what was done to the positions of the embedding.
        layer_pooling: what was done to those of the layers.
        labels: where labels are from.
    """

    layer: str | None = None
    layers: tuple[str, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    old_accuracy: float | None = None
    new_accuracy: float | None = None
    pooling: str | None = None
    layer_pooling: str | None = None
    labels: str | None = None

    def of_embedding(self) -> dict[str, Any]:
        """The fields of the result of an index that reads the embedding."""
        return {"layer": self.layer, "pooling": self.pooling, "labels": self.labels}

    def of_accuracy(self) -> dict[str, Any]:
        return {"old_accuracy": self.old_accuracy, "new_accuracy": self.new_accuracy}


class ResqueDistCollector:
    """RESQUE_dist: embeddings of both sides go into one accumulator."""

    reads_old = True
    embeddings: tuple[Side, ...] = SIDES
    flattened = vectors = pooled = raw = False

    def __init__(self, paired: bool, missing: str = "error") -> None:
        check_choice(missing, ("error", "skip"), "missing")
        self.paired, self.missing = paired, missing
        self.acc: ResqueDist | None = None
        self.blocks: int | None = None  # None: as many as the classes of the first batch ask for

    def add_embedding(self, x: Tensor, labels: Tensor, side: Side, outputs: int | None) -> None:
        if self.acc is None:
            blocks = None if outputs else self.blocks
            classes = outputs or label_bound(labels)
            self.acc = ResqueDist(classes, missing=self.missing, blocks=blocks)
        if outputs is None:
            self.acc.grow(label_bound(labels))
        try:
            self.acc.update(x, labels.to(x.device, non_blocking=True), side)
        except (ValueError, TypeError) as error:
            raise of_side(error, side, nonfinite=BY_HAND.format("ResqueDist")) from error

    def fork(self) -> ResqueDistCollector:
        """One that goes on from here with a new side of its own; the old side's sums are shared."""
        other = ResqueDistCollector(self.paired, self.missing)
        if self.acc is not None:
            other.acc = copy.copy(self.acc)
            other.acc._updates, other.acc._pending = dict(self.acc._updates), []
            if self.acc._sides is not None:
                old, new = (self.acc._sides[side] for side in SIDES)
                other.acc._sides = {"old": copy.copy(old), "new": copy.deepcopy(new)}
        return other

    def state(self) -> dict[str, Tensor]:
        """The accumulator's, {} before the first batch."""
        return {} if self.acc is None else self.acc.state_dict()

    def load(self, state: Mapping[str, Tensor]) -> None:
        if state:
            classes, blocks = int(state["num_classes"]), int(state["blocks"])
            self.acc = ResqueDist(classes, missing=self.missing, blocks=blocks)
            self.acc.load_state_dict(state)

    def reduce(self, ranks: Ranks) -> None:
        """Makes it that of the data of all ranks, of which one at least has had a batch."""
        acc = self.acc
        mine = None if acc is None else [acc.num_classes, acc.blocks]
        known = [each for each in ranks.gather(mine) if each is not None]
        if self.acc is None:
            classes, blocks = known[0]
            self.acc = ResqueDist(classes, missing=self.missing, blocks=blocks)
        ranks.all_reduce(self.acc)

    @property
    def complete(self) -> bool:
        """The new side has rows of every class that the old side has."""
        if self.acc is None or self.acc._sides is None:
            return False
        old, new = (self.acc._sides[side].seen > 0 for side in SIDES)
        return not bool((old & ~new).any())

    def check_classes(self, rows: Mapping[str, NDArray[np.int64]]) -> None:
        """Raises as result() would for the rows [C] of each class on both sides."""
        if self.missing == "error":
            expect_both_sides(rows, MISSING_OPTION)

    def result(self, facts: Facts) -> ResqueDistResult:
        assert self.acc is not None  # every side had a batch
        self.acc.paired = self.paired
        try:
            result = self.acc._compute(ignore_unseen=True)
        except ValueError as error:
            raise ValueError(without_hint(str(error), MISSING_OPTION)) from error
        return dataclasses.replace(result, **facts.of_embedding(), **facts.of_accuracy())


class ResqueTaskCollector:
    """RESQUE_task: the new side's embeddings are kept, for k-means reads them many times."""

    reads_old = False
    embeddings: tuple[Side, ...] = ("new",)
    vectors = pooled = raw = False

    def __init__(
        self,
        paired: bool,
        num_classes: int | None = None,
        init: Any = "class-means",
        max_iter: int = 300,
        tol: float = 1e-4,
        seed: int = 0,
        embedding: str = "pooled",
        baselines: bool = True,
        start: str = "same-rows",
        chance: int = PERMUTATIONS,
    ) -> None:
        check_choice(embedding, EMBEDDINGS, "embedding")
        self.flattened = embedding == "flattened"
        self.kept = KeptEmbeddings(self.flattened)
        self.options = {
            "num_classes": num_classes,
            "init": init,
            "max_iter": max_iter,
            "tol": tol,
            "seed": seed,
            "baselines": baselines,
            "start": start,
            "chance": chance,
        }

    def add_embedding(self, x: Tensor, labels: Tensor, side: Side, outputs: int | None) -> None:
        self.kept.add(x, labels)

    def fork(self) -> ResqueTaskCollector:
        """One for another new side."""
        other = copy.copy(self)
        other.kept = KeptEmbeddings(self.flattened)
        return other

    def state(self) -> dict[str, Tensor]:
        """{}: nothing of the old side is read."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        pass

    def result(self, facts: Facts) -> ResqueTaskResult:
        shards = self.kept.shards(self.kept.width)
        result = resque_task(shards, self.kept.labels, **self.options)
        return dataclasses.replace(result, **self.kept.facts(facts))


class KeptEmbeddings:
    """One side's embeddings, batch by batch, where the model has put them.

    Rows that are flattened may differ in width, where batches differ in tokens: there are zeros
    behind the shorter ones.

    Attributes:
        width: D of the widest so far.
    """

    def __init__(self, flatten: bool) -> None:
        self.flatten = flatten
        self.width = 0
        self._shards: list[Tensor] = []  # [n, D] each: pooled to float32, or flattened as they are
        self._labels: list[Tensor] = []
        self._flattens = False  # there was something to flatten

    def add(self, x: Tensor, labels: Tensor) -> None:
        if not len(labels):
            return
        with torch.inference_mode(False), torch.no_grad():
            # A copy, where nothing is averaged: what comes after may change it in place.
            whole = self.flatten or x.dim() == 2
            self._flattens |= self.flatten and x.dim() > 2
            self._shards.append(x.flatten(1).clone() if whole else spatial_mean(x))
            self.width = max(self.width, self._shards[-1].shape[1])
            self._labels.append(labels.to(x.device, torch.int64, non_blocking=True))

    def shards(self, width: int) -> list[Tensor]:
        """[n, width] each."""
        pad = torch.nn.functional.pad
        return [x if x.shape[1] == width else pad(x, (0, width - x.shape[1])) for x in self._shards]

    @property
    def labels(self) -> Tensor:
        return torch.cat(self._labels) if self._labels else torch.empty(0, dtype=torch.int64)

    def facts(self, facts: Facts) -> dict[str, Any]:
        """The fields of a result of these embeddings."""
        return facts.of_embedding() | ({"pooling": "flattened"} if self._flattens else {})


class ArmCollector:
    """ARM: every layer's output goes into the histograms of its side."""

    reads_old = True
    embeddings: tuple[Side, ...] = ()
    flattened = vectors = False

    def __init__(
        self,
        paired: bool,
        per: str = "layer",
        pool: bool = True,
        scale: str | None = None,
        max_bytes: int = 2**30,
        exact: bool = False,
    ) -> None:
        self.acc = Arm(per=per, pool=pool, scale=scale, max_bytes=max_bytes, exact=exact)
        self.pooled, self.raw = pool, not pool

    def add_pooled(self, layers: Mapping[str, Tensor], side: Side) -> None:
        self._update(layers, side)

    def add_raw(self, layer: str, features: Features, side: Side) -> None:
        self._update({layer: features.x}, side, features.mask)

    def discard(self, layers: Iterable[str]) -> None:
        self.acc.discard(layers)

    def _update(self, layers: Mapping[str, Tensor], side: Side, mask: Tensor | None = None) -> None:
        try:
            self.acc.update(layers, side, mask)
        except (ValueError, TypeError) as error:
            raise of_side(error, side, nonfinite=BY_HAND.format("Arm")) from error

    def fork(self) -> ArmCollector:
        """One that goes on from here; the histograms are copied."""
        other = copy.copy(self)
        options = ("per", "pool", "scale", "max_bytes", "exact")
        other.acc = Arm(**{name: getattr(self.acc, name) for name in options})
        other.load(self.state())
        return other

    def reduce(self, ranks: Ranks) -> None:
        """Makes it that of the data of all ranks."""
        ranks.all_reduce(self.acc)

    def state(self) -> dict[str, Tensor]:
        return self.acc.state_dict()

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.acc.load_state_dict(state)

    def result(self, facts: Facts) -> ArmResult:
        pooling = facts.layer_pooling if self.acc.pool else "none"
        return with_facts(dataclasses.replace(self.acc.compute(), pooling=pooling), facts)


class PreIndexCollector:
    """PreIndex: every layer's vectors in pairs, and both sides' embeddings for the clusterings."""

    reads_old = True
    embeddings: tuple[Side, ...] = SIDES
    vectors = True
    pooled = raw = False

    def __init__(
        self,
        paired: bool,
        distance: str = "jensen_shannon",
        bins: int = 32,
        ari: str = "new",
        s: float = 0.0,
        s_bar: float = 0.0,
        ranges: str = "own",
        all_bins: Sequence[int] = (16, 32, 64),
        embedding: str = "flattened",
        chance: int = PERMUTATIONS,
        start: str = "same-rows",
    ) -> None:
        expect_pairs(paired, "preindex")
        check_choice(embedding, EMBEDDINGS, "embedding")
        self.options = PreIndexOptions(
            distance, bins, ari, s, s_bar, ranges, tuple(all_bins), chance, start
        )
        self.acc = RepresentationDistance(self.options.all_bins, shared=self.options.shared)
        self.flattened = embedding == "flattened"
        self.kept = {side: KeptEmbeddings(self.flattened) for side in SIDES}

    def add_embedding(self, x: Tensor, labels: Tensor, side: Side, outputs: int | None) -> None:
        self.kept[side].add(x, labels)

    def add_vectors(
        self, old: Mapping[str, Tensor], new: Mapping[str, Tensor], masks: Masks
    ) -> None:
        add_pairs(self.acc, old, new, masks)

    def result(self, facts: Facts) -> PreIndexResult:
        old, new = (self.kept[side] for side in SIDES)
        width = max(old.width, new.width) if self.flattened else None
        shards = [kept.shards(width or kept.width) for kept in (old, new)]
        result = combine(self.options, self.acc.compute(), *shards, new.labels, "pooled")
        return with_facts(dataclasses.replace(result, **new.facts(facts)), facts)


class RepresentationDistanceCollector:
    """p alone: every layer's vectors in pairs."""

    reads_old = True
    embeddings: tuple[Side, ...] = ()
    vectors = True
    flattened = pooled = raw = False

    def __init__(
        self,
        paired: bool,
        distance: str = "jensen_shannon",
        bins: int = 32,
        ranges: str = "own",
        all_bins: Sequence[int] = (16, 32, 64),
    ) -> None:
        expect_pairs(paired, "representation_distance")
        self.options = PreIndexOptions(distance, bins, ranges=ranges, all_bins=tuple(all_bins))
        self.acc = RepresentationDistance(self.options.all_bins, shared=self.options.shared)

    def add_vectors(
        self, old: Mapping[str, Tensor], new: Mapping[str, Tensor], masks: Masks
    ) -> None:
        add_pairs(self.acc, old, new, masks)

    def result(self, facts: Facts) -> PairDistanceResult:
        chosen = PairDistanceResult.of(self.acc.compute(), self.options)
        return with_facts(dataclasses.replace(chosen, pooling=facts.layer_pooling), facts)


class LinearResidualCollector:
    """linear_residual: embeddings of both sides go into one accumulator; where normalization was
    adapted, those of the new side under the model as it is come by a pass of their own."""

    reads_old = True
    embeddings: tuple[Side, ...] = SIDES
    flattened = vectors = pooled = raw = False

    def __init__(self, paired: bool) -> None:
        self.paired = paired
        self.adapted = False
        self.acc: LinearResidual | None = None

    def add_embedding(self, x: Tensor, labels: Tensor, side: Side, outputs: int | None) -> None:
        self._add(x, labels, "adapted" if self.adapted and side == "new" else side, outputs)

    def unadapted(self) -> UnadaptedSide:
        """What takes the new side's embeddings under the model as it is; new ones are adapted."""
        self.adapted = True
        return UnadaptedSide(self)

    def _add(self, x: Tensor, labels: Tensor, side: Any, outputs: int | None) -> None:
        if self.acc is None:
            self.acc = LinearResidual(outputs or label_bound(labels), adapted=self.adapted)
        if outputs is None:
            self.acc.grow(label_bound(labels))
        try:
            self.acc.update(x, labels.to(x.device, non_blocking=True), side)
        except (ValueError, TypeError) as error:
            name = "new" if side == "adapted" else side
            raise of_side(error, name) from error

    def check_classes(self, rows: Mapping[str, NDArray[np.int64]]) -> None:
        """Raises as result() would for the rows [C] of each class on both sides."""
        expect_both_sides(rows, BY_HAND.format("LinearResidual"))

    def result(self, facts: Facts) -> LinearResidualResult:
        assert self.acc is not None  # every side had a batch
        self.acc.distance.paired = self.paired
        try:
            result = self.acc._compute(ignore_unseen=True)
        except ValueError as error:
            hint = BY_HAND.format("LinearResidual")
            raise ValueError(without_hint(str(error), hint)) from error
        return dataclasses.replace(result, **facts.of_embedding(), **facts.of_accuracy())


@dataclass
class UnadaptedSide:
    """The collector of the pass over the new side under the model as it is."""

    owner: LinearResidualCollector
    embeddings: tuple[Side, ...] = ("new",)
    flattened = vectors = pooled = raw = False

    def add_embedding(self, x: Tensor, labels: Tensor, side: Side, outputs: int | None) -> None:
        self.owner._add(x, labels, "new", outputs)


def expect_pairs(paired: bool, index: str) -> None:
    """Raises ValueError where the sides are not paired."""
    if not paired:
        raise ValueError(
            f"paired: expected True, or shift=, for {index!r}, which compares every sample with "
            "itself, found False"
        )


def with_facts(result: Any, facts: Facts) -> Any:
    """The result of an index that reads layers, with what is known of the run."""
    return dataclasses.replace(result, skipped=dict(facts.skipped), **facts.of_accuracy())


Masks = tuple[Tensor | None, Tensor | None]


def add_pairs(
    acc: RepresentationDistance,
    old: Mapping[str, Tensor],
    new: Mapping[str, Tensor],
    masks: Masks,
) -> None:
    """A batch of pairs of every layer's vectors; masks of the old and of the new tokens."""
    try:
        acc.update(paired_layers(old, new), *masks)
    except (ValueError, TypeError) as error:
        hint = BY_HAND.format("RepresentationDistance")
        raise type(error)(without_hint(str(error), nonfinite=hint)) from error


# Hints of this place, where those of the accumulators name arguments that score does not have.
MISSING_OPTION = " (options={'resque_dist': {'missing': 'skip'}} leaves such classes out)"
BY_HAND = " ({} can leave such out of features that are taken by hand)"


def expect_both_sides(rows: Mapping[str, NDArray[np.int64]], hint: str) -> None:
    """ValueError for classes with rows on one side alone."""
    there = [rows[side] > 0 for side in SIDES]
    missing = there[0] != there[1]
    if missing.any():
        try:
            raise_for_missing(missing, rows, {})
        except ValueError as error:
            raise ValueError(without_hint(str(error), hint)) from error


def without_hint(message: str, missing: str = "", nonfinite: str = "") -> str:
    """The message with these hints in place of those at arguments that score does not have."""
    for argument, hint in (("missing", missing), ("nonfinite", nonfinite)):
        before, found, _ = message.partition(f" ({argument}=")
        if found:
            return before + hint
    return message


def of_side(error: Exception, side: str, **hints: str) -> Exception:
    """The same error, which says which side it is of."""
    if hasattr(error, "row"):  # see row_error
        return row_error(f"{side}: {without_hint(error.template, **hints)}", error.row)
    return type(error)(f"{side}: {without_hint(str(error), **hints)}")


def label_bound(labels: Tensor) -> int:
    return max(int(labels.max()) + 1, 1) if len(labels) else 1


COLLECTORS: Mapping[str, Any] = {
    "resque_dist": ResqueDistCollector,
    "resque_task": ResqueTaskCollector,
    "preindex": PreIndexCollector,
    "arm": ArmCollector,
    "linear_residual": LinearResidualCollector,
    "representation_distance": RepresentationDistanceCollector,
}


def option_names(index: str) -> list[str]:
    return [k for k in inspect.signature(COLLECTORS[index]).parameters if k != "paired"]


def make_collectors(
    names: Sequence[str], options: Mapping[str, Mapping[str, Any]] | None, paired: bool
) -> dict[str, Any]:
    """A collector for each index.

    Raises:
        TypeError: options that are no mapping, or that an index does not have.
        ValueError: options of an index that is not asked for.
    """
    options = {} if options is None else options
    if not isinstance(options, Mapping) or not all(
        isinstance(value, Mapping) for value in options.values()
    ):
        raise TypeError(f"options: expected a mapping of mappings by index, found {options!r}")
    unknown = [name for name in options if name not in names]
    if unknown:
        raise ValueError(
            f"options: expected names among the indices {tuple(names)}, found {unknown[0]!r}"
        )
    collectors = {}
    for name in names:
        given, make = options.get(name, {}), COLLECTORS[name]
        known = option_names(name)
        wrong = [k for k in given if k not in known]
        if wrong:
            raise TypeError(
                f"options: expected for {name!r} {', '.join(known) or 'none'}, found {wrong[0]!r}"
            )
        collectors[name] = make(paired=paired, **given)
    return collectors
