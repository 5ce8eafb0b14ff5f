"""What runs must share for one cost model: the model, its target and how it is trained."""

from __future__ import annotations

import json
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from resque_ext.errors import ArgumentError, ArgumentTypeError
from resque_ext.studies.study_run import StudyRun

TARGET = "target_accuracy"
BATCHES = "steps_per_epoch"  # tells batch sizes apart, where the data are as large
# What does not change the cost of reaching the target: the shift, where a run that does not reach
# it is stopped (which makes a lower bound of it), and the choice among algorithms of one result.
_APART = (
    "transform",
    "max_epochs",
    "max_seconds",
    "max_joules",
    "patience",
    "min_improvement",
    "deterministic",
)
_SHOWN = 4  # values in a message


def recipe(run: StudyRun) -> dict[str, Any]:
    """By name: "model", "target_accuracy", "steps_per_epoch" and every option of the training.

    Those of the optimiser's groups of parameters are "optimizer.lr" and so on; of several groups
    "optimizer.0.lr".
    """
    values = {"model": run.model, TARGET: run.cost.target_accuracy}
    values[BATCHES] = run.cost.steps_per_epoch
    for name, value in run.cost.options.items():
        if name == "optimizer_groups" and isinstance(value, list):
            for i, group in enumerate(value):
                start = "optimizer" if len(value) == 1 else f"optimizer.{i}"
                values |= {f"{start}.{key}": entry for key, entry in dict(group).items()}
        elif name not in _APART:
            values[name] = value
    return values


def chosen(runs: Sequence[StudyRun], only: Mapping[str, Any] | None) -> list[int]:
    """The positions of the runs whose recipe has these values; of all without any.

    A number may be given as text, as a command line has it.

    Raises:
        TypeError: `only` is no mapping.
        ValueError: no run has such a name, or none has these values.
    """
    if only is None:
        return list(range(len(runs)))
    if not isinstance(only, Mapping):
        raise ArgumentTypeError("only", "a mapping such as {'model': 'a'}", f"{only!r}")
    recipes = [recipe(run) for run in runs]
    for name, wanted in only.items():
        known = [found[name] for found in recipes if name in found]
        if not known:
            names = dict.fromkeys(key for found in recipes for key in found)
            raise ArgumentError("only", f"names among {', '.join(names)}", f"{name!r}")
        if not any(_is(value, wanted) for value in known):
            raise ArgumentError("only", f"{name} among {_listed(known)}", f"{wanted!r}")
    found = [
        i
        for i, own in enumerate(recipes)
        if all(name in own and _is(own[name], wanted) for name, wanted in only.items())
    ]
    if not found:
        raise ArgumentError("only", "values that some run has", f"none with {dict(only)}")
    return found


def check_one(runs: Sequence[StudyRun], targets: bool = False) -> None:
    """Raises where runs differ in model, training or, unless `targets` may, in their target.

    Raises:
        ValueError: naming what differs and how to choose.
    """
    recipes = [recipe(run) for run in runs]
    names = dict.fromkeys(key for found in recipes for key in found)
    differing = {}
    for name in names:
        if name == TARGET and targets:
            continue
        values = [found.get(name) for found in recipes]
        # Other numbers of steps are only to be expected of other numbers of samples.
        parts = {run.cost.samples_per_epoch for run in runs} if name == BATCHES else {None}
        for part in parts:
            own = [
                value
                for value, run in zip(values, runs, strict=True)
                if part in (None, run.cost.samples_per_epoch)
            ]
            if len(_distinct(own)) > 1:
                differing[name] = own
    if differing:
        found = "; ".join(f"{name} {_listed(values)}" for name, values in differing.items())
        name, values = next(iter(differing.items()))
        example = f"{name}={_distinct(values)[0]}"
        raise ArgumentError(
            "runs",
            "one model, target and way of training",
            f"{found}: choose with 'only', such as {example}, or fit all "
            "of them as one with 'mixed'",
        )


def _is(value: Any, wanted: Any) -> bool:
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if number and isinstance(wanted, str):
        try:
            return float(wanted) == value
        except ValueError:
            return False
    if isinstance(wanted, str) and not isinstance(value, str):
        return wanted == _text(value)
    return bool(value == wanted)


def _distinct(values: Sequence[Any]) -> list[str]:
    return list(dict.fromkeys(map(_text, values)))


def _text(value: Any) -> str:
    """One line; two values are equal where this is, 1 and 1.0 among them."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _listed(values: Sequence[Any]) -> str:
    texts = _distinct(values)
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return ", ".join(texts[:_SHOWN]) + more
