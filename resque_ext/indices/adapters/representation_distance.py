"""The representation distance p in `score`: every layer's vectors in pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from resque_ext.indices._hints import BY_HAND, reworded
from resque_ext.indices._streamed import AccumulatorIndex
from resque_ext.indices.base import Facts, IndexReads, PairBatch
from resque_ext.indices.preindex import PairDistanceResult, PreIndexOptions
from resque_ext.indices.representation_distance import RepresentationDistance, paired_layers


class RepresentationDistanceIndex(AccumulatorIndex):
    """p, the part of PreIndex that reads no labels; for the options see
    :class:`resque_ext.indices.preindex.PreIndexOptions`."""

    reads = IndexReads(layers="paired")

    def __init__(
        self,
        distance: str = "jensen_shannon",
        bins: int = 32,
        ranges: str = "own",
        all_bins: Sequence[int] = (16, 32, 64),
    ) -> None:
        self._chosen = PreIndexOptions(distance, bins, ranges=ranges, all_bins=tuple(all_bins))
        self.acc = RepresentationDistance(self._chosen.all_bins, shared=self._chosen.shared)

    def update(self, batch: PairBatch) -> None:
        add_pairs(self.acc, batch)

    def compute(self, facts: Facts) -> PairDistanceResult:
        found = PairDistanceResult.of(self.acc.compute(), self._chosen)
        return dataclasses.replace(
            found,
            pooling=facts.layer_pooling,
            skipped=dict(facts.skipped),
            **facts.of_accuracy(),
        )


def add_pairs(acc: RepresentationDistance, batch: PairBatch) -> None:
    """A batch of pairs of every layer's vectors."""
    try:
        acc.update(paired_layers(batch.old, batch.new), *batch.masks)
    except (ValueError, TypeError) as error:
        hint = BY_HAND.format("RepresentationDistance")
        raise reworded(error, nonfinite=hint) from error
