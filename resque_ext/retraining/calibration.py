"""The constants of the forecast, each with where it comes from.

Source: a study of 99 retrainings on digits for development (three models: a network with
batch-norm, one with group norm, a small transformer; ten kinds of shift) by Adam with a learning
rate of 1e-3, fitted by ridge regression with nonnegative weights, runs that missed the target as a
tail. They were judged on eleven other kinds of shift, and on two small residual networks on
CIFAR-10. What that does not cover: other sorts of data, large models, schedules, and retrainings
of more than 375 steps.

`sigma` is wider than the residuals of that fit (0.72 to 1.0): intervals made with those covered 63
to 90% of the runs of models that were not in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from resque_ext.retraining.curve import Curve, Point
from resque_ext.retraining.target import Target

LONGEST_STEPS = 375  # of a run in the study
FARTHEST_OCTAVES = 4.5  # from the end of a probe to the target in the study


@dataclass(frozen=True)
class Formula:
    """log2(steps) = constant + error_weight * probe + octave_weight * octaves.

    Attributes:
        probe: (in the formula) `Target.probe_octaves`, the linear probe's error over the allowed.
        octaves: which of the curve's; None: none, so that no step is needed.
        sigma: standard deviation of log2(forecast / measured) that intervals are made of.
    """

    name: str
    constant: float
    error_weight: float
    octave_weight: float
    octaves: Literal["both", "loss"] | None
    sigma: float

    def log2_steps(self, target: Target, probe_error: float, curve: Curve | None) -> float:
        value = self.constant + self.error_weight * target.probe_octaves(probe_error)
        if self.octaves is None or curve is None:
            return value
        whole = curve.octaves if self.octaves == "both" else curve.loss_octaves
        return value + self.octave_weight * whole(target.allowed)


# By the number of steps of the probe.
FORMULAS = {
    0: Formula("R0", 5.76, 2.02, 0.0, None, 1.3),
    16: Formula("R16", 4.80, 1.42, 0.36, "loss", 1.15),
    32: Formula("R32", 5.20, 1.26, 0.38, "both", 1.0),
}
# The curve alone, log2(k) + octaves: from 64 steps on (median error of 0.26 octaves on digits, not
# tried elsewhere), and where a model has no linear probe.
CURVE_SIGMA = 1.0
CURVE_SIGMA_SHORT = 1.3


@dataclass(frozen=True)
class Estimate:
    """log2 of the steps, its deviation, and by which formula."""

    log2_steps: float
    sigma: float
    formula: str
    extrapolated: bool


def estimate(target: Target, probe_error: float | None, curve: Curve | None) -> Estimate | None:
    """The steps of the whole retraining; None where neither probe error nor curve is known."""
    length = 0 if curve is None else curve.step
    if probe_error is not None and length in FORMULAS:
        formula = FORMULAS[length]
        value, sigma = formula.log2_steps(target, probe_error, curve), formula.sigma
        name = formula.name
    elif curve is not None:
        value = math.log2(length) + curve.octaves(target.allowed)
        sigma = CURVE_SIGMA if length not in FORMULAS else CURVE_SIGMA_SHORT
        name = f"curve of {length} steps"
    else:
        return None
    horizon = math.log2(length) + FARTHEST_OCTAVES if length else math.log2(LONGEST_STEPS)
    return Estimate(value, sigma, name, value > horizon)


# Weights of the linear probe's octaves and of the curve's, and a constant, by the number of steps:
# a logistic regression of "not reached within 20 epochs" (380 steps) over the development runs by
# Adam that were not free, 17 of about 50; area under the curve there 0.95 to 0.97.
NEVER = {
    0: (4.79, 0.0, -4.48),
    16: (4.64, 0.23, -5.51),
    32: (4.07, 0.44, -5.24),
    64: (2.26, 1.09, -4.42),
}


def never_probability(
    target: Target, probe_error: float | None, curve: Curve | None
) -> float | None:
    """That the target is not reached in about twenty epochs; None without a linear probe."""
    if probe_error is None:
        return None
    taken = 0 if curve is None else curve.step
    length = max(each for each in NEVER if each <= taken)
    error_weight, octave_weight, constant = NEVER[length]
    logit = constant + error_weight * target.probe_octaves(probe_error)
    if curve is not None:
        logit += octave_weight * curve.octaves(target.allowed)
    return 0.5 * (1 + math.tanh(logit / 2))  # the logistic function, for large logits too


# By this factor and at least so many nats. On the development settings this is said of 12 of 16
# probes by SGD at a rate of 0.05, whose first steps wreck the model, and of 1 of 101 by Adam at
# 1e-3.
RISE_FACTOR, RISE_NATS = 1.5, 0.5


def is_unstable(points: Sequence[Point]) -> bool:
    """Whether the held-out loss rose: at the end of the probe, or much on the way there."""
    start, end = points[0].loss, points[-1].loss
    peak = max(point.loss for point in points)
    return end > start or peak > max(RISE_FACTOR * start, start + RISE_NATS)
