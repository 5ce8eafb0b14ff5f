"""linear_residual in `score`: embeddings of both sides go into one accumulator."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from resque_ext.indices._hints import BY_HAND, expect_both_sides, reworded
from resque_ext.indices._streamed import ClassSumsIndex
from resque_ext.indices.base import SIDES, EmbeddingBatch, Facts, IndexReads
from resque_ext.indices.linear_residual import LinearResidual, LinearResidualResult

_HINT = BY_HAND.format("LinearResidual")


class LinearResidualIndex(ClassSumsIndex):
    """linear_residual. Where normalization was adapted, the new side's embeddings under the model
    as it is come by a pass of their own."""

    reads = IndexReads(embeddings=SIDES, labels=True, as_is=True)

    def begun(self, classes: int, blocks: int | None) -> LinearResidual:
        return LinearResidual(classes, adapted=self.adapted, blocks=blocks)

    def begun_as(self, state: Mapping[str, Tensor]) -> LinearResidual:
        return self.begun(int(state["config"][0]), None)

    def side_of(self, batch: EmbeddingBatch) -> str:
        adapted = self.adapted and batch.side == "new" and not batch.as_is
        return "adapted" if adapted else batch.side

    def check_classes(self, rows: Mapping[str, NDArray[np.int64]]) -> None:
        expect_both_sides(rows, _HINT)

    def compute(self, facts: Facts) -> LinearResidualResult:
        acc = self.with_data()
        acc.distance.paired = self.paired
        try:
            result = acc.compute(ignore_unseen=True)
        except ValueError as error:
            raise reworded(error, missing=_HINT) from error
        return dataclasses.replace(result, **facts.of_embedding(), **facts.of_accuracy())
