"""class_moments against plain PyTorch on the machine at hand: checked first, then timed."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from resque_ext import ops
from resque_ext.environment import devices, environment
from resque_ext.errors import ArgumentError
from resque_ext.ops.backend import BackendError, backend

WIDTH = 512
CLASSES = 100
DTYPES = (torch.float32, torch.bfloat16)
# Far beyond the last-level cache of any CPU or GPU, so that memory is what is read.
BYTES = {"cpu": 2**28, "cuda": 2**31}
# Of what is free: the plain forms need float64 copies and products, up to 12 times the features.
MEMORY_SHARE = 1 / 24
WARM_UP_SECONDS = 0.3  # clocks and caches; a tenth of a form's budget where that is less
TOLERANCE = 1e-12  # what class_moments promises, of the sum of absolute values

Form = Callable[[Tensor, Tensor], Any]


def native(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    with backend("native"):
        return ops.class_moments(x, y, CLASSES, check=False)


def plain(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    with backend("torch"):
        return ops.class_moments(x, y, CLASSES, check=False)


def one_hot_matmul(x: Tensor, y: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(y, CLASSES).to(x.dtype).T @ x


def index_add(x: Tensor, y: Tensor) -> Tensor:
    return x.new_zeros(CLASSES, x.shape[1]).index_add_(0, y, x)


# What a form computes: count, sum and sum of squares by class; sums by class alone; one sum.
FORMS: tuple[tuple[str, str, Form], ...] = (
    ("class_moments", "moments", native),
    ("class_moments, backend torch", "moments", plain),
    ("one-hot matmul", "sums", one_hot_matmul),
    ("index_add_", "sums", index_add),
    ("x.sum()", "total", lambda x, y: x.sum()),
)


def run(
    seconds: float = 40.0,
    rows: int | None = None,
    progress: Callable[[str, float], None] = lambda *_: None,
) -> dict[str, Any]:
    """Times every form on fresh random features [N, 512] of 100 classes; plain values for JSON.

    Args:
        seconds: time for everything together, shared out evenly among the forms still to come. At
            least two calls of every form are made, the first to check it, so that a slow machine
            takes longer.
        rows: N; by default as many as make 256 MiB of float32 on the CPU and 2 GiB on a GPU, or
            less where little memory is free.
        progress: called with what is being done and the share of all work that is behind.

    Returns:
        `rows`, one for every device, dtype and form: `seconds` (median), `gb_per_s` (features and
        labels read once, over the median), `ratio` (to class_moments; larger is slower), `error`
        (largest, of the class sums, relative to the sum of absolute values, against float64) and
        `skipped`, the reason where a form did not run.

    Raises:
        ValueError: an argument out of range.
        ArithmeticError: class_moments gave a wrong result, which is a bug.
    """
    if not 0 < seconds <= 3600:
        raise ArgumentError("seconds", "0 < seconds <= 3600", seconds)
    if rows is not None and not 1 <= rows < 2**31:
        raise ArgumentError("rows", "1 <= rows < 2^31", rows)
    start = time.perf_counter()
    deadline = start + seconds
    names = [d["device"] for d in devices()][:2]  # the CPU and the first GPU
    cases = [(torch.device(name), dtype) for name in names for dtype in DTYPES]
    results: list[dict[str, Any]] = []
    for i, (device, dtype) in enumerate(cases):
        kind = f"{device}, {str(dtype).removeprefix('torch.')}"
        progress(f"{kind}: data", i / len(cases))
        n = rows or _rows(device)
        generator = torch.Generator(device)
        generator.seed()
        x = torch.empty(n, WIDTH, dtype=dtype, device=device)
        for part in x.split(2**15):  # a shift keeps the sums away from 0, as after a ReLU
            part.copy_(torch.randn(part.shape, device=device, generator=generator).add_(0.5))
        y = torch.randint(CLASSES, (n,), device=device, generator=generator)
        truth = _truth(x, y)
        case = []
        for j, (name, computes, form) in enumerate(FORMS):
            progress(f"{kind}: {name}", (i + (j + 1) / (len(FORMS) + 1)) / len(cases))
            row = {"device": str(device), "dtype": str(dtype).removeprefix("torch."), "rows": n}
            case.append(row | {"form": name, "computes": computes})
            forms_left = (len(cases) - i) * len(FORMS) - j
            budget = max(deadline - time.perf_counter(), 0) / forms_left
            case[-1] |= _measure(name, computes, form, x, y, truth, budget)
        ours = case[0]["seconds"]
        for row in case:
            both = ours is not None and row["seconds"] is not None
            row["ratio"] = row["seconds"] / ours if both else None
        results += case
        del x, y, truth
    progress("done", 1.0)
    return {
        "environment": environment(),
        "width": WIDTH,
        "classes": CLASSES,
        "rows": results,
        "seconds": time.perf_counter() - start,
    }


def _measure(
    name: str,
    computes: str,
    form: Form,
    x: Tensor,
    y: Tensor,
    truth: tuple[Tensor, Tensor, Tensor, Tensor],
    budget: float,
) -> dict[str, Any]:
    """One form: its error, checked where it is ours, then its time."""
    row: dict[str, Any] = dict.fromkeys(("seconds", "gb_per_s", "error", "skipped"))
    row["calls"] = 0
    begin = time.perf_counter()
    try:
        result = form(x, y)
        _wait(x.device)
        first = time.perf_counter() - begin
        row["error"] = _error(result, computes, truth)
        del result
    except BackendError as error:
        return row | {"skipped": str(error)}
    except torch.OutOfMemoryError:
        return row | {"skipped": "not enough memory"}
    if computes == "moments" and not row["error"] <= TOLERANCE:
        raise ArithmeticError(
            f"{name} on {x.device}, {x.dtype}: expected an error of at most {TOLERANCE:g} of the "
            f"sum of absolute values, found {row['error']:.2g}: this is a bug, please report it"
        )
    times = _times(lambda: form(x, y), x.device, budget, first)
    median = statistics.median(times)
    read = x.nbytes + y.nbytes
    return row | {"seconds": median, "gb_per_s": read / median / 1e9, "calls": len(times)}


def _times(
    call: Callable[[], Any], device: torch.device, budget: float, first: float
) -> list[float]:
    """Seconds of single calls, after a warm-up; on CUDA between device events.

    At least three calls; one where the first call of all (`first` seconds) says that three would
    take more than the budget and a second: a call that slow needs no warm-up.
    """
    end = time.perf_counter() + budget
    least = 3 if 3 * first < max(budget, 1) else 1
    warm = time.perf_counter() + min(WARM_UP_SECONDS, budget / 10)
    while least > 1 and time.perf_counter() < warm:
        call()
        _wait(device)
    times: list[float] = []
    while len(times) < least or (time.perf_counter() < end and len(times) < 10_000):
        times.append(seconds_of(call, device))
    return times


def seconds_of(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call; on CUDA between two events of the device."""
    if device.type != "cuda":
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    call()
    after.record()
    after.synchronize()
    return before.elapsed_time(after) / 1e3


def _truth(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Counts, sums, sums of squares and sums of absolute values by class, in float64, by parts."""
    sums = torch.zeros(3, CLASSES, x.shape[1], dtype=torch.float64, device=x.device)
    for part, labels in zip(x.split(2**13), y.split(2**13), strict=True):
        one_hot = torch.nn.functional.one_hot(labels, CLASSES).double().T
        wide = part.double()
        sums[0] += one_hot @ wide
        sums[1] += one_hot @ wide.square()
        sums[2] += one_hot @ wide.abs()
    return torch.bincount(y, minlength=CLASSES), sums[0], sums[1], sums[2]


def _error(result: Any, computes: str, truth: tuple[Tensor, Tensor, Tensor, Tensor]) -> float:
    """The largest error of a result, relative to the sum of absolute values (or of squares)."""
    counts, sums, sumsq, size = truth
    if computes == "total":
        return float((result.double() - sums.sum()).abs() / size.sum())
    if computes == "sums":
        return float(((result.double() - sums).abs() / size.clamp_min(1e-300)).max())
    if not torch.equal(result[0], counts):
        return float("inf")
    first = ((result[1] - sums).abs() / size.clamp_min(1e-300)).max()
    second = ((result[2] - sumsq).abs() / sumsq.clamp_min(1e-300)).max()
    return float(torch.maximum(first, second))


def _rows(device: torch.device) -> int:
    """Rows of float32 that fill BYTES, or the share of free memory that leaves room for copies."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _free_memory()
    size = min(BYTES[device.type], int(free * MEMORY_SHARE))
    return max(size // (4 * WIDTH), CLASSES)


def _free_memory() -> int:
    """Bytes of main memory that can be had without swapping, by the system's own word."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (OSError, ValueError, AttributeError):
        return 2**32  # not known: what the smallest of today's machines have


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
