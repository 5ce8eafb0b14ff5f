"""Results of indices as people see them: an HTML table, and the values of layers for a picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from resque_ext.errors import ArgumentError
from resque_ext.plots.html import number, table

HEADS = ("index", "value", "± se", "noise floor", "reliable")


def results_table(results: Mapping[str, Any]) -> str:
    """HTML: a row an index, its warnings below. One that failed has its error for a value."""
    rows, notes = [], []
    for name, result in results.items():
        if getattr(result, "error", None) is not None:
            rows.append((name, str(result), "", "", ""))
            continue
        known = (getattr(result, each, None) for each in ("std_error", "noise_floor"))
        reliable = "yes" if getattr(result, "reliable", True) else "no"
        rows.append((name, number(result.value), *map(number, known), reliable))
        notes += [f"{name}: {line}" for line in getattr(result, "warnings", ())]
    return table("Old against new", HEADS, rows, notes)


def with_layers(results: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    """The values of layers of every result that has some.

    Raises:
        ValueError: none has.
    """
    found = {name: getattr(result, "layer_values", None) for name, result in results.items()}
    known = {name: values for name, values in found.items() if values}
    if not known:
        raise ArgumentError(
            "plot",
            "a result with values of layers (arm, preindex, representation_distance)",
            f"{', '.join(results)}; add one to indices=",
        )
    return known
