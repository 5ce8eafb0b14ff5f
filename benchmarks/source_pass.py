"""One process that goes through embeddings on disk: reading alone, or with something worked out.

    python benchmarks/source_pass.py FOLDER WORK CACHE BATCH PAIRS

WORK: "class_moments" or "ResqueDist". CACHE: "cold", the file's pages are dropped before each pass
(posix_fadvise), or "warm". Prints one line of JSON: seconds of PAIRS passes of each sort, in turn,
and the peak of the process's memory: VmHWM, which counts the interpreter, torch and every page that
the process has had at once; the reader maps no file, so the page cache is not among them.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from resque_ext import ResqueDist
from resque_ext.data.prefetch import prefetch
from resque_ext.data.sources import NpySource
from resque_ext.ops import class_moments

CLASSES = 10


def read(source: NpySource, batch: int) -> Tensor:
    for _ in source.batches(batch):
        pass
    return torch.zeros(0)


def moments(source: NpySource, batch: int) -> Tensor:
    total = torch.zeros(CLASSES, source.row_shape[0], dtype=torch.float64)
    for x, y in prefetch(source.batches(batch)):
        total += class_moments(x, y, CLASSES)[1]
    return total


def dist(source: NpySource, batch: int) -> Tensor:
    found = ResqueDist(CLASSES)
    for x, y in prefetch(source.batches(batch)):
        found.update(x, y, "new")
    sums = found.state_dict()["new.sums"]
    return sums.view(CLASSES, -1, sums.shape[1]).sum(1)


WORK: dict[str, Callable[[NpySource, int], Tensor]] = {
    "class_moments": moments,
    "ResqueDist": dist,
}


def drop(folder: Path) -> None:
    for path in folder.glob("*.npy"):
        file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def memory(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    line = next(s for s in Path("/proc/self/status").read_text().splitlines() if field in s)
    return int(line.split()[1]) * 1024


def main(folder: Path, work: str, cache: str, batch: int, pairs: int) -> None:
    source = NpySource(folder)
    before = memory("VmRSS")
    times: dict[str, list[float]] = {"read": [], work: []}
    for _ in range(pairs):
        for name, call in (("read", read), (work, WORK[work])):
            if cache == "cold":
                drop(folder)
            begin = time.perf_counter()
            sums = call(source, batch)
            times[name].append(time.perf_counter() - begin)
    peak = memory("VmHWM")
    truth, scale = np.load(folder / "truth" / "sums.npy"), np.load(folder / "truth" / "abs.npy")
    error = float((np.abs(sums.numpy() - truth) / scale).max())
    print(json.dumps({"seconds": times, "before": before, "peak": peak, "error": error}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
