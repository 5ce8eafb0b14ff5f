"""What `module:callable` names; nothing is ever evaluated."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from resque_ext.data.checks import describe
from resque_ext.errors import ArgumentError, ArgumentTypeError


def find_callable(name: str, what: str) -> Callable[..., Any]:
    """What `module:callable` names; `what` it is for begins the message of an error.

    Raises:
        ValueError: no such module or callable.
        TypeError: it is not callable.
    """
    module_name, colon, path = name.partition(":")
    if not colon or not module_name or not path:
        raise ArgumentError(what, "module:callable", f"{name!r}")
    try:
        with returning(what, module_name):
            found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if missing != module_name and not module_name.startswith(f"{missing}."):
            raise  # of the caller's own imports
        raise ArgumentError(what, "a module", f"none called {missing!r}") from None
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise ArgumentError(what, f"{module_name} to have {path!r}", f"no {part!r}") from None
    if not callable(found):
        raise ArgumentTypeError(what, f"{name!r} to be callable", describe(found))
    return found


@contextlib.contextmanager
def returning(what: str, name: str) -> Iterator[None]:
    """Raises ValueError where a function or module of the caller's ends the program instead."""
    try:
        yield
    except SystemExit as error:
        raise ArgumentError(
            what,
            f"{name!r} to return",
            f"that it ended the program (SystemExit: {error.code})",
        ) from None


@contextlib.contextmanager
def current_folder_first() -> Iterator[None]:
    """As `python -m` does; a program started by its name does not look there."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)
