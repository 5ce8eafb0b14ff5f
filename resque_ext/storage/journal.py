"""The journal of long work: a header that says which work it is, and entries that are finished.

An entry is on the disk when `put` returns, or nothing of it is, whenever the process was killed or
the disk was full. A journal is a SQLite file, or a file of JSON lines that other programs can
follow while it grows. One process writes it at a time; any number may read it meanwhile.
"""

from __future__ import annotations

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
from typing import Any, ClassVar, NamedTuple

from resque_ext.errors import ArgumentError
from resque_ext.storage.atomic import in_place, replaced, sync_folder
from resque_ext.storage.json_text import parse_json

try:
    import fcntl
except ModuleNotFoundError:  # not a POSIX system: two writers of one file are not kept apart
    fcntl = None  # type: ignore[assignment]

APPLICATION_ID = 0x52535145  # "RSQE", by which a SQLite file is known to be one of these
LINES, SQLITE = ".jsonl", (".sqlite", ".sqlite3", ".db")  # suffixes of new files
_MAGIC = b"SQLite format 3\x00"
# What sqlite3 raises for damaged files: its texts need not be UTF-8, nor its numbers fit.
_DAMAGE = (sqlite3.Error, UnicodeDecodeError, OverflowError)
_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)  # the last one on Windows alone

Row = dict[str, Any]  # by column: text, numbers, bytes or None
Place = tuple[str, int]  # ("line", 3) or ("row", 3)


class Entry(NamedTuple):
    """Where an entry stands, and its content columns."""

    place: Place
    row: Row


@dataclass(frozen=True)
class Table:
    """One sort of entries.

    Attributes:
        name: of the SQL table.
        noun: of one entry, for messages.
        columns: in SQL: those of the content, and others for queries that follow from it.
        unique: the columns by which an entry is known.
        content: the columns that say everything.
        marker: a name that the JSON objects of its lines have; "" for all lines.
        to_line: the JSON object of a line, of the content.
        from_line: the content of such an object; ValueError where it is damaged.
        key: what an entry is known by, of its content; None: no entry replaces another one.
    """

    name: str
    noun: str
    columns: str
    unique: tuple[str, ...]
    content: tuple[str, ...]
    marker: str
    to_line: Callable[[Row], Any]
    from_line: Callable[[Any], Row]
    key: Callable[[Row], Any] | None = None

    def latest(self, entries: list[Entry]) -> list[Entry]:
        """Without those that later ones replaced, as SQLite has them."""
        if self.key is None:
            return entries
        return list({self.key(entry.row): entry for entry in entries}.values())

    def room(self, row: Row) -> str:
        """What an entry needs, for messages."""
        key = tuple(row[name] for name in self.unique)
        return f"room for the {self.noun} {key if len(key) > 1 else repr(key[0])}"


class Journal(ABC):
    """The journal of one sort of work, which a subclass describes. A context manager.

    A file that exists keeps its form; a new one is JSON lines or SQLite by its suffix.

    Attributes:
        FORMAT: the header's "format".
        CALLED, ALONE, WORK: a journal, one that is free, and the work, for messages.
        DEFAULT: the suffix that counts where a new file has another one.
        TABLES: of which the first one's "result" is an entry as JSON.
        AMENDED: values of the header that every run may change.
        form: of the open file.
    """

    FORMAT: ClassVar[str]
    CALLED: ClassVar[str]
    ALONE: ClassVar[str]
    WORK: ClassVar[str]
    DEFAULT: ClassVar[str]
    TABLES: ClassVar[tuple[Table, ...]]
    AMENDED: ClassVar[tuple[str, ...]] = ()
    form: Form

    @staticmethod
    @abstractmethod
    def error(path: Path, expected: str, found: str, place: Any = None, cause: Any = None) -> Any:
        """The exception to raise.

        Args:
            place: of a damaged entry, or None.
            cause: the error of the file system or of SQLite, or None.
        """

    @abstractmethod
    def accept(self) -> None:
        """Raises where a journal that exists is not to be gone on with; it then stays as it is."""

    def open(self, path: Path, header: Mapping[str, Any]) -> None:
        """Locks the file for this process, until it is closed or killed; makes it with that header.

        Raises:
            What `error` makes: in use, not writable, damaged, another sort. What `accept` raises.
        """
        form = self.form = self._chosen(path)
        new = not path.exists()
        new = form.lock() and new  # maybe somebody was quicker
        try:
            form.load()
            if form.header:
                self.accept()
            form.begin(header)
            for name in self.AMENDED if form.header else ():
                form.amend(name, header[name])
        except BaseException:
            if new and in_place(path, form.file):  # nothing stays of what could not be begun
                path.unlink(missing_ok=True)
            form.close()
            raise

    def close(self) -> None:
        self.form.close()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:  # what was written last may have gone since
                self.form.check()
        finally:
            self.close()

    @classmethod
    def read(cls, path: Path, *tables: str) -> tuple[Mapping[str, Any], dict[str, list[Entry]]]:
        """The header and the entries of these tables, also while a process writes.

        Raises:
            What `error` makes: damaged, or another sort.
        """
        form = cls._chosen(path)
        found = form.read(tables)
        if not form.header:
            raise form.error(cls.CALLED, "a file without a header")
        return form.header, found

    @classmethod
    def lines(cls, path: Path) -> bytes:
        """A journal as JSON lines; see `read`."""
        header, found = cls.read(path, *(table.name for table in cls.TABLES))
        entries = [t.to_line(entry.row) for t in cls.TABLES for entry in t.latest(found[t.name])]
        return b"".join(map(_line, [header, *entries]))

    @classmethod
    def csv(cls, path: Path) -> bytes:
        """The entries of the first table, their values in columns by path, `cost.epochs`.

        Lists are JSON, and what is not known is empty. See `read`.
        """
        table = cls.TABLES[0]
        entries = table.latest(cls.read(path, table.name)[1][table.name])
        rows = [dict(_flat(parse_json(entry.row["result"]))) for entry in entries]
        names = dict.fromkeys(name for row in rows for name in row)
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()

    @classmethod
    def export(cls, path: Path, output: Path) -> None:
        """Writes `lines` (".jsonl") or `csv` (".csv") of a journal, in one step.

        Raises:
            ValueError: another suffix.
        """
        written = {LINES: cls.lines, ".csv": cls.csv}.get(output.suffix.lower())
        if written is None:
            raise ArgumentError("output", "the suffix .jsonl or .csv", f"{output.suffix!r}")
        content = written(path)
        with replaced(output) as beside:
            beside.write_bytes(content)

    @classmethod
    def _chosen(cls, path: Path) -> Form:
        suffix = path.suffix.lower()
        new = not path.is_file() or not path.stat().st_size
        if suffix != LINES and not (new and suffix in SQLITE):
            suffix = cls.DEFAULT
        return (Lines if suffix == LINES and not is_sqlite(path) else Sqlite)(cls, path)


def is_sqlite(path: Path) -> bool:
    """Whether a SQLite file is there, which can be read."""
    if path.is_file():  # a FIFO may block for ever
        with contextlib.suppress(OSError), path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    return False


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


def _line(values: Any) -> bytes:
    return json.dumps(values, allow_nan=False).encode() + b"\n"


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flat(inner, f"{path}.{name}" if path else name)
    else:
        yield path, json.dumps(value) if isinstance(value, (list, bool)) else value


class Form(ABC):
    """How a journal is written.

    Attributes:
        header: as it was found; {} in a new file.
        file: the descriptor that holds the lock; -1 where there is none.
    """

    def __init__(self, kind: type[Journal], path: Path) -> None:
        self.kind, self.path, self.file = kind, path, -1
        self.header: Mapping[str, Any] = MappingProxyType({})
        self.tables = {table.name: table for table in kind.TABLES}

    @abstractmethod
    def read(self, tables: Iterable[str]) -> dict[str, list[Entry]]:
        """The entries of these tables, without a lock; the header is found too."""

    @abstractmethod
    def load(self) -> None:
        """Reads what is there, and changes nothing."""

    @abstractmethod
    def begin(self, header: Mapping[str, Any]) -> None:
        """Makes the file ready for entries; a new one gets the header."""

    @abstractmethod
    def amend(self, name: str, value: Any) -> None:
        """Changes a value of the header in the file."""

    @abstractmethod
    def rows(self, table: str, **equal: Any) -> list[Entry]:
        """The entries of a table in their order, those whose columns are `equal`."""

    @abstractmethod
    def put(self, table: str, row: Row, replace: bool = False) -> None:
        """Adds an entry, all of it or nothing; with `replace` it may take another one's place.

        Raises:
            The journal's error: the disk is full, or the file is not as it was left.
        """

    def lock(self) -> bool:
        """Keeps the file for this process until it is closed or killed; whether it is empty.

        Not a POSIX lock: SQLite gives up all of those that the process has on the file whenever it
        gives up its own.
        """
        writable = "a file that can be written"
        if self.path.exists() and not self.path.is_file():
            raise self.error(writable, "a folder" if self.path.is_dir() else "no regular file")
        with self.failing(writable):
            self.file = os.open(self.path, _FLAGS, 0o666)
        if fcntl is not None:
            try:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Whoever could not begin one takes it away again, maybe this very one.
                mine = in_place(self.path, self.file)
            except OSError:
                mine = False
            if not mine:
                self.close()
                raise self.error(self.kind.ALONE, f"a file in use by another {self.kind.WORK}")
        return os.fstat(self.file).st_size == 0

    def check(self) -> None:
        """Raises where somebody else deleted, replaced or changed the file."""
        if not in_place(self.path, self.file):
            found = "another file in its place" if self.path.exists() else "no file any more"
            raise self.error(
                f"{self.path.name} as this {self.kind.WORK} wrote it",
                f"{found}: what was finished meanwhile is lost",
            )

    def close(self) -> None:
        if self.file >= 0:
            os.close(self.file)
            self.file = -1

    def error(self, expected: str, found: str, place: Any = None, cause: Any = None) -> Any:
        return self.kind.error(self.path, expected, found, place, cause)

    @contextlib.contextmanager
    def failing(self, expected: str) -> Iterator[None]:
        """Any failure of the file system or of SQLite as an error of the journal."""
        try:
            yield
        except (OSError, *_DAMAGE) as error:
            if isinstance(error, OSError) and error.errno is None:  # the journal's own
                raise
            found = getattr(error, "strerror", None) or str(error)
            raise self.error(expected, found, None, error) from None

    def checked(self, header: Any) -> Mapping[str, Any]:
        found = header.get("format") if isinstance(header, Mapping) else type(header).__name__
        if found != self.kind.FORMAT:
            raise self.error(self.kind.CALLED, f"a file of format {found!r}")
        return header


class Lines(Form):
    """The first line is the header; each other one an entry, or values of the header that changed.

    A last line that a kill tore is cut off when the journal is opened to be written.
    """

    def __init__(self, kind: type[Journal], path: Path) -> None:
        super().__init__(kind, path)
        self._entries: dict[str, list[Entry]] = {table.name: [] for table in kind.TABLES}
        self._size, self._count = 0, 0  # bytes and lines that the file is to have
        self._unended = False  # the last line lacks nothing but its end

    def read(self, tables: Iterable[str]) -> dict[str, list[Entry]]:
        self.load()
        return {table: self._entries[table] for table in tables}

    def load(self) -> None:
        with self.failing("a file that can be read"):
            data = self.path.read_bytes()
        *lines, tail = data.split(b"\n")
        with contextlib.suppress(ValueError):
            parse_json(tail)
            self._unended = True
            lines.append(tail)
            tail = b""
        self._size, self._count = len(data) - len(tail), len(lines)
        # The beginning of a header is what is left of a journal that was killed in its first write.
        begin = _line({"format": self.kind.FORMAT})[:-2]
        if not lines and tail[: len(begin)] != begin[: len(tail)]:
            lines = [tail]
        for number, line in enumerate(lines, start=1):
            self._take(("line", number), line)

    def _take(self, place: Place, line: bytes) -> None:
        try:
            values = parse_json(line)
        except ValueError as error:
            if not self.header:
                found = f"a file that begins with {line[:40]!r} ({error})"
                raise self.error(self.kind.CALLED, found) from None
            raise self.error("JSON", str(error), place) from None
        if not self.header:
            self.header = self.checked(values)
            return
        marks = values.keys() if isinstance(values, dict) else ()
        for name in self.kind.AMENDED:
            if name in marks:
                if type(values[name]) is not type(self.header.get(name)):
                    raise self.error(name, f"{values[name]!r:.80}", place)
                self.header = {**self.header, name: values[name]}
                return
        for table in self.kind.TABLES:
            if table.marker in ("", *marks):
                try:
                    row = table.from_line(values)
                except ValueError as error:
                    raise self.error(table.noun, str(error), place) from None
                self._entries[table.name].append(Entry(place, row))
                return
        raise self.error(" or ".join(t.noun for t in self.kind.TABLES), "another line", place)

    def begin(self, header: Mapping[str, Any]) -> None:
        with self.failing("a file that can be written"):
            self._cut(self._size)
            if self._unended:
                self._write(b"\n")
        if not self.header:
            self._append(header, "room for the header")
            sync_folder(self.path.parent)

    def amend(self, name: str, value: Any) -> None:
        if self.header[name] != value:
            self._append({name: value}, f"room for the {name}")

    def rows(self, table: str, **equal: Any) -> list[Entry]:
        return [e for e in self._entries[table] if equal.items() <= e.row.items()]

    def put(self, table: str, row: Row, replace: bool = False) -> None:
        of = self.tables[table]
        self._append(of.to_line(row), of.room(row))
        content = {name: row[name] for name in of.content}
        self._entries[table].append(Entry(("line", self._count), content))

    def check(self) -> None:
        super().check()
        found = os.fstat(self.file).st_size
        if found != self._size:
            raise self.error(
                f"{self._size} bytes as this {self.kind.WORK} wrote it",
                f"{found}: another program changed it",
            )

    def _append(self, values: Any, expected: str) -> None:
        """One line, all of it on the disk, or none of it."""
        self.check()
        end = self._size
        try:
            with self.failing(expected):
                self._write(_line(values))
        except BaseException:
            self._cut(end)
            raise
        self._count += 1
        self.check()

    def _write(self, data: bytes) -> None:
        self._size += len(data)
        while data:
            data = data[os.write(self.file, data) :]
        os.fsync(self.file)

    def _cut(self, size: int) -> None:
        os.ftruncate(self.file, size)
        os.lseek(self.file, size, os.SEEK_SET)
        self._size = size


class Sqlite(Form):
    """A table of the header's values ("meta"), and one of each sort of entries.

    With a rollback journal and an fsync at every commit; between commits there is no other file.
    """

    _db: sqlite3.Connection

    def read(self, tables: Iterable[str]) -> dict[str, list[Entry]]:
        with self.failing("a whole file"), _rolled_back(self.path) as whole:
            uri = f"{whole.resolve().as_uri()}?mode={'ro' if whole == self.path else 'rw'}"
            with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=10)) as self._db:
                self._read_header()
                return {table: self.rows(table) for table in tables}

    def load(self) -> None:
        with self.failing(self.kind.CALLED):
            self._db = sqlite3.connect(self.path, timeout=10, isolation_level=None)
            if self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                self._read_header()  # first: what is not a journal stays as it is
            self._db.execute("PRAGMA journal_mode = DELETE")
            self._db.execute("PRAGMA synchronous = FULL")

    def _read_header(self) -> None:
        if self._db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            empty = not self.path.stat().st_size
            found = "an empty file" if empty else "a SQLite file of something else"
            raise self.error(self.kind.CALLED, found)
        rows = self._db.execute("SELECT key, value FROM meta").fetchall()
        try:
            header = {key: parse_json(value) for key, value in rows}
        except (TypeError, ValueError) as error:
            raise self.error("a header in JSON", str(error)) from None
        self.header = self.checked(header)

    def begin(self, header: Mapping[str, Any]) -> None:
        if self.header:
            return
        with self._transaction("a folder that can be written"):
            self._db.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
            for table in self.kind.TABLES:
                unique = f"UNIQUE ({', '.join(table.unique)})"
                self._db.execute(f"CREATE TABLE {table.name} ({table.columns}, {unique})")
            self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            rows = [(name, json.dumps(value, allow_nan=False)) for name, value in header.items()]
            self._db.executemany("INSERT INTO meta VALUES (?, ?)", rows)
        sync_folder(self.path.parent)

    def amend(self, name: str, value: Any) -> None:
        text = json.dumps(value, allow_nan=False)
        # Written even if it is the same: a file that cannot be is found out now.
        with self._transaction(f"room for the {name}"):
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, text))

    def rows(self, table: str, **equal: Any) -> list[Entry]:
        names = self.tables[table].content
        query = f"SELECT rowid, {', '.join(names)} FROM {table}"
        if equal:
            query += f" WHERE {' AND '.join(f'{name} = ?' for name in equal)}"
        with self.failing("a whole file"):
            found = self._db.execute(f"{query} ORDER BY rowid", tuple(equal.values())).fetchall()
        return [
            Entry(("row", number), dict(zip(names, values, strict=True)))
            for number, *values in found
        ]

    def put(self, table: str, row: Row, replace: bool = False) -> None:
        insert = f"INSERT {'OR REPLACE ' if replace else ''}INTO {table} ({', '.join(row)})"
        with self._transaction(self.tables[table].room(row)):
            marks = ", ".join("?" * len(row))
            self._db.execute(f"{insert} VALUES ({marks})", tuple(row.values()))

    def close(self) -> None:
        if hasattr(self, "_db"):
            self._db.close()
        super().close()

    @contextlib.contextmanager
    def _transaction(self, expected: str) -> Iterator[None]:
        """All of it or nothing, on the disk when it ends."""
        self.check()
        with self.failing(expected):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                # SQLite may have rolled back by itself, as it does where the disk is full.
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        self.check()


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
