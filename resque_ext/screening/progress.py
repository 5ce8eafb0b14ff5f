"""A screening's progress on stderr: pairs done, samples a second, time left."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm.auto import tqdm

from resque_ext.screening.results import PairResult

FORMAT = "{desc} |{bar:20}| {postfix} [{elapsed}<{remaining}]"


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
    """A bar on stderr, in a notebook a widget.

    Args:
        pairs: how many there are in all.
    """

    def __init__(self, pairs: int) -> None:
        self._bar = tqdm(total=pairs, bar_format=FORMAT, leave=not sys.stderr.isatty())
        self._start = time.perf_counter()
        self._shares: dict[tuple[str, str], float] = {}
        self._samples: dict[tuple[str, str], int] = {}
        self._pairs = 0

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def begin(self, what: str) -> None:
        self._bar.set_description_str(what)

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
        rate = sum(self._samples.values()) / (time.perf_counter() - self._start)
        told = f"{self._pairs}/{self._bar.total} pairs"
        self._bar.set_postfix_str(f"{told}, {rate:,.0f} samples/s" if rate else told, refresh=False)
        self._bar.update(sum(self._shares.values()) - self._bar.n)


def make_progress(wanted: bool | None, pairs: int) -> Progress:
    """A bar where one is wanted; None: where stderr is a terminal or a notebook."""
    seen = sys.stderr.isatty() or type(sys.stderr).__module__.startswith("ipykernel.")
    return ProgressBar(pairs) if wanted or (wanted is None and seen) else Progress()
