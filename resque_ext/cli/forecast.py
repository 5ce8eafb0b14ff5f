"""`resque-ext forecast`: what retraining until a target accuracy will cost."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resque_ext.cli.app import app
from resque_ext.cli.output import Json, escape, make_console, make_table, print_json
from resque_ext.cli.score import TRANSFORM_HELP

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from resque_ext.data.labelled import Batches
    from resque_ext.forecasting import Forecast

OPTIMIZER_HELP = "module:callable of the parameters. Default: Adam, rate 1e-3, decay 1e-5."
STEPS_HELP = "Length of the probe, a power of two from 16; repeatable. 0: none. Default: 16, 32."


@app.command("forecast")
def _forecast(
    model: Annotated[str, typer.Argument(help="module:callable that returns the model.")],
    train: Annotated[
        Path,
        typer.Option(
            help="To retrain on: .npz or .safetensors with `inputs` and `labels`, or a folder with "
            "one subfolder of images a class."
        ),
    ],
    test: Annotated[Path, typer.Option(help="To reach the target on, likewise.")],
    target: Annotated[float, typer.Option(help="Accuracy on TEST, a fraction.")],
    old: Annotated[
        Path | None, typer.Option(help="What the model was trained on, likewise.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="state_dict, .safetensors or .pt.")] = None,
    max_epochs: Annotated[float, typer.Option(help="Of the retraining.")] = 200,
    steps: Annotated[list[int] | None, typer.Option(help=STEPS_HELP)] = None,
    max_share: Annotated[float, typer.Option(help="Of the steps that a probe may take.")] = 0.2,
    coverage: Annotated[float, typer.Option(help="Of the intervals.")] = 0.9,
    optimizer: Annotated[str | None, typer.Option(help=OPTIMIZER_HELP)] = None,
    checks_per_epoch: Annotated[int, typer.Option(help="Readings of TEST an epoch.")] = 1,
    transform: Annotated[list[str] | None, typer.Option(help=TRANSFORM_HELP)] = None,
    batch_size: Annotated[int, typer.Option(help="Samples of a batch.")] = 64,
    layer: Annotated[str | None, typer.Option(help="The embedding's layer.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    seed: Annotated[int, typer.Option(help="Of the retraining.")] = 0,
    carbon_intensity: Annotated[
        float | None, typer.Option(help="Of the grid, in g CO2e a kWh.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Keep the probe here, for retrain(checkpoint=).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Forecast the cost of retraining by a probe of its first steps."""
    from resque_ext import forecast
    from resque_ext.data.labelled import open_batches
    from resque_ext.data.transforms import make_transform
    from resque_ext.model.load_model import load_model

    transforms = [make_transform(text) for text in transform or ()]
    loaded = load_model(model, weights)
    make = find_optimizer(optimizer)
    olds = None if old is None else open_batches(old, transforms, batch_size)
    trains = open_batches(train, transforms, batch_size, olds)
    tests = open_batches(test, transforms, batch_size, trains)
    found = forecast(
        loaded,
        olds,
        shuffled(trains),
        tests,
        target,
        max_epochs,
        steps=(16, 32) if steps is None else () if steps == [0] else tuple(steps),
        max_share=max_share,
        coverage=coverage,
        layer=layer,
        carbon_intensity=carbon_intensity,
        device=device,
        seed=seed,
        progress=sys.stderr.isatty(),
        optimizer=make,
        checks_per_epoch=checks_per_epoch,
    )
    if checkpoint is not None and found.checkpoint is not None:
        found.checkpoint.save(checkpoint)
    if as_json:
        print_json({"model": model} | found.to_dict())
    else:
        _print(model, found)
    if found.interrupted:
        raise KeyboardInterrupt


def find_optimizer(name: str | None) -> Any:
    """The function of that name; None without one."""
    from resque_ext.data.callables import current_folder_first, find_callable

    if name is None:
        return None
    with current_folder_first():
        return find_callable(name, "optimizer")


class _Rows:
    """The rows of batches one by one, as a DataLoader shuffles them."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return self.batches.samples

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        inputs, labels = self.batches.read(slice(i, i + 1))
        return inputs[0], labels[0]


def shuffled(batches: Batches) -> DataLoader[Any]:
    """In another order every epoch: files often have their rows class by class."""
    from torch.utils.data import DataLoader

    return DataLoader(_Rows(batches), batches.batch_size, shuffle=True)  # type: ignore[arg-type]


def _print(model: str, found: Forecast) -> None:
    console = make_console()
    title = f"{escape(model)}: {found.target_accuracy:.1%} of the test data, from "
    table = make_table(f"{title}{found.accuracy:.1%}", "cost", "forecast", "low", "high", "unit")
    reasons: dict[str, list[str]] = {}
    for name, cost in found.costs.items():
        if cost.value is None:
            reasons.setdefault(str(cost.reason), []).append(name)
            table.add_row(name, "unknown", "", "", "")
            continue
        high = "unbounded" if cost.high is None else f"{cost.high:.3g}"
        table.add_row(name, f"{cost.value:.3g}", f"{cost.low:.3g}", high, cost.unit)
    console.print(table)
    console.print(f"stage: {found.stage} ({escape(found.epochs.basis)})")
    if found.verdict is not None:
        console.print(f"verdict: {found.verdict}", style="bold")
    if found.never_probability is not None:
        console.print(f"probability of missing the target: {found.never_probability:.0%}")
    spent = found.probe
    console.print(f"the forecast itself took {spent.steps} steps and {spent.seconds:.3g} s")
    for reason, names in reasons.items():
        console.print(f"{', '.join(names)}: {escape(reason)}", style="dim")
    for text in found.warnings:
        console.print(f"? {escape(text)}", style="dim")
