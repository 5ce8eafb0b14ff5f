"""RESQUE_dist in `score`: embeddings of both sides go into one accumulator."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from resque_ext.data.checks import check_choice
from resque_ext.indices._hints import (
    BY_HAND,
    MISSING_OPTION,
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
from resque_ext.indices.resque_dist import ResqueDist, ResqueDistResult, default_blocks

if TYPE_CHECKING:
    from resque_ext.distributed import Ranks


class ResqueDistIndex(Index):
    """RESQUE_dist.

    Args:
        missing: "error", or "skip" to leave out classes without an angle.
    """

    reads = IndexReads(embeddings=SIDES, labels=True)
    has_interval = True

    def __init__(self, missing: str = "error") -> None:
        check_choice(missing, ("error", "skip"), "missing")
        self.missing = missing
        self.acc: ResqueDist | None = None
        self._blocks: int | None = None  # None: as many as the classes of the first batch ask for

    def update(self, batch: EmbeddingBatch) -> None:
        labels, outputs = batch.labels, batch.outputs
        assert labels is not None  # as `reads` says
        if self.acc is None:
            self._begin(outputs or label_bound(labels), None if outputs else self._blocks)
        assert self.acc is not None
        if outputs is None:
            self.acc.grow(label_bound(labels))
        x = batch.x
        try:
            self.acc.update(x, labels.to(x.device, non_blocking=True), batch.side)
        except (ValueError, TypeError) as error:
            raise of_side(error, batch.side, nonfinite=BY_HAND.format("ResqueDist")) from error

    def _begin(self, classes: int, blocks: int | None) -> None:
        self.acc = ResqueDist(classes, missing=self.missing, blocks=blocks)

    def fork(self) -> ResqueDistIndex:
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
            self._begin(theirs.num_classes, theirs.blocks)
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
            acc = ResqueDist(
                int(state["num_classes"]), missing=self.missing, blocks=int(state["blocks"])
            )
            acc.load_state_dict(state)
        self.acc = acc

    def expect_ranks(self) -> None:
        # Of unknown classes every rank's first batch may show others, but all need as many blocks.
        self._blocks = default_blocks(1)

    def reduce(self, ranks: Ranks) -> None:
        """By sums, so that every rank has as many bytes to send, however many rows it read."""
        mine = None if self.acc is None else [self.acc.num_classes, self.acc.blocks]
        known = [each for each in ranks.gather(mine) if each is not None]
        if not known:
            return
        if self.acc is None:
            self._begin(*known[0])
        ranks.all_reduce(self.acc)

    def check_classes(self, rows: Mapping[str, NDArray[np.int64]]) -> None:
        if self.missing == "error":
            expect_both_sides(rows, MISSING_OPTION)

    def compute(self, facts: Facts) -> ResqueDistResult:
        acc = self._with_data()
        acc.paired = self.paired
        try:
            result = acc.compute(ignore_unseen=True)
        except ValueError as error:
            raise ValueError(without_hint(str(error), MISSING_OPTION)) from error
        return dataclasses.replace(result, **facts.of_embedding(), **facts.of_accuracy())

    def _with_data(self) -> ResqueDist:
        if self.acc is None:
            raise ValueError("update: expected at least one batch before compute(), found none")
        return self.acc

    def interval(self, confidence: float, ended: bool) -> tuple[float, float, float] | None:
        # Before every class was seen, the mean over classes is another one.
        if self.acc is None or not (self.acc.complete or (ended and self.missing == "skip")):
            return None
        found = self.acc.debiased(confidence)
        if found is None:
            return None
        value = float(found.value)
        return value, float(min(found.low, value)), float(max(found.high, value))

    def memory(self, pairs: int, rows: int | None = None) -> int:
        """The old side's sums are shared."""
        state: dict[str, Any] = self.state_dict()
        sides = [sum(x.nbytes for k, x in state.items() if k.startswith(f"{s}.")) for s in SIDES]
        return sides[0] + pairs * sides[1]
