"""How far labels='predicted' is from the labels that are true: RESQUE_dist, RESQUE_task and
linear_residual on shifted digits and CIFAR-10.

    python benchmarks/predicted_labels.py                            digits alone: a minute
    python benchmarks/predicted_labels.py --data cifar10_jpeg.npz    both: ten minutes on one core
    python benchmarks/predicted_labels.py --write                    also writes the page
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from shifted_settings import SETTINGS, Part, fit, load, shifted

from resque_ext import score

# A class that is never predicted has no angle.
OPTIONS = {
    "resque_dist": {"missing": "skip"},
    "resque_task": {"baselines": False},
    "linear_residual": {},
}
INDICES = tuple(OPTIONS)
IMAGES = 2500  # of the old side that are scored, at most
CASES = (
    ("gaussian", 0.1),
    ("gaussian", 0.3),
    ("gaussian_blur", 0.75),
    ("gaussian_blur", 1.5),
    ("contrast", 0.5),
    ("contrast", 0.8),
    ("rotation", 15),
    ("rotation", 45),
    ("occlusion", 0.4),
    ("invert", 0.3),
    ("invert", 1.0),
)
PAGE = Path(__file__).parents[1] / "docs" / "representation.md"
BEGIN, END = "<!-- predicted -->\n", "<!-- end of predicted -->\n"


@dataclass(frozen=True)
class Line:
    """One shift: the accuracy on it, and each index with given and with predicted labels."""

    kind: str
    level: float
    accuracy: float
    given: dict[str, float | None]
    predicted: dict[str, float | None]  # None where a class that is never predicted is refused


def batches(part: Part) -> list[Part]:
    return list(zip(part[0].split(256), part[1].split(256), strict=True))


def lines(name: str, data: Path | None, epochs: int | None) -> list[Line]:
    setting = SETTINGS[name]
    setting = setting if epochs is None else replace(setting, epochs=epochs)
    old, new, _ = load(setting, data)
    model, found = fit(setting, old), []
    for kind, level in (("none", 0.0), *CASES):
        part = new if kind == "none" else shifted(new, kind, level, setting.seed)
        sides = batches((old[0][:IMAGES], old[1][:IMAGES])), batches(part)
        values, accuracy = {}, 0.0
        for labels in ("given", "predicted"):
            values[labels] = dict.fromkeys(INDICES)
            scores = score(
                model,
                *sides,
                INDICES,
                labels=labels,
                options=OPTIONS,
                errors="keep",
                progress=False,
            )
            for index in INDICES:
                values[labels][index] = getattr(scores[index], "value", None)
            accuracy = scores.new_accuracy
        found.append(Line(kind, level, accuracy, **values))
        print(name, found[-1], flush=True)
    return found


def shown(value: float | None) -> str:
    return "refused" if value is None else f"{value:.3f}"


def table(title: str, found: list[Line]) -> str:
    head = ["shift", "accuracy", *(f"{index}, given / predicted" for index in INDICES)]
    rows = [head, ["---"] * len(head)]
    for line in found:
        shift = line.kind if line.kind == "none" else f"{line.kind} {line.level:g}"
        pairs = (f"{shown(line.given[i])} / {shown(line.predicted[i])}" for i in INDICES)
        rows.append([shift, f"{line.accuracy:.1%}", *pairs])
    text = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    said = []
    for index in INDICES:
        both = [(line.given[index], line.predicted[index]) for line in found]
        given, predicted = np.array([pair for pair in both if None not in pair]).T
        order = spearmanr(given, predicted).statistic
        ratio = np.median(predicted / given)
        said.append(f"{index}: median ratio {ratio:.2f}, rank correlation {order:.2f}")
    return f"{title}\n\n{text}\nPredicted over given: {'; '.join(said)}.\n\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", type=Path, help="cifar10_jpeg.npz; without it digits alone")
    parser.add_argument("--epochs", type=int, default=4, help="of training on CIFAR-10")
    parser.add_argument("--write", action="store_true", help="write docs/representation.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    name = "digits-batchnorm-dev"
    text = table("**Digits**, a small CNN, 600 new images:", lines(name, None, None))
    if args.data is not None:
        found = lines("cifar-batchnorm", args.data, args.epochs)
        title = (
            f"**CIFAR-10**, a small ResNet, {args.epochs} epochs on 8,000 images, 2,500 new ones:"
        )
        text += table(title, found)
    print(text)
    if args.write:
        page = PAGE.read_text(encoding="utf-8")
        before, rest = page.split(BEGIN)
        after = rest.split(END)[1]
        PAGE.write_text(f"{before}{BEGIN}{text.rstrip()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
