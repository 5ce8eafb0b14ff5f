"""Sizes of the benchmarks: those of the tables, or small ones for a rehearsal."""

import os

SMALL = bool(os.environ.get("RESQUE_BENCH_SMALL"))


def rows(n: int) -> int:
    """`n`, or a thousandth of it where the benchmarks are rehearsed (RESQUE_BENCH_SMALL=1)."""
    return max(n // 1024, 64) if SMALL else n
