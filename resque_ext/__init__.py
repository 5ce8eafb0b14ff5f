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
    PairDistanceResult,
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
from resque_ext.model.pooling import pooled
from resque_ext.scoring import score

__all__ = [
    "Arm",
    "ArmResult",
    "BackendError",
    "LinearResidual",
    "LinearResidualResult",
    "PairDistanceResult",
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
    "linear_residual",
    "ops",
    "pooled",
    "preindex",
    "representation_distance",
    "resque_dist",
    "resque_task",
    "score",
    "screen",
    "shifts",
]


def __getattr__(name: str) -> Any:
    if name == "screen":  # which brings much that nothing else needs
        return importlib.import_module("resque_ext.screening.screen").screen
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
