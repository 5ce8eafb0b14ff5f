"""Conformal intervals of a cost: jackknife+ over runs, or over kinds of shift, with censored runs.

Jackknife+ (Barber, Candes, Ramdas, Tibshirani, 2021): each group of runs is left out in turn. The
score of a run is its distance from the fit of the other groups. The interval of a new run contains
every cost whose score does not exceed the scores of too many runs. A group is one run, or all runs
of one kind; a run of a kind of n weighs 1/n. For G groups and a share `a` = 1 - coverage that may
be missed, an end of the interval is where the weight passed is (1 - a) (G + 1).

Guarantee. Let the new run be any run, drawn evenly, of a group that is exchangeable with the G
others. Of two runs of different groups, both left out of one fit, at most one has the higher score
and so beats the other. A cost outside the interval is that of a strange run: one that beats a
weight of (1 - a) (G + 1). Say that strange runs weigh s_g in group g, from 0 to 1, and s in all.
What they beat, weighted, is at least s (1 - a) (G + 1). Of the others' weight it is at most
sum s_g (G - s + s_g), of their own (s^2 - sum s_g^2) / 2, because each pair counts once; together,
as s_g^2 <= s_g, at most s (G + 1/2 - s/2). Hence s < 2a (G + 1), and the new run is strange with a
probability of E[s] / (G + 1) < 2a. So the interval covers with at least 1 - 2a whatever the
distribution and the fit, and with about 1 - a where leaving one group out changes the fit little.

Censored runs. Every fit compares costs only up to its limit, the median cost at which its own runs
were stopped short: cost is read as min(cost, limit). An upper end that reaches the limit says
nothing of the cost beyond it and is unbounded. A run that was left out and had been stopped below
the limit scores as the worst cost up to it that it may have had; without a limit, as infinite. So
scores of censored runs are never too low, and the guarantee stands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from resque_ext.cost_model.regression import Array, Fit, Mask, regress
from resque_ext.studies.grid import ROUNDING, groups_needed


@dataclass(frozen=True)
class Curve:
    """A regression of log(1 + cost / scale), of the runs with costs y [N] at x [N, P].

    Attributes:
        scale: median of the known costs above 0, so that the unit of a cost makes no difference.
        limit: median cost of the censored runs; infinite without one.
        fit: of the transformed costs.
    """

    scale: float
    limit: float
    fit: Fit

    @classmethod
    def of(cls, method: str, x: Array, y: Array, censored: Mask, penalty: float) -> Curve:
        positive = y[~censored & (y > 0)]
        scale = float(np.median(positive)) if len(positive) else 1.0
        limit = float(np.median(y[censored])) if censored.any() else math.inf
        return cls(scale, limit, regress(method, x, np.log1p(y / scale), censored, penalty))

    def costs(self, x: Array) -> Array:
        """Of rows [N, P], never below 0."""
        return self.backward(self.fit.at(x))

    def backward(self, transformed: Array) -> Array:
        with np.errstate(over="ignore"):  # to infinity, which is right
            return self.scale * np.expm1(np.maximum(transformed, 0.0))

    def capped(self, x: Array) -> tuple[Array, float]:
        """The transformed costs of rows up to the transformed limit, and that."""
        limit = math.log1p(self.limit / self.scale)
        return np.clip(self.fit.at(x), 0.0, limit), limit

    def scores(self, x: Array, y: Array, censored: Mask) -> Array:
        """How far each run's cost is from the fit; of a censored one, how far it may be."""
        fitted, limit = self.capped(x)
        at_least = np.minimum(np.log1p(y / self.scale), limit)
        at_most = np.where(censored, limit, at_least)
        return np.maximum(np.abs(at_least - fitted), np.abs(at_most - fitted))


@dataclass(frozen=True)
class LeftOut:
    """One group: the fit of all others, the scores of its own runs under it."""

    curve: Curve
    scores: Array


@dataclass(frozen=True)
class Interval:
    """Of one cost; `high` is infinite where it is unbounded, and `reason` says why."""

    low: float
    high: float
    reason: str | None


def leave_out(
    method: str, x: Array, y: Array, censored: Mask, groups: Array, penalty: float
) -> list[LeftOut]:
    """Each group of runs, numbered in `groups` [N], against the fit of all others."""
    found = []
    for group in np.unique(groups) if len(np.unique(groups)) > 1 else ():
        out = groups == group
        curve = Curve.of(method, x[~out], y[~out], censored[~out], penalty)
        found.append(LeftOut(curve, curve.scores(x[out], y[out], censored[out])))
    return found


def interval(left_out: list[LeftOut], x: Array, coverage: float, group: str) -> Interval:
    """Of the cost at x [P]; `group` is what a group is called."""
    needed = groups_needed(coverage)
    if len(left_out) < needed:
        few = f"a coverage of {coverage:g} needs {needed} {group}, found {len(left_out)}"
        return Interval(0.0, math.inf, few)
    lows, highs, weights = [], [], []
    for each in left_out:
        fitted, limit = each.curve.capped(x[None])
        high = fitted + each.scores
        highs.append(np.where(high < limit, each.curve.backward(high), math.inf))
        lows.append(each.curve.backward(fitted - each.scores))
        weights.append(np.full(len(each.scores), 1 / len(each.scores)))
    weight, mass = np.concatenate(weights), coverage * (len(left_out) + 1)
    low = -_quantile(-np.concatenate(lows), weight, mass)
    high = _quantile(np.concatenate(highs), weight, mass)
    reason = "runs that were stopped short of the target do not tell how much more it costs"
    return Interval(low, high, reason if math.isinf(high) else None)


def _quantile(values: Array, weights: Array, mass: float) -> float:
    """The lowest value that, with all below it, weighs at least `mass`."""
    order = np.argsort(values, kind="stable")
    passed = np.cumsum(weights[order]) >= mass - ROUNDING
    return float(values[order][np.argmax(passed)])
