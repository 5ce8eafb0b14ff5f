"""A store in a SQLite file: rollback journal, fsync at every commit, no file but this one."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

from resque_ext.data.files import parse_json
from resque_ext.screening.store import (
    FORMAT,
    Finished,
    Header,
    PairKey,
    Store,
    StoreError,
    check_in_place,
    fcntl,
    locked,
    refuse_results,
)
from resque_ext.storage.atomic import in_place

APPLICATION_ID = 0x52535145  # "RSQE", by which a file is known to be one of these
# What sqlite3 raises for damaged files: its texts need not be UTF-8, nor its numbers fit.
DAMAGE = (sqlite3.Error, UnicodeDecodeError, OverflowError)
_MAGIC = b"SQLite format 3\x00"
_SCHEMA = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE old_sides (model TEXT PRIMARY KEY, digest TEXT NOT NULL, state BLOB NOT NULL)",
    # What the columns say is in `result` too: they are for queries.
    """CREATE TABLE pairs (
        number INTEGER PRIMARY KEY,
        model TEXT NOT NULL,
        candidate TEXT NOT NULL,
        value REAL,
        std_error REAL,
        low REAL,
        high REAL,
        new_samples INTEGER NOT NULL,
        available INTEGER,
        seconds REAL NOT NULL,
        stopped TEXT NOT NULL,
        faults INTEGER NOT NULL,
        error TEXT,
        result TEXT NOT NULL,
        way TEXT NOT NULL,
        UNIQUE (model, candidate))""",
)
_COLUMNS = (
    "model, candidate, value, std_error, low, high, new_samples, available, seconds, stopped, "
    "faults, error, result, way"
)
_MARKS = ", ".join("?" * len(_COLUMNS.split(", ")))


class SqliteStore(Store):
    """See :func:`resque_ext.screening.store.open_store`."""

    def __init__(self, path: Path, header: Header) -> None:
        self.path, self.header = path, header
        self._file = locked(path)
        try:
            self._check_magic()
            with self._failing("a file that can be opened"):
                self._db = sqlite3.connect(path, timeout=10, isolation_level=None)
        except BaseException:
            self._file.close()
            raise

    @classmethod
    def open(cls, path: Path, header: Header, resume: bool) -> SqliteStore:
        new = not path.exists()
        store = cls(path, header)
        new = new and os.fstat(store._file.fileno()).st_size == 0  # nobody was quicker
        try:
            store._prepare(resume)
        except BaseException:
            store._db.close()
            # Nothing of a store that could not be begun; while it is locked.
            if new and in_place(path, store._file.fileno()):
                path.unlink(missing_ok=True)
            store.close()
            raise
        return store

    @classmethod
    def read(cls, path: Path) -> tuple[Header, list[Finished]]:
        try:
            with _rolled_back(path) as whole:
                uri = f"{whole.resolve().as_uri()}?mode={'ro' if whole == path else 'rw'}"
                with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=10)) as db:
                    return _header(db, path), _pairs(db, path)
        except (*DAMAGE, OSError) as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"store: {path}: expected a whole store, found {error}") from None

    def _prepare(self, resume: bool) -> None:
        with self._failing("a store in a folder that can be written"):
            self._db.execute("PRAGMA journal_mode = DELETE")
            self._db.execute("PRAGMA synchronous = FULL")
            empty = not self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if empty:
                with self._transaction():
                    for statement in _SCHEMA:
                        self._db.execute(statement)
                    self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                    rows = [(k, json.dumps(v)) for k, v in self.header.to_dict().items()]
                    self._db.executemany("INSERT INTO meta VALUES (?, ?)", rows)
                return
            theirs = _header(self._db, self.path)
            theirs.check(self.header, self.path)
            refuse_results(self.path, len(self.finished()), resume)
            self.earlier_options = theirs.options
            with self._transaction():  # that it can be written shows now, not after the first pair
                self._db.execute(
                    "INSERT OR REPLACE INTO meta VALUES ('options', ?)",
                    (json.dumps(self.header.options),),
                )

    def finished(self) -> dict[PairKey, Finished]:
        with self._failing("a whole store"):
            return {pair.key: pair for pair in _pairs(self._db, self.path)}

    def add(self, pair: Finished, replace: bool = False) -> None:
        r = pair.result
        first = next(iter(r.indices.values()), None)
        index = [getattr(first, name, None) for name in ("value", "std_error", "low", "high")]
        row = (
            *(r.model, r.candidate, *index, r.new_samples, r.available, r.seconds, r.stopped),
            *(len(r.faults), r.error, r.to_json(), pair.way()),
        )
        verb = "INSERT OR REPLACE" if replace else "INSERT"
        with self._failing(f"room for the pair {pair.key}"), self._transaction():
            self._db.execute(f"{verb} INTO pairs ({_COLUMNS}) VALUES ({_MARKS})", row)

    def old_side(self, model: str) -> tuple[str, bytes] | None:
        with self._failing("a whole store"):
            query = "SELECT digest, state FROM old_sides WHERE model = ?"
            return self._db.execute(query, (model,)).fetchone()

    def keep_old_side(self, model: str, digest: str, state: bytes) -> None:
        with self._failing(f"room for the old side of {model!r}"), self._transaction():
            self._db.execute("INSERT INTO old_sides VALUES (?, ?, ?)", (model, digest, state))

    def close(self) -> None:
        self._db.close()
        self._file.close()

    def check(self) -> None:
        check_in_place(self.path, self._file)

    def _check_magic(self) -> None:
        head = self._file.read(len(_MAGIC))
        if head and head != _MAGIC:
            raise StoreError(
                f"store: {self.path}: expected a SQLite file (or a new one), found another that "
                f"begins with {head!r}"
            )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of it or nothing, on disk when it ends."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
            self.check()
        except BaseException:
            # SQLite may have rolled back by itself, as it does where the disk is full.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _failing(self, expected: str) -> Iterator[None]:
        try:
            yield
        except DAMAGE as error:
            raise StoreError(f"store: {self.path}: expected {expected}, found {error}") from None


def _header(db: sqlite3.Connection, path: Path) -> Header:
    if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        found = "a SQLite file of something else" if path.stat().st_size else "an empty file"
        raise StoreError(f"store: {path}: expected format {FORMAT!r}, found {found}")
    rows = db.execute("SELECT key, value FROM meta").fetchall()
    try:
        values = {key: parse_json(value) for key, value in rows}
    except (TypeError, ValueError) as error:
        raise StoreError(f"store: {path}: expected a header in JSON, found {error}") from None
    return Header.from_dict(values, path)


def _pairs(db: sqlite3.Connection, path: Path) -> list[Finished]:
    rows = db.execute("SELECT number, result, way FROM pairs ORDER BY number")
    return [Finished.parse(result, way, f"{path}: row {number}") for number, result, way in rows]


@contextlib.contextmanager
def _rolled_back(path: Path) -> Iterator[Path]:
    """The file itself; where a killed writer left a half transaction in it, a copy to undo that in.

    Undoing it is writing, which a reader does not do to the store.
    """
    journal = path.with_name(f"{path.name}-journal")
    if fcntl is None or not journal.exists():
        yield path
        return
    with path.open("rb") as file, tempfile.TemporaryDirectory() as folder:
        copy = path
        with contextlib.suppress(BlockingIOError):  # somebody is writing, and will end it
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            copy = Path(folder) / path.name
            shutil.copyfile(path, copy)
            shutil.copyfile(journal, copy.with_name(journal.name))
        yield copy
