"""Screening: many models, many candidate datasets, one ranked table."""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

logging.getLogger("resque_ext").addHandler(logging.NullHandler())  # quiet until somebody listens

if TYPE_CHECKING:
    from resque_ext.report import make_report, write_report
    from resque_ext.screening.budget import Budget
    from resque_ext.screening.candidates import Candidate
    from resque_ext.screening.old_side import ShelfModel
    from resque_ext.screening.results import PairResult
    from resque_ext.screening.store import StoreError, export_store, read_store
    from resque_ext.screening.table import Screening

# Loaded when they are asked for: what a screening needs is not needed to import the package.
_HOMES = {
    "Budget": "resque_ext.screening.budget",
    "Candidate": "resque_ext.screening.candidates",
    "PairResult": "resque_ext.screening.results",
    "Screening": "resque_ext.screening.table",
    "ShelfModel": "resque_ext.screening.old_side",
    "StoreError": "resque_ext.screening.store",
    "export_store": "resque_ext.screening.store",
    "make_report": "resque_ext.report",
    "read_store": "resque_ext.screening.store",
    "write_report": "resque_ext.report",
}
__all__ = [
    "Budget",
    "Candidate",
    "PairResult",
    "Screening",
    "ShelfModel",
    "StoreError",
    "export_store",
    "make_report",
    "read_store",
    "screen",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
