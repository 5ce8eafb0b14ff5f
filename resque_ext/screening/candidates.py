"""What a screening reads: a source of rows, for candidates under a shift, block after block."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resque_ext.data.checks import describe
from resque_ext.data.prefetch import prefetch
from resque_ext.data.sources import BlockOrder, Source, as_source
from resque_ext.data.sources.base import KINDS, Fault
from resque_ext.data.sources.regroup import cut
from resque_ext.errors import ArgumentError, ArgumentTypeError, InputError, within
from resque_ext.model.hooks import copied
from resque_ext.shifts import Shift

INPUTS, EMBEDDINGS = KINDS
ALL = 2**62  # a place behind all rows
Batch = tuple[Any, Tensor]


@dataclass(frozen=True)
class Candidate:
    """A candidate, where its data alone do not say all.

    Attributes:
        data: what `screen` takes; None is the model's old data, under `shift`.
        shift: a function of a batch of inputs, which makes the new side; its `reset()`, where it
            has one, is called before each reading.
        paired: the rows are the old data's, in their order, after a shift.
        kind: "inputs" or "embeddings", where `data` does not say: by default batches are inputs
            where there is a model, and embeddings where there is none.
    """

    data: Any = None
    shift: Callable[[Any], Any] | None = None
    paired: bool = False
    kind: str | None = None

    def __post_init__(self) -> None:
        if self.data is None and self.shift is None:
            raise ArgumentError("candidate", "data or a shift of the old data", "neither")
        if self.shift is not None and not callable(self.shift):
            raise ArgumentTypeError("candidate", "the shift to be a function", describe(self.shift))
        if self.kind not in (None, *KINDS):
            raise ArgumentError("candidate", f"a kind among {KINDS}", f"{self.kind!r}")


def as_candidate(given: Any) -> Candidate:
    if isinstance(given, Candidate):
        return given
    return Candidate(shift=given) if isinstance(given, Shift) else Candidate(given)


@dataclass(frozen=True)
class Feed:
    """A source, and what is done to its inputs before a model sees them."""

    source: Source
    on_fault: str = "raise"
    shift: Callable[[Any], Any] | None = None

    @property
    def kind(self) -> str:
        return self.source.kind

    @property
    def rows(self) -> int | None:
        return self.source.rows

    def identity(self) -> dict[str, Any]:
        """What a restart recognises the data by; where nothing tells them, what they look like."""
        found = self.source.fingerprint() or {"rows": self.rows}
        return {"kind": self.kind, "source": found} | (
            {} if self.shift is None else {"shift": repr(self.shift)}
        )

    def fingerprint(self) -> dict[str, Any] | None:
        """What tells the inputs from all others, for JSON; None where nothing does: of arrays and
        iterables without a fingerprint, and under a shift of the caller's own."""
        found, shift = self.source.fingerprint(), _shift_fingerprint(self.shift)
        return None if found is None or shift is None else {"source": found} | shift

    def reading(
        self, batch_size: int, seed: int | None = None, device: torch.device | str = "cpu"
    ) -> Reading:
        return Reading(self, batch_size, seed, device)


def _shift_fingerprint(shift: Any) -> dict[str, Any] | None:
    if shift is None:
        return {}
    plain = type(shift) is Shift and all(isinstance(v, str) for v in shift.options.values())
    return {"shift": repr(shift)} if plain else None


class Reading:
    """One reading of a feed, which goes on where it ended.

    Args:
        feed: what is read.
        batch_size: rows that the source gives at once.
        seed: mixes the rows, as far as the source can; None: as they lie.
        device: where the batches are wanted.

    Attributes:
        place: rows of the order that were asked for so far.
        samples: rows that came; fewer where some could not be read.
        ended: there are no more.
        faults: what could not be read.
    """

    def __init__(
        self, feed: Feed, batch_size: int, seed: int | None, device: torch.device | str
    ) -> None:
        self.feed, self.batch_size, self.device = feed, batch_size, device
        self.place = self.samples = 0
        self._first = 0  # row of the last batch, among those that came
        self.ended = False
        self.faults: list[Fault] = []
        source = feed.source
        mixes = seed is not None and source.access != "sequence"
        self._order = BlockOrder(seed) if mixes else None
        # Single rows are found again without any file held open in between; what is read one
        # behind the other goes on.
        self._again = source.access in ("rows", "blocks") and source.rows is not None
        self._open: Iterator[Batch] | None = None
        self._going: Iterator[Batch] | None = None
        self._rest: Batch | None = None
        reset = getattr(feed.shift, "reset", None)
        if callable(reset):
            reset()

    def until(self, place: int, at_most: int) -> Iterator[Batch]:
        """Batches of at most `at_most` rows, up to that place of the order."""
        batches = self._from_here(place) if self._again else self._going_on(place)
        for inputs, labels in batches:
            before = self.samples
            self.samples += len(labels)
            if self.feed.shift is not None:
                # On batches of one size, because what a shift draws depends on its batches.
                with torch.no_grad():
                    inputs = self.feed.shift(copied(inputs))
            for first in range(0, len(labels), at_most):
                last = min(first + at_most, len(labels))
                whole = last - first == len(labels)
                self._first = before + first
                yield (
                    (inputs, labels) if whole else (cut(inputs, first, last), labels[first:last])
                )

    def stands_at(self, first: int) -> None:
        """The last batch begins with the row that came as this one."""
        self._first = first

    @property
    def can_pass_over(self) -> bool:
        """Whether `until` goes on behind rows that were not read: not where a shift draws."""
        return self._again and self.feed.shift is None

    def pass_over(self, place: int, samples: int, faults: Sequence[Fault], ended: bool) -> None:
        """As after reading up to that place, where `samples` came, without reading."""
        self.place, self.samples, self.ended = place, self.samples + samples, ended
        self.faults.extend(faults)

    def close(self) -> None:
        """Ends the thread that reads ahead, too, also in the middle of a batch's work."""
        if hasattr(self._open, "close"):
            self._open.close()
        self._going = self._open = None
        self.ended = True

    @contextlib.contextmanager
    def naming_rows(self) -> Iterator[None]:
        """An error about a row of the last batch names it as the source counts its rows."""
        try:
            yield
        except InputError as error:
            if error.row is None:
                raise
            raise error.but(row=self._row(self._first + error.row)) from error

    def _row(self, place: int) -> str:
        row_at = getattr(self.feed.source, "row_at", None)
        if self.faults or (self._order is not None and row_at is None):
            return f"{place} in reading order"
        return str(place if self._order is None else row_at(place, self._order))

    def _batches(self, start: int, stop: int | None) -> Iterator[Batch]:
        batches = self.feed.source.batches(
            self.batch_size,
            start=start,
            stop=stop,
            order=self._order,
            on_fault=self.feed.on_fault,
            faults=self.faults,
        )
        # Many readings stand open in rounds, where a thread for each would be too much; a short
        # block is not worth one.
        long = self._order is None if stop is None else stop - start > 2 * self.batch_size
        self._open = prefetch(batches, self.device) if long else batches
        return self._open

    def _from_here(self, place: int) -> Iterator[Batch]:
        rows = self.feed.source.rows
        assert rows is not None
        start, self.place = self.place, min(place, rows)
        self.ended = self.place == rows
        return self._batches(start, self.place)

    def _going_on(self, place: int) -> Iterator[Batch]:
        if self._going is None:
            self._going = self._batches(0, None)
        while self.place < place and not self.ended:
            batch = self._rest if self._rest is not None else next(self._going, None)
            self._rest = None
            if batch is None:
                self.close()
                return
            inputs, labels = batch
            size = min(len(labels), place - self.place)
            if size < len(labels):
                self._rest = cut(inputs, size, len(labels)), labels[size:]
                inputs, labels = cut(inputs, 0, size), labels[:size]
            self.place += size
            yield inputs, labels


def open_feed(given: Any, name: str, kind: str, on_fault: str = "raise") -> Feed:
    """Whatever `screen` takes as data, ready to be read; `kind` where that does not say itself.

    Raises:
        TypeError, ValueError, FileNotFoundError: nothing of the kind, in one line.
    """
    try:
        batches = not isinstance(given, Source) and not isinstance(given, (str, dict))
        return Feed(as_source(given, name, **({"kind": kind} if batches else {})), on_fault)
    except (TypeError, ValueError, OSError) as error:
        raise within(name, error) from None
