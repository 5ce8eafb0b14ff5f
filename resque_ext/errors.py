"""Errors that carry what they say, and those that the command line knows before torch is loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, TypeVar

_Error = TypeVar("_Error", bound="InputError")


class BackendError(RuntimeError):
    """The compiled kernels cannot do what was asked: says what is missing and how to get it."""


class InputError(Exception):
    """An argument is not what was expected. :func:`str` makes the message from the fields.

    Raised as :class:`ArgumentError`, a ValueError, or as :class:`ArgumentTypeError`, a TypeError.

    Attributes:
        argument: the name of the argument, or the place in a file.
        expected: what it has to be.
        found: what it is. `{row}` in it stands for `row`.
        fix: what to do about it, or None.
        side: "old" or "new", or None where the argument says it or there are no sides.
        row: the position of the row that is wrong, as the caller counts rows, or None.
    """

    def __init__(
        self,
        argument: Any,
        expected: Any,
        found: Any,
        *,
        fix: Any = None,
        side: str | None = None,
        row: int | str | None = None,
    ) -> None:
        self.argument, self.expected, self.found = str(argument), str(expected), str(found)
        self.fix = None if fix is None else str(fix)
        self.side, self.row = side, row
        super().__init__(str(self))

    @property
    def reason(self) -> str:
        """The message without the argument: what was expected, found and can be done."""
        found = self.found
        if self.row is not None:
            found = found.replace("{row}", str(self.row))
        return f"expected {self.expected}, found {found}" + (f" ({self.fix})" if self.fix else "")

    def __str__(self) -> str:
        side = f"{self.side}: " if self.side else ""
        return f"{side}{self.argument}: {self.reason}"

    def but(self: _Error, **changes: Any) -> _Error:
        """The same error with other fields."""
        return _made(type(self), self.__dict__ | changes)

    def __reduce__(self) -> Any:  # an error is sent between processes
        return _made, (type(self), dict(self.__dict__))


def _made(kind: type[_Error], fields: dict[str, Any]) -> _Error:
    names = ("argument", "expected", "found", "fix", "side", "row")
    return kind(**{name: fields[name] for name in names})


class ArgumentError(InputError, ValueError):
    """The value of an argument is not what was expected."""


class ArgumentTypeError(InputError, TypeError):
    """The type of an argument is not what was expected."""


def renamed(error: _Error, **names: str) -> _Error:
    """The same error, where arguments have other names: `features`, say, is here the old side."""
    there = (names.get(each, each) for each in error.argument.split(", "))
    return error.but(argument=", ".join(there))


def within(place: str, error: Exception) -> Exception:
    """The same error, of which the message begins with a place: a side, a source, a file.

    A ValueError instead where the error's own type takes more than a message.
    """
    if isinstance(error, InputError):
        return error.but(argument=f"{place}: {error.argument}")
    message = f"{place}: {error}"
    try:
        return type(error)(message)
    except TypeError:  # json.JSONDecodeError and UnicodeDecodeError are such
        return ValueError(message)


@contextlib.contextmanager
def needing(argument: str, package: str, expected: str, extra: str) -> Iterator[None]:
    """Around the imports of a package that an extra of this one brings.

    Raises:
        ArgumentError: it is not installed. Any other import that fails raises as it is.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise ArgumentError(
            argument, expected, f"none: pip install 'resque-ext[{extra}]'"
        ) from None
