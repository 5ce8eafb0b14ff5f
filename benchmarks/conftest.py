"""What every benchmark shares: devices, the bound of this very run, and one way to measure.

A figure is worth something only beside the bound that was measured in the same run: on the CPU the
time of `x.sum()` over the same features, on CUDA that of a device-to-device copy, counting bytes
read and written. Inputs are fresh random numbers, far larger than any cache; results are checked
before anything is timed; nothing here passes or fails by a time.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import resque_ext
from resque_ext.tools.bench import seconds_of

# For `conftest` itself and `sizes`: with --import-mode=importlib pytest leaves sys.path alone.
sys.path.insert(0, str(Path(__file__).parent))
from sizes import rows

# What a benchmark files its share of the bound under, and what that bound is.
BOUNDS = {
    "share_of_copy": "copy",
    "share_of_sum": "x.sum()",
    "share_of_reading": "reading the file",
}
DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


# Bytes that a GPU writes between two timed calls so that no input is left in its L2 (60 MB on an
# H200), and the most clock cycles for which its queue is kept busy before them (about 0.1 s).
FLUSH_BYTES = rows(2**28)
MOST_SLEEP = 200_000_000


def seconds(call: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median of single calls; on CUDA those of a busy queue. Warmed up first."""
    for _ in range(3):
        call()
    if device.type == "cuda":
        return queued_seconds(call, device, repeats)
    return statistics.median(seconds_of(call, device) for _ in range(repeats))


def cold_seconds(call: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median of single CUDA calls, each on an idle device with a flushed L2.

    It includes the host's time before the first kernel, as a user sees it who waits for every call.
    """
    flush = torch.empty(FLUSH_BYTES // 4, dtype=torch.float32, device=device)

    def once() -> float:
        flush.zero_()
        torch.cuda.synchronize(device)
        return seconds_of(call, device)

    return statistics.median(once() for _ in range(repeats))


def queued_seconds(call: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median device time of CUDA calls that wait in a queue, each with a flushed L2.

    A sleeping kernel keeps the device busy while the host submits the calls, so that what is
    measured between two events is the device's work and not the host's. Of a call that
    synchronizes, the host's time stays part of it.
    """
    begin = time.perf_counter()
    call()
    submitting = time.perf_counter() - begin
    torch.cuda.synchronize(device)
    # 2.5e9 is above any clock rate. Twice the time, because flushing is submitted too.
    cycles = min(int(2.5e9 * 2 * repeats * submitting) + 1_000_000, MOST_SLEEP)
    flush = torch.empty(FLUSH_BYTES // 4, dtype=torch.float32, device=device)
    pairs = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        for _ in range(repeats)
    ]
    torch.cuda._sleep(cycles)
    for before, after in pairs:
        flush.zero_()
        before.record()
        call()
        after.record()
    torch.cuda.synchronize(device)
    return statistics.median(before.elapsed_time(after) for before, after in pairs) / 1e3


def pytest_addoption(parser: Any) -> None:
    parser.addoption("--source-rows", type=int, default=200_000, help="rows of 512 on disk")
    parser.addoption("--source-folder", default=None, help="where they are written")
    parser.addoption("--only-cuda", action="store_true", help="leave out what runs on the CPU")
    parser.addoption(
        "--results", default=None, help="append each benchmark's figures to this file, a line each"
    )


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    if not config.getoption("only_cuda"):
        return
    chosen = [item for item in items if "cuda" in item.name]
    # torch.compile may take minutes of a time limit.
    chosen.sort(key=lambda item: "compiled" in item.name)
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


@pytest.fixture(autouse=True)
def _append_result(request: pytest.FixtureRequest) -> Any:
    """Writes a benchmark's figures as soon as it has ended, so that a time limit costs no other."""
    yield
    path = request.config.getoption("results")
    benchmark = request.node.funcargs.get("benchmark")
    if path is None or not getattr(benchmark, "extra_info", None):
        return
    line = {"name": request.node.name.removeprefix("test_"), **benchmark.extra_info}
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


@pytest.fixture(scope="session")
def copy_bound() -> Callable[[torch.device], float]:
    """Bytes per second of a device-to-device copy, read and written both counted; once a run."""
    found: dict[str, float] = {}

    def bound(device: torch.device) -> float:
        if str(device) not in found:
            size = rows(2**30) if device.type == "cuda" else 2**28
            source = torch.randn(size // 4, device=device)
            target = torch.empty_like(source)
            found[str(device)] = 2 * size / seconds(lambda: target.copy_(source), device, 15)
        return found[str(device)]

    return bound


@pytest.fixture
def measure(benchmark: Any, copy_bound: Callable[[torch.device], float]) -> Callable[..., float]:
    """Times `call`, files what it means in extra_info, and returns seconds.

    On the CPU `against`, the reading of the same bytes, is timed in turn with `call`, because what
    else such a machine does comes and goes.
    """

    def run(
        call: Callable[[], Any],
        device: torch.device,
        bytes_read: int,
        against: Callable[[], Any] | None = None,
        **info: Any,
    ) -> float:
        benchmark.extra_info |= info | {"bytes": bytes_read, "device": device_name(device)}
        if device.type == "cuda":
            taken = seconds(call, device, 25)
            benchmark.extra_info["share_of_copy"] = bytes_read / taken / copy_bound(device)
            benchmark.extra_info["cold_milliseconds"] = cold_seconds(call, device, 7) * 1e3
            benchmark.pedantic(lambda: (call(), torch.cuda.synchronize()), rounds=3)
        else:
            assert against is not None
            first = seconds_once(call) + seconds_once(against)  # the one that warms up
            repeats = max(9, min(41, int(2 / first)))
            pairs = [(seconds_once(call), seconds_once(against)) for _ in range(repeats)]
            taken = statistics.median(a for a, _ in pairs)
            reading = statistics.median(b for _, b in pairs)
            benchmark.extra_info["share_of_sum"] = reading / taken
            benchmark.pedantic(call, rounds=3)
        benchmark.extra_info["gb_per_s"] = bytes_read / taken / 1e9
        benchmark.extra_info["milliseconds"] = taken * 1e3
        return taken

    return run


def seconds_once(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    machine_info["torch"] = torch.__version__
    machine_info["cuda"] = torch.version.cuda
    machine_info["resque_ext"] = resque_ext.build_info()


def pytest_terminal_summary(terminalreporter: Any, config: Any) -> None:
    """A short table last: what was measured, its speed, its share of the bound of this run."""
    session = getattr(config, "_benchmarksession", None)
    rows = [b for b in getattr(session, "benchmarks", []) if "gb_per_s" in b.extra_info]
    if not rows:
        return
    write = terminalreporter.write_line
    write("")
    write(f"{'benchmark':66s} {'ms':>9s} {'GB/s':>8s}  share of bound")
    for bench in rows:
        info = bench.extra_info
        key, kind = next((k, kind) for k, kind in BOUNDS.items() if k in info)
        share = info[key]
        name = bench.name.removeprefix("test_")
        write(
            f"{name:66s} {info['milliseconds']:9.3f} {info['gb_per_s']:8.1f}  {share:.0%} of {kind}"
        )
    write(f"torch {torch.__version__}, {os.cpu_count()} processors; {rows[0].extra_info['device']}")
