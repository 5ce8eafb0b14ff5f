"""linear_residual in `score`: embeddings of both sides go into one accumulator."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from resque_ext.indices._hints import (
    BY_HAND,
    expect_both_sides,
    label_bound,
    of_side,
    without_hint,
)
from resque_ext.indices.base import (
    SIDES,
    EmbeddingBatch,
    Facts,
    Index,
    IndexReads,
    expect_kind,
)
from resque_ext.indices.linear_residual import LinearResidual, LinearResidualResult
from resque_ext.indices.resque_dist import default_blocks

_HINT = BY_HAND.format("LinearResidual")


class LinearResidualIndex(Index):
    """linear_residual. Where normalization was adapted, the new side's embeddings under the model
    as it is come by a pass of their own."""

    reads = IndexReads(embeddings=SIDES, labels=True, as_is=True)

    def __init__(self) -> None:
        self.acc: LinearResidual | None = None
        self._blocks: int | None = None  # None: as many as the classes of the first batch ask for

    def update(self, batch: EmbeddingBatch) -> None:
        labels, outputs = batch.labels, batch.outputs
        assert labels is not None  # as `reads` says
        side = batch.side
        if self.acc is None:
            self._begin(outputs or label_bound(labels), None if outputs else self._blocks)
        assert self.acc is not None
        if outputs is None:
            self.acc.grow(label_bound(labels))
        x = batch.x
        here = "adapted" if self.adapted and side == "new" and not batch.as_is else side
        try:
            self.acc.update(x, labels.to(x.device, non_blocking=True), here)
        except (ValueError, TypeError) as error:
            raise of_side(error, side) from error

    def _begin(self, classes: int, blocks: int | None) -> None:
        self.acc = LinearResidual(classes, adapted=self.adapted, blocks=blocks)

    def fork(self) -> LinearResidualIndex:
        """One that goes on from here with a new side of its own; the old side's sums are shared."""
        other = self.fresh()
        other._blocks = self._blocks
        other.acc = None if self.acc is None else self.acc.fork()
        return other

    def merge(self, other: Index) -> None:
        expect_kind(other, self)
        if other.acc is None:
            return
        theirs = other.acc
        if self.acc is None:
            self._begin(theirs.num_classes, theirs.distance.blocks)
        assert self.acc is not None
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
            config = state["config"]
            acc = LinearResidual(int(config[0]), adapted=self.adapted)
            acc.load_state_dict(state)
        self.acc = acc

    def expect_ranks(self) -> None:
        # Of unknown classes every rank's first batch may show others, but all need as many blocks.
        self._blocks = default_blocks(1)

    def check_classes(self, rows: Mapping[str, NDArray[np.int64]]) -> None:
        expect_both_sides(rows, _HINT)

    def compute(self, facts: Facts) -> LinearResidualResult:
        if self.acc is None:
            raise ValueError("update: expected at least one batch before compute(), found none")
        self.acc.distance.paired = self.paired
        try:
            result = self.acc.compute(ignore_unseen=True)
        except ValueError as error:
            raise ValueError(without_hint(str(error), _HINT)) from error
        return dataclasses.replace(result, **facts.of_embedding(), **facts.of_accuracy())
