"""The application that every command registers with, and its own options."""

from __future__ import annotations

from typing import Annotated

import typer

from resque_ext import __version__

app = typer.Typer(
    help="What reusing a trained model on new data will cost, before any retraining.",
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,  # a bracket in a help text is a bracket
    pretty_exceptions_enable=False,  # a traceback of a bug is Python's own, without locals
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"resque-ext {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option("--quiet", "-q", help="Results and errors alone: no progress, no warnings."),
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where an error came from.")
    ] = False,
) -> None:
    pass
