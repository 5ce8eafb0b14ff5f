"""benchmarks/gpu.sh at its time limits, with a GPU that is none and small inputs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from resque_ext.ops import backend as _backend

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(
        not hasattr(_backend.extension(), "cuda"), reason="the extension has no CUDA kernels"
    ),
]
ROOT = Path(__file__).parents[2]
# Stands for a tool whose options all have a value: drops them and runs the program.
TOOL = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do shift 2; done
exec "$@"
"""


@pytest.fixture
def rehearse(tmp_path):
    """Runs the script's parts: (status, what it prints, the folder of its results)."""
    tools, out = tmp_path / "tools", tmp_path / "out"
    tools.mkdir()
    path = f"{ROOT / 'tests' / 'helpers' / 'fake_gpu'}${{PYTHONPATH:+:$PYTHONPATH}}"
    programs = {
        "python": f'#!/bin/sh\nPYTHONPATH={path} exec {sys.executable} "$@"\n',
        "compute-sanitizer": TOOL,
        "ncu": TOOL,
    }
    for name, text in programs.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)

    def call(*parts, **environment):
        given = {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "PYTHON": str(tools / "python"),
            "RESQUE_PREBUILT": _backend.extension().__file__,
            "RESQUE_BENCH_SMALL": "1",
            "OMP_NUM_THREADS": "1",
        }
        done = subprocess.run(
            [ROOT / "benchmarks" / "gpu.sh", out, *parts],
            env=os.environ | given | environment,
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout + done.stderr, out

    return call


@pytest.mark.parametrize(("part", "log"), [("sanitizers", "memcheck")])
def test_a_tool_that_is_interrupted_has_said_how_far_it_came(rehearse, part, log):
    status, printed, out = rehearse(part, **{f"LIMIT_{part}": "1"}, FAKE_GPU_SECONDS="0")
    assert status == 1
    assert f"{log}: INTERRUPTED after 1 s" in printed
    assert (out / f"{log}.log").exists()


def test_nothing_is_run_when_no_time_is_left(rehearse):
    status, printed, _ = rehearse("kernels", SECONDS_LEFT="0")
    assert status == 1
    assert "kernels: NOT RUN, no time left" in printed
