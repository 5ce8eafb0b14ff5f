"""A store of JSON lines: each is on disk before the next begins; a torn last one is cut off."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from resque_ext.data.files import parse_json
from resque_ext.screening.store import (
    FORMAT,
    Finished,
    Header,
    PairKey,
    Store,
    StoreError,
    check_in_place,
    locked,
    refuse_results,
    writable,
)
from resque_ext.storage.atomic import in_place

_KINDS = {"pair", "old_side", "options"}  # of lines
_BEGIN = json.dumps({"format": FORMAT})[:-1].encode()  # of every header


class LinesStore(Store):
    """See :func:`resque_ext.screening.store.open_store`.

    The first line is the header; each other one has a "pair" (with its "way"), an "old_side", or
    the "options" of a run that were others. A pair's later line takes the place of its earlier one.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self.path, self.header = path, header
        self._file = locked(path)
        self._size = 0  # bytes that are to be in the file
        self._finished: dict[PairKey, Finished] = {}
        self._old_sides: dict[str, tuple[str, bytes]] = {}

    @classmethod
    def open(cls, path: Path, header: Header, resume: bool) -> LinesStore:
        new = not path.exists()
        store = cls(path, header)
        new = new and os.fstat(store._file.fileno()).st_size == 0  # nobody was quicker
        try:
            store._prepare(resume)
        except BaseException:
            if new and in_place(path, store._file.fileno()):
                path.unlink(missing_ok=True)
            store.close()
            raise
        return store

    @classmethod
    def read(cls, path: Path) -> tuple[Header, list[Finished]]:
        data = path.read_bytes()
        found: dict[PairKey, Finished] = {}
        header = None
        for number, values in _lines(data, path):
            if number == 1:
                header = Header.from_dict(values, path)
            elif "options" in values and header is not None:
                header = replace(header, options=_options(values, number, path))
            elif "pair" in values:
                pair = _pair(values, number, path)
                found[pair.key] = pair
        if header is None:
            raise StoreError(f"store: {path}: expected a header in the first line, found none")
        return header, list(found.values())

    def _prepare(self, resume: bool) -> None:
        with writable(self.path, "a file that can be read"):
            data = self._file.read()
        whole = data.rfind(b"\n") + 1
        theirs = None
        for number, values in _lines(data, self.path):
            if number == 1:
                theirs = Header.from_dict(values, self.path)
                theirs.check(self.header, self.path)
                self.earlier_options = theirs.options
            elif "options" in values:
                self.earlier_options = _options(values, number, self.path)
            elif "pair" in values:
                pair = _pair(values, number, self.path)
                self._finished[pair.key] = pair
            else:
                model, digest, state = _old_side(values, number, self.path)
                self._old_sides[model] = digest, state
        # The beginning of a header is what is left of a store that was killed in its first write.
        if theirs is None and data[: len(_BEGIN)] != _BEGIN[: len(data)]:
            raise StoreError(
                f"store: {self.path}: expected JSON lines, found a file that begins with "
                f"{data[:16]!r}"
            )
        refuse_results(self.path, len(self._finished), resume)
        with writable(self.path, "a file that can be written"):
            self._cut(whole)
        if theirs is None:
            self._append(self.header.to_dict(), "room for the header")
            _sync_folder(self.path.parent)
        elif self.earlier_options != self.header.options:
            self._append({"options": dict(self.header.options)}, "room for the options")

    def finished(self) -> dict[PairKey, Finished]:
        return dict(self._finished)

    def add(self, pair: Finished, replace: bool = False) -> None:
        if pair.key in self._finished and not replace:
            raise StoreError(f"store: {self.path}: expected the pair {pair.key} once, found it")
        line = {"pair": json.loads(pair.result.to_json()), "way": json.loads(pair.way())}
        self._append(line, f"room for the pair {pair.key}")
        self._finished[pair.key] = pair

    def old_side(self, model: str) -> tuple[str, bytes] | None:
        return self._old_sides.get(model)

    def keep_old_side(self, model: str, digest: str, state: bytes) -> None:
        encoded = base64.b64encode(state).decode()
        old = {"model": model, "digest": digest, "state": encoded}
        self._append({"old_side": old}, f"room for the old side of {model!r}")
        self._old_sides[model] = digest, state

    def close(self) -> None:
        self._file.close()

    def _append(self, values: dict[str, Any], expected: str) -> None:
        """One line, all of it on disk, or none of it."""
        self.check()
        line = memoryview(json.dumps(values, allow_nan=False).encode() + b"\n")
        descriptor = self._file.fileno()
        end = os.lseek(descriptor, 0, os.SEEK_END)
        self._size = end + len(line)
        try:
            with writable(self.path, expected):
                while line:  # past Python's buffer, which would write its rest again at the end
                    line = line[os.write(descriptor, line) :]
                os.fsync(descriptor)
        except BaseException:
            self._cut(end)
            raise
        self.check()

    def _cut(self, size: int) -> None:
        os.ftruncate(self._file.fileno(), size)
        os.lseek(self._file.fileno(), size, os.SEEK_SET)
        self._size = size

    def check(self) -> None:
        check_in_place(self.path, self._file)
        found = os.fstat(self._file.fileno()).st_size
        if found != self._size:
            raise StoreError(
                f"store: {self.path}: expected {self._size} bytes as they were written, found "
                f"{found}: another program changed it"
            )


def _lines(data: bytes, path: Path) -> Iterator[tuple[int, Any]]:
    """(number, value) of every whole line; a torn last one is left out."""
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        try:
            values = parse_json(line)
        except ValueError as error:
            raise StoreError(f"store: {path}:{number}: expected JSON, found {error}") from None
        if number > 1 and not (isinstance(values, dict) and _KINDS & values.keys()):
            raise StoreError(f"store: {path}:{number}: expected a pair, found another line")
        yield number, values


def _pair(values: dict[str, Any], number: int, path: Path) -> Finished:
    pair, way = json.dumps(values["pair"]), json.dumps(values.get("way"))
    return Finished.parse(pair, way, f"{path}:{number}")


def _options(values: dict[str, Any], number: int, path: Path) -> dict[str, Any]:
    options = values["options"]
    if not isinstance(options, dict):
        raise StoreError(f"store: {path}:{number}: expected options, found {str(options)[:80]}")
    return options


def _old_side(values: dict[str, Any], number: int, path: Path) -> tuple[str, str, bytes]:
    old = values["old_side"]
    texts = (
        [old.get(name) for name in ("model", "digest", "state")] if isinstance(old, dict) else []
    )
    try:
        if not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError("another form")
        return texts[0], texts[1], base64.b64decode(texts[2], validate=True)
    except ValueError as error:
        raise StoreError(f"store: {path}:{number}: expected an old side, found {error}") from None


def _sync_folder(folder: Path) -> None:
    """A new file's name is in its folder, which has to reach the disk too."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # a system on which folders cannot be opened
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
