"""The indices: streaming, mergeable accumulators over ops; they know nothing of models."""

from resque_ext.indices.resque_dist import ResqueDist, ResqueDistResult, resque_dist

__all__ = ["ResqueDist", "ResqueDistResult", "resque_dist"]
