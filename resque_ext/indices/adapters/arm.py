"""ARM in `score`: every layer's output goes into the histograms of its side."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from resque_ext.indices._arm_result import ArmResult
from resque_ext.indices._hints import BY_HAND, reworded
from resque_ext.indices._streamed import AccumulatorIndex
from resque_ext.indices.arm import Arm
from resque_ext.indices.base import Facts, IndexReads, LayerBatch


class ArmIndex(AccumulatorIndex):
    """ARM; for the options see :class:`resque_ext.Arm`."""

    reads = IndexReads(layers="pooled")

    def __init__(
        self,
        per: str = "layer",
        pool: bool = True,
        scale: str | None = None,
        max_bytes: int = 2**30,
        exact: bool = False,
    ) -> None:
        self.acc = Arm(per=per, pool=pool, scale=scale, max_bytes=max_bytes, exact=exact)
        self.reads = IndexReads(layers="pooled" if pool else "raw")

    def update(self, batch: LayerBatch) -> None:
        try:
            self.acc.update(batch.layers, batch.side, batch.mask)
        except (ValueError, TypeError) as error:
            raise reworded(error, batch.side, nonfinite=BY_HAND.format("Arm")) from error

    def discard(self, layers: Iterable[str]) -> None:
        self.acc.discard(layers)

    def fork(self) -> ArmIndex:
        """One that goes on from here; the histograms are copied."""
        other = self.fresh()
        other.load_state_dict(self.state_dict())
        return other

    def compute(self, facts: Facts) -> ArmResult:
        return dataclasses.replace(
            self.acc.compute(),
            pooling=facts.layer_pooling if self.acc.pool else "none",
            skipped=dict(facts.skipped),
            **facts.of_accuracy(),
        )
