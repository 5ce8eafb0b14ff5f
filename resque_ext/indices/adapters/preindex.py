"""PreIndex in `score`: every layer's vectors in pairs, and both sides' embeddings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from resque_ext.data.checks import check_choice
from resque_ext.indices._kept_embeddings import KeptEmbeddings
from resque_ext.indices.adapters.representation_distance import add_pairs
from resque_ext.indices.base import (
    SIDES,
    EmbeddingBatch,
    Facts,
    Index,
    IndexReads,
    PairBatch,
    expect_kind,
)
from resque_ext.indices.chance_level import PERMUTATIONS
from resque_ext.indices.preindex import PreIndexOptions, PreIndexResult, combine
from resque_ext.indices.representation_distance import RepresentationDistance
from resque_ext.indices.segments import EMBEDDINGS

_DISTANCES = "distances."  # before the names of a state's tensors


class PreIndexIndex(Index):
    """PreIndex; for the options see :class:`resque_ext.indices.preindex.PreIndexOptions`."""

    reads = IndexReads(embeddings=SIDES, flattened=True, layers="paired", labels=True)
    in_one_place = True
    predictor_options: ClassVar[Mapping[str, Any]] = {"chance": 0}  # the chance level is not kept

    def __init__(
        self,
        distance: str = "jensen_shannon",
        bins: int = 32,
        ari: str = "new",
        s: float = 0.0,
        s_bar: float = 0.0,
        ranges: str = "own",
        all_bins: Sequence[int] = (16, 32, 64),
        embedding: str = "flattened",
        chance: int = PERMUTATIONS,
        start: str = "same-rows",
    ) -> None:
        check_choice(embedding, EMBEDDINGS, "embedding")
        self._chosen = PreIndexOptions(
            distance, bins, ari, s, s_bar, ranges, tuple(all_bins), chance, start
        )
        self.acc = RepresentationDistance(self._chosen.all_bins, shared=self._chosen.shared)
        self.reads = dataclasses.replace(self.reads, flattened=embedding == "flattened")
        self._kept = {side: KeptEmbeddings(self.reads.flattened) for side in SIDES}

    def update(self, batch: EmbeddingBatch | PairBatch) -> None:
        if isinstance(batch, PairBatch):
            add_pairs(self.acc, batch)
        else:
            self._kept[batch.side].add(batch)

    def merge(self, other: Index) -> None:
        expect_kind(other, self)
        self.acc.merge(other.acc)
        for side in SIDES:
            self._kept[side].merge(other._kept[side])

    def state_dict(self) -> dict[str, Tensor]:
        state = {_DISTANCES + key: x for key, x in self.acc.state_dict().items()}
        for side, kept in self._kept.items():
            state |= {f"{side}.{key}": x for key, x in kept.state_dict().items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        parts: dict[str, dict[str, Tensor]] = {}
        for key, x in state.items():
            part, _, rest = key.partition(".")
            parts.setdefault(part, {})[rest] = x
        unknown = set(parts) - {"distances", *SIDES}
        if unknown:
            raise KeyError(f"state: expected distances, old and new, found {sorted(unknown)[0]!r}")
        kept = {side: KeptEmbeddings(self.reads.flattened) for side in SIDES}
        for side in SIDES:
            kept[side].load_state_dict(parts.get(side, {}))
        self.acc.load_state_dict(parts.get("distances", {}))
        self._kept = kept

    def compute(self, facts: Facts) -> PreIndexResult:
        old, new = (self._kept[side] for side in SIDES)
        width = max(old.width, new.width) if self.reads.flattened else None
        shards = [kept.shards(width or kept.width) for kept in (old, new)]
        result = combine(self._chosen, self.acc.compute(), *shards, new.labels, "pooled")
        return dataclasses.replace(
            result, skipped=dict(facts.skipped), **new.facts(facts), **facts.of_accuracy()
        )
