"""What the tests of screenings screen: digits and synthetic rows of the same width, three models.

As a program it is a screening that can be killed: STORE KILL_AFTER, where the process ends itself
by SIGKILL in the middle of the transaction of pair number KILL_AFTER.
"""

import functools
import os
import signal
import sys

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import resque_ext
from resque_ext.screening import ShelfModel

ROWS, CLASSES, WIDTH = 300, 10, 64
LOOKS = (128, 2.0)


class Small(nn.Module):
    def __init__(self, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.hidden, self.head = nn.Linear(WIDTH, 16), nn.Linear(16, CLASSES)
        for parameter in self.parameters():
            nn.init.normal_(parameter, 0.2, 0.5, generator=generator)

    def forward(self, x):
        return self.head(torch.relu(self.hidden(x.flatten(1))))


def models(count=3):
    return {
        f"small{seed}": ShelfModel(functools.partial(Small, seed), description=f"Small({seed})")
        for seed in range(count)
    }


def digits(rows, level=0.0, seed=0):
    """Images of digits in [0, 1], darkened by `level` and with as much noise."""
    rng = np.random.default_rng(seed)
    given = load_digits()
    chosen = rng.permutation(len(given.target))[:rows]
    x = given.data[chosen] / 16 * (1 - level) + level * rng.random((rows, WIDTH))
    return x.astype(np.float32), given.target[chosen]


def write_digits(folder, **sets):
    """NAME=(rows, level, seed): files of images for a configuration to name."""
    for name, given in sets.items():
        x, labels = digits(*given)
        np.savez(folder / f"{name}.npz", inputs=x.reshape(-1, 1, 8, 8), labels=labels)


def synthetic(rows, level=0.0, seed=0):
    """Normal rows around ten class means, which `level` moves."""
    rng, fixed = np.random.default_rng(seed), np.random.default_rng(7)
    means = fixed.normal(1, 1, (CLASSES, WIDTH)) + level * fixed.normal(0, 1, (CLASSES, WIDTH))
    labels = np.arange(rows) % CLASSES
    return (means[labels] + rng.normal(0, 1, (rows, WIDTH))).astype(np.float32), labels


def candidates(count=200, rows=ROWS):
    made = {}
    for i in range(count // 2):
        made[f"digits{i:03}"] = digits(rows, i / count, 1000 + i)
        made[f"synthetic{i:03}"] = synthetic(rows, i / 20, 2000 + i)
    return made


def old():
    return digits(1500)


def screening(store=None, count=200, **options):
    """The screening of all of it."""
    options = {"looks": LOOKS, "width": 0.01, "progress": False} | options
    return resque_ext.screen(models(), old(), candidates(count), store=store, **options)


class Killing:
    """A SQLite connection that ends the process before the commit of a pair."""

    def __init__(self, connection, after):
        self._connection, self._after, self._pairs = connection, after, 0

    def __getattr__(self, name):
        return getattr(self._connection, name)

    def execute(self, statement, *values):
        self._pairs += "INTO pairs" in statement
        if statement == "COMMIT" and self._pairs >= self._after:
            os.kill(os.getpid(), signal.SIGKILL)
        return self._connection.execute(statement, *values)


def main(store, kill_after, count):
    from resque_ext.storage.journal import Sqlite

    begin = Sqlite.begin

    def patched(self, header):
        begin(self, header)
        self._db = Killing(self._db, kill_after)

    Sqlite.begin = patched
    screening(store, count)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
