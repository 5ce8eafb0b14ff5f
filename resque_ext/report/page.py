"""A screening on one page: HTML with its data, style and script inside, which loads nothing.

What a user named (models, candidates, classes, files) is in the page only as compressed base64, and
its script makes text of it, never markup. A policy allows that script and style, by their hashes,
and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import html
import os
import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from resque_ext.errors import ArgumentError
from resque_ext.report import columns
from resque_ext.report.columns import FORMAT
from resque_ext.screening.results import PairResult
from resque_ext.storage.atomic import replaced

ASSETS = resources.files("resque_ext.report") / "assets"
STYLES = ("uPlot.min.css", "page.css")
SCRIPTS = ("data.js", "table.js", "chart.js", "heat.js", "pair.js", "export.js", "page.js")
# What each kind of report begins with, by its suffix: only such a file is written over unasked.
HEADS = {
    ".html": '<meta name="generator" content="resque_ext report">',
    ".json": f'{{"format": "{FORMAT}"',
    ".csv": "model,candidate,",
}


def make_report(
    pairs: Iterable[PairResult],
    meta: Mapping[str, Any] | None = None,
    made_at: str | None = None,
    kind: str = ".html",
    rank_by: str | None = None,
) -> str:
    """The report of a screening; equal arguments give equal text.

    Args:
        pairs: what was found, in any order; each pair of a model and a candidate once.
        meta: environment and options, JSON of any shape; shown as nested lists.
        made_at: when, as the report is to say it; None says nothing.
        kind: ".html" for the page, ".json" or ".csv" for its numbers alone, with all digits.
        rank_by: the index or the measure of the predicted cost by which the page is sorted at
            first; None for the first index.

    Raises:
        TypeError: `pairs` has something else than PairResult.
        ValueError: no pair, the same pair twice, a value that is not a finite number, another kind.
    """
    if kind not in HEADS:
        raise ArgumentError("kind", f"one of {', '.join(HEADS)}", f"{kind!r}")
    checked = columns.check_pairs(pairs)
    if kind == ".csv":
        return columns.to_csv(checked)
    header = {"format": FORMAT, "resque_ext": _version(), "made_at": made_at, "meta": meta or {}}
    if kind == ".json":
        return columns.to_json(checked, header)
    return _page(checked, header | {"rank_by": _criterion(checked, rank_by)})


def write_report(path: str | os.PathLike[str], text: str, force: bool = False) -> None:
    """Writes a report of `make_report`, of the kind of the suffix, in one step or not at all.

    Raises:
        FileNotFoundError: its folder does not exist.
        FileExistsError: there is something that is not a report of this kind, and `force` is off.
        ValueError: a folder, or another suffix.
    """
    path = Path(path)
    check_output(path, force)
    with replaced(path) as beside:
        beside.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")


def check_output(path: Path, force: bool) -> None:
    """Raises what `write_report` raises of a path."""
    if path.suffix not in HEADS:
        raise ArgumentError(
            "output", f"the suffix {', '.join(HEADS)}", f"{path.suffix or 'none'!r}"
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(f"output: expected a folder at {path.parent}, found none")
    if path.exists() and not path.is_file():
        raise ArgumentError("output", f"a file or none at {path}", "no regular file")
    if path.exists() and not force:
        with path.open("rb") as file:
            head = file.read(256)
        if HEADS[path.suffix].encode() not in head:
            raise FileExistsError(
                f"output: expected none or an earlier report at {path}, found another file "
                "(--force replaces it)"
            )


def _criterion(pairs: list[PairResult], rank_by: str | None) -> str | None:
    """The name that `columns.rank` has for it."""
    known = list(columns.rank(pairs))
    if rank_by is None:
        return known[0] if known else None
    for name in known:
        if name.split(".", 1)[1] == rank_by:
            return name
    listed = [name.split(".", 1)[1] for name in known]
    raise ArgumentError("rank_by", f"one of {listed}", f"{rank_by!r}")


def _page(pairs: list[PairResult], header: Mapping[str, Any]) -> str:
    style = "\n".join(_asset(name) for name in STYLES)
    script = _script()
    models = len({pair.model for pair in pairs})
    candidates = len({pair.candidate for pair in pairs})
    summary = f"{_count(models, 'model')}, {_count(candidates, 'candidate')}"
    failed = sum(pair.error is not None for pair in pairs)
    parts = {
        "POLICY": _policy(style, script),
        "PAIRS": _count(len(pairs), "pair"),
        "SUMMARY": f"{_count(len(pairs), 'pair')}: {summary}; {failed:,} failed",
        "MADE_BY": f"resque_ext {header['resque_ext']}",
    }
    if header["made_at"] is not None:
        parts["MADE_BY"] += f", {header['made_at']}"
    parts = {name: html.escape(text) for name, text in parts.items()}
    # These go in as they are: the hashes are of this text, and base64 has nothing to escape.
    parts |= {"STYLE": style, "SCRIPT": script, "DATA": columns.pack(pairs, header)}
    return re.sub(r"@@([A-Z_]+)@@", lambda match: parts[match[1]], _asset("page.html"))


def _script() -> str:
    library = _asset("uPlot.iife.min.js")
    banner, code = library.split("\n", 1)  # its licence stands there instead, without an address
    licence = f"/* uPlot {banner[banner.index('(v') + 2 : banner.index(')')]}\n"
    licence += _asset("uPlot.LICENSE").strip() + "\n*/\n"
    own = "\n".join(_asset(name) for name in SCRIPTS)
    return f'{licence}{code.strip()}\n(() => {{\n"use strict";\n{own}}})();\n'


def _policy(style: str, script: str) -> str:
    return (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _version() -> str:
    from resque_ext import __version__

    return __version__
