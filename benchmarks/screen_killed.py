"""200 candidates and three models, killed twice and resumed: the same table as undisturbed.

    python benchmarks/screen_killed.py --data cifar10_jpeg.npz

The candidates are 120 shifts of CIFAR-10, 40 sets of handwritten digits under noise and 40
synthetic ones. The second screening runs in processes of its own, which SIGKILL ends when a third
and when two thirds of the pairs are in the store. Exit status 1 where the tables differ in anything
but times.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from screen_cifar10 import KINDS, decode, make, train
from sklearn.datasets import load_digits

import resque_ext
from resque_ext import shifts
from resque_ext.data.sources import ArraySource
from resque_ext.screening import Candidate, Screening, ShelfModel, read_store

WIDTHS = (8, 12, 16)
PARTS, DIGITS, SYNTHETIC = 3, 40, 40


def images(x: np.ndarray, labels: np.ndarray, name: str) -> ArraySource:
    """Images [N, 8, 8] in [0, 1] as the models take them."""
    x = np.repeat(np.kron(x, np.ones((4, 4)))[:, None], 3, axis=1)
    made = torch.from_numpy(x.astype(np.float32))
    return ArraySource(made, labels, name, "inputs", fingerprint={"made": name, "rows": len(x)})


def digits(rows: int, i: int) -> ArraySource:
    given, rng = load_digits(), np.random.default_rng(i)
    chosen = rng.permutation(len(given.target))[:rows]
    noise = rng.random((len(chosen), 8, 8))
    x = given.images[chosen] / 16 * (1 - i / DIGITS) + noise * i / DIGITS
    return images(x, given.target[chosen], f"digits {i}")


def synthetic(rows: int, i: int) -> ArraySource:
    fixed, rng = np.random.default_rng(7), np.random.default_rng(1000 + i)
    labels = np.arange(rows) % 10
    means = fixed.random((10, 8, 8))
    x = means[labels] * (1 - i / SYNTHETIC) + rng.random((rows, 8, 8)) * i / SYNTHETIC
    return images(x, labels, f"synthetic {i}")


def candidates(data: Path, count: int) -> dict[str, Candidate]:
    with np.load(data) as archive:
        parts = [decode(archive, "test", i * count, (i + 1) * count) for i in range(PARTS)]
    made = {
        f"{kind}={level:g}, part {i}": Candidate(part, shifts.make(kind, level))
        for kind in KINDS
        for level in shifts.SHIFTS[kind].levels
        for i, part in enumerate(parts)
    }
    made |= {f"digits {i}": Candidate(digits(count, i)) for i in range(DIGITS)}
    return made | {f"synthetic {i}": Candidate(synthetic(count, i)) for i in range(SYNTHETIC)}


def screening(given: argparse.Namespace, folder: Path, store: Path) -> Screening:
    def build(width: int) -> torch.nn.Module:
        model = make(width, width)
        model.load_state_dict(safetensors.torch.load_file(folder / f"{width}.safetensors"))
        return model.eval()

    with np.load(given.data) as archive:
        old = decode(archive, "train", given.train, given.train + 1000)
    shelf = {
        f"cnn{width}": ShelfModel(lambda width=width: build(width), description=f"cnn{width}")
        for width in WIDTHS
    }
    found = candidates(given.data, given.images)
    options = {"width": given.width, "looks": (64, 1.5), "progress": False}
    return resque_ext.screen(shelf, old, found, store=store, **options)


def kill_at(pairs: int, command: list[str], store: Path) -> int:
    """Runs the command until so many pairs are in the store; returns how many there are then."""
    child = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    try:
        while child.poll() is None:
            if store.exists() and store.stat().st_size and kept(store) >= pairs:
                child.send_signal(signal.SIGKILL)
                break
            time.sleep(0.1)
    finally:
        child.kill()
    if child.wait() != -signal.SIGKILL:
        raise SystemExit(f"expected a screening to kill, found it ended with {child.returncode}")
    return kept(store)


def kept(store: Path) -> int:
    try:
        return len(read_store(store)[1])
    except OSError:  # it is about to be made
        return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="cifar10_jpeg.npz")
    parser.add_argument("--images", type=int, default=200, help="of every candidate")
    parser.add_argument("--train", type=int, default=2000, help="images of the training")
    parser.add_argument("--width", type=float, default=0.02, help="of a narrow enough interval")
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)  # of a process to be killed
    given = parser.parse_args()
    if given.store is not None:
        screening(given, given.store.parent, given.store)
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder, began = Path(name), time.perf_counter()
        with np.load(given.data) as archive:
            training = decode(archive, "train", 0, given.train)
        for width in WIDTHS:
            weights = train(make(width, width), training).state_dict()
            safetensors.torch.save_file(weights, folder / f"{width}.safetensors")
        expected = screening(given, folder, folder / "undisturbed.sqlite")
        read = sum(r.new_samples for r in expected.results)
        print(f"{len(expected)} pairs, {read:,} samples, {time.perf_counter() - began:.0f} s")
        store = folder / "killed.sqlite"
        again = [*sys.argv, "--store", str(store)]
        for third in (1, 2):
            there = kill_at(third * len(expected) // 3, [sys.executable, *again], store)
            print(f"killed with {there} pairs in the store")
        found = screening(given, folder, store)
        same = found.to_dict(times=False) == expected.to_dict(times=False)
        failed = sum(r.error is not None for r in found.results)
        print(f"{len(found)} pairs, {failed} failed; the same: {same}")
        return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
