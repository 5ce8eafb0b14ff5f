"""`resque-ext screen`: every model of a configuration on every candidate, ranked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from resque_ext.cli.app import app
from resque_ext.cli.output import (
    Json,
    escape,
    make_console,
    make_table,
    print_json,
    print_line,
    show_time,
)

# typer evaluates annotations from their text, so what is put together stands here.
CONFIG_HELP = "TOML file: [models.NAME], [old], [candidates.NAME], [screen], [budget]."
CACHE_HELP = "Folder that keeps what models make of data. Default: screen.cache."
SCHEDULER_HELP = "ray: pairs are read by the workers of a Ray cluster. Default: screen.scheduler."
WORKERS_HELP = "Of ray: pairs that are read at once. Default: screen.workers."
TARGET_HELP = "Accuracy to reach: rank by what retraining until then costs. Default: in the file."
PROBE_HELP = "Pairs whose first steps of retraining are taken. Default: screen.probe, or none."
STORE_HELP = "Keeps every finished pair: SQLite, or JSON lines for .jsonl. Default: screen.store."


@app.command("screen", short_help="Rank every model on every candidate dataset.")
def _screen(
    config: Annotated[Path, typer.Argument(help=CONFIG_HELP)],
    resume: Annotated[
        bool, typer.Option(help="Go on with a store that holds results, or refuse it.")
    ] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be read, and write nothing.")
    ] = False,
    store: Annotated[Path | None, typer.Option(help=STORE_HELP)] = None,
    cache: Annotated[Path | None, typer.Option(help=CACHE_HELP)] = None,
    scheduler: Annotated[str | None, typer.Option(help=SCHEDULER_HELP)] = None,
    workers: Annotated[int | None, typer.Option(help=WORKERS_HELP)] = None,
    target: Annotated[float | None, typer.Option(help=TARGET_HELP)] = None,
    probe: Annotated[int | None, typer.Option(help=PROBE_HELP)] = None,
    as_json: Json = False,
) -> None:
    """Rank every model of a shelf on every candidate dataset: which reuse is cheapest.

    Exit status 1 where not one pair could be read, 0 where some could; the others are counted on
    stderr, and the table has the reason of each.
    """
    from resque_ext.screening.config import read_config
    from resque_ext.screening.screen import make_plan, screen

    found = read_config(config)
    given = {"cache": cache, "scheduler": scheduler, "workers": workers}
    arguments = found.arguments | {k: v for k, v in given.items() if v is not None}
    aim = {"target_accuracy": target, "probe": probe}
    arguments |= {k: v for k, v in aim.items() if v is not None}
    if dry_run:
        from resque_ext.screening.dry_run import dry_run as estimate

        planned = {k: v for k, v in arguments.items() if k not in given}
        _show_estimate(estimate(make_plan(**planned)[0]), as_json)
        return
    try:
        table = screen(**arguments, store=store or found.store, resume=resume)
    except RuntimeError as error:  # of a model, where the first failure is to end it
        if arguments.get("on_error") != "raise":
            raise
        print_line("error", str(error) or type(error).__name__)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        kept = store or found.store
        if kept is not None:
            print_line("stopped", f"finished pairs are in {kept}; the same command resumes there")
        raise
    if as_json:
        print_json(table.to_dict())
    else:
        make_console().print(table)
    _count_failures(table.results)


def _count_failures(results: Any) -> None:
    """One line for all pairs that failed.

    Raises:
        typer.Exit: none is left.
    """
    failed = [r for r in results if r.error is not None]
    if not failed:
        return
    first, none = failed[0], len(failed) == len(results)
    print_line(
        "error" if none else "warning",
        f"{len(failed)} of {len(results)} pairs failed, the first ({first.model}, "
        f"{first.candidate}) with: {first.error}",
    )
    if none:
        raise typer.Exit(1)


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
