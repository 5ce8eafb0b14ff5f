"""Ctrl-C ends a kernel on the CPU, and a forked child runs kernels of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers.places import HELPERS, environment

from resque_ext import ops

ENV = environment(RESQUE_BACKEND="native")


@pytest.mark.full
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "name", ["class_moments", "ResqueDist", "value_histogram", "row_distances", "lloyd_step"]
)
def test_an_interrupt_ends_the_kernel(name, threads):
    """Each call takes half a minute and more if nothing ends it."""
    process = subprocess.Popen(
        [sys.executable, HELPERS / "interrupted_worker.py", name, str(threads)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENV,
    )
    try:
        assert process.stdout.readline() == "started\n", process.stderr.read()
        time.sleep(2)
        assert process.poll() is None
        sent = time.monotonic()
        process.send_signal(signal.SIGINT)
        answer = process.stdout.readline()
        took = time.monotonic() - sent
    finally:
        process.kill()
        process.communicate()
    assert answer.startswith("interrupted ")
    assert took < 10  # 0.2 s and less where the processors are free


FORK = """
import os, torch
from resque_ext import ops
torch.set_num_threads(2)
x, y = torch.randn(200_000, 64), torch.arange(200_000) % 10
expected = ops.class_moments(x, y, 10)[1]
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(ops.class_moments(x, y, 10)[1], expected) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.full
def test_a_forked_child_runs_kernels():
    """It has none of its parent's threads, and would wait for them for ever."""
    done = subprocess.run(
        [sys.executable, "-c", FORK], capture_output=True, text=True, timeout=120, env=ENV
    )
    assert done.stdout == "0\n", done.stderr


@pytest.mark.full
def test_a_signal_handler_that_returns_does_not_end_the_kernel():
    """Only an exception does."""
    seen = []
    x = torch.randn(1, 256).expand(2**21, 256)
    y = torch.zeros(1, dtype=torch.int32).expand(2**21)
    before = signal.signal(signal.SIGALRM, lambda *_: seen.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        counts, _, _ = ops.class_moments(x, y, 1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert counts.item() == 2**21
