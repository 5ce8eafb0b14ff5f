"""Where a screening keeps its results: a journal, one transaction a pair, nothing lost or doubled.

It holds what screening it is of, every model's state after its old data, and every pair that is
finished.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from resque_ext.screening.results import PairResult
from resque_ext.storage.journal import ABSENT, Entry, Journal, Row, Table, differences
from resque_ext.storage.json_text import parse_json

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
    def from_dict(cls, values: Mapping[str, Any], path: Path) -> Header:
        parts = [values.get(name) for name in ("identity", "environment", "options")]
        if not all(isinstance(part, Mapping) for part in parts):
            expected = "identity, environment and options of a screening"
            raise Store.error(path, expected, "a header without")
        return cls(*parts)

    def check(self, mine: Header, path: Path) -> None:
        """Raises where this is the header of another screening than `mine`."""
        if self.fingerprint == mine.fingerprint:
            return
        plain = parse_json(_canonical(mine.identity))  # tuples are lists in the store
        found = [_difference(*each) for each in differences(self.identity, plain)]
        raise Store.error(
            path,
            "a screening of the same models, data and options",
            f"another one: {'; '.join(found[:3]) or 'the same numbers of other types'}",
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

    def row(self) -> Row:
        """For the table of pairs."""
        r = self.result
        first = next(iter(r.indices.values()), None)
        index = {n: getattr(first, n, None) for n in ("value", "std_error", "low", "high")}
        own = {n: getattr(r, n) for n in _OWN}
        way = {"rounds": self.rounds, "looks": self.looks}
        texts = {"result": r.to_json(), "way": json.dumps(way, allow_nan=False)}
        return own | index | {"faults": len(r.faults)} | texts

    @classmethod
    def of(cls, entry: Entry, path: Path) -> Finished:
        """The pair of an entry.

        Raises:
            StoreError: no pair.
        """
        try:
            way = parse_json(entry.row["way"])
            looks = tuple(None if look is None else tuple(look) for look in way["looks"])
            return cls(PairResult.from_json(entry.row["result"]), looks, way["rounds"])
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            found = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise Store.error(path, "a pair", found, entry.place) from None


def _pair_line(row: Row) -> dict[str, Any]:
    return {"pair": parse_json(row["result"]), "way": parse_json(row["way"])}


def _pair_of_line(values: dict[str, Any]) -> Row:
    return {"result": json.dumps(values["pair"]), "way": json.dumps(values.get("way"))}


def _old_side_line(row: Row) -> dict[str, Any]:
    return {"old_side": row | {"state": base64.b64encode(row["state"]).decode()}}


def _old_side_of_line(values: dict[str, Any]) -> Row:
    old = values["old_side"]
    names = ("model", "digest", "state")
    if not isinstance(old, dict) or not all(isinstance(old.get(name), str) for name in names):
        raise ValueError("another form")
    return old | {"state": base64.b64decode(old["state"], validate=True)}


_OWN = ("model", "candidate", "new_samples", "available", "seconds", "stopped", "error")
TABLES = (
    Table(
        "pairs",
        "pair",
        "model TEXT NOT NULL, candidate TEXT NOT NULL, value REAL, std_error REAL, low REAL, "
        "high REAL, new_samples INTEGER NOT NULL, available INTEGER, seconds REAL NOT NULL, "
        "stopped TEXT NOT NULL, faults INTEGER NOT NULL, error TEXT, result TEXT NOT NULL, "
        "way TEXT NOT NULL",
        unique=("model", "candidate"),
        content=("result", "way"),
        marker="pair",
        to_line=_pair_line,
        from_line=_pair_of_line,
        key=lambda row: tuple(json.loads(row["result"])[name] for name in ("model", "candidate")),
    ),
    Table(
        "old_sides",
        "old side",
        "model TEXT NOT NULL, digest TEXT NOT NULL, state BLOB NOT NULL",
        unique=("model",),
        content=("model", "digest", "state"),
        marker="old_side",
        to_line=_old_side_line,
        from_line=_old_side_of_line,
        key=lambda row: row["model"],
    ),
)


class Store(Journal):
    """An open store; see `open_store`. A context manager.

    Attributes:
        path: of the file.
        earlier_options: those of the run that wrote to it before, {} where there was none.
    """

    FORMAT = FORMAT
    CALLED = "the store of a screening"
    ALONE = "one that no other process uses"
    WORK = "screening"
    DEFAULT = ".sqlite"
    TABLES = TABLES
    AMENDED = ("options",)

    path: Path
    earlier_options: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, path: Path, header: Header, resume: bool) -> None:
        self.path, self._header, self._resume = path, header, resume
        self._pairs: dict[PairKey, Finished] = {}
        self.open(path, header.to_dict())

    @staticmethod
    def error(path: Path, expected: str, found: str, place: Any = None, cause: Any = None) -> Any:
        where = str(path)
        if place is not None:
            unit, number = place
            where += f":{number}" if unit == "line" else f": {unit} {number}"
        return StoreError(f"store: {where}: expected {expected}, found {found}")

    def accept(self) -> None:
        theirs = Header.from_dict(self.form.header, self.path)
        theirs.check(self._header, self.path)
        self.earlier_options = theirs.options
        self._pairs = _pairs(self.form.rows("pairs"), self.path)
        if self._pairs and not self._resume:
            found = f"{len(self._pairs)} pairs; give resume=True (--resume) or another store"
            raise self.error(self.path, "no results yet", found)

    def finished(self) -> dict[PairKey, Finished]:
        """Every pair in it, in the order in which they were added."""
        return dict(self._pairs)

    def add(self, pair: Finished, replace: bool = False) -> None:
        """Adds a pair, or nothing of it.

        Raises:
            StoreError: the disk is full, or the pair is in it already and not to be replaced.
        """
        if pair.key in self._pairs and not replace:
            raise self.error(self.path, f"the pair {pair.key} once", "it")
        self.form.put("pairs", pair.row(), replace)
        self._pairs[pair.key] = pair

    def old_side(self, model: str) -> tuple[str, bytes] | None:
        """The digest of a model's weights and its state after the old data, where it was kept."""
        for entry in self.form.rows("old_sides", model=model):
            return entry.row["digest"], entry.row["state"]
        return None

    def keep_old_side(self, model: str, digest: str, state: bytes) -> None:
        self.form.put("old_sides", {"model": model, "digest": digest, "state": state})


class NoStore(Store):
    """Keeps nothing."""

    def __init__(self) -> None:
        self._pairs = {}

    def add(self, pair: Finished, replace: bool = False) -> None:
        pass

    def old_side(self, model: str) -> None:
        return None

    def keep_old_side(self, model: str, digest: str, state: bytes) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass


def open_store(path: str | os.PathLike[str], header: Header, resume: bool = True) -> Store:
    """The store of a screening, made where there is none.

    Args:
        path: a file that exists keeps its form; a new one is JSON lines for ".jsonl", else SQLite.
        header: of the screening.
        resume: False refuses a store that holds results already.

    Raises:
        StoreError: the store of something else, one in use or that cannot be written.
    """
    return Store(Path(path), header, resume)


def read_store(path: str | os.PathLike[str]) -> tuple[Header, list[PairResult]]:
    """What a store holds, also while a screening writes to it; nothing is changed.

    Raises:
        FileNotFoundError: there is none.
        StoreError: no store.
    """
    path = _existing(path)
    header, found = Store.read(path, "pairs")
    pairs = _pairs(found["pairs"], path)
    return Header.from_dict(header, path), [pair.result for pair in pairs.values()]


def export_store(path: str | os.PathLike[str], output: str | os.PathLike[str]) -> None:
    """Writes a store as JSON lines (".jsonl"), with which a screening can go on, or its pairs as
    CSV (".csv"), also while a screening writes to it.

    Raises:
        FileNotFoundError: there is none.
        ValueError: another suffix.
        StoreError: no store.
    """
    Store.export(_existing(path), Path(output))


def _existing(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"store: {path}: expected the store of a screening, found none")
    return path


def _pairs(entries: Iterable[Entry], path: Path) -> dict[PairKey, Finished]:
    """By key; of one that was replaced the later."""
    return {pair.key: pair for pair in (Finished.of(entry, path) for entry in entries)}


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _difference(at: str, theirs: Any, mine: Any) -> str:
    if ABSENT in (theirs, mine):
        return f"{at} is in {'the store' if mine is ABSENT else 'this one'} alone"
    return f"{at} was {_canonical(theirs)[:80]}, is {_canonical(mine)[:80]}"
