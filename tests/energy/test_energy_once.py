"""Who counts a GPU: one process at a time, and who else runs on it."""

import os
import subprocess
import sys

import pytest
from helpers.energy_made import figure, make
from helpers.fake_nvml import FakeGpu

from resque_ext.energy import once


@pytest.fixture(autouse=True)
def _own_locks(monkeypatch, tmp_path):
    monkeypatch.setattr(once, "folder", lambda: tmp_path)


# The file alone, without the package around it, which takes seconds to import.
HOLD = """
import importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("once", sys.argv[3])
once = importlib.util.module_from_spec(spec)
spec.loader.exec_module(once)
once.folder = lambda: Path(sys.argv[1])
print(once.take(sys.argv[2]), flush=True)
sys.stdin.read()
"""


def test_another_process_that_meters_a_gpu_counts_it(tmp_path):
    gpu = FakeGpu()
    gpu.uuid = "GPU-shared"
    meter, _, clock = make(gpu, FakeGpu())
    command = [sys.executable, "-c", HOLD, str(tmp_path), "GPU-shared", once.__file__]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout.readline() == "None\n"
        with meter.window("a") as metered:
            clock.sleep(5)
        assert figure(metered.measurement).reason == once.TAKEN
        assert figure(metered.measurement, "gpu:1").value == pytest.approx(500)
        everyone, _, clock2 = make(gpu, count_once=False)
        with everyone.window("a") as metered:
            clock2.sleep(5)
        assert figure(metered.measurement).value == pytest.approx(500)
        other.kill()  # a lock does not outlive its process
    with meter.window("a") as metered:
        clock.sleep(5)
        second, _, clock2 = make(gpu)  # meters of one process share the count
        with second.window("b") as inner:
            clock2.sleep(5)
        assert figure(inner.measurement).value == pytest.approx(500)
        with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as other:
            assert other.stdout.readline() == f"{once.TAKEN}\n"
            other.stdin.close()
    assert figure(metered.measurement).value == pytest.approx(500)
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout.readline() == "None\n"
        other.stdin.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_does_not_inherit_the_count():
    assert once.take("x") is None
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, str(once.take("x")).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 200).decode() == once.TAKEN
    once.give_back("x")
    os.close(read), os.close(write)


def test_other_processes_on_the_gpu_are_told_of():
    gpu = FakeGpu()
    gpu.processes = 3
    meter, _, clock = make(gpu)
    with meter.window("a") as metered:
        clock.sleep(5)
    assert figure(metered.measurement).notes == ("of 3 processes that ran on it together",)
