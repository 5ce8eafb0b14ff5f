"""A TOML file with the line of every key, which the standard library's parser does not keep."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from resque_ext.data.files import read_bytes

KeyPath = tuple[str, ...]
# An assignment that has no other key in it, as nearly all are: parsing it would take long.
_BARE = re.compile(r"\s*([A-Za-z0-9_-]+)\s*=[^\[{]*")
_HEADER = re.compile(r"\s*\[")
# Strings and comments, in which brackets mean nothing; brackets; ends of lines.
_TOKEN = re.compile(
    r"""
    \"{3} (?:\\.|[^\\])*? \"{3,5} | '{3} .*? '{3,5}
    | " (?:\\.|[^"\\\n])* " | ' [^'\n]* ' | \# [^\n]* | [\[\]{}\n]
    """,
    re.DOTALL | re.VERBOSE,
)
MOST_BYTES = 4_000_000  # of a file: a million candidates are none that somebody wrote
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
        try:
            content = read_bytes(path, "a TOML file")
        except (OSError, ValueError) as error:
            raise ConfigError([str(error)]) from None
        if len(content) > MOST_BYTES:
            raise ConfigError(
                [
                    f"{path}: expected a TOML file of at most {MOST_BYTES:,} bytes, found "
                    f"{len(content):,}"
                ]
            )
        try:
            text = content.decode()
            self.values: dict[str, Any] = tomllib.loads(text)
        except UnicodeDecodeError as error:
            raise ConfigError([f"{path}: expected text in UTF-8, found {error.reason}"]) from None
        except RecursionError:
            raise ConfigError([f"{path}: expected TOML, found it nested too deep"]) from None
        except tomllib.TOMLDecodeError as error:
            message = str(error)
            found = _POSITION.search(message)
            line = int(found.group(1)) if found else text.count("\n") + 1
            reason = _POSITION.sub("", message).rstrip(".")
            raise ConfigError([f"{path}:{line}: expected TOML, found {reason}"]) from None
        self._text = text

    @functools.cached_property
    def _lines(self) -> dict[KeyPath, int]:
        return dict(_key_lines(self._text))

    def line(self, key: KeyPath) -> int:
        """Where a key is given, or the nearest thing that it would be part of."""
        while key and key not in self._lines:
            key = key[:-1]
        return self._lines.get(key, 1)

    def where(self, key: KeyPath) -> str:
        """How an error begins: file, line and key."""
        return f"{self.path}:{self.line(key)}: {'.'.join(key)}"


def _key_lines(text: str) -> Iterator[tuple[KeyPath, int]]:
    """(key, line) of every header and assignment: each statement with quotes, dots or brackets is
    parsed by itself, so that their rules are the parser's own."""
    table: KeyPath = ()
    seen: set[KeyPath] = set()
    for begin, statement in _statements(text):
        bare = _BARE.fullmatch(statement)
        keys = [(bare[1],)] if bare else list(_paths(tomllib.loads(statement)))
        if _HEADER.match(statement):
            table = keys[-1]
            keys = [table[:i] for i in range(1, len(table) + 1)]
        else:
            keys = [table + key for key in keys]
        for key in keys:
            if key not in seen:
                seen.add(key)
                yield key, begin


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """(first line, text) of every statement of a file that is TOML: it ends with its line, unless
    a bracket or a string is open."""
    start = depth = 0
    line = first = 1
    for token in _TOKEN.finditer(text):
        found = token[0]
        if found in ("[", "{"):
            depth += 1
        elif found in ("]", "}"):
            depth -= 1
        line += found.count("\n")
        if found == "\n" and depth == 0:
            yield from _statement(first, text[start : token.end()])
            start, first = token.end(), line
    yield from _statement(first, text[start:])


def _statement(first: int, text: str) -> Iterator[tuple[int, str]]:
    if text.strip() and not text.lstrip().startswith("#"):
        yield first, text


def _paths(values: Any) -> Iterator[KeyPath]:
    """Every key of nested tables, the outer ones first."""
    if isinstance(values, list) and len(values) == 1:  # a header of an array of tables
        values = values[0]
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield (key,)
            yield from ((key, *rest) for rest in _paths(value))
