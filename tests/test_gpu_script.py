"""A rehearsal of benchmarks/gpu.sh: the whole script, with a GPU that is none and small inputs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from resque_ext import _backend

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(
        not hasattr(_backend.extension(), "cuda"), reason="the extension has no CUDA kernels"
    ),
]
ROOT = Path(__file__).parents[1]
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
    path = f"{ROOT / 'tests' / 'fake_gpu'}${{PYTHONPATH:+:$PYTHONPATH}}"
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


def names(out):
    return [json.loads(line)["name"] for line in (out / "results.jsonl").read_text().splitlines()]


def test_every_part_runs_to_its_end(rehearse):
    status, printed, out = rehearse(
        "kernels",
        "overhead",
        "sanitizers",
        "ncu",
        SECONDS_LEFT="3000",
        LIMIT_kernels="1200",
        LIMIT_overhead="600",
        LIMIT_sanitizers="600",
    )
    assert status == 0, printed
    for step in ("kernels", "overhead", "memcheck", "racecheck", "ncu"):
        assert re.search(rf"^{step}: ok", printed, re.MULTILINE), printed
    found = names(out)
    for op in (
        "class_moments",
        "value_histogram",
        "row_distances",
        "lloyd_step",
        "pair_counts",
        "class_order",
        "spatial_mean",
        "score_overhead",
        "retraining_overhead",
    ):
        assert any(name.startswith(op) for name in found), op
    assert all("cpu" not in name for name in found)
    assert f"{len(found)} results on no GPU: a rehearsal" in printed
    assert "cold ms" in printed


def test_kernels_are_checked_first(rehearse):
    _, printed, out = rehearse("correct", LIMIT_correct="900", SECONDS_LEFT="1800")
    assert re.search(r"^every_kernel: ok", printed, re.MULTILINE), printed
    # Tests of devices and streams cannot pass on a GPU that is none; that they run is all.
    log = (out / "tests.log").read_text()
    assert int(re.search(r"(\d+) passed", log)[1]) > 100
    assert "error" not in log.splitlines()[-1]


@pytest.mark.parametrize("part", ["kernels", "overhead"])
def test_what_was_measured_survives_a_time_limit(rehearse, part):
    """The interrupt comes in the middle, because every event takes a quarter of a second."""
    status, printed, out = rehearse(part, FAKE_GPU_SECONDS="0.25", **{f"LIMIT_{part}": "60"})
    assert status == 1
    assert f"{part}: INTERRUPTED after 60 s" in printed
    found = names(out)
    assert found
    assert f"{len(found)} results on" in printed
    assert "KeyboardInterrupt" in (out / f"{part}.log").read_text()


@pytest.mark.parametrize(("part", "log"), [("sanitizers", "memcheck"), ("ncu", "ncu")])
def test_a_tool_that_is_interrupted_has_said_how_far_it_came(rehearse, part, log):
    status, printed, out = rehearse(part, **{f"LIMIT_{part}": "8"}, FAKE_GPU_SECONDS="0")
    assert status == 1
    assert f"{log}: INTERRUPTED after 8 s" in printed
    assert (out / f"{log}.log").exists()


def test_nothing_is_run_when_no_time_is_left(rehearse):
    status, printed, _ = rehearse("kernels", SECONDS_LEFT="0")
    assert status == 1
    assert "kernels: NOT RUN, no time left" in printed
