"""The pairs of a report as columns: checked, ranked, packed for the page, and as CSV and JSON."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import numpy as np

from resque_ext.errors import ArgumentError, ArgumentTypeError
from resque_ext.screening.results import FORMAT as PAIR_FORMAT
from resque_ext.screening.results import IndexValue, PairForecast, PairResult, PredictedCost
from resque_ext.screening.table import places

FORMAT = "resque_ext.report/1"

Ranks = dict[str, list[tuple[int, int] | None]]

_PLAIN_PARTS = ("unit", "extrapolated", "reliable", "warnings")
_PLAIN = (
    "old_samples",
    "new_samples",
    "available",
    "stopped",
    "pooling",
    "labels",
    "error",
    "faults",
)


def check_pairs(pairs: Iterable[PairResult]) -> list[PairResult]:
    """The pairs sorted by candidate and model, so that a report depends on nothing else.

    Raises:
        TypeError: something else than PairResult.
        ValueError: none at all, the same pair twice, a value that is not a finite number.
    """
    found: dict[tuple[str, str], PairResult] = {}
    for pair in pairs:
        if not isinstance(pair, PairResult):
            raise ArgumentTypeError("pairs", "PairResult", type(pair).__name__)
        key = pair.candidate, pair.model
        where = f"pairs: {pair.candidate!r} on {pair.model!r}"
        if not all(isinstance(name, str) for name in key):
            raise ArgumentError(where, "text for both names", "something else")
        if key in found:
            raise ArgumentError(where, "once", "twice")
        for name, value in _numbers(pair):
            wrong = isinstance(value, bool) or not isinstance(value, (int, float))
            if wrong or not math.isfinite(value):
                raise ArgumentError(f"{where}: {name}", "a finite number", f"{value!r}")
        found[key] = pair
    if not found:
        raise ArgumentError("pairs", "at least one", "none")
    return [found[key] for key in sorted(found)]


def _numbers(pair: PairResult) -> Iterator[tuple[str, Any]]:
    """Each number of a pair with its name; what is unknown is left out."""
    yield "seconds", pair.seconds
    yield "old_samples", pair.old_samples
    yield "new_samples", pair.new_samples
    if pair.available is not None:
        yield "available", pair.available
    for index, found in pair.indices.items():
        optional = ((f, getattr(found, f)) for f in ("std_error", "noise_floor", "low", "high"))
        yield f"{index}.value", found.value
        yield from ((f"{index}.{f}", v) for f, v in optional if v is not None)
    for measure, cost in pair.predicted.items():
        yield f"{measure}.value", cost.value
        yield f"{measure}.low", cost.low
        if cost.high is not None:
            yield f"{measure}.high", cost.high
    for maps in (pair.classes, pair.layers):
        for index, values in maps.items():
            yield from ((f"{index}.{name}", value) for name, value in values.items())


def index_names(pairs: Sequence[PairResult]) -> list[str]:
    """All indices of the pairs, in the order in which they first appear."""
    return list(dict.fromkeys(name for pair in pairs for name in pair.indices))


def measure_names(pairs: Sequence[PairResult]) -> list[str]:
    return list(dict.fromkeys(name for pair in pairs for name in pair.predicted))


def rank(pairs: Sequence[PairResult]) -> Ranks:
    """By index ("indices.arm") and predicted measure ("predicted.epochs"): each pair's ranks.

    They are the best and the worst that it may have, from 1, as the table of `screen` has them;
    None without a value.
    """
    ranks: Ranks = {}
    for group, name in _criteria(pairs):
        placed = places(pairs, name)
        ranks[f"{group}.{name}"] = [placed.get((pair.model, pair.candidate)) for pair in pairs]
    return ranks


def _criteria(pairs: Sequence[PairResult]) -> list[tuple[str, str]]:
    groups = ("indices", index_names(pairs)), ("predicted", measure_names(pairs))
    return [(group, name) for group, names in groups for name in names]


def pack(pairs: Sequence[PairResult], header: Mapping[str, Any]) -> str:
    """The pairs and `header` in base64, as data.js reads them.

    Compressed are: the length of a JSON text in four bytes, the text, then all float64 numbers with
    the first bytes of all of them together, then the second ones, and so on. Signs, exponents and
    missing values (NaN) so take next to nothing; 8 bytes of a mantissa are less than its 17 digits.
    """
    numbers: list[float | None] = []
    columns = []
    for path, kind, values in _columns(pairs):
        column: dict[str, Any] = {"path": path, "kind": kind}
        if kind == "float":
            numbers += values
        elif kind == "named":
            lists = list(dict.fromkeys(tuple(v) for v in values if v is not None))
            places = {names: i for i, names in enumerate(lists)}
            column["names"] = lists
            column["which"] = [None if v is None else places[tuple(v)] for v in values]
            numbers += [number for v in values if v is not None for number in v.values()]
        else:
            column["values"] = values
        columns.append(column)
    content = dict(header) | {
        "pair_format": PAIR_FORMAT,
        "count": len(pairs),
        "models": sorted({pair.model for pair in pairs}),
        "candidates": sorted({pair.candidate for pair in pairs}),
        "ranks": rank(pairs),
        "columns": columns,
    }
    text = json.dumps(content, allow_nan=False, separators=(",", ":")).encode()
    floats = np.array([math.nan if n is None else n for n in numbers], "<f8")
    planes = np.ascontiguousarray(floats.view(np.uint8).reshape(-1, 8).T).tobytes()
    data = struct.pack("<I", len(text)) + text + planes
    return base64.b64encode(zlib.compress(data, 9)).decode()


def _columns(pairs: Sequence[PairResult]) -> Iterator[tuple[list[str], str, list[Any]]]:
    """(path, kind, values): kind is "float", "named" for a dict of floats, or "plain".

    Of each index and measure the column of its value comes first: a pair that lacks it lacks all.
    """
    for name in ("model", "candidate"):
        yield [name], "plain", [getattr(pair, name) for pair in pairs]
    kinds = {"indices": IndexValue, "predicted": PredictedCost}
    for group, name in _criteria(pairs):
        found = [getattr(pair, group).get(name) for pair in pairs]
        for part in (f.name for f in fields(kinds[group])):
            plain = "plain" if part in _PLAIN_PARTS else "float"
            yield [group, name, part], plain, [f and getattr(f, part) for f in found]
    for name in _PLAIN:
        values = [getattr(pair, name) for pair in pairs]
        if name == "faults":
            values = [[asdict(fault) for fault in entry] for entry in values]
        yield [name], "plain", values
    for name in ("seconds", "old_accuracy", "new_accuracy"):
        yield [name], "float", [getattr(pair, name) for pair in pairs]
    yield ["forecast"], "plain", [pair.forecast and asdict(pair.forecast) for pair in pairs]
    for group in ("classes", "layers"):
        maps = [getattr(pair, group) for pair in pairs]
        for name in dict.fromkeys(n for m in maps for n in m):
            yield [group, name], "named", [m.get(name) for m in maps]


def to_json(pairs: Sequence[PairResult], header: Mapping[str, Any]) -> str:
    """One line of strict JSON: `header`, ranks, and each pair as `PairResult.to_json` has it."""
    content = dict(header) | {
        "ranks": rank(pairs),
        "pairs": [{"format": PAIR_FORMAT} | asdict(pair) for pair in pairs],
    }
    return json.dumps(content, allow_nan=False) + "\n"


def to_csv(pairs: Sequence[PairResult]) -> str:
    """A row a pair, with every number as Python writes it; empty where there is none.

    Columns are named by their path, `indices.arm.value`, `layers.arm.LAYER`; faults are JSON. Names
    stand as they are: one that begins with "=" is a formula to a spreadsheet.
    """
    table: dict[str, list[Any]] = {}
    for path, kind, values in _columns(pairs):
        if kind == "named":
            for entry in dict.fromkeys(n for v in values if v is not None for n in v):
                table[".".join([*path, entry])] = [v and v.get(entry) for v in values]
        elif path == ["faults"]:
            table["faults"] = [json.dumps(v) if v else None for v in values]
        elif path == ["forecast"]:
            for part in (f.name for f in fields(PairForecast) if any(values)):
                table[f"forecast.{part}"] = [v and v[part] for v in values]
        else:
            table[".".join(path)] = values
    for name, ranks in rank(pairs).items():
        for i, end in enumerate(("best", "worst")):
            table[f"ranks.{name}.{end}"] = [r and r[i] for r in ranks]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table)
    writer.writerows([_cell(v) for v in row] for row in zip(*table.values(), strict=True))
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, tuple):
        return "; ".join(value)
    return str(value).lower() if isinstance(value, bool) else value
