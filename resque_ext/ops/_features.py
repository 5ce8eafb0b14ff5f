"""Features as the kernels read them: [n, channels, positions] with their strides, in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from resque_ext.data.checks import describe
from resque_ext.errors import ArgumentTypeError
from resque_ext.ops import backend

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


def features_view(features: Tensor) -> Any:
    """What the extension takes for features [N, D], [N, C, H, W] or [N, T, D], and holds."""
    if features.dim() == 2:  # most are, and a small batch is to cost little
        n, width = features.shape
        stride_n, stride_c = features.stride()
        if stride_c == 1 and n and width:
            expect_memory(features, "features")
            code = DTYPE_CODES[features.dtype]
            return backend.extension().Features(features, code, n, width, 1, stride_n, 1, 1)
    return kernel_view(channel_view(features))


def kernel_view(x: Tensor, name: str = "features") -> Any:
    """What the extension takes for :func:`channel_view`'s result, and holds."""
    expect_memory(x, name)
    return backend.extension().Features(x, DTYPE_CODES[x.dtype], *x.shape, *x.stride())


def expect_memory(x: Tensor, name: str) -> None:
    """Whether all elements lie in memory, of which a kernel gets the address.

    Raises:
        TypeError: they do not.
    """
    try:
        storage = x.untyped_storage()
        there = not isinstance(x, FakeTensor) and storage.data_ptr() != 0
        size = storage.nbytes()
    except RuntimeError:  # of tensors that only stand for others
        there, size = False, 0
    count = x.numel()
    if count == 0:
        return
    if not x.is_contiguous():  # a sum in Python takes as long as all else here
        count = 1 + sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
    if not there or (x.storage_offset() + count) * x.element_size() > size:
        raise ArgumentTypeError(
            name,
            "a tensor with its values in memory",
            f"a {type(x).__name__} without ({describe(x)}): a meta, fake "
            "or freed one, or one of a torch.func transform",
        )
