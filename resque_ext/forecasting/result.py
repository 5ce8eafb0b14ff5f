"""Forecast: what a retraining will cost, from its first steps or without any."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from resque_ext.plots.charts import forecast_chart
from resque_ext.plots.html import number, table
from resque_ext.retraining import Prediction
from resque_ext.retraining.calibration import Before, Calibration
from resque_ext.retraining.checkpoint import Checkpoint
from resque_ext.retraining.curve import Point
from resque_ext.retraining.outlook import MAY_NEVER as MAY_NEVER
from resque_ext.retraining.outlook import UNSTABLE as UNSTABLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = "resque_ext.Forecast/1"
STAGES = ("free", "adapt", "indices", "probe", "reached")
FARTHER = "more steps to go than in any run that the constants are from"
UNITS = {
    "epochs": "epochs",
    "steps": "steps",
    "seconds": "s",
    "joules": "J",
    "kwh": "kWh",
    "kg_co2": "kg CO2e",
    "joules_estimated": "J",
    "kwh_estimated": "kWh",
    "kg_co2_estimated": "kg CO2e",
}


@dataclass(frozen=True)
class ProbeCost:
    """What the forecast itself cost.

    Attributes:
        steps: of the retraining, which `retrain(start=)` does not take again.
        extra_steps: that only a coarse energy counter needed; they are thrown away.
        evaluations: of the test data.
        seconds: all of it: forward passes, steps, evaluations.
        joules, joules_estimated: measured, and with guesses for what was not measured. None for
            `reason`.
        share: steps as a part of the steps that are forecast; None where those are not known or 0.
    """

    steps: int
    extra_steps: int
    evaluations: int
    seconds: float
    joules: float | None
    joules_estimated: float | None
    share: float | None
    reason: str | None = None


@dataclass(frozen=True)
class Forecast:
    """What retraining a model until a target accuracy will cost.

    Costs are :class:`resque_ext.retraining.Prediction`, with `value`, `low`, `high`, `unit` and
    `basis`. They are predictions, but where `stage` is "free", "adapt" or "reached". An unknown is
    None, and its `reason` says why; a `high` of None is unbounded.

    Attributes:
        stage: how far the forecast had to go. "free": the held-out accuracy meets the target.
            "adapt": it does so with the normalization taken to the new data. "indices": forward
            passes alone. "probe": steps were taken. "reached": the target was met by them.
        verdict: None; "may never reach the target"; "unstable": the held-out loss rose. With a
            verdict intervals are open.
        never_probability: that the target is not reached in twenty epochs or so, a prediction of
            its own; None where the cost is known or there is no linear probe.
        costs: by name (`UNITS`): of the whole retraining, evaluations included.
        target_accuracy, accuracy: asked for, and of the test data before any training.
        adapted_accuracy: of the test data with adapted normalization; None where there is none.
        linear_probe_error: of a linear classifier of the (adapted) embeddings of the training data.
        points: held-out loss and error on the way.
        formula: that the number of steps is from; None where it is known.
        coverage: that intervals are for.
        probe: what the forecast itself cost.
        steps_per_epoch: of the retraining.
        test_samples: that the target is a fraction of.
        interrupted: Ctrl-C ended the probe early.
        notes: why something is not known, or not as it should be.
        checkpoint: where the probe ended, for `retrain(..., start=forecast)`; held in memory.
        adapted_model: at stage "adapt" the model that meets the target, in eval mode.
        calibration: that was given; None: that of the package.
    """

    stage: str
    verdict: str | None
    never_probability: float | None
    costs: Mapping[str, Prediction]
    target_accuracy: float
    accuracy: float
    adapted_accuracy: float | None
    linear_probe_error: float | None
    points: tuple[Point, ...]
    formula: str | None
    coverage: float
    probe: ProbeCost
    steps_per_epoch: int
    test_samples: int
    interrupted: bool = False
    notes: tuple[str, ...] = ()
    checkpoint: Checkpoint | None = field(default=None, repr=False, compare=False)
    adapted_model: nn.Module | None = field(default=None, repr=False, compare=False)
    calibration: Calibration | None = field(default=None, repr=False, compare=False)

    @property
    def before(self) -> Before:
        """What was known before any step, as formulas take it."""
        return before_steps(self.linear_probe_error, self.accuracy, self.adapted_accuracy)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the costs cannot be relied on for: the verdict, a horizon that no run of the
        calibration had, and `notes`."""
        found = [] if self.verdict is None else [self.verdict]
        if self.steps.extrapolated:
            found.append(FARTHER)
        return (*found, *self.notes)

    @property
    def reliable(self) -> bool:
        """Whether there is no warning."""
        return not self.warnings

    @property
    def epochs(self) -> Prediction:
        """Passes over the training data."""
        return self.costs["epochs"]

    @property
    def steps(self) -> Prediction:
        """Optimizer steps."""
        return self.costs["steps"]

    @property
    def seconds(self) -> Prediction:
        """Wall time of training and evaluations on this device."""
        return self.costs["seconds"]

    @property
    def joules(self) -> Prediction:
        """Measured energy of training and evaluations."""
        return self.costs["joules"]

    @property
    def kwh(self) -> Prediction:
        """`joules` in kWh."""
        return self.costs["kwh"]

    @property
    def kg_co2(self) -> Prediction:
        """Emissions of `joules`."""
        return self.costs["kg_co2"]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the checkpoint and the model."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name in ("checkpoint", "adapted_model", "calibration"):
            del values[name]
        return (
            {"format": FORMAT}
            | values
            | {
                "costs": {name: cost.to_dict() for name, cost in self.costs.items()},
                "points": [dataclasses.asdict(point) for point in self.points],
                "probe": dataclasses.asdict(self.probe),
                "notes": list(self.notes),
                "reliable": self.reliable,
                "warnings": list(self.warnings),
            }
        )

    def to_json(self) -> str:
        """One line of strict JSON."""
        return json.dumps(self.to_dict(), allow_nan=False)

    def plot(self) -> Figure:
        """Held-out error over the steps of the probe, and where the target is forecast to be met.

        Raises:
            ValueError: matplotlib is not installed.
        """
        cost = self.steps
        known = None if cost.value is None else (cost.value, cost.low or 0.0, cost.high)
        points = [(p.step, p.error) for p in self.points] or [(0, 1 - self.accuracy)]
        return forecast_chart(points, 1 - self.target_accuracy, known, self.verdict)

    def _repr_html_(self) -> str:
        known = f"{self.target_accuracy:.1%} of the test data, from {self.accuracy:.1%}"
        stage = f"stage {self.stage}" + (f", {self.verdict}" if self.verdict else "")
        rows = (
            (name, number(cost.value, 3), number(cost.low, 3), number(cost.high, 3), cost.unit)
            for name, cost in self.costs.items()
            if cost.value is not None
        )
        unknown = {cost.reason: None for cost in self.costs.values() if cost.value is None}
        spent = f"The forecast took {self.probe.steps} steps, {self.probe.seconds:.3g} s."
        notes = [spent, *(f"Unknown: {reason}" for reason in unknown), *self.notes]
        return table(f"{known}: {stage}", ("cost", "forecast", "low", "high", "unit"), rows, notes)

    def __str__(self) -> str:
        """Some lines for people."""
        lines = [
            f"{self.target_accuracy:.1%} of the test data, from {self.accuracy:.1%}: "
            f"stage {self.stage!r}" + (f", {self.verdict}" if self.verdict else "")
        ]
        for name, cost in self.costs.items():
            if cost.value is None and name.endswith("_estimated"):
                continue
            lines.append(f"  {name:<16} {shown(cost)}")
        if self.never_probability is not None:
            lines.append(f"  probability of missing the target: {self.never_probability:.0%}")
        lines.append(f"  the forecast took {self.probe.steps} steps, {self.probe.seconds:.3g} s")
        return "\n".join(lines + [f"  warning: {text}" for text in self.warnings])


def before_steps(
    probe_error: float | None, accuracy: float, adapted_accuracy: float | None
) -> Before:
    adapted = None if adapted_accuracy is None else 1 - adapted_accuracy
    return Before(probe_error, 1 - accuracy, adapted)


def shown(cost: Prediction) -> str:
    """One cost in words: value, interval, unit."""
    if cost.value is None:
        return f"unknown: {cost.reason}"
    if cost.low == cost.high == cost.value:
        return f"{cost.value:.3g} {cost.unit}"
    low = "" if cost.low is None else f"{cost.low:.3g}"
    interval = f"{low} or more" if cost.high is None else f"{low} to {cost.high:.3g}"
    return f"{cost.value:.3g} ({interval}) {cost.unit}"
