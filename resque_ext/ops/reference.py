"""Every op in plain PyTorch: the specification, the oracle of the tests, the opponent to beat.

``resque_ext.backend("torch")`` runs the package on these, on any device.
"""

from __future__ import annotations

import torch
from torch import Tensor


def class_order(
    labels: Tensor, num_classes: int, blocks: int = 1, seen: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`resque_ext.ops.class_order.class_order`."""
    n, groups = labels.numel(), num_classes * blocks
    labels = labels.long()
    good = (labels >= 0) & (labels < num_classes)
    safe = torch.where(good, labels, num_classes)
    by_class = torch.argsort(safe, stable=True)
    rows = torch.bincount(safe, minlength=num_classes + 1)
    start = rows.cumsum(0) - rows
    rank = torch.empty_like(safe)
    rank[by_class] = torch.arange(n, device=labels.device) - start[safe[by_class]]
    if seen is not None:
        rank += torch.cat([seen, seen.new_zeros(1)])[safe]
    group = torch.where(good, safe * blocks + rank % blocks, groups)
    order = torch.argsort(group, stable=True).to(torch.int32)
    offsets = torch.zeros(groups + 1, dtype=torch.int64, device=labels.device)
    offsets[1:] = torch.bincount(group, minlength=groups + 1)[:groups].cumsum(0)
    status = torch.zeros(5, dtype=torch.int64, device=labels.device)
    if n:
        position = torch.arange(n, 0, -1, device=labels.device)
        from_end = torch.where(good, 0, position).max()
        status[0] = from_end
        status[1] = torch.where(from_end > 0, labels[(n - from_end).clamp(max=n - 1)], 0)
    return order, offsets, status


def class_moments(
    features: Tensor, order: Tensor, offsets: Tensor, squares: bool, skip_nonfinite: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See :func:`resque_ext.ops.class_moments.grouped_moments`; features are [n, c, positions]."""
    n, channels, _ = features.shape
    groups = offsets.numel() - 1
    group = torch.full((n,), groups, dtype=torch.int64, device=features.device)
    sizes = offsets.diff()
    index = torch.arange(groups, device=features.device)
    valid = order[: int(offsets[-1])].long()
    group[valid] = torch.repeat_interleave(index, sizes)

    pooled = features.double().mean(2)
    bad = ~pooled.isfinite() & (group < groups)[:, None]
    bad_rows = bad.any(1)
    status = torch.zeros(5, dtype=torch.int64, device=features.device)
    status[2], status[4] = bad.sum(), bad_rows.sum()
    if bad.any():
        status[3] = n * channels - bad.flatten().int().argmax()
    if skip_nonfinite:
        group = torch.where(bad_rows, groups, group)
        pooled = torch.where(bad_rows[:, None], 0, pooled)
    keep = group < groups
    group, pooled = group[keep], pooled[keep]
    sums = features.new_zeros(groups, channels, dtype=torch.float64)
    sums.index_add_(0, group, pooled)
    sumsq = features.new_zeros(groups if squares else 0, channels, dtype=torch.float64)
    if squares:
        sumsq.index_add_(0, group, pooled * pooled)
    return torch.bincount(group, minlength=groups), sums, sumsq, status


def spatial_mean(features: Tensor) -> Tensor:
    """See :func:`resque_ext.ops.spatial_mean`; features are [n, c, positions]."""
    means = features.double().mean(2)
    return means if features.dtype == torch.float64 else means.float()
