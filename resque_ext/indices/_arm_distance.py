"""The distance between the two sides of a layer, and what is known of its uncertainty."""

from __future__ import annotations

import numpy as np

from resque_ext.errors import ArgumentError
from resque_ext.indices._arm_result import LayerDistance
from resque_ext.indices._arm_state import Points, State
from resque_ext.ops.value_histogram import weighted_moments
from resque_ext.ops.wasserstein import Floats, joined, wasserstein_by_group

_CHANNELS = 64  # filters that are measured at a time: some 100,000 points


def layer_distance(
    layer: str, old: State, new: State, per_filter: bool, scaled: bool
) -> LayerDistance:
    """The distance of one layer between its two sides.

    Raises:
        ValueError: a side has no values (of a filter), or the old ones do not vary and should
            scale the distance.
    """
    groups = old.width if per_filter else 1
    distances, bounds, floors = (np.empty(groups) for _ in range(3))
    counts = {"old": 0, "new": 0}
    spread = _Spread()
    for first in range(0, groups, _CHANNELS):
        part = slice(first, min(first + _CHANNELS, groups))
        size = part.stop - first
        a, b = (side.points(first, part.stop if per_filter else None) for side in (old, new))
        n, m = (np.bincount(p.groups, p.counts, minlength=size) for p in (a, b))
        for side, total in (("old", n), ("new", m)):
            if not total.all():
                what = f" of filter {first + int(total.argmin())}" if per_filter else ""
                raise ArgumentError(
                    f"activations[{layer!r}]",
                    f"values{what} on both sides",
                    f"none on the {side} side",
                )
            counts[side] += int(total.sum())
        ids = np.concatenate([a.groups, b.groups])
        points = joined(a.values, a.counts, b.values, b.counts)
        distances[part], spreads = wasserstein_by_group(ids, *points, size)
        bounds[part] = sum(
            np.bincount(p.groups, p.counts * p.reach, minlength=size) / total
            for p, total in ((a, n), (b, m))
        )
        floors[part] = np.sqrt(2 / np.pi * (1 / n + 1 / m)) * spreads
        spread.add(a)
    if per_filter:
        floor = float(floors.mean()) if old.single and new.single else None
    else:
        floor = _floor_of_halves(old, new)
    value, bound = float(distances.mean()), float(bounds.mean())
    if scaled:
        std, off = spread.std(), spread.reach()
        if std == 0:
            raise ArgumentError(
                f"activations[{layer!r}]",
                "old values that vary, to scale their distance by",
                "a standard deviation of 0",
                fix=("exact=True sees what bins do not; scale=None leaves distances as they are"),
            )
        # The deviation is off by up to `off` too.
        most = (value + bound) / (std - off) if std > off else np.inf
        least = max(value - bound, 0) / (std + off)
        value, distances = value / std, distances / std
        bound = float(max(most - value, value - least)) if bound else 0.0
        floor = None if floor is None else floor / std
    return LayerDistance(
        value,
        bound,
        noise_floor=floor,
        counts=counts,
        old_std=spread.std(),
        per_filter=distances if per_filter else None,
    )


def _floor_of_halves(old: State, new: State) -> float | None:
    """The distance between the old side's halves, as it would be between the sides."""
    halves = [old.points(half=h) for h in range(2)]
    if not all(len(p.values) for p in halves) or not sum(new.rows):
        return None
    a, b = halves
    zero = np.zeros(len(a.values) + len(b.values), np.int64)
    points = joined(a.values, a.counts, b.values, b.counts)
    (distance,), _ = wasserstein_by_group(zero, *points, 1)
    sides = 1 / sum(old.rows) + 1 / sum(new.rows)
    return float(distance * np.sqrt(sides / (1 / old.rows[0] + 1 / old.rows[1])))


class _Spread:
    """The standard deviation of values that come in parts."""

    def __init__(self) -> None:
        self.parts: list[tuple[float, float, float, float]] = []  # n, mean, deviation, reach

    def add(self, points: Points) -> None:
        n = points.counts.sum()
        reach = np.sqrt((points.counts / n * np.square(points.reach)).sum())
        self.parts.append((n, *weighted_moments(points.values, points.counts), reach))

    def std(self) -> float:
        n, mean, deviation, _ = np.array(self.parts).T
        return float(np.hypot(weighted_moments(mean, n)[1], _mean_square(deviation, n)))

    def reach(self) -> float:
        """How far the deviation may be off: as far as the values, in the mean square."""
        n, _, _, reach = np.array(self.parts).T
        return _mean_square(reach, n)


def _mean_square(x: Floats, weights: Floats) -> float:
    """The root of the mean square."""
    unit = x.max()
    return (
        float(unit * np.sqrt((weights * np.square(x / unit)).sum() / weights.sum()))
        if unit
        else 0.0
    )
