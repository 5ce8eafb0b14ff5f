"""How predicted costs carry over to another data set size, device or grid: by stated rules only."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from resque_ext.energy.measurement import JOULES_PER_KWH
from resque_ext.errors import ArgumentError, ArgumentTypeError

ENERGY = ("joules", "joules_estimated")
EMISSIONS = {"kg_co2": "joules", "kg_co2_estimated": "joules_estimated"}
KWH = {"kwh": "joules", "kwh_estimated": "joules_estimated"}
OF_DEVICE = ("seconds", *ENERGY, *EMISSIONS)  # differ from device to device
# Sums over a run: 0 where no step was taken, and other in another number of steps an epoch.
SUMS = ("gradient_norm_sum", *OF_DEVICE)
OF_SIZE = ("parameter_change", "gradient_norm_mean", "gradient_norm_last", *SUMS)

RULES = (
    "to predict for another device, give energy_factor= and seconds_factor= (new device over the "
    "device of the runs), or joules_per_sample= measured on it; for kg CO2 also carbon_intensity="
)


@dataclass(frozen=True)
class Prediction:
    """What a cost model says of one measure.

    Attributes:
        measure, unit: what is predicted; a key of `MEASURES`, or kwh or kwh_estimated.
        value: None where it is not known, and `reason` says why.
        low, high: the interval. `high` None is unbounded, and `reason` says why; both None where
            `value` is.
        extrapolated: a predictor was outside the range of the runs.
        at_least: the value lies where runs were stopped short of their target, so it is a lower
            bound.
        coverage: that the interval is for.
        guarantee: probability that it covers at least, if the new shift is drawn as those of the
            runs were; None where it is extrapolated, which nothing is guaranteed of.
        basis: what new shift the interval is for: "a new level of a known kind" or "a new kind of
            shift".
        reason: see above.
        notes: by which rules it was scaled.
    """

    measure: str
    value: float | None
    low: float | None
    high: float | None
    unit: str
    extrapolated: bool
    at_least: bool
    coverage: float
    guarantee: float | None
    basis: str
    reason: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the value cannot be relied on for; none of an unknown, of which `reason` tells."""
        if self.value is None:
            return ()
        found = []
        if self.extrapolated:
            found.append("extrapolated: outside of what was measured")
        if self.at_least:
            found.append("a lower bound: runs were stopped short of their target there")
        if self.high is None:
            found.append(f"no upper end: {self.reason}" if self.reason else "no upper end")
        return tuple(found)

    @property
    def reliable(self) -> bool:
        """Whether there is a value without a warning."""
        return self.value is not None and not self.warnings

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        lists = {"notes": list(self.notes), "warnings": list(self.warnings)}
        return vars(self) | lists | {"reliable": self.reliable}

    def times(self, factor: float, *notes: str) -> Prediction:
        """All of it times `factor`; an unknown stays one."""
        if self.value is None:
            return self
        value, low, high = (
            None if v is None else v * factor for v in (self.value, self.low, self.high)
        )
        return replace(self, value=value, low=low, high=high, notes=(*self.notes, *notes))

    def unknown(self, reason: str) -> Prediction:
        """The same measure without a value."""
        known = {"value": None, "low": None, "high": None, "at_least": False, "notes": ()}
        return replace(self, **known, reason=reason)


@dataclass(frozen=True)
class Origin:
    """Where the costs of a model come from; None where the runs are not of one."""

    samples_per_epoch: int | None
    device: str | None


@dataclass(frozen=True)
class Scaling:
    """To what a prediction is carried over. Checked when it is made."""

    samples_per_epoch: int | None = None
    device: str | None = None
    energy_factor: float | None = None
    seconds_factor: float | None = None
    joules_per_sample: float | None = None
    carbon_intensity: float | None = None

    def __post_init__(self) -> None:
        samples = self.samples_per_epoch
        if samples is not None and (
            not isinstance(samples, numbers.Integral) or isinstance(samples, bool) or samples < 1
        ):
            raise ArgumentError("samples_per_epoch", "an integer above 0", f"{samples!r}")
        if self.device is not None and (not isinstance(self.device, str) or not self.device):
            raise ArgumentError("device", "a name", f"{self.device!r}")
        for name in ("energy_factor", "seconds_factor", "joules_per_sample"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), above=0.0)
        if self.carbon_intensity is not None:
            check_number("carbon_intensity", self.carbon_intensity, least=0.0)
        if self.energy_factor is not None and self.joules_per_sample is not None:
            raise ArgumentError(
                "energy_factor, joules_per_sample",
                "one of the two",
                f"{self.energy_factor!r} and {self.joules_per_sample!r}",
            )

    def apply(self, found: Mapping[str, Prediction], origin: Origin) -> dict[str, Prediction]:
        """The predictions, by measure, carried over from `origin`, and kwh beside joules."""
        moved = self.device is not None and self.device != origin.device
        here = [name for name in found if name in OF_DEVICE]
        factors = (self.energy_factor, self.seconds_factor, self.joules_per_sample)
        if moved and here and factors == (None, None, None):
            raise ArgumentError(
                "device", f"{origin.device!r}, as of the runs", f"{self.device!r}: {RULES}"
            )
        result = dict(found)
        self._resize(result, origin)
        self._move(result, moved)
        self._count_samples(result, origin)
        self._emit(result, moved)
        for name, source in KWH.items():
            if source in result:
                joules = replace(result[source], measure=name, unit="kWh")
                result[name] = joules.times(1 / JOULES_PER_KWH)
        return result

    def _resize(self, result: dict[str, Prediction], origin: Origin) -> None:
        samples, own = self.samples_per_epoch, origin.samples_per_epoch
        if samples is None or samples == own:
            return
        if own is None:
            raise ArgumentError(
                "samples_per_epoch", "none, as the runs of the model differ in it", samples
            )
        for name in OF_SIZE:
            if name in result and name in OF_DEVICE:
                note = f"times {samples}/{own} samples an epoch, epochs unchanged"
                result[name] = result[name].times(samples / own, note)
            elif name in result:
                reason = f"no rule carries it from {own} to {samples} samples an epoch"
                result[name] = result[name].unknown(reason)

    def _move(self, result: dict[str, Prediction], moved: bool) -> None:
        factors = dict.fromkeys((*ENERGY, *EMISSIONS), ("energy_factor", self.energy_factor))
        factors["seconds"] = ("seconds_factor", self.seconds_factor)
        for name, (argument, factor) in factors.items():
            if name not in result:
                continue
            if factor is not None:
                result[name] = result[name].times(factor, f"times {argument} {factor:g}")
            elif moved:
                reason = f"not known of {self.device!r} without {argument}"
                result[name] = result[name].unknown(reason)

    def _count_samples(self, result: dict[str, Prediction], origin: Origin) -> None:
        each = self.joules_per_sample
        if each is None or "joules" not in result:
            return
        samples = self.samples_per_epoch or origin.samples_per_epoch
        if samples is None or "epochs" not in result:
            raise ArgumentError(
                "joules_per_sample",
                "a model of epochs with one number of samples an epoch "
                "in all runs, or samples_per_epoch",
                "neither",
            )
        note = f"epochs times {samples} samples of {each:g} J"
        epochs = replace(result["epochs"], measure="joules", unit="J")
        result["joules"] = epochs.times(samples * each, note)

    def _emit(self, result: dict[str, Prediction], moved: bool) -> None:
        grams = self.carbon_intensity
        for name, source in EMISSIONS.items():
            if name not in result:
                continue
            if grams is None:
                if moved or (self.joules_per_sample is not None and name == "kg_co2"):
                    reason = "not known of another device without carbon_intensity"
                    result[name] = result[name].unknown(reason)
            elif source in result:
                joules = replace(result[source], measure=name, unit=result[name].unit)
                note = f"at {grams:g} g CO2e a kWh"
                result[name] = joules.times(grams / 1000 / JOULES_PER_KWH, note)
            else:
                result[name] = result[name].unknown(f"carbon_intensity needs a model of {source}")


def check_number(
    name: str, value: Any, least: float | None = None, above: float | None = None
) -> float:
    """The value as a float.

    Raises:
        TypeError: not a real number.
        ValueError: not finite, or out of bounds.
    """
    try:
        if isinstance(value, (bool, str, bytes)) or value is None:
            raise TypeError
        number = float(value)
    except OverflowError:
        number = math.inf
    except (TypeError, ValueError):
        raise ArgumentTypeError(name, "a number", f"{value!r}") from None
    wanted = "a finite number"
    if least is not None:
        wanted = f"a number from {least:g}"
    if above is not None:
        wanted = f"a number above {above:g}"
    low = (least is not None and number < least) or (above is not None and number <= above)
    if not math.isfinite(number) or low:
        raise ArgumentError(name, wanted, f"{value!r}")
    return number
