"""Screening: the ranked table of all pairs."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resque_ext.errors import ArgumentError
from resque_ext.indices.registry import lower_is_cheaper
from resque_ext.plots.canvas import words
from resque_ext.plots.charts import interval_chart
from resque_ext.plots.html import table
from resque_ext.screening.results import PairResult, PredictedCost
from resque_ext.screening.stopping import Estimate, ranks
from resque_ext.screening.store import PairKey

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = "resque_ext.ScreeningTable/1"
NAMED = 2  # pairs that a warning below the table names


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


WITHIN = (
    "Ranked within each model: an index says how far data are from what one model knows, and not "
    "what that model can do; one that knows nothing may have the lowest. With target_accuracy= "
    "models are compared by the cost of reaching it."
)


class Screening(Sequence[Ranked]):
    """Every pair of a screening, the cheapest first.

    Costs that are forecast to a target are ranked over all models; anything else within each model,
    because it means nothing across them (`WITHIN` says why).

    Attributes:
        rank_by: an index, or a measure of the predicted cost.
        across_models: whether ranks are over all models.
    """

    def __init__(self, results: Iterable[PairResult], rank_by: str = "resque_dist") -> None:
        self.rank_by = rank_by
        found = list(results)
        self.across_models = compares_models(found, rank_by)
        self._rows = tuple(placed_rows(found, rank_by))

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
            times: False leaves out what two runs of one screening differ in: the seconds, and of a
                forecast's costs those that a probe measured.
        """
        rows = []
        for row in self:
            values = {"rank": row.rank, "worst": row.worst} | asdict(row.result)
            values["faults"] = list(values["faults"])
            if not times:
                del values["seconds"]
                if row.result.forecast is not None:  # all but these are measured in the probe
                    costs = values["predicted"]
                    values["predicted"] = {n: costs[n] for n in ("epochs", "steps") if n in costs}
            rows.append(values)
        about = {"rank_by": self.rank_by, "across_models": self.across_models}
        return {"format": FORMAT, **about, "pairs": rows}

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

    def plot(self, rank_by: str | None = None) -> Figure:
        """Every pair's value with its interval, in the order of the ranks, a colour a model.

        Args:
            rank_by: an index, or a measure of the predicted cost; by default what is ranked by.

        Raises:
            ValueError: no pair has it, or matplotlib is not installed.
        """
        by = self.rank_by if rank_by is None else rank_by
        ranked = self if by == self.rank_by else Screening(self.results, by)
        found = [(row.result, interval(row.result, by)) for row in ranked]
        rows = [(r.candidate, r.model, *known) for r, known in found if known is not None]
        if not rows:
            raise ArgumentError("rank_by", "what some pair has", f"{by!r}")
        return interval_chart(rows, words(by), "model")

    def _repr_html_(self) -> str:
        from rich.text import Text

        whole = self.__rich__()
        shown, *below = getattr(whole, "renderables", [whole])
        cells = ([Text.from_markup(str(c)).plain for c in each.cells] for each in shown.columns)
        return table(
            f"Ranked by {self.rank_by}",
            [str(column.header) for column in shown.columns],
            zip(*cells, strict=True),
            map(str, below),
        )

    def __rich__(self) -> Any:
        """The table for a terminal, with what it cannot be relied on for below it."""
        from rich.console import Group
        from rich.markup import escape
        from rich.table import Table
        from rich.text import Text

        results = self.results
        columns = {name: make for name, make in self._columns().items() if any(map(make, results))}
        table = Table(title=f"Ranked by {escape(self.rank_by)}", title_justify="left")
        table.add_column("rank", justify="right")
        for name in ("model", "candidate"):
            table.add_column(name, overflow="fold")
        for name in columns:
            table.add_column(name, justify="right", overflow="fold")
        for row in self:
            r = row.result
            rank = (
                "" if row.rank is None else f"{row.rank}-{row.worst}" if row.tied else f"{row.rank}"
            )
            table.add_row(
                rank,
                escape(r.model),
                escape(r.candidate),
                *(make(r) or "-" for make in columns.values()),
            )
        below = [] if self.across_models else [WITHIN]
        whose: dict[str, list[str]] = {}
        for r in results:
            for text in r.warnings:
                whose.setdefault(text, []).append(f"{r.model}, {r.candidate}")
        for text, names in whose.items():
            more = f" and {len(names) - NAMED} more" if names[NAMED:] else ""
            below.append(f"? {text} ({'; '.join(names[:NAMED])}{more})")
        return Group(table, *(Text(text, style="dim") for text in below)) if below else table

    def _columns(self) -> dict[str, Callable[[PairResult], str]]:
        """What the table shows of a pair, by the column's name; "" for nothing."""
        from rich.markup import escape

        indices = list(dict.fromkeys(name for r in self.results for name in r.indices))
        measures = list(dict.fromkeys(name for r in self.results for name in r.predicted))
        forecast = any(r.forecast is not None for r in self.results)
        if forecast:
            measures = list(dict.fromkeys(("epochs", self.rank_by)))
        costs: dict[str, Callable[[PairResult], str]] = {
            name: lambda r, name=name: _show_cost(name, r.predicted.get(name)) for name in measures
        }
        columns: dict[str, Callable[[PairResult], str]] = {}
        for i, name in enumerate(indices):
            columns[name] = lambda r, name=name: _show(r.indices.get(name))
            if i == 0:
                columns["floor"] = lambda r, name=name: _show_floor(r.indices.get(name))
        accuracy = {"accuracy": _show_accuracy}
        stopped = {"stopped": lambda r: escape(r.error) if r.error else r.stopped}
        if not forecast:
            return columns | accuracy | costs | {"samples": _show_samples} | stopped
        failed = any(r.error for r in self.results)  # every other pair is read to its end
        return (
            costs | {"forecast": _show_forecast} | accuracy | columns | (stopped if failed else {})
        )


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
    found, turned = list(results), _cheapest_low(rank_by)
    across = compares_models(found, rank_by)
    groups: dict[str | None, dict[Hashable, Estimate | None]] = {}
    for r in found:
        known = interval(r, rank_by)
        if known is not None:
            group = groups.setdefault(None if across else r.model, {})
            group[r.model, r.candidate] = Estimate(*turned(*known), samples=0)
    return {key: place for group in groups.values() for key, place in ranks(group).items()}  # type: ignore[misc]


def compares_models(results: Iterable[PairResult], rank_by: str) -> bool:
    """Whether what is ranked by means the same of every model: a cost of reaching the target."""
    found = list(results)
    if len({r.model for r in found}) <= 1:
        return True
    return any(r.forecast is not None and rank_by in r.predicted for r in found)


def _cheapest_low(rank_by: str) -> Callable[..., tuple[float, float, float]]:
    """Turns an interval (value, low, high) so that lower is cheaper, whatever is ranked by."""
    if lower_is_cheaper(rank_by):
        return lambda value, low, high: (value, low, high)
    return lambda value, low, high: (-value, -high, -low)


def placed_rows(results: Sequence[PairResult], rank_by: str) -> Iterator[Ranked]:
    """The rows of the table: model after model where ranks are within each."""
    found = {(r.model, r.candidate): r for r in results}
    placed, turned = places(results, rank_by), _cheapest_low(rank_by)
    across = compares_models(results, rank_by)
    models = list(dict.fromkeys(r.model for r in results))

    def order(key: PairKey) -> Any:
        known = interval(found[key], rank_by)
        assert known is not None  # it has a place
        # What may never be reached comes behind all that will be, whatever it costs if it is.
        doubted = across and _is_doubted(found[key])
        return (0 if across else models.index(key[0])), doubted, turned(*known), key

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
        "old_accuracy",
        "new_accuracy",
    ):
        values[name] = getattr(r, name)
    if r.forecast is not None:
        values |= {f"forecast.{name}": value for name, value in asdict(r.forecast).items()}
    return values | {"faults": len(r.faults), "error": r.error}


def _show(found: Any) -> str:
    if found is None:
        return ""
    error = found.std_error
    shown = f"{found.value:.4f}" + ("" if error is None else f" ± {error:.4f}")
    return shown if found.reliable else f"{shown} ?"


def _show_floor(found: Any) -> str:
    """Not of a debiased value, from which it has been taken off."""
    if found is None or found.noise_floor is None or found.low is not None:
        return ""
    return f"{found.noise_floor:.4f}"


def _show_cost(measure: str, found: Any) -> str:
    if found is None:
        return ""
    unit = "" if found.unit == measure else f" {found.unit}"
    if found.low == found.value == found.high:
        return f"{found.value:.3g}{unit}"
    high = "" if found.high is None else f"{found.high:.3g}"
    return f"{found.value:.3g} [{found.low:.3g}, {high}]{unit}"


def _show_forecast(r: PairResult) -> str:
    if r.forecast is None:
        return ""
    return r.forecast.stage if r.forecast.reliable else f"{r.forecast.stage} ?"


def _show_accuracy(r: PairResult) -> str:
    """On the candidate: of the rows held out where a target is given, else of all."""
    found = r.new_accuracy if r.forecast is None else r.forecast.accuracy
    return "" if found is None else f"{found:.1%}"


def _show_samples(r: PairResult) -> str:
    of = "" if r.available in (None, r.new_samples) else f" of {r.available:,}"
    return f"{r.new_samples:,}{of}"


def _is_doubted(r: PairResult) -> bool:
    return r.forecast is not None and r.forecast.verdict is not None
