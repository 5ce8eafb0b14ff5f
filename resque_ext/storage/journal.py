"""The journal of long work: a header that says which work it is, and entries that are finished.

An entry is on the disk when `add` returns, or nothing of it is, whenever the process was killed or
the disk was full. A journal is a SQLite file, or a file of JSON lines that other programs can
follow while it grows. One process writes it at a time; any number may read it meanwhile.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import io
import json
import os
import shutil
import sqlite3
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from resque_ext.storage.atomic import in_place, replaced, sync_folder
from resque_ext.storage.json_text import parse_json

try:
    import fcntl
except ModuleNotFoundError:  # not a POSIX system: two writers of one file are not kept apart
    fcntl = None  # type: ignore[assignment]

APPLICATION_ID = 0x52535145  # "RSQE", by which a SQLite file is known to be one of these
SQLITE_SUFFIXES = (".sqlite", ".sqlite3", ".db")
LINES_SUFFIX = ".jsonl"
_MAGIC = b"SQLite format 3\x00"
# What sqlite3 raises for damaged files: its texts need not be UTF-8, nor its numbers fit.
_DAMAGE = (sqlite3.Error, UnicodeDecodeError, OverflowError)

_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)  # the last one on Windows alone

Row = dict[str, Any]  # by column: text, numbers, bytes or None


class Place(NamedTuple):
    """Where an entry stands: ("line", 3) or ("row", 3)."""

    unit: str
    number: int


class Entry(NamedTuple):
    """The content columns of an entry, and where it stands."""

    place: Place
    row: Row


@dataclass(frozen=True)
class Table:
    """One sort of entries.

    Attributes:
        name: of the SQL table.
        noun: of one entry, for messages.
        content: the columns that say everything.
        columns: SQL types by name: the content, and columns for queries that follow from it.
        unique: the columns by which an entry is known.
        to_line: the JSON object of a line, of the content.
        from_line: the content of such an object; None where the line is of another table.
            ValueError where it is of this one and damaged.
    """

    name: str
    noun: str
    content: tuple[str, ...]
    columns: Mapping[str, str]
    unique: tuple[str, ...]
    to_line: Callable[[Row], Any]
    from_line: Callable[[Any], Row | None]

    def room(self, row: Row) -> str:
        """What an entry needs, for messages."""
        key = tuple(row[name] for name in self.unique)
        return f"room for the {self.noun} {key if len(key) > 1 else repr(key[0])}"

    def schema(self) -> str:
        columns = [f"{name} {kind}" for name, kind in self.columns.items()]
        unique = f"UNIQUE ({', '.join(self.unique)})"
        return f"CREATE TABLE {self.name} ({', '.join([*columns, unique])})"


@dataclass(frozen=True)
class Kind:
    """What the journals of one sort of work hold, and how their errors are worded.

    Attributes:
        format: the header's "format".
        called: such a file, for messages.
        alone: what an opened file is expected to be, for messages.
        work: "screening" or the like, for messages.
        tables: of which the first one's "result" is an entry's JSON.
        error: makes an exception of path, what was expected, what was found, the place of the entry
            where it is about one, and the error of the file system or of SQLite that caused it.
        amended: the header's values that every run may change.
    """

    format: str
    called: str
    alone: str
    work: str
    tables: tuple[Table, ...]
    error: Callable[[Path, str, str, Place | None, Exception | None], Exception]
    amended: tuple[str, ...] = ()

    def table(self, name: str) -> Table:
        return next(table for table in self.tables if table.name == name)


class Journal(ABC):
    """An open journal: see `open_journal` and `read_journal`. A context manager.

    Attributes:
        path: of the file.
        header: as it was found at opening; {} in a new journal.
    """

    def __init__(self, path: Path, kind: Kind) -> None:
        self.path, self.kind = path, kind
        self.header: Mapping[str, Any] = MappingProxyType({})
        self._file = -1  # the descriptor that holds the lock; a reader has none

    @abstractmethod
    def rows(self, table: str, **equal: Any) -> list[Entry]:
        """The entries of a table in their order, those whose columns are `equal`."""

    @abstractmethod
    def add(self, table: str, row: Row, replace: bool = False) -> None:
        """Adds an entry, all of it or nothing; with `replace` it may take another one's place.

        Raises:
            The kind's error: the disk is full, or the file is not as this journal left it.
        """

    @abstractmethod
    def _read(self, tables: Iterable[str]) -> dict[str, list[Entry]]:
        """The entries of these tables, and the header, without a lock."""

    @abstractmethod
    def _load(self) -> None:
        """Reads what is there, and changes nothing."""

    @abstractmethod
    def _begin(self, header: Mapping[str, Any]) -> None:
        """Makes the file ready to be added to; a new one gets the header."""

    @abstractmethod
    def _amend(self, name: str, value: Any) -> None:
        """Changes a value of the header."""

    def check(self) -> None:
        """Raises the kind's error where somebody else deleted, replaced or changed the file."""
        if not in_place(self.path, self._file):
            found = "another file in its place" if self.path.exists() else "no file any more"
            raise self.error(
                f"{self.path.name} as this {self.kind.work} wrote it",
                f"{found}: what was finished meanwhile is lost",
            )

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:  # what was written last may have gone since
                self.check()
        finally:
            self.close()

    def error(
        self,
        expected: str,
        found: str,
        place: Place | None = None,
        cause: Exception | None = None,
    ) -> Exception:
        return self.kind.error(self.path, expected, found, place, cause)

    @contextlib.contextmanager
    def _failing(self, expected: str) -> Iterator[None]:
        """Any failure of the file system or of SQLite as the kind's error."""
        try:
            yield
        except (OSError, *_DAMAGE) as error:
            if isinstance(error, OSError) and error.errno is None:  # the kind's own
                raise
            found = getattr(error, "strerror", None) or str(error)
            raise self.error(expected, found, None, error) from None

    def _lock(self) -> bool:
        """Keeps the file for this process until it is closed or killed; whether it is empty.

        Not a POSIX lock: SQLite gives up all of those that the process has on the file whenever it
        gives up its own.
        """
        writable = "a file that can be written"
        if self.path.exists() and not self.path.is_file():
            found = "a folder" if self.path.is_dir() else "no regular file"
            raise self.error(writable, found)
        with self._failing(writable):
            self._file = os.open(self.path, _FLAGS, 0o666)
        if fcntl is not None:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Whoever could not begin one takes it away again, maybe this very one.
                mine = in_place(self.path, self._file)
            except OSError:
                mine = False
            if not mine:
                self.close()
                raise self.error(self.kind.alone, f"a file in use by another {self.kind.work}")
        return os.fstat(self._file).st_size == 0

    def _checked_header(self, values: Any) -> Mapping[str, Any]:
        found = values.get("format") if isinstance(values, Mapping) else type(values).__name__
        if found != self.kind.format:
            raise self.error(self.kind.called, f"a file of format {found!r}")
        return values


def open_journal(
    path: Path,
    kind: Kind,
    header: Mapping[str, Any],
    accept: Callable[[Journal], None],
    default: str,
) -> Journal:
    """The journal at `path`, locked for this process, made where there is none.

    Args:
        path: a file that exists keeps its form; a new one is SQLite (".sqlite", ".sqlite3", ".db")
            or JSON lines (".jsonl").
        kind: of the journal.
        header: JSON of any shape, with "format"; written into a new journal.
        accept: called with a journal that has a header already, before anything is changed; raises
            where that is not to be gone on with, and then the file stays as it is.
        default: the suffix that counts where a new file has another one.

    Raises:
        The kind's error: in use, not writable, damaged, or of another kind. What `accept` raises.
    """
    journal = _form(path, default)(path, kind)
    new = not path.exists()
    new = journal._lock() and new  # maybe somebody was quicker
    try:
        journal._load()
        if journal.header:
            accept(journal)
        journal._begin(header)
        if journal.header:
            for name in kind.amended:
                journal._amend(name, header[name])
    except BaseException:
        if new and in_place(path, journal._file):  # nothing stays of what could not be begun
            path.unlink(missing_ok=True)
        journal.close()
        raise
    return journal


def read_journal(
    path: Path, kind: Kind, default: str, tables: Iterable[str] | None = None
) -> tuple[Mapping[str, Any], dict[str, list[Entry]]]:
    """The header and the entries of `tables` (None: of all), also while another process writes.

    Nothing is changed.

    Raises:
        The kind's error: damaged, or of another kind.
    """
    journal = _form(path, default)(path, kind)
    found = journal._read([t.name for t in kind.tables] if tables is None else list(tables))
    if not journal.header:
        raise journal.error(kind.called, "a file without a header")
    return journal.header, found


def export_journal(path: Path, kind: Kind, output: Path, default: str) -> None:
    """Writes a journal as JSON lines (".jsonl") or its first table as CSV (".csv"), in one step.

    CSV has a row an entry. Its columns are the numbers and texts of the entry by their path,
    `cost.epochs`; lists are JSON, and what is not known is empty.

    Raises:
        ValueError: another suffix.
        The kind's error: as `read_journal`.
    """
    suffix = output.suffix.lower()
    if suffix not in (LINES_SUFFIX, ".csv"):
        raise ValueError(f"output: expected the suffix .jsonl or .csv, found {output.suffix!r}")
    content = _csv(path, kind, default) if suffix == ".csv" else journal_lines(path, kind, default)
    with replaced(output) as beside:
        beside.write_bytes(content)


def journal_lines(path: Path, kind: Kind, default: str) -> bytes:
    """A journal as JSON lines; see `read_journal`."""
    header, found = read_journal(path, kind, default)
    lines = [header, *(t.to_line(e.row) for t in kind.tables for e in found[t.name])]
    return b"".join(_line(line) for line in lines)


def is_sqlite(path: Path) -> bool:
    """Whether a SQLite file is there."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def to_base64(data: bytes) -> str:
    """Bytes for a line of JSON."""
    return base64.b64encode(data).decode()


def from_base64(text: str) -> bytes:
    """The bytes that `to_base64` was given; ValueError where it gave no such text."""
    return base64.b64decode(text, validate=True)


def differences(theirs: Any, mine: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two JSON values differ: (path, theirs, mine), `ABSENT` for what one of them lacks.

    Lists are compared entry by entry where they are of one length.
    """
    if isinstance(theirs, Mapping) and isinstance(mine, Mapping):
        for key in dict.fromkeys((*mine, *theirs)):
            at = f"{where}.{key}" if where else str(key)
            yield from differences(theirs.get(key, ABSENT), mine.get(key, ABSENT), at)
    elif isinstance(theirs, list) and isinstance(mine, list) and len(theirs) == len(mine):
        for i, pair in enumerate(zip(theirs, mine, strict=True)):
            yield from differences(*pair, f"{where}[{i}]")
    elif theirs != mine:
        yield where, theirs, mine


ABSENT = object()


def _form(path: Path, default: str) -> type[LinesJournal] | type[SqliteJournal]:
    with contextlib.suppress(OSError):  # which opening it reports
        if is_sqlite(path):
            return SqliteJournal
        if path.is_file() and path.stat().st_size:
            with path.open("rb") as file:
                if file.read(1) == b"{":
                    return LinesJournal
    suffix = path.suffix.lower()
    known = (LINES_SUFFIX, *SQLITE_SUFFIXES)
    lines = (suffix if suffix in known else default) == LINES_SUFFIX
    return LinesJournal if lines else SqliteJournal


def _csv(path: Path, kind: Kind, default: str) -> bytes:
    table = kind.tables[0].name
    entries = read_journal(path, kind, default, [table])[1][table]
    rows = [dict(_flat(parse_json(entry.row["result"]))) for entry in entries]
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _line(values: Any) -> bytes:
    return json.dumps(values, allow_nan=False).encode() + b"\n"


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flat(inner, f"{path}.{name}" if path else name)
    else:
        yield path, json.dumps(value) if isinstance(value, (list, bool)) else value


class LinesJournal(Journal):
    """The first line is the header; each other one an entry, or values of the header that changed.

    A last line that a kill tore is cut off when the journal is opened to be written.
    """

    def __init__(self, path: Path, kind: Kind) -> None:
        super().__init__(path, kind)
        self._entries: dict[str, list[Entry]] = {table.name: [] for table in kind.tables}
        self._size, self._lines = 0, 0  # bytes and lines that the file is to have
        self._unended = False  # the last line lacks nothing but its end

    def rows(self, table: str, **equal: Any) -> list[Entry]:
        return [e for e in self._entries[table] if equal.items() <= e.row.items()]

    def add(self, table: str, row: Row, replace: bool = False) -> None:
        of = self.kind.table(table)
        self._append(of.to_line(row), of.room(row))
        place = Place("line", self._lines)
        self._entries[table].append(Entry(place, {name: row[name] for name in of.content}))

    def check(self) -> None:
        super().check()
        found = os.fstat(self._file).st_size
        if found != self._size:
            raise self.error(
                f"{self._size} bytes as this {self.kind.work} wrote it",
                f"{found}: another program changed it",
            )

    def _read(self, tables: Iterable[str]) -> dict[str, list[Entry]]:
        self._load()
        return {table: self._entries[table] for table in tables}

    def _load(self) -> None:
        with self._failing("a file that can be read"):
            data = self.path.read_bytes()
        *lines, tail = data.split(b"\n")
        if tail and _is_json(tail):
            lines.append(tail)
            self._unended = True
            tail = b""
        self._size, self._lines = len(data) - len(tail), len(lines)
        for number, line in enumerate(lines, start=1):
            self._take(Place("line", number), line)
        # The beginning of a header is what is left of a journal that was killed in its first write.
        begin = json.dumps({"format": self.kind.format})[:-1].encode()
        if not lines and tail[: len(begin)] != begin[: len(tail)]:
            raise self.error(self.kind.called, f"a file that begins with {tail[:40]!r}")

    def _take(self, place: Place, line: bytes) -> None:
        """A whole line."""
        try:
            values = parse_json(line)
        except ValueError as error:
            if place.number == 1:
                found = f"a file that begins with {line[:40]!r}"
                raise self.error(self.kind.called, found) from None
            raise self.error("JSON", str(error), place) from None
        if place.number == 1:
            self.header = self._checked_header(values)
            return
        amended = [n for n in self.kind.amended if isinstance(values, dict) and n in values]
        for name in amended:
            if type(values[name]) is not type(self.header.get(name)):
                raise self.error(name, f"{values[name]!r:.80}", place)
            self.header = {**self.header, name: values[name]}
        if amended:
            return
        for table in self.kind.tables:
            try:
                row = table.from_line(values)
            except ValueError as error:
                raise self.error(table.noun, str(error), place) from None
            if row is not None:
                self._entries[table.name].append(Entry(place, row))
                return
        nouns = " or ".join(table.noun for table in self.kind.tables)
        raise self.error(nouns, "another line", place)

    def _begin(self, header: Mapping[str, Any]) -> None:
        with self._failing("a file that can be written"):
            self._cut(self._size)
            if self._unended:
                self._write(b"\n")
        if not self.header:
            self._append(header, "room for the header")
            sync_folder(self.path.parent)

    def _amend(self, name: str, value: Any) -> None:
        if self.header[name] != value:
            self._append({name: value}, f"room for the {name}")

    def _append(self, values: Any, expected: str) -> None:
        """One line, all of it on the disk, or none of it."""
        line = _line(values)
        self.check()
        end = self._size
        try:
            with self._failing(expected):
                self._write(line)
        except BaseException:
            self._cut(end)
            raise
        self._lines += 1
        self.check()

    def _write(self, data: bytes) -> None:
        self._size += len(data)
        while data:
            data = data[os.write(self._file, data) :]
        os.fsync(self._file)

    def _cut(self, size: int) -> None:
        os.ftruncate(self._file, size)
        os.lseek(self._file, size, os.SEEK_SET)
        self._size = size


class SqliteJournal(Journal):
    """A table of the header's values ("meta"), and one of each sort of entries.

    With a rollback journal and an fsync at every commit; between commits there is no other file.
    """

    _db: sqlite3.Connection | None = None

    def rows(self, table: str, **equal: Any) -> list[Entry]:
        of = self.kind.table(table)
        query = f"SELECT rowid, {', '.join(of.content)} FROM {table}"
        if equal:
            query += f" WHERE {' AND '.join(f'{name} = ?' for name in equal)}"
        with self._failing("a whole file"):
            found = self._execute(f"{query} ORDER BY rowid", tuple(equal.values())).fetchall()
        return [
            Entry(Place("row", number), dict(zip(of.content, values, strict=True)))
            for number, *values in found
        ]

    def add(self, table: str, row: Row, replace: bool = False) -> None:
        of = self.kind.table(table)
        values = ", ".join("?" * len(of.columns))
        statement = f"INSERT {'OR REPLACE ' if replace else ''}INTO {table}"
        statement += f" ({', '.join(of.columns)}) VALUES ({values})"
        with self._transaction(of.room(row)):
            self._execute(statement, tuple(row[name] for name in of.columns))

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
        super().close()

    def _execute(self, statement: str, values: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        assert self._db is not None
        return self._db.execute(statement, values)

    def _read(self, tables: Iterable[str]) -> dict[str, list[Entry]]:
        with self._failing("a whole file"), _rolled_back(self.path) as whole:
            uri = f"{whole.resolve().as_uri()}?mode={'ro' if whole == self.path else 'rw'}"
            with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=10)) as self._db:
                self._read_header()
                return {table: self.rows(table) for table in tables}

    def _load(self) -> None:
        with self._failing(self.kind.called):
            self._db = sqlite3.connect(self.path, timeout=10, isolation_level=None)
            self._execute("PRAGMA journal_mode = DELETE")
            self._execute("PRAGMA synchronous = FULL")
            if self._execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                self._read_header()

    def _read_header(self) -> None:
        if self._execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            empty = not self.path.stat().st_size
            found = "an empty file" if empty else "a SQLite file of something else"
            raise self.error(self.kind.called, found)
        rows = self._execute("SELECT key, value FROM meta").fetchall()
        try:
            values = {key: parse_json(value) for key, value in rows}
        except (TypeError, ValueError) as error:
            raise self.error("a header in JSON", str(error)) from None
        self.header = self._checked_header(values)

    def _begin(self, header: Mapping[str, Any]) -> None:
        if self.header:
            return
        with self._transaction("a folder that can be written"):
            self._execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
            for table in self.kind.tables:
                self._execute(table.schema())
            self._execute(f"PRAGMA application_id = {APPLICATION_ID}")
            for name, value in header.items():
                self._put(name, value)
        sync_folder(self.path.parent)

    def _amend(self, name: str, value: Any) -> None:
        # Written even if it is the same: a file that cannot be is found out now.
        with self._transaction(f"room for the {name}"):
            self._put(name, value)

    def _put(self, name: str, value: Any) -> None:
        text = json.dumps(value, allow_nan=False)
        self._execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, text))

    @contextlib.contextmanager
    def _transaction(self, expected: str) -> Iterator[None]:
        """All of it or nothing, on the disk when it ends."""
        self.check()
        with self._failing(expected):
            self._execute("BEGIN IMMEDIATE")
            try:
                yield
                self._execute("COMMIT")
            except BaseException:
                # SQLite may have rolled back by itself, as it does where the disk is full.
                if self._db is not None and self._db.in_transaction:
                    self._execute("ROLLBACK")
                raise
        self.check()


def _is_json(text: bytes) -> bool:
    try:
        parse_json(text)
    except ValueError:
        return False
    return True


@contextlib.contextmanager
def _rolled_back(path: Path) -> Iterator[Path]:
    """The file itself; where a killed writer left a half transaction in it, a copy to undo that in.

    Undoing it is writing, which a reader does not do to the file.
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
