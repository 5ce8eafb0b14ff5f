"""The target of a screening: what retraining each pair until it is reached will cost."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from resque_ext.data.checks import check_count, describe
from resque_ext.data.sources.regroup import regroup, taken
from resque_ext.errors import ArgumentError, ArgumentTypeError, InputError, within
from resque_ext.forecasting import Forecast, forecast
from resque_ext.forecasting.options import RECIPE, check_options
from resque_ext.retraining.settings import function_name
from resque_ext.screening.candidates import ALL, INPUTS, Feed
from resque_ext.screening.old_side import OldSide
from resque_ext.screening.pair_reading import predicted_costs
from resque_ext.screening.results import PairForecast, PairResult

HELD_OUT = 5  # every fifth row is held out of training
BATCH = 64  # rows of a training batch
# What `screen` decides itself, or has an argument of its own for.
OWN = {"model", "old", "train", "test", "target_accuracy", "steps", "device", "layer", "progress"}
# Which a model, data or the machine decide on.
LATER = {"adapt_normalization", "batch_adapter", "meter"}
PARAMETERS = [name for name in inspect.signature(forecast).parameters if name != "recipe"]
OPTIONS = tuple(name for name in (*PARAMETERS, *RECIPE) if name not in OWN)


@dataclass(frozen=True)
class ScreeningTarget:
    """What pairs are ranked by: the cost of retraining until this accuracy.

    Attributes:
        accuracy: of the held-out rows of a candidate, above 0 and at most 1.
        probe: how many pairs take a probe: the first of those whose cost is not known.
        steps: its lengths, as :func:`resque_ext.forecast` takes them.
        batch_size: rows of a training batch.
        options: further arguments of `forecast`.
    """

    accuracy: float
    probe: int = 0
    steps: tuple[int, ...] = (16, 32)
    batch_size: int = BATCH
    options: Mapping[str, Any] = field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """What results depend on, for the store."""
        named = {k: v if _plain(v) else function_name(v) for k, v in self.options.items()}
        return {"accuracy": self.accuracy, "batch_size": self.batch_size, "options": named} | {
            "steps": list(self.steps)
        }

    def of(
        self, old: OldSide, old_feed: Feed | None, feed: Feed, steps: tuple[int, ...], seed: int
    ) -> Forecast:
        """The forecast of a pair; () takes no step."""
        assert old.model is not None
        train, test = (Rows(feed, self.batch_size, seed, held) for held in (False, True))
        inputs = old_feed is not None and old_feed.kind == INPUTS
        olds = Rows(old_feed, old.batch_size, None, None) if inputs else None  # type: ignore[arg-type]
        return forecast(
            old.model,
            olds,
            train,
            test,
            self.accuracy,
            steps=steps,
            device=old.device,
            layer=old.entry.layer,
            **{"seed": seed, "meter": None if not steps else "auto"} | dict(self.options),
        )


class Rows:
    """A part of a feed's rows as batches ``(inputs, labels)`` that can be read again and again.

    Args:
        feed: of inputs.
        size: rows of a batch.
        seed: mixes the rows, as far as the source can; None: as they lie.
        held_out: True: every fifth row; False: the others; None: all.
    """

    def __init__(self, feed: Feed, size: int, seed: int | None, held_out: bool | None) -> None:
        self._feed, self._size, self._seed, self._held_out = feed, size, seed, held_out

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        # Both parts read batches of one size, because what a shift draws depends on them.
        reading = self._feed.reading(self._size, self._seed)
        try:
            yield from regroup(self._parts(reading.until(ALL, self._size)), self._size)
        finally:
            reading.close()

    def _parts(self, batches: Iterator[tuple[Any, Tensor]]) -> Iterator[tuple[Any, Tensor]]:
        first = 0
        for batch in batches:
            yield self._mine(batch, first)
            first += len(batch[1])

    def _mine(self, batch: tuple[Any, Tensor], first: int) -> tuple[Any, Tensor]:
        inputs, labels = batch
        if self._held_out is None:
            return batch
        places = torch.arange(first, first + len(labels)) % HELD_OUT == HELD_OUT - 1
        rows = torch.nonzero(places if self._held_out else ~places)[:, 0]
        return taken(inputs, rows), labels[rows]


def as_target(accuracy: Any, probe: Any, options: Any) -> ScreeningTarget | None:
    """The target of a screening, checked; None where none is given.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    if accuracy is None:
        for name, value in (("probe", probe or None), ("forecast_options", options)):
            if value is not None:
                raise ArgumentError(name, "a target_accuracy beside it", "None")
        return None
    if isinstance(accuracy, bool) or not isinstance(accuracy, (int, float)):
        raise ArgumentTypeError("target_accuracy", "a number", describe(accuracy))
    if not 0 < accuracy <= 1:
        raise ArgumentError("target_accuracy", "above 0 and at most 1", f"{accuracy!r}")
    if options is not None and not isinstance(options, Mapping):
        raise ArgumentTypeError("forecast_options", "a mapping", describe(options))
    given = dict(options or {})
    size = check_count(given.pop("batch_size", BATCH), "forecast_options: batch_size")
    steps = given.pop("steps", (16, 32))
    unknown = [name for name in given if name not in OPTIONS]
    if unknown:
        raise ArgumentError(
            "forecast_options",
            f"arguments of forecast among {', '.join(OPTIONS)}, batch_size or steps",
            f"{unknown[0]!r}",
        )
    try:
        check_options(steps, float(accuracy), **{k: given[k] for k in given.keys() - LATER})
    except InputError as error:
        raise within("forecast_options", error) from None
    return ScreeningTarget(
        float(accuracy), check_count(probe, "probe", least=0), tuple(steps), size, given
    )


def with_forecast(pair: PairResult, found: Forecast) -> PairResult:
    """A pair with what a forecast says of it."""
    about = PairForecast(
        target_accuracy=found.target_accuracy,
        stage=found.stage,
        verdict=found.verdict,
        never_probability=found.never_probability,
        accuracy=found.accuracy,
        adapted_accuracy=found.adapted_accuracy,
        linear_probe_error=found.linear_probe_error,
        formula=found.formula,
        coverage=found.coverage,
        probe_steps=found.probe.steps,
        reliable=found.reliable,
        warnings=found.warnings,
    )
    costs = predicted_costs(found.costs)
    return dataclasses.replace(pair, forecast=about, predicted=costs)


def without_probe(pair: PairResult, error: str) -> PairResult:
    """A pair whose probe failed: what was known of it stays, and says so."""
    assert pair.forecast is not None
    warnings = (*pair.forecast.warnings, f"the probe failed: {error}")
    about = dataclasses.replace(pair.forecast, warnings=warnings, probe_error=error)
    return dataclasses.replace(pair, forecast=dataclasses.replace(about, reliable=False))


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))
