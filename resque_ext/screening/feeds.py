"""What a screening reads: batches of inputs or embeddings with labels, from the beginning each time.

Candidates are given in many forms; a feed is the one form that the rest of the screening knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from resque_ext._inputs import describe
from resque_ext.observe import copied
from resque_ext.screening.pair import Fault
from resque_ext.shifts import Shift

INPUTS, EMBEDDINGS = "inputs", "embeddings"
Batch = tuple[Any, Tensor]


@dataclass(frozen=True)
class Candidate:
    """A candidate, where its data alone do not say all.

    Attributes:
        data: what `screen` takes; None is the model's old data, under `shift`.
        shift: a function of a batch of inputs, which makes the new side; its `reset()`, where it
            has one, is called before each reading.
        paired: the rows are the old data's, in their order, after a shift.
        kind: "inputs" or "embeddings", where `data` does not say which: by default batches are
            inputs where there is a model, and embeddings where there is none.
    """

    data: Any = None
    shift: Callable[[Any], Any] | None = None
    paired: bool = False
    kind: str | None = None

    def __post_init__(self) -> None:
        if self.data is None and self.shift is None:
            raise ValueError("candidate: expected data or a shift of the old data, found neither")
        if self.shift is not None and not callable(self.shift):
            raise TypeError(
                f"candidate: expected the shift to be a function, found {describe(self.shift)}"
            )
        if self.kind not in (None, INPUTS, EMBEDDINGS):
            raise ValueError(
                f"candidate: expected kind {INPUTS!r} or {EMBEDDINGS!r}, found {self.kind!r}"
            )


class Feed(Protocol):
    """Batches with labels, again and again.

    Attributes:
        kind: "inputs" of a model or "embeddings".
        available: rows, None where that is not known.
        faults: of the last reading.
    """

    kind: str
    available: int | None
    faults: tuple[Fault, ...]

    def batches(self, batch_size: int, seed: int | None) -> Iterator[Batch]:
        """From the beginning; in an order drawn by the seed, where one is given and can be."""
        ...


class Iterated:
    """An iterable that begins anew each time: a list of batches, a DataLoader.

    Its batches come in its own order and sizes.
    """

    def __init__(self, data: Iterable[Any], kind: str) -> None:
        self.data, self.kind, self.faults = data, kind, ()
        self.available = _rows(data)

    def batches(self, batch_size: int, seed: int | None) -> Iterator[Batch]:
        return iter(self.data)


class Shifted:
    """Another feed's inputs after a shift."""

    def __init__(self, feed: Feed, shift: Callable[[Any], Any], batch_size: int) -> None:
        if feed.kind != INPUTS:
            raise ValueError(
                f"candidate: expected inputs, which a shift is a function of, found {feed.kind}"
            )
        self.feed, self.shift, self.batch_size = feed, shift, batch_size
        self.kind = INPUTS

    @property
    def available(self) -> int | None:
        return self.feed.available

    @property
    def faults(self) -> tuple[Fault, ...]:
        return self.feed.faults

    def batches(self, batch_size: int, seed: int | None) -> Iterator[Batch]:
        reset = getattr(self.shift, "reset", None)
        if callable(reset):
            reset()
        # Always of one size, because what a shift draws depends on its batches.
        for inputs, labels in self.feed.batches(self.batch_size, seed):
            with torch.no_grad():
                yield self.shift(copied(inputs)), labels


class Blocks:
    """A feed's batches in blocks of rows, which begin where the last one ended.

    Attributes:
        rows: read so far.
        ended: there are no more.
    """

    def __init__(self, batches: Iterator[Any]) -> None:
        self._batches, self._rest = batches, None
        self.rows, self.ended = 0, False

    def until(self, rows: int, batch_size: int) -> Iterator[Any]:
        """Batches of at most `batch_size` rows up to the row of that number."""
        while self.rows < rows:
            batch = self._rest if self._rest is not None else next(self._batches, None)
            self._rest = None
            if batch is None:
                self.ended = True
                return
            count = _length(batch)
            if count is None:  # no pair: whoever reads it says so
                yield batch
                return
            size = min(count, rows - self.rows, batch_size)
            if count > size:
                batch, self._rest = _cut(batch, 0, size), _cut(batch, size, count)
            self.rows += size
            if size:
                yield batch

    def close(self) -> None:
        close = getattr(self._batches, "close", None)
        if callable(close):
            close()


def open_feed(given: Any, name: str, kind: str) -> Feed:
    """Whatever `screen` takes as data, ready to be read; `kind` where it does not say itself.

    Raises:
        TypeError: a one-shot iterator, or nothing of the kind.
    """
    if isinstance(given, (Iterated, Shifted)):
        return given
    if isinstance(given, Iterator):
        raise TypeError(
            f"{name}: expected data that can be read twice (a list, a DataLoader, a file), found "
            f"the one-shot iterator {type(given).__name__}"
        )
    if isinstance(given, Iterable) and not isinstance(given, (str, Mapping, Tensor)):
        return Iterated(given, kind)
    raise TypeError(f"{name}: expected a source or batches, found {describe(given)}")


def as_candidate(given: Any) -> Candidate:
    if isinstance(given, Candidate):
        return given
    return Candidate(shift=given) if isinstance(given, Shift) else Candidate(given)


def _rows(data: Any) -> int | None:
    """Rows of a list of batches, or of what says how many samples it has."""
    samples = getattr(data, "samples", None)
    if isinstance(samples, int):
        return samples
    if isinstance(data, (list, tuple)):
        counts = [_length(batch) for batch in data]
        return None if None in counts else sum(counts)
    dataset = getattr(data, "dataset", None)
    if dataset is not None and not getattr(data, "drop_last", False) and hasattr(dataset, "__len__"):
        return len(dataset)
    return None


def _length(batch: Any) -> int | None:
    pair = isinstance(batch, (tuple, list)) and len(batch) == 2
    return len(batch[1]) if pair and hasattr(batch[1], "__len__") else None


def _cut(value: Any, start: int, stop: int) -> Any:
    """Rows of every tensor or array inside lists, tuples and mappings."""
    if isinstance(value, Mapping):
        return {key: _cut(entry, start, stop) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        parts = [_cut(entry, start, stop) for entry in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value[start:stop] if getattr(value, "ndim", 0) else value
