"""CostModel: from the indices of a shift to what retraining for it will cost, with intervals."""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from resque_ext.cost_model.intervals import (
    Curve,
    Interval,
    LeftOut,
    interval,
    leave_out,
)
from resque_ext.cost_model.regression import METHODS
from resque_ext.cost_model.runs import (
    FORMAT,
    ModelRun,
    check_runs,
    check_unknown,
    model_runs,
    parse,
)
from resque_ext.cost_model.scaling import (
    EMISSIONS,
    ENERGY,
    KWH,
    Origin,
    Prediction,
    Scaling,
    check_number,
)
from resque_ext.cost_model.target import DERIVED, checked_target, has_target, with_target
from resque_ext.data.checks import describe
from resque_ext.data.files import read_bytes
from resque_ext.errors import ArgumentError, ArgumentTypeError
from resque_ext.retraining.record import MEASURES, RecordError
from resque_ext.storage.atomic import replaced
from resque_ext.studies.grid import COVERAGE, ROUNDING
from resque_ext.studies.study_run import StudyRun, lower_is_cheaper

PREDICTORS = ("resque_dist_reestimated",)
PREDICTED = (
    "epochs",
    "gradient_norm_sum",
    "parameter_change",
    "seconds",
    *ENERGY,
    *EMISSIONS,
)
EXTRAPOLATE = ("error", "clamp", "flag")
NEW_LEVEL, NEW_KIND = "a new level of a known kind", "a new kind of shift"
MET = "the accuracy meets the target"
UNITS = {"epochs": "epochs", "seconds": "s"} | dict.fromkeys(ENERGY, "J")
UNITS |= dict.fromkeys(EMISSIONS, "kg CO2e") | dict.fromkeys(KWH, "kWh")


class CostModel:
    """Predicts the cost of retraining for a shift from its predictors, as measured runs teach.

    Make it by `fit` or `load`; of costs that were measured elsewhere, of `ModelRun`s. It holds
    the predictors and costs of its runs and nothing else: all curves follow from them.

    Attributes:
        predictors: names, as in `StudyRun.predictors`.
        measures: that were asked for, keys of `MEASURES`.
        method: "monotone" or "log-linear".
        coverage: of the intervals, unless a prediction asks for another.
        penalty: of the log-linear fit.
        runs: what is kept of each run.
        samples_per_epoch: of the runs; None where they differ.
        device: name of the runs' device; None where they differ.
        unknown: why a measure is not known of the runs, by its name.
        falling: predictors of which more is cheaper; None asks their indices.
        target_accuracy: of the runs; None where they differ or it is not known.
    """

    def __init__(
        self,
        runs: Sequence[ModelRun],
        predictors: Sequence[str],
        measures: Sequence[str],
        method: str = "monotone",
        coverage: float = COVERAGE,
        penalty: float = 0.01,
        samples_per_epoch: int | None = None,
        device: str | None = None,
        unknown: Mapping[str, str] | None = None,
        falling: Sequence[str] | None = None,
        target_accuracy: float | None = None,
    ) -> None:
        self.predictors = _names("predictors", predictors)
        self.measures = _names("measures", measures, MEASURES)
        if method not in METHODS:
            raise ArgumentError("method", f"one of {list(METHODS)}", f"{method!r}")
        self.method = method
        self.coverage = _coverage(coverage)
        self.penalty = check_number("penalty", penalty, least=0.0)
        self.runs = check_runs(runs, self.predictors, self.measures)
        Scaling(samples_per_epoch, device)  # which checks them
        self.samples_per_epoch = None if samples_per_epoch is None else int(samples_per_epoch)
        self.device = device
        self.target_accuracy = checked_target("target_accuracy", target_accuracy)
        self.unknown = check_unknown(unknown or {}, self.runs, self.measures)
        if falling is None:
            falling = [name for name in self.predictors if not lower_is_cheaper(name)]
        self.falling = _names("falling", falling, dict.fromkeys(self.predictors)) if falling else ()
        # Curves rise: a predictor of which more is cheaper enters them negative.
        self.signs = np.array([-1.0 if name in self.falling else 1.0 for name in self.predictors])
        self._curves: dict[str, _Curves] = {}

    @classmethod
    def fit(
        cls,
        runs: Iterable[StudyRun],
        predictors: Sequence[str] = PREDICTORS,
        measures: Sequence[str] = PREDICTED,
        method: str = "monotone",
        coverage: float = COVERAGE,
        *,
        penalty: float = 0.01,
        missing: str = "error",
        only: Mapping[str, Any] | None = None,
        mixed: bool = False,
    ) -> CostModel:
        """A model of measured runs.

        Args:
            runs: of one model, target and way of training, at least two of them not censored; of
                one device and number of samples an epoch, where a measure depends on these.
            predictors: one or several names of `StudyRun.predictors`, or "error_over_allowed" (and
                with "_reestimated" behind): log2(linear_probe_error / (1 - target)), of which runs
                to several targets are fitted as one.
            measures: what to predict, keys of `MEASURES`.
            method: "monotone": isotonic regression of log(1 + cost / scale), falling in an index of
                which more is cheaper; of several predictors, of their log-linear combination.
                "log-linear": a straight line in the predictors. Scale: the median cost.
            coverage: of the intervals, from 0.5 to below 1.
            penalty: on the squared weights of standardised predictors, a run, in log-linear fits.
            missing: what to do with a run that lacks a predictor: "error" or "skip".
            only: takes the runs that have these values of "model", "target_accuracy",
                "steps_per_epoch" or an option of their training ("optimizer", "optimizer.lr",
                "augment", ...), and leaves all others out.
            mixed: fit runs that differ in these as one. Models are told apart by name alone.

        Raises:
            TypeError: something else than StudyRuns.
            ValueError: too few runs, runs that differ, a predictor that is missing or not finite,
                other names.
        """
        predictors, measures = _names("predictors", predictors), _names("measures", measures)
        _names("measures", measures, MEASURES)
        kept, about = model_runs(runs, predictors, measures, missing, only, mixed)
        return cls(kept, predictors, measures, method, coverage, penalty, **about)

    @functools.cached_property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """Lowest and highest value of every predictor in the runs."""
        columns = zip(*(run.predictors for run in self.runs), strict=True)
        return {n: (min(c), max(c)) for n, c in zip(self.predictors, columns, strict=True)}

    @functools.cached_property
    def kinds(self) -> tuple[str, ...]:
        """Of shift, in the order of the runs."""
        return tuple(dict.fromkeys(run.kind for run in self.runs))

    def predict(
        self,
        values: Mapping[str, float],
        *,
        kind: str | None = None,
        coverage: float | None = None,
        extrapolate: str = "error",
        samples_per_epoch: int | None = None,
        device: str | None = None,
        energy_factor: float | None = None,
        seconds_factor: float | None = None,
        joules_per_sample: float | None = None,
        carbon_intensity: float | None = None,
        accuracy: float | None = None,
        target_accuracy: float | None = None,
    ) -> dict[str, Prediction]:
        """The costs of a new shift by measure, with kwh beside joules.

        Args:
            values: of the predictors, by name; others are not looked at.
            kind: of the shift. One of `kinds` asks for the interval of a new level of a known kind;
                any other, and None, for that of a new kind of shift, and so does one of which a
                measure is not known.
            coverage: instead of the model's.
            extrapolate: where a predictor is outside `ranges`: "error" raises; "clamp" predicts at
                the end of the range, "flag" goes on (a line as a line, a monotone fit flat), both
                with `extrapolated` set.
            samples_per_epoch: of the new data: energy, time and CO2 are proportional to it, epochs
                stay, and no rule is known for gradients and parameters.
            device: name of another device than the runs'. Then energy, time and CO2 need:
            energy_factor, seconds_factor: their ratio, new over old.
            joules_per_sample: measured on the device; joules are epochs x samples x this.
            carbon_intensity: g CO2e a kWh; kg CO2 follows from joules.
            accuracy: of the model on the new shift's test data, before any training: where it meets
                the target, all costs are 0.
            target_accuracy: by default that of the runs. Another one needs "error_over_allowed"
                among the predictors.

        Raises:
            KeyError: a predictor is missing.
            TypeError, ValueError: it is no finite number, or outside the range; another device
                without a rule.
        """
        scaling = Scaling(
            samples_per_epoch,
            device,
            energy_factor,
            seconds_factor,
            joules_per_sample,
            carbon_intensity,
        )
        target = self._target(target_accuracy)
        met = checked_target("accuracy", accuracy)
        if met is not None and target is None:
            expected = "one beside accuracy, as the runs have none in common"
            raise ArgumentError("target_accuracy", expected, None)
        if isinstance(values, Mapping):
            values = with_target(values, self.predictors, target)
        same = {"kind": kind, "coverage": coverage, "extrapolate": extrapolate}
        if met is not None and target is not None and met >= target:
            same |= {"met": True}
        found = {name: self.predict_one(name, values, **same) for name in self.measures}
        return scaling.apply(found, Origin(self.samples_per_epoch, self.device))

    def predict_one(
        self,
        measure: str,
        values: Mapping[str, float],
        *,
        kind: str | None = None,
        coverage: float | None = None,
        extrapolate: str = "error",
        met: bool = False,
    ) -> Prediction:
        """One of `measures` alone, for data, device and grid of the runs; see `predict`.

        With `met` the accuracy meets the target: it costs nothing.
        """
        if measure not in self.measures:
            raise ArgumentError("measure", f"one of {list(self.measures)}", f"{measure!r}")
        coverage = self.coverage if coverage is None else _coverage(coverage)
        if kind is not None and not isinstance(kind, str):
            raise ArgumentTypeError("kind", "a name or None", f"{kind!r}")
        if met:
            unit = UNITS.get(measure, "")
            return Prediction(measure, 0.0, 0.0, 0.0, unit, False, False, coverage, None, MET)
        point, extrapolated = self._point(values, extrapolate)
        return self._predict(measure, point, kind, coverage, extrapolated)

    def _target(self, given: Any) -> float | None:
        target = checked_target("target_accuracy", given)
        if target is None or target == self.target_accuracy or has_target(self.predictors):
            return self.target_accuracy if target is None else target
        expected, fix = f"that of the runs, {self.target_accuracy}", "fit " + " or ".join(DERIVED)
        raise ArgumentError("target_accuracy", expected, repr(given), fix=fix)

    def _point(self, values: Mapping[str, float], extrapolate: str) -> tuple[Any, bool]:
        if extrapolate not in EXTRAPOLATE:
            raise ArgumentError("extrapolate", f"one of {list(EXTRAPOLATE)}", f"{extrapolate!r}")
        if not isinstance(values, Mapping):
            raise ArgumentTypeError("values", "a dict of predictors", describe(values))
        point, outside = [], False
        for name, (low, high) in self.ranges.items():
            if name not in values:
                raise KeyError(f"values: expected {name!r}, found {list(values)}")
            value = check_number(name, values[name])
            if not low <= value <= high:
                if extrapolate == "error":
                    raise ArgumentError(
                        name,
                        f"{low:g} to {high:g}, as in the runs",
                        f'{value:g}; extrapolate="clamp" or "flag" predicts all the same',
                    )
                outside = True
            point.append(min(max(value, low), high) if extrapolate == "clamp" else value)
        return np.array(point) * self.signs, outside

    def _predict(
        self, measure: str, point: Any, kind: str | None, coverage: float, extrapolated: bool
    ) -> Prediction:
        # Where none of a measure is known, all kinds that there are.
        known = any(
            run.kind == kind and (measure in self.unknown or run.costs[measure] is not None)
            for run in self.runs
        )
        unknown = Prediction(
            measure,
            value=None,
            low=None,
            high=None,
            unit=UNITS.get(measure, ""),
            extrapolated=extrapolated,
            at_least=False,
            coverage=coverage,
            guarantee=None if extrapolated else 2 * coverage - 1,
            basis=NEW_LEVEL if known else NEW_KIND,
            reason=self.unknown.get(measure),
        )
        if measure in self.unknown:
            return unknown
        curves = self._curves_of(measure)
        value = float(curves.all.costs(point[None])[0])
        found = curves.interval(point, coverage, known)
        # An end on the wrong side of the value is moved to it, which makes the interval wider.
        return replace(
            unknown,
            value=value,
            low=min(found.low, value),
            high=None if math.isinf(found.high) else max(found.high, value),
            at_least=value >= curves.all.limit * (1 - ROUNDING),
            reason=found.reason,
        )

    def _curves_of(self, measure: str) -> _Curves:
        if measure not in self._curves:
            self._curves[measure] = _Curves(self, measure)
        return self._curves[measure]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "format": FORMAT,
            "predictors": list(self.predictors),
            "measures": list(self.measures),
            "method": self.method,
            "coverage": self.coverage,
            "penalty": self.penalty,
            "samples_per_epoch": self.samples_per_epoch,
            "device": self.device,
            "unknown": dict(self.unknown),
            "runs": [run.to_dict() for run in self.runs],
            "target_accuracy": self.target_accuracy,
        } | ({"falling": list(self.falling)} if self.falling else {})

    def to_json(self) -> str:
        """One line of strict JSON."""
        return json.dumps(self.to_dict(), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> CostModel:
        """The model that `to_json` gave: it predicts the same to the last bit.

        Raises:
            RecordError: not JSON, or no such model.
        """
        values = parse(text)
        try:
            runs = [ModelRun.from_dict(run) for run in values.pop("runs")]
            return cls(runs, **values)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise RecordError(
                f"model: expected what CostModel.to_json gives, found otherwise "
                f"({type(error).__name__}: {error})"
            ) from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes `to_json` to a file, in one step: a reader finds the old file or the new one."""
        with replaced(Path(path)) as beside:
            beside.write_text(self.to_json() + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CostModel:
        """The model in a file; "-" is standard input.

        Raises:
            OSError: it cannot be read.
            ValueError: a folder, a device or a FIFO.
            RecordError: it is no model; one line with the path.
        """
        content = read_bytes(path, "a cost model")
        try:
            return cls.from_json(content.decode())
        except (RecordError, UnicodeDecodeError) as error:
            raise RecordError(f"{path}: {error}") from None

    def __repr__(self) -> str:
        return (
            f"CostModel({self.method}, {', '.join(self.predictors)}; {len(self.runs)} runs of "
            f"{len(self.kinds)} kinds)"
        )


class _Curves:
    """All fits of one measure: of all runs, and with each run and each kind left out."""

    def __init__(self, model: CostModel, measure: str) -> None:
        runs = [run for run in model.runs if run.costs[measure] is not None]
        self.model = model
        self.x = np.array([run.predictors for run in runs]) * model.signs
        self.y = np.array([run.costs[measure] for run in runs], dtype=float)
        self.censored = np.array([run.censored for run in runs])
        self.kinds = np.unique([run.kind for run in runs], return_inverse=True)[1]
        self.all = Curve.of(model.method, self.x, self.y, self.censored, model.penalty)

    @functools.cached_property
    def by_run(self) -> list[LeftOut]:
        return self._leave_out(np.arange(len(self.y)))

    @functools.cached_property
    def by_kind(self) -> list[LeftOut]:
        return self._leave_out(self.kinds)

    def interval(self, point: Any, coverage: float, known: bool) -> Interval:
        if known:
            return interval(self.by_run, point, coverage, "runs")
        return interval(self.by_kind, point, coverage, "kinds of shift")

    def _leave_out(self, groups: Any) -> list[LeftOut]:
        model = self.model
        return leave_out(model.method, self.x, self.y, self.censored, groups, model.penalty)


def _names(
    what: str, names: Sequence[str], known: Mapping[str, Any] | None = None
) -> tuple[str, ...]:
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise ArgumentTypeError(what, "a sequence of names", f"{names!r}")
    for name in names:
        if not isinstance(name, str) or (known is not None and name not in known):
            wanted = "names" if known is None else f"some of {list(known)}"
            raise ArgumentError(what, wanted, f"{name!r}")
    if not names or len(set(names)) < len(names):
        raise ArgumentError(what, "at least one, each once", list(names))
    return tuple(names)


def _coverage(value: Any) -> float:
    number = check_number("coverage", value)
    if not 0.5 <= number < 1:
        raise ArgumentError("coverage", "0.5 <= coverage < 1", f"{value!r}")
    return number
