"""The indices: streaming, mergeable accumulators over ops, and what each reads of a model.

`base` has the contract, `adapters` one class an index, `registry` all of them by name.
"""

from resque_ext.indices._contingency import adjusted_rand_index
from resque_ext.indices.arm import Arm, ArmResult, arm
from resque_ext.indices.linear_residual import (
    LinearResidual,
    LinearResidualResult,
    linear_residual,
)
from resque_ext.indices.preindex import PairDistanceResult, PreIndexResult, preindex
from resque_ext.indices.representation_distance import (
    RepresentationDistance,
    RepresentationDistanceResult,
    representation_distance,
)
from resque_ext.indices.resque_dist import ResqueDist, ResqueDistResult, resque_dist
from resque_ext.indices.resque_task import ResqueTaskResult, resque_task

# Which of them stream; each is the whole of a part of the data, and the parts merge.
ACCUMULATORS = (ResqueDist, RepresentationDistance, Arm, LinearResidual)

__all__ = [
    "Arm",
    "ArmResult",
    "LinearResidual",
    "LinearResidualResult",
    "PairDistanceResult",
    "PreIndexResult",
    "RepresentationDistance",
    "RepresentationDistanceResult",
    "ResqueDist",
    "ResqueDistResult",
    "ResqueTaskResult",
    "adjusted_rand_index",
    "arm",
    "linear_residual",
    "preindex",
    "representation_distance",
    "resque_dist",
    "resque_task",
]
