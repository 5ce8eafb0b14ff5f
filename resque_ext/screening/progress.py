"""A screening's progress on stderr: pairs done, samples a second, time left."""

from __future__ import annotations

import sys
from typing import Any

from resque_ext.screening.results import PairResult


class Progress:
    """Shows nothing; what it is told is what can be shown.

    Use it as a context.
    """

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def begin(self, what: str) -> None:
        """Something new is worked on."""

    def at(self, key: tuple[str, str], pair: Any) -> None:
        """A pair was read so far (`samples` of `feed.rows`)."""

    def done(self, key: tuple[str, str], result: PairResult) -> None:
        """A pair is finished."""


class ProgressBar(Progress):
    """A bar by rich.

    Args:
        pairs: how many there are in all.
    """

    def __init__(self, pairs: int) -> None:
        from rich import progress
        from rich.console import Console

        console = Console(stderr=True)
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.TextColumn("{task.fields[pairs]}/{task.fields[of]} pairs"),
            progress.TextColumn("{task.fields[rate]}"),
            progress.TimeElapsedColumn(),
            progress.TimeRemainingColumn(),
            console=console,
            transient=console.is_terminal,  # a log keeps the last line
        )
        self._task = self._bar.add_task("", total=pairs, pairs=0, of=pairs, rate="")
        self._shares: dict[tuple[str, str], float] = {}
        self._samples: dict[tuple[str, str], int] = {}
        self._pairs = 0

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, what: str) -> None:
        from rich.markup import escape

        self._bar.update(self._task, description=escape(what))

    def at(self, key: tuple[str, str], pair: Any) -> None:
        rows = pair.feed.rows
        self._shares[key] = pair.samples / rows if rows else 0.0
        self._samples[key] = pair.samples
        self._show()

    def done(self, key: tuple[str, str], result: PairResult) -> None:
        self._pairs += 1
        self._shares[key] = 1.0
        self._show()

    def _show(self) -> None:
        elapsed = self._bar.tasks[0].elapsed or 0.0
        rate = f"{sum(self._samples.values()) / elapsed:,.0f} samples/s" if elapsed > 0 else ""
        self._bar.update(
            self._task, completed=sum(self._shares.values()), pairs=self._pairs, rate=rate
        )


def make_progress(wanted: bool | None, pairs: int) -> Progress:
    """A bar where one is wanted; None: where stderr is a terminal."""
    return ProgressBar(pairs) if wanted or (wanted is None and sys.stderr.isatty()) else Progress()
