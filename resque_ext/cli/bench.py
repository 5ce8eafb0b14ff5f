"""`resque-ext bench`: the kernels against plain PyTorch."""

from __future__ import annotations

from typing import Annotated

import typer

from resque_ext.cli.app import app
from resque_ext.cli.output import (
    Json,
    escape,
    make_console,
    make_table,
    print_json,
    progress_bar,
    show_time,
)


@app.command("bench", short_help="Time the kernels against plain PyTorch.")
def _bench(
    as_json: Json = False,
    seconds: Annotated[float, typer.Option(help="Time for everything together.")] = 40.0,
    rows: Annotated[int | None, typer.Option(help="Rows; by default by free memory.")] = None,
) -> None:
    """Time the kernels against plain PyTorch, on random data that is checked first."""
    from resque_ext.tools import bench

    with progress_bar() as progress:
        result = bench.run(seconds, rows, progress)
    if as_json:
        print_json(result)
        return
    console = make_console()
    for case in dict.fromkeys((row["device"], row["dtype"], row["rows"]) for row in result["rows"]):
        device, dtype, n = case
        names = {d["device"]: escape(d["name"]) for d in result["environment"]["devices"]}
        table = make_table(
            f"{names[device]}: {dtype} [{n}, {result['width']}], {result['classes']} classes",
            "form",
            "computes",
            "median",
            "GB/s",
            "ratio",
            "error",
            "calls",
        )
        for row in result["rows"]:
            if (row["device"], row["dtype"], row["rows"]) != case:
                continue
            if row["skipped"]:
                table.add_row(row["form"], row["computes"], "not run")
                console.print(f"{row['form']} did not run: {escape(row['skipped'])}")
                continue
            table.add_row(
                row["form"],
                row["computes"],
                show_time(row["seconds"]),
                f"{row['gb_per_s']:.3g}",
                "" if row["ratio"] is None else f"{row['ratio']:.2f}",
                f"{row['error']:.0e}",
                str(row["calls"]),
            )
        console.print(table)
    console.print(
        "moments: count, sum and sum of squares of every class; sums: the sums alone; total: one "
        "sum of everything, the time to read the memory once. ratio: time over class_moments' own, "
        "above 1 is slower. error: the largest, against float64, over the sum of absolute values."
    )
    console.print(f"{result['seconds']:.1f} s.")
