"""How well every predictor orders every measured cost, within kinds of shift and across them."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from resque_ext.data.checks import check_choice, check_count, describe
from resque_ext.errors import ArgumentError, ArgumentTypeError
from resque_ext.plots.html import table
from resque_ext.retraining.record import MEASURES
from resque_ext.studies import bootstrap
from resque_ext.studies.study_run import StudyRun, checked_runs, lower_is_cheaper

METHODS = ("spearman", "pearson")
CENSORED = ("limit", "drop")
LEAST_SHARE = 0.5  # of the bootstrap samples that must have a value for an interval


@dataclass(frozen=True)
class Correlation:
    """One correlation coefficient, or why there is none.

    Attributes:
        value: -1 to 1; None where `reason` says why.
        low, high: ends of the bootstrap interval; None if there is none.
        runs: how many runs it is of, the censored among them included.
        censored: how many of these are censored and enter as tied above all others.
        dropped: how many were left out: censored ones, and those without a value.
        reason: why there is no value, or no interval.
    """

    value: float | None
    low: float | None
    high: float | None
    runs: int
    censored: int
    dropped: int
    reason: str | None = None


@dataclass(frozen=True)
class CorrelationRow:
    """One predictor against one measure by one method.

    Attributes:
        across: over all runs.
        within: the mean of those of the kinds that have one.
        kinds: over the runs of one kind, by its name.
    """

    predictor: str
    measure: str
    method: str
    across: Correlation
    within: Correlation
    kinds: dict[str, Correlation]


class Correlations(Sequence[CorrelationRow]):
    """The table of all correlations; `print` shows it.

    Attributes:
        rows: one a predictor, measure and method.
        runs, censored: how many there are, and how many of them did not reach the target.
        options: resamples, confidence and seed as asked for, and `censored` as "censored_runs".
    """

    def __init__(
        self, rows: Iterable[CorrelationRow], runs: int, censored: int, options: Mapping[str, Any]
    ) -> None:
        self.rows, self.runs, self.censored = tuple(rows), runs, censored
        self.options = dict(options)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def get(self, predictor: str, measure: str, method: str = "spearman") -> CorrelationRow:
        """One row.

        Raises:
            KeyError: there is none.
        """
        for row in self.rows:
            if (row.predictor, row.measure, row.method) == (predictor, measure, method):
                return row
        raise KeyError(f"no {method} correlation of {predictor!r} with {measure!r}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        rows = []
        for row in self.rows:
            kinds = {kind: vars(found) for kind, found in row.kinds.items()}
            rows.append(
                vars(row) | {"across": vars(row.across), "within": vars(row.within), "kinds": kinds}
            )
        return {"runs": self.runs, "censored": self.censored, **self.options, "rows": rows}

    def _repr_html_(self) -> str:
        return table(
            f"{self.runs} runs, {self.censored} of them censored [{self._confidence}]",
            ("predictor", "measure", "method", "across kinds", "mean within kinds"),
            (
                (row.predictor, row.measure, row.method, _show(row.across), _show(row.within))
                for row in self.rows
            ),
        )

    def __str__(self) -> str:
        """A table of text: predictors down, measures across, one table a method and place."""
        measures = list(dict.fromkeys(row.measure for row in self.rows))
        width = max([len(row.predictor) for row in self.rows], default=0)
        lines = [f"{self.runs} runs, {self.censored} of them censored"]
        for method in dict.fromkeys(row.method for row in self.rows):
            rows = [row for row in self.rows if row.method == method]
            for place in ("across", "within"):
                where = "across kinds" if place == "across" else "mean within kinds"
                lines += ["", f"{method.capitalize()}, {where} [{self._confidence}]"]
                cells = [["", *measures]]
                for name in dict.fromkeys(row.predictor for row in rows):
                    found = {r.measure: getattr(r, place) for r in rows if r.predictor == name}
                    cells.append([name, *(_show(found[m]) for m in measures)])
                columns = [max(map(len, column)) for column in zip(*cells, strict=True)]
                columns[0] = width
                for row_ in cells:
                    first, *rest = row_
                    shown = (c.rjust(w) for c, w in zip(rest, columns[1:], strict=True))
                    lines.append("  ".join([first.ljust(columns[0]), *shown]).rstrip())
        return "\n".join(lines)

    @property
    def _confidence(self) -> str:
        return f"{100 * self.options['confidence']:g}% interval"


def correlate(
    runs: Iterable[StudyRun],
    predictors: Iterable[str] | None = None,
    measures: Iterable[str] | None = None,
    *,
    methods: Iterable[str] = METHODS,
    censored: str = "limit",
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Correlations:
    """Spearman's and Pearson's correlation of every predictor with every measure.

    A predictor of an index of which more is cheaper enters negative, so that 1 is the perfect order
    of costs for every predictor.

    A run that did not reach the target has no known cost: its figures say only that the cost is
    larger. By default ("limit") all such runs enter the rank correlation tied, above every run that
    reached the target; they never enter Pearson's, which would need the value. `gradient_norm_mean`
    and `gradient_norm_last` need not rise with the cost; there the tie is a convention.

    The intervals are percentiles of a bootstrap over the runs. Within kinds, runs are drawn within
    each kind, and the mean is over the kinds that have a value in the sample. A kind of few levels
    has wide intervals, or none where fewer than half of its samples have a value.

    Args:
        runs: of one or several studies.
        predictors, measures: names; by default all that any run has a value for.
        methods: "spearman", "pearson" or both.
        censored: "limit" as above, or "drop" to leave censored runs out altogether.
        resamples: bootstrap samples.
        confidence: of the intervals, between 0 and 1.
        seed: of the bootstrap, 0 or more.

    Returns:
        The table. Fewer than three runs, or values that are all the same: None, with the reason.

    Raises:
        TypeError, ValueError: an argument is wrong, or there is no run.
    """
    found = checked_runs(runs)
    if not found:
        raise ArgumentError("runs", "at least one", "none")
    names = _check_names(predictors, "predictors", {n: None for r in found for n in r.predictors})
    chosen = _check_names(measures, "measures", MEASURES)
    if predictors is None:
        names = [n for n in names if any(r.predictors.get(n) is not None for r in found)]
    if measures is None:
        chosen = [n for n in chosen if any(r.measures[n] is not None for r in found)]
    methods = _check_names(methods, "methods", METHODS)
    check_choice(censored, CENSORED, "censored")
    resamples = check_count(resamples, "resamples")
    if isinstance(confidence, bool) or not isinstance(confidence, numbers.Real):
        raise ArgumentTypeError("confidence", "a number", f"{confidence!r}")
    if not 0 < confidence < 1:
        raise ArgumentError("confidence", "a number between 0 and 1", confidence)
    check_count(seed, "seed", least=0)
    options = {
        "censored_runs": censored,
        "resamples": resamples,
        "confidence": float(confidence),
        "seed": int(seed),
    }
    table = _Table(found, options)
    rows = [table.row(n, m, method) for method in methods for m in chosen for n in names]
    return Correlations(rows, len(found), sum(r.censored for r in found), options)


class _Table:
    """Values of all runs as arrays, and the bootstrap's settings."""

    def __init__(self, runs: Sequence[StudyRun], options: Mapping[str, Any]) -> None:
        self.runs, self.options = runs, options
        self.kinds = np.array([run.kind for run in runs])
        self.censored = np.array([run.censored for run in runs])
        measures = [run.measures for run in runs]
        self.measures = {name: _array(m.get(name) for m in measures) for name in MEASURES}

    def row(self, predictor: str, measure: str, method: str) -> CorrelationRow:
        x = _array(run.predictors.get(predictor) for run in self.runs)
        if not lower_is_cheaper(predictor):
            x = -x
        y = self.measures[measure]
        # Tied above all others, whatever it had come to when the run was given up.
        y = np.where(self.censored, math.inf, y)
        used = np.isfinite(x) & ~np.isnan(y)
        if method == "pearson" or self.options["censored_runs"] == "drop":
            used &= ~self.censored
        ranks = method == "spearman"
        everywhere = np.ones(len(x), dtype=bool)
        across, _ = self._correlation(x, y, used, everywhere, ranks, 0)
        kinds, drawn = {}, []
        for i, kind in enumerate(dict.fromkeys(self.kinds.tolist()), start=1):
            kinds[kind], samples = self._correlation(x, y, used, self.kinds == kind, ranks, i)
            if samples is not None:
                drawn.append(samples)
        return CorrelationRow(predictor, measure, method, across, self._mean(kinds, drawn), kinds)

    def _correlation(
        self, x: Any, y: Any, used: Any, among: Any, ranks: bool, stream: int
    ) -> tuple[Correlation, Any]:
        """Of the used runs among some, and the bootstrap's values [B]; `stream` has draws of its
        own, for kinds are drawn independently of each other."""
        dropped = int((among & ~used).sum())
        here = among & used
        n, censored = int(here.sum()), int((here & self.censored).sum())
        x, y = x[here], y[here]
        reason = _why_none(x, y)
        if reason is not None:
            return Correlation(None, None, None, n, censored, dropped, reason), None
        value = float(bootstrap.correlations(x, y, np.ones((1, n)), ranks)[0])
        if math.isnan(value):
            reason = "differences between the values are too small to be told"
            return Correlation(None, None, None, n, censored, dropped, reason), None
        generator = np.random.default_rng([self.options["seed"], stream])
        samples = bootstrap.correlations(
            x, y, bootstrap.draw(generator, n, self.options["resamples"]), ranks
        )
        low, high, reason = self._interval(samples)
        return Correlation(value, low, high, n, censored, dropped, reason), samples

    def _mean(self, kinds: Mapping[str, Correlation], drawn: Sequence[Any]) -> Correlation:
        known = [found for found in kinds.values() if found.value is not None]
        runs = sum(found.runs for found in known)
        censored = sum(found.censored for found in known)
        dropped = len(self.runs) - runs
        if not known:
            reason = "no kind of shift has three runs with different values"
            return Correlation(None, None, None, runs, censored, dropped, reason)
        value = float(np.mean([found.value for found in known]))
        there = ~np.isnan(drawn)
        sums = np.where(there, drawn, 0.0).sum(0)
        with np.errstate(invalid="ignore"):
            samples = np.where(there.any(0), sums / there.sum(0), np.nan)
        low, high, reason = self._interval(samples)
        return Correlation(value, low, high, runs, censored, dropped, reason)

    def _interval(self, samples: Any) -> tuple[float | None, float | None, str | None]:
        known = samples[~np.isnan(samples)]
        if len(known) < LEAST_SHARE * len(samples):
            share = f"{len(known)} of {len(samples)}"
            return None, None, f"no interval: only {share} bootstrap samples have a correlation"
        tail = (1 - self.options["confidence"]) / 2
        low, high = np.quantile(known, [tail, 1 - tail])
        return float(low), float(high), None


def _why_none(x: Any, y: Any) -> str | None:
    if len(x) < bootstrap.LEAST:
        return f"too few runs with both values: {len(x)}, at least {bootstrap.LEAST} are needed"
    for values, name in ((x, "predictor"), (y, "measure")):
        if (values == values[0]).all():
            return f"the {name} is the same in all {len(values)} runs"
    return None


def _array(values: Iterable[float | None]) -> Any:
    """NaN for None."""
    return np.array([math.nan if v is None else float(v) for v in values], dtype=np.float64)


def _check_names(given: Any, name: str, known: Iterable[str]) -> list[str]:
    known = list(known)
    if given is None:
        return known
    if not isinstance(given, Iterable):
        raise ArgumentTypeError(name, "names", describe(given))
    names = [given] if isinstance(given, str) else list(given)
    unknown = [n for n in names if n not in known]
    if unknown or not names or len(set(names)) < len(names):
        raise ArgumentError(name, f"names among {', '.join(known)}, each once", unknown or names)
    return names


def _show(found: Correlation) -> str:
    if found.value is None:
        return "none"
    if found.low is None:
        return f"{found.value:.2f}"
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"
