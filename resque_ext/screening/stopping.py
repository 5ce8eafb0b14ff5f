"""When to stop reading: intervals that hold at every look, and which pairs need no more samples."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Literal

from resque_ext.data.checks import check_count
from resque_ext.errors import ArgumentError

Decision = Literal["continue", "separated", "width"]


@dataclass(frozen=True)
class Estimate:
    """An index of a pair after some of its samples: the debiased value and its interval.

    Attributes:
        value, low, high: low <= value <= high.
        samples: read so far.
    """

    value: float
    low: float
    high: float
    samples: int

    def __post_init__(self) -> None:
        if not self.low <= self.value <= self.high:
            raise ArgumentError(
                "estimate", "low <= value <= high", f"{self.low}, {self.value}, {self.high}"
            )


def look_sizes(first: int, growth: float = 1.5, last: int | None = None) -> Iterator[int]:
    """Samples at which to look: `first`, and each time `growth` times as many, up to `last`.

    Growing steps keep the number of looks, and so what each may spend of the error rate, at the
    logarithm of the samples; what is read beyond need is at most the share growth - 1.
    """
    check_count(first, "first")
    if not growth > 1:
        raise ArgumentError("growth", "a number above 1", f"{growth!r}")
    size = first
    while last is None or size < last:
        yield size
        size = max(size + 1, math.ceil(size * growth))
    yield last


def look_confidence(look: int, confidence: float = 0.95) -> float:
    """Of the interval at look 1, 2, ..., so that all of them hold together with `confidence`.

    The error 1 - confidence is spent as 1 / (look (look + 1)): the shares sum to 1 over any number
    of looks, so by the union bound a pair's intervals are all right with probability `confidence`,
    whenever reading stops and for whatever reason.
    """
    check_count(look, "look")
    return 1 - (1 - confidence) / (look * (look + 1))


class StoppingRule:
    """Decides for many pairs that are ranked together which of them have been read enough.

    A pair is done if its interval overlaps no other ("separated") or is as narrow as asked
    ("width"). If only the `top` cheapest matter, it is also done ("separated") once at least `top`
    pairs are surely below it. Intervals of pairs that are done stay as they are, and others may
    still part from them. Pairs that never part are ties.

    Args:
        width: of an interval that is narrow enough; None for no such rule.
        top: how many of the lowest matter; None for all.
    """

    def __init__(self, width: float | None = None, top: int | None = None) -> None:
        number = isinstance(width, (int, float)) and not isinstance(width, bool)
        if width is not None and not (number and width > 0):
            raise ArgumentError("width", "a number above 0 or None", f"{width!r}")
        self.width = width
        self.top = None if top is None else check_count(top, "top")
        self.estimates: dict[Hashable, Estimate | None] = {}

    def observe(self, key: Hashable, estimate: Estimate | None) -> None:
        """Takes the newest estimate of a pair; None if there is none yet."""
        self.estimates[key] = estimate

    def decide(self) -> dict[Hashable, Decision]:
        """For every pair that was observed."""
        apart = self._apart()
        decisions: dict[Hashable, Decision] = {}
        for key, estimate in self.estimates.items():
            if key in apart:
                decisions[key] = "separated"
            elif (
                estimate is not None
                and self.width is not None
                and estimate.high - estimate.low <= self.width
            ):
                decisions[key] = "width"
            else:
                decisions[key] = "continue"
        return decisions

    def _apart(self) -> set[Hashable]:
        """Pairs that no further sample is needed to place."""
        intervals = sorted(
            (e.low, e.high, i, key) if e is not None else (-math.inf, math.inf, i, key)
            for i, (key, e) in enumerate(self.estimates.items())
        )
        highs = sorted(high for _, high, _, _ in intervals)
        highest = itertools.accumulate(
            (high for _, high, _, _ in intervals), max, initial=-math.inf
        )
        nexts = [low for low, _, _, _ in intervals[1:]] + [math.inf]
        apart = set()
        for (low, high, _, key), before, after in zip(intervals, highest, nexts, strict=False):
            alone = len(intervals) > 1 and before < low and high < after
            out = self.top is not None and len(highs) > self.top and highs[self.top - 1] < low
            if alone or out:
                apart.add(key)
        return apart


def ranks(estimates: dict[Hashable, Estimate | None]) -> dict[Hashable, tuple[int, int]]:
    """The places that every pair may have, from 1: (best, worst), equal if there is no tie.

    A pair's best place is one more than the number of pairs surely below it, its worst the number
    of pairs not surely above it. Pairs without an estimate may have any place.
    """
    bounds = {
        key: (e.low, e.high) if e is not None else (-math.inf, math.inf)
        for key, e in estimates.items()
    }
    lows = sorted(low for low, _ in bounds.values())
    highs = sorted(high for _, high in bounds.values())
    return {
        key: (1 + bisect.bisect_left(highs, low), bisect.bisect_right(lows, high))
        for key, (low, high) in bounds.items()
    }
