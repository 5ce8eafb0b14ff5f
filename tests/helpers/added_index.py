"""mean_cosine: how alike the mean embeddings of both sides are."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from resque_ext.indices.base import SIDES, EmbeddingBatch, Facts, Index, IndexReads, IndexResult


class MeanCosine(Index):
    """Cosine of the angle between the mean embeddings of both sides, -1 to 1.

    Args:
        power: of the cosine, 1 or more.
    """

    reads = IndexReads(embeddings=SIDES)
    lower_is_cheaper = False

    def __init__(self, power: int = 1) -> None:
        if power < 1:
            raise ValueError(f"power: expected at least 1, found {power!r}")
        self.power = power
        self.sums: dict[str, Tensor] = {}  # by side, [D] float64

    def update(self, batch: EmbeddingBatch) -> None:
        rows = batch.rows().double()  # [N, D]
        if not rows.isfinite().all():
            raise ValueError(f"{batch.side}: features: expected finite values, found others")
        self.sums[batch.side] = self.sums.get(batch.side, 0) + rows.sum(0)

    def compute(self, facts: Facts) -> IndexResult:
        if set(self.sums) != set(SIDES):
            raise ValueError(f"update: expected both sides before compute(), found {[*self.sums]}")
        old, new = (self.sums[side] for side in SIDES)
        value = float(nn.functional.cosine_similarity(old, new, dim=0)) ** self.power
        return IndexResult(value, **facts.of_embedding(), **facts.of_accuracy())

    def state_dict(self) -> dict[str, Tensor]:
        return {side: sums.clone() for side, sums in self.sums.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if not set(state) <= set(SIDES):
            raise KeyError(f"state: expected the keys {SIDES}, found {sorted(map(str, state))}")
        self.sums = {side: sums.clone() for side, sums in state.items()}

    def merge(self, other: MeanCosine) -> None:
        if not isinstance(other, MeanCosine):
            raise TypeError(f"other: expected a MeanCosine, found {type(other).__name__}")
        for side, sums in other.sums.items():
            self.sums[side] = self.sums.get(side, 0) + sums
