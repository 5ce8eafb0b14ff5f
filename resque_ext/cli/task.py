"""`resque-ext task`: RESQUE_task of a file of embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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

# typer evaluates annotations from their text, so what is put together stands here.
INIT_HELP = "Where the clusters start: class-means or k-means++."
START_HELP = "Whose class means: same-rows, or held-out, which does not leak the labels."


@app.command("task", short_help="RESQUE_task of a file of embeddings.")
def _task(
    embeddings: Annotated[
        Path,
        typer.Argument(
            help="`features` [N, D] and `labels` [N] in .npz or .safetensors, or features in .npy, "
            "which may be larger than memory."
        ),
    ],
    labels: Annotated[
        Path | None, typer.Option(help="A .npy of labels, with a .npy of features.")
    ] = None,
    num_classes: Annotated[
        int | None, typer.Option(help="Clusters; by default the labels that there are.")
    ] = None,
    init: Annotated[str, typer.Option(help=INIT_HELP)] = "class-means",
    max_iter: Annotated[int, typer.Option(help="Iterations at most.")] = 300,
    start: Annotated[str, typer.Option(help=START_HELP)] = "same-rows",
    chance: Annotated[
        int,
        typer.Option(
            help="Permutations of the labels: 19 give a p-value, 0 none; each takes as "
            "long as the index."
        ),
    ] = 3,  # that of resque_task, whose module loads torch
    seed: Annotated[
        int, typer.Option(help="Of k-means++, of the permutations and of the bootstrap.")
    ] = 0,
    baselines: Annotated[
        bool, typer.Option(help="Errors of two simple classifiers beside it.")
    ] = True,
    as_json: Json = False,
) -> None:
    """RESQUE_task of embeddings: how badly a new task's classes fall into their clusters."""
    from resque_ext.indices.resque_task import resque_task_of_file

    result = resque_task_of_file(
        embeddings,
        labels,
        num_classes=num_classes,
        init=init,
        max_iter=max_iter,
        seed=seed,
        baselines=baselines,
        start=start,
        chance=chance,
    )
    if as_json:
        print_json({"index": "resque_task", "embeddings": str(embeddings)} | result.to_dict())
        return
    console = make_console()
    table = make_table("RESQUE_task (1 - ARI)", "", "value")
    table.add_row("index", show_angle(result.value))
    table.add_row("standard error", show_angle(result.std_error))
    table.add_row("95 % interval", _interval(result.confidence_interval))
    table.add_row("permuted labels", _chance(result.chance))
    table.add_row("reliable", "yes" if result.reliable else "no")
    table.add_row("iterations", f"{result.n_iter}{'' if result.converged else ' (not at rest)'}")
    table.add_row("rows", str(result.table.sum()))
    table.add_row("classes, clusters", " x ".join(map(str, result.table.shape)))
    if baselines:
        table.add_row("nearest-class-mean error", _share(result.nearest_class_mean_error))
        table.add_row("linear-probe error", _share(result.linear_probe_error))
    console.print(table)
    print_warnings(console, "RESQUE_task", result)
    console.print(
        "0: the clusters are the classes; about 1: they agree no more than by chance. The interval "
        "is of other samples with the clusters as they are. Errors are of rows left out in turn."
    )


def _interval(interval: tuple[float, float] | None) -> str:
    return "unknown" if interval is None else " to ".join(map(show_angle, interval))


def _chance(chance: Any) -> str:
    if chance is None:
        return "not asked for"
    spread = "" if chance.std is None else f" ± {chance.std:.4f}"
    tested = "" if chance.p_value is None else f", p = {chance.p_value:.3f}"
    return f"{show_angle(chance.mean)}{spread}{tested}"


def _share(error: Any) -> str:
    return "unknown" if error is None else f"{error:.1%}"
