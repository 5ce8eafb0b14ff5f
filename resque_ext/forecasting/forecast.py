"""forecast: what a retraining will cost, from the target and a probe of its first steps."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from statistics import NormalDist
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from resque_ext.cost_model.scaling import Prediction
from resque_ext.energy import EnergyMeter, Figure
from resque_ext.energy.measurement import unknown
from resque_ext.forecasting import indices
from resque_ext.forecasting.costs import Costs, Steps
from resque_ext.forecasting.options import Limits, check_options
from resque_ext.forecasting.probe import Probe
from resque_ext.forecasting.result import (
    MAY_NEVER,
    UNSTABLE,
    Forecast,
    ProbeCost,
    before_steps,
)
from resque_ext.retraining import RetrainingError, setup
from resque_ext.retraining import meters as phases
from resque_ext.retraining.batches import Batches
from resque_ext.retraining.calibration import (
    Before,
    Calibration,
    Estimate,
    estimate,
    is_unstable,
    never_probability,
)
from resque_ext.retraining.random_state import Randomness

NEAR_STEPS = 8  # fewer than these to go are rounded up to the next check


def forecast(
    model: nn.Module,
    old: Iterable[Any] | None,
    train: Iterable[Any],
    test: Iterable[Any],
    target_accuracy: float,
    max_epochs: float = 200,
    *,
    steps: Sequence[int] = (16, 32),
    max_share: float = 0.2,
    width: float = 4.0,
    coverage: float = 0.9,
    adapt_normalization: bool | str = "auto",
    samples: int = 2000,
    layer: str | None = None,
    carbon_intensity: float | None = None,
    batch_adapter: Callable[[Any], tuple[Any, Any]] | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    meter: EnergyMeter | str | None = "auto",
    progress: bool = False,
    calibration: Calibration | None = None,
    **recipe: Any,
) -> Forecast:
    """What retraining `model` on `train` until it is right on `test` will cost, without a study.

    The held-out accuracy comes first: a target that it meets costs nothing. Then forward passes
    (a linear probe's error in units of the error that the target allows), then a probe: the first
    steps of this very retraining, on a copy. Reading its held-out loss and error on the way tells
    how far the target is. :func:`resque_ext.retraining.retrain` with ``start=`` goes on from there
    and ends like a run that began without it.

    Numbers are predictions by constants from a ledger of retrainings of small networks
    (docs/forecast.md has their errors, and where they fail). :func:`resque_ext.forecasting.refit`
    refines them by runs of your own.

    Args:
        model: any classifier, as for `retrain`. It stays as it is.
        old: batches that the model was trained on, as it takes them (`transform` is not applied).
            They are read only to match normalization without running statistics; may be None.
        train, test: batches ``(inputs, labels)`` that can be read again and again.
        target_accuracy: fraction of the test data, above 0 and at most 1.
        max_epochs: of the retraining, as for `retrain`.
        steps: lengths of the probe, ascending powers of two from 16. After the first it goes on to
            the next one while the interval is wider than `width` and the share of the forecast that
            is spent is below `max_share`. () takes no step.
        max_share: of the forecast number of steps, above 0 and at most 1.
        width: the upper end of the interval over the lower one that is narrow enough.
        coverage: of the intervals, at least 0.5 and below 1.
        adapt_normalization: before forward passes: True re-estimates running statistics, "match"
            also matches other normalization to `old`; "auto" does what model and data allow; False.
        samples: about how many of `train` and of `old` the forward passes read.
        layer: the embedding's layer, as in :func:`resque_ext.score`.
        carbon_intensity: g CO2e/kWh; by default that of `meter`.
        batch_adapter, device, seed, meter, progress: as for `retrain`.
        calibration: what :func:`resque_ext.forecasting.refit` made of runs of your own; by default
            that of the package.
        recipe: how to retrain: optimizer, scheduler, scheduler_interval, loss, transform, augment,
            checks_per_epoch, autocast, channels_last, deterministic, max_seconds, max_joules,
            patience, min_improvement, as for `retrain`.

    Returns:
        The :class:`Forecast`. Ctrl-C once the held-out accuracy is known ends it early, with what
        is known and `interrupted` set.

    Raises:
        TypeError, ValueError: an argument or a batch is wrong.
        Any other exception of the model or the data passes unchanged. A loss that is not finite is
        none: the verdict is "unstable" then.
    """
    inner, place = setup.check_model(model), setup.choose_device(model, device)
    settings, limits = check_options(
        steps,
        target_accuracy,
        max_epochs,
        max_share=max_share,
        width=width,
        coverage=coverage,
        samples=samples,
        carbon_intensity=carbon_intensity,
        calibration=calibration,
        seed=seed,
        device=place,
        **recipe,
    )
    way = indices.choose_way(inner, adapt_normalization, old is not None)
    with contextlib.ExitStack() as stack:
        # One meter for all windows: that of the run, and those around it.
        metered = setup.make_meter(meter, settings, stack)
        run = stack.enter_context(
            setup.opened(
                inner, train, test, settings, batch_adapter, metered, names=("train", "test")
            )
        )
        bar = stack.enter_context(
            tqdm(desc="forecast", disable=not progress, leave=False, bar_format="{desc}")
        )
        grams = _grams(carbon_intensity, metered)
        asked = adapt_normalization != "auto"
        work = _Forecasting(inner, Probe(run), limits, grams, way, asked, layer, calibration)
        stack.callback(work.close)
        return work.go(old, batch_adapter, samples, bar.set_description_str)


class _Forecasting:
    """One forecast while it is made."""

    def __init__(
        self,
        model: nn.Module,
        probe: Probe,
        limits: Limits,
        grams: Figure,
        way: bool | str,
        asked: bool,
        layer: str | None,
        calibration: Calibration | None,
    ) -> None:
        self.model, self.probe, self.limits = model, probe, limits
        self.way, self.asked, self.layer = way, asked, layer
        self.calibration = calibration
        self.settings, self.target = probe.run.settings, probe.target
        self.costs = Costs(limits.coverage, probe.run.train.count, grams)
        self.all = phases.Costs(probe.run.device, probe.run.costs.meter)  # of the forecast itself
        self.adapting = phases.Costs(probe.run.device, probe.run.costs.meter)
        self.notes: list[str] = []
        self.adapted: nn.Module | None = None
        self.adapted_accuracy: float | None = None
        self.linear_error: float | None = None
        self.diverged: str | None = None
        self.interrupted = False

    def go(
        self,
        old: Any,
        adapter: Callable[[Any], tuple[Any, Any]] | None,
        samples: int,
        say: Callable[[str], Any],
    ) -> Forecast:
        self.all.switch(phases.EVALUATION)
        say("held-out accuracy")
        self.probe.begin()
        try:
            if not self._met(self.probe.points[0].error):
                say("forward passes")
                self._read_indices(old, adapter, samples)
                for length in () if self._adapted_meets() else self.limits.lengths:
                    if self.limits.enough(self._steps(), self.probe.taken):
                        break
                    say(f"probe of {length} steps")
                    self.probe.advance(length)
                    if self.probe.reached is not None or self.probe.stopped is not None:
                        break
        except KeyboardInterrupt:
            self.interrupted = True
            self.notes.append("interrupted: made of what was known by then")
        except RetrainingError as error:
            self.diverged = str(error)
            self.notes.append(self.diverged)
        return self._result()

    def close(self) -> None:
        self.probe.close()
        for costs in (self.adapting, self.all):
            costs.close()

    def _met(self, error: float) -> bool:
        return 1 - error >= self.target.accuracy

    def _adapted_meets(self) -> bool:
        found = self.adapted_accuracy
        return found is not None and found >= self.target.accuracy

    def _read_indices(self, old: Any, adapter: Any, samples: int) -> None:
        run, settings = self.probe.run, self.settings
        new = indices.Part(run.train, settings.transform, settings, run.randomness, samples)
        model = self.model
        if self.way:
            olds = None
            if self.way == "match":
                randomness = Randomness(run.device, (old,))
                with randomness.kept(settings.seed):
                    batches = Batches(old, "old", run.device, adapter, indices=False)
                    batches.measure(randomness)
                olds = indices.Part(batches, None, settings, randomness, samples)
            self.adapting.switch(phases.EVALUATION)
            try:
                model = indices.adapted(model, self.way, new, olds, settings)
            except (ValueError, KeyError) as error:  # such as a batch of one sample
                if self.asked:
                    raise
                self.notes.append(f"normalization as it is: {error}")
            else:
                self.adapting.switch(None)
                reading = run.read_test(phases.Costs(run.device, None), model=model)
                self.adapted_accuracy = reading[0]
            self.adapting.switch(None)
            if self._adapted_meets():
                self.adapted = model.eval()
                return
        linear = indices.linear_error(model, new, self.layer, settings)
        self.linear_error = linear.error
        self.notes += linear.notes

    # What is known so far

    def _estimate(self) -> Estimate | None:
        return estimate(self.target, self.before, self.probe.curve(), self.calibration)

    @property
    def before(self) -> Before:
        return before_steps(
            self.linear_error, 1 - self.probe.points[0].error, self.adapted_accuracy
        )

    def _steps(self) -> Steps | None:
        """With the interval; None where nothing tells."""
        found, probe = self._estimate(), self.probe
        if found is None:
            return None
        checks, taken = probe.checks, probe.taken
        least = checks.at_or_after(taken + 1)  # the checks up to here have missed the target
        around = NormalDist().inv_cdf((1 + self.limits.coverage) / 2) * found.sigma
        value = max(2**found.log2_steps, least)
        if value - taken < NEAR_STEPS:
            value = checks.at_or_after(value)
        # A retraining ends at a check, and one that comes close may miss it by chance.
        low = checks.at_or_after(max(2 ** (found.log2_steps - around), least))
        high = checks.at_or_after(max(2 ** (found.log2_steps + around), value + 1))
        low = min(low, value)
        basis = f"prediction by {found.formula}"
        return Steps(value, low, high, basis, extrapolated=found.extrapolated)

    # The result

    def _result(self) -> Forecast:
        probe, points = self.probe, tuple(self.probe.points)
        stage, steps, costs = self._outcome()
        never = verdict = None
        if stage in ("indices", "probe"):
            never = never_probability(self.target, self.before, probe.curve(), self.calibration)
            if never is not None and never >= 0.5:
                verdict = MAY_NEVER
        if self.diverged is not None or (stage == "probe" and is_unstable(points)):
            verdict = UNSTABLE
        if steps is not None and verdict is not None:
            steps = self._opened(steps, verdict)
        if costs is None:
            costs = self._predicted(steps)
        if probe.reason is not None:
            self.notes.append(f"no checkpoint: {probe.reason}")
        found = self._estimate() if stage in ("indices", "probe") else None
        return Forecast(
            stage=stage,
            verdict=verdict,
            never_probability=never,
            costs=costs,
            target_accuracy=self.target.accuracy,
            accuracy=1 - points[0].error,
            adapted_accuracy=self.adapted_accuracy,
            linear_probe_error=self.linear_error,
            points=points,
            formula=None if found is None else found.formula,
            coverage=self.limits.coverage,
            probe=self._spent(costs["steps"].value),
            steps_per_epoch=probe.run.train.count,
            test_samples=probe.run.test.samples,
            interrupted=self.interrupted,
            notes=tuple(self.notes),
            checkpoint=probe.checkpoint,
            calibration=self.calibration,
            adapted_model=self.adapted,
        )

    def _outcome(self) -> tuple[str, Steps | None, dict[str, Prediction] | None]:
        """The stage, the steps and, where they are measured already, the costs."""
        probe, run = self.probe, self.probe.run
        if self._met(probe.points[0].error):
            steps = Steps.known(0, "the held-out accuracy meets the target")
            return "free", steps, self.costs.measured(steps, 0.0, None)
        if self._adapted_meets():
            steps = Steps.known(0, "adapted normalization meets the target")
            seconds = self.adapting.seconds[phases.EVALUATION]
            energy = self.adapting.energy()["total"]
            return "adapt", steps, self.costs.measured(steps, seconds, energy)
        if probe.stopped == "target":
            steps = Steps.known(run.history.steps, "the probe met the target")
            seconds = sum(run.costs.seconds.values())
            costs = self.costs.measured(
                steps, seconds, run.costs.energy()["total"], run.history.epochs
            )
            return "reached", steps, costs
        if probe.stopped is not None:
            self.notes.append(f"the retraining's own limit ended the probe: {probe.stopped}")
        if probe.reached is not None:
            check = probe.checks.at_or_after(probe.reached)
            basis = f"the probe met the target at step {probe.reached}; this is the next check"
            after = probe.checks.at_or_after(check + 1)  # it may miss the target by chance
            return "reached", Steps(check, check, after, basis), None
        return "indices" if probe.curve() is None else "probe", self._steps(), None

    def _opened(self, steps: Steps, verdict: str) -> Steps:
        """No upper end, and for an unstable probe no lower one but the next check."""
        reason = f"{verdict}: a prediction for the case that it is reached"
        low = steps.low
        if verdict == UNSTABLE:
            reason = f"{verdict}: the held-out loss rose in the probe"
            low = self.probe.checks.at_or_after(self.probe.taken + 1)
        return dataclasses.replace(steps, low=low, high=None, reason=reason)

    def _predicted(self, steps: Steps | None) -> dict[str, Prediction]:
        if steps is None:
            reason = self.notes[-1] if self.notes else "neither a linear probe nor steps"
            return self.costs.unknown(reason)
        measure = not self.interrupted and self.diverged is None
        step = self.probe.step_cost(measure)
        evaluation = self.probe.evaluation_cost(measure and step is not None)
        return self.costs.predicted(steps, self.probe.checks, step, evaluation)

    def _spent(self, steps: float | None) -> ProbeCost:
        """What the forecast cost until now."""
        self.all.switch(None)
        energy, probe = self.all.energy()["total"], self.probe
        return ProbeCost(
            steps=probe.taken,
            extra_steps=probe.extra_steps,
            evaluations=probe.evaluations + (self.adapted_accuracy is not None),
            seconds=self.all.seconds[phases.EVALUATION],
            joules=energy.measured.value,
            joules_estimated=energy.estimated.value,
            share=probe.taken / steps if steps else None,
            reason=energy.measured.reason,
        )


def _grams(given: float | None, meter: EnergyMeter | None) -> Figure:
    if given is not None:
        return Figure("all", float(given), "g CO2e/kWh", "given")
    if meter is None:
        return unknown("all", phases.NO_METER, "g CO2e/kWh")
    return meter.carbon_intensity
