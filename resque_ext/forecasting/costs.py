"""From a number of steps to epochs, seconds, joules and emissions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from resque_ext.energy.measurement import JOULES_PER_KWH, Figure, Measurement
from resque_ext.forecasting.probe import Each
from resque_ext.forecasting.result import UNITS
from resque_ext.retraining import Prediction
from resque_ext.retraining.target import Checks

NO_STEPS = "no step was taken, so a step's cost is not known: take a probe (steps=)"
ENERGIES = {"joules": "", "joules_estimated": "_estimated"}


@dataclass(frozen=True)
class Steps:
    """A number of steps with its interval; `high` None is unbounded, for `reason`.

    Attributes:
        basis: where it is from.
        extrapolated: beyond what the calibration has seen.
    """

    value: float
    low: float
    high: float | None
    basis: str
    reason: str | None = None
    extrapolated: bool = False

    @classmethod
    def known(cls, value: float, basis: str) -> Steps:
        return cls(value, value, value, basis)


@dataclass(frozen=True)
class Costs:
    """Makes the predictions of one forecast.

    Args:
        coverage: of the intervals.
        per_epoch: steps of an epoch.
        grams: g CO2e/kWh of the electricity.
    """

    coverage: float
    per_epoch: int
    grams: Figure

    def predicted(
        self, steps: Steps, checks: Checks, step: Each | None, evaluation: Each | None
    ) -> dict[str, Prediction]:
        """So many steps and the evaluations up to them, at the cost of each."""
        found = self._of_steps(steps)

        def add(name: str, of_step: float | None, of_check: float | None, reason: str) -> None:
            if of_step is None or of_check is None:
                found[name] = self._unknown(name, reason)
                return
            price = lambda n: n * of_step + checks.until(n) * of_check  # noqa: E731
            found[name] = self._map(name, steps, price, "measured a step and an evaluation")

        if step is None or evaluation is None:
            for name in ("seconds", *ENERGIES):
                add(name, None, None, NO_STEPS)
            return self._with_energy(found)
        add("seconds", step.seconds, evaluation.seconds, "")
        for name, suffix in ENERGIES.items():
            figures = [_energy(each.energy, suffix) for each in (step, evaluation)]
            values = [
                None if figure.value is None else figure.value / each.count
                for figure, each in zip(figures, (step, evaluation), strict=True)
            ]
            reason = next((f.reason for f in figures if f.value is None), None)
            add(name, values[0], values[1], str(reason))
        return self._with_energy(found)

    def measured(
        self,
        steps: Steps,
        seconds: float,
        energy: Measurement | None,
        epochs: float | None = None,
    ) -> dict[str, Prediction]:
        """Of what is over: these seconds and this energy; None is no energy at all."""
        found = self._of_steps(steps)
        if epochs is not None:
            found["epochs"] = self._map("epochs", steps, lambda _: epochs, "")
        found["seconds"] = self._map("seconds", steps, lambda _: seconds, "measured")
        for name, suffix in ENERGIES.items():
            figure = None if energy is None else _energy(energy, suffix)
            value = 0.0 if figure is None else figure.value
            if value is None:
                found[name] = self._unknown(name, str(figure.reason))
            else:
                found[name] = self._map(name, steps, lambda _, v=value: v, "measured")
        return self._with_energy(found)

    def unknown(self, reason: str) -> dict[str, Prediction]:
        """Nothing is known."""
        return {name: self._unknown(name, reason) for name in UNITS}

    def _of_steps(self, steps: Steps) -> dict[str, Prediction]:
        return {
            "epochs": self._map("epochs", steps, lambda n: n / self.per_epoch, ""),
            "steps": self._map("steps", steps, lambda n: n, ""),
        }

    def _map(self, name: str, steps: Steps, of: Callable[[float], float], basis: str) -> Prediction:
        return Prediction(
            measure=name,
            value=of(steps.value),
            low=of(steps.low),
            high=None if steps.high is None else of(steps.high),
            unit=UNITS[name],
            extrapolated=steps.extrapolated,
            at_least=False,
            coverage=self.coverage,
            guarantee=None,
            basis="; ".join(filter(None, (steps.basis, basis))),
            reason=steps.reason,
        )

    def _unknown(self, name: str, reason: str) -> Prediction:
        return Prediction(
            name, None, None, None, UNITS[name], False, False, self.coverage, None, "none", reason
        )

    def _with_energy(self, found: dict[str, Prediction]) -> dict[str, Prediction]:
        """kWh and emissions of the joules."""
        for joules, suffix in ENERGIES.items():
            kwh = replace(found[joules], measure=f"kwh{suffix}", unit="kWh")
            kwh = found[f"kwh{suffix}"] = kwh.times(1 / JOULES_PER_KWH)
            name = f"kg_co2{suffix}"
            mass = replace(kwh, measure=name, unit=UNITS[name])
            if self.grams.value is not None:
                found[name] = mass.times(self.grams.value / 1000)
            elif kwh.value == kwh.high == 0:
                found[name] = mass  # nothing used, nothing emitted, whatever the grid
            else:
                found[name] = mass.unknown(kwh.reason if kwh.value is None else self.grams.reason)
        return {name: found[name] for name in UNITS}


def _energy(measurement: Measurement, suffix: str) -> Figure:
    return measurement.estimated if suffix else measurement.measured
