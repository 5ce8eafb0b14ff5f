"""Every op on the CPU, this checkout against another one with an extension of its own.

    python benchmarks/against_checkout.py OTHER_CHECKOUT [--json FILE] [--ops OP...] [--repeats N]

Three processes stay alive: this checkout, the same once more, and the other. They are asked in
turn, in another order every time, for a few calls on inputs that are the same in all, which are
made anew 20 times, as where they lie in memory matters. A figure is
the median over repeats of the ratio of two neighbouring measurements, with its quartiles: "ratio"
is this checkout over the other, "noise" this checkout over itself. Build the other in place first:
`python setup.py build_ext --inplace` in its folder.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
MOMENTS = [
    *((64, 64, 10), (64, 512, 10), (256, 512, 10), (1_000, 512, 10), (4_000, 512, 10)),
    *((1_000, 512, 100), (64, 2_048, 1_000), (256, 2_048, 1_000), (20_000, 512, 100)),
]
NARROW = [(400_000, 96, 40), (700_000, 48, 21), (1_000_000, 64, 1_000), (2_000_000, 16, 10)]
SIZES = {
    "class_moments": [*MOMENTS, *NARROW],
    "update": MOMENTS,  # of ResqueDist
    "sum": [*MOMENTS, *NARROW],  # x.sum(), the bound of the two above
    "class_order": [(256, 10), (10_000, 100), (100_000, 100)],
    "value_histogram": [(64, 64), (1_024, 512), (8_192, 512)],
    "row_distances": [(16, 256), (256, 512), (1_024, 2_048)],
    "lloyd_step": [(256, 16, 4), (4_096, 64, 10), (20_000, 128, 10)],
    "pair_counts": [(256, 10), (10_000, 10), (100_000, 10)],
    "spatial_mean": [(8, 16, 4, 4), (64, 64, 8, 8), (64, 256, 16, 16)],
}
SECONDS = 5e-4  # of calls at a time: long against a clock, short against what else the machine does
MOST_CALLS = 50
MOST_SECONDS = 15.0  # of one op at one size, but no fewer repeats than
LEAST_REPEATS = 100
ROUNDS = 20  # of new inputs: where memory lies can make a quarter of a difference by itself
# glibc keeps freed memory: whether a process gives it back after each call, and then faults it in
# again, hangs on its heap's last pages, and makes a factor of up to three.
HEAP = {"MALLOC_TRIM_THRESHOLD_": str(2**30), "MALLOC_MMAP_THRESHOLD_": str(2**30)}
Row = dict[str, Any]


def call_of(name: str, size: tuple[int, ...]) -> Callable[[], Any]:
    """A call of an op on inputs that its name and size decide."""
    import torch

    from resque_ext import ResqueDist, ops
    from resque_ext.ops.class_order import class_order

    torch.manual_seed(len(name) + sum(size))
    n = size[0]
    if name in ("class_moments", "update", "sum"):
        x, y = torch.randn(n, size[1]), torch.randint(size[2], (n,))
        index = ResqueDist(size[2])
        if name == "update":
            return lambda: index.update(x, y, "old")
        return lambda: x.sum() if name == "sum" else ops.class_moments(x, y, size[2])
    if name == "class_order":
        y = torch.randint(size[1], (n,))
        return lambda: class_order(y, size[1])
    if name == "value_histogram":
        x = torch.randn(size)
        return lambda: ops.value_histogram(x).counts
    if name == "row_distances":
        x, z = torch.randn(size), torch.randn(size)
        return lambda: ops.row_distances(x, z)
    if name == "lloyd_step":
        x, centers = torch.randn(n, size[1]), torch.randn(size[2], size[1])
        return lambda: ops.lloyd_step(x, centers)
    if name == "pair_counts":
        a, b = torch.randint(size[1], (n,)), torch.randint(size[1], (n,))
        return lambda: ops.pair_counts(a, b, size[1], size[1])
    x = torch.randn(size)
    return lambda: ops.spatial_mean(x)


def total(result: Any) -> float:
    """A sum over all tensors of a result, by which two checkouts' are compared."""
    import torch

    if isinstance(result, torch.Tensor):
        return float(result.double().sum())
    if isinstance(result, (tuple, list)):
        return sum(map(total, result))
    return 0.0


def work(threads: int) -> None:
    """Answers requests, one JSON line each, until there are no more."""
    import torch

    from resque_ext.ops import class_moments

    torch.set_num_threads(threads)
    answers, sys.stdout = sys.stdout, sys.stderr
    class_moments(torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64), 1)  # there are kernels
    call: Callable[[], Any] = list

    def answer(value: Any) -> None:
        print(json.dumps(value), file=answers, flush=True)

    # An editable install elsewhere gives what a checkout lacks, module by module.
    mine = [m for name, m in sys.modules.items() if name.partition(".")[0] == "resque_ext"]
    answer({"files": [m.__file__ for m in mine], "torch": torch.__version__})
    for line in sys.stdin:
        request = json.loads(line)
        if "op" in request:
            call = call_of(request["op"], tuple(request["size"]))
            answer(total(call()))
            continue
        start = time.perf_counter()
        for _ in range(request["calls"]):
            call()
        answer((time.perf_counter() - start) / request["calls"])


class Worker:
    """A process that has imported a checkout."""

    def __init__(self, checkout: Path, threads: int) -> None:
        own = {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--worker", str(threads)],
            cwd=checkout,
            env={**os.environ, **HEAP, **own},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._checkout = checkout
        self.about = self._read(checkout)
        for file in map(Path, self.about["files"]):
            if checkout not in file.resolve().parents:
                self.close()
                raise SystemExit(f"OTHER_CHECKOUT: expected ops of {checkout}, found {file}")

    def _read(self, checkout: Path) -> Any:
        line = self._process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise SystemExit(f"OTHER_CHECKOUT: expected ops that run in {checkout}, found an error")
        return json.loads(line)

    def ask(self, **request: Any) -> Any:
        self._process.stdin.write(json.dumps(request) + "\n")  # type: ignore[union-attr]
        self._process.stdin.flush()  # type: ignore[union-attr]
        return self._read(self._checkout)

    def close(self) -> None:
        self._process.stdin.close()  # type: ignore[union-attr]
        self._process.wait()


def measured(workers: dict[str, Worker], op: str, size: tuple[int, ...], repeats: int) -> Row:
    """Times and ratios of one op at one size."""
    totals = {name: worker.ask(op=op, size=size) for name, worker in workers.items()}
    for worker in workers.values():  # the first calls load code and find memory
        worker.ask(calls=5)
    once = statistics.median(workers["this"].ask(calls=3) for _ in range(5))
    calls = max(1, min(MOST_CALLS, int(SECONDS / once)))
    in_time = int(MOST_SECONDS / (len(workers) * calls * once))
    repeats = min(repeats, max(LEAST_REPEATS, in_time))
    rng = random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in workers}
    for i in range(repeats):
        if i and i % max(1, repeats // ROUNDS) == 0:
            for worker in workers.values():
                worker.ask(op=op, size=size)
                worker.ask(calls=1)
        for name in rng.sample(list(workers), len(workers)):
            times[name].append(workers[name].ask(calls=calls))
    same = abs(totals["this"] - totals["other"]) <= 1e-6 * max(1.0, abs(totals["this"]))
    return {
        "op": op,
        "size": list(size),
        "calls": calls,
        "repeats": repeats,
        "milliseconds": {name: 1e3 * statistics.median(found) for name, found in times.items()},
        "ratio": quartiles(times["this"], times["other"]),
        "noise": quartiles(times["this"], times["again"]),
        "same_result": same,
    }


def quartiles(a: list[float], b: list[float]) -> list[float]:
    """[first quartile, median, third quartile] of the ratios."""
    return statistics.quantiles([x / y for x, y in zip(a, b, strict=True)], n=4)


def table(rows: list[Row]) -> Iterator[str]:
    yield "| op | size | this, ms | other, ms | ratio (quartiles) | noise (quartiles) |"
    yield "|---|---|--:|--:|--:|--:|"
    for row in rows:
        size, ms = " x ".join(f"{n:,}" for n in row["size"]), row["milliseconds"]
        ratio, noise = (
            f"{row[key][1]:.2f} ({row[key][0]:.2f} to {row[key][2]:.2f})"
            for key in ("ratio", "noise")
        )
        more = "" if row["same_result"] else " results differ"
        yield (
            f"| {row['op']} | {size} | {ms['this']:.4f} | {ms['other']:.4f} | {ratio} | "
            f"{noise} |{more}"
        )


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path, metavar="OTHER_CHECKOUT")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    parser.add_argument("--ops", nargs="+", choices=SIZES, default=list(SIZES), metavar="OP")
    parser.add_argument("--repeats", type=int, default=1_000, metavar="N")
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    given = parser.parse_args(arguments)
    other = given.checkout.resolve()
    if not (other / "resque_ext" / "__init__.py").is_file():
        parser.error(f"OTHER_CHECKOUT: expected a checkout with resque_ext, found {other}")
    workers: dict[str, Worker] = {}
    rows = []
    try:
        for name, place in (("this", HERE), ("again", HERE), ("other", other)):
            workers[name] = Worker(place, given.threads)
        for op in given.ops:
            for size in SIZES[op]:
                rows.append(measured(workers, op, size, given.repeats))
                print(f"{op} {size}: {rows[-1]['ratio'][1]:.3f}", file=sys.stderr, flush=True)
    finally:
        for worker in workers.values():
            worker.close()
    about = {
        "processor": processor(),
        "threads": given.threads,
        "python": platform.python_version(),
        "torch": workers["this"].about["torch"],
    }
    print(f"{about['processor']}, {about['threads']} thread(s), torch {about['torch']}")
    print("\n".join(table(rows)))
    if given.json:
        given.json.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(int(sys.argv[2]))
    else:
        sys.exit(main())
