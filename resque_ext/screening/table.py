"""Screening: the ranked table of all pairs."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from resque_ext.indices.registry import lower_is_cheaper
from resque_ext.screening.results import PairResult, PredictedCost
from resque_ext.screening.stopping import Estimate, ranks
from resque_ext.screening.store import PairKey

FORMAT = "resque_ext.ScreeningTable/1"


@dataclass(frozen=True)
class Ranked:
    """A row of the table.

    Attributes:
        rank: the best place that the pair's interval lets it have, 1 for the cheapest. None where
            there is nothing to rank by.
        worst: the worst place; another one than `rank` where intervals overlap: a tie.
        result: of the pair.
    """

    rank: int | None
    worst: int | None
    result: PairResult

    @property
    def tied(self) -> bool:
        return self.rank != self.worst


class Screening(Sequence[Ranked]):
    """Every pair of a screening, the cheapest first.

    Attributes:
        rank_by: an index, or a measure of the predicted cost.
    """

    def __init__(self, results: Iterable[PairResult], rank_by: str = "resque_dist") -> None:
        self.rank_by = rank_by
        self._rows = tuple(_ranked(list(results), rank_by))

    def __getitem__(self, index: Any) -> Any:
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Ranked]:
        return iter(self._rows)

    def __repr__(self) -> str:
        return f"Screening({len(self)} pairs, ranked by {self.rank_by!r})"

    @property
    def results(self) -> tuple[PairResult, ...]:
        return tuple(row.result for row in self)

    def of_model(self, model: str) -> Screening:
        """One model's pairs, ranked among themselves.

        Raises:
            KeyError: no such model.
        """
        results = [r for r in self.results if r.model == model]
        if not results:
            known = sorted({r.model for r in self.results})
            raise KeyError(f"model: expected one of {known}, found {model!r}")
        return Screening(results, self.rank_by)

    def to_dict(self, times: bool = True) -> dict[str, Any]:
        """Plain numbers, lists and None, for JSON.

        Args:
            times: False leaves the seconds out, in which two runs of one screening differ.
        """
        rows = []
        for row in self:
            values = {"rank": row.rank, "worst": row.worst} | asdict(row.result)
            values["faults"] = list(values["faults"])
            if not times:
                del values["seconds"]
            rows.append(values)
        return {"format": FORMAT, "rank_by": self.rank_by, "pairs": rows}

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """The table as CSV with a header, also written to `path` if given; unknown is empty."""
        rows = [_flat(row) for row in self]
        columns = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        if path is not None:
            Path(path).write_text(text.getvalue(), encoding="utf-8")
        return text.getvalue()

    def __rich__(self) -> Any:
        """The table for a terminal."""
        from rich.markup import escape
        from rich.table import Table

        indices = list(dict.fromkeys(name for r in self.results for name in r.indices))
        measures = list(dict.fromkeys(name for r in self.results for name in r.predicted))
        table = Table(title=f"Ranked by {escape(self.rank_by)}", title_justify="left")
        table.add_column("rank", justify="right")
        for name in ("model", "candidate"):
            table.add_column(name, overflow="fold")
        for name in (*indices, *measures, "samples", "stopped"):
            table.add_column(name, justify="right")
        for row in self:
            r = row.result
            rank = (
                "" if row.rank is None else f"{row.rank}-{row.worst}" if row.tied else f"{row.rank}"
            )
            of = "" if r.available in (None, r.new_samples) else f" of {r.available:,}"
            table.add_row(
                rank,
                escape(r.model),
                escape(r.candidate),
                *(_show(r.indices.get(name)) for name in indices),
                *(_show_cost(r.predicted.get(name)) for name in measures),
                f"{r.new_samples:,}{of}",
                escape(r.error) if r.error else r.stopped,
            )
        return table


def interval(result: PairResult, rank_by: str) -> tuple[float, float, float] | None:
    """(value, low, high) of what a pair is ranked by, None where it has none."""
    found: Any = result.indices.get(rank_by) or result.predicted.get(rank_by)
    if found is None or not math.isfinite(found.value):
        return None
    low = found.value if found.low is None else min(found.low, found.value)
    if found.high is not None:
        return found.value, low, max(found.high, found.value)
    # Of a predicted cost that is unbounded; of an index there is no interval.
    return found.value, low, math.inf if isinstance(found, PredictedCost) else found.value


def places(results: Iterable[PairResult], rank_by: str) -> dict[PairKey, tuple[int, int]]:
    """The best and the worst place of every (model, candidate) that has what is ranked by.

    What the table and the report say; see :func:`resque_ext.screening.stopping.ranks`.
    """
    found = {(r.model, r.candidate): interval(r, rank_by) for r in results}
    turned = _cheapest_low(rank_by)
    return ranks({k: Estimate(*turned(*i), samples=0) for k, i in found.items() if i is not None})


def _cheapest_low(rank_by: str) -> Callable[..., tuple[float, float, float]]:
    """Turns an interval (value, low, high) so that lower is cheaper, whatever is ranked by."""
    if lower_is_cheaper(rank_by):
        return lambda value, low, high: (value, low, high)
    return lambda value, low, high: (-value, -high, -low)


def _ranked(results: list[PairResult], rank_by: str) -> Iterator[Ranked]:
    found = {(r.model, r.candidate): r for r in results}
    placed, turned = places(results, rank_by), _cheapest_low(rank_by)

    def order(key: PairKey) -> Any:
        known = interval(found[key], rank_by)
        assert known is not None  # it has a place
        return turned(*known), key

    for key in sorted(placed, key=order):
        yield Ranked(*placed[key], found[key])
    for key in sorted(found.keys() - placed.keys()):
        yield Ranked(None, None, found[key])


def _flat(row: Ranked) -> dict[str, Any]:
    r = row.result
    values: dict[str, Any] = {"rank": row.rank, "worst": row.worst}
    values |= {"model": r.model, "candidate": r.candidate}
    for kind in (r.indices, r.predicted):
        for name, found in kind.items():
            values |= {f"{name}.{key}": value for key, value in asdict(found).items()}
    for name in (
        "old_samples",
        "new_samples",
        "available",
        "seconds",
        "stopped",
        "pooling",
        "labels",
    ):
        values[name] = getattr(r, name)
    return values | {"faults": len(r.faults), "error": r.error}


def _show(found: Any) -> str:
    if found is None:
        return "-"
    error = found.std_error
    shown = f"{found.value:.4f}" + ("" if error is None else f" ± {error:.4f}")
    return shown if found.reliable else f"{shown} ?"


def _show_cost(found: Any) -> str:
    if found is None:
        return "-"
    high = "" if found.high is None else f"{found.high:.3g}"
    return f"{found.value:.3g} [{found.low:.3g}, {high}] {found.unit}"
