"""The ops: tensors in, tensors out; they know nothing of indices or models."""

from resque_ext.ops.class_moments import class_moments
from resque_ext.ops.spatial_mean import spatial_mean

__all__ = ["class_moments", "spatial_mean"]
