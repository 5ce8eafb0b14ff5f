"""A TOML file with the line of every key, which the standard library's parser does not keep."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

KeyPath = tuple[str, ...]
_HEADER = re.compile(r"\s*\[")
_POSITION = re.compile(r"\s*\(at line (\d+), column \d+\)")


class ConfigError(ValueError):
    """Everything that is wrong with a configuration.

    Attributes:
        lines: one for each mistake.
    """

    def __init__(self, lines: list[str]) -> None:
        super().__init__("; ".join(lines))
        self.lines = lines


class Document:
    """A parsed file.

    Attributes:
        path: of the file.
        values: its content.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise ConfigError([f"{path}: expected a TOML file, found none"])
        try:
            text = path.read_bytes().decode()
            self.values: dict[str, Any] = tomllib.loads(text)
        except UnicodeDecodeError as error:
            raise ConfigError([f"{path}: expected text in UTF-8, found {error.reason}"]) from None
        except tomllib.TOMLDecodeError as error:
            message = str(error)
            found = _POSITION.search(message)
            line = int(found.group(1)) if found else text.count("\n") + 1
            reason = _POSITION.sub("", message).rstrip(".")
            raise ConfigError([f"{path}:{line}: expected TOML, found {reason}"]) from None
        self._lines = dict(_key_lines(text))

    def line(self, key: KeyPath) -> int:
        """Where a key is given, or the nearest thing that it would be part of."""
        while key and key not in self._lines:
            key = key[:-1]
        return self._lines.get(key, 1)

    def where(self, key: KeyPath) -> str:
        """How an error begins: file, line and key."""
        return f"{self.path}:{self.line(key)}: {'.'.join(key)}"


def _key_lines(text: str) -> Iterator[tuple[KeyPath, int]]:
    """(key, line) of every header and assignment: each statement is parsed by itself, so that the
    rules of quotes and dots are the parser's own."""
    table: KeyPath = ()
    seen: set[KeyPath] = set()
    statement, begin = "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        if not statement and (not line.strip() or line.lstrip().startswith("#")):
            continue
        begin = begin if statement else number
        statement += line + "\n"
        try:
            values = tomllib.loads(statement)
        except tomllib.TOMLDecodeError:
            continue  # goes on in the next line
        keys = list(_paths(values))
        if _HEADER.match(statement):
            table = keys[-1]
            keys = [table[:i] for i in range(1, len(table) + 1)]
        else:
            keys = [table + key for key in keys]
        for key in keys:
            if key not in seen:
                seen.add(key)
                yield key, begin
        statement = ""


def _paths(values: Any) -> Iterator[KeyPath]:
    """Every key of nested tables, the outer ones first."""
    if isinstance(values, list) and len(values) == 1:  # a header of an array of tables
        values = values[0]
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield (key,)
            yield from ((key, *rest) for rest in _paths(value))
