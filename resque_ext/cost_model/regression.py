"""Regression of a cost on predictors, monotone or log-linear, where some costs are lower bounds.

Loss of a fit m, over the runs:

    sum of (y - m)^2 over known costs  +  sum of max(0, y - m)^2 over lower bounds

so a lower bound asks the fit to be at or above it, and says nothing beyond.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

METHODS = ("monotone", "log-linear")
MAX_STEPS = 100  # of Newton's method; it ends at the first that changes nothing, after a handful


@dataclass(frozen=True)
class Line:
    """intercept + x @ weights."""

    intercept: float
    weights: Array  # [P]

    def at(self, x: Array) -> Array:
        """Of rows [N, P]: [N]."""
        # Products and sums one by one: a matrix product may add in another order for other N.
        return self.intercept + (x * self.weights).sum(axis=1)


@dataclass(frozen=True)
class Steps:
    """A nondecreasing function of x @ weights: flat pieces with straight lines between them."""

    weights: Array  # [P], none below 0
    knots: Array  # [K]
    levels: Array  # [K]

    def at(self, x: Array) -> Array:
        """Of rows [N, P]: [N]; flat outside the knots."""
        return np.interp((x * self.weights).sum(axis=1), self.knots, self.levels)


Fit = Line | Steps


def regress(method: str, x: Array, y: Array, bound: Mask, penalty: float) -> Fit:
    """The fit of `method` to costs y [N] at x [N, P]; where `bound` y is a lower bound only.

    A monotone fit of several predictors is one of their log-linear combination, of which those
    whose weight would be below 0 are left out: so it falls in none of them.
    """
    if method == "log-linear":
        return ridge(x, y, bound, penalty)
    weights = np.ones(1) if x.shape[1] == 1 else _rising_weights(x, y, bound, penalty)
    return Steps(weights, *isotonic((x * weights).sum(axis=1), y, bound))


def isotonic(x: Array, y: Array, bound: Mask) -> tuple[Array, Array]:
    """Knots and levels of the nondecreasing function of x [N] with the least loss.

    Pooling of adjacent violators (Ayer et al., 1955), which is exact for any convex loss if a
    block's level is its least minimiser. Runs at one x are one block from the start. Bounds that
    the others' function is above anyway have no knot.
    """
    ties: dict[float, _Block] = {}
    for i in np.argsort(x, kind="stable").tolist():
        run = [(float(x[i]), float(y[i]))]
        one = _Block([], run) if bound[i] else _Block(run, [])
        same = ties.get(run[0][0])
        ties[run[0][0]] = one if same is None else same.with_next(one)
    blocks: list[_Block] = []
    for block in ties.values():
        while blocks and blocks[-1].level > block.level:
            block = blocks.pop().with_next(block)
        blocks.append(block)
    # A knot more, above the function, lowers it nowhere: so one look at each is enough.
    needed = [block for block in blocks if block.known]
    below = _function(needed) if needed else None
    return _function(
        [
            block
            for block in blocks
            if block.known or below is None or np.interp(block.first, *below) < block.level
        ]
    )


def _function(blocks: list[_Block]) -> tuple[Array, Array]:
    knots = [end for block in blocks for end in (block.first, block.last)]
    levels = [block.level for block in blocks for _ in range(2)]
    return np.array(knots), np.array(levels)


class _Block:
    """Runs (x, y) at one level: that of the least loss over them, and of all such the least.

    It is the mean of the known costs and of those bounds that are above it. From the highest bound
    down: one above the mean raises it, though never to itself. `first` and `last` are the places
    that hold the level up: those of known costs and of bounds not below it.
    """

    def __init__(self, known: list[tuple[float, float]], bounds: list[tuple[float, float]]) -> None:
        self.known, self.bounds = known, bounds
        used = [y for _, y in known]  # sums are exact, so the order of the runs does not matter
        self.level = math.fsum(used) / len(used) if used else -math.inf
        for value in sorted((y for _, y in bounds), reverse=True):
            if value <= self.level:
                break
            used.append(value)
            self.level = math.fsum(used) / len(used)
        places = [x for x, _ in known] + [x for x, y in bounds if y >= self.level]
        self.first, self.last = min(places), max(places)

    def with_next(self, following: _Block) -> _Block:
        return _Block(self.known + following.known, self.bounds + following.bounds)


def ridge(x: Array, y: Array, bound: Mask, penalty: float) -> Line:
    """The line of the least loss / N + penalty * |weights of the standardised predictors|^2."""
    spread = x.std(axis=0)
    spread[spread == 0] = 1.0
    center = x.mean(axis=0)
    design = np.column_stack([np.ones(len(x)), (x - center) / spread])
    if bound.all():  # every line above them would do
        return Line(float(y.max()), np.zeros(x.shape[1]))
    cost = np.diag([0.0, *[penalty * len(x)] * x.shape[1]])

    def loss(beta: Array) -> float:
        rest = y - design @ beta
        rest[bound & (rest < 0)] = 0
        return float(rest @ rest + beta @ cost @ beta)

    beta = np.zeros(design.shape[1])
    beta[0] = y[~bound].mean()
    used = ~bound | (design @ beta < y)
    # The loss is a parabola wherever the same bounds are above the line: Newton's step goes to its
    # lowest point, and is halved as long as other parabolas make that worse.
    for _ in range(MAX_STEPS):
        part = design[used]
        goal = np.linalg.lstsq(part.T @ part + cost, part.T @ y[used], rcond=None)[0]
        step = goal - beta
        if bound.any():
            before = loss(beta)
            while loss(beta + step) > before and np.abs(step).max() > 1e-12:
                step /= 2
        beta = beta + step
        now = ~bound | (design @ beta < y)
        if (now == used).all():
            break
        used = now
    weights = beta[1:] / spread
    return Line(float(beta[0] - weights @ center), weights)


def _rising_weights(x: Array, y: Array, bound: Mask, penalty: float) -> Array:
    weights = np.zeros(x.shape[1])
    kept = np.arange(x.shape[1])
    while len(kept):
        found = ridge(x[:, kept], y, bound, penalty).weights
        if (found >= 0).all():
            weights[kept] = found
            break
        kept = kept[found >= 0]
    return weights
