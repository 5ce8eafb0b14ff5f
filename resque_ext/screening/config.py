"""The configuration of `resque-ext screen`: what a TOML file says, checked line by line.

All mistakes are found before anything is opened or written, and each is one line.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resque_ext import shifts
from resque_ext.data.sources import Source, open_source
from resque_ext.data.transforms import Normalize, make_transform
from resque_ext.errors import InputError
from resque_ext.indices import registry
from resque_ext.model.load_model import load_model
from resque_ext.screening.budget import Budget
from resque_ext.screening.candidates import INPUTS, Candidate
from resque_ext.screening.config_checks import (
    BUDGET,
    CANDIDATE,
    CORRUPTION,
    DATA,
    FORECAST,
    MODEL,
    READS,
    SCREEN,
    SHIFT,
    TOP,
    Check,
)
from resque_ext.screening.old_side import ShelfModel
from resque_ext.screening.toml_lines import ConfigError, Document, KeyPath
from resque_ext.shifts import shifted_before

MOST_ERRORS = 20  # that are listed


@dataclass(frozen=True)
class Config:
    """What `screen` is called with.

    Attributes:
        arguments: models, old, candidates and options, by the names of `screen`.
        store: where results are kept, None where the file does not say.
    """

    arguments: dict[str, Any]
    store: Path | None


def read_config(path: Path) -> Config:
    """What a file says, with its data opened; relative paths begin where the file is.

    Raises:
        ConfigError: with a line for each mistake: file, line and key, what was expected and found.
    """
    return _Reader(Document(path)).read()


def _said(error: Exception, argument: str = "") -> tuple[bool, str]:
    """Whether an error is about this argument, and its line, which then leaves the argument out."""
    if not isinstance(error, InputError):
        return False, " ".join(str(error).split())
    place, _, rest = error.argument.partition(": ")
    if place != argument:
        return False, " ".join(str(error).split())
    error = error.but(argument=rest)
    return True, " ".join((str(error) if rest else error.reason).split())


class _Reader:
    """Goes through a document and collects what is wrong."""

    def __init__(self, document: Document) -> None:
        self.document, self.folder = document, document.path.parent
        self.errors: list[tuple[int, str]] = []

    def wrong(self, key: KeyPath, expected: str, found: Any = None) -> None:
        if len(self.errors) == MOST_ERRORS:
            self.errors.append((2**62, f"{self.document.path}: and more, which are not listed"))
        if len(self.errors) > MOST_ERRORS:
            return
        shown = f", found {_show(found)}" if found is not None else ""
        line = f"{self.document.where(key)}: {expected}{shown}"
        self.errors.append((self.document.line(key), line))

    def check(self, key: KeyPath, values: Any, known: Mapping[str, Check]) -> dict[str, Any]:
        """Those keys of a table that are known and right."""
        right = {}
        for name, value in values.items():
            at = (*key, name)
            check = known.get(name)
            if check is None:
                near = difflib.get_close_matches(name, known, 1)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                self.wrong(at, f"expected one of the keys {', '.join(known)}{hint}", name)
                if len(self.errors) > MOST_ERRORS:
                    break
            elif (expected := check(value)) is not None:
                self.wrong(at, f"expected {expected}", value)
            else:
                right[name] = value
        return right

    def stop(self) -> None:
        if self.errors:
            raise ConfigError([line for _, line in sorted(self.errors, key=lambda e: e[0])])

    def read(self) -> Config:
        top = self.check((), self.document.values, TOP)
        for name in ("models", "candidates"):
            if name not in self.document.values:
                self.errors.append(
                    (
                        0,
                        f"{self.document.path}: expected a table [{name}.NAME], found none",
                    )
                )
        chosen = self.check(("screen",), top.get("screen", {}), SCREEN)
        budget = self.check(("budget",), top.get("budget", {}), BUDGET)
        forecast = self.check(("forecast",), top.get("forecast", {}), FORECAST)
        models = {
            name: self.check(("models", name), table, MODEL)
            for name, table in top.get("models", {}).items()
        }
        candidates = {
            name: self.check(("candidates", name), table, CANDIDATE)
            for name, table in top.get("candidates", {}).items()
        }
        for name, model in models.items():
            at = ("models", name)
            if "factory" not in model and "factory" not in top["models"][name]:
                for key in ("weights", "layer", "layers", *READS):
                    if key in model:
                        self.wrong((*at, key), "expected a factory beside it, found none")
            if "old" in model:
                model["old"] = self.check((*at, "old"), model["old"], DATA)
        old = self.check(("old",), top["old"], DATA) if "old" in top else None
        for name, candidate in candidates.items():
            self._candidate(("candidates", name), candidate, top["candidates"][name])
        self._options(top, chosen)
        self._scheduler(chosen, budget)
        self.stop()  # what is said has to be right before any of it is opened
        store = chosen.pop("store", None)
        if "cache" in chosen:
            chosen["cache"] = self.folder / chosen["cache"]
        arguments = chosen | {"looks": tuple(chosen["looks"])} if "looks" in chosen else chosen
        arguments |= {"budget": Budget(**budget)} if budget else {}
        arguments |= {"options": top["options"]} if "options" in top else {}
        arguments |= {"forecast_options": forecast} if forecast else {}
        arguments["models"] = {n: self._model(("models", n), m) for n, m in models.items()}
        arguments["old"] = self._olds(old, models, chosen)
        arguments["candidates"] = {
            n: self._opened(("candidates", n), c, arguments["old"], old)
            for n, c in candidates.items()
        }
        if "cost_model" in chosen:
            arguments["cost_model"] = self._cost_model(chosen["cost_model"])
        self.stop()
        self._whole(arguments)
        self.stop()
        return Config(arguments, None if store is None else self.folder / store)

    def _options(self, top: Mapping[str, Any], chosen: Mapping[str, Any]) -> None:
        """Every index's options, each mistake at its key."""
        names = chosen.get("indices", ["resque_dist"])
        for name, table in top.get("options", {}).items():
            at = ("options", name)
            if name not in names:
                self.wrong(at, f"expected one of the indices {', '.join(names)}", name)
                continue
            known = registry.find(name).options()
            for key, value in table.items():
                if key not in known:
                    self.wrong((*at, key), f"expected one of {', '.join(known) or 'no keys'}", key)
                    continue
                try:
                    registry.make_indices([name], {name: {key: value}}, paired=True)
                except (TypeError, ValueError) as error:
                    self.wrong((*at, key), _said(error, key)[1])

    def _scheduler(self, chosen: Mapping[str, Any], budget: Mapping[str, Any]) -> None:
        if "scheduler" not in chosen:
            if "workers" in chosen:
                self.wrong(
                    ("screen", "workers"), "expected scheduler = 'ray' beside it, found none"
                )
            return
        at = ("screen", "scheduler")
        if chosen.get("anytime", True):
            self.wrong(
                at,
                "expected anytime = false beside it, because when a pair may stop depends "
                "on all others of its model, found true",
            )
        if budget:
            self.wrong(
                at,
                "expected no [budget] beside it, because no pair knows what the others spend",
                dict(budget),
            )

    def _whole(self, arguments: Mapping[str, Any]) -> None:
        """What `screen` itself would refuse, at the key that its message begins with."""
        from resque_ext.screening.screen import make_plan

        apart = ("cache", "scheduler", "workers")
        try:
            make_plan(**{k: v for k, v in arguments.items() if k not in apart})
        except (TypeError, ValueError, OSError) as error:
            self.wrong(*self._place(error))

    def _place(self, error: Exception) -> tuple[KeyPath, str]:
        """The key that an error is about, and what it says of it."""
        keys = [("screen", name) for name in SCREEN]
        keys += [
            (table, name)
            for table in ("models", "candidates")
            for name in self.document.values.get(table, {})
        ]
        for key in [*keys, *((name,) for name in TOP)]:
            for name in (key[-1], ".".join(key)):
                said, message = _said(error, name)
                if said:
                    return key, message
        return ("screen",), _said(error)[1]

    def _candidate(self, at: KeyPath, right: dict[str, Any], given: Mapping[str, Any]) -> None:
        if not {"path", "dataset", "shift"} & given.keys():
            self.wrong(at, "expected one of the keys path, dataset, shift, found none of them")
        if "shift" in right:
            table, key = right["shift"], (*at, "shift")
            how = "severity" if "severity" in table else "level"
            checks = CORRUPTION if how == "severity" else SHIFT
            right["shift"] = shift = self.check(key, table, checks)
            for name in ("kind", how):
                if name not in table:
                    self.wrong(key, f"expected the key {name}, found none")
            if {"kind", how} <= shift.keys():
                try:
                    _make_shift(shift)
                except (TypeError, ValueError) as error:
                    self.wrong(key, str(error))
        for i, text in enumerate(right.get("transforms", ())):
            try:
                made = make_transform(text)
            except ValueError as error:
                self.wrong((*at, "transforms"), str(error))
                continue
            if isinstance(made, Normalize) and i + 1 < len(right["transforms"]):
                self.wrong((*at, "transforms"), "expected normalize as the last one", text)

    def _model(self, at: KeyPath, given: Mapping[str, Any]) -> ShelfModel:
        factory, weights = given.get("factory"), given.get("weights")
        if factory is None:
            return ShelfModel()
        path = None if weights is None else self.folder / weights
        if path is not None and not path.is_file():
            self.wrong((*at, "weights"), "expected a file of weights", str(path))
        if ":" not in factory:
            self.wrong((*at, "factory"), "expected module:callable", factory)
        model = ShelfModel(
            functools.partial(load_model, factory, path),
            given.get("layer"),
            given.get("layers", "auto"),
            f"{factory} {weights or ''}".strip(),
            **{key: given[key] for key in READS if key in given},
        )
        try:
            model.reads  # noqa: B018 (checks them)
        except InputError as error:
            self.wrong((*at, error.argument), error.reason)
        return model

    def _source(self, at: KeyPath, given: Mapping[str, Any]) -> Source | None:
        spec = {k: v for k, v in given.items() if k not in ("shift", "paired")}
        try:
            return open_source(spec | {"name": ".".join(at)}, self.folder)
        except (TypeError, ValueError, OSError) as error:
            message = _said(error, "source")[1]
            key = next((k for k in spec if _said(error, k)[0]), None)
            self.wrong((*at, key) if key else at, _said(error, key)[1] if key else message)
            return None

    def _olds(
        self, old: Any, models: Mapping[str, Any], chosen: Mapping[str, Any]
    ) -> dict[str, Any]:
        shared = None if old is None else self._source(("old",), old)
        found = {}
        for name, model in models.items():
            if "old" in model:
                found[name] = self._source(("models", name, "old"), model["old"])
            else:
                found[name] = shared
                indices = chosen.get("indices", ("resque_dist",))
                if old is None and any("old" in registry.find(i).reads.sides for i in indices):
                    self.wrong(("models", name), "expected old data, here or in [old], found none")
        return found

    def _opened(
        self, at: KeyPath, given: Mapping[str, Any], olds: Mapping[str, Any], old: Any
    ) -> Candidate | None:
        source = self._source(at, given) if {"path", "dataset"} & given.keys() else None
        shift = None
        if "shift" in given:
            # A shift of images in [0, 1] goes before the normalization of those that it shifts.
            texts = given.get("transforms") if source is not None else (old or {}).get("transforms")
            shift = shifted_before(
                _make_shift(given["shift"]), [make_transform(text) for text in texts or ()]
            )
            kinds = {s.kind for s in olds.values() if s is not None} if source is None else set()
            if kinds - {INPUTS}:
                self.wrong((*at, "shift"), "expected old data that are inputs", "embeddings")
        if source is None and shift is None:
            return None
        return Candidate(source, shift, given.get("paired", False))

    def _cost_model(self, path: str) -> Any:
        from resque_ext.cost_model.model import CostModel

        try:
            return CostModel.load(self.folder / path)
        except (ValueError, OSError) as error:
            self.wrong(("screen", "cost_model"), " ".join(str(error).split()))
            return None


def _show(value: Any) -> str:
    return repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."


def _make_shift(table: Mapping[str, Any]) -> shifts.Shift:
    how = {name: table[name] for name in ("level", "severity") if name in table}
    return shifts.make(table["kind"], seed=table.get("seed", 0), **how)
