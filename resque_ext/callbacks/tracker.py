"""ForecastTracker: a forecast before training, outlooks while it runs, the cost at the end."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from resque_ext.data.checks import check_count
from resque_ext.forecasting import Forecast, forecast
from resque_ext.model.batch import labelled
from resque_ext.retraining.meters import EVALUATION, TRAINING
from resque_ext.retraining.outlook import Outlook, Span, Watch
from resque_ext.retraining.target import Checks, Target

Report = Callable[[dict[str, float], int], Any]


class ForecastTracker:
    """What the callbacks of this room share; use it in a loop of your own too.

    Call `begin` before training, `check` at every evaluation, `end` after training.

    Args:
        train, test: batches that can be read again and again, as for :func:`resque_ext.forecast`:
            tensors ``(inputs, labels)``, or mappings with `labels`.
        target_accuracy: fraction of the test data, above 0 and at most 1.
        report: called with plain numbers and a step, as W&B and MLflow take them.
        options: further arguments of :func:`resque_ext.forecast`, such as `steps` and
            `batch_adapter`.

    Attributes:
        forecast: the :class:`resque_ext.Forecast`; None before `begin`.
        outlooks: one an evaluation.
        reached_step: the step of the first evaluation that met the target; None before.
        steps_per_epoch: optimizer steps, of the training; None before `begin`.
    """

    def __init__(
        self,
        train: Iterable[Any],
        test: Iterable[Any],
        target_accuracy: float,
        *,
        report: Report | None = None,
        **options: Any,
    ) -> None:
        if report is not None and not callable(report):
            raise TypeError(f"report: expected a function of (numbers, step), found {report!r}")
        self.train, self.test, self.target_accuracy = train, test, target_accuracy
        self.report, self.options = report, options
        self.forecast: Forecast | None = None
        self.outlooks: list[Outlook] = []
        self.reached_step: int | None = None
        self._watch: Watch | None = None
        self.steps_per_epoch: int | None = None
        self._start, self._first = 0.0, 0  # seconds, step
        self._last = (0, 0.0)  # step, epoch

    def begin(
        self,
        model: nn.Module,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        step: int = 0,
        samples: int | None = None,
        steps_per_epoch: int | None = None,
        check_every: int | None = None,
    ) -> Forecast:
        """Forecast from the model as it is; it and torch's random numbers stay as they are.

        Args:
            model: the classifier that will be trained.
            optimizer: of the training; the probe takes one of its class with its defaults. A
                schedule of the learning rate is not known to the forecast.
            step: that the training is at: not 0 where it was resumed.
            samples: of the test data; counted from the batches by default.
            steps_per_epoch: optimizer steps, of the training; by default as many as `train` has
                batches.
            check_every: steps between two evaluations; by default an epoch.
        """
        options = dict(self.options)
        if optimizer is not None and "optimizer" not in options:
            options["optimizer"] = like(optimizer)
        options.setdefault("meter", None)
        found = forecast(model, None, self.train, self.test, self.target_accuracy, **options)
        epoch = check_count(steps_per_epoch or found.steps_per_epoch, "steps_per_epoch")
        every = min(check_count(check_every or epoch, "check_every"), epoch)
        checks = Checks.of({*range(every, epoch + 1, every), epoch}, epoch)
        if samples is None:
            with torch.random.fork_rng(devices=[]):  # a DataLoader draws a number every pass
                samples = sum(_rows(batch, options.get("batch_adapter")) for batch in self.test)
        target = Target(float(self.target_accuracy), samples)
        points = [replace(point, step=step + point.step) for point in found.points]
        self._watch = Watch(
            target, checks, points, found.before, found.calibration, None, timed_from=step
        )
        self.forecast, self.outlooks, self.reached_step = found, [], None
        self.steps_per_epoch = epoch
        self._start, self._first = time.perf_counter(), step
        self._last = (step, step / epoch)
        self._tell(forecast_numbers(found), step)
        return found

    def check(self, step: int, epoch: float, accuracy: float, loss: float) -> Outlook:
        """Take an evaluation of the test data in.

        Args:
            step, epoch: where the training is.
            accuracy: fraction, 0 to 1.
            loss: mean cross-entropy.
        """
        if self._watch is None:
            raise RuntimeError("check: expected begin() first, found no forecast")
        seconds = {TRAINING: time.perf_counter() - self._start, EVALUATION: 0.0}
        found = self._watch.look(step, epoch, accuracy, loss, seconds)
        self.outlooks.append(found)
        self._last = (step, epoch)
        if found.reached and self.reached_step is None:
            self.reached_step = step
        self._tell(outlook_numbers(found), step)
        return found

    def end(self, step: int, epoch: float) -> dict[str, Any]:
        """The final cost beside the forecast, as :meth:`summary` has it."""
        self._last = (step, epoch)
        found = self.summary()
        numbers = {k: float(v) for k, v in found.items() if isinstance(v, (int, float))}
        self._tell(numbers, step)
        return found

    def summary(self) -> dict[str, Any]:
        """Plain values: what was forecast, and what it took.

        `steps` are those since `begin` until the target was first met, or all so far where it was
        not: then `reached` is False and the cost is larger. `ratio` is forecast over measured
        steps.
        """
        if self.forecast is None:
            raise RuntimeError("summary: expected begin() first, found no forecast")
        step = self._last[0] if self.reached_step is None else self.reached_step
        step -= self._first
        expected = self.forecast.steps
        known = expected.value is not None and step > 0 and self.reached_step is not None
        return {
            "forecast_stage": self.forecast.stage,
            "forecast_verdict": self.forecast.verdict,
            "forecast_steps": expected.value,
            "forecast_steps_low": expected.low,
            "forecast_steps_high": expected.high,
            "steps": step,
            "reached": self.reached_step is not None,
            "ratio": expected.value / step if known else None,
            "inside": _inside(expected, step) if self.reached_step is not None else None,
        }

    def _tell(self, numbers: Mapping[str, float], step: int) -> None:
        if self.report is not None:
            self.report({f"forecast/{name}": value for name, value in numbers.items()}, step)


def like(optimizer: torch.optim.Optimizer) -> Callable[[list[nn.Parameter]], Any]:
    """Makes an optimizer of the same class with the same defaults, of other parameters."""
    wrapped = getattr(optimizer, "optimizer", None)  # as accelerate wraps it
    kind = type(wrapped if isinstance(wrapped, torch.optim.Optimizer) else optimizer)
    known = inspect.signature(kind).parameters  # AdamW has a default that it does not take
    defaults = {name: value for name, value in optimizer.defaults.items() if name in known}
    return lambda parameters: kind(parameters, **defaults)


def forecast_numbers(found: Forecast) -> dict[str, float]:
    """The costs of a forecast as numbers by name, unknown ones left out, for a logger."""
    numbers = {"accuracy": found.accuracy, "target_accuracy": found.target_accuracy}
    for name, cost in found.costs.items():
        ends = {name: cost.value, f"{name}_low": cost.low, f"{name}_high": cost.high}
        numbers |= {key: float(value) for key, value in ends.items() if value is not None}
    if found.never_probability is not None:
        numbers["never_probability"] = found.never_probability
    return numbers


def outlook_numbers(found: Outlook) -> dict[str, float]:
    """An outlook as numbers by name, unknown ones left out, for a logger."""
    numbers = {"accuracy": found.accuracy}
    for name in ("steps", "epochs", "seconds_left"):
        span: Span | None = getattr(found, name)
        if span is not None:
            ends = {name: span.value, f"{name}_low": span.low, f"{name}_high": span.high}
            numbers |= {key: float(value) for key, value in ends.items() if value is not None}
    return numbers


def _inside(cost: Any, step: int) -> bool | None:
    if cost.value is None:
        return None
    return cost.low <= step and (cost.high is None or step <= cost.high)


def _rows(batch: Any, adapter: Any) -> int:
    return len(labelled(batch, "test", adapter)[1])
