"""RESQUE_dist in `score`: embeddings of both sides go into one accumulator."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from resque_ext.data.checks import check_choice
from resque_ext.indices._hints import BY_HAND, MISSING_OPTION, expect_both_sides, reworded
from resque_ext.indices._streamed import ClassSumsIndex
from resque_ext.indices.base import SIDES, Facts, IndexReads
from resque_ext.indices.resque_dist import ResqueDist, ResqueDistResult

if TYPE_CHECKING:
    from resque_ext.distributed import Ranks


class ResqueDistIndex(ClassSumsIndex):
    """RESQUE_dist.

    Args:
        missing: "error", or "skip" to leave out classes without an angle.
    """

    reads = IndexReads(embeddings=SIDES, labels=True)
    has_interval = True

    hints: ClassVar[Mapping[str, str]] = {"nonfinite": BY_HAND.format("ResqueDist")}

    def __init__(self, missing: str = "error") -> None:
        check_choice(missing, ("error", "skip"), "missing")
        self.missing = missing

    def begun(self, classes: int, blocks: int | None) -> ResqueDist:
        return ResqueDist(classes, missing=self.missing, blocks=blocks)

    def begun_as(self, state: Mapping[str, Tensor]) -> ResqueDist:
        return self.begun(int(state["num_classes"]), int(state["blocks"]))

    def reduce(self, ranks: Ranks) -> None:
        """By sums, so that every rank has as many bytes to send, however many rows it read."""
        mine = None if self.acc is None else [self.acc.num_classes, self.acc.blocks]
        known = [each for each in ranks.gather(mine) if each is not None]
        if not known:
            return
        if self.acc is None:
            self.acc = self.begun(*known[0])
        ranks.all_reduce(self.acc)

    def check_classes(self, rows: Mapping[str, NDArray[np.int64]]) -> None:
        if self.missing == "error":
            expect_both_sides(rows, MISSING_OPTION)

    def compute(self, facts: Facts) -> ResqueDistResult:
        acc = self.with_data()
        acc.paired = self.paired
        try:
            result = acc.compute(ignore_unseen=True)
        except ValueError as error:
            raise reworded(error, missing=MISSING_OPTION) from error
        return dataclasses.replace(result, **facts.of_embedding(), **facts.of_accuracy())

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
