"""A rehearsal of benchmarks/gpu.sh: the whole script, with a GPU that is none and small inputs.

Then once more for each part with a time limit that ends it in its middle. The packages that this
leaves out are those that a machine with a GPU may well lack.
"""

import json
import os
import re
import subprocess
import sys

import pytest
from helpers.places import HELPERS, ROOT

from resque_ext.ops import backend as _backend

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(
        not hasattr(_backend.extension(), "cuda"), reason="the extension has no CUDA kernels"
    ),
]
# Stands for a tool whose options all have a value: drops them and runs the program.
TOOL = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do shift 2; done
exec "$@"
"""
MISSING = ["ray", "polars", "datasets", "faiss", "flash_kmeans", "ot", "codecarbon", "selenium"]


@pytest.fixture
def rehearse(tmp_path):
    """Runs the script's parts: (status, what it prints, the folder of its results)."""
    tools, out = tmp_path / "tools", tmp_path / "out"
    tools.mkdir()
    path = f"{HELPERS / 'fake_gpu'}${{PYTHONPATH:+:$PYTHONPATH}}"
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
            "FAKE_GPU_WITHOUT": ",".join(MISSING),
        }
        # Without what this run of pytest says to its own workers: benchmarks are off in those.
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
        done = subprocess.run(
            [ROOT / "benchmarks" / "gpu.sh", out, *parts],
            env=inherited | given | environment,
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout + done.stderr, out

    return call


def names(out):
    return [json.loads(line)["name"] for line in (out / "results.jsonl").read_text().splitlines()]


def test_every_part_runs_to_its_end(rehearse):
    parts = ("kernels", "overhead", "sanitizers", "ncu")
    limits = {f"LIMIT_{part}": "600" for part in parts}
    status, printed, out = rehearse(*parts, SECONDS_LEFT="2400", **limits)
    assert status == 0, printed
    for step in ("kernels", "overhead", "memcheck", "racecheck", "ncu"):
        assert re.search(rf"^{step}: ok", printed, re.MULTILINE), printed
    found = names(out)
    for op in (
        *("class_moments", "value_histogram", "row_distances", "lloyd_step", "pair_counts"),
        *("class_order", "spatial_mean", "score_overhead", "retraining_overhead", "stream_to_cuda"),
        "row_distances_against_others[compiled",
    ):
        assert any(name.startswith(op) for name in found), op
    assert all("cpu" not in name for name in found)
    assert f"{len(found)} results on no GPU: a rehearsal" in printed
    assert "cold ms" in printed


def test_kernels_are_proved_right_first(rehearse):
    _, printed, out = rehearse("correct", LIMIT_correct="600", SECONDS_LEFT="3000")
    steps = re.findall(r"^(\w+): (?:ok|FAILED|INTERRUPTED)", printed, re.MULTILINE)
    assert steps == ["instructions", "every_kernel", "tests"]
    assert re.search(r"^every_kernel: ok", printed, re.MULTILINE), printed
    # Tests of devices and streams cannot pass on a GPU that is none; that they run is all.
    last = (out / "instructions.log").read_text().splitlines()[-1]
    assert re.search(r"\d+ deselected", last), last
    assert "passed" not in last
    last = (out / "tests.log").read_text().splitlines()[-1]
    assert int(re.search(r"(\d+) passed", last)[1]) > 100
    assert "error" not in last


@pytest.mark.parametrize(("part", "seconds"), [("kernels", "0.1"), ("overhead", "2")])
def test_what_was_measured_survives_a_time_limit(rehearse, part, seconds):
    """The interrupt comes in the middle, because every event takes `seconds`."""
    limit = {f"LIMIT_{part}": "75", "FAKE_GPU_SECONDS": seconds}
    status, printed, out = rehearse(part, **limit)
    assert status == 1
    assert f"{part}: INTERRUPTED after 75 s" in printed
    found = names(out)
    assert found
    assert f"{len(found)} results on" in printed
    assert "KeyboardInterrupt" in (out / f"{part}.log").read_text()


@pytest.mark.parametrize(
    ("part", "log", "says"),
    [
        ("correct", "every_kernel", "agree with plain PyTorch"),
        ("sanitizers", "memcheck", "agree with plain PyTorch"),
        ("ncu", "ncu", "class_moments, 10 classes"),
    ],
)
def test_a_program_that_is_interrupted_has_said_how_far_it_came(rehearse, part, log, says):
    limit = {f"LIMIT_{part}": "90" if part == "correct" else "45", "FAKE_GPU_SECONDS": "12"}
    status, printed, out = rehearse(part, **limit)
    assert status == 1
    assert re.search(rf"^{log}: INTERRUPTED after \d+ s", printed, re.MULTILINE), printed
    text = (out / f"{log}.log").read_text()
    assert says in text
    assert "every kernel ran" not in text


def test_nothing_is_run_when_no_time_is_left(rehearse):
    status, printed, _ = rehearse("kernels", SECONDS_LEFT="0")
    assert status == 1
    assert "kernels: NOT RUN, no time left" in printed


def test_an_extension_that_does_not_load_is_built_instead(rehearse, tmp_path):
    other = tmp_path / "_C.other.so"
    other.write_bytes(b"not an extension")
    status, printed, _ = rehearse("kernels", RESQUE_PREBUILT=str(other), SECONDS_LEFT="1")
    assert status == 1
    assert f"build: {other} does not load here" in printed
    assert "build: NOT RUN, no time left" in printed


def test_without_packages_that_only_opponents_need(rehearse):
    without = ",".join([*MISSING, "sklearn", "scipy", "torchvision", "timm", "transformers"])
    limits = {"LIMIT_kernels": "600", "SECONDS_LEFT": "2000"}
    _, printed, out = rehearse("kernels", FAKE_GPU_WITHOUT=without, **limits)
    assert re.search(r"^kernels: ok", printed, re.MULTILINE), printed
    assert any(name.startswith("lloyd_step") for name in names(out))
