"""Forward passes over two sides of data, and what is read on the way, handed to the indices.

One pass a side, or both sides batch by batch where rows are paired. Nothing here knows what an
index does with what it gets.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from resque_ext.data.checks import check_features, check_labels, describe
from resque_ext.errors import ArgumentError, ArgumentTypeError, InputError
from resque_ext.indices.base import (
    SIDES,
    EmbeddingBatch,
    Facts,
    Index,
    LayerBatch,
    PairBatch,
    Side,
)
from resque_ext.model.batch import class_labels, is_one_batch, labelled, rows_of, unpack
from resque_ext.model.embedding import EmbeddingReader
from resque_ext.model.head import Head, HeadFinder
from resque_ext.model.hooks import (
    LayerError,
    copied,
    evaluating,
    forward,
    no_hooks_left,
    to_device,
)
from resque_ext.model.layers import LayersReader
from resque_ext.model.layout import Layouts
from resque_ext.model.order import Order
from resque_ext.model.outputs import at_path
from resque_ext.model.pooling import Features, Pooling, together
from resque_ext.model.reads import Reads

Batch = tuple[Any, Any]
Vectors = dict[str, Tensor]
Masks = dict[str, Tensor]
PARTS = ("embedding", "layers")  # whose positions are pooled
PREDICTED = "labels='predicted' takes the model's own on the new side; "


class Passes:
    """The passes over both sides.

    Args:
        indices: what takes part; each is given what it `reads`.
        reads: how batches and layers are read.
        device: where inputs go.
        progress: show a bar on stderr.
        classifier: labels are those of the model's own classes.
        watch: sees the batches of a share go by; a share may be empty.

    Attributes:
        layer_name: the embedding's layer, None until a pass has run.
        layer_names: the layers read, in the order in which they ran; `skipped` has the others.
        head: what gives the model's output, None until a pass has run.
        pooling: what was done to the positions of the embedding, and of the layers.
    """

    def __init__(
        self,
        indices: Sequence[Index],
        reads: Reads,
        device: torch.device,
        progress: bool,
        classifier: bool = True,
        watch: Callable[[Iterator[Any]], Iterator[Any]] | None = None,
    ) -> None:
        self.indices, self.reads = indices, reads
        self.device, self.progress = device, progress
        self.classifier = classifier or reads.labels == "predicted"
        self.watch = watch
        self.layer_name: str | None = None  # what the first side read, for the second to read too
        self.layer_names: tuple[str, ...] = ()
        self.skipped: dict[str, str] = {}
        self.head: Head | None = None
        self.token: bool | None = None  # the embedding is the token that the head reads
        self.pooling = dict.fromkeys(PARTS, "")
        self.kept: set[str] | None = None  # None: not known yet, or all
        self._correct: dict[str, Tensor | int] = dict.fromkeys(SIDES, 0)
        self._rows = dict.fromkeys(SIDES, 0)
        # Rows whose labels the model has an output for.
        self._judged: dict[str, Tensor | int] = dict.fromkeys(SIDES, 0)

    @property
    def outputs(self) -> int | None:
        """K of a classifier's output [N, K], None for other models."""
        return self.head.classes if self.head is not None and self.classifier else None

    @property
    def labels(self) -> str | None:
        """Where the labels are from, None where none are read."""
        return self.reads.labels if any(i.reads.labels for i in self.indices) else None

    @property
    def reads_layers(self) -> bool:
        return any(i.reads.layers for i in self.indices)

    @property
    def reads_pairs(self) -> bool:
        return any(i.reads.layers == "paired" for i in self.indices)

    @property
    def reads_pooled(self) -> bool:
        return any(i.reads.layers == "pooled" for i in self.indices)

    def accuracy(self, side: Side) -> float | None:
        """The share of the side's labels that the model gave, None where it is no classifier."""
        judged = int(self._judged[side])
        return float(self._correct[side]) / judged if self.outputs and judged else None

    def fork(self, indices: Sequence[Index]) -> Passes:
        """Passes that go on from here with other indices; what they see stays with them."""
        other = copy.copy(self)
        other.indices = indices
        other.skipped, other._correct = dict(self.skipped), dict(self._correct)
        other._rows, other._judged = dict(self._rows), dict(self._judged)
        other.pooling = dict(self.pooling)
        return other

    def known(self) -> Facts:
        """What every index's result says of the run."""
        return Facts(
            layer=self.layer_name,
            layers=self.layer_names,
            skipped=self.skipped,
            old_accuracy=self.accuracy("old"),
            new_accuracy=self.accuracy("new"),
            pooling=self.pooling["embedding"] or None,
            layer_pooling=self.pooling["layers"] or ("vector" if self.layer_names else None),
            labels=self.labels,
        )

    def facts(self) -> dict[str, Any]:
        """What a pass has found of the model, as plain values: `restore` goes on from there."""
        return {
            "layer_name": self.layer_name,
            "layer_names": list(self.layer_names),
            "skipped": dict(self.skipped),
            "head": None if self.head is None else asdict(self.head),
            "token": self.token,
            "pooling": dict(self.pooling),
            "kept": None if self.kept is None else sorted(self.kept),
            "correct": {side: int(n) for side, n in self._correct.items()},
            "judged": {side: int(n) for side, n in self._judged.items()},
            "rows": dict(self._rows),
        }

    def restore(self, facts: Mapping[str, Any]) -> None:
        """As after the passes that gave `facts`."""
        self.layer_name, self.token = facts["layer_name"], facts["token"]
        head = facts["head"]
        self.head = None if head is None else Head(**head | {"also": tuple(head["also"])})
        self.pooling = dict(facts["pooling"])
        self.layer_names, self.skipped = tuple(facts["layer_names"]), dict(facts["skipped"])
        self.kept = None if facts["kept"] is None else set(facts["kept"])
        self._correct, self._rows = dict(facts["correct"]), dict(facts["rows"])
        self._judged = dict(facts["judged"])

    def batches(self, data: Any, side: Side, what: str) -> Iterator[Batch]:
        """The side's batches on the device, the labels left where they are."""
        count = 0
        if not hasattr(data, "__iter__") and not hasattr(data, "__getitem__"):
            raise ArgumentTypeError(side, "an iterable of batches", describe(data))
        if is_one_batch(data):
            raise ArgumentTypeError(
                side,
                "batches (inputs, labels)",
                "one batch" if isinstance(data, tuple) else describe(data),
                fix="pass a DataLoader, or a list: [(inputs, labels)]",
            )
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
            raise ArgumentError(side, "at least one batch", "none")

    def _unpack(self, batch: Any, side: Side) -> Batch:
        adapter = self.reads.batch_adapter
        if not self._needs_labels(side):
            inputs, labels = unpack(batch, side, adapter)
            return inputs, class_labels(labels)
        inputs, labels = labelled(batch, side, adapter, PREDICTED)
        try:
            return inputs, check_labels(labels, f"{side} labels")
        except InputError as error:
            more = f"{PREDICTED}batch_adapter= makes others of a batch"
            raise error.but(fix=f"{error.fix}; {more}" if error.fix else more) from None

    def _needs_labels(self, side: Side) -> bool:
        predicts = self.reads.labels == "predicted"
        return not predicts and any(i.reads.labels and side in i.reads.sides for i in self.indices)

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
            with no_hooks_left(reader.handles):
                reader.attach()
                for inputs, labels in self.batches(data, side, "side"):
                    reader.run(inputs if shift is None else shift(copied(inputs)), labels, side)
        self._finish(reader, side)

    def embeddings(self, data: Any, side: Side) -> None:
        """One side whose batches are embeddings already: nothing is run."""
        for x, labels in self.batches(data, side, "side"):
            check_features(x, f"{side} embeddings")
            self.pooling["embedding"] = self.pooling["embedding"] or "given"
            self.add_embedding(Features(x), "mean", labels, side)
            self._rows[side] += len(x)

    def add_embedding(
        self, x: Features, pooling: Pooling, labels: Tensor | None, side: Side
    ) -> None:
        """One batch's, to all indices that read it."""
        mean = pooling in ("auto", "mean")
        made: dict[bool, EmbeddingBatch] = {}
        for index in self.indices:
            if side in index.reads.embeddings:
                whole = index.reads.flattened and mean
                if whole not in made:
                    taken = x.whole() if whole else x.for_sums(pooling)
                    made[whole] = EmbeddingBatch(taken, labels, side, self.outputs)
                index.update(made[whole])

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
                raise ArgumentError(
                    "old, new",
                    "as many batches on both sides of pairs",
                    f"{i} new ones and more old ones",
                )
            labels = [each for each in (before[1], after[1]) if each is not None]
            if len(labels) == 2 and labels[0].tolist() != labels[1].tolist():
                both = f"old ({describe(before[1])}) and new ({describe(after[1])})"
                raise ArgumentError(
                    "old, new",
                    "the same labels in the same order in batches of pairs",
                    f"others in batch {i}: {both}",
                )
            yield before, lambda after=after: after
        if next(news, None) is not None:
            raise ArgumentError(
                "old, new", "as many batches on both sides of pairs", "more new ones"
            )

    def _pairs(
        self,
        old_model: nn.Module,
        new_model: nn.Module,
        pairs: Iterable[tuple[Batch, Callable[[], Batch]]],
    ) -> None:
        versions = self.reads_pairs
        with ExitStack() as stack:
            for model in {old_model: None, new_model: None}:
                stack.enter_context(evaluating(model, versions))
            readers = {"old": _Reader(self, old_model)}
            same = new_model is old_model
            readers["new"] = readers["old"] if same else _Reader(self, new_model)
            for reader in dict.fromkeys(readers.values()):
                stack.enter_context(no_hooks_left(reader.handles))
                reader.attach()
            for old, make_new in pairs:
                before = readers["old"].run(*old, "old")
                after = readers["new"].run(*make_new(), "new")
                self._add_vectors(before, after)
        self._finish(readers["old"], "old")

    def _add_vectors(self, old: tuple[Vectors, Masks], new: tuple[Vectors, Masks]) -> None:
        if not self.reads_pairs:
            return
        (before, masks), (after, new_masks) = old, new
        if before.keys() != after.keys():
            name = sorted(before.keys() ^ after.keys())[0]
            raise LayerError(
                f"layers: expected every layer to run as often on both sides, found {name!r} on "
                f"the {'old' if name in before else 'new'} side alone"
            )
        alike: dict[tuple[int, int], list[str]] = {}  # layers under one pair of masks
        for name in before:
            alike.setdefault((id(masks.get(name)), id(new_masks.get(name))), []).append(name)
        for names in alike.values():
            pair = masks.get(names[0]), new_masks.get(names[0])
            batch = PairBatch({n: before[n] for n in names}, {n: after[n] for n in names}, pair)
            for index in self.indices:
                if index.reads.layers == "paired":
                    index.update(batch)

    def keep(self, reader: LayersReader) -> set[str]:
        """The layers that count; known once the head and its classes are."""
        if self.kept is None and self.head is not None:
            heads = {name for name in (self.head.name, *self.head.also) if name is not None}
            self.kept = reader.drop(heads, self.outputs)
            for index in self.indices:
                if index.reads.layers == "raw":  # what the first pass has given it already
                    index.discard(set(reader.names) - self.kept)
        return set(reader.names) if self.kept is None else self.kept

    def scores(self, output: Any) -> Tensor | None:
        """A classifier's scores [N, K] in its output."""
        if self.head is None or self.head.classes is None:
            return None
        path = self.head.path
        found = at_path(output, path, "output", "model") if path else output
        return found if isinstance(found, Tensor) else None

    def count(self, scores: Tensor | None, labels: Tensor | None, rows: int, side: Side) -> None:
        if self.outputs is not None and labels is not None and scores is not None:
            labels = labels.to(scores.device, non_blocking=True)
            # A label that the model has no output for, such as -100 for rows to ignore, is no miss.
            known = (labels >= 0) & (labels < scores.shape[1])
            self._correct[side] = self._correct[side] + (scores.argmax(1) == labels).sum()
            self._judged[side] = self._judged[side] + known.sum()
        self._rows[side] += rows

    def predicted(self, scores: Tensor | None, side: Side) -> Tensor:
        """The model's own classes, for labels.

        Raises:
            ValueError: the model is no classifier.
        """
        if scores is None:
            raise ArgumentError(
                "labels",
                "'given', because the model is no classifier whose "
                "output [N, K] is its last layer's and could label the "
                f"{side} side",
                "'predicted'",
            )
        return scores.argmax(1)

    def _finish(self, reader: _Reader, side: Side) -> None:
        if not reader.ran:  # of an empty share, which shows nothing
            return
        if self.head is None:
            raise ArgumentError(side, "at least one row", "none")
        if reader.embedding is not None and reader.embedding.name is not None:
            self.layer_name, self.token = reader.embedding.name, reader.embedding.token
            done = self.pooling["embedding"]
            self.pooling["embedding"] = together(done, reader.embedding.done)
        if reader.layers is not None:
            kept = self.keep(reader.layers)
            self.layer_names = tuple(name for name in reader.layers.names if name in kept)
            # What the rule drops is known, and so noted, on the first side.
            self.skipped = {**reader.layers.skipped, **self.skipped}


class _Reader:
    """Runs one model and hands on what its layers give.

    Attributes:
        handles: of its hooks; the caller removes them.
    """

    def __init__(self, passes: Passes, model: nn.Module) -> None:
        self.passes, self.model, reads = passes, model, passes.reads
        layouts, self.order = Layouts(model, reads.channels), Order(model)
        self.embedding: EmbeddingReader | None = None
        if any(i.reads.embeddings for i in passes.indices):
            layer = passes.layer_name or reads.layer
            self.embedding = EmbeddingReader(
                model, layer, reads.pooling, layouts, self.order, passes.token
            )
        wanted = passes.reads_layers
        self.layers = LayersReader(reads.chosen(model), layouts, self.order) if wanted else None
        self._copy: set[str] | None = None  # layers that are changed in place later on
        self.ran = False
        self.handles: list[Any] = []

    def attach(self) -> None:
        for part in (self.embedding, self.layers):
            if part is not None:
                self.handles += part.attach()

    def run(self, inputs: Any, labels: Tensor | None, side: Side) -> tuple[Vectors, Masks]:
        """One batch; returns every layer's vector where somebody takes them, and the masks of those
        that are tokens."""
        passes, self.ran = self.passes, True
        masks = passes.reads.token_masks(inputs, side)
        rows = len(labels) if labels is not None else rows_of(inputs)
        if rows is None:
            raise ArgumentTypeError(
                side, "inputs with a tensor, whose rows are the samples", describe(inputs)
            )
        embedding = self.embedding if side in self._embedding_sides else None
        layers = _LayersOfBatch(self, side)
        predicts = passes.reads.labels == "predicted" and (side == "new" or labels is None)

        def take(x: Features, pooling: Pooling) -> None:
            given = passes.predicted(scores, side) if predicts else labels
            passes.add_embedding(x, pooling, given, side)

        scores: Tensor | None = None
        finder = None
        if passes.head is None or (embedding is not None and not embedding.is_known):
            finder = HeadFinder(self.model)
        if embedding is not None:
            # Held until the end of the pass where classes or labels are known only then.
            now = finder is None and not predicts
            embedding.begin(masks, rows, take if now else None)
        with no_hooks_left([] if finder is None else finder.attach()):
            if self.layers is None:
                output = forward(self.model, inputs)
            else:
                output = self.layers.run(
                    lambda: forward(self.model, inputs), rows, masks, layers.take
                )
        layers.check_versions()
        if finder is not None and not rows:  # nothing to compare, nor to add
            return {}, {}
        if finder is not None:
            head, run = finder.find(output, masks, rows)
            passes.head = passes.head or head
            if embedding is not None and not embedding.is_known:
                self.handles += embedding.find(head, run, finder.last, output)
        scores = passes.scores(output)
        if embedding is not None:
            embedding.stop()
        wrong = self.order.settle(lambda x: forward(self.model, x), inputs, rows)
        if wrong:
            layers.leave_out(wrong)
        if embedding is not None:
            embedding.check_order(wrong)
            assert passes.head is not None
            embedding.end(passes.head, scores, take)
        layers.hand_on()
        passes.count(scores, labels, rows, side)
        return layers.vectors, layers.masks

    @property
    def _embedding_sides(self) -> set[Side]:
        return {side for i in self.passes.indices for side in i.reads.embeddings}


class _LayersOfBatch:
    """The layers of one batch, on their way to the indices.

    Attributes:
        vectors: every layer's, where somebody takes them: [N, D], or tokens [N, T, D] of which a
            mask says which are real.
        masks: of these.
    """

    def __init__(self, reader: _Reader, side: Side) -> None:
        self._reader, self._side = reader, side
        self._pooled: Vectors = {}
        self.vectors: Vectors = {}
        self.masks: Masks = {}
        self._watched: dict[str, tuple[Tensor, int]] = {}

    def take(self, name: str, x: Features) -> None:
        passes = self._reader.passes
        if passes.kept is not None and name not in passes.kept:
            return
        for index in passes.indices:
            if index.reads.layers == "raw":
                index.update(LayerBatch({name: x.x}, self._side, x.mask))
        done, pooling = passes.pooling, passes.reads.pooling
        if x.x.dim() > 2:
            now = x.described(pooling).replace(" (", " (of some layers ")
            done["layers"] = together(done["layers"], now)
        # All tokens side by side, as published, where nothing else is asked for.
        tokens = x.is_tokens and pooling == "auto"
        pooled = None
        if passes.reads_pooled or (passes.reads_pairs and not tokens):
            # A copy where there is nothing to average: what comes after may change it in place.
            pooled = x.x.clone() if x.x.dim() == 2 else x.pooled(pooling)
            if passes.reads_pooled:
                self._pooled[name] = pooled
        if not passes.reads_pairs:
            return
        if not tokens:
            assert pooled is not None
            self.vectors[name] = pooled
            return
        copied = self._reader._copy
        kept = x.x.clone() if copied is None or name in copied else x.x
        self.vectors[name] = kept.flatten(1) if x.mask is None else kept
        if x.mask is not None:
            self.masks[name] = x.mask
        self._watched[name] = (x.x, x.x._version)

    def leave_out(self, wrong: Mapping[str, str]) -> None:
        """Without the layers whose samples turned out not to be in front."""
        reader = self._reader
        if reader.layers is None:
            return
        gone = reader.layers.leave_out(wrong)
        for index in reader.passes.indices:
            if index.reads.layers == "raw":  # what it was given already
                index.discard(gone)
        self._pooled = {k: v for k, v in self._pooled.items() if k not in gone}
        self.vectors = {k: v for k, v in self.vectors.items() if k not in gone}

    def hand_on(self) -> None:
        """At the end of the pass, when it is known which layers count."""
        reader, passes = self._reader, self._reader.passes
        if reader.layers is None:
            return
        kept = passes.keep(reader.layers)
        pooled = {k: v for k, v in self._pooled.items() if k in kept}
        for index in passes.indices:
            if index.reads.layers == "pooled":
                index.update(LayerBatch(pooled, self._side))
        self.vectors = {k: v for k, v in self.vectors.items() if k in kept}

    def check_versions(self) -> None:
        """Which layers have to be copied because the model changes them in place after the hook.

        Token outputs are held, not copied, until the other side's are there: a ViT's fill most of
        its memory. Only the first batch is copied in any case, and shows which change.
        """
        if not self._watched:
            return
        reader = self._reader
        changed = {name for name, (x, version) in self._watched.items() if x._version != version}
        if reader._copy is None:
            reader._copy = changed
        elif not changed <= reader._copy:
            raise LayerError(
                "layers: expected the same layers to be changed in place in every batch, found "
                f"{sorted(changed - reader._copy)[0]!r} changed in a later one alone"
            )
