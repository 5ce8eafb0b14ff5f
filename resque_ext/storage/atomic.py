"""Files that a reader finds whole, the old one or the new, whenever the writer was killed; and open
files that somebody else takes away."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A path beside `path` for the new content, which is on the disk when it takes its place.

    Where the block raises, `path` is as it was, and nothing is left beside it.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield beside
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            beside.unlink()
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Puts the names of new files on the disk; their contents alone do not bring them there."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # a system on which folders cannot be opened
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def in_place(path: Path, file: int) -> bool:
    """Whether the open file is the one at `path` still: not deleted, renamed or replaced."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except OSError:
        return False
