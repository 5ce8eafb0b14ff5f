"""Writes docs/api.md: every public name with its signature and docstring, as they stand in code.

python docs/make_api.py writes the page; tests/project/test_docs.py checks that it is the newest.
"""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

PAGE = Path(__file__).with_name("api.md")
MODULES = (
    "resque_ext",
    "resque_ext.ops",
    "resque_ext.shifts",
    "resque_ext.distributed",
    "resque_ext.forecasting",
    "resque_ext.screening",
    "resque_ext.retraining",
    "resque_ext.energy",
)
# A role, or a call in backticks; plain backticks may name formats, as those of files.
NAMES = re.compile(r":\w+:`~?(resque_ext\.[\w.]+)`|(?<=`)resque_ext\.[\w.]+(?=\()")


def page() -> str:
    """The whole page."""
    parts = [
        "# API reference",
        "",
        "Made from the docstrings by `docs/make_api.py`. Shapes are in brackets, K or C classes, N",
        "samples, D columns; angles are in units of π.",
    ]
    for name in MODULES:
        module = importlib.import_module(name)
        parts += ["", f"## {name}", "", *_text(module)]
        for public in _public(module):
            parts += _entry(public, getattr(module, public))
    text = "\n".join(parts) + "\n"
    named = (found.group(1) or found.group() for found in NAMES.finditer(text))
    missing = [name for name in named if not _exists(name)]
    if missing:
        raise ValueError(f"docstrings: expected names that exist, found {', '.join(missing)}")
    return text


def _exists(path: str) -> bool:
    """Whether a dotted name of the package leads to something."""
    found: Any = importlib.import_module("resque_ext")
    for part in path.split(".")[1:]:
        if not hasattr(found, part) and inspect.ismodule(found):
            try:
                importlib.import_module(f"{found.__name__}.{part}")
            except ModuleNotFoundError:
                return False
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return True


def _public(module: ModuleType) -> list[str]:
    names = getattr(module, "__all__", None)
    if names is None:
        names = [
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
        ]
    return [name for name in names if not name.startswith("__") and not _is_module(module, name)]


def _is_module(module: ModuleType, name: str) -> bool:
    return inspect.ismodule(getattr(module, name))


def _entry(name: str, value: Any) -> list[str]:
    if not callable(value):
        if isinstance(value, dict):
            return ["", f"### {name}", "", f"A mapping with {', '.join(f'`{k}`' for k in value)}."]
        return ["", f"### {name}", "", f"`{value!r}`"]
    lines = ["", f"### {name}", "", "```text", f"{name}{_signature(value)}", "```", ""]
    lines += _text(value)
    if inspect.isclass(value):
        for member, function in vars(value).items():
            function = getattr(function, "__func__", function)
            if member.startswith("_") or not inspect.isfunction(function) or not function.__doc__:
                continue
            lines += ["", f"**{name}.{member}**`{_signature(function)}`", "", *_text(function)]
    return lines


def _signature(value: Any) -> str:
    try:
        text = str(inspect.signature(value))
    except ValueError:  # of a class that takes what its base takes
        return "(...)"
    text = re.sub(r"(: |-> )'([^']*)'", r"\1\2", text)  # annotations are kept as text
    return re.sub(r" at 0x[0-9a-f]+", "", text).replace("<factory>", "...")


def _text(value: Any) -> list[str]:
    """A docstring as Markdown: what is indented in it stays as it is written."""
    doc = inspect.getdoc(value) or ""
    lines, inside = [], False
    for line in doc.splitlines():
        indented = line.startswith("    ")
        if indented and not inside:
            lines.append("```text")
        elif inside and line and not indented:
            while lines and not lines[-1]:
                lines.pop()
            lines += ["```", ""]
        inside = indented or (inside and not line)
        lines.append(line)
    return [*lines, "```"] if inside else lines


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
