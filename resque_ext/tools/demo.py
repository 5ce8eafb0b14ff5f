"""A small classifier of handwritten digits, its images shifted or given new tasks, all indices,
what retraining for each shift is forecast to cost, and what it then really costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from resque_ext import shifts
from resque_ext.environment import environment
from resque_ext.errors import ArgumentError
from resque_ext.forecasting import Forecast, forecast
from resque_ext.indices import ResqueDistResult
from resque_ext.retraining import retrain
from resque_ext.scoring.score import Scores, score
from resque_ext.studies import StudyRun, correlate

# Levels that turn 8x8 images of thin strokes from nearly readable to hardly: what is mild on a
# photograph of 224x224 leaves no trace here, and a blur of 3 pixels leaves no digit.
LEVELS: dict[str, tuple[float, ...]] = {
    "gaussian": (0.1, 0.3, 0.8),
    "shot": (0.1, 0.4, 1.0),
    "impulse": (0.05, 0.15, 0.4),
    "salt_and_pepper": (0.05, 0.15, 0.4),
    "gaussian_blur": (0.3, 0.6, 1.0),
    "contrast": (0.1, 0.3, 0.8),
    "brightness": (0.05, 0.15, 0.4),
    "frost": (0.1, 0.3, 0.6),
}
# New tasks for the same images, from one that the model half knows to one that has no answer.
TASKS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "the ten digits": lambda y, _: y,
    "pairs: 0 or 1, 2 or 3, ...": lambda y, _: y // 2,
    "even or odd": lambda y, _: y % 2,
    "labels at random": lambda y, g: y[torch.randperm(len(y), generator=g)],
}
EPOCHS = 15
BATCH = 64
HELD_OUT = 0.4
# Retraining: few levels are so mild that nothing has to be done, and no noise is so strong that
# more epochs would help where these do not.
TARGET = 0.9
MOST_EPOCHS = 4
CHECKS = 4  # of the accuracy, an epoch
RETRAINING_BATCH = 32
COVERAGE = 0.9  # of the intervals
COMPARED = (
    "forecast",
    "resque_dist_reestimated",
    "resque_dist",
    "accuracy_drop",
    "accuracy_drop_reestimated",
)

Batches = list[tuple[Tensor, Tensor]]


def load_digits(seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """1,797 digits [N, 1, 8, 8] in [0, 1] with labels [N], split class by class: see digits.md.

    Returns:
        The training part and the held-out part.
    """
    with (resources.files("resque_ext.tools") / "digits.npz").open("rb") as file:
        data = np.load(file)
        images = torch.from_numpy(data["images"]).float().div_(16).unsqueeze(1)
        labels = torch.from_numpy(data["labels"]).long()
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=generator)
    # Rows by class, and in a random order within it; of every class the first are held out.
    order = shuffled[labels[shuffled].argsort(stable=True)]
    counts = torch.bincount(labels)
    rank = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[order]]
    held_out = rank < (HELD_OUT * counts[labels[order]]).round()
    rows = [order[held_out == side] for side in (False, True)]
    rows = [part[torch.randperm(len(part), generator=generator)] for part in rows]
    old, new = ((images[part], labels[part]) for part in rows)
    return old, new


def make_model() -> nn.Module:
    """A convolutional network of 10 classes for images [N, 1, 8, 8], with batch normalization."""

    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((1, 12, 1), (12, 24, 2), (24, 48, 1)):
        convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10))


def train(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    epochs: int | None = None,
    rate: float = 1e-2,
) -> nn.Module:
    """Trains in place: Adam, cross-entropy, one cycle of the learning rate; back in eval mode.

    Args:
        epochs: by default `EPOCHS`.
        rate: the highest learning rate of the cycle.
    """
    epochs = EPOCHS if epochs is None else epochs
    optimizer = torch.optim.Adam(model.parameters())  # the cycle sets the learning rate
    steps = epochs * -(-len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(labels), generator=generator).split(BATCH):
            loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def run(seed: int = 0, progress: Callable[[str, float], None] = lambda *_: None) -> dict[str, Any]:
    """Trains the classifier, scores every shift of `LEVELS` and every task of `TASKS`, retrains.

    For RESQUE_dist the old side is what the model was trained on, as the index is defined; the new
    side is the held-out images, shifted: other digits than the model has seen, as in practice. So
    the sides are not paired, and even the new side without a shift (kind "none") is a sample of its
    own, which is what the noise floor allows for. PreIndex compares every image with itself, so
    there, and for ARM, the old side is the held-out images without the shift.

    Retraining is for the training images, shifted, until `TARGET` of the held-out images, equally
    shifted, are right, or `MOST_EPOCHS` epochs are over. Each is forecast first, by
    :func:`resque_ext.forecast`, and goes on from the forecast's own steps.

    Returns:
        Plain values for JSON: `rows`, one a shift and level, `tasks`, one a task, and `retraining`
        with `rows` of its own and rank correlations.

    Args:
        seed: of the split, the training and the shifts, 0 to 2^32 - 1. torch's global generator is
            left as it was.
        progress: called with what is being done and the share of all work that is behind.

    Raises:
        ValueError: `seed` is out of range.
    """
    if not 0 <= seed < 2**32:
        raise ArgumentError("seed", "0 <= seed < 2^32", seed)
    start = time.perf_counter()
    progress("training", 0.0)
    old, held_out = load_digits(seed)
    with _one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = train(make_model(), *old, torch.Generator().manual_seed(seed))
    trained = time.perf_counter()

    cases = [("none", 0.0)] + [(kind, level) for kind in LEVELS for level in LEVELS[kind]]
    kinds = ["none", *LEVELS]
    rows = []
    for i, (kind, level) in enumerate(cases):
        progress(f"{kind} {level:g}", 0.2 + 0.3 * i / len(cases))
        # One seed for all levels of a kind, another for every kind: on grey images impulse and
        # salt and pepper are the same law, and would else be the same images.
        images = shifts.make(kind, level, seed + kinds.index(kind))(held_out[0])
        new = _batches(images, held_out[1])
        with _one_thread():
            plain = score(model, _batches(*old), new, progress=False)
            adapted = score(model, _batches(*old), new, adapt_normalization=True, progress=False)
            layers = score(
                model,
                _batches(*held_out),
                new,
                indices=("preindex", "arm"),
                paired=True,
                progress=False,
                options={"preindex": {"chance": 0}},
            )
        rows.append(_row(kind, level, plain, adapted, layers))
    progress("tasks", 0.5)
    with _one_thread():
        tasks = _score_tasks(model, held_out, seed)
        scored = time.perf_counter()
        retraining = _retrain(
            model, old, held_out, rows, lambda what, share: progress(what, 0.5 + 0.5 * share), seed
        )
    progress("done", 1.0)
    return {
        "environment": environment() | {"device": "cpu"},
        "seed": seed,
        "index": "resque_dist",
        "paired": False,
        "images": {"old": len(old[1]), "new": len(held_out[1])},
        "layer": plain.layer,
        "accuracy": {"old": rows[0]["old_accuracy"], "held_out": rows[0]["new_accuracy"]},
        "rows": rows,
        "tasks": tasks,
        "retraining": retraining,
        "seconds": {
            "training": trained - start,
            "scoring": scored - trained,
            "retraining": time.perf_counter() - scored,
            "total": time.perf_counter() - start,
        },
    }


@contextmanager
def _one_thread() -> Iterator[None]:
    """Work this small gains nothing from a second thread, and on a busy machine waits for it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _batches(images: Tensor, labels: Tensor) -> Batches:
    return list(zip(images.split(256), labels.split(256), strict=True))


def _score_tasks(
    model: nn.Module, held_out: tuple[Tensor, Tensor], seed: int
) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    tasks = []
    for name, relabel in TASKS.items():
        labels = relabel(held_out[1], generator)
        data = _batches(held_out[0], labels)
        result = score(model, None, data, indices="resque_task", progress=False)
        tasks.append(
            {
                "task": name,
                "classes": len(result.classes),
                "value": result.value,
                "std_error": result.std_error,
                "linear_probe_error": result.linear_probe_error,
                "nearest_class_mean_error": result.nearest_class_mean_error,
            }
        )
    return tasks


def _retrain(
    model: nn.Module,
    old: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor],
    scored: list[dict[str, Any]],
    progress: Callable[[str, float], None],
    seed: int,
) -> dict[str, Any]:
    """Every shift: the epochs that are forecast, and those it took."""
    order = torch.randperm(len(old[1]), generator=torch.Generator().manual_seed(seed))
    images, labels = (side[order].split(RETRAINING_BATCH) for side in old)
    data = list(zip(images, labels, strict=True)), _batches(*held_out), TARGET, MOST_EPOCHS
    olds, rows, runs = _batches(*old), [], []
    for i, row in enumerate(scored[1:]):  # the first is without a shift
        kind, level = row["kind"], row["level"]
        progress(f"retraining for {kind} {level:g}", i / (len(scored) - 1))
        options: dict[str, Any] = {
            "transform": shifts.make(kind, level, seed + i),
            "checks_per_epoch": CHECKS,
            "seed": seed,
            "meter": None,  # these runs are too short for any meter's resolution
        }
        found = forecast(model, olds, *data, coverage=COVERAGE, **options)
        adapts = found.adapted_model is not None  # that model is retrained then: it costs nothing
        start = {} if adapts else {"start": found}
        cost = retrain(found.adapted_model if adapts else model, *data, **options, **start)  # type: ignore[arg-type]
        rows.append(_retraining_row(row, found, cost))
        runs.append(
            StudyRun(kind, level, row["unit"], seed, "digits", _compared(row, found), {}, cost)
        )
    table = correlate(runs, COMPARED, "epochs", methods="spearman", seed=seed)
    return {
        "target_accuracy": TARGET,
        "max_epochs": MOST_EPOCHS,
        "coverage": COVERAGE,
        "censored": table.censored,
        "rows": rows,
        "rank_correlations": {name: vars(table.get(name, "epochs").across) for name in COMPARED},
    }


def _compared(row: dict[str, Any], found: Forecast) -> dict[str, float | None]:
    """What the epochs are compared with; what may never be reached is beyond every other."""
    epochs = found.epochs.value
    if epochs is not None and found.verdict is not None:
        epochs += MOST_EPOCHS
    return {
        "forecast": epochs,
        "resque_dist_reestimated": row["reestimated"]["value"],
        "resque_dist": row["value"],
        "accuracy_drop": row["accuracy_drop"],
        "accuracy_drop_reestimated": row["old_accuracy"] - row["reestimated_accuracy"],
    }


def _retraining_row(row: dict[str, Any], found: Forecast, cost: Any) -> dict[str, Any]:
    return {
        "kind": row["kind"],
        "level": row["level"],
        "stage": found.stage,
        "verdict": found.verdict,
        "never_probability": found.never_probability,
        "forecast": found.epochs.value,
        "low": found.epochs.low,
        "high": found.epochs.high,
        "reliable": found.reliable,
        "warnings": list(found.warnings),
        "probe_steps": found.probe.steps,
        "epochs": cost.epochs,
        "censored": cost.censored,
        "start_accuracy": found.accuracy,
        "best_accuracy": cost.best_accuracy,
    }


def _row(
    kind: str,
    level: float,
    plain: ResqueDistResult,
    adapted: ResqueDistResult,
    layers: Scores,
) -> dict[str, Any]:
    return {
        "kind": kind,
        "level": level,
        "unit": shifts.SHIFTS[kind].unit,
        "value": plain.value,
        "std_error": plain.std_error,
        "noise_floor": plain.noise_floor,
        "reestimated": {"value": adapted.value, "std_error": adapted.std_error},
        "preindex": {
            "value": layers["preindex"].value,
            "p": layers["preindex"].p[32]["jensen_shannon"],
            "inv_ari": layers["preindex"].inv_ari["new"],
        },
        "arm": {"value": layers["arm"].value, "noise_floor": layers["arm"].noise_floor},
        "old_accuracy": plain.old_accuracy,
        "new_accuracy": plain.new_accuracy,
        "reestimated_accuracy": adapted.new_accuracy,
        "accuracy_drop": plain.old_accuracy - plain.new_accuracy,
    }
