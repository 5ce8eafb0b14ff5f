"""spatial_mean: one vector a sample, the mean over the positions of a layer's output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from resque_ext.data.checks import check_features
from resque_ext.ops import backend, reference
from resque_ext.ops._features import channel_view, kernel_view
from resque_ext.ops._library import define


def spatial_mean(features: Any) -> Tensor:
    """The mean over the positions of every sample and channel, summed in float64.

    Args:
        features: [N, C, H, W] (over H and W, for any memory format), [N, T, D] (over the T tokens)
            or [N, D] (as it is). float32, float64, float16 or bfloat16, on CPU or CUDA; a NumPy
            array is welcome. Gradients do not flow.

    Returns:
        [N, C] float32, float64 for float64: a mean in float16 would lose what the sum has kept. A
        sample's mean does not depend on the rest of the batch. NaN and infinity propagate.

    Raises:
        TypeError: a dtype, layout or device that is not taken.
        ValueError: another rank, or no position to average over.
    """
    return torch.ops.resque_ext.spatial_mean(check_features(features))


def mean_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the means of values of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@define("spatial_mean(Tensor features) -> Tensor")
def _spatial_mean(features: Tensor) -> Tensor:
    # Again, for who calls the registered op itself: what follows hands out raw pointers.
    x = channel_view(check_features(features))
    if backend.current_backend() == "torch":
        return reference.spatial_mean(x)
    means = x.new_empty(x.shape[:2], dtype=mean_dtype(x.dtype))
    backend.launch("spatial_mean", x.device, kernel_view(x), means)
    return means


@_spatial_mean.fake
def _(features):
    width = features.shape[2] if features.dim() == 3 else features.shape[1]
    return features.new_empty((features.shape[0], width), dtype=mean_dtype(features.dtype))
