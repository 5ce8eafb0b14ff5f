"""One retraining for the ledger: all that was known before it, its probe and its whole course.

Training does not depend on the target, so one run to the highest target tells the cost of each.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from better_index import Shuffled, accuracy, batches
from ledger_settings import RECIPES, Part, Setting
from torch import Tensor, nn

from resque_ext import environment, forecast, score
from resque_ext.retraining import setup
from resque_ext.retraining.meters import Costs
from resque_ext.retraining.retrain import make_settings
from resque_ext.tools import demo

FORMAT = "resque_ext.LedgerRow/1"
INDICES = (
    "resque_dist",
    "resque_task",
    "linear_residual",
    "accuracy_drop",
    "linear_probe",
    "nearest_class_mean",
    "arm",
)
LOOKS = (4, 8, 16, 32, 64, 128, 256)  # steps at which the held-out loss is read too


def fitted(setting: Setting, old: Part) -> nn.Module:
    """The model, trained on the old side: Adam, one cycle of the learning rate."""
    torch.manual_seed(setting.seed)
    model, generator = setting.make(), torch.Generator().manual_seed(setting.seed)
    if not setting.epochs:
        return model.eval()
    return demo.train(model, *old, generator, setting.epochs, setting.rate)


def h_score(x: np.ndarray, y: np.ndarray) -> float:
    """tr(cov(x)^-1 cov(E[x | y])): Bao and others, 2019; falls as the task gets harder."""
    centred = x - x.mean(0)
    means = np.stack([centred[y == k].mean(0) for k in np.unique(y)])
    shares = np.array([(y == k).mean() for k in np.unique(y)])
    between = means.T * shares @ means
    return float(np.trace(np.linalg.pinv(np.cov(centred.T, bias=True), rcond=1e-6) @ between))


def log_me(x: np.ndarray, y: np.ndarray) -> float:
    """Mean log evidence of linear models of each class: You and others, 2021 (fixed points)."""
    n, d = x.shape
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    squares, total = s**2, 0.0
    classes = np.unique(y)
    for k in classes:
        target = (y == k).astype(float)
        z = u.T @ target
        rest = max(float(target @ target - z @ z), 0.0)
        alpha = beta = 1.0
        for _ in range(20):
            weight = alpha / beta + squares
            gamma = float((squares / weight).sum())
            m2 = float((squares * z**2 / weight**2).sum())
            residual = rest + float((((alpha / beta) / weight) ** 2 * z**2).sum())
            alpha, beta = gamma / max(m2, 1e-12), (n - gamma) / max(residual, 1e-12)
        weight = alpha / beta + squares
        m2 = float((squares * z**2 / weight**2).sum())
        residual = rest + float((((alpha / beta) / weight) ** 2 * z**2).sum())
        determinant = float(np.log(alpha + beta * squares).sum()) + (d - len(s)) * math.log(alpha)
        evidence = d * math.log(alpha) + n * math.log(beta) - determinant
        evidence -= beta * residual + alpha * m2 + n * math.log(2 * math.pi)
        total += evidence / 2 / n
    return total / len(classes)


@torch.inference_mode()
def embeddings(model: nn.Module, part: Part) -> np.ndarray:
    """What the last linear layer reads."""
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    found: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    try:
        for x, _ in batches(part):
            model(x)
    finally:
        hook.remove()
    return torch.cat(found).double().numpy()


def indices(model: nn.Module, old: Part, clean: Part, new: Part) -> dict[str, float | None]:
    """The published indices and their company, as they are and after adapting normalization."""
    found: dict[str, float | None] = {}
    sides = batches(old), batches(new, 128)
    options = {"resque_task": {"max_iter": 30, "chance": 0}}
    for suffix, way in (("", False), ("_adapted", "match")):
        try:
            scores = score(
                model,
                *sides,
                INDICES,
                adapt_normalization=way,
                options=options,
                progress=False,
                mapping=True,
                errors="keep",
            )
        except ValueError:  # no normalization to adapt
            continue
        for name, each in scores.items():
            found[name + suffix] = _finite(getattr(each, "value", None))
    try:
        pairs = score(
            model,
            batches(clean, 128),
            batches(new, 128),
            ("preindex",),
            paired=True,
            options={"preindex": {"chance": 0}},
            progress=False,
        )
        found["preindex"] = _finite(pairs.value)
    except (ValueError, RuntimeError):
        found["preindex"] = None
    x, y = embeddings(model, new), new[1].numpy()
    return found | {"log_me": _finite(log_me(x, y)), "h_score": _finite(h_score(x, y))}


def course(
    setting: Setting, model: nn.Module, new: Part, test: Part, target: float, recipe: str, seed: int
) -> dict[str, Any]:
    """Loss and error at `LOOKS` and accuracy at every check, until `target` or the last epoch."""
    how = RECIPES[recipe]
    given = {"optimizer": how.optimizer, "scheduler": how.scheduler}
    settings = make_settings(
        torch.device("cpu"),
        given | {"checks_per_epoch": setting.checks},
        target_accuracy=target,
        max_epochs=setting.max_epochs * how.epochs,
        seed=seed,
    )
    points: list[tuple[int, float, float]] = []
    with setup.opened(model, Shuffled(new, setting.batch), batches(test), settings) as run:
        beside = Costs(run.device, None)
        for step in run.steps():
            if step == 0 or step in LOOKS:
                hits, loss = run.read_test(beside, with_loss=True)
                points.append((step, _rounded(loss), _rounded(1 - hits)))
        run.finish()
        record = run.record()
    rows = len(test[1])
    return {
        "points": points,
        "hits": [round(check.accuracy * rows) for check in record.accuracy],
        "steps_per_epoch": record.steps_per_epoch,
        "check_batches": sorted(run.check_batches),
        "steps": record.steps,
        "train_seconds": _rounded(record.train_seconds),
        "evaluation_seconds": _rounded(record.evaluation_seconds),
        "joules": None,
    }


class Shelf:
    """A setting's model and data, made once."""

    def __init__(self, name: str, setting: Setting, path: Path | None) -> None:
        self.name, self.setting = name, setting
        self.sides = setting.load(setting.seed, path)
        old, new, test = (self.shifted(i, "none", 0.0, i) for i in range(3))
        self.old, self.new = old, new
        self.model = fitted(setting, old)
        self.accuracy = accuracy(self.model, test)
        found = [round(self.accuracy - below, 4) for below in setting.below]
        self.targets = list(setting.targets) or found
        self.known: dict[tuple[str, float], dict[str, Any]] = {}

    def shifted(self, side: int, kind: str, level: float, seed: int) -> Part:
        if kind == "none" and isinstance(self.sides[side][0], Tensor):
            return self.sides[side]
        return self.setting.shift(self.sides[side], kind, level, seed)

    def row(self, case: tuple[str, float], recipe: str, seed: int) -> dict[str, Any]:
        """The line of one retraining."""
        i = self.setting.cases.index(case)
        new, test = self.shifted(1, *case, 1000 + i), self.shifted(2, *case, 2000 + i)
        if case not in self.known:
            before = forecast(
                self.model,
                batches(self.old),
                batches(new, 128),
                batches(test),
                1.0,
                steps=(),
                meter=None,
            )
            self.known[case] = {
                "start_accuracy": _rounded(before.accuracy),
                "adapted_accuracy": _rounded(before.adapted_accuracy),
                "linear_probe_error": _rounded(before.linear_probe_error),
                "predictors": indices(self.model, self.old, self.new, new),
            }
        began = time.perf_counter()
        run = course(self.setting, self.model, new, test, max(self.targets), recipe, seed)
        kinds = self.setting.judge_kinds
        return {
            "format": FORMAT,
            "setting": self.name,
            "sort": self.setting.sort,
            "role": self.setting.role,
            "kind": case[0],
            "level": case[1],
            "kind_role": "judge" if case[0] in kinds else "development",
            "recipe": recipe,
            "seed": seed,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "classes": int(self.old[1].max()) + 1,
            "train_samples": len(new[1]),
            "test_samples": len(test[1]),
            "clean_accuracy": _rounded(self.accuracy),
            "targets": self.targets,
            **self.known[case],
            **run,
            "wall_seconds": _rounded(time.perf_counter() - began),
            "versions": {k: environment.versions()[k] for k in ("resque_ext", "torch", "python")},
            "device": "cpu",
        }


def _finite(value: Any) -> float | None:
    return None if value is None or not math.isfinite(value) else _rounded(float(value))


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")
