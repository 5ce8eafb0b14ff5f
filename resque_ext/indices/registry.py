"""The indices by name: those of the package, and those that installed packages add.

A package adds an index by an entry point of the group "resque_ext.indices", whose name is that of
the index and whose value is its class: see docs/adding_an_index.md. An index of this package keeps
its name.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from resque_ext.data.checks import describe
from resque_ext.errors import ArgumentError, ArgumentTypeError
from resque_ext.indices.base import Index

GROUP = "resque_ext.indices"
OWN = {
    "resque_dist": "ResqueDistIndex",
    "resque_task": "ResqueTaskIndex",
    "preindex": "PreIndexIndex",
    "arm": "ArmIndex",
    "linear_residual": "LinearResidualIndex",
    "representation_distance": "RepresentationDistanceIndex",
    "accuracy_drop": "AccuracyDrop",
    "linear_probe": "LinearProbe",
    "nearest_class_mean": "NearestClassMean",
}


EntryPoints = Mapping[str, importlib.metadata.EntryPoint]


def _added() -> EntryPoints:
    """The entry points of installed packages, by the name of the index."""
    return _scanned(importlib.metadata.entry_points, tuple(sys.path))


@functools.lru_cache(maxsize=4)  # a scan takes 10 ms, and every pair of a screening asks
def _scanned(entry_points: Callable[..., Any], _path: tuple[str, ...]) -> EntryPoints:
    found = sorted(entry_points(group=GROUP), key=lambda each: each.name)
    return {each.name: each for each in found if each.name not in OWN}


def names() -> tuple[str, ...]:
    """Of all indices; nothing is loaded."""
    return (*OWN, *_added())


def find(name: str) -> type[Index]:
    """The class of an index.

    Raises:
        ValueError: there is no such index, or its package gives none.
    """
    if name in OWN:
        return pkgutil.resolve_name(f"resque_ext.indices.adapters.{name}:{OWN[name]}")
    entry = _added().get(name)
    if entry is None:
        raise ArgumentError("indices", f"names among {names()}", (name,))
    try:
        found = entry.load()
    except Exception as error:
        raise ArgumentError(
            "indices", f"{name!r} at {entry.value} to load", f"{type(error).__name__}: {error}"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Index)):
        raise ArgumentError(
            "indices",
            f"a subclass of resque_ext.indices.base.Index at {entry.value} for {name!r}",
            describe(found),
        )
    if inspect.isabstract(found):
        lacking = ", ".join(sorted(found.__abstractmethods__))
        raise ArgumentError(
            "indices", f"{entry.value} for {name!r} to have its methods", f"none called {lacking}"
        )
    return found


def of_ranks() -> list[str]:
    """Those of the package whose states can be joined over ranks."""
    return [name for name in OWN if not find(name).in_one_place]


def baselines() -> tuple[str, ...]:
    """Those of the package that a study always has beside the others."""
    return tuple(name for name in OWN if find(name).is_baseline)


def check_names(indices: Any) -> tuple[str, ...]:
    """The names of indices, each once.

    Raises:
        TypeError: no names.
        ValueError: none, one twice, or one that there is not.
    """
    if not isinstance(indices, Iterable):
        raise ArgumentTypeError("indices", f"names among {names()}", f"{indices!r}")
    asked = (indices,) if isinstance(indices, str) else tuple(indices)
    unknown = [name for name in asked if not isinstance(name, str) or name not in OWN]
    if unknown:
        known = names()
        unknown = [name for name in unknown if name not in known]
    if unknown or not asked:
        raise ArgumentError("indices", f"names among {names()}", unknown or asked)
    if len(set(asked)) < len(asked):
        raise ArgumentError("indices", "every name once", asked)
    return asked


def make_indices(
    names: Sequence[str],
    options: Mapping[str, Mapping[str, Any]] | None,
    paired: bool,
    adapted: bool = False,
) -> dict[str, Index]:
    """An index for each name.

    Args:
        names: as `check_names` gives them.
        options: by index.
        paired, adapted: as :class:`Index` has them.

    Raises:
        TypeError: options that are no mapping, or that an index does not have.
        ValueError: options of an index that is not asked for, or one that compares every sample
            with itself where the sides are not paired.
    """
    options = {} if options is None else options
    if not isinstance(options, Mapping) or not all(
        isinstance(value, Mapping) for value in options.values()
    ):
        raise ArgumentTypeError("options", "a mapping of mappings by index", f"{options!r}")
    unknown = [name for name in options if name not in names]
    if unknown:
        raise ArgumentError("options", f"names among the indices {tuple(names)}", f"{unknown[0]!r}")
    made = {}
    for name in names:
        given, kind = options.get(name, {}), find(name)
        known = kind.options()
        wrong = [k for k in given if k not in known]
        if wrong:
            raise ArgumentTypeError(
                "options", f"for {name!r} {', '.join(known) or 'none'}", f"{wrong[0]!r}"
            )
        if kind.reads.layers == "paired" and not paired:
            raise ArgumentError(
                "paired",
                f"True, or shift=, for {name!r}, which compares every sample with itself",
                "False",
            )
        made[name] = kind(**given)
        made[name].paired, made[name].adapted = paired, adapted
    return made


def lower_is_cheaper(name: str) -> bool:
    """Whether a smaller value of an index, or of its predictor, means a cheaper retraining.

    True of a name that is none of an index here, such as that of a measured cost.
    """
    if name in OWN:
        return find(name).lower_is_cheaper
    for each in names():
        with contextlib.suppress(ValueError):  # a package that is broken says so when it is used
            kind = find(each)
            if name in (each, kind.predictor):
                return kind.lower_is_cheaper
    return True
