"""StudyRun: what the indices said of one shift, and what retraining for it really cost."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from resque_ext.data.checks import describe
from resque_ext.errors import ArgumentTypeError
from resque_ext.indices import registry
from resque_ext.retraining.record import RecordError, RetrainingCost
from resque_ext.storage.json_text import parse_json

FORMAT = "resque_ext.StudyRun/1"
REESTIMATED = "_reestimated"  # ends a predictor's name: taken after re-estimating normalization


def lower_is_cheaper(predictor: str) -> bool:
    """Whether a smaller value of a predictor means a cheaper retraining; True where its index is
    not installed here."""
    return registry.lower_is_cheaper(predictor.removesuffix(REESTIMATED))


@dataclass(frozen=True)
class StudyRun:
    """One shift at one level: every predictor before any retraining, and the measured cost.

    Attributes:
        kind, level, unit, seed: of the shift; the unit says what the level counts.
        model: a name for the model that was studied.
        predictors: value by name: an index by its name in `score`, "accuracy_drop",
            "linear_probe_error", "nearest_class_mean_error"; each with `REESTIMATED` behind its
            name after re-estimating normalization. None where it does not exist.
        std_errors: likewise; None if there is none.
        reasons: why a predictor is None, by its name.
        index_seconds: wall seconds that all predictors took together.
        cost: of the retraining.
    """

    kind: str
    level: float
    unit: str
    seed: int
    model: str
    predictors: dict[str, float | None]
    std_errors: dict[str, float | None]
    cost: RetrainingCost
    reasons: dict[str, str] = field(default_factory=dict)
    index_seconds: float | None = None

    @property
    def measures(self) -> dict[str, float | None]:
        """The measured costs by name; lower bounds where `censored`."""
        return self.cost.measures()

    @property
    def censored(self) -> bool:
        """The target was not reached: the true cost is larger than every measure."""
        return self.cost.censored

    def to_json(self) -> str:
        """One line of strict JSON, without the gradient norms of single steps."""
        values = {"format": FORMAT} | {name: getattr(self, name) for name in _FIELDS}
        values["cost"] = self.cost.to_dict(per_step=False)
        return json.dumps(values, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> StudyRun:
        """The run that `to_json` gave.

        Raises:
            RecordError: not JSON, or no such run; the message names the first field that is wrong.
        """
        try:
            values = parse_json(text)
        except ValueError as error:
            raise RecordError(f"run: expected JSON, found {error}") from None
        found = values.get("format") if isinstance(values, Mapping) else type(values).__name__
        if found != FORMAT:
            raise RecordError(f"run: expected format {FORMAT!r}, found {found!r}")
        wrong = set(values) ^ {"format", *_FIELDS}
        if wrong:
            raise RecordError(f"run: expected the keys {list(_FIELDS)}, differs in {sorted(wrong)}")
        parsed: dict[str, Any] = {name: values[name] for name in _FIELDS}
        for name, (kinds, wanted) in _TYPES.items():
            _check(name, values[name], kinds, wanted)
        for name in ("predictors", "std_errors"):
            for key, value in values[name].items():
                _check(
                    f"{name}[{key!r}]", value, (int, float, type(None)), "a finite number or null"
                )
        for key, value in values["reasons"].items():
            _check(f"reasons[{key!r}]", value, (str,), "a text")
        parsed["cost"] = RetrainingCost.from_dict(parsed["cost"])
        for name, value in parsed["cost"].measures().items():
            _check(f"cost: {name}", value, (int, float, type(None)), "a finite number or null")
        return cls(**parsed)


def checked_runs(runs: Iterable[StudyRun]) -> list[StudyRun]:
    """The runs as a list.

    Raises:
        TypeError: something else, or something else among them.
    """
    if isinstance(runs, (str, bytes, os.PathLike)):
        raise ArgumentTypeError("runs", "StudyRuns, which read_runs reads of a file", f"{runs!r}")
    if not isinstance(runs, Iterable):
        raise ArgumentTypeError("runs", "StudyRuns", describe(runs))
    found = list(runs)
    for run in found:
        if not isinstance(run, StudyRun):
            raise ArgumentTypeError("runs", "StudyRuns", f"{describe(run)} among them")
    return found


def _check(name: str, value: Any, kinds: tuple[type, ...], wanted: str) -> None:
    """A value of JSON; its numbers may be NaN or infinite, which no run's are."""
    right = isinstance(value, kinds) and not isinstance(value, bool)
    if not right or (isinstance(value, float) and not math.isfinite(value)):
        raise RecordError(f"run: {name}: expected {wanted}, found {value!r}")


_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "kind": ((str,), "a text"),
    "level": ((int, float), "a finite number"),
    "unit": ((str,), "a text"),
    "seed": ((int,), "an integer"),
    "model": ((str,), "a text"),
    "predictors": ((dict,), "an object"),
    "std_errors": ((dict,), "an object"),
    "reasons": ((dict,), "an object"),
    "index_seconds": ((int, float, type(None)), "a finite number or null"),
}
_FIELDS = tuple(StudyRun.__dataclass_fields__)
