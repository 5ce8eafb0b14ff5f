"""`resque-ext report STORE`: a screening as one page, or its numbers as CSV or JSON."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resque_ext.cli.app import app
from resque_ext.errors import ArgumentError

if TYPE_CHECKING:
    from resque_ext.screening.results import PairResult

OUTPUT_HELP = "File to write; its suffix says what: .html (a page), .csv or .json."


@app.command("report", short_help="Show a screening as a page, CSV or JSON.")
def _report(
    store: Annotated[Path, typer.Argument(help="Of a screening: SQLite, or .jsonl.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help=OUTPUT_HELP)] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print a row a pair as CSV.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    rank_by: Annotated[
        str | None,
        typer.Option(help="Index or cost to sort by. Default: the screening's."),
    ] = None,
    made_at: Annotated[
        str | None, typer.Option(help="Time stamp to put in. Default: now, in UTC.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write over a file that is no earlier report.")
    ] = False,
) -> None:
    """Show a screening: one page that needs no network, or every number as CSV or JSON."""
    from resque_ext.report.page import check_output, make_report, write_report

    wanted = [w for w in (output and "-o", as_csv and "--csv", as_json and "--json") if w]
    if len(wanted) != 1:
        raise ArgumentError("output", "one of -o, --csv and --json", " and ".join(wanted) or "none")
    if output is not None:  # before a large store is read
        if output.exists() and store.exists() and output.samefile(store):
            raise ArgumentError("output", "another file than the store", output)
        check_output(output, force)
    pairs, meta, by = _read(store)
    if not pairs:
        raise ArgumentError(f"store: {store}", "at least one finished pair", "none")
    made_at = made_at or datetime.now(timezone.utc).isoformat(timespec="seconds")
    if output is None:
        sys.stdout.write(make_report(pairs, meta, made_at, ".csv" if as_csv else ".json"))
        return
    text = make_report(pairs, meta, made_at, output.suffix, rank_by or by)
    write_report(output, text, force)
    print(f"{output}: {len(pairs):,} pairs, {output.stat().st_size / 1e3:,.0f} kB")


def _read(path: Path) -> tuple[list[PairResult], dict[str, Any], str | None]:
    """The pairs of a store, what it is of, and what its screening ranked by, where known."""
    from resque_ext.screening.store import read_store

    header, pairs = read_store(path)
    meta = {
        "environment": header.environment,
        "options": header.options,
        "screening": header.identity,
    }
    parts = (header.options, header.identity)
    by = next((p["rank_by"] for p in parts if isinstance(p, Mapping) and "rank_by" in p), None)
    known = {name for pair in pairs for name in (*pair.indices, *pair.predicted)}
    return pairs, meta, by if by in known else None
