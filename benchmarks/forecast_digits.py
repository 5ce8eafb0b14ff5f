"""Forecasts of retrainings beside what these then took, on kinds of shift that no constant is from.

    python benchmarks/forecast_digits.py --quick      one seed: 2 to 3 minutes
    python benchmarks/forecast_digits.py              three seeds

Handwritten digits, three sorts of model, eleven kinds of shift (the judge's settings of
shifted_settings.py). Every retraining goes on from its forecast's probe. With `--work DIR` models
and results are kept there, one JSON line a retraining, and a run that was broken off goes on.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from better_index import Shuffled, accuracy, batches, kept, trained
from scipy.stats import rankdata, spearmanr
from shifted_settings import SETTINGS, Setting, load, shifted

from resque_ext import forecast
from resque_ext.forecasting.result import MAY_NEVER, UNSTABLE
from resque_ext.retraining import retrain

RECIPES = {
    "adam-1e-3": lambda p: torch.optim.Adam(p, lr=1e-3, weight_decay=1e-5),
    "adam-3e-4": lambda p: torch.optim.Adam(p, lr=3e-4, weight_decay=1e-5),
    "sgd-0.01": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "sgd-0.05": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
}
BOOTSTRAPS = 1000
Row = dict[str, Any]


def measure(
    name: str,
    setting: Setting,
    seed: int,
    recipe: str,
    steps: list[int],
    every: int,
    work: Path | None,
) -> list[Row]:
    """Forecast and cost of every n-th shift of a setting."""
    print(f"{name}, seed {seed}", file=sys.stderr)
    old, new, test = load(setting, None)
    model = trained(name, setting, old, work)
    target = accuracy(model, test) - setting.below

    def one(_: int, case: tuple[str, float]) -> Row:
        i = setting.cases.index(case)
        train, held_out = shifted(new, *case, 1000 + i), shifted(test, *case, 2000 + i)
        arguments = Shuffled(train, setting.batch), batches(held_out), target, setting.max_epochs
        options = {
            "optimizer": RECIPES[recipe],
            "checks_per_epoch": setting.checks,
            "seed": seed,
            "meter": None,
        }
        found = forecast(model, batches(old), *arguments, steps=steps, **options)
        cost = retrain(model, *arguments, **options, start=found)
        return {
            "forecast": found.to_dict(),
            "epochs": cost.epochs,
            "steps": cost.steps,
            "reached": cost.reached,
        }

    file = work / f"{name}.{recipe}.{seed}.forecasts.jsonl" if work else None
    return kept(file, setting.cases[::every], one)


def value(row: Row) -> float:
    return row["forecast"]["costs"]["steps"]["value"]


def covers(row: Row) -> bool:
    """The interval holds the steps; of a run that was stopped, some number above."""
    cost = row["forecast"]["costs"]["steps"]
    high = math.inf if cost["high"] is None else cost["high"]
    return (cost["low"] <= row["steps"] or not row["reached"]) and row["steps"] <= high


def area(scores: list[float], positive: list[bool]) -> float:
    """Under the receiver's curve: how often a positive has the higher score."""
    ranks, mask = rankdata(scores), np.array(positive)
    above = ranks[mask].sum() - mask.sum() * (mask.sum() + 1) / 2
    return float(above / (mask.sum() * (~mask).sum()))


def interval(parts: list[list[Row]]) -> tuple[float, float]:
    """95% of the mean Spearman, rows of each part drawn anew."""
    rng, drawn = np.random.default_rng(0), []
    for _ in range(BOOTSTRAPS):
        picks = [[rows[i] for i in rng.integers(0, len(rows), len(rows))] for rows in parts]
        drawn.append(np.mean([correlation(rows) for rows in picks]))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def correlation(rows: list[Row]) -> float:
    return float(spearmanr([value(row) for row in rows], [row["epochs"] for row in rows])[0])


def show(parts: dict[str, list[Row]]) -> None:
    every = [row for rows in parts.values() for row in rows]
    # What adapted normalization does alone needs no retraining; the measured one does not adapt.
    parts = {n: [r for r in rows if r["forecast"]["stage"] != "adapt"] for n, rows in parts.items()}
    stages = [row["forecast"]["stage"] for row in every]
    counts = ", ".join(f"{stage} {stages.count(stage)}" for stage in dict.fromkeys(stages))
    stopped = sum(not row["reached"] for row in every)
    print(f"{len(every)} retrainings ({counts}), {stopped} of them did not reach the target")
    mean = np.mean([correlation(rows) for rows in parts.values()])
    low, high = interval(list(parts.values()))
    print(f"Spearman with measured epochs, adapt left out: {mean:.3f} ({low:.3f} to {high:.3f})")
    for name, rows in parts.items():
        print(f"  {name}: {correlation(rows):.3f}")
    for stages in (("indices", "probe"), ("reached",)):
        rows = [row for row in every if row["forecast"]["stage"] in stages]
        known = [row for row in rows if row["reached"]]
        if not known:
            continue
        errors = [abs(math.log2(value(row) / row["steps"])) for row in known]
        share = np.mean([covers(row) for row in rows])
        names = " or ".join(stages)
        print(
            f"{names}: median |log2(forecast / measured)| {np.median(errors):.2f} over "
            f"{len(known)}; {share:.0%} of {len(rows)} inside their interval"
        )
    probed = [row for row in every if row["forecast"]["never_probability"] is not None]
    never = [not row["reached"] for row in probed]
    if any(never) and not all(never):
        scores = [row["forecast"]["never_probability"] for row in probed]
        said = [row["forecast"]["verdict"] == MAY_NEVER for row in probed]
        right = sum(a and b for a, b in zip(said, never, strict=True))
        print(
            f"'{MAY_NEVER}': area {area(scores, never):.3f}; said of {sum(said)}, rightly of "
            f"{right}, of {sum(never)} that did not"
        )
    unstable = sum(row["forecast"]["verdict"] == UNSTABLE for row in every)
    shares = [row["forecast"]["probe"]["steps"] / row["steps"] for row in every if row["steps"]]
    print(
        f"unstable: {unstable}; the probe took {np.median(shares):.0%} of the retraining (median)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed")
    parser.add_argument("--role", choices=("judge", "development"), default="judge")
    parser.add_argument("--recipe", choices=RECIPES, default="adam-1e-3")
    parser.add_argument("--steps", type=int, nargs="*", default=[16, 32], help="of the probe")
    parser.add_argument("--every", type=int, default=1, help="of the shifts take each n-th alone")
    parser.add_argument("--work", type=Path, help="a folder for models and results")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.work is not None:
        given.work.mkdir(parents=True, exist_ok=True)
    parts = {}
    for name, setting in SETTINGS.items():
        if setting.data == "digits" and setting.role == given.role:
            for seed in range(1 if given.quick else setting.seeds):
                options = given.recipe, given.steps, given.every, given.work
                rows = measure(name, setting, seed, *options)
                parts[f"{name}, seed {seed}"] = rows
    show(parts)


if __name__ == "__main__":
    main()
