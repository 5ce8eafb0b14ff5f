"""class_moments on narrow rows on the CPU, as a share of x.sum() and of a gather of the same rows.

    python benchmarks/narrow_rows.py [--repeats N] [--threads N]

The gather is `torch.nn.functional.embedding_bag` over the rows sorted by class, before the clock
starts: float32 sums alone, in the order in which classes ask for rows. Calls take turns in one
process. Times are processor time of all threads, as a busy machine falsifies any other; medians.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from against_checkout import NARROW, processor
from torch.nn.functional import embedding_bag

from resque_ext.ops import class_moments
from resque_ext.ops.class_order import class_order


def measured(size: tuple[int, int, int], repeats: int) -> dict[str, float]:
    """Median milliseconds of the sum, the gather and the op, each checked first."""
    n, width, classes = size
    x, y = torch.randn(n, width), torch.randint(classes, (n,))
    order, offsets, _ = class_order(y, classes)
    rows, starts = order.long(), offsets[:-1]
    calls = {
        "sum": lambda: x.sum(),
        "gather": lambda: embedding_bag(rows, x, starts, mode="sum"),
        "op": lambda: class_moments(x, y, classes)[1],
    }
    truth = torch.zeros(classes, width, dtype=torch.float64).index_add_(0, y, x.double())
    torch.testing.assert_close(calls["op"](), truth, rtol=1e-9, atol=1e-9)
    # A sum of n float32 values errs by n - 1 roundings of the largest partial sum.
    bound = offsets.diff().max().item() * 2**-24 * x.abs().sum(0).max().item()
    torch.testing.assert_close(calls["gather"]().double(), truth, rtol=0, atol=bound)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.process_time()
            call()
            times[name].append(time.process_time() - start)
    return {name: 1e3 * statistics.median(found) for name, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=15, metavar="N")
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(f"{processor()}, {given.threads} thread(s), torch {torch.__version__}\n")
    print("| rows x columns x classes | op, ms | `x.sum()` / op | gather / op |")
    print("|---|--:|--:|--:|")
    for size in NARROW:
        ms = measured(size, given.repeats)
        shares = (f"{ms[other] / ms['op']:.0%}" for other in ("sum", "gather"))
        print(f"| {' x '.join(f'{n:,}' for n in size)} | {ms['op']:.1f} | {' | '.join(shares)} |")


if __name__ == "__main__":
    main()
