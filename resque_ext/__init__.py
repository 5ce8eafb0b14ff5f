"""resque_ext: what reusing a trained model will cost, before any retraining."""

__version__ = "0.1.0"

from resque_ext import ops, shifts
from resque_ext._backend import BackendError, backend, build_info
from resque_ext.indices import ResqueDist, ResqueDistResult, resque_dist
from resque_ext.scoring import score

__all__ = [
    "BackendError",
    "ResqueDist",
    "ResqueDistResult",
    "__version__",
    "backend",
    "build_info",
    "ops",
    "resque_dist",
    "score",
    "shifts",
]
