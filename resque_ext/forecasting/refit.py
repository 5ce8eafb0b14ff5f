"""refit: the forecast's constants, refined by retrainings of one's own."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from resque_ext.data.checks import describe
from resque_ext.errors import ArgumentError, ArgumentTypeError
from resque_ext.forecasting.result import Forecast
from resque_ext.retraining import RetrainingCost
from resque_ext.retraining.calibration import (
    CURVE_STEPS,
    Calibration,
    Formula,
    features,
    shipped,
    weighted,
)
from resque_ext.retraining.curve import Curve
from resque_ext.retraining.target import Target

LENGTHS = (0, 16, 32, 64, 128)


def refit(
    runs: Iterable[tuple[Forecast, RetrainingCost]], calibration: Calibration | None = None
) -> Calibration:
    """A calibration for models like those of some runs, for :func:`resque_ext.forecast`.

    Every formula gets an offset: the mean of log2(measured / forecast) of the runs, shrunk to 0 by
    how much models differ (a random effect, whose deviations are those of models left out of the
    package's ledger). Intervals get narrower by what is known of one's own models then. Weights
    stay: they would need many kinds of shift.

    A run that did not reach its target counts where it went on for longer than was forecast, as if
    it had reached it at its end; where it did not, it tells nothing. A run that cost nothing, or
    that the probe ended, tells nothing either.

    Args:
        runs: pairs of a forecast and of what retraining then cost: of one model, or of models and
            recipes that are alike.
        calibration: to begin with; by default that of the package.

    Raises:
        TypeError: something else among the runs.
        ValueError: no run tells anything.
    """
    base = shipped() if calibration is None else calibration
    residuals: dict[Any, list[float]] = {}
    for pair in _checked(runs):
        for name, residual in _residuals(*pair, base).items():
            residuals.setdefault(name, []).append(residual)
    if not residuals:
        raise ArgumentError("runs", "at least one that took steps beyond a forecast", "none")
    formulas = {
        length: formula.refitted(residuals.get(length, ()))
        for length, formula in base.formulas.items()
    }
    return replace(
        base,
        formulas=formulas,
        curve=base.curve.refitted(residuals.get("curve", ())),
        short_curve=base.short_curve.refitted(residuals.get("short_curve", ())),
    )


def _checked(runs: Any) -> Iterable[tuple[Forecast, RetrainingCost]]:
    if isinstance(runs, (str, bytes)) or not isinstance(runs, Iterable):
        raise ArgumentTypeError("runs", "pairs (Forecast, RetrainingCost)", describe(runs))
    for pair in runs:
        right = isinstance(pair, tuple) and len(pair) == 2
        if (
            not right
            or not isinstance(pair[0], Forecast)
            or not isinstance(pair[1], RetrainingCost)
        ):
            raise ArgumentTypeError("runs", "pairs (Forecast, RetrainingCost)", describe(pair))
        yield pair


def _residuals(found: Forecast, cost: RetrainingCost, base: Calibration) -> dict[Any, float]:
    """log2(measured / forecast) by formula: of the probe as it was, and of shorter ones."""
    if not cost.steps or not found.test_samples:
        return {}
    target = Target(found.target_accuracy, found.test_samples)
    known: dict[Any, float] = {}
    for length in LENGTHS:
        part = [point for point in found.points if point.step <= length]
        if cost.steps <= length or part[-1].step != length:
            continue
        curve = Curve.fitted(part, target.least_error) if length else None
        given = features(target, found.before, curve)
        used: dict[Any, tuple[Formula, float]] = {}
        if length in base.formulas and "probe" in given:
            used[length] = base.formulas[length], 0.0
        if curve is not None:
            name = "curve" if length >= CURVE_STEPS else "short_curve"
            used[name] = getattr(base, name), math.log2(length)
        for name, (formula, start) in used.items():
            # Without an offset: one that was fitted before is not to be added to.
            residual = math.log2(cost.steps) - start - weighted(formula.weights, given)
            if cost.reached or residual > 0:
                known[name] = residual
    return known
