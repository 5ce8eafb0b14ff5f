"""Tables of results for notebooks: plain HTML without a style, so that they fit light and dark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def table(
    title: str, heads: Sequence[str], rows: Iterable[Sequence[str]], notes: Iterable[str] = ()
) -> str:
    """A table with a caption, its text escaped; notes stand below it, a paragraph each."""
    head = "".join(f"<th>{escape(each)}</th>" for each in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows
    )
    below = "".join(f"<p>{escape(note)}</p>\n" for note in notes)
    return (
        f"<table>\n<caption>{escape(title)}</caption>\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{body}</tbody>\n</table>\n{below}"
    )


def number(value: float | None, digits: int = 4) -> str:
    """Significant digits; nothing for what is not known."""
    return "" if value is None else f"{value:.{digits}g}"
