"""RESQUE_task in `score`: the new side's embeddings are kept, for k-means reads them many times."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from resque_ext.data.checks import check_choice
from resque_ext.indices._kept_embeddings import KeptEmbeddings
from resque_ext.indices.base import EmbeddingBatch, Facts, Index, IndexReads, expect_kind
from resque_ext.indices.chance_level import PERMUTATIONS
from resque_ext.indices.resque_task import ResqueTaskResult, resque_task
from resque_ext.indices.segments import EMBEDDINGS


class ResqueTaskIndex(Index):
    """RESQUE_task; for the options see :func:`resque_ext.resque_task`."""

    reads = IndexReads(sides=("new",), embeddings=("new",), labels=True)
    in_one_place = True
    # The chance level is not kept, and the simple classifiers are predictors of their own there.
    predictor_options: ClassVar[Mapping[str, Any]] = {"chance": 0, "baselines": False}

    def __init__(
        self,
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
        self.reads = dataclasses.replace(self.reads, flattened=embedding == "flattened")
        self._kept = KeptEmbeddings(self.reads.flattened)
        self._arguments = {
            "num_classes": num_classes,
            "init": init,
            "max_iter": max_iter,
            "tol": tol,
            "seed": seed,
            "baselines": baselines,
            "start": start,
            "chance": chance,
        }

    def update(self, batch: EmbeddingBatch) -> None:
        self._kept.add(batch)

    def fork(self) -> ResqueTaskIndex:
        """One for another new side: nothing of the old one is read."""
        return self.fresh()

    def merge(self, other: Index) -> None:
        expect_kind(other, self)
        self._kept.merge(other._kept)

    def state_dict(self) -> dict[str, Tensor]:
        return self._kept.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._kept.load_state_dict(state)

    def compute(self, facts: Facts) -> ResqueTaskResult:
        shards = self._kept.shards(self._kept.width)
        result = resque_task(shards, self._kept.labels, **self._arguments)
        return dataclasses.replace(result, **self._kept.facts(facts))

    def memory(self, pairs: int, rows: int | None = None) -> int:
        return pairs * self._kept.bytes_of(rows)
