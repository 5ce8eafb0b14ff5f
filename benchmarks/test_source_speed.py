"""Embeddings on disk through class_moments and ResqueDist, against reading the file alone.

The file holds random float16 values, every byte of it written. `--source-rows 10000000` makes the
one of 10 GB (in `--source-folder`, which has to have room); the default is small. Both passes use
the same reader and the same batches, in turn, in a process of their own whose peak memory is told.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

# 64 MB a batch: between smaller ones the OpenMP threads that wait for work spin, on the cores that
# reading would use.
WIDTH, CLASSES, BATCH, CHUNK = 512, 10, 65_536, 65_536
PASS = Path(__file__).with_name("source_pass.py")


@pytest.fixture(scope="module")
def folder(request: Any) -> Iterator[Path]:
    rows = request.config.getoption("--source-rows")
    with tempfile.TemporaryDirectory(dir=request.config.getoption("--source-folder")) as made:
        write(Path(made), rows)
        yield Path(made)


def write(folder: Path, rows: int) -> None:
    """features.npy, labels.npy, and the classes' sums, worked out without the package."""
    generator = torch.Generator()
    generator.seed()
    y = torch.randint(CLASSES, (rows,), generator=generator)
    np.save(folder / "labels.npy", y.numpy())
    sums = torch.zeros(CLASSES, WIDTH, dtype=torch.float64)
    scale = torch.zeros_like(sums)
    with (folder / "features.npy").open("wb") as file:
        header = {"descr": "<f2", "fortran_order": False, "shape": (rows, WIDTH)}
        np.lib.format.write_array_header_1_0(file, header)
        for labels in y.split(CHUNK):
            x = torch.randn(len(labels), WIDTH, generator=generator).half()
            file.write(memoryview(x.numpy()).cast("B"))
            wide = x.double()
            one_hot = torch.nn.functional.one_hot(labels, CLASSES).double().T
            sums += one_hot @ wide
            scale += one_hot @ wide.abs()
        file.flush()
        os.fsync(file.fileno())  # what is not on the disk yet cannot be dropped from the cache
    (folder / "truth").mkdir()
    np.save(folder / "truth" / "sums.npy", sums.numpy())
    np.save(folder / "truth" / "abs.npy", scale.numpy())


@pytest.mark.parametrize("cache", ["cold", "warm"])
@pytest.mark.parametrize("work", ["class_moments", "ResqueDist"])
def test_source(benchmark: Any, folder: Path, work: str, cache: str) -> None:
    command = [sys.executable, PASS, folder, work, cache, BATCH, 3]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    # Every float16 is a multiple of 2^-24, and here no sum comes near 2^29: in float64 all of them
    # are exact, in whatever order, so that a single row that is missing or another's shows.
    assert found["error"] == 0, f"error {found['error']:.2g} of the sum of absolute values"
    size = (folder / "features.npy").stat().st_size
    reading, taken = (statistics.median(found["seconds"][n]) for n in ("read", work))
    benchmark.extra_info |= {
        "bytes": size,
        "device": f"cpu, {torch.get_num_threads()} threads",
        "gb_per_s": size / taken / 1e9,
        "milliseconds": taken * 1e3,
        "share_of_reading": reading / taken,
        "read_gb_per_s": size / reading / 1e9,
        "peak_bytes": found["peak"],
        "bytes_before": found["before"],
    }
    # What was timed is over; pytest-benchmark shows the figures only of what it has called.
    benchmark.pedantic(lambda: None, rounds=1)
