"""`resque-ext dist`: RESQUE_dist of two files of features."""

from __future__ import annotations

import math
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from resque_ext.cli.app import app
from resque_ext.cli.output import (
    Json,
    make_console,
    make_table,
    print_json,
    print_warnings,
    show_angle,
)


class Policy(str, Enum):
    """What to do with classes or rows that cannot be used."""

    error = "error"
    skip = "skip"


@app.command("dist", short_help="RESQUE_dist of two files of features.")
def _dist(
    old: Annotated[Path, typer.Argument(help="Old side: .npz or .safetensors.")],
    new: Annotated[Path, typer.Argument(help="New side, likewise.")],
    num_classes: Annotated[
        int | None, typer.Option(help="Number of classes; by default those that appear.")
    ] = None,
    missing: Annotated[Policy, typer.Option(help="Classes without an angle.")] = Policy.error,
    nonfinite: Annotated[Policy, typer.Option(help="Rows with NaN or infinity.")] = Policy.error,
    paired: Annotated[
        bool, typer.Option("--paired", help="Row i of NEW is row i of OLD after the shift.")
    ] = False,
    per_class: Annotated[bool, typer.Option("--per-class", help="List every class.")] = False,
    as_json: Json = False,
) -> None:
    """RESQUE_dist of two files, each with the arrays `features` [N, D] and `labels` [N]."""
    from resque_ext import resque_dist
    from resque_ext.data.files import load_arrays

    (x, y), (x_new, y_new) = load_arrays(old), load_arrays(new)
    result = resque_dist(
        x,
        x_new,
        y,
        y_new,
        num_classes,
        missing=missing.value,
        nonfinite=nonfinite.value,
        paired=paired,
    )
    if as_json:
        sides = {"index": "resque_dist", "old": str(old), "new": str(new), "paired": paired}
        print_json(sides | result.to_dict())
        return
    console = make_console()
    table = make_table("RESQUE_dist, in units of pi", "", "value")
    table.add_row("index", show_angle(result.value))
    table.add_row("standard error", show_angle(result.std_error))
    table.add_row("noise floor", show_angle(result.noise_floor))
    if result.p_value is not None:
        table.add_row("p-value (sign test)", f"{result.p_value:.3f}")
    table.add_row("reliable", "yes" if result.reliable else "no")
    for side, counts in result.counts.items():
        skipped = result.nonfinite_rows[side]
        left_out = f" ({skipped} non-finite left out)" if skipped else ""
        table.add_row(f"{side} rows", f"{counts.sum()}{left_out}")
    table.add_row("classes", f"{len(result.per_class) - len(result.missing)}")
    if result.missing:
        table.add_row("classes left out", ", ".join(map(str, result.missing)))
    console.print(table)
    if per_class:
        table = make_table("By class", "class", "angle / pi", "old rows", "new rows")
        for c, angle in enumerate(result.per_class):
            counts = (str(result.counts[side][c]) for side in ("old", "new"))
            table.add_row(str(c), "left out" if math.isnan(angle) else show_angle(angle), *counts)
        console.print(table)
    print_warnings(console, "RESQUE_dist", result)
