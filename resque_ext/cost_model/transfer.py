"""leave_one_kind_out: how well a cost model carries over to kinds of shift that it has not seen."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from resque_ext.cost_model.model import PREDICTORS, CostModel
from resque_ext.cost_model.recipe import chosen
from resque_ext.cost_model.runs import cost_of
from resque_ext.cost_model.scaling import Prediction
from resque_ext.cost_model.target import with_target
from resque_ext.errors import ArgumentError
from resque_ext.studies.grid import COVERAGE
from resque_ext.studies.study_run import StudyRun, checked_runs

ALL = "all"  # kinds together


@dataclass(frozen=True)
class KindError:
    """Predictions of one kind's runs by a model of all other kinds, against what was measured.

    Attributes:
        kind: of shift.
        runs, censored: how many runs there are, and how many of them were stopped short.
        mean_absolute_error: over runs that reached their target; None without one. In the measure's
            unit, as `bias`.
        bias: mean of predicted minus measured, likewise.
        rank_correlation: Spearman's, over runs that reached their target; None under three, or
            where either side is constant.
        concordance: share of pairs of runs that the predictions order as they were measured, equal
            predictions as half (Harrell's C). Only pairs whose order is known: a censored run costs
            more than any that cost less when it was stopped. 0.5 is chance; None without a pair.
        covered, missed: runs whose cost is known to be inside the interval, or outside.
        undecided: censored runs that were stopped inside a bounded interval.
        unbounded: runs whose interval had no upper end.
        extrapolated: runs with a predictor outside the range of the other kinds; those are
            predicted at its end.
    """

    kind: str
    runs: int
    censored: int
    mean_absolute_error: float | None
    bias: float | None
    rank_correlation: float | None
    concordance: float | None
    covered: int
    missed: int
    undecided: int
    unbounded: int
    extrapolated: int

    @property
    def coverage(self) -> float | None:
        """Share of the runs of which it is known that their cost was inside; None without one."""
        known = self.covered + self.missed
        return self.covered / known if known else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return vars(self) | {"coverage": self.coverage}


@dataclass(frozen=True)
class KindTransfer:
    """Of one measure.

    Attributes:
        measure, unit: what was predicted.
        kinds: by kind of shift.
        overall: all runs together, each predicted without its kind.
        predictions: of each run that the measure is known of, by its position in the runs.
    """

    measure: str
    unit: str
    kinds: dict[str, KindError]
    overall: KindError
    predictions: dict[int, Prediction]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the single predictions."""
        return {
            "measure": self.measure,
            "unit": self.unit,
            "kinds": {name: error.to_dict() for name, error in self.kinds.items()},
            "overall": self.overall.to_dict(),
        }


def leave_one_kind_out(
    runs: Iterable[StudyRun],
    predictors: Sequence[str] = PREDICTORS,
    measures: Sequence[str] = ("epochs",),
    method: str = "monotone",
    coverage: float = COVERAGE,
    *,
    penalty: float = 0.01,
    missing: str = "error",
    only: Mapping[str, Any] | None = None,
    mixed: bool = False,
) -> dict[str, KindTransfer]:
    """Predicts the runs of every kind of shift by a model of all others, by measure.

    Arguments are those of `CostModel.fit`. A run is predicted within the range of the other kinds
    (`extrapolate="clamp"`), with the interval for a new kind of shift. A measure that is not known
    of the runs is left out, and so is a kind without which too few runs are left.

    Raises:
        TypeError, ValueError: as `CostModel.fit`; or all runs are of one kind.
    """
    studied = checked_runs(runs)
    how = (predictors, measures, method, coverage)
    whole = CostModel.fit(studied, *how, penalty=penalty, missing=missing, only=only, mixed=mixed)
    if len(whole.kinds) < 2:
        raise ArgumentError("runs", "at least 2 kinds of shift", list(whole.kinds))
    usable = [
        i
        for i in chosen(studied, only)
        if all(_given(studied[i], predictors).get(name) is not None for name in predictors)
    ]
    predicted: dict[int, dict[str, Prediction]] = {}
    for kind in whole.kinds:
        others = [studied[i] for i in usable if studied[i].kind != kind]
        if sum(not run.censored for run in others) < 2:
            continue
        model = CostModel.fit(others, *how, penalty=penalty, mixed=mixed)
        for i in usable:
            if studied[i].kind == kind:
                given = _given(studied[i], predictors)
                predicted[i] = model.predict(given, extrapolate="clamp")
    found = {}
    for measure in measures:
        known = {
            i: each[measure]
            for i, each in predicted.items()
            if each[measure].value is not None and cost_of(studied[i], measure) is not None
        }
        if known:
            found[measure] = _compare(measure, studied, whole.kinds, known)
    return found


def _given(run: StudyRun, predictors: Sequence[str]) -> dict[str, Any]:
    return with_target(run.predictors, predictors, run.cost.target_accuracy)


def _compare(
    measure: str, runs: Sequence[StudyRun], kinds: Sequence[str], known: dict[int, Prediction]
) -> KindTransfer:
    by_kind = {}
    for kind in kinds:
        mine = {i: found for i, found in known.items() if runs[i].kind == kind}
        if mine:
            by_kind[kind] = _errors(kind, measure, runs, mine)
    unit = next(iter(known.values())).unit
    return KindTransfer(measure, unit, by_kind, _errors(ALL, measure, runs, known), known)


def _errors(
    kind: str, measure: str, runs: Sequence[StudyRun], predictions: dict[int, Prediction]
) -> KindError:
    found = list(predictions.values())
    values = np.array([each.value for each in found])
    costs = np.array([cost_of(runs[i], measure) for i in predictions])
    censored = np.array([runs[i].censored for i in predictions])
    off = (values - costs)[~censored]
    low = np.array([each.low for each in found])
    high = np.array([math.inf if each.high is None else each.high for each in found])
    # The true cost of a censored run is above its figure: that can be outside for certain, and
    # inside for certain only where there is no upper end.
    missed = (costs > high) | (~censored & (costs < low))
    covered = np.where(censored, np.isinf(high) & (costs >= low), (low <= costs) & (costs <= high))
    return KindError(
        kind,
        len(found),
        int(censored.sum()),
        float(np.abs(off).mean()) if len(off) else None,
        float(off.mean()) if len(off) else None,
        _spearman(values[~censored], costs[~censored]),
        _concordance(values, costs, censored),
        int(covered.sum()),
        int(missed.sum()),
        int((~covered & ~missed).sum()),
        int(np.isinf(high).sum()),
        sum(each.extrapolated for each in found),
    )


def _spearman(a: Any, b: Any) -> float | None:
    """Correlation of ranks, equal values sharing their mean rank."""
    if len(a) < 3:
        return None
    ranks = []
    for values in (a, b):
        below, same = (values[:, None] > values).sum(1), (values[:, None] == values).sum(1)
        ranks.append(below + (same - 1) / 2)
    if any(np.ptp(rank) == 0 for rank in ranks):
        return None
    return float(np.corrcoef(*ranks)[0, 1])


def _concordance(values: Any, costs: Any, censored: Any) -> float | None:
    right = pairs = 0.0
    for i, j in itertools.permutations(range(len(costs)), 2):
        # i is known to cost less than j: it reached its target, and j cost as much before its end.
        if not censored[i] and (costs[i] < costs[j] or (censored[j] and costs[i] == costs[j])):
            pairs += 1
            right += 1.0 if values[i] < values[j] else 0.5 if values[i] == values[j] else 0.0
    return right / pairs if pairs else None
