"""What retraining really costs: train a copy until it is good enough, and measure everything."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from resque_ext.retraining.checkpoint import CheckpointError
from resque_ext.retraining.heads import freeze, replace_head
from resque_ext.retraining.outlook import Outlook, Span
from resque_ext.retraining.record import MEASURES, RecordError, RetrainingCost
from resque_ext.retraining.retrain import retrain
from resque_ext.retraining.run import RetrainingError

if TYPE_CHECKING:
    from resque_ext.cost_model import CostModel, Prediction, leave_one_kind_out
    from resque_ext.studies import (
        Correlation,
        Correlations,
        Study,
        StudyError,
        StudyRun,
        correlate,
        export_runs,
        read_runs,
        study,
    )

# Built on this room, and offered here too.
_HOMES = {
    **dict.fromkeys(("CostModel", "Prediction", "leave_one_kind_out"), "resque_ext.cost_model"),
    **dict.fromkeys(
        (
            "Correlation",
            "Correlations",
            "Study",
            "StudyError",
            "StudyRun",
            "correlate",
            "export_runs",
            "read_runs",
            "study",
        ),
        "resque_ext.studies",
    ),
}

__all__ = [
    "MEASURES",
    "CheckpointError",
    "Correlation",
    "Correlations",
    "CostModel",
    "Outlook",
    "Prediction",
    "RecordError",
    "RetrainingCost",
    "RetrainingError",
    "Span",
    "Study",
    "StudyError",
    "StudyRun",
    "correlate",
    "export_runs",
    "freeze",
    "leave_one_kind_out",
    "read_runs",
    "replace_head",
    "retrain",
    "study",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
