"""What indices share that stream into one accumulator of this package, `acc`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from resque_ext.errors import ArgumentError
from resque_ext.indices._hints import label_bound, reworded
from resque_ext.indices.base import EmbeddingBatch, Index, expect_kind
from resque_ext.indices.resque_dist import default_blocks


class AccumulatorIndex(Index):
    """An index whose state is that of its accumulator, which is there from the start."""

    acc: Any

    def merge(self, other: Index) -> None:
        expect_kind(other, self)
        self.acc.merge(other.acc)

    def state_dict(self) -> dict[str, Tensor]:
        return self.acc.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.acc.load_state_dict(state)


class ClassSumsIndex(Index):
    """An index of sums by class, whose accumulator begins with the classes of the first batch."""

    acc: Any = None
    hints: ClassVar[Mapping[str, str]] = {}  # of errors: see `reworded`
    _blocks: int | None = None  # None: as many as the classes of the first batch ask for

    @abstractmethod
    def begun(self, classes: int, blocks: int | None) -> Any:
        """An accumulator without data."""

    @abstractmethod
    def begun_as(self, state: Mapping[str, Tensor]) -> Any:
        """An accumulator without data, which this state fits."""

    def side_of(self, batch: EmbeddingBatch) -> str:
        """The accumulator's side that a batch belongs to."""
        return batch.side

    def update(self, batch: EmbeddingBatch) -> None:
        labels, outputs = batch.labels, batch.outputs
        assert labels is not None  # as `reads` says
        if self.acc is None:
            self.acc = self.begun(outputs or label_bound(labels), None if outputs else self._blocks)
        if outputs is None:
            self.acc.grow(label_bound(labels))
        x = batch.x
        try:
            self.acc.update(x, labels.to(x.device, non_blocking=True), self.side_of(batch))
        except (ValueError, TypeError) as error:
            raise reworded(error, batch.side, **self.hints) from error

    def fork(self) -> Any:
        """One that goes on from here with a new side of its own; the old side's sums are shared."""
        other = self.fresh()
        other._blocks = self._blocks
        other.acc = None if self.acc is None else self.acc.fork()
        return other

    def merge(self, other: Index) -> None:
        expect_kind(other, self)
        theirs = other.acc
        if theirs is None:
            return
        if self.acc is None:
            self.acc = self.begun(theirs.num_classes, theirs.blocks)
        self.acc.grow(theirs.num_classes)
        if theirs.num_classes < self.acc.num_classes:
            theirs = theirs.fork()
            theirs.grow(self.acc.num_classes)
        self.acc.merge(theirs)

    def state_dict(self) -> dict[str, Tensor]:
        return {} if self.acc is None else self.acc.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        acc = None
        if state:
            acc = self.begun_as(state)
            acc.load_state_dict(state)
        self.acc = acc

    def expect_ranks(self) -> None:
        # Of unknown classes every rank's first batch may show others, but all need as many blocks.
        self._blocks = default_blocks(1)

    def with_data(self) -> Any:
        """The accumulator, which has to have begun."""
        if self.acc is None:
            raise ArgumentError("update", "at least one batch before compute()", "none")
        return self.acc
