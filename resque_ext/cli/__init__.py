"""The command line `resque-ext`: tables for people, `--json` for machines.

Exit status: 0; 1 when something does not work (a problem found by doctor, every pair of a
screening failed, a closed pipe); 2 for bad input, with one line on stderr; 130 for Ctrl-C. With
`--json` stdout is one JSON object and nothing else, without NaN. Progress and messages go to
stderr.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

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
    study,
    task,
)
from resque_ext.cli.app import app
from resque_ext.cli.examples import add_examples
from resque_ext.cli.output import PLAIN_WIDTH, print_line, quietly, warnings_as_lines

__all__ = ["COMMANDS", "PLAIN_WIDTH", "main"]

COMMANDS = (
    demo,
    score,
    dist,
    task,
    screen,
    report,
    study,
    fit,
    forecast,
    predict,
    energy,
    doctor,
    bench,
)  # each registers its command with the app
add_examples(app)
ANYWHERE = {"--traceback", "--quiet", "-q"}  # options of the program, wherever they stand
USER_ERRORS = (ValueError, TypeError, IndexError, KeyError, OSError, RuntimeError)
_PACKAGE = str(Path(__file__).parents[1]) + os.sep
# typer's own usage errors; their base class lives in click or, for newer typers, inside typer.
UsageError = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line (by default that of the process) and returns its exit status."""
    arguments = _program_options_first(sys.argv[1:] if arguments is None else list(arguments))
    own = set(itertools.takewhile(ANYWHERE.__contains__, arguments))
    with quietly() if own & {"--quiet", "-q"} else contextlib.nullcontext():
        return _run(arguments, traceback="--traceback" in own)


def _program_options_first(arguments: list[str]) -> list[str]:
    """So that they may follow the command, too; what follows -- is another program's."""
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    first = [word for word in own if word in ANYWHERE]
    return first + [word for word in own if word not in ANYWHERE] + arguments[len(own) :]


def _run(arguments: list[str], traceback: bool) -> int:
    if not _open_streams():
        print_line("error", "stdout: expected it open for the results, found it closed")
        return 1
    _check_columns()
    with contextlib.suppress(AttributeError):  # a stream put in its place may lack it
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        with warnings_as_lines():
            status = app(arguments or ["--help"], prog_name="resque-ext", standalone_mode=False)
        sys.stdout.flush()  # a closed pipe shows here, not when the interpreter ends
        return status if isinstance(status, int) else 0
    except UsageError as error:
        return _refuse(error.format_message() + _hint(error))
    except (KeyboardInterrupt, typer.Abort):
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:
        _discard_output()  # whoever read it has left, which is no mistake: nothing more to say
        return 1
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # as above, ended by rich or typer
            _discard_output()
            return 1
        # The program's own ends return here; this is of a function or a module of the caller's.
        if traceback:
            raise
        return _refuse(
            f"expected a result, found that a function it called ended the program "
            f"(SystemExit: {error.code})"
        )
    except USER_ERRORS as error:
        if traceback:
            raise
        if isinstance(error, OSError):  # maybe of the output, which is not to be tried again
            try:
                sys.stdout.flush()
            except OSError:
                _discard_output()
        lines = getattr(error, "lines", None)  # of an error that has found several mistakes
        if lines is not None:
            return [_refuse(line) for line in lines][-1]
        return _refuse(_message(error))


def _open_streams() -> bool:
    """Puts the null device where a standard stream is closed; whether stdout was open.

    Else the next file that is opened would get its number, and messages would land in it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    is_open = sys.stdout is not None
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115
    return is_open


def _check_columns() -> None:
    """Forgets a width of 0 or none at all, in which nothing could be shown."""
    columns = os.environ.get("COLUMNS", "")
    if not (columns.isascii() and columns.isdecimal() and int(columns) > 0):
        os.environ.pop("COLUMNS", None)


def _discard_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _message(error: BaseException) -> str:
    """What an error says; where it came from too, if that is not this package."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    if frame is None or isinstance(error, OSError):
        return text
    file = frame.tb_frame.f_code.co_filename
    if file.startswith(_PACKAGE):
        return text
    return f"{type(error).__name__}: {text} ({file}, line {frame.tb_lineno})"


def _refuse(message: str) -> int:
    print_line("error", message)
    return 2


def _hint(error: Any) -> str:
    context = getattr(error, "ctx", None)
    return f" (see {context.command_path} --help)" if context is not None else ""
