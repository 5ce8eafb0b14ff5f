"""Three small models on CIFAR-10 under forty shifts: ranked anytime, and again reading everything.

    python benchmarks/screen_cifar10.py --data cifar10_jpeg.npz

The models are trained first, for an epoch each. Printed are the top of the table, the share of the
samples that was read, both times, and how the two rankings agree.
"""

from __future__ import annotations

import argparse
import io
import itertools
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import nn

import resque_ext
from resque_ext import shifts
from resque_ext.data.sources import ArraySource
from resque_ext.screening import Candidate, Screening, ShelfModel

KINDS = tuple(kind for kind in shifts.names() if kind != "none")


def decode(data: np.lib.npyio.NpzFile, split: str, first: int, last: int) -> ArraySource:
    """Images first..last of a split, uint8 [N, 3, 32, 32], with their labels."""
    jpeg, offsets = data[f"{split}_jpeg"], data[f"{split}_offsets"]
    images = np.empty((last - first, 3, 32, 32), np.uint8)
    for i in range(first, last):
        with Image.open(io.BytesIO(jpeg[offsets[i] : offsets[i + 1]].tobytes())) as image:
            images[i - first] = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    labels = data[f"{split}_labels"][first:last].astype(np.int64)
    mark = {"cifar10": split, "rows": [first, last]}
    return ArraySource(images, labels, split, "inputs", fingerprint=mark)


def make(width: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)

    def block(channels: int, out: int) -> list[nn.Module]:
        conv = nn.Conv2d(channels, out, 3, padding=1, bias=False)
        return [conv, nn.BatchNorm2d(out), nn.ReLU(inplace=True), nn.MaxPool2d(2)]

    sizes = (3, width, 2 * width, 4 * width)
    layers = [m for pair in itertools.pairwise(sizes) for m in block(*pair)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(sizes[-1], 10))


def train(model: nn.Module, source: ArraySource) -> nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for images, labels in source.batches(128):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model.eval()


def candidates(source: ArraySource) -> dict[str, Candidate]:
    made = {"none": Candidate(source)}
    for kind in KINDS:
        for level in shifts.SHIFTS[kind].levels:
            made[f"{kind}={level:g}"] = Candidate(source, shifts.make(kind, level))
    return made


def rank_agreement(a: Screening, b: Screening) -> float:
    """Spearman's coefficient of two tables of the same pairs."""
    keys = [(r.model, r.candidate) for r in a.results]
    places = {(r.model, r.candidate): i for i, r in enumerate(b.results)}
    return float(np.corrcoef(np.arange(len(keys)), [places[key] for key in keys])[0, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="cifar10_jpeg.npz")
    parser.add_argument("--images", type=int, default=4000, help="of every candidate")
    parser.add_argument("--train", type=int, default=8000, help="images of the training")
    parser.add_argument("--width", type=float, default=0.02, help="of a narrow enough interval")
    parser.add_argument("--csv", type=Path, help="where to write the anytime table")
    given = parser.parse_args()
    console = Console(width=110)
    began = time.perf_counter()
    with np.load(given.data) as data:
        training = decode(data, "train", 0, given.train)
        old = decode(data, "train", given.train, given.train + given.images)
        new = decode(data, "test", 0, given.images)
    shelf = {
        f"cnn{width}": ShelfModel(train(make(width, width), training), description=f"cnn{width}")
        for width in (8, 12, 16)
    }
    console.print(f"decoded and trained in {time.perf_counter() - began:.0f} s")
    given_candidates = candidates(new)
    tables, seconds = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, anytime in (("anytime", True), ("whole", False)):
            began = time.perf_counter()
            tables[name] = resque_ext.screen(
                shelf,
                old,
                given_candidates,
                anytime=anytime,
                width=given.width,
                store=Path(folder) / f"{name}.sqlite",
            )
            seconds[name] = time.perf_counter() - began
    anytime, whole = tables["anytime"], tables["whole"]
    console.print(Screening(anytime.of_model("cnn16").results[:10], anytime.rank_by))
    read = {name: sum(r.new_samples for r in table.results) for name, table in tables.items()}
    console.print(
        f"{len(anytime)} pairs; anytime {seconds['anytime']:.1f} s, {read['anytime']:,} samples "
        f"({read['anytime'] / read['whole']:.0%}); whole {seconds['whole']:.1f} s, "
        f"{read['whole']:,} samples; rank correlation {rank_agreement(anytime, whole):.4f}"
    )
    stops = [r.stopped for r in anytime.results]
    console.print({stop: stops.count(stop) for stop in sorted(set(stops))})
    if given.csv is not None:
        anytime.to_csv(given.csv)


if __name__ == "__main__":
    main()
