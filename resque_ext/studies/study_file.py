"""The file of a study: a journal whose header says which study it is, with an entry a run."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from resque_ext.data.checks import describe
from resque_ext.data.files import read_bytes
from resque_ext.errors import ArgumentError, ArgumentTypeError
from resque_ext.retraining.record import RecordError
from resque_ext.storage.journal import ABSENT, Journal, Place, Table, differences, is_sqlite
from resque_ext.storage.json_text import parse_json
from resque_ext.studies.grid import Case
from resque_ext.studies.study_run import StudyRun


class StudyError(ValueError):
    """A file that is not this study's."""


class StudyFile(Journal):
    """The file of one study, open and locked for this process alone. A context manager.

    Args:
        path: made, where it is not there.
        identity: plain values that have to be the same for the study to go on.
        grid: the cases that its runs have to be of.

    Attributes:
        runs: those in the file when it was opened, by the key of their case.

    Raises:
        TypeError: no path.
        ValueError: no folder to put it in, or a folder in its place.
        StudyError: another study's file, or one that another process writes.
        RecordError: an entry that is not a run, an unfinished last line aside.
        OSError: it cannot be written.
    """

    FORMAT = "resque_ext.Study/1"
    CALLED = "a study's file"
    ALONE = "a file that no other study writes"
    WORK = "study"
    DEFAULT = ".jsonl"
    TABLES = (
        Table(
            "runs",
            "run",
            "kind TEXT NOT NULL, level REAL NOT NULL, unit TEXT NOT NULL, seed INTEGER NOT NULL, "
            "model TEXT NOT NULL, censored INTEGER NOT NULL, result TEXT NOT NULL",
            unique=("kind", "level"),
            content=("result",),
            marker="",
            to_line=lambda row: json.loads(row["result"]),
            from_line=lambda values: {"result": json.dumps(values)},
        ),
    )

    def __init__(self, path: Any, identity: Mapping[str, Any], grid: Iterable[Case]) -> None:
        self.path = check_path(path)
        self.header = {"format": self.FORMAT, **json.loads(json.dumps(identity))}
        self.grid = {case.key: case for case in grid}
        self.runs: dict[tuple[str, float], StudyRun] = {}

    def __enter__(self) -> StudyFile:
        self.open(self.path, self.header)
        return self

    @staticmethod
    def error(path: Path, expected: str, found: str, place: Any = None, cause: Any = None) -> Any:
        if place is not None:
            return RecordError(f"{_where(path, place)}: run: expected {expected}, found {found}")
        if cause is not None:
            return OSError(f"path: {path}: expected {expected}, found {found}")
        return StudyError(f"path: expected {expected}, found at {path} {found}")

    def append(self, run: StudyRun) -> None:
        """Puts a finished run on the disk; its checkpoint is of no use any more."""
        names = ("kind", "level", "unit", "seed", "model", "censored")
        row = {name: getattr(run, name) for name in names} | {"result": run.to_json()}
        self.form.put("runs", row)
        self.forget_checkpoint(run.seed)

    def checkpoint(self, seed: int) -> Path:
        """Where the retraining of the case with that seed may keep its state."""
        return self.path.with_name(f"{self.path.name}.{seed:08x}.checkpoint")

    def forget_checkpoint(self, seed: int) -> None:
        """Removes it, and what a kill left of an attempt to write it."""
        path = self.checkpoint(seed)
        for leftover in path.parent.glob(f"{_escaped(path.name)}*"):
            leftover.unlink(missing_ok=True)

    def accept(self) -> None:
        found = [_difference(*each) for each in differences(self.form.header, self.header)]
        if found:
            raise StudyError(
                f"path: expected the file of this study, found {self.path} of another, which "
                f"differs in {'; '.join(found)}"
            )
        for entry in self.form.rows("runs"):
            self._add(entry.row["result"], _where(self.path, entry.place))
        for run in self.runs.values():
            self.forget_checkpoint(run.seed)  # that a kill left behind after its run was kept

    def _add(self, text: str, where: str) -> None:
        try:
            run = StudyRun.from_json(text)
        except RecordError as error:
            raise RecordError(f"{where}: {error}") from None
        case = self.grid.get((run.kind, run.level))
        if case is None:
            raise StudyError(
                f"{where}: expected a shift of this study, found {run.kind!r} at {run.level:g}, "
                "which is not in shifts"
            )
        for name in ("unit", "seed"):
            if getattr(run, name) != getattr(case, name):
                raise StudyError(
                    f"{where}: expected the {name} {getattr(case, name)!r} for {run.kind!r} at "
                    f"{run.level:g}, found {getattr(run, name)!r}"
                )
        if case.key in self.runs:
            raise StudyError(
                f"{where}: expected every run once, found {run.kind!r} at {run.level:g} again"
            )
        self.runs[case.key] = run


def export_runs(path: str | os.PathLike[str], output: str | os.PathLike[str]) -> None:
    """Writes the file of a study as JSON lines (".jsonl"), with which it can go on, or its runs as
    CSV (".csv"), also while the study runs.

    Raises:
        FileNotFoundError: there is none.
        ValueError: another suffix.
        StudyError: no study's file.
        RecordError: a line that is no JSON.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path: expected a study's file, found none at {path}")
    StudyFile.export(path, Path(output))


class Runs(Iterator[StudyRun]):
    """The runs of a file. Every loop begins again; `next` goes on with an iteration of its own."""

    def __init__(self, path: str | os.PathLike[str], content: bytes) -> None:
        self.path = path
        self._content = content
        self._own: Iterator[StudyRun] | None = None

    def __iter__(self) -> Iterator[StudyRun]:
        return _parsed(self.path, self._content)

    def __next__(self) -> StudyRun:
        self._own = self._own or iter(self)
        return next(self._own)

    def __repr__(self) -> str:
        return f"Runs({str(self.path)!r})"


def read_runs(path: str | os.PathLike[str]) -> Runs:
    """The runs of a file that `study` wrote, or of one JSON object a line; "-" is standard input.

    They can be looped over again and again. The header in the first line, if there is one, is
    passed over, and so is a last line that broke off without its end: a study that was killed left
    it so, and will do that run again.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a folder, a device or a FIFO.
        StudyError: a SQLite file of something else.
        RecordError: any other line that is not a run, when it is reached; the message gives its
            number.
    """
    if is_sqlite(Path(path)):
        return Runs(path, StudyFile.lines(Path(path)))
    return Runs(path, read_bytes(path, "the runs of a study"))


def _parsed(path: str | os.PathLike[str], content: bytes) -> Iterator[StudyRun]:
    for number, line in enumerate(io.BytesIO(content), start=1):
        try:
            yield StudyRun.from_json(line.decode())
        except (RecordError, UnicodeDecodeError) as error:
            if not line.endswith(b"\n") or (number == 1 and is_header(line)):
                continue
            raise RecordError(f"{path}, line {number}: {error}") from None


def is_header(line: bytes) -> bool:
    """A line that says which study the runs after it belong to."""
    try:
        values = parse_json(line)
    except ValueError:
        return False
    return isinstance(values, dict) and values.get("format") == StudyFile.FORMAT


def check_path(path: Any) -> Path:
    """A file in a folder that is there.

    Raises:
        TypeError, ValueError: it is not.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ArgumentTypeError("path", "a path", describe(path))
    path = Path(path)
    if not path.parent.is_dir():
        raise ArgumentError("path", "a file in a folder", f"no folder {path.parent}")
    if path.exists() and not path.is_file():
        raise ArgumentError("path", "a file", f"a folder or the like at {path}")
    return path


def _where(path: Path, place: Place) -> str:
    return f"{path}, {place[0]} {place[1]}"


def _difference(at: str, theirs: Any, mine: Any) -> str:
    """ "settings.max_epochs (3.0, found 5.0)"."""
    return f"{at} ({_short(mine)}, found {_short(theirs)})"


def _short(value: Any) -> str:
    text = repr(None if value is ABSENT else value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
