"""The constants of the forecast: of a number of steps, and of not reaching the target.

They are in calibration.json, fitted to the ledger of measured retrainings (`python
benchmarks/ledger.py fit`); docs/forecast.md says what is in it and how well they do on models that
were left out. What it does not cover: large models, and runs of more than 800 steps.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from typing import Any

from resque_ext.errors import ArgumentError
from resque_ext.retraining.curve import Curve, Point
from resque_ext.retraining.target import Target
from resque_ext.storage.json_text import parse_json

FORMAT = "resque_ext.Calibration/1"
CONSTANT = "constant"


@dataclass(frozen=True)
class Before:
    """What is known of a shift before any step.

    Attributes:
        probe_error: of a linear probe of the (adapted) embeddings, 0 to 1; None where there is
            none.
        error: 1 - held-out accuracy of the model as it is.
        adapted_error: the same with adapted normalization; None where there is none.
    """

    probe_error: float | None = None
    error: float | None = None
    adapted_error: float | None = None


@dataclass(frozen=True)
class Formula:
    """log2 of the steps of a retraining that reaches its target: a sum of weighted features.

    Attributes:
        weights: by feature (see `features`), and of `CONSTANT`.
        within: deviation of log2(measured / forecast) between runs of one model.
        between: that of its mean between models; both of models that were left out of a fit.
        offset: of the runs of one's own that it was refitted to.
        runs: of one's own.
    """

    weights: Mapping[str, float]
    within: float
    between: float
    offset: float = 0.0
    runs: int = 0

    @property
    def sigma(self) -> float:
        """Deviation that intervals are made of; less of `between` is left the more runs there
        are."""
        left = self.between**2 * self.within**2
        left /= self.runs * self.between**2 + self.within**2
        return math.sqrt(self.within**2 + left)

    def value(self, given: Mapping[str, float]) -> float:
        return weighted(self.weights, given) + self.offset

    def refitted(self, residuals: Sequence[float]) -> Formula:
        """With the mean of log2(measured / forecast) of runs of one's own, shrunk to 0 by how much
        models differ: the posterior mean of a random effect."""
        n = len(residuals)
        if not n:
            return self
        share = n * self.between**2 / (n * self.between**2 + self.within**2)
        return replace(self, offset=share * sum(residuals) / n, runs=n)


@dataclass(frozen=True)
class Calibration:
    """The formulas, by the number of steps of the probe.

    Attributes:
        formulas: of probes of just so many steps, where there is a linear probe.
        curve: log2(steps / steps so far) of the learning curve alone, from `CURVE_STEPS` steps on.
        short_curve: the same of shorter probes, where there is no linear probe.
        never: weights of a logistic regression of missing the target within twenty epochs, by the
            least number of steps.
        longest_steps: of the runs that it was fitted to; `farthest_octaves`: between a probe and
            the target in these.
        about: what it was fitted to.
    """

    formulas: Mapping[int, Formula]
    curve: Formula
    short_curve: Formula
    never: Mapping[int, Mapping[str, float]]
    longest_steps: int
    farthest_octaves: float
    about: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"format": FORMAT} | asdict(self)

    def to_json(self) -> str:
        """Strict JSON, a few lines."""
        return json.dumps(self.to_dict(), allow_nan=False, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Calibration:
        """The calibration that `to_json` gave.

        Raises:
            ValueError: no such one.
        """
        values = parse_json(text)
        try:
            if values.pop("format") != FORMAT:
                raise ValueError("another format")
            for name in ("curve", "short_curve"):
                values[name] = Formula(**values[name])
            values["formulas"] = {int(k): Formula(**v) for k, v in values["formulas"].items()}
            values["never"] = {int(k): dict(v) for k, v in values["never"].items()}
            return cls(**values)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            found = f"otherwise ({type(error).__name__}: {error})"
            raise ArgumentError("calibration", "what Calibration.to_json gives", found) from None


CURVE_STEPS = 64


@functools.cache
def shipped() -> Calibration:
    """That of the package."""
    file = resources.files("resque_ext.retraining") / "calibration.json"
    return Calibration.from_json(file.read_text(encoding="utf-8"))


def features(target: Target, before: Before, curve: Curve | None) -> dict[str, float]:
    """Everything that a formula may weigh, in octaves; what is not known is left out.

    "probe": the linear probe's error in units of the error allowed. "error", "start": the held-out
    error likewise, with adapted normalization where there is one, and without. "octaves":
    doublings of the steps that are left by the learning curve. "error_now", "loss_now": the curve's
    ends over the target's error and loss; "error_slope", "loss_slope": by how much they fall with
    a doubling.
    """
    found = {CONSTANT: 1.0}
    if before.probe_error is not None:
        found["probe"] = target.probe_octaves(before.probe_error)
    if before.error is not None:
        found["start"] = target.octaves(before.error)
        adapted = before.adapted_error
        found["error"] = target.octaves(before.error if adapted is None else adapted)
    if curve is not None:
        found["octaves"] = curve.octaves(target.allowed)
        found["error_now"], found["loss_now"] = curve.heights(target.allowed)
        found["error_slope"], found["loss_slope"] = curve.error_slope, curve.loss_slope
    return found


def weighted(weights: Mapping[str, float], given: Mapping[str, float]) -> float:
    return sum(weight * given[name] for name, weight in weights.items())


@dataclass(frozen=True)
class Estimate:
    """log2 of the steps, its deviation, by which formula, and whether it is beyond the ledger's."""

    log2_steps: float
    sigma: float
    formula: str
    extrapolated: bool


def estimate(
    target: Target, before: Before, curve: Curve | None, calibration: Calibration | None = None
) -> Estimate | None:
    """The steps of the whole retraining; None where neither probe error nor curve is known."""
    fitted = shipped() if calibration is None else calibration
    chosen = choose(before, curve, fitted)
    if chosen is None:
        return None
    name, formula, base = chosen
    value = base + formula.value(features(target, before, curve))
    horizon = math.log2(fitted.longest_steps)
    if curve is not None:
        horizon = max(horizon, math.log2(curve.step) + fitted.farthest_octaves)
    return Estimate(value, formula.sigma, name, value > horizon)


def choose(
    before: Before, curve: Curve | None, calibration: Calibration
) -> tuple[str, Formula, float] | None:
    """Name, formula, and log2 of the steps that it starts from."""
    length = 0 if curve is None else curve.step
    if before.probe_error is not None and length in calibration.formulas:
        return f"R{length}", calibration.formulas[length], 0.0
    if curve is None:
        return None
    formula = calibration.curve if length >= CURVE_STEPS else calibration.short_curve
    return f"curve of {length} steps", formula, math.log2(length)


def never_probability(
    target: Target, before: Before, curve: Curve | None, calibration: Calibration | None = None
) -> float | None:
    """That the target is not reached in about twenty epochs; None where that is not known."""
    never = (shipped() if calibration is None else calibration).never
    taken = 0 if curve is None else curve.step
    weights = never[max(each for each in never if each <= taken)]
    given = features(target, before, curve)
    if not weights.keys() <= given.keys():
        return None
    logit = weighted(weights, given)
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
