"""Features as the kernels read them: [n, channels, positions] and a pointer with its strides."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from resque_ext import _backend

DTYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}


def channel_view(features: Tensor) -> Tensor:
    """Features [N, D], [N, C, H, W] or [N, T, D] as [n, channels, positions] that a kernel can
    read.

    A view, or one explicit copy where neither channels nor positions lie side by side.
    """
    if features.dim() == 2:
        x = features.unsqueeze(2)
    elif features.dim() == 3:
        x = features.transpose(1, 2)
    else:
        n, c, h, w = features.shape
        s = features.stride()
        if h > 1 and w > 1 and s[2] != w * s[3]:
            features = features.contiguous()
            s = features.stride()
        x = features.as_strided((n, c, h * w), (s[0], s[1], s[3] if w > 1 else s[2]))
    if x.numel() == 0:  # the strides of nothing can be anything
        return x.new_empty(x.shape)
    _, channels, positions = x.shape
    one = channels == 0 or (channels == 1 and positions == 1)
    adjacent = one or x.stride(1) == 1 or (positions > 1 and x.stride(2) == 1)
    return x if adjacent else x.contiguous()


def kernel_view(x: Tensor) -> Any:
    """What the extension takes for :func:`channel_view`'s result; `x` has to outlive the call."""
    return _backend.extension().Features(x.data_ptr(), DTYPE_CODES[x.dtype], *x.shape, *x.stride())
