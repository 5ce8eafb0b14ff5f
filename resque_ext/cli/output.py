"""What the commands print with: tables for people, one JSON object for machines, a progress bar."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, TextIO, cast

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

PLAIN_WIDTH = 100  # of tables that no terminal shows
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]


_silent = False  # whether --quiet was given


class _NoTerminal:
    """stderr as if no terminal showed it, so that nobody draws a progress bar."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def isatty(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """No progress and no warnings on stderr while the block runs."""
    global _silent
    before, _silent = sys.stderr, True
    if before is not None:  # a closed one is None
        sys.stderr = cast(TextIO, _NoTerminal(before))
    try:
        yield
    finally:
        sys.stderr, _silent = before, False


def make_console() -> Console:
    from rich.console import Console  # here and below: --help and --version do not wait for rich

    # rich takes 80 columns where no terminal is; COLUMNS, where it is set, still decides.
    width = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else PLAIN_WIDTH
    # NO_COLOR: no escape sequence at all, bold included.
    colors: Any = None if os.environ.get("NO_COLOR") else "auto"
    return Console(width=width, highlight=False, color_system=colors)


def escape(text: str) -> str:
    """The text for a table or console, where no bracket in it is markup."""
    from rich import markup

    return markup.escape(text)


def make_table(title: str, *columns: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", overflow="fold")
    return table


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[str, float], None]]:
    """A bar on stderr while the block runs; nothing where stderr is no terminal."""
    from tqdm.auto import tqdm

    form, hidden = "{desc} |{bar:40}| {elapsed}", not sys.stderr.isatty()
    with tqdm(total=1.0, leave=False, bar_format=form, disable=hidden) as bar:

        def tell(what: str, share: float) -> None:
            bar.set_description_str(what, refresh=False)
            bar.update(share - bar.n)

        yield tell


def print_warnings(console: Console, name: str, result: Any) -> None:
    """What to know before a result is believed, a line a warning."""
    for line in result.warnings:
        console.print(f"[bold]warning[/]: {name}: {escape(line)}")


def print_json(result: dict[str, Any]) -> None:
    print(json.dumps(strict(result), allow_nan=False))


def print_line(kind: str, message: str) -> None:
    """An error or a warning, on stderr; with --quiet errors alone."""
    if _silent and kind == "warning":
        return
    with contextlib.suppress(OSError):  # of a closed pipe: nobody is there to be told
        print(f"resque-ext: {kind}: {' '.join(message.split())}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def warnings_as_lines() -> Iterator[None]:
    def show(message: Any, *_: Any, **__: Any) -> None:
        print_line("warning", str(message))

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def strict(value: Any) -> Any:
    """The value with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: strict(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show_angle(value: float | None) -> str:
    """Four decimals, or three digits where that is more: small angles are resolved."""
    if value is None:
        return "unknown"
    return f"{value:.4f}" if value == 0 or value >= 0.001 else f"{value:.3g}"


def show_with_error(value: float, error: float | None) -> str:
    if error is None:
        return show_angle(value)
    return (
        f"{show_angle(value)} ± {error:.4f}"
        if error >= 0.0001
        else f"{show_angle(value)} ± {error:.1g}"
    )


def show_time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"
