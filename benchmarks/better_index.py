"""Which index orders the cost of retraining across kinds of shift? Chosen here, judged there.

    python benchmarks/better_index.py --quick                      digits, one seed: 2 minutes
    python benchmarks/better_index.py --data cifar10_jpeg.npz      everything: an hour on one core

With `--work DIR` models and measured costs are kept there, one JSON line a shift, and a run that
was broken off goes on. What the settings are for is in docs/better_index.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from shifted_settings import CIFAR_JUDGE, SETTINGS, Part, Setting, fit, load, shifted
from torch import Tensor, nn

from resque_ext import score
from resque_ext.environment import environment as environment_of
from resque_ext.retraining import retrain

Case = tuple[str, float]
MEASURES = {"epochs": "epochs", "change": "parameter change", "gsum": "gradient norm, summed"}
PREDICTORS = {
    "dist": "RESQUE_dist, as published",
    "dist_adapted": "RESQUE_dist, adapted",
    "drop": "accuracy drop",
    "drop_adapted": "accuracy drop, adapted",
    "probe": "linear-probe error",
    "probe_adapted": "linear-probe error, adapted",
    "residual": "linear_residual",
    "residual_adapted": "linear_residual, adapted",
    "runner_up": "probe error, adapted, + RESQUE_dist / 4",
}
IMAGES = 1250  # of a side that are scored, at most
BOOTSTRAPS = 1000


class Shuffled:
    """Batches in another order every time, by torch's generator."""

    def __init__(self, part: Part, batch: int) -> None:
        self.part, self.batch = part, batch

    def __len__(self) -> int:
        return -(-len(self.part[1]) // self.batch)

    def __iter__(self) -> Iterator[Part]:
        for rows in torch.randperm(len(self.part[1])).split(self.batch):
            yield self.part[0][rows], self.part[1][rows]


def batches(part: Part, size: int = 256) -> list[Part]:
    return list(zip(part[0].split(size), part[1].split(size), strict=True))


@torch.inference_mode()
def accuracy(model: nn.Module, part: Part) -> float:
    hits: list[Tensor] = [model(x).argmax(1) == y for x, y in batches(part)]
    return float(torch.cat(hits).float().mean())


def trained(name: str, setting: Setting, old: Part, work: Path | None) -> nn.Module:
    file = work / f"{name}.pt" if work else None
    if file is None or not file.exists():
        model = fit(setting, old)
        if file is not None:
            torch.save(model.state_dict(), file)
        return model
    model = setting.make()
    model.load_state_dict(torch.load(file, weights_only=True))
    return model.eval()


def kept(
    file: Path | None,
    cases: list[Case],
    make: Callable[[int, Case], dict[str, Any]],
    seeds: int = 0,
) -> list[dict[str, Any]]:
    """What `make` gives for every case, read from the file where it is there and written to it.

    Costs of fewer runs than `seeds`, as --quick leaves them, are measured again.
    """
    lines = file.read_text().splitlines() if file is not None and file.exists() else []
    rows = [row for row in map(json.loads, lines) if len(row.get("runs", ())) >= seeds]
    known = {tuple(row["case"]): row for row in rows}
    for i, case in enumerate(cases):
        if case not in known:
            known[case] = {"case": list(case)} | make(i, case)
            if file is not None:
                with file.open("a") as out:
                    out.write(json.dumps(known[case]) + "\n")
            print(f"{case[0]} {case[1]:g}", file=sys.stderr)
    return [known[case] for case in cases]


def cost(
    setting: Setting, model: nn.Module, target: float, new: Part, test: Part
) -> dict[str, Any]:
    """What retraining for one shift cost, a run a seed."""
    runs = []
    for seed in range(setting.seeds):
        found = retrain(
            model,
            Shuffled(new, setting.batch),
            batches(test),
            target,
            setting.max_epochs,
            optimizer=lambda p: torch.optim.Adam(p, lr=setting.retraining_rate, weight_decay=1e-5),
            checks_per_epoch=setting.checks,
            seed=seed,
            meter=None,
        )
        runs.append(
            {
                "epochs": found.epochs,
                "gsum": found.gradient_norm.sum if found.steps else 0.0,
                "change": found.parameter_change.mean if found.steps else 0.0,
                "reached": found.reached,
            }
        )
    return {"runs": runs}


def predictors(model: nn.Module, old: Part, new: Part) -> dict[str, float]:
    """Everything that forward passes alone say of one shift."""
    names = ("resque_dist", "resque_task", "linear_residual")
    old, new = (tuple(t[:IMAGES] for t in part) for part in (old, new))
    plain, adapted = (
        score(
            model,
            batches(old),
            batches(new, 128),
            names,
            adapt_normalization=way,
            options={"resque_task": {"max_iter": 1, "chance": 0}},  # its probe is wanted
            progress=False,
        )
        for way in (False, "match")
    )
    found = {}
    for scores, suffix in ((plain, ""), (adapted, "_adapted")):
        found |= {
            f"dist{suffix}": scores["resque_dist"].value,
            f"drop{suffix}": scores.old_accuracy - scores.new_accuracy,
            f"probe{suffix}": scores["resque_task"].linear_probe_error,
            f"residual{suffix}": scores["linear_residual"].value,
        }
    return found | {"runner_up": found["probe_adapted"] + found["dist"] / 4}


def measure(name: str, setting: Setting, data: Path | None, work: Path | None) -> dict[str, Any]:
    print(name, file=sys.stderr)
    old, new, test = load(setting, data)
    model = trained(name, setting, old, work)
    clean = accuracy(model, test)

    def measured(i: int, case: Case) -> dict[str, Any]:
        sides = shifted(new, *case, 1000 + i), shifted(test, *case, 2000 + i)
        return cost(setting, model, clean - setting.below, *sides)

    def scored(i: int, case: Case) -> dict[str, Any]:
        return {"predictors": predictors(model, old, shifted(new, *case, 1000 + i))}

    files = [work / f"{name}.{what}.jsonl" if work else None for what in ("costs", "predictors")]
    rows = kept(files[0], setting.cases, measured, setting.seeds)
    for row, more in zip(rows, kept(files[1], setting.cases, scored), strict=True):
        row |= more | {"runs": row["runs"][: setting.seeds]}
    return {"role": setting.role, "accuracy": clean, "rows": rows}


def matrices(rows: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """[P, N] predictors and [M, N] costs, means over the seeds."""
    x = [[row["predictors"][p] for row in rows] for p in PREDICTORS]
    y = [[np.mean([run[m] for run in row["runs"]]) for row in rows] for m in MEASURES]
    return np.array(x), np.array(y)


def correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[P, M] Spearman."""
    return spearmanr(x, y, axis=1)[0][: len(x), len(x) :]


def summary(parts: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Means over settings, and 95% intervals by drawing the shifts of each setting anew."""
    pairs = [matrices(rows) for rows in parts]
    value = np.mean([correlations(x, y) for x, y in pairs], 0)
    rng, drawn = np.random.default_rng(0), []
    for _ in range(BOOTSTRAPS):
        picks = [rng.integers(0, x.shape[1], x.shape[1]) for x, _ in pairs]
        found = [correlations(x[:, i], y[:, i]) for (x, y), i in zip(pairs, picks, strict=True)]
        drawn.append(np.mean(found, 0))
    low, high = np.nanpercentile(drawn, [2.5, 97.5], 0)
    names = list(PREDICTORS)
    offered = np.array(drawn)[:, names.index("residual_adapted")]
    table: dict[str, Any] = {}
    for i, name in enumerate(names):
        ahead = np.nanpercentile(offered - np.array(drawn)[:, i], [2.5, 97.5], 0)
        table[name] = {
            measure: {
                "spearman": round(float(value[i, m]), 3),
                "interval": [round(float(low[i, m]), 3), round(float(high[i, m]), 3)],
                "offered_minus_this": np.round(ahead[:, m], 3).tolist(),
            }
            for m, measure in enumerate(MEASURES)
        }
    return table


def ceiling(rows: list[dict[str, Any]]) -> dict[str, float] | None:
    """The rank correlation of two seeds' costs, the most that one could ask for; None for one."""
    seeds = len(rows[0]["runs"])
    if seeds < 2:
        return None
    found = {}
    for m in MEASURES:
        y = np.array([[run[m] for run in row["runs"]] for row in rows])
        pairs = [(a, b) for a in range(seeds) for b in range(a)]
        found[m] = round(float(np.mean([spearmanr(y[:, a], y[:, b])[0] for a, b in pairs])), 3)
    return found


def evaluate(settings: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The tables of each group of settings that was measured."""
    groups: dict[str, list[list[dict[str, Any]]]] = {}
    for name, found in settings.items():
        rows = found["rows"]
        if not name.startswith("cifar"):
            groups.setdefault(f"digits, {found['role']}", []).append(rows)
            continue
        groups.setdefault("CIFAR-10, all kinds", []).append(rows)
        unseen = [row for row in rows if row["case"][0] in CIFAR_JUDGE]
        groups.setdefault("CIFAR-10, the judge's kinds", []).append(unseen)
        groups.setdefault(f"{name}, all kinds", []).append(rows)
    return {
        name: {
            "shifts": [len(rows) for rows in parts],
            "censored": [sum(not r["runs"][0]["reached"] for r in rows) for rows in parts],
            "free": [sum(not r["runs"][0]["epochs"] for r in rows) for rows in parts],
            "seeds_agree": [ceiling(rows) for rows in parts],
            "predictors": summary(parts),
        }
        for name, parts in groups.items()
    }


def show(groups: dict[str, Any]) -> None:
    for name, group in groups.items():
        print(f"\n{name}: {group['shifts']} shifts, {group['censored']} censored")
        print(f"two seeds agree: {group['seeds_agree']}")
        head = " | ".join(MEASURES.values())
        print(f"| predictor | {head} |\n|---|" + "---|" * len(MEASURES))
        for key, title in PREDICTORS.items():
            cells = [
                f"{cell['spearman']:.2f} ({cell['interval'][0]:.2f} to {cell['interval'][1]:.2f})"
                for cell in group["predictors"][key].values()
            ]
            print(f"| {title} | {' | '.join(cells)} |")


def compact(found: dict[str, Any]) -> dict[str, Any]:
    """A setting's rows as lists, four digits of each value, which is more than is known."""
    rows = [
        [
            *row["case"],
            [float(f"{row['predictors'][p]:.4g}") for p in PREDICTORS],
            [[run["reached"], *(float(f"{run[m]:.4g}") for m in MEASURES)] for run in row["runs"]],
        ]
        for row in found["rows"]
    ]
    columns = ["kind", "level", list(PREDICTORS), [["reached", *MEASURES]]]
    return {"role": found["role"], "accuracy": found["accuracy"], "columns": columns, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="CIFAR-10 as an .npz of JPEG files")
    parser.add_argument("--quick", action="store_true", help="the judge's digits, one seed")
    parser.add_argument("--work", type=Path, help="a folder for models and measured costs")
    parser.add_argument("--json", type=Path, help="where to write the results")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.work is not None:
        given.work.mkdir(parents=True, exist_ok=True)
    chosen = {n: s for n, s in SETTINGS.items() if s.data == "digits" or given.data is not None}
    if given.quick:
        chosen = {
            name: replace(setting, seeds=1)
            for name, setting in chosen.items()
            if setting.data == "digits" and setting.role == "judge"
        }
    settings = {n: measure(n, s, given.data, given.work) for n, s in chosen.items()}
    groups = evaluate(settings)
    show(groups)
    if given.json is not None:
        environment = environment_of("scikit-learn")
        about = {key: environment[key] for key in ("versions", "backend", "devices")}
        tables = {name: compact(found) for name, found in settings.items()}
        result = {"environment": about | {"device": "cpu"}, "groups": groups, "settings": tables}
        given.json.write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
