"""`resque-ext screen`: every model of a configuration on every candidate, ranked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from resque_ext.cli.app import app
from resque_ext.cli.output import Json, make_console, make_table, print_json, show_time

# typer evaluates annotations from their text, so what is put together stands here.
CONFIG_HELP = "TOML file: [models.NAME], [old], [candidates.NAME], [screen], [budget]."
STORE_HELP = "Keeps every finished pair: SQLite, or JSON lines for .jsonl. Default: screen.store."


@app.command("screen")
def _screen(
    config: Annotated[Path, typer.Argument(help=CONFIG_HELP)],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a store that holds results.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be read, and write nothing.")
    ] = False,
    store: Annotated[Path | None, typer.Option(help=STORE_HELP)] = None,
    as_json: Json = False,
) -> None:
    """Rank every model of a shelf on every candidate dataset: which reuse is cheapest."""
    from resque_ext.screening.config import read_config
    from resque_ext.screening.screen import make_plan, screen

    found = read_config(config)
    if dry_run:
        from resque_ext.screening.dry_run import dry_run as estimate

        _show_estimate(estimate(make_plan(**found.arguments)[0]), as_json)
        return
    table = screen(**found.arguments, store=store or found.store, resume=resume)
    if as_json:
        print_json(table.to_dict())
    else:
        make_console().print(table)


def _show_estimate(found: Any, as_json: bool) -> None:
    if as_json:
        print_json(found.to_dict())
        return
    console = make_console()
    table = make_table("What would be read", "data", "model", "rows", "bytes/row", "rows/s", "time")
    for r in found.readings:
        rate = "unknown" if r.rows_per_second is None else f"{r.rows_per_second:,.0f}"
        table.add_row(
            escape(r.data),
            escape(r.model),
            "unknown" if r.rows is None else f"{r.rows:,}",
            "unknown" if r.row_bytes is None else f"{r.row_bytes:,}",
            rate,
            escape(r.problem) if r.problem else _time(r.seconds),
        )
    console.print(table)
    more = f", and {found.unknown} readings of unknown length" if found.unknown else ""
    console.print(
        f"at most {_time(found.seconds)}{more}; about {found.memory_bytes / 1e6:,.0f} MB of "
        "memory beside what the program takes"
    )


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    return show_time(seconds) if seconds < 120 else f"{seconds / 60:,.1f} min"
