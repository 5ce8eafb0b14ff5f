"""PairResult: what a screening found of one model and one candidate dataset."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from resque_ext.data.sources.base import Fault
from resque_ext.errors import ArgumentError
from resque_ext.storage.json_text import parse_json

FORMAT = "resque_ext.PairResult/1"

# Why reading a pair ended: all of it was read; the interval parted from its neighbours' or was as
# narrow as asked; the budget was spent; or it failed, and `error` says how.
STOPS = ("end", "separated", "width", "budget", "error")


@dataclass(frozen=True)
class IndexValue:
    """One index of a pair.

    Attributes:
        value: debiased for the number of samples where reading stopped early.
        std_error, noise_floor: as the index defines them; None where it has none.
        low, high: interval that stays valid however often it was looked at; None where there is
            none.
        reliable, warnings: as the index defines them.
    """

    value: float
    std_error: float | None = None
    noise_floor: float | None = None
    low: float | None = None
    high: float | None = None
    reliable: bool = True
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class PredictedCost:
    """A cost model's prediction of one measure, with its interval; `high` None is unbounded."""

    value: float
    low: float
    high: float | None
    unit: str
    extrapolated: bool = False


@dataclass(frozen=True)
class PairForecast:
    """What a forecast to a target says of a pair beside its costs, which are in `predicted`.

    Attributes:
        target_accuracy: of the held-out part of the candidate.
        stage, verdict, never_probability: as of :class:`resque_ext.Forecast`.
        accuracy, adapted_accuracy: of the held-out part, before any training; with adapted
            normalization, None if there is none.
        linear_probe_error: of the embeddings of the other part.
        formula: that the steps are from; None where they are known.
        coverage: of the intervals.
        probe_steps: of the retraining that the forecast took.
        reliable, warnings: what it cannot be relied on for.
        probe_error: what a probe failed with, one line; the rest is then of no steps.
    """

    target_accuracy: float
    stage: str
    verdict: str | None
    never_probability: float | None
    accuracy: float
    adapted_accuracy: float | None
    linear_probe_error: float | None
    formula: str | None
    coverage: float
    probe_steps: int
    reliable: bool = True
    warnings: tuple[str, ...] = ()
    probe_error: str | None = None


@dataclass(frozen=True)
class PairResult:
    """One model on one candidate.

    Attributes:
        model, candidate: names, a pair is known by both.
        indices: by the names of `score`; empty after an error, and for "budget" where nothing was
            read, or not enough of it to tell.
        predicted: by measure; empty without a cost model or a target.
        old_samples, new_samples: read of the old data and of the candidate.
        available: samples that the candidate has; None where its source does not tell.
        seconds: wall time of the pair.
        stopped: one of `STOPS`.
        faults: what was left out.
        classes: {index: {class: value}} where an index has values of classes.
        layers: {index: {layer: value}} where an index has values of layers.
        error: what the pair failed with, one line.
        pooling: what was done to the positions of the embedding; None where no index reads it.
        labels: "given" or "predicted", where the labels are from; None where no index reads any.
            Both are None in stores of before they were recorded.
        old_accuracy, new_accuracy: of the model on either side, if it is a classifier.
        forecast: to the target; None where none was asked for.
    """

    model: str
    candidate: str
    indices: dict[str, IndexValue]
    predicted: dict[str, PredictedCost] = field(default_factory=dict)
    old_samples: int = 0
    new_samples: int = 0
    available: int | None = None
    seconds: float = 0.0
    stopped: str = "end"
    faults: tuple[Fault, ...] = ()
    classes: dict[str, dict[str, float]] = field(default_factory=dict)
    layers: dict[str, dict[str, float]] = field(default_factory=dict)
    error: str | None = None
    pooling: str | None = None
    labels: str | None = None
    old_accuracy: float | None = None
    new_accuracy: float | None = None
    forecast: PairForecast | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """Of all indices and the forecast, each once, beginning with its name."""
        named = [(name, each.warnings) for name, each in self.indices.items()]
        if self.forecast is not None:
            named.append(("forecast", self.forecast.warnings))
        return tuple(dict.fromkeys(f"{name}: {text}" for name, found in named for text in found))

    def to_json(self) -> str:
        """One line of strict JSON."""
        return json.dumps({"format": FORMAT} | asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> PairResult:
        """The pair that `to_json` gave.

        Raises:
            ValueError: not JSON, or no such pair.
        """
        values = parse_json(text)
        found = values.get("format") if isinstance(values, Mapping) else type(values).__name__
        if found != FORMAT:
            raise ArgumentError("pair", f"format {FORMAT!r}", f"{found!r}")
        wrong = (set(values) ^ {"format", *_FIELDS}) - (set(_LATER) - set(values))
        if wrong:
            raise ValueError(f"pair: expected the keys {list(_FIELDS)}, differs in {sorted(wrong)}")
        parsed: dict[str, Any] = {name: values[name] for name in _FIELDS if name in values}
        parsed["indices"] = {
            n: IndexValue(**v | {"warnings": tuple(v.get("warnings", ()))})
            for n, v in parsed["indices"].items()
        }
        parsed["predicted"] = {n: PredictedCost(**v) for n, v in parsed["predicted"].items()}
        parsed["faults"] = tuple(Fault(**f) for f in parsed["faults"])
        if parsed.get("forecast") is not None:
            found = parsed["forecast"]
            parsed["forecast"] = PairForecast(**found | {"warnings": tuple(found["warnings"])})
        return cls(**parsed)


_FIELDS = tuple(PairResult.__dataclass_fields__)
# Which stores of before do not have.
_LATER = ("pooling", "labels", "old_accuracy", "new_accuracy", "forecast")
