"""Five shifted CIFAR-10 sets, two models: in which order to retrain, and what it takes.

    python benchmarks/afternoon_cifar10.py --data cifar10_jpeg.npz           about ten minutes
    python benchmarks/afternoon_cifar10.py --data cifar10_jpeg.npz --write   also docs/forecast.md

All pairs are forecast first; then each is retrained, from its forecast's own steps.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from better_index import Shuffled, accuracy, batches
from ledger import write
from ledger_measure import fitted
from ledger_settings import SETTINGS, shifted
from shifted_settings import load_cifar

from resque_ext import forecast
from resque_ext.retraining import retrain

MODELS = {"batch norm": "cifar-resnet-batch", "group norm": "cifar-resnet-group"}
SETS = {
    "contrast": 0.8,
    "gaussian": 0.15,
    "rotation": 45.0,
    "invert": 0.7,
    "pixelate": 0.5,
}
BELOW = 0.06  # the target is the accuracy without a shift less this
MOST_EPOCHS = 8.0
Row = dict[str, Any]


def measure(data: Path) -> tuple[list[Row], dict[str, float]]:
    """Rows in the order of the forecast, and seconds of forecasts and retrainings."""
    old, new, test = load_cifar(data)
    seconds, rows = {"forecasts": 0.0, "retrainings": 0.0}, []
    for label, name in MODELS.items():
        setting = SETTINGS[name]
        model = fitted(setting, old)
        target = round(accuracy(model, test) - BELOW, 3)
        print(f"{label}: target {target:.1%}", file=sys.stderr)
        for i, (kind, level) in enumerate(SETS.items()):
            sides = [shifted(part, kind, level, i) for part in (new, test)]
            arguments = Shuffled(sides[0], setting.batch), batches(sides[1]), target, MOST_EPOCHS
            options = {"checks_per_epoch": setting.checks, "meter": None}
            began = time.perf_counter()
            found = forecast(model, batches(_part(old)), *arguments, **options)
            seconds["forecasts"] += time.perf_counter() - began
            rows.append(
                {"model": label, "kind": kind, "found": found}
                | {"run": (model, arguments, options), "target": target}
            )
            print(f"  {kind}: {found.epochs.value} {found.verdict}", file=sys.stderr)
    rows.sort(key=lambda row: (row["found"].verdict is not None, row["found"].epochs.value))
    for row in rows:
        (model, arguments, options), found = row.pop("run"), row["found"]
        began = time.perf_counter()
        adapts = found.adapted_model is not None
        start = {} if adapts else {"start": found}
        model = found.adapted_model if adapts else model
        row["cost"] = retrain(model, *arguments, **options, **start)
        seconds["retrainings"] += time.perf_counter() - began
        print(f"  {row['model']}, {row['kind']}: {row['cost'].epochs}", file=sys.stderr)
    return rows, seconds


def _part(old: Any) -> Any:
    """Enough of the old side to match normalization to."""
    return old[0][:1000], old[1][:1000]


def table(rows: list[Row], seconds: dict[str, float]) -> str:
    targets = ", ".join(dict.fromkeys(f"{r['target']:.1%} ({r['model']})" for r in rows))
    lines = [
        f"Targets {targets}; Adam at 1e-3, at most {MOST_EPOCHS:g} epochs of 40 steps; CPU, one "
        f"thread, torch {torch.__version__}. The forecasts took {seconds['forecasts']:.0f} s, the "
        f"retrainings that went on from them {seconds['retrainings']:.0f} s more.",
        "",
        "| | model | set | before | stage | forecast epochs (90%) | took |",
        "|---|---|---|---|---|---|---|",
    ]
    for i, row in enumerate(rows, start=1):
        found, cost = row["found"], row["cost"]
        epochs = found.epochs
        high = "" if epochs.high is None else f"{epochs.high:.2g}"
        end = f" ({epochs.low:.2g} to {high})" if high else f" ({epochs.low:.2g} or more)"
        said = f"{epochs.value:.2g}{'' if epochs.low == epochs.high else end}"
        verdict = f", {found.verdict}" if found.verdict else ""
        took = f"{cost.epochs:.2f}" if cost.reached else f"more than {cost.epochs:g}"
        lines.append(
            f"| {i} | {row['model']} | {row['kind']} {SETS[row['kind']]:g} | {found.accuracy:.1%} "
            f"| {found.stage}{verdict} | {said} | {took} |"
        )
    known = [r for r in rows if r["cost"].reached and r["cost"].steps and r["found"].steps.value]
    errors = [abs(math.log2(r["found"].steps.value / r["cost"].steps)) for r in known]
    pairs = [
        a["cost"].epochs <= b["cost"].epochs
        for i, a in enumerate(rows)
        for b in rows[i + 1 :]
        if a["cost"].epochs != b["cost"].epochs
    ]
    middle = sorted(errors)[len(errors) // 2] if errors else float("nan")
    lines += [
        "",
        f"{sum(pairs)} of {len(pairs)} pairs are in the order of what they took; the "
        f"forecast is off by a factor of {2**middle:.2f} in the median, over {len(errors)} "
        "that cost something and reached the target.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="cifar10_jpeg.npz")
    parser.add_argument("--write", action="store_true", help="put the table into docs/forecast.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    text = table(*measure(given.data))
    print(text)
    if given.write:
        write({"afternoon": text})


if __name__ == "__main__":
    main()
