"""Inside torch.compile: the values of eager code, and no memory that is gone before it is read."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from helpers.places import HELPERS, environment

import resque_ext as R
from resque_ext.ops.eager import eager


def run(backend: str, *names: str) -> dict[str, list[str]]:
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", HELPERS / "compiled_worker.py", backend, *names],
        capture_output=True,
        text=True,
        timeout=900,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.full
@pytest.mark.parametrize("compiler", ["eager", "aot_eager", "inductor"])
def test_every_call_compiled(compiler):
    for name, (expected, found) in run(compiler).items():
        assert found == expected, name


@pytest.mark.full
def test_memory_lives_until_the_kernel_has_run_when_frames_are_compiled():
    """Even where torch.compile gets to see the frames that call the kernels."""
    program = """
import torch, resque_ext
update = resque_ext.ResqueDist.update.__wrapped__
x, y = torch.randn(400, 32), torch.arange(400) % 4
def f(x, y):
    acc = resque_ext.ResqueDist(4)
    update(acc, x * 2.0, y + 0, "old")
    return acc.state_dict()["old.sums"]
expected = f(x, y)
for _ in range(3):
    torch._dynamo.reset()
    assert torch.equal(torch.compile(f, backend="eager")(x, y), expected)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_eager_leaves_what_it_decorates_as_it_was():
    assert eager(run).__name__ == "run"
    assert R.ResqueDist.update.__doc__.startswith("Adds a batch to one side.")
    assert eager(lambda x, *, y=2: x + y)(1, y=3) == 4


def test_private_methods_are_not_wrapped():
    @eager
    class Some:
        def public(self) -> int:
            return self._private()

        def _private(self) -> int:
            return 1

    assert Some().public() == 1
    assert hasattr(Some.public, "__wrapped__")
    assert not hasattr(Some._private, "__wrapped__")


def test_the_compiler_is_not_imported():
    """It takes seconds."""
    program = (
        "import sys, torch, resque_ext as R; x = torch.randn(20, 4); y = torch.arange(20) % 2; "
        "R.resque_dist(x, x + 1, y, y); R.resque_task(x, y); "
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=environment())
