"""The order in which rows are read: as they lie, or in blocks that a seed shuffles.

The same seed gives the same order everywhere, for it comes from a mixing function that is written
down here and not from a library's generator, whose stream may change with its version.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resque_ext.data.checks import check_count

Spans = NDArray[np.int64]  # [k, 2]: first row, and the row behind the last


@dataclass(frozen=True)
class BlockOrder:
    """Blocks of neighbouring rows, in an order that the seed determines.

    Attributes:
        seed: 0 <= seed < 2^31.
        rows: of a block; None: what the source reads fast (its `block_rows`). 1 shuffles single
            rows, whatever that costs. For shards, which are read one behind the other: the rows
            that are held to choose the next from. Row groups of a table are blocks of their own.
    """

    seed: int
    rows: int | None = None

    def __post_init__(self) -> None:
        check_count(self.seed, "order: seed", least=0)
        if self.rows is not None:
            check_count(self.rows, "order: rows")


def mixed(numbers: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """Numbers as good as random ones, equal for equal `numbers` and seed (splitmix64)."""
    with np.errstate(over="ignore"):
        z = (numbers + np.uint64(seed * 2**32 + 1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def permutation(count: int, seed: int) -> NDArray[np.int64]:
    """0..count-1, shuffled: sorted by a number that `mixed` gives each."""
    return np.argsort(mixed(np.arange(count, dtype=np.uint64), seed), kind="stable")


class Plan:
    """The order of all rows, from which any part can be taken.

    Args:
        edges: where the blocks begin, and behind them the number of rows: [blocks + 1].
        seed: shuffles the blocks; None: they stay as they lie.
    """

    def __init__(self, edges: NDArray[np.int64], seed: int | None) -> None:
        self._starts, self._lengths = edges[:-1], np.diff(edges)
        if seed is not None:
            turn = permutation(len(self._starts), seed)
            self._starts, self._lengths = self._starts[turn], self._lengths[turn]
        self._ends = self._lengths.cumsum()  # in the order

    @classmethod
    def of(cls, rows: int, order: BlockOrder | None, block_rows: int) -> Plan:
        """Blocks of one size, the last as long as what is left."""
        if order is None:
            return cls(np.array([0, rows]), None)
        size = order.rows or block_rows
        return cls(np.append(np.arange(0, rows, size), rows), order.seed)

    def spans(self, first: int, last: int, step: int) -> Iterator[Spans]:
        """Places first..last of the order, `step` rows at a time, each as the spans it lies in."""
        for begin in range(first, last, step):
            end = min(begin + step, last)
            i = int(np.searchsorted(self._ends, begin, side="right"))
            j = int(np.searchsorted(self._ends, end, side="left")) + 1
            spans = np.stack([self._starts[i:j], self._starts[i:j] + self._lengths[i:j]], axis=1)
            spans[-1, 1] -= self._ends[j - 1] - end
            spans[0, 0] += begin - (self._ends[i] - self._lengths[i])
            yield spans


def rows_of(spans: Spans) -> NDArray[np.int64]:
    """The numbers of the rows that spans have, in their order."""
    lengths = spans[:, 1] - spans[:, 0]
    ends = lengths.cumsum()
    return np.arange(ends[-1]) + np.repeat(spans[:, 0] - (ends - lengths), lengths)
