"""`resque-ext energy -- COMMAND`: what any command uses."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from resque_ext.cli.app import app
from resque_ext.cli.output import escape, make_table


@app.command("energy", short_help="Run a command and meter its energy.")
def _energy(
    command: Annotated[list[str], typer.Argument(help="A program and its arguments, after --.")],
    country: Annotated[
        str | None, typer.Option(help="ISO code of three letters, for the grid's carbon intensity.")
    ] = None,
    carbon_intensity: Annotated[
        float | None, typer.Option(help="Of the grid, in g CO2e a kWh, instead of a country's.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on stderr: stdout is the command's.")
    ] = False,
) -> None:
    """Run a command and meter its energy; its output and exit status pass through."""
    from resque_ext.energy import run_command  # which loads what meters there are

    options = {"country": country, "carbon_intensity": carbon_intensity}
    result = run_command(command, **{k: v for k, v in options.items() if v is not None})
    if as_json:
        print(json.dumps(result), file=sys.stderr)
    else:
        _print(result)
    if result["exit_status"]:
        raise typer.Exit(result["exit_status"])


def _print(result: dict[str, Any]) -> None:
    from rich.console import Console

    table = make_table(escape(f"Energy of {result['command'][0]}"), "", "value", "source")
    table.add_row("time", f"{result['seconds']:.2f} s", "")
    for key, unit in (
        ("joules", "J"),
        ("joules_estimated", "J"),
        ("kg_co2", "kg CO2e"),
        ("kg_co2_estimated", "kg CO2e"),
    ):
        figure = result[key]
        value = figure["value"]
        shown = "unknown" if value is None else f"{value:.4g} {unit}"
        table.add_row(key, shown, escape(figure["source"] or figure["reason"] or ""))
    Console(stderr=True, highlight=False).print(table)
