"""Forward passes over two sides of data, and what is read on the way, handed to collectors.

One pass a side, or both sides batch by batch where rows are paired. Nothing here knows what an
index does with what it gets.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from resque_ext._inputs import check_features, check_labels, describe
from resque_ext.indices.resque_dist import SIDES, Side
from resque_ext.layers import ChosenLayers, LayersReader, drop_narrow
from resque_ext.observe import (
    LayerError,
    LayerReader,
    copied,
    evaluating,
    forward,
    no_hooks_left,
    to_device,
)
from resque_ext.ops import spatial_mean

Batch = tuple[Any, Tensor]
Vectors = dict[str, Tensor]


class Collector(Protocol):
    """What an index takes from the passes; it says so by the flags, for what is not asked for is
    not made.

    Attributes:
        embeddings: the sides whose embedding it takes.
        vectors: it takes every layer's vector of both sides of a pair.
        pooled: it takes every layer's pooled output of either side.
        raw: it takes every layer's output of either side as it is, inside the forward pass.
    """

    embeddings: Sequence[Side]
    vectors: bool
    pooled: bool
    raw: bool

    def add_embedding(self, x: Tensor, labels: Tensor, side: Side, outputs: int | None) -> None: ...
    def add_vectors(self, old: Vectors, new: Vectors) -> None: ...
    def add_pooled(self, layers: Vectors, side: Side) -> None: ...
    def add_raw(self, layer: str, x: Tensor, side: Side) -> None: ...
    def discard(self, layers: set[str]) -> None: ...


class Passes:
    """The passes over both sides.

    Attributes:
        layer_name: the embedding's layer, None until a pass has run.
        layer_names: the layers read, in the order in which they ran; `skipped` has the others.
        outputs: K of a classifier's output [N, K], None for other models.
    """

    def __init__(
        self,
        collectors: Sequence[Any],
        layer: str | None,
        choose: Callable[[nn.Module], ChosenLayers],
        batch_adapter: Callable[[Any], tuple[Any, Any]] | None,
        device: torch.device,
        progress: bool,
        classifier: bool = True,
        watch: Callable[[Iterator[Any]], Iterator[Any]] | None = None,
    ) -> None:
        self.collectors, self.layer, self.choose = collectors, layer, choose
        self.adapter, self.device, self.progress = batch_adapter, device, progress
        self.classifier = classifier  # labels are those of the model's own classes
        self.watch = watch  # sees the batches of a share go by; a share may be empty
        self.layer_name: str | None = None  # what the first side read, for the second to read too
        self.layer_names: tuple[str, ...] = ()
        self.skipped: dict[str, str] = {}
        self.outputs: int | None = None
        self.kept: set[str] | None = None  # None: not known yet, or all
        self._started = False
        self._correct: dict[str, Tensor | int] = dict.fromkeys(SIDES, 0)
        self._rows = dict.fromkeys(SIDES, 0)

    @property
    def reads_layers(self) -> bool:
        return any(c.vectors or c.pooled or c.raw for c in self.collectors)

    @property
    def reads_vectors(self) -> bool:
        return any(c.vectors for c in self.collectors)

    @property
    def reads_pooled(self) -> bool:
        return any(c.pooled for c in self.collectors)

    def accuracy(self, side: Side) -> float | None:
        """The share of the side's labels that the model gave, None where it is no classifier."""
        if self.outputs is None or not self._rows[side]:
            return None
        return float(self._correct[side]) / self._rows[side]

    def fork(self, collectors: Sequence[Any]) -> Passes:
        """Passes that go on from here with other collectors; what they see stays with them."""
        other = copy.copy(self)
        other.collectors = collectors
        other.skipped, other._correct = dict(self.skipped), dict(self._correct)
        other._rows = dict(self._rows)
        return other

    def facts(self) -> dict[str, Any]:
        """What a pass has found of the model, as plain values: `restore` goes on from there."""
        return {
            "layer_name": self.layer_name,
            "layer_names": list(self.layer_names),
            "skipped": dict(self.skipped),
            "outputs": self.outputs,
            "kept": None if self.kept is None else sorted(self.kept),
            "correct": {side: int(n) for side, n in self._correct.items()},
            "rows": dict(self._rows),
        }

    def restore(self, facts: Mapping[str, Any]) -> None:
        """As after the passes that gave `facts`."""
        self.layer_name, self.outputs = facts["layer_name"], facts["outputs"]
        self.layer_names, self.skipped = tuple(facts["layer_names"]), dict(facts["skipped"])
        self.kept = None if facts["kept"] is None else set(facts["kept"])
        self._correct, self._rows = dict(facts["correct"]), dict(facts["rows"])
        self._started = True

    def batches(self, data: Any, side: Side, what: str) -> Iterator[Batch]:
        """The side's batches on the device, the labels left where they are."""
        count = 0
        if not hasattr(data, "__iter__") and not hasattr(data, "__getitem__"):
            raise TypeError(f"{side}: expected an iterable of batches, found {describe(data)}")
        iterator = iter(data) if self.watch is None else self.watch(iter(data))
        try:
            total = len(data)
        except TypeError:  # a generator, or a DataLoader of an IterableDataset
            total = None
        with tqdm(
            total=total, desc=f"{side} {what}", disable=not self.progress, leave=False
        ) as bar:
            for batch in iterator:
                inputs, labels = self._unpack(batch, side)
                yield to_device(inputs, self.device), labels
                count += 1
                bar.update()
        if count == 0 and self.watch is None:
            raise ValueError(f"{side}: expected at least one batch, found none")

    def _unpack(self, batch: Any, side: Side) -> Batch:
        if self.adapter is not None:
            batch = self.adapter(batch)
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            found = describe(batch)
            if isinstance(batch, (tuple, list)):
                found = f"{type(batch).__name__} of ({'; '.join(map(describe, batch))})"
            elif isinstance(batch, dict):
                found = f"dict of ({'; '.join(f'{k}: {describe(v)}' for k, v in batch.items())})"
            raise TypeError(
                f"{side}: expected batches (inputs, labels), found {found}; batch_adapter= turns "
                "any batch into such a pair"
            )
        inputs, labels = batch
        return inputs, check_labels(labels, f"{side} labels")

    def side(
        self,
        model: nn.Module,
        data: Any,
        side: Side,
        shift: Callable[[Any], Any] | None = None,
    ) -> None:
        """One forward pass over one side, its inputs shifted where a shift is given."""
        with evaluating(model):
            reader = _Reader(self, model)
            with no_hooks_left(reader.attach()):
                for inputs, labels in self.batches(data, side, "side"):
                    reader.run(inputs if shift is None else shift(copied(inputs)), labels, side)
        self._finish(reader)

    def embeddings(self, data: Any, side: Side) -> None:
        """One side whose batches are embeddings already: nothing is run."""
        for x, labels in self.batches(data, side, "side"):
            check_features(x, f"{side} embeddings")
            for collector in self.collectors:
                if side in collector.embeddings:
                    collector.add_embedding(x, labels, side, self.outputs)
            self._rows[side] += len(labels)

    def shifted(
        self, old_model: nn.Module, new_model: nn.Module, data: Any, shift: Callable[[Any], Any]
    ) -> None:
        """Each old batch as it is and shifted, so that the sides are paired for certain."""
        batches = self.batches(data, "old", "and new side")
        self._pairs(
            old_model, new_model, ((b, lambda b=b: (shift(copied(b[0])), b[1])) for b in batches)
        )

    def paired(self, old_model: nn.Module, new_model: nn.Module, old: Any, new: Any) -> None:
        """Both sides batch by batch, each old batch with the new one that has the same rows."""
        self._pairs(old_model, new_model, self._zipped(old, new))

    def _zipped(self, old: Any, new: Any) -> Iterator[tuple[Batch, Callable[[], Batch]]]:
        olds, news = self.batches(old, "old", "and new side"), self.batches(new, "new", "side")
        for i, before in enumerate(olds):
            after = next(news, None)
            if after is None:
                raise ValueError(
                    f"old, new: expected as many batches on both sides of pairs, found {i} new "
                    "ones and more old ones"
                )
            if before[1].tolist() != after[1].tolist():
                raise ValueError(
                    "old, new: expected the same labels in the same order in batches of pairs, "
                    f"found others in batch {i}: old ({describe(before[1])}) and new "
                    f"({describe(after[1])})"
                )
            yield before, lambda after=after: after
        if next(news, None) is not None:
            raise ValueError(
                "old, new: expected as many batches on both sides of pairs, found more new ones"
            )

    def _pairs(
        self,
        old_model: nn.Module,
        new_model: nn.Module,
        pairs: Iterable[tuple[Batch, Callable[[], Batch]]],
    ) -> None:
        versions = self.reads_vectors
        with ExitStack() as stack:
            for model in {old_model: None, new_model: None}:
                stack.enter_context(evaluating(model, versions))
            readers = {"old": _Reader(self, old_model)}
            same = new_model is old_model
            readers["new"] = readers["old"] if same else _Reader(self, new_model)
            handles = [h for reader in dict.fromkeys(readers.values()) for h in reader.attach()]
            stack.enter_context(no_hooks_left(handles))
            for old, make_new in pairs:
                before = readers["old"].run(*old, "old")
                after = readers["new"].run(*make_new(), "new")
                self._add_vectors(before, after)
        self._finish(readers["old"])

    def _add_vectors(self, old: Vectors, new: Vectors) -> None:
        if not self.reads_vectors:
            return
        if old.keys() != new.keys():
            name = sorted(old.keys() ^ new.keys())[0]
            raise LayerError(
                f"layers: expected every layer to run as often on both sides, found {name!r} on "
                f"the {'old' if name in old else 'new'} side alone"
            )
        for collector in self.collectors:
            if collector.vectors:
                collector.add_vectors(old, new)

    def start(self, logits: Any, labels: Tensor) -> None:
        """At the end of the first forward pass: whether the model is a classifier."""
        if not self._started and self.classifier:
            self.outputs = classifier_outputs(logits, labels)
        self._started = True

    def keep(self, reader: LayersReader) -> set[str]:
        """The layers that count; known once the classes are."""
        if self.kept is None and self.outputs is not None:
            self.kept = drop_narrow(reader, self.outputs)
            for collector in self.collectors:
                if collector.raw:  # what the first pass has given it already
                    collector.discard(set(reader.names) - self.kept)
        return set(reader.names) if self.kept is None else self.kept

    def count(self, logits: Any, labels: Tensor, side: Side) -> None:
        if self.outputs is not None:
            hits = logits.argmax(1) == labels.to(logits.device, non_blocking=True)
            self._correct[side] = self._correct[side] + hits.sum()
        self._rows[side] += len(labels)

    def _finish(self, reader: _Reader) -> None:
        if not reader.ran:  # of an empty share, which shows nothing
            return
        if reader.embedding is not None:
            self.layer_name = reader.embedding.name
        if reader.layers is not None:
            kept = self.keep(reader.layers)
            self.layer_names = tuple(name for name in reader.layers.names if name in kept)
            # The width rule is applied, and so noted, on the first side.
            self.skipped = {**reader.layers.skipped, **self.skipped}


class _Reader:
    """Runs one model and hands on what its layers give."""

    def __init__(self, passes: Passes, model: nn.Module) -> None:
        self.passes, self.model = passes, model
        wanted = any(c.embeddings for c in passes.collectors)
        self.embedding = LayerReader(model, passes.layer_name or passes.layer) if wanted else None
        self.layers = LayersReader(passes.choose(model)) if passes.reads_layers else None
        self._copy: set[str] | None = None  # layers that are changed in place later on
        self.ran = False

    def attach(self) -> list[Any]:
        handles = self.embedding.attach() if self.embedding is not None else []
        return handles + (self.layers.attach() if self.layers is not None else [])

    def run(self, inputs: Any, labels: Tensor, side: Side) -> Vectors:
        """One batch; returns every layer's vector where somebody takes them."""
        passes, self.ran = self.passes, True
        held: list[Tensor] = []
        pooled: Vectors = {}
        vectors: Vectors = {}
        watched: dict[str, tuple[Tensor, int]] = {}

        def take_embedding(x: Tensor) -> None:
            if passes._started:
                self._add_embedding(x, labels, side)
            else:
                # A copy, because the number of classes is known at the end of the pass only.
                held.append(x.clone())

        def take_layer(name: str, x: Tensor) -> None:
            if passes.kept is not None and name not in passes.kept:
                return
            for collector in passes.collectors:
                if collector.raw:
                    collector.add_raw(name, x, side)
            mean = None
            if passes.reads_pooled or (passes.reads_vectors and x.dim() == 4):
                # A copy where there is nothing to average: what comes after may change it in place.
                mean = pooled[name] = x.clone() if x.dim() == 2 else spatial_mean(x)
            if not passes.reads_vectors:
                return
            if x.dim() != 3:
                vectors[name] = x.clone() if mean is None else mean
                return
            copy = self._copy is None or name in self._copy
            vectors[name] = (x.clone() if copy else x).flatten(1)
            watched[name] = (x, x._version)

        def run_model() -> Any:
            return forward(self.model, inputs)

        def run_layers() -> Any:
            if self.layers is None:
                return run_model()
            return self.layers.run(run_model, len(labels), take_layer)

        if self.embedding is None or side not in self._embedding_sides:
            output = run_layers()
        else:
            output = self.embedding.run(run_layers, take_embedding)
        self._check_versions(watched)
        logits = getattr(output, "logits", output)
        passes.start(logits, labels)
        for x in held:
            self._add_embedding(x, labels, side)
        if self.layers is not None:
            kept = passes.keep(self.layers)
            for collector in passes.collectors:
                if collector.pooled:
                    collector.add_pooled({k: v for k, v in pooled.items() if k in kept}, side)
            vectors = {k: v for k, v in vectors.items() if k in kept}
        passes.count(logits, labels, side)
        return vectors

    @property
    def _embedding_sides(self) -> set[Side]:
        return {side for c in self.passes.collectors for side in c.embeddings}

    def _add_embedding(self, x: Tensor, labels: Tensor, side: Side) -> None:
        for collector in self.passes.collectors:
            if side in collector.embeddings:
                collector.add_embedding(x, labels, side, self.passes.outputs)

    def _check_versions(self, watched: dict[str, tuple[Tensor, int]]) -> None:
        """Which layers have to be copied because the model changes them in place after the hook.

        Token outputs are held, not copied, until the other side's are there: a ViT's fill most of
        its memory. Only the first batch is copied in any case, and shows which change.
        """
        if not watched:
            return
        changed = {name for name, (x, version) in watched.items() if x._version != version}
        if self._copy is None:
            self._copy = changed
        elif not changed <= self._copy:
            raise LayerError(
                "layers: expected the same layers to be changed in place in every batch, found "
                f"{sorted(changed - self._copy)[0]!r} changed in a later one alone"
            )


def classifier_outputs(output: Any, labels: Tensor) -> int | None:
    """K where the output reads as scores of K classes, one row a sample."""
    if not isinstance(output, Tensor) or output.dim() != 2 or output.shape[1] < 2:
        return None
    return output.shape[1] if output.shape[0] == len(labels) else None
