"""The leaderboard: how well each predictor orders what retraining costs, the best first.

Every predictor is judged where nothing was chosen: constants are fitted to the development
settings with the development kinds of shift; "unseen kinds" are other kinds on these models,
"unseen models" are the judge's models with all kinds, of which those of other sorts are apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from ledger_cases import Case, Row, cases
from ledger_fit import calibrated, predicted
from scipy.stats import rankdata, spearmanr

from resque_ext.retraining.calibration import CONSTANT, Calibration

Score = Callable[[Case], float | None]
FALLING = {"log_me", "h_score"}  # more is cheaper
INDICES = {
    "RESQUE_dist": "resque_dist",
    "RESQUE_dist, adapted": "resque_dist_adapted",
    "1 - ARI": "resque_task",
    "PreIndex": "preindex",
    "ARM": "arm",
    "accuracy drop": "accuracy_drop",
    "accuracy drop, adapted": "accuracy_drop_adapted",
    "linear probe": "linear_probe",
    "linear_residual": "linear_residual",
    "linear_residual, adapted": "linear_residual_adapted",
    "LogME": "log_me",
    "H-score": "h_score",
}


LENGTHS = {"forecast, no steps": 0, "forecast, 16 steps": 16, "forecast, 32 steps": 32}


def index(name: str) -> Score:
    sign = -1.0 if name in FALLING else 1.0

    def score(case: Case) -> float | None:
        found = case.row["predictors"].get(name)
        if found is None and name.endswith("_adapted"):  # nothing to adapt
            found = case.row["predictors"].get(name.removesuffix("_adapted"))
        return None if found is None else sign * found

    return score


def size(case: Case) -> float:
    return float(case.row["parameters"])


def forecast(calibration: Calibration, length: int) -> Score:
    def score(case: Case) -> float | None:
        if case.free:
            return 0.0
        if case.met_by(length):
            return float(case.steps)
        found = predicted(calibration, case, length)
        # As `screen` has them: what may never be reached comes behind all that will be.
        return found["steps"] * (1e6 if found["never"] >= 0.5 else 1.0)

    return score


def concordance(values: list[float], given: list[Case]) -> tuple[float, int]:
    """Pairs that are known to differ, of which the cheaper has the lower value."""
    right = pairs = 0.0
    for i, a in enumerate(given):
        for j, b in enumerate(given):
            if a.reached and a.steps < b.steps:
                pairs += 1
                right += 1.0 if values[i] < values[j] else 0.5 * (values[i] == values[j])
    return right, int(pairs)


def orders(score: Score, given: list[Case]) -> tuple[float | None, float | None, float | None]:
    """Mean Spearman over models and recipes, concordance within these, and over all models."""
    parts: dict[Any, list[Case]] = {}
    for case in given:
        parts.setdefault(case.part, []).append(case)
    found, right, pairs = [], 0.0, 0
    for part in parts.values():
        values = [score(case) for case in part]
        if any(v is None for v in values):
            continue
        costs = [case.steps if case.reached else math.inf for case in part]
        if len(part) >= 5 and len(set(costs)) > 2 and len(set(values)) > 1:
            found.append(spearmanr(values, rankdata(costs))[0])
        r, p = concordance(values, part)  # type: ignore[arg-type]
        right, pairs = right + r, pairs + p
    known = [(score(case), case) for case in given if case.row["recipe"] == "adam-1e-3"]
    everywhere = None
    if all(value is not None for value, _ in known):
        r, p = concordance([v for v, _ in known], [c for _, c in known])  # type: ignore[misc]
        everywhere = r / p if p else None
    return float(np.mean(found)) if found else None, right / pairs if pairs else None, everywhere


def absolute(calibration: Calibration, given: list[Case], length: int) -> dict[str, Any]:
    """Error, coverage and verdict of those whose cost is not known after the probe."""
    left = [c for c in given if not c.free and not c.met_by(length)]
    left = [c for c in left if c.before.probe_error is not None]
    left = [c for c in left if not length or c.points[-1].step >= length]
    made = [predicted(calibration, c, length) for c in left]
    errors = [
        abs(math.log2(p["steps"] / c.steps)) for p, c in zip(made, left, strict=True) if c.reached
    ]
    inside = [
        p["low"] <= c.steps <= p["high"] for p, c in zip(made, left, strict=True) if c.reached
    ]
    never = np.array([p["never"] for p in made])
    missed = np.array([c.missed for c in left])
    area = None
    if missed.any() and not missed.all():
        ranks = rankdata(never)
        above = ranks[missed].sum() - missed.sum() * (missed.sum() + 1) / 2
        area = float(above / (missed.sum() * (~missed).sum()))
    said = never >= 0.5
    return {
        "cases": len(left),
        "reached": len(errors),
        "median |log2|": float(np.median(errors)) if errors else None,
        "inside 90%": float(np.mean(inside)) if inside else None,
        "missed": int(missed.sum()),
        "AUC": area,
        "said": int(said.sum()),
        "rightly": int((said & missed).sum()),
    }


def parts(found: list[Case]) -> dict[str, list[Case]]:
    known = {c.row["sort"] for c in found if c.row["role"] == "development"}
    judge = [c for c in found if c.row["role"] == "judge"]
    return {
        "unseen kinds": [
            c for c in found if c.row["role"] == "development" and c.row["kind_role"] == "judge"
        ],
        "unseen models": judge,
        "unseen models and kinds": [c for c in judge if c.row["kind_role"] == "judge"],
        "unseen sorts": [c for c in judge if c.row["sort"] not in known],
    }


def board(rows: list[Row]) -> str:
    """Markdown: the orders, the best first, then absolute numbers and verdicts."""
    chosen = [r for r in rows if r["role"] == r["kind_role"] == "development"]
    calibration, found = calibrated(chosen), cases(rows)
    scores: dict[str, Score] = {name: index(key) for name, key in INDICES.items()}
    scores["number of parameters"] = size
    scores |= {name: forecast(calibration, n) for name, n in LENGTHS.items()}
    given = {name: part for name, part in parts(found).items() if part}
    lines = [summary(rows, chosen, found), ""]
    lines += _table(
        ["Spearman; concordance", *given],
        [
            [label, *(_pair(*orders(score, part)) for part in given.values())]
            for label, score in scores.items()
        ],
        key=lambda row: [-_first(cell) for cell in row[2:]],
    )
    lines += [
        "",
        *_table(
            [
                "forecast",
                "on",
                "cases",
                "median \\|log2\\|",
                "inside 90%",
                "missed in 20 epochs",
                "AUC of the verdict",
                "said",
                "rightly",
            ],
            [
                [label, name, *_absolute(absolute(calibration, part, length))]
                for label, length in LENGTHS.items()
                for name, part in given.items()
            ],
        ),
    ]
    return "\n".join(lines) + "\n"


def summary(rows: list[Row], chosen: list[Row], found: list[Case]) -> str:
    def count(name: str) -> int:
        return len({row[name] for row in rows})

    missed = sum(not c.reached for c in found)
    recipes: dict[str, int] = {}
    for row in rows:
        recipes[row["recipe"]] = recipes.get(row["recipe"], 0) + 1
    how = ", ".join(f"{name} {n}" for name, n in sorted(recipes.items(), key=lambda e: -e[1]))
    return (
        f"{len(rows)} retrainings of {count('setting')} models of {count('sort')} sorts for "
        f"{count('kind')} kinds of shift ({how}; one seed), each with two targets: {len(found)} "
        f"cases, of which {sum(c.free for c in found)} cost nothing and {missed} were not reached. "
        f"CPU, {', '.join(sorted({'torch ' + row['versions']['torch'] for row in rows}))}. For the "
        f"tables constants were fitted to the {len(chosen)} retrainings of the development models "
        "with the development kinds alone."
    )


def formulas(calibration: Calibration) -> str:
    """Markdown: the constants of the package."""
    named = {f"R{length}": formula for length, formula in calibration.formulas.items()}
    named["curve, from 64 steps"] = calibration.curve
    named["curve below, without a probe of the embeddings"] = calibration.short_curve
    found = []
    for name, formula in named.items():
        terms = [
            f"{weight:.2f}" if feature == CONSTANT else f"{weight:.2f} {feature}"
            for feature, weight in formula.weights.items()
            if weight
        ]
        start = "log2(k) + " if name.startswith("curve") else ""
        found.append(
            [
                name,
                start + " + ".join(terms),
                *(f"{each:.2f}" for each in (formula.between, formula.within, formula.sigma)),
            ]
        )
    return "\n".join(_table(["formula", "log2(steps)", "between", "within", "sigma"], found)) + "\n"


def _table(
    heads: list[str], rows: list[list[Any]], key: Callable[[list[Any]], Any] | None = None
) -> list[str]:
    ordered = rows if key is None else sorted(rows, key=key)
    lines = ["| " + " | ".join(map(str, cells)) + " |" for cells in (heads, *ordered)]
    return [lines[0], "|---" * len(heads) + "|", *lines[1:]]


def _pair(spearman: float | None, within: float | None, _: float | None) -> str:
    return f"{_number(spearman)}; {_number(within)}"


def _first(cell: str) -> float:
    text = cell.split(";")[0]
    return -1.0 if text == "-" else float(text)


def _absolute(found: dict[str, Any]) -> list[str]:
    numbers = [found["cases"], _number(found["median |log2|"]), _share(found["inside 90%"])]
    numbers += [found["missed"], _number(found["AUC"]), found["said"], found["rightly"]]
    return list(map(str, numbers))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
