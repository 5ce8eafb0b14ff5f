"""What is known of a shift before any retraining: the indices, and the trivial predictors."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from resque_ext.indices.registry import baselines, find, make_indices
from resque_ext.retraining.batches import Batches
from resque_ext.retraining.random_state import Randomness
from resque_ext.retraining.settings import Settings, Transform
from resque_ext.retraining.setup import trainable_copy
from resque_ext.scoring.failures import Failed
from resque_ext.scoring.score import score
from resque_ext.studies.study_run import REESTIMATED

READS = ("pooling", "mask", "channels", "labels")  # how batches are read, as in `score`


@dataclass(frozen=True)
class Predicted:
    """Predictors by name, their standard errors, and why one is None."""

    values: dict[str, float | None] = field(default_factory=dict)
    std_errors: dict[str, float | None] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def put(self, name: str, value: Any, error: Any, reason: str | None) -> None:
        """A value, or the reason why there is none."""
        if value is not None and not math.isfinite(value):
            value, reason = None, f"not finite: {value}"
        self.values[name] = None if value is None else float(value)
        finite = value is not None and error is not None and math.isfinite(error)
        self.std_errors[name] = float(error) if finite else None
        if value is None:
            self.reasons[name] = reason or "not known"


class Shifted:
    """The batches ``(inputs, labels)`` of a side with their inputs shifted, equal in every pass."""

    def __init__(self, batches: Batches, shift: Callable[[Any], Any] | None) -> None:
        self.batches, self.transform = batches, Transform(shift)

    def __len__(self) -> int:
        return self.batches.count

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        self.transform.restart()
        for inputs, labels, _ in self.batches:
            yield self.transform(inputs), labels


class Predictors:
    """Every predictor of a model and two sides of data, for one shift of the new side at a time.

    Indices that compare a sample with itself (PreIndex) get the new side before and after the
    shift, all others the old side and the shifted new one.

    Args:
        model: on the device; see `prepared`. It is run in eval mode.
        old, new: measured; `new` is not shifted.
        indices: names of `score`.
        settings: their device.
        randomness: for loaders that draw random numbers.
        options: further arguments of `score`: layer, layers, options, adapt_normalization, and
            those of `READS`.
    """

    def __init__(
        self,
        model: nn.Module,
        old: Batches,
        new: Batches,
        indices: Sequence[str],
        settings: Settings,
        randomness: Randomness,
        options: Mapping[str, Any],
    ) -> None:
        self.model, self.old, self.new = model, old, new
        self.indices, self.settings, self.randomness = tuple(indices), settings, randomness
        names = dict.fromkeys((*indices, *baselines()))
        self.kinds = {name: find(name) for name in names}
        self.index_options = dict(options["options"] or {})
        for name, kind in self.kinds.items():
            if kind.predictor_options:
                self.index_options[name] = {
                    **kind.predictor_options,
                    **self.index_options.get(name, {}),
                }
        made = make_indices(tuple(names), options["options"], paired=True)
        self.paired = [name for name, index in made.items() if index.reads.layers == "paired"]
        self.unpaired = [name for name in names if name not in self.paired]
        self.layer, self.layers = options["layer"], options["layers"]
        self.reads = {name: options[name] for name in READS}
        self.way = options["adapt_normalization"]
        self.of_layers = {name for name, index in made.items() if index.reads.layers}

    def check(self, seed: int) -> None:
        """Takes all indices without a shift, so that what is wrong with the model or the data shows
        as the error that it is, before anything is trained."""
        with self.settings.environment():
            found = dict(self._score(self.unpaired, None, False, seed))
            if self.paired:
                found |= self._score(self.paired, None, False, seed)
        for name in self.indices:
            if isinstance(found[name], Failed):
                raise found[name].error

    def of(self, shift: Callable[[Any], Any], seed: int) -> Predicted:
        """Every predictor of one shift; one that fails is None with the reason."""
        begin = time.perf_counter()
        found = Predicted()
        with self.settings.environment():
            for suffix in ("", REESTIMATED):
                self._read(found, shift, suffix, seed)
        return Predicted(found.values, found.std_errors, found.reasons, time.perf_counter() - begin)

    def _read(self, found: Predicted, shift: Callable[[Any], Any], suffix: str, seed: int) -> None:
        adapt = suffix == REESTIMATED
        results, reasons = self._try(self.unpaired, shift, adapt, seed)
        if self.paired:
            more, why = self._try(self.paired, shift, adapt, seed)
            results, reasons = results | more, reasons | why
        for name, kind in self.kinds.items():
            result = results.get(name)
            value = None if result is None else result.value
            error = None if result is None else result.std_error
            found.put((kind.predictor or name) + suffix, value, error, reasons.get(name))

    def _try(
        self, names: Sequence[str], shift: Callable[[Any], Any], adapt: bool, seed: int
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """Results by name, and reasons of those that failed.

        All in one pass; where the pass itself fails, each alone, so that one does not take the
        others along.
        """
        try:
            result = self._score(names, shift, adapt, seed)
        except Exception as error:  # whatever an index makes of such data is its answer
            if len(names) == 1:
                return {}, {names[0]: _reason(error)}
        else:
            failed = {k: r for k, r in result.items() if isinstance(r, Failed)}
            known = {k: r for k, r in result.items() if k not in failed}
            return known, {k: _reason(each.error) for k, each in failed.items()}
        results, reasons = {}, {}
        for name in names:
            more, why = self._try([name], shift, adapt, seed)
            results, reasons = results | more, reasons | why
        return results, reasons

    def _score(
        self, names: Sequence[str], shift: Callable[[Any], Any] | None, adapt: bool, seed: int
    ) -> Any:
        sides: dict[str, Any]
        if names[0] in self.paired:
            sides = {"old": Shifted(self.new, None), "shift": Transform(shift).function or _same}
        else:
            sides = {"old": Shifted(self.old, None), "new": Shifted(self.new, shift)}
        with self.randomness.kept(seed):  # loaders that shuffle do so alike in every pass
            return score(
                self.model,
                indices=names,
                layer=self.layer,
                layers=self.layers if self.of_layers.intersection(names) else "auto",
                adapt_normalization=self.way if adapt else False,
                device=self.settings.device,
                progress=False,
                **self.reads,
                options={n: self.index_options[n] for n in names if n in self.index_options},
                mapping=True,
                errors="keep",
                **sides,
            )


def prepared(model: nn.Module, settings: Settings) -> nn.Module:
    """A copy of the model that runs as in retraining: on its device, in its dtype and layout."""
    fresh = trainable_copy(model, settings.device, settings.channels_last)
    running: list[AbstractContextManager[None]] = []

    def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        running.append(settings.precision())
        running[-1].__enter__()
        return tuple(map(settings.laid_out, args)), settings.laid_out(kwargs)

    def leave(*_: Any) -> None:
        running.pop().__exit__(None, None, None)

    fresh.register_forward_pre_hook(enter, with_kwargs=True)
    fresh.register_forward_hook(leave, always_call=True)
    return fresh


def _same(inputs: Any) -> Any:
    return inputs


def _reason(error: Exception) -> str:
    """One line."""
    lines = str(error).splitlines()
    return lines[0] if lines and lines[0] else type(error).__name__
