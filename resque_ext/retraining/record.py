"""RetrainingCost: what one retraining cost, as plain values that survive JSON exactly."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from resque_ext.data.files import read_bytes
from resque_ext.energy.measurement import Measurement
from resque_ext.plots.html import number, table
from resque_ext.storage.json_text import parse_json

FORMAT = "resque_ext.RetrainingCost/1"

# Why a run ended. "target" alone means that the cost is known; after all others it is censored: the
# true one is larger.
STOPS = ("target", "epochs", "seconds", "energy", "plateau", "interrupted", "error")

MEASURES = {
    "epochs": "passes over the training data",
    "gradient_norm_mean": "",
    "gradient_norm_last": "",
    "gradient_norm_sum": "",
    "parameter_change": "",
    "seconds": "s, of training",
    "joules": "J, of training, measured",
    "joules_estimated": "J, of training, with estimates for what was not measured",
    "kg_co2": "kg CO2e, of training, of measured energy",
    "kg_co2_estimated": "kg CO2e, of training, of energy with estimates",
}
"""The scalars of `RetrainingCost.measures()`, with their units."""


class RecordError(ValueError):
    """Something that is not a record of a retraining."""


@dataclass(frozen=True)
class AccuracyCheck:
    """The test accuracy at one moment: after `steps` optimiser steps, which are `epochs` passes."""

    epochs: float
    steps: int
    accuracy: float


@dataclass(frozen=True)
class GradientNorm:
    """Global L2 norm of the gradient over all trainable parameters, in float32, at every step.

    Attributes:
        mean, sum: over the steps; None before the first.
        last_of_epoch: at the last step of every epoch, the broken-off last one included.
        per_step: at every step, None where it was not finite and the step was skipped (float16
            with loss scaling only; such steps are in no mean and no sum). None altogether in a
            record that was written without it.
    """

    mean: float | None
    sum: float | None
    last_of_epoch: tuple[float | None, ...]
    per_step: tuple[float | None, ...] | None

    @property
    def last(self) -> float | None:
        """At the last step; None before the first."""
        return self.last_of_epoch[-1] if self.last_of_epoch else None


@dataclass(frozen=True)
class EpochChange:
    """Mean parameter change when `epochs` passes were done."""

    epochs: float
    from_start: float | None
    from_previous: float | None


@dataclass(frozen=True)
class ParameterChange:
    """norm(w - w0) / sqrt(n) of every trainable tensor w of n elements, and their mean.

    Attributes:
        mean, per_tensor: between the end of the run and its start.
        previous_mean, previous_per_tensor: between the end of the run and the end of the last epoch
            before that; the start, where there is none.
        by_epoch: the two means at the end of every epoch, the broken-off last one included.

    A change is None where weights are not finite, which ends a run with an error.
    """

    mean: float | None
    per_tensor: dict[str, float | None]
    previous_mean: float | None
    previous_per_tensor: dict[str, float | None]
    by_epoch: tuple[EpochChange, ...]


@dataclass(frozen=True)
class RetrainingCost:
    """What retraining a model until a target accuracy cost, or what it cost until it was stopped.

    Attributes:
        reached: the target accuracy was reached. If not, every cost here is censored: the true one
            is larger.
        stopped: why the run ended, one of `STOPS`.
        target_accuracy: fraction of the test data, 0 to 1.
        epochs: passes over the training data, by samples: whole epochs plus the share of the
            samples of the one that was broken off. 0.0 where the model had the target accuracy.
        steps, samples: optimiser steps, and training samples that went into them.
        steps_per_epoch, samples_per_epoch: of one pass over the training data.
        skipped_steps: steps that loss scaling skipped (float16 only).
        gradient_norm, parameter_change: see there.
        train_seconds, evaluation_seconds: wall time; what is done for measuring alone (parameter
            change, checkpoints) is in neither.
        energy: of the training alone ("training") and with the evaluations ("total").
        accuracy: every check, the first before any training.
        loss_of_epoch: mean training loss of every epoch, the broken-off last one included.
        seed: that every random number of the run came from.
        device: {"device": "cuda:0", "name": ...}.
        versions: of Python, torch, this package and others that matter.
        options: what the run was asked for: optimiser, limits, dtype, as plain values.
        resumed: how often the run went on from a checkpoint.
    """

    reached: bool
    stopped: str
    target_accuracy: float
    epochs: float
    steps: int
    samples: int
    steps_per_epoch: int
    samples_per_epoch: int
    skipped_steps: int
    gradient_norm: GradientNorm
    parameter_change: ParameterChange
    train_seconds: float
    evaluation_seconds: float
    energy: dict[str, Measurement]
    accuracy: tuple[AccuracyCheck, ...]
    loss_of_epoch: tuple[float, ...]
    seed: int
    device: dict[str, Any]
    versions: dict[str, str | None]
    options: dict[str, Any]
    resumed: int = 0

    @property
    def censored(self) -> bool:
        """The target was not reached, so the true cost is larger than every figure here."""
        return not self.reached

    @property
    def start_accuracy(self) -> float | None:
        """Before any training; None where the run broke off before it was known."""
        return self.accuracy[0].accuracy if self.accuracy else None

    @property
    def best_accuracy(self) -> float | None:
        """The highest of all checks."""
        return max((check.accuracy for check in self.accuracy), default=None)

    def measures(self) -> dict[str, float | None]:
        """The scalar costs by name, as in `MEASURES`; None for what is not known."""
        training = self.energy["training"]
        return {
            "epochs": self.epochs,
            "gradient_norm_mean": self.gradient_norm.mean,
            "gradient_norm_last": self.gradient_norm.last,
            # Over no steps the sum is known, as the mean is not.
            "gradient_norm_sum": self.gradient_norm.sum if self.steps else 0.0,
            "parameter_change": self.parameter_change.mean,
            "seconds": self.train_seconds,
            "joules": training.measured.value,
            "joules_estimated": training.estimated.value,
            "kg_co2": training.emissions.value,
            "kg_co2_estimated": training.estimated_emissions.value,
        }

    def _repr_html_(self) -> str:
        end = "reached" if self.reached else f"not reached (stopped by {self.stopped})"
        start, best = (
            "unknown" if each is None else f"{each:.1%}"
            for each in (self.start_accuracy, self.best_accuracy)
        )
        return table(
            f"{self.target_accuracy:.1%} of the test data {end}; from {start}, best {best}",
            ("cost", "measured", "unit"),
            (
                (name, number(value), MEASURES[name])
                for name, value in self.measures().items()
                if value is not None
            ),
        )

    def without_times(self) -> dict[str, Any]:
        """`to_dict` without times, energy, and how often the run was resumed.

        What is left is equal for every run of one seed on one device, interrupted or not.
        """
        values = self.to_dict()
        for name in ("train_seconds", "evaluation_seconds", "energy", "resumed"):
            del values[name]
        return values

    def to_dict(self, per_step: bool = True) -> dict[str, Any]:
        """Plain values for JSON; `per_step=False` leaves the norms of the single steps out."""
        values = {"format": FORMAT} | {name: getattr(self, name) for name in _FIELDS}
        change = vars(self.parameter_change)
        values["gradient_norm"] = {
            "mean": self.gradient_norm.mean,
            "sum": self.gradient_norm.sum,
            "last_of_epoch": list(self.gradient_norm.last_of_epoch),
            "per_step": list(self.gradient_norm.per_step)
            if per_step and self.gradient_norm.per_step is not None
            else None,
        }
        values["parameter_change"] = change | {"by_epoch": [vars(c) for c in change["by_epoch"]]}
        values["energy"] = {name: m.to_dict() for name, m in self.energy.items()}
        values["accuracy"] = [vars(check) for check in self.accuracy]
        values["loss_of_epoch"] = list(self.loss_of_epoch)
        return json.loads(json.dumps(values, allow_nan=False))  # copies, and proves it plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RetrainingCost:
        """The record that `to_dict` gave.

        Raises:
            RecordError: not a record, or one of another version; the message names the key.
        """
        found = values.get("format") if isinstance(values, Mapping) else type(values).__name__
        if found != FORMAT:
            raise RecordError(f"record: expected format {FORMAT!r}, found {found!r}")
        wrong = set(values) ^ {"format", *_FIELDS}
        if wrong:
            raise RecordError(f"record: expected the keys {list(_FIELDS)}, differs in {wrong}")
        try:
            norm, change = values["gradient_norm"], values["parameter_change"]
            steps = norm["per_step"]
            parsed = {
                "gradient_norm": GradientNorm(
                    norm["mean"],
                    norm["sum"],
                    tuple(norm["last_of_epoch"]),
                    None if steps is None else tuple(steps),
                ),
                "parameter_change": ParameterChange(
                    **{
                        **change,
                        "by_epoch": tuple(EpochChange(**c) for c in change["by_epoch"]),
                    }
                ),
                "energy": {n: Measurement.from_dict(m) for n, m in values["energy"].items()},
                "accuracy": tuple(AccuracyCheck(**check) for check in values["accuracy"]),
                "loss_of_epoch": tuple(values["loss_of_epoch"]),
            }
            return cls(**{name: values[name] for name in _FIELDS} | parsed)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RecordError(
                f"record: expected what RetrainingCost.to_dict gives, found otherwise "
                f"({type(error).__name__}: {error})"
            ) from None

    def to_json(self, per_step: bool = True) -> str:
        """One line of strict JSON."""
        return json.dumps(self.to_dict(per_step), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> RetrainingCost:
        """The record that `to_json` gave.

        Raises:
            RecordError: not JSON, or not a record.
        """
        try:
            values = parse_json(text)
        except ValueError as error:
            raise RecordError(f"record: expected JSON, found {error}") from None
        return cls.from_dict(values)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RetrainingCost:
        """The record in a file of one JSON object; "-" is standard input."""
        return cls.from_json(read_bytes(path, "a record").decode())


_FIELDS = tuple(RetrainingCost.__dataclass_fields__)
