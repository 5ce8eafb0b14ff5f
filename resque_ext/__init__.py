"""resque_ext: what reusing a trained model will cost, before any retraining."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from resque_ext import distributed, ops, retraining, screening, shifts
    from resque_ext._backend import backend, build_info
    from resque_ext._errors import BackendError
    from resque_ext.forecasting import Forecast, forecast
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
    from resque_ext.screening.screen import screen

__all__ = [
    "Arm",
    "ArmResult",
    "BackendError",
    "Forecast",
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
    "distributed",
    "forecast",
    "linear_residual",
    "ops",
    "pooled",
    "preindex",
    "representation_distance",
    "resque_dist",
    "resque_task",
    "retraining",
    "score",
    "screen",
    "screening",
    "shifts",
]

# Loaded when they are asked for, so that the command line shows its help without importing torch.
_MODULES = ("distributed", "ops", "retraining", "screening", "shifts")
_HOMES = {
    "BackendError": "_errors",
    "Forecast": "forecasting",
    "backend": "_backend",
    "build_info": "_backend",
    "forecast": "forecasting",
    "pooled": "model.pooling",
    "score": "scoring",
    "screen": "screening.screen",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _MODULES:
        found: Any = importlib.import_module(f"{__name__}.{name}")
    else:
        home = importlib.import_module(f"{__name__}.{_HOMES.get(name, 'indices')}")
        found = getattr(home, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
