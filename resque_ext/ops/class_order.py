"""class_order: rows grouped by class, once for everything that then walks them class by class."""

from __future__ import annotations

import torch
from torch import Tensor

from resque_ext.ops import backend, reference
from resque_ext.ops._features import expect_memory


def class_order(
    labels: Tensor, num_classes: int, blocks: int = 1, seen: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """A stable counting sort of the rows by class, each class dealt in turn to `blocks` blocks.

    The j-th row of class c goes to block ``(seen[c] + j) % blocks``; group = ``c * blocks +
    block``.

    Args:
        labels: [N] int32 or int64, N < 2^31. Rows with a label outside 0..num_classes-1 are in no
            group; the first of them is in the status.
        num_classes: at least 1.
        blocks: at least 1.
        seen: [num_classes] int64, rows of each class that came before; None for none.

    Returns:
        order: [N] int32, the rows of group 0 in ascending order, then those of group 1, and so on.
        offsets: [num_classes * blocks + 1] int64, where each group starts in `order`.
        status: [5] int64, as csrc/resque.h names its words.
    """
    if backend.current_backend() == "torch":
        return reference.class_order(labels, num_classes, blocks, seen)
    expect_memory(labels, "labels")
    device, n = labels.device, labels.numel()
    kernels = backend.kernels(device)
    order = torch.empty(n, dtype=torch.int32, device=device)
    offsets = torch.empty(num_classes * blocks + 1, dtype=torch.int64, device=device)
    status = torch.zeros(5, dtype=torch.int64, device=device)
    size = kernels.class_order_workspace(n, num_classes, blocks)
    workspace = torch.empty(size, dtype=torch.uint8, device=device)
    backend.launch(
        "class_order",
        device,
        labels,
        labels.dtype == torch.int64,
        labels.stride(0),
        n,
        num_classes,
        blocks,
        seen,
        order,
        offsets,
        status,
        workspace,
    )
    return order, offsets, status
