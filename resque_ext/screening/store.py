"""Where a screening keeps its results: one file, one transaction a pair, nothing lost or doubled.

A SQLite file, or JSON lines for a path that ends in ".jsonl". Both hold the same: what screening it
is of, every model's state after its old data, and every pair that is finished.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from resque_ext.data.files import parse_json
from resque_ext.screening.results import PairResult
from resque_ext.storage.atomic import in_place

try:
    import fcntl
except ModuleNotFoundError:  # not a POSIX system: two screenings of one file are not kept apart
    fcntl = None  # type: ignore[assignment]

FORMAT = "resque_ext.Screening/1"

PairKey = tuple[str, str]  # model, candidate
Look = tuple[int, float, float, float] | None  # samples, value, low, high; None: too few to tell


class StoreError(OSError):
    """A store that cannot be opened or written, in one line; it stays as it was."""

    def __init__(self, message: str) -> None:
        super().__init__(message)

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class Header:
    """What a store is of.

    Attributes:
        identity: what has to be the same for a screening to go on: names and descriptions of
            models, old data and candidates, and the options that results depend on.
        environment: where it was begun.
        options: the remaining ones, for whoever reads the results.
    """

    identity: Mapping[str, Any]
    environment: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(_canonical(self.identity).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "identity": self.identity,
            "environment": self.environment,
            "options": self.options,
        }

    @classmethod
    def from_dict(cls, values: Any, path: Path) -> Header:
        found = values.get("format") if isinstance(values, Mapping) else type(values).__name__
        if found != FORMAT:
            raise StoreError(f"store: {path}: expected format {FORMAT!r}, found {found!r}")
        parts = [values.get(name) for name in ("identity", "environment", "options")]
        if not all(isinstance(part, Mapping) for part in parts):
            raise StoreError(
                f"store: {path}: expected identity, environment and options of a screening, found "
                "a header without"
            )
        return cls(*parts)

    def check(self, mine: Header, path: Path) -> None:
        """Raises where this is the header of another screening than `mine`."""
        if self.fingerprint == mine.fingerprint:
            return
        raise StoreError(
            f"store: {path}: expected a screening of the same models, data and options, found "
            f"another one: {'; '.join(_differences(self.identity, mine.identity))}"
        )


@dataclass(frozen=True)
class Finished:
    """A pair that is finished, and how it went, so that a restart can follow the same way.

    Attributes:
        result: what was found.
        looks: what the index was at each round of reading.
        rounds: rounds at whose beginning the pair was open.
    """

    result: PairResult
    looks: tuple[Look, ...] = ()
    rounds: int = 0

    @property
    def key(self) -> PairKey:
        return self.result.model, self.result.candidate

    def way(self) -> str:
        """`looks` and `rounds` as strict JSON."""
        return json.dumps({"rounds": self.rounds, "looks": self.looks}, allow_nan=False)

    @classmethod
    def parse(cls, result: str, way: str, where: str) -> Finished:
        """The pair of two texts; `where` they stand, for the error.

        Raises:
            StoreError: no pair.
        """
        try:
            values = parse_json(way)
            looks = tuple(None if look is None else tuple(look) for look in values["looks"])
            return cls(PairResult.from_json(result), looks, values["rounds"])
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise StoreError(f"store: {where}: expected a pair, found {_said(error)}") from None


class Store(ABC):
    """An open store.

    Attributes:
        path: of the file.
        header: of the screening that it is of.
        earlier_options: those of the run that wrote to it before, {} where there was none.
    """

    path: Path
    header: Header
    earlier_options: Mapping[str, Any] = MappingProxyType({})

    @abstractmethod
    def finished(self) -> dict[PairKey, Finished]:
        """Every pair in it, in the order in which they were added."""

    @abstractmethod
    def add(self, pair: Finished, replace: bool = False) -> None:
        """Adds a pair, or nothing of it.

        Raises:
            StoreError: the disk is full, or the pair is in it already and not to be replaced.
        """

    @abstractmethod
    def old_side(self, model: str) -> tuple[str, bytes] | None:
        """The digest of a model's weights and its state after the old data, where it was kept."""

    @abstractmethod
    def keep_old_side(self, model: str, digest: str, state: bytes) -> None: ...

    @abstractmethod
    def close(self) -> None: ...

    @abstractmethod
    def check(self) -> None:
        """Raises StoreError where the file was deleted, replaced or changed by somebody else."""

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:  # what was written last may have gone since
                self.check()
        finally:
            self.close()


class NoStore(Store):
    """Keeps nothing."""

    def finished(self) -> dict[PairKey, Finished]:
        return {}

    def add(self, pair: Finished, replace: bool = False) -> None:
        pass

    def old_side(self, model: str) -> None:
        return None

    def keep_old_side(self, model: str, digest: str, state: bytes) -> None:
        pass

    def close(self) -> None:
        pass

    def check(self) -> None:
        pass


def open_store(path: str | os.PathLike[str], header: Header, resume: bool = True) -> Store:
    """The store of a screening, made where there is none.

    Args:
        path: ".jsonl" for JSON lines; anything else is a SQLite file.
        header: of the screening.
        resume: False refuses a store that holds results already.

    Raises:
        StoreError: the store of something else, one in use or that cannot be written.
    """
    return _kind(Path(path)).open(Path(path), header, resume)


def read_store(path: str | os.PathLike[str]) -> tuple[Header, list[PairResult]]:
    """What a store holds, also while a screening writes to it; nothing is changed.

    Raises:
        FileNotFoundError: there is none.
        StoreError: no store.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"store: {path}: expected the store of a screening, found none")
    header, pairs = _kind(path).read(path)
    return header, [pair.result for pair in pairs]


def _kind(path: Path) -> Any:
    if path.suffix.lower() == ".jsonl":
        from resque_ext.screening.store_lines import LinesStore

        return LinesStore
    from resque_ext.screening.store_sqlite import SqliteStore

    return SqliteStore


def refuse_results(path: Path, count: int, resume: bool) -> None:
    if count and not resume:
        raise StoreError(
            f"store: {path}: expected no results yet, found {count} pairs: resume goes on with them"
        )


@contextlib.contextmanager
def writable(path: Path, doing: str) -> Iterator[None]:
    """Any failure of the file system as one StoreError."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreError(f"store: {path}: expected {doing}, found {reason}") from None


def check_in_place(path: Path, file: IO[bytes]) -> None:
    """Raises StoreError where the open file is no longer the one at `path`."""
    if not in_place(path, file.fileno()):
        found = "another file in its place" if path.exists() else "it deleted"
        raise StoreError(
            f"store: {path}: expected the file that it was at the beginning, found {found}: what "
            "was finished meanwhile is lost"
        )


def locked(path: Path) -> IO[bytes]:
    """Opens the file and keeps it for this process alone, until it is closed or the process ends.

    Not a POSIX lock: SQLite gives up all of those that the process has on the file whenever it
    gives up its own.
    """
    if path.exists() and not path.is_file():
        found = "a folder" if path.is_dir() else "no regular file"
        raise StoreError(f"store: {path}: expected a file that can be written, found {found}")
    with writable(path, "a file that can be written"):
        file = path.open("r+b" if path.exists() else "x+b")
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever could not begin one takes it away again, maybe this very one.
            mine = in_place(path, file.fileno())
        except OSError:
            mine = False
        if not mine:
            file.close()
            raise StoreError(
                f"store: {path}: expected one that no other process uses, found it locked by "
                "another screening"
            )
    return file


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _differences(theirs: Any, mine: Any, where: str = "") -> list[str]:
    """Where two identities differ, the first few, in words."""
    if isinstance(theirs, Mapping) and isinstance(mine, Mapping):
        found: list[str] = []
        for key in sorted(theirs.keys() | mine.keys()):
            at = f"{where}.{key}" if where else str(key)
            if key not in theirs or key not in mine:
                found.append(f"{at} is in {'this one' if key in mine else 'the store'} alone")
            elif _canonical(theirs[key]) != _canonical(mine[key]):
                found += _differences(theirs[key], mine[key], at)
        return found[:3]
    return [f"{where} was {_canonical(theirs)[:80]}, is {_canonical(mine)[:80]}"]
