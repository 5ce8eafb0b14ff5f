"""Source: labelled rows that a screening reads, whatever they lie in."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor

from resque_ext.data.checks import check_choice, check_count
from resque_ext.data.sources.order import BlockOrder
from resque_ext.data.sources.regroup import regroup
from resque_ext.errors import ArgumentError, ArgumentTypeError

Kind = Literal["inputs", "embeddings"]
Access = Literal["rows", "blocks", "shards", "sequence"]
KINDS: tuple[Kind, Kind] = ("inputs", "embeddings")
Batch = tuple[Any, Tensor]


@dataclass(frozen=True)
class Fault:
    """Something of a source that could not be read.

    Attributes:
        source: the file.
        member: of an archive or a table, if it has such.
        message: one line.
    """

    source: str
    member: str | None
    message: str


@runtime_checkable
class Source(Protocol):
    """Labelled rows that can be read again and again.

    Attributes:
        name: how reports call it.
        kind: "inputs", batches for a model, or "embeddings", features that need none.
        rows: how many; None if unknown before all has been read. Where something
            cannot be read and is skipped, fewer come.
        classes: names of the classes, where the data have names for them.
        access: what a seeded order shuffles; an early stop samples these. "rows": single rows,
            every order equally likely. "blocks": blocks of neighbouring rows, usually `block_rows`
            long. "shards": shards, then rows within a buffer of `block_rows`. "sequence": nothing;
            a seeded order is refused.
        block_rows: rows of a block; 1 where single rows are read.
    """

    name: str
    kind: Kind
    rows: int | None
    classes: tuple[str, ...] | None
    access: Access
    block_rows: int

    def fingerprint(self) -> dict[str, Any] | None:
        """What tells these data from others without reading them, for JSON.

        Files by path, size and time of change, and the options; None where nothing tells, and
        nothing that is kept of the data can be used again.
        """

    def batches(
        self,
        batch_size: int,
        *,
        start: int = 0,
        stop: int | None = None,
        order: BlockOrder | None = None,
        rank: int = 0,
        world_size: int = 1,
        on_fault: str = "raise",
        faults: list[Fault] | None = None,
    ) -> Iterator[Batch]:
        """Batches (inputs or features, labels) of `batch_size` rows, fewer in the last alone.

        Every row comes exactly once: nothing is padded, repeated or dropped, however many share
        the reading. A share may be empty.

        Args:
            batch_size: rows of a batch.
            start, stop: the part of the order that is read: row numbers where there is no order.
                So the first thousand rows of a seeded order are a sample, and what follows 1,000
                is the rest.
            order: how the rows are mixed; None: as they lie.
            rank, world_size: this reader's share, 0 <= rank < world_size. The shares of all ranks
                are disjoint and together are rows start..stop; their sizes differ by one row at
                most (by more where `access` is "sequence": those of whole batches).
            on_fault: "raise": what cannot be read is a :class:`SourceError`. "skip": it is left
                out and listed in `faults`.
            faults: the list to add to; needed by "skip".

        Raises:
            TypeError, ValueError: naming the argument; at once, before anything is read.
        """


class SourceError(ValueError):
    """Something of a source that could not be read, where that is fatal.

    Attributes:
        fault: what and where.
    """

    def __init__(self, fault: Fault) -> None:
        where = fault.source if fault.member is None else f"{fault.source}: {fault.member}"
        super().__init__(f"{where}: {fault.message}")
        self.fault = fault


@dataclass(frozen=True)
class Reading:
    """What was asked of `batches`, checked."""

    batch_size: int
    start: int
    stop: int | None
    order: BlockOrder | None
    rank: int
    world_size: int
    faults: list[Fault] | None  # None: a fault is fatal

    def fault(self, source: Any, member: str | None, message: Any) -> None:
        """Lists what could not be read, or raises SourceError."""
        line = " ".join(str(message).split()) or type(message).__name__
        found = Fault(str(source), member, line)
        if self.faults is None:
            raise SourceError(found)
        self.faults.append(found)

    def share(self, rows: int) -> tuple[int, int]:
        """This rank's part of the order of `rows` rows: all ranks' parts follow each other."""
        stop = rows if self.stop is None else min(self.stop, rows)
        start = min(self.start, stop)
        first, last = ((stop - start) * r // self.world_size for r in (self.rank, self.rank + 1))
        return start + first, start + last


class SourceBase(ABC):
    """What all sources share: the checks of `batches`, and batches of the size asked for."""

    name: str
    kind: Kind
    rows: int | None
    classes: tuple[str, ...] | None = None
    access: Access
    block_rows: int = 1

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, kind={self.kind!r}, rows={self.rows})"

    @abstractmethod
    def fingerprint(self) -> dict[str, Any] | None:
        """See :class:`Source`."""

    @abstractmethod
    def _pieces(self, reading: Reading) -> Iterator[Batch]:
        """The rows that were asked for, in order, in pieces of any length."""

    def batches(
        self,
        batch_size: int,
        *,
        start: int = 0,
        stop: int | None = None,
        order: BlockOrder | None = None,
        rank: int = 0,
        world_size: int = 1,
        on_fault: str = "raise",
        faults: list[Fault] | None = None,
    ) -> Iterator[Batch]:
        """See :class:`Source`."""
        world_size = check_count(world_size, "world_size")
        rank = check_count(rank, "rank", least=0)
        if rank >= world_size:
            raise ArgumentError("rank", f"0 <= rank < world_size = {world_size}", rank)
        if order is not None and not isinstance(order, BlockOrder):
            raise ArgumentTypeError("order", "a BlockOrder or None", f"{order!r}")
        check_choice(on_fault, ("raise", "skip"), "on_fault")
        if on_fault == "skip" and not isinstance(faults, list):
            raise ArgumentTypeError("faults", "a list that names what is skipped", f"{faults!r}")
        reading = Reading(
            check_count(batch_size, "batch_size"),
            check_position(start, "start"),
            None if stop is None else check_position(stop, "stop"),
            order,
            rank,
            world_size,
            faults if on_fault == "skip" else None,
        )
        self._check(reading)
        return regroup(self._pieces(reading), reading.batch_size)

    def _check(self, reading: Reading) -> None:
        """Raises where this kind cannot read in the way that was asked for."""
        if reading.order is not None and self.access == "sequence":
            raise ArgumentError(
                "order", f"None for {self.name}, which is read in its own order", reading.order
            )


def check_position(value: Any, name: str) -> int:
    """A row's place: an integer of at least 0, of any size."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ArgumentTypeError(name, "an integer", f"{value!r}")
    if (value := value.__index__()) < 0:
        raise ArgumentError(name, "at least 0", value)
    return value


def check_kind(kind: Any) -> Kind:
    check_choice(kind, KINDS, "kind")
    return kind


def stamp(path: str | os.PathLike[str]) -> list[Any]:
    """A file's part of a fingerprint: absolute path, bytes, time of change."""
    path = Path(path).absolute()
    found = path.stat()
    return [str(path), found.st_size, found.st_mtime_ns]


def file_fingerprint(
    form: str, paths: Iterable[str | os.PathLike[str]], options: dict[str, Any]
) -> dict[str, Any]:
    """The fingerprint of data in files, whose present state is looked at."""
    return {"format": form, "files": [stamp(path) for path in paths], "options": options}
