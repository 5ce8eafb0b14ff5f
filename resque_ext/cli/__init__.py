"""The command line `resque-ext`: tables for people, `--json` for machines.

Exit status: 0; 1 when something does not work (a problem found by doctor, every pair of a
screening failed, a closed pipe); 2 for bad input, with one line on stderr; 130 for Ctrl-C. With
`--json` stdout is one JSON object and nothing else, without NaN. Progress and messages go to
stderr.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import typer

from resque_ext._errors import BackendError
from resque_ext.cli import (
    bench,
    demo,
    dist,
    doctor,
    energy,
    fit,
    forecast,
    predict,
    report,
    score,
    screen,
    task,
)
from resque_ext.cli.app import app
from resque_ext.cli.output import PLAIN_WIDTH, print_line

__all__ = ["COMMANDS", "PLAIN_WIDTH", "main"]

COMMANDS = (
    demo,
    score,
    dist,
    task,
    screen,
    report,
    fit,
    forecast,
    predict,
    energy,
    doctor,
    bench,
)  # each registers its command with the app
USER_ERRORS = (ValueError, TypeError, IndexError, KeyError, OSError, BackendError)
# typer's own usage errors; their base class lives in click or, for newer typers, inside typer.
UsageError = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line (by default that of the process) and returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    traceback = "--traceback" in arguments
    with contextlib.suppress(AttributeError):  # a stream put in its place may lack it
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        status = app(arguments or ["--help"], prog_name="resque-ext", standalone_mode=False)
        sys.stdout.flush()  # a closed pipe shows here, not when the interpreter ends
        return status if isinstance(status, int) else 0
    except UsageError as error:
        return _refuse(error.format_message() + _hint(error))
    except (KeyboardInterrupt, typer.Abort):
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read the output has left, which is no mistake: nothing more to say, or to flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except USER_ERRORS as error:
        if traceback:
            raise
        lines = getattr(error, "lines", None)  # of an error that has found several mistakes
        if lines is not None:
            return [_refuse(line) for line in lines][-1]
        return _refuse(str(error.args[0]) if isinstance(error, KeyError) else str(error))


def _refuse(message: str) -> int:
    print_line("error", message)
    return 2


def _hint(error: Any) -> str:
    context = getattr(error, "ctx", None)
    return f" (see {context.command_path} --help)" if context is not None else ""
