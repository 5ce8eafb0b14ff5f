"""resque_ext: what reusing a trained model will cost, before any retraining."""

import importlib
from typing import Any

__version__ = "0.1.0"

from resque_ext import ops, shifts
from resque_ext._backend import BackendError, backend, build_info
from resque_ext.indices import (
    Arm,
    ArmResult,
    LinearResidual,
    LinearResidualResult,
    PreIndexResult,
    RepresentationDistance,
    RepresentationDistanceResult,
    ResqueDist,
    ResqueDistResult,
    ResqueTaskResult,
    adjusted_rand_index,
    arm,
    linear_residual,
    preindex,
    representation_distance,
    resque_dist,
    resque_task,
)
from resque_ext.scoring import score

__all__ = [
    "Arm",
    "ArmResult",
    "BackendError",
    "Forecast",
    "LinearResidual",
    "LinearResidualResult",
    "PreIndexResult",
    "RepresentationDistance",
    "RepresentationDistanceResult",
    "ResqueDist",
    "ResqueDistResult",
    "ResqueTaskResult",
    "__version__",
    "adjusted_rand_index",
    "arm",
    "backend",
    "build_info",
    "forecast",
    "linear_residual",
    "ops",
    "preindex",
    "representation_distance",
    "resque_dist",
    "resque_task",
    "score",
    "screen",
    "shifts",
]


# They bring much that nothing else needs.
_LAZY = {
    "Forecast": "resque_ext.forecasting",
    "forecast": "resque_ext.forecasting",
    "screen": "resque_ext.screening.screen",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
