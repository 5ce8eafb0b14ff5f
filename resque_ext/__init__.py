"""resque_ext: what reusing a trained model will cost, before any retraining."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from resque_ext import distributed, ops, retraining, screening, shifts
    from resque_ext.errors import BackendError
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
    from resque_ext.ops.backend import backend, build_info
    from resque_ext.scoring.score import score
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
    "BackendError": "errors",
    "Forecast": "forecasting",
    "backend": "ops.backend",
    "build_info": "ops.backend",
    "forecast": "forecasting",
    "pooled": "model.pooling",
    "score": "scoring",
    "screen": "screening.screen",
}
# Where public modules are, that users import from where they once were.
_MOVED = {
    "resque_ext.bench": "resque_ext.tools.bench",
    "resque_ext.demo": "resque_ext.tools.demo",
    "resque_ext.doctor": "resque_ext.tools.doctor",
    "resque_ext.files": "resque_ext.data.files",
    "resque_ext.normalization": "resque_ext.model.normalization",
    "resque_ext.retraining.cost_model": "resque_ext.cost_model.model",
    "resque_ext.retraining.energy": "resque_ext.energy",
    "resque_ext.retraining.figures": "resque_ext.cost_model.figures",
    "resque_ext.screening.anytime": "resque_ext.screening.stopping",
    "resque_ext.screening.cache": "resque_ext.screening.embedding_cache",
    "resque_ext.screening.pair": "resque_ext.screening.results",
    "resque_ext.screening.prefetch": "resque_ext.data.prefetch",
    "resque_ext.screening.sources": "resque_ext.data.sources",
}


class _MovedFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Importing a module of `_MOVED` gives the module where it is now."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(fullname, self) if fullname in _MOVED else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return importlib.import_module(_MOVED[spec.name])

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: it ran where it is."""


if not any(type(finder).__name__ == "_MovedFinder" for finder in sys.meta_path):
    sys.meta_path.append(_MovedFinder())


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
