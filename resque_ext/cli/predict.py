"""`resque-ext predict`: what retraining will cost, from the indices of a shift."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resque_ext.cli.app import app
from resque_ext.cli.output import Json, escape, make_console, make_table, print_json
from resque_ext.errors import ArgumentError

if TYPE_CHECKING:
    from resque_ext.cost_model.model import CostModel

# typer evaluates annotations from their text, so what is put together stands here.
EXTRAPOLATE_HELP = "Outside the range of the runs: error, clamp, flag."


@app.command("predict")
def _predict(
    model: Annotated[Path, typer.Argument(help="A model that `fit` wrote; - for standard input.")],
    values: Annotated[list[str], typer.Argument(help="The predictors, each as NAME=VALUE.")],
    kind: Annotated[
        str | None, typer.Option(help="Of the shift; intervals are narrower for one of the runs'.")
    ] = None,
    coverage: Annotated[
        float | None, typer.Option(help="Of the intervals; by default the model's.")
    ] = None,
    extrapolate: Annotated[str, typer.Option(help=EXTRAPOLATE_HELP)] = "error",
    samples: Annotated[
        int | None, typer.Option(help="Training samples of an epoch, if not as in the runs.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Name of the device, if not that of the runs.")
    ] = None,
    energy_factor: Annotated[
        float | None, typer.Option(help="Its energy over that of the runs' device.")
    ] = None,
    seconds_factor: Annotated[float | None, typer.Option(help="Its time, likewise.")] = None,
    joules_per_sample: Annotated[
        float | None, typer.Option(help="Measured on it; instead of the factor of energy.")
    ] = None,
    carbon_intensity: Annotated[
        float | None, typer.Option(help="Of the grid, in g CO2e a kWh.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Predict the costs of a new shift, with intervals."""
    from resque_ext.cost_model.model import CostModel

    loaded = CostModel.load(model)
    found = loaded.predict(
        _read(values, loaded.predictors),
        kind=kind,
        coverage=coverage,
        extrapolate=extrapolate,
        samples_per_epoch=samples,
        device=device,
        energy_factor=energy_factor,
        seconds_factor=seconds_factor,
        joules_per_sample=joules_per_sample,
        carbon_intensity=carbon_intensity,
    )
    if as_json:
        costs = {name: prediction.to_dict() for name, prediction in found.items()}
        print_json({"model": str(model), "costs": costs})
        return
    _print(loaded, found)


def _read(texts: list[str], names: tuple[str, ...]) -> dict[str, float]:
    values: dict[str, float] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if name not in names or name in values or not equals:
            raise ArgumentError("values", f"{', '.join(names)}, each once", f"{text!r}")
        try:
            values[name] = float(value)
        except ValueError:
            raise ArgumentError(name, "a number", f"{value!r}") from None
    return values


def _print(model: CostModel, found: dict[str, Any]) -> None:
    console = make_console()
    first = next(iter(found.values()))
    table = make_table(f"Cost of {first.basis}", "measure", "predicted", "low", "high", "unit")
    for name, each in found.items():
        if each.value is None:
            table.add_row(name, "unknown", "", "", "")
            continue
        high = "unbounded" if each.high is None else f"{each.high:.3g}"
        value = f"{'at least ' if each.at_least else ''}{each.value:.3g}"
        table.add_row(name, value, f"{each.low:.3g}", high, each.unit)
    console.print(table)
    console.print(f"Intervals are for a coverage of {first.coverage:g}; {escape(repr(model))}.")
    if first.extrapolated:
        console.print("Extrapolated: outside the range of the runs nothing is guaranteed.")
    why: dict[str, list[str]] = {}
    for name, each in found.items():
        other = None if each.basis == first.basis else f"interval for {each.basis}"
        for text in (each.reason, *each.notes, other):
            if text is not None:
                why.setdefault(text, []).append(name)
    for text, names in why.items():
        console.print(f"{', '.join(names)}: {escape(text)}", style="dim")
