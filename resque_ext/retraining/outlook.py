"""How far a retraining has to go, told at every check while it runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

from resque_ext.retraining.calibration import (
    Before,
    Calibration,
    estimate,
    is_unstable,
    never_probability,
)
from resque_ext.retraining.curve import Curve, Point
from resque_ext.retraining.meters import EVALUATION, TRAINING
from resque_ext.retraining.target import Checks, Target

COVERAGE = 0.9
MAY_NEVER, UNSTABLE = "may never reach the target", "unstable"
TOO_EARLY = "two checks in the last three quarters of the steps are needed"


@dataclass(frozen=True)
class Span:
    """A prediction with its interval; `high` None is unbounded."""

    value: float
    low: float
    high: float | None

    def times(self, factor: float) -> Span:
        """All of it times `factor`."""
        high = None if self.high is None else self.high * factor
        return Span(self.value * factor, self.low * factor, high)


@dataclass(frozen=True)
class Outlook:
    """What is to be expected of a retraining, at a check of its test accuracy.

    Attributes:
        step, epoch, accuracy: where it is.
        target_accuracy: where it is to end.
        reached: it is there.
        steps, epochs: of the whole run until then, predicted; None for `reason`.
        seconds_left: from now on, evaluations included, at the pace so far.
        verdict: None, "may never reach the target" or "unstable"; the spans then have no upper end.
        coverage: of the spans.
        reason: why they are not known.
    """

    step: int
    epoch: float
    accuracy: float
    target_accuracy: float
    reached: bool
    steps: Span | None
    epochs: Span | None
    seconds_left: Span | None
    verdict: str | None
    coverage: float
    reason: str | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the spans cannot be relied on for: the verdict, or why there are none."""
        return tuple(text for text in (self.verdict, self.reason) if text is not None)

    @property
    def reliable(self) -> bool:
        """Whether there is no warning."""
        return not self.warnings

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        more = {"reliable": self.reliable, "warnings": list(self.warnings)}
        return asdict(self) | more

    def __str__(self) -> str:
        """A line for people."""
        at = f"{self.accuracy:.1%} of {self.target_accuracy:.1%}"
        if self.reached:
            return f"{at}, reached"
        if self.seconds_left is None:
            return at
        left = self.seconds_left
        high = "" if left.high is None else shown_time(left.high)
        text = f"{at}, {shown_time(left.value)} left ({shown_time(left.low)} to {high or '?'})"
        return text if self.verdict is None else f"{text}, {self.verdict}"


def shown_time(seconds: float) -> str:
    """As 45 s, 3:20 or 2:05:00."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Watch:
    """Makes an outlook at every check of a run.

    Args:
        target: of the run.
        checks: when its test accuracy is read.
        points: of a forecast's probe, from which the run goes on.
        before: what that forecast found before any step.
        calibration: its constants; None: those of the package.
        tell: is called with every outlook.
        timed_from: the step since which `look` is given seconds.
    """

    def __init__(
        self,
        target: Target,
        checks: Checks,
        points: Sequence[Point],
        before: Before,
        calibration: Calibration | None,
        tell: Callable[[Outlook], Any] | None,
        *,
        timed_from: int = 0,
    ) -> None:
        self.target, self.checks, self.tell = target, checks, tell
        self.timed_from = timed_from
        self.before, self.calibration = before, calibration
        self.points = {point.step: point for point in points}

    def look(
        self, step: int, epoch: float, accuracy: float, loss: float, seconds: Mapping[str, float]
    ) -> Outlook:
        """Takes a check in, and tells what follows from it and those before.

        `seconds` are those of `TRAINING` and of `EVALUATION` so far.
        """
        self.points[step] = Point(step, loss, 1 - accuracy)
        found = self._outlook(step, epoch, accuracy, seconds)
        if self.tell is not None:
            self.tell(found)
        return found

    def _outlook(
        self, step: int, epoch: float, accuracy: float, seconds: Mapping[str, float]
    ) -> Outlook:
        reached = accuracy >= self.target.accuracy
        steps, epochs, verdict, reason = None, None, None, None
        if reached:
            steps, epochs = Span(step, step, step), Span(epoch, epoch, epoch)
        else:
            steps, verdict = self._steps(step)
            reason = TOO_EARLY if steps is None else None
            epochs = steps and steps.times(1 / self.checks.per_epoch)
        return Outlook(
            step=step,
            epoch=epoch,
            accuracy=accuracy,
            target_accuracy=self.target.accuracy,
            reached=reached,
            steps=steps,
            epochs=epochs,
            seconds_left=steps and self._left(steps, step, seconds),
            verdict=verdict,
            coverage=COVERAGE,
            reason=reason,
        )

    def _steps(self, step: int) -> tuple[Span | None, str | None]:
        points = [self.points[at] for at in sorted(self.points) if at <= step]
        if sum(0 < step <= 4 * point.step for point in points) < 2:
            return None, None
        curve = Curve.fitted(points, self.target.least_error)
        found = estimate(self.target, self.before, curve, self.calibration)
        assert found is not None  # there is a curve
        least = self.checks.at_or_after(step + 1)  # the checks up to here have missed the target
        around = NormalDist().inv_cdf((1 + COVERAGE) / 2) * found.sigma
        value = max(2**found.log2_steps, least)
        low = self.checks.at_or_after(max(2 ** (found.log2_steps - around), least))
        high = self.checks.at_or_after(max(2 ** (found.log2_steps + around), value + 1))
        never = never_probability(self.target, self.before, curve, self.calibration)
        verdict = MAY_NEVER if never is not None and never >= 0.5 else None
        if is_unstable(points):
            verdict, low = UNSTABLE, least
        return Span(value, min(low, value), None if verdict else high), verdict

    def _left(self, steps: Span, step: int, seconds: Mapping[str, float]) -> Span | None:
        """Seconds from now on; None before a step was timed."""
        timed = step - self.timed_from
        if not timed or not seconds[TRAINING]:
            return Span(0.0, 0.0, 0.0) if steps.high == steps.low == step else None
        each = seconds[TRAINING] / timed
        here = self.checks.until(step)
        check = seconds[EVALUATION] / here

        def price(n: float) -> float:
            return max(n - step, 0) * each + max(self.checks.until(math.ceil(n)) - here, 0) * check

        high = None if steps.high is None else price(steps.high)
        return Span(price(steps.value), price(steps.low), high)
