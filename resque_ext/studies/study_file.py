"""The file of a study: a header that says which study it is, and one line a run, for good.

A line is on the disk when `append` returns. Whoever is killed while it writes leaves at most a last
line without its end, which is cut off when the study goes on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from resque_ext.data.checks import describe
from resque_ext.retraining.record import RecordError
from resque_ext.storage.atomic import in_place
from resque_ext.studies.grid import Case
from resque_ext.studies.study_run import HEADER_FORMAT, StudyRun, is_header

try:
    import fcntl
except ImportError:  # Windows: nothing keeps two studies from one file there
    fcntl = None  # type: ignore[assignment]


class StudyError(ValueError):
    """A file that is not this study's."""


class StudyFile:
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
        RecordError: a line that is no run, the last unfinished one aside.
    """

    def __init__(self, path: Any, identity: Mapping[str, Any], grid: Iterable[Case]) -> None:
        self.path = check_path(path)
        self.header = {"format": HEADER_FORMAT, **json.loads(json.dumps(identity))}
        self.grid = {case.key: case for case in grid}
        self.runs: dict[tuple[str, float], StudyRun] = {}

    def __enter__(self) -> StudyFile:
        # Not "a": what is appended has to follow what was cut off.
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            self._lock()
            self._take_on(self.path.read_bytes())
            for run in self.runs.values():
                self.forget_checkpoint(run.seed)  # that a kill left behind after its run was kept
        except BaseException:
            os.close(self._file)
            raise
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        try:
            if kind is None:  # what was written last may have gone since
                self._check_in_place()
        finally:
            os.close(self._file)

    def append(self, run: StudyRun) -> None:
        """Puts a finished run on the disk; its checkpoint is of no use any more."""
        self._check_in_place()
        self._write(run.to_json().encode() + b"\n")
        self.forget_checkpoint(run.seed)

    def checkpoint(self, seed: int) -> Path:
        """Where the retraining of the case with that seed may keep its state."""
        return self.path.with_name(f"{self.path.name}.{seed:08x}.checkpoint")

    def forget_checkpoint(self, seed: int) -> None:
        """Removes it, and what a kill left of an attempt to write it."""
        path = self.checkpoint(seed)
        for leftover in path.parent.glob(f"{_escaped(path.name)}*"):
            leftover.unlink(missing_ok=True)

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StudyError(
                f"path: expected a file that no other study writes, found {self.path} in use"
            ) from None

    def _take_on(self, content: bytes) -> None:
        self._size = len(content)
        whole, end, rest = content.rpartition(b"\n")
        if not end:
            whole = b""
        header = json.dumps(self.header).encode()
        lines = whole.split(b"\n") if end else []
        if not lines:
            if not header.startswith(rest):
                raise StudyError(
                    f"path: expected a study's file, found {self.path} that begins with "
                    f"{rest[:40]!r}"
                )
            self._cut(0)
            self._write(header + b"\n")
            _sync_folder(self.path.parent)
            return
        self._check_header(lines[0])
        for number, line in enumerate(lines[1:], start=2):
            self._add(line, number)
        if rest:
            try:  # all but the end of the line was written
                self._add(rest, len(lines) + 1)
            except RecordError:
                self._cut(len(content) - len(rest))
            else:
                self._write(b"\n")
        os.lseek(self._file, 0, os.SEEK_END)

    def _check_header(self, line: bytes) -> None:
        if not is_header(line):
            raise StudyError(
                f"path: expected a study's file, found {self.path} whose first line is no header"
            )
        found = json.loads(line)
        differing = list(_differences(self.header, found))
        if differing:
            raise StudyError(
                f"path: expected the file of this study, found {self.path} of another, which "
                f"differs in {'; '.join(differing)}"
            )

    def _add(self, line: bytes, number: int) -> None:
        where = f"{self.path}, line {number}"
        try:
            run = StudyRun.from_json(line.decode())
        except (RecordError, UnicodeDecodeError) as error:
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

    def _cut(self, size: int) -> None:
        os.ftruncate(self._file, size)
        self._size = size
        os.lseek(self._file, size, os.SEEK_SET)

    def _write(self, data: bytes) -> None:
        os.lseek(self._file, 0, os.SEEK_END)
        self._size += len(data)
        while data:
            data = data[os.write(self._file, data) :]
        os.fsync(self._file)
        self._check_in_place()

    def _check_in_place(self) -> None:
        """Raises StudyError where somebody else deleted, replaced or changed the file."""
        found = os.fstat(self._file).st_size
        if in_place(self.path, self._file) and found == self._size:
            return
        what = f"{found} bytes instead of {self._size}" if self.path.exists() else "it deleted"
        if found == self._size and self.path.exists():
            what = "another file in its place"
        raise StudyError(
            f"path: expected {self.path} as this study wrote it, found {what}: runs that were "
            "finished meanwhile are lost"
        )


def check_path(path: Any) -> Path:
    """A file in a folder that is there.

    Raises:
        TypeError, ValueError: it is not.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path: expected a path, found {describe(path)}")
    path = Path(path)
    if not path.parent.is_dir():
        raise ValueError(f"path: expected a file in a folder, found no folder {path.parent}")
    if path.exists() and not path.is_file():
        raise ValueError(f"path: expected a file, found a folder or the like at {path}")
    return path


def _differences(expected: Any, found: Any, name: str = "") -> Iterable[str]:
    """What differs: "settings.max_epochs (3.0, found 5.0)"."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in dict.fromkeys((*expected, *found)):
            inner = f"{name}.{key}" if name else key
            yield from _differences(expected.get(key), found.get(key), inner)
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for i, (a, b) in enumerate(zip(expected, found, strict=True)):
            yield from _differences(a, b, f"{name}[{i}]")
    elif expected != found:
        yield f"{name} ({_short(expected)}, found {_short(found)})"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _sync_folder(folder: Path) -> None:
    """So that the name of a new file is on the disk too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
