"""Runs each CUDA op twice at the sizes that are benchmarked, for a profiler to look at: no checks.

The first run of each warms up; Nsight Compute can take either.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sizes import rows

from resque_ext import ops


def main() -> None:
    torch.manual_seed(0)
    for name, call in calls():
        for _ in range(2):
            call()
        torch.cuda.synchronize()
        print(name, flush=True)
        del call
        torch.cuda.empty_cache()


def calls() -> Any:
    x = normal(rows(1_048_576), 512)
    for k in (10, 100, 20_000):
        y = torch.randint(k, (len(x),), device="cuda")
        yield f"class_moments, {k} classes", bind(ops.class_moments, x, y, k, check=False)
    for k in (10, 100):
        yield f"lloyd_step, {k} centres", bind(ops.lloyd_step, x, normal(k, 512), check=False)
    yield "value_histogram", bind(ops.value_histogram, x, check=False)
    a, b = (torch.randint(100, (rows(4_194_304),), device="cuda") for _ in "ab")
    yield "pair_counts", bind(ops.pair_counts, a, b, 100, 100, check=False)
    x = normal(max(rows(262_144), 1_000), 2_048)
    yield "lloyd_step, 1,000 centres", bind(ops.lloyd_step, x, normal(1_000, 2_048), check=False)
    for n, columns in ((rows(131_072), 2_048), (rows(524_288), 128)):
        old, new = normal(n, columns), normal(n, columns)
        yield f"row_distances of {columns}", bind(ops.row_distances, old, new, check=False)
    maps = torch.randn(rows(8_192), 512, 16, 16, device="cuda", dtype=torch.bfloat16)
    yield "spatial_mean", bind(ops.spatial_mean, maps)
    yield "spatial_mean, last", bind(ops.spatial_mean, maps.to(memory_format=torch.channels_last))


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device="cuda")


def bind(op: Callable[..., Any], *args: Any, **options: Any) -> Callable[[], Any]:
    return lambda: op(*args, **options)


if __name__ == "__main__":
    main()
