"""What the indices share that are a simple classifier's error on the new side's embeddings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import Tensor

from resque_ext.data.checks import check_choice
from resque_ext.indices._baselines import WIDEST
from resque_ext.indices._kept_embeddings import KeptEmbeddings
from resque_ext.indices.base import (
    EmbeddingBatch,
    Facts,
    Index,
    IndexReads,
    IndexResult,
    expect_kind,
)
from resque_ext.indices.resque_task import classifier_errors
from resque_ext.indices.segments import EMBEDDINGS


class SimpleClassifier(Index):
    """The error of a classifier, 0 to 1, each row judged by what was made without its fold.

    Args:
        embedding: "pooled", the mean over positions or tokens, or "flattened".

    Subclasses set `field`: that of :class:`resque_ext.indices._baselines.Baselines` which they are.
    """

    reads = IndexReads(sides=("new",), embeddings=("new",), labels=True)
    in_one_place = is_baseline = True
    field: str

    def __init__(self, embedding: str = "pooled") -> None:
        check_choice(embedding, EMBEDDINGS, "embedding")
        self.reads = dataclasses.replace(self.reads, flattened=embedding == "flattened")
        self._kept = KeptEmbeddings(self.reads.flattened)

    def update(self, batch: EmbeddingBatch) -> None:
        self._kept.add(batch)

    def fork(self) -> SimpleClassifier:
        """One for another new side: nothing of the old one is read."""
        return self.fresh()

    def merge(self, other: Index) -> None:
        expect_kind(other, self)
        self._kept.merge(other._kept)

    def state_dict(self) -> dict[str, Tensor]:
        return self._kept.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._kept.load_state_dict(state)

    def compute(self, facts: Facts) -> IndexResult:
        shards, labels = self._kept.shards(self._kept.width), self._kept.labels
        found = classifier_errors(shards, labels, (self.field,))
        value = getattr(found, self.field)
        if value is None:
            raise ValueError(
                f"{self.field}: too few samples, or an embedding too wide: expected at least two "
                f"rows of at most {WIDEST} columns, found shape ({len(labels)}, {self._kept.width})"
            )
        warnings = found.warnings
        return IndexResult(
            value, reliable=not warnings, warnings=warnings, **self._kept.facts(facts)
        )

    def memory(self, pairs: int, rows: int | None = None) -> int:
        return pairs * self._kept.bytes_of(rows)
