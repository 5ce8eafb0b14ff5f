"""The probe: the first steps of the retraining itself, and what they cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from resque_ext.energy.measurement import Measurement
from resque_ext.retraining.checkpoint import Checkpoint
from resque_ext.retraining.curve import Curve, Point
from resque_ext.retraining.meters import EVALUATION, TRAINING, Costs
from resque_ext.retraining.run import Run
from resque_ext.retraining.target import Checks, Target

WARM_STEPS = 4  # are not counted in the cost of a step: caches, allocators and clocks settle
STEPS_WINDOW = "steps"
LONGEST_WINDOW = 5.0  # seconds of steps, or evaluations, after which no counter is waited for


@dataclass(frozen=True)
class Each:
    """What one step or one evaluation costs: seconds, and energy of `count` of them."""

    count: int
    seconds: float
    energy: Measurement


class Probe:
    """Takes steps of a run and reads its test data on the way.

    Attributes:
        points: loss and error at steps 0, 4, 8, 16 and so on.
        checkpoint: where the run was when it was last kept; None where it cannot be, for `reason`.
        reached: the step at which the target was met, None before.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.points = run, list[Point]()
        self.target = Target(float(run.settings.target_accuracy), run.test.samples)
        self.checks = Checks.of(run.check_batches, run.train.count)
        self.checkpoint: Checkpoint | None = None
        self.reason: str | None = None
        self.reached: int | None = None
        self.extra_steps = 0
        run.watch_loss = True
        self._steps: Iterator[int] = run.steps()
        self._own = Costs(run.device, run.costs.meter)  # of evaluations beside the run's checks
        self._own_evaluations = 0
        self._warm: tuple[int, float] | None = None

    @property
    def taken(self) -> int:
        """Steps so far, those that only a measurement needed left out."""
        return self.run.history.steps - self.extra_steps

    @property
    def stopped(self) -> str | None:
        """Why the run is over, None while it is not."""
        return self.run.history.stopped

    def begin(self) -> None:
        """The held-out accuracy before any step."""
        next(self._steps)
        self._look()
        self.keep()

    def advance(self, length: int) -> None:
        """Goes on until so many steps are taken, the target is met or the run is over."""
        while self.taken < length and self.stopped is None and self.reached is None:
            next(self._steps)
            if self.taken >= WARM_STEPS and self.taken.bit_count() == 1:
                self._look()
            if self._warm is None and self.taken >= WARM_STEPS:
                self.run.costs.add_window(STEPS_WINDOW, TRAINING)
                self._warm = self.taken, self.run.costs.seconds[TRAINING]
        if self.stopped == "target":
            self.reached = self.taken
        self.keep()

    def keep(self) -> None:
        """Takes the checkpoint."""
        if self.stopped is not None:
            self.run.finish()
        try:
            self.checkpoint = self.run.state()
        except TypeError as error:  # of an optimiser or scheduler with objects of its own
            self.checkpoint, self.reason = None, str(error)

    def curve(self) -> Curve | None:
        """Through the last points; None before 16 steps."""
        if self.points[-1].step < 4 * WARM_STEPS:
            return None
        return Curve.fitted(self.points, self.target.least_error)

    def step_cost(self, more: bool) -> Each | None:
        """Of a step after the first ones; None where there was none.

        Where a counter is coarse, `more` steps make the window long enough.
        """
        if self._warm is None:
            return None
        steps, seconds = self._warm
        costs, history = self.run.costs, self.run.history
        while (
            more
            and self.stopped is None
            and self._is_short(costs, STEPS_WINDOW)
            and next(self._steps, None) is not None
        ):
            self.extra_steps += 1
        count = history.steps - steps
        if not count:
            return None
        costs.switch(None)
        each = (costs.seconds[TRAINING] - seconds) / count
        return Each(count, each, costs.measured(STEPS_WINDOW))

    def evaluation_cost(self, more: bool) -> Each | None:
        """Of an evaluation after the first, of which `more` are made where that is needed."""
        own = self._own
        while more and (not self._own_evaluations or self._is_short(own, "total")):
            self.run.read_test(own)
            self._own_evaluations += 1
        if not self._own_evaluations:
            return None
        each = own.seconds[EVALUATION] / self._own_evaluations
        return Each(self._own_evaluations, each, own.measured("total"))

    def close(self) -> None:
        """Ends what is metered."""
        self.run.costs.close()
        self._own.close()

    @property
    def evaluations(self) -> int:
        """Of the test data so far."""
        return len(self.run.history.checks) + self._own_evaluations

    def _look(self) -> None:
        """Adds a point; the run's own check serves where there was one at this step."""
        self.run.costs.switch(None)
        checks = self.run.history.checks
        if checks[-1].steps == self.taken:
            accuracy, loss = checks[-1].accuracy, self.run.test_loss
        else:
            accuracy, loss = self.run.read_test(self._own, with_loss=True)
            self._own_evaluations += 1
            if accuracy >= self.target.accuracy:
                self.reached = self.taken
        assert loss is not None
        self.points.append(Point(self.taken, loss, 1 - accuracy))

    @staticmethod
    def _is_short(costs: Costs, window: str) -> bool:
        """Whether a counter needs a longer window, and there is time for it."""
        if costs.meter is None or costs.elapsed() >= LONGEST_WINDOW:
            return False
        return costs.measured(window).seconds < costs.meter.shortest_window()
