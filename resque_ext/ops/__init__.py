"""The ops: tensors in, tensors out; they know nothing of indices or models."""

from resque_ext.ops.class_moments import class_moments
from resque_ext.ops.lloyd_step import LloydStep, lloyd_step
from resque_ext.ops.pair_counts import pair_counts
from resque_ext.ops.row_distances import row_distances
from resque_ext.ops.spatial_mean import spatial_mean
from resque_ext.ops.value_histogram import ValueHistogram, value_histogram
from resque_ext.ops.wasserstein import Distance, wasserstein_from_histograms

__all__ = [
    "Distance",
    "LloydStep",
    "ValueHistogram",
    "class_moments",
    "lloyd_step",
    "pair_counts",
    "row_distances",
    "spatial_mean",
    "value_histogram",
    "wasserstein_from_histograms",
]
