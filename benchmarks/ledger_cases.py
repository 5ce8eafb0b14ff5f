"""The ledger's rows as cases: a retraining to one target, what was known of it, what it took."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from resque_ext.retraining.calibration import Before, features
from resque_ext.retraining.curve import Curve, Point
from resque_ext.retraining.target import Checks, Target

Row = dict[str, Any]
PROBES = (0, 16, 32)  # steps
LATER = (64, 128, 256)  # at which the curve alone is read
TWENTY = 20  # epochs within which a target is reached, or counts as missed


@dataclass(frozen=True)
class Case:
    """A row of the ledger with one of its targets.

    Attributes:
        steps: until the first check that met it; of a run that did not, all.
        reached: it was met.
    """

    row: Row
    target: Target
    steps: int
    reached: bool

    @property
    def setting(self) -> str:
        return self.row["setting"]

    @property
    def part(self) -> tuple[Any, ...]:
        """Cases that differ in their shift alone, among which predictors have an order to tell."""
        return self.row["setting"], self.row["recipe"], self.row["targets"].index(self._given)

    @property
    def _given(self) -> float:
        return self.target.accuracy

    @property
    def free(self) -> bool:
        return self.steps == 0

    @cached_property
    def missed(self) -> bool:
        """Not reached within twenty epochs."""
        return not self.reached or self.steps > TWENTY * self.row["steps_per_epoch"]

    @cached_property
    def points(self) -> list[Point]:
        return [Point(*point) for point in self.row["points"]]

    @cached_property
    def before(self) -> Before:
        adapted = self.row["adapted_accuracy"]
        return Before(
            self.row["linear_probe_error"],
            1 - self.row["start_accuracy"],
            None if adapted is None else 1 - adapted,
        )

    def met_by(self, length: int) -> bool:
        """Whether a probe of so many steps meets the target, at a check or a look."""
        looks = (p for p in self.points if 0 < p.step <= length)
        return self.reached and (
            self.steps <= length or any(p.error <= 1 - self.target.accuracy + 1e-9 for p in looks)
        )

    def curve(self, length: int) -> Curve | None:
        """The learning curve of a probe of so many steps; None where the run was shorter."""
        part = [p for p in self.points if p.step <= length]
        if not length or part[-1].step != length:
            return None
        return Curve.fitted(part, self.target.least_error)

    def features(self, length: int) -> dict[str, float] | None:
        """None where the run was shorter."""
        curve = self.curve(length)
        if length and curve is None:
            return None
        return features(self.target, self.before, curve)


def cases(rows: list[Row]) -> list[Case]:
    """Two a row, one for each target."""
    found = []
    for row in rows:
        checks = Checks.of(row["check_batches"], row["steps_per_epoch"])
        steps = [0]
        while len(steps) < len(row["hits"]):
            steps.append(checks.at_or_after(steps[-1] + 1))
        for accuracy in row["targets"]:
            needed = math.ceil(accuracy * row["test_samples"] - 1e-9)
            met = [s for s, hits in zip(steps, row["hits"], strict=True) if hits >= needed]
            target = Target(accuracy, row["test_samples"])
            found.append(Case(row, target, met[0] if met else steps[-1], bool(met)))
    return found


def open_cases(found: list[Case], length: int) -> list[tuple[Case, dict[str, float]]]:
    """Those whose cost is not known after a probe of so many steps, with their features."""
    given = [(c, c.features(length)) for c in found if not c.free and not c.met_by(length)]
    return [(c, f) for c, f in given if f is not None and "probe" in f]
