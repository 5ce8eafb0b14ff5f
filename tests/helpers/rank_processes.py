"""Starts the ranks of a test as processes, and reads and compares what they found."""

import json
import multiprocessing
import runpy
import sys
from pathlib import Path

import pytest
import torch

WORKER = "distributed_worker.py"
# Ranks begin as copies of a process that has imported torch, which takes seconds, and no more.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch.distributed", "torch.utils.data"])


def one_rank(program, *arguments):
    torch.set_num_threads(1)
    sys.argv = [program, *arguments]
    runpy.run_path(program, run_name="__main__")


def start(scenario, folder, size, worker=WORKER):
    folder.mkdir()
    program = str(Path(__file__).with_name(worker))
    ranks = [(program, scenario, str(folder), str(rank), str(size)) for rank in range(size)]
    processes = [SERVER.Process(target=one_rank, args=each) for each in ranks]
    for process in processes:
        process.start()
    return processes


def run(scenario, folder, size, worker=WORKER):
    """What each rank found; None of one that left nothing."""
    processes = start(scenario, folder, size, worker)
    for process in processes:
        process.join(100)
        assert process.exitcode is not None
    return [read(folder / f"{rank}.json") for rank in range(size)]


def read(path):
    return json.loads(path.read_text()) if path.exists() else None


def close(found, expected):
    """Equal, floats to 1e-12 of 1."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(close(found[k], expected[k]) for k in found)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(close, found, expected))
    if isinstance(expected, float):
        return found == pytest.approx(expected, rel=1e-12, abs=1e-12)
    return found == expected


def without(values, *names):
    """Plain values without what has one of these names, however deep."""
    if isinstance(values, dict):
        return {k: without(v, *names) for k, v in values.items() if k not in names}
    return [without(v, *names) for v in values] if isinstance(values, list) else values
