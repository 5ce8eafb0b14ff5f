"""Screening: many models, many candidate datasets, one ranked table."""

from __future__ import annotations

import importlib
import logging
from typing import Any

logging.getLogger("resque_ext").addHandler(logging.NullHandler())  # quiet until somebody listens

# Loaded when they are asked for: what a screening needs is not needed to import the package.
_HOMES = {
    "Budget": "budget",
    "Candidate": "feeds",
    "PairResult": "pair",
    "Screening": "table",
    "ShelfModel": "models",
    "StoreError": "store",
    "make_report": "report",
    "read_store": "store",
    "write_report": "report",
}
__all__ = [*_HOMES, "screen"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
