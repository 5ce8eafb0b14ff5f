"""The ops: tensors in, tensors out; they know nothing of indices or models."""

from resque_ext.ops.class_moments import class_moments

__all__ = ["class_moments"]
