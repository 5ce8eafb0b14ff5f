"""One long call of an op that Ctrl-C ends, then the same op once more: see test_interrupt.py."""

from __future__ import annotations

import signal
import sys
import time

import torch

from resque_ext import ResqueDist, ops

X = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
Y = torch.arange(64) % 4
ROWS = 2**26


WIDE = torch.randn(1, 2**16, generator=torch.Generator().manual_seed(1))


def long_rows(n: int, width: int = 256) -> torch.Tensor:
    """Many rows in the memory of one."""
    return WIDE[:, :width].expand(n, width)


def update(features: torch.Tensor, labels: torch.Tensor) -> None:
    acc = ResqueDist(4)
    acc.update(features[:64], Y, "old")
    before = {k: v.clone() for k, v in acc.state_dict().items()}
    try:
        acc.update(features, labels, "old")
    finally:
        after = acc.state_dict()
        assert all(torch.equal(after[k], v) for k, v in before.items())


LABELS = torch.zeros(1, dtype=torch.int32).expand(ROWS)
LONG = {
    "class_moments": lambda: ops.class_moments(long_rows(ROWS, 2**16), LABELS, 1),
    "ResqueDist": lambda: update(long_rows(ROWS, 2**13), LABELS),
    "value_histogram": lambda: ops.value_histogram(long_rows(ROWS, 2**12), by_channel=True),
    "row_distances": lambda: ops.row_distances(long_rows(ROWS, 2**16), long_rows(ROWS, 2**16)),
    "lloyd_step": lambda: ops.lloyd_step(long_rows(2**22), torch.randn(2**16, 256)),
}
AFTER = {
    "class_moments": lambda: ops.class_moments(X, Y, 4)[1],
    "ResqueDist": lambda: ops.class_moments(X, Y, 4)[1],
    "value_histogram": lambda: ops.value_histogram(X, by_channel=True).counts,
    "row_distances": lambda: ops.row_distances(X, X.flip(0)).sums,
    "lloyd_step": lambda: ops.lloyd_step(X, X[:8]).sums,
}

# A process that was started in the background ignores it otherwise.
signal.signal(signal.SIGINT, signal.default_int_handler)
name, threads = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(threads)
expected = AFTER[name]()
print("started", flush=True)
start = time.monotonic()
try:
    LONG[name]()
    print("finished", flush=True)
except KeyboardInterrupt:
    assert torch.equal(AFTER[name](), expected)
    print(f"interrupted {time.monotonic() - start}", flush=True)
