"""What each key of a screening's TOML file may say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from resque_ext import shifts
from resque_ext.indices import registry

_NUMBER = (int, float)
INT32 = 2**31 - 1
Check = Callable[[Any], str | None]  # what was expected, or None where all is well


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) and value else "a text"


def _texts(value: Any) -> str | None:
    right = isinstance(value, list) and value and all(isinstance(v, str) and v for v in value)
    return None if right else "a list of texts"


def _flag(value: Any) -> str | None:
    return None if isinstance(value, bool) else "true or false"


def _number(value: Any) -> str | None:
    right = isinstance(value, _NUMBER) and not isinstance(value, bool) and 0 < value < float("inf")
    return None if right else "a number above 0"


def _count(value: Any, least: int = 1, most: int | None = None) -> str | None:
    right = isinstance(value, int) and not isinstance(value, bool) and value >= least
    if most is None:
        return None if right else f"an integer of at least {least}"
    return None if right and value <= most else f"an integer from {least} to {most}"


def _small_count(value: Any) -> str | None:
    return _count(value, 1, INT32)


def _seed(value: Any) -> str | None:
    return _count(value, 0, INT32)


def _share(value: Any) -> str | None:
    return None if _number(value) is None and value < 1 else "a number between 0 and 1"


def _accuracy(value: Any) -> str | None:
    right = _number(value) is None and value <= 1
    return None if right else "a number above 0 and at most 1"


def _looks(value: Any) -> str | None:
    right = isinstance(value, list) and len(value) == 2 and _small_count(value[0]) is None
    right = right and _number(value[1]) is None and value[1] > 1
    return None if right else "samples of the first look and a growth above 1, [256, 1.25]"


def _one_of(*choices: str) -> Check:
    expected = f"one of {', '.join(choices)}"
    return lambda value: None if value in choices else expected


def _index_names(value: Any) -> str | None:
    known = registry.names()
    right = _texts(value) is None and set(value) <= set(known) and len(set(value)) == len(value)
    return None if right else f"a list of some of {', '.join(known)}"


def _table(value: Any) -> str | None:
    return None if isinstance(value, Mapping) else "a table"


def _tables(value: Any) -> str | None:
    right = (
        isinstance(value, Mapping)
        and value
        and all(name and isinstance(v, Mapping) for name, v in value.items())
    )
    return None if right else "a table with at least one table by name"


_ADAPT = "true or 'match'"
SCREEN: dict[str, Check] = {
    "indices": _index_names,
    "rank_by": _text,
    "store": _text,
    "cost_model": _text,
    "anytime": _flag,
    "width": _number,
    "top": _small_count,
    "confidence": _share,
    "on_fault": _one_of("skip", "raise"),
    "on_error": _one_of("record", "raise"),
    "seed": _seed,
    "device": _text,
    "batch_size": _small_count,
    "looks": _looks,
    "cache": _text,
    "scheduler": _one_of("ray"),
    "workers": _small_count,
    "target_accuracy": _accuracy,
    "probe": lambda value: _count(value, 0, INT32),
    "adapt_normalization": lambda v: None if isinstance(v, bool) or v == "match" else _ADAPT,
}
FORECAST: dict[str, Check] = {
    "batch_size": _small_count,
    "max_epochs": _number,
    "checks_per_epoch": _small_count,
    "coverage": _share,
    "steps": lambda v: None if isinstance(v, list) and v else "a list of numbers",
    "max_share": _accuracy,
    "carbon_intensity": _number,
}
TOP: dict[str, Check] = {
    "screen": _table,
    "budget": _table,
    "options": _tables,
    "forecast": _table,
    "old": _table,
    "models": _tables,
    "candidates": _tables,
}
BUDGET: dict[str, Check] = {"seconds": _number, "samples": _count}
SHIFT: dict[str, Check] = {
    "kind": _one_of(*shifts.names()),
    "level": lambda v: None if isinstance(v, _NUMBER) and not isinstance(v, bool) else "a number",
    "seed": lambda value: _count(value, least=0),
}
CORRUPTION: dict[str, Check] = {
    "kind": _one_of(*shifts.CORRUPTIONS),
    "severity": lambda value: _count(value, 1, 5),
    "seed": SHIFT["seed"],
}
READS = ("pooling", "mask", "channels", "labels")  # of a model, as `score` takes them
MODEL: dict[str, Check] = {
    "factory": _text,
    "weights": _text,
    "layer": _text,
    "layers": lambda value: None if value in ("auto", "published") else _texts(value),
    **dict.fromkeys(READS, _text),
    "old": _table,
}
DATA: dict[str, Check] = {
    "path": lambda value: (
        None if _text(value) is None or _texts(value) is None else "a text or a list of texts"
    ),
    "dataset": _text,
    "format": _one_of("npy", "npz", "safetensors", "parquet", "tar", "folder", "dataset"),
    "kind": _one_of("inputs", "embeddings"),
    "transforms": _texts,
    "classes": _texts,
    "features": _text,
    "labels": _text,
    "label_key": _text,
    "columns": _texts,
    "rows": _count,
}
CANDIDATE: dict[str, Check] = DATA | {"shift": _table, "paired": _flag}
