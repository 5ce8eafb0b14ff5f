"""The loss of accuracy from the old side to the new one: what the passes count anyway."""

from __future__ import annotations

from typing import Any

from resque_ext.errors import ArgumentError
from resque_ext.indices.base import Facts, Index, IndexReads, IndexResult, expect_kind


class AccuracyDrop(Index):
    """Accuracy on the old side minus that on the new one, -1 to 1."""

    reads = IndexReads(labels=True, accuracy=True)
    is_baseline = True

    def update(self, batch: Any) -> None:
        """Nothing: it reads no batch."""

    def merge(self, other: Index) -> None:
        expect_kind(other, self)

    def compute(self, facts: Facts) -> IndexResult:
        if facts.old_accuracy is None or facts.new_accuracy is None:
            raise ArgumentError(
                "model",
                "a classifier, whose output [N, K] is that of its last "
                "layer, and labels of both sides for 'accuracy_drop'",
                "no accuracy",
            )
        drop = facts.old_accuracy - facts.new_accuracy
        return IndexResult(drop, labels=facts.labels, **facts.of_accuracy())
