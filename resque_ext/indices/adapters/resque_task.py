"""RESQUE_task in `score`: the new side's embeddings are kept, for k-means reads them many times."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from resque_ext.indices._kept_embeddings import KeptIndex
from resque_ext.indices.base import Facts
from resque_ext.indices.chance_level import PERMUTATIONS
from resque_ext.indices.resque_task import ResqueTaskResult, resque_task


class ResqueTaskIndex(KeptIndex):
    """RESQUE_task; for the options see :func:`resque_ext.resque_task`."""

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
        super().__init__(embedding)
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

    def compute(self, facts: Facts) -> ResqueTaskResult:
        shards = self._kept.shards(self._kept.width)
        result = resque_task(shards, self._kept.labels, **self._arguments)
        return dataclasses.replace(result, **self._kept.facts(facts))
