"""Sums of features by class and block, which RESQUE_dist is made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class ClassSums:
    """One side's sums, class by class and block by block: row c * blocks + b."""

    counts: Tensor  # [C * B] int64
    sums: Tensor  # [C * B, D] float64
    seen: Tensor  # [C] int64: rows dealt to blocks so far, those left out included
    nonfinite_rows: Tensor  # [] int64

    @classmethod
    def empty(cls, classes: int, blocks: int, width: int, device: torch.device) -> ClassSums:
        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        sums = zeros(classes * blocks, width, dtype=torch.float64)
        return cls(zeros(classes * blocks), sums, zeros(classes), zeros())


def filled_groups(offsets: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """The groups that have rows, and where each starts, without the empty ones between.

    A batch of few rows touches few of many groups, and only those should cost anything. The size,
    that of the batch, is known without asking the device; what is left over is empty and points to
    group 0, to which it adds nothing.
    """
    groups = offsets.numel() - 1
    size = max(min(rows, groups), 1)
    index = torch.arange(groups, device=offsets.device)
    if size == groups:
        return index, offsets
    there = offsets.diff() > 0
    slot = torch.where(there, there.cumsum(0) - 1, size + 1)  # the last place is for the empty ones
    starts = offsets[-1:].repeat(size + 2).scatter_(0, slot, offsets[:-1])[: size + 1]
    return offsets.new_zeros(size + 2).scatter_(0, slot, index)[:size], starts
