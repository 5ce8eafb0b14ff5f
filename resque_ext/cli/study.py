"""`resque-ext study`: what indices say of many shifts, and what retraining for each costs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resque_ext.cli.app import app
from resque_ext.cli.forecast import OPTIMIZER_HELP, find_optimizer, shuffled
from resque_ext.cli.output import Json, escape, make_console, make_table, print_json
from resque_ext.cli.score import TRANSFORM_HELP
from resque_ext.errors import ArgumentError

if TYPE_CHECKING:
    from resque_ext.studies import Study

SHIFT_HELP = "KIND=LEVEL[,LEVEL...], such as gaussian=0.1,0.3; repeatable."
OUTPUT_HELP = "A JSON line a run, for `fit`; SQLite for .sqlite. The same call goes on with it."
INDEX_HELP = (
    "Repeatable. Default: resque_dist, resque_task, preindex, arm, linear_residual; simple "
    "classifiers and the accuracy drop always."
)
SIDE_HELP = "Inputs and labels: .npz or .safetensors, or a folder with a subfolder a class."


@app.command("study", short_help="Retrain for many shifts and measure what each costs.")
def _study(
    model: Annotated[str, typer.Argument(help="module:callable that returns the model.")],
    old: Annotated[Path, typer.Option(help=f"What the model was trained on. {SIDE_HELP}")],
    train: Annotated[Path, typer.Option(help="To shift and retrain on, likewise.")],
    test: Annotated[Path, typer.Option(help="To shift and reach the target on, likewise.")],
    target: Annotated[float, typer.Option(help="Accuracy on TEST, a fraction.")],
    shift: Annotated[list[str], typer.Option(help=SHIFT_HELP)],
    output: Annotated[Path, typer.Option("--output", "-o", help=OUTPUT_HELP)],
    weights: Annotated[Path | None, typer.Option(help="state_dict, .safetensors or .pt.")] = None,
    index: Annotated[list[str] | None, typer.Option(help=INDEX_HELP)] = None,
    max_epochs: Annotated[float, typer.Option(help="Of each retraining.")] = 20,
    optimizer: Annotated[str | None, typer.Option(help=OPTIMIZER_HELP)] = None,
    checks_per_epoch: Annotated[int, typer.Option(help="Readings of TEST an epoch.")] = 4,
    transform: Annotated[list[str] | None, typer.Option(help=TRANSFORM_HELP)] = None,
    batch_size: Annotated[int, typer.Option(help="Samples of a batch.")] = 64,
    layer: Annotated[str | None, typer.Option(help="The embedding's layer.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    seed: Annotated[int, typer.Option(help="Of the study.")] = 0,
    meter: Annotated[bool, typer.Option(help="Measure energy where it can be.")] = True,
    as_json: Json = False,
) -> None:
    """Score and retrain a model for each shift; `fit` makes a cost model of the runs.

    Without a study, `forecast` says what one retraining will cost.
    """
    from resque_ext.data.labelled import open_batches
    from resque_ext.data.transforms import make_transform
    from resque_ext.model.load_model import load_model
    from resque_ext.studies import study
    from resque_ext.studies.study import INDICES

    levels = read_levels(shift)
    transforms = [make_transform(text) for text in transform or ()]
    loaded, make = load_model(model, weights), find_optimizer(optimizer)
    olds = open_batches(old, transforms, batch_size)
    trains = open_batches(train, transforms, batch_size, olds)
    found = study(
        loaded,
        {
            "old": olds,
            "new": trains,
            "train": shuffled(trains),
            "test": open_batches(test, transforms, batch_size, olds),
        },
        levels,
        tuple(index or INDICES),
        target_accuracy=target,
        path=output,
        max_epochs=max_epochs,
        optimizer=make,
        checks_per_epoch=checks_per_epoch,
        layer=layer,
        device=device,
        seed=seed,
        meter="auto" if meter else None,
        progress=sys.stderr.isatty(),
    )
    if as_json:
        print_json({"output": str(output), **summary(found)})
    else:
        _print(output, found)


def read_levels(texts: list[str]) -> dict[str, tuple[float, ...]]:
    """Levels by kind.

    Raises:
        ValueError: another form, or a kind twice.
    """
    found: dict[str, tuple[float, ...]] = {}
    for text in texts:
        kind, equals, levels = text.partition("=")
        try:
            values = tuple(float(level) for level in levels.split(","))
        except ValueError:
            values = ()
        if not equals or not kind or not values or kind in found:
            raise ArgumentError("shift", "KIND=LEVEL,LEVEL, each kind once", repr(text))
        found[kind] = values
    return found


def summary(found: Study) -> dict[str, Any]:
    """Each run in short, and how every predictor orders the epochs."""
    runs = [
        {
            "kind": run.kind,
            "level": run.level,
            "epochs": run.measures["epochs"],
            "reached": not run.censored,
            "start_accuracy": run.cost.start_accuracy,
            "predictors": run.predictors,
        }
        for run in found
    ]
    ranks: dict[str, float | None] = {}
    if len(found) > 2:
        names = tuple(dict.fromkeys(name for run in found for name in run.predictors))
        table = found.correlations(predictors=names, measures="epochs", methods="spearman")
        ranks = {name: table.get(name, "epochs").across.value for name in names}
    return {"runs": runs, "spearman": ranks}


def _print(output: Path, found: Study) -> None:
    console, about = make_console(), summary(found)
    table = make_table(
        f"{len(found)} retrainings, kept in {escape(str(output))}",
        "shift",
        "level",
        "accuracy before",
        "epochs",
    )
    for run in about["runs"]:
        epochs = f"{run['epochs']:.2f}" if run["reached"] else f"more than {run['epochs']:g}"
        table.add_row(
            escape(run["kind"]), f"{run['level']:g}", f"{run['start_accuracy']:.1%}", epochs
        )
    console.print(table)
    known = {name: rank for name, rank in about["spearman"].items() if rank is not None}
    if known:
        table = make_table("How each predictor orders the epochs", "predictor", "Spearman")
        for name, rank in sorted(known.items(), key=lambda each: -abs(each[1])):
            table.add_row(escape(name), f"{rank:.2f}")
        console.print(table)
