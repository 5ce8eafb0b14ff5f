"""Which of several processes counts a device: the first, for as long as it has a window open.

A device's counter knows no processes. If each of several that meter one GPU reported what its
counter says, the sum over them would be several times what was used. So whoever opens a window
takes a lock on a file named after the device, in the system's folder for temporary files; the
others say that the device is counted already. The lock is the operating system's: it goes with the
process, however that ends. The file stays, empty. Several meters of one process share its lock.
"""

from __future__ import annotations

import os
import re
import tempfile
import threading
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

TAKEN = "another process meters it at the same time and counts it"

_mutex = threading.Lock()
_held: dict[str, list[int]] = {}  # by name: [file descriptor, how many windows need it]
_owner = os.getpid()


def folder() -> Path:
    """Where the files are; the same for every process of the machine."""
    return Path(tempfile.gettempdir())


def take(name: str) -> str | None:
    """Tries to become the process that counts `name`.

    Returns:
        None, or why the device is not to be counted here. Where there are no such locks (Windows, a
        read-only folder) every process counts.
    """
    global _owner
    with _mutex:
        if os.getpid() != _owner:  # a fork: the locks are those of the parent
            _held.clear()
            _owner = os.getpid()
        if name in _held:
            _held[name][1] += 1
            return None
        descriptor = _open(name)
        if descriptor is None:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return TAKEN
        except OSError:  # a file system without locks
            os.close(descriptor)
            return None
        _held[name] = [descriptor, 1]
        return None


def give_back(name: str) -> None:
    """Ends what a `take` that returned None began."""
    with _mutex:
        entry = _held.get(name)
        if entry is None or os.getpid() != _owner:
            return
        entry[1] -= 1
        if entry[1] == 0:
            del _held[name]
            # Explicitly: a forked child that still has the file open would keep the lock else.
            fcntl.flock(entry[0], fcntl.LOCK_UN)
            os.close(entry[0])


def _open(name: str) -> int | None:
    if fcntl is None:
        return None
    path = folder() / f"resque_ext-energy-{re.sub('[^A-Za-z0-9-]', '_', name)}.lock"
    # To read only, and not created where it exists: another user's file can then be locked too.
    for flags in (os.O_RDONLY, os.O_RDONLY | os.O_CREAT | os.O_EXCL, os.O_RDONLY):
        try:
            return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        except OSError:
            continue
    return None
