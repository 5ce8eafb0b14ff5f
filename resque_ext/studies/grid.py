"""The grid of a study: every shift at every level, each case with a seed of its own."""

from __future__ import annotations

import hashlib
import json
import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from resque_ext import shifts as registry
from resque_ext.data.checks import describe
from resque_ext.errors import ArgumentError, ArgumentTypeError, within

COVERAGE = 0.9  # of a cost model's intervals, where nothing else is asked for
ROUNDING = 1e-9  # weights of a thousand kinds of a thousand runs add up to well within this

Levels = Iterable[float] | Mapping[float, Callable[[Any], Any]]


@dataclass(frozen=True)
class Case:
    """One shift at one level.

    Attributes:
        kind, level, unit: what it is; the unit says what the level counts.
        seed: of the shift's draws and of the retraining.
        shift: a function of a batch of inputs.
    """

    kind: str
    level: float
    unit: str
    seed: int
    shift: Callable[[Any], Any]

    @property
    def key(self) -> tuple[str, float]:
        """What tells it from all others of a grid."""
        return self.kind, self.level


def make_grid(
    shifts: Mapping[str, Levels], units: Mapping[str, str] | None, seed: int
) -> tuple[Case, ...]:
    """All cases, kind after kind, in the order in which they are given.

    Args:
        shifts: levels by the name of a shift of :mod:`resque_ext.shifts`; under any other name a
            mapping of levels to functions of a batch of inputs.
        units: what the levels of the latter count, by name.
        seed: of the study; a case's own depends on it, the kind and the level, and on nothing else.

    Raises:
        TypeError, ValueError: naming the kind.
    """
    if not isinstance(shifts, Mapping):
        raise ArgumentTypeError("shifts", "a mapping of kinds to levels", describe(shifts))
    if not shifts:
        raise ArgumentError("shifts", "at least one kind of shift", "none")
    units = {} if units is None else units
    own = [kind for kind, levels in shifts.items() if isinstance(levels, Mapping)]
    if not isinstance(units, Mapping):
        raise ArgumentTypeError("units", "a mapping of kinds to texts", describe(units))
    for kind, unit in units.items():
        if kind not in own:
            raise ArgumentError("units", f"kinds among {own} of your own", f"{kind!r}")
        if not isinstance(unit, str):
            raise ArgumentTypeError(f"units[{kind!r}]", "a text", f"{unit!r}")
    return tuple(
        case for kind, levels in shifts.items() for case in _cases(kind, levels, units, seed)
    )


def case_seed(seed: int, kind: str, level: float) -> int:
    """0 to 2^32 - 1, from a digest: neighbours have nothing in common."""
    digest = hashlib.sha256(json.dumps([seed, kind, level]).encode()).digest()
    return int.from_bytes(digest[:4], "big")


def _cases(kind: Any, levels: Any, units: Mapping[str, str], seed: int) -> list[Case]:
    if not isinstance(kind, str) or not kind:
        raise ArgumentTypeError("shifts", "kinds with a name", f"{kind!r}")
    name = f"shifts[{kind!r}]"
    if isinstance(levels, (str, bytes)) or not isinstance(levels, Iterable):
        raise ArgumentTypeError(name, "levels", f"{levels!r}")
    given = list(levels)
    if not given:
        raise ArgumentError(name, "at least one level", "none")
    for level in given:
        if isinstance(level, bool) or not isinstance(level, numbers.Real):
            raise ArgumentTypeError(name, "numbers for levels", f"{level!r}")
        if not math.isfinite(level):
            raise ArgumentError(name, "finite levels", f"{level!r}")
    numbers_ = [float(level) for level in given]
    if len(set(numbers_)) < len(numbers_):
        raise ArgumentError(name, "every level once", numbers_)
    known = kind in registry.SHIFTS
    if isinstance(levels, Mapping):
        if known:
            raise ArgumentError(
                name, "levels, because resque_ext.shifts has that kind", "functions"
            )
        functions = [_function(name, levels[level], level) for level in given]
        unit = units.get(kind, "")
    elif known:
        functions = [_registered(name, kind, level) for level in numbers_]
        unit = registry.SHIFTS[kind].unit
    else:
        raise ArgumentError(
            name,
            f"one of {', '.join(registry.SHIFTS)}, or a mapping of levels "
            "to functions for a kind of your own",
            f"{kind!r}",
        )
    seeds = [case_seed(seed, kind, level) for level in numbers_]
    return [
        Case(kind, level, unit, own, function(own))
        for level, own, function in zip(numbers_, seeds, functions, strict=True)
    ]


def _function(name: str, function: Any, level: Any) -> Callable[[int], Callable[[Any], Any]]:
    if not callable(function):
        raise ArgumentTypeError(
            name, "functions of a batch", f"{describe(function)} for level {level}"
        )
    return lambda _: function


def _registered(name: str, kind: str, level: float) -> Callable[[int], registry.Shift]:
    try:
        registry.make(kind, level)
    except (TypeError, ValueError) as error:
        raise within(name, error) from None
    return lambda seed: registry.make(kind, level, seed)


def groups_needed(coverage: float) -> int:
    """The fewest groups of which an interval can be bounded: G >= coverage * (G + 1)."""
    return math.ceil(coverage / (1 - coverage) - ROUNDING)
