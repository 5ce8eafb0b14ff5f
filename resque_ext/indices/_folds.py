"""Rows dealt to five folds, class by class, without any chance: sums and rows of each fold."""

from __future__ import annotations

import torch
from torch import Tensor

from resque_ext.indices._kmeans import Faults
from resque_ext.indices.segments import Embeddings
from resque_ext.ops.class_moments import grouped_moments
from resque_ext.ops.class_order import class_order

FOLDS = 5


def fold_of_rows(index: Tensor) -> Tensor:
    """The fold of every row [N] of the classes `index` [N]: those of a class in turn.

    Class c begins with fold c % FOLDS: classes of few rows do not all fall into the first folds.
    """
    order = index.argsort(stable=True)
    sizes = torch.bincount(index)
    first = torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
    rank = torch.empty_like(index)
    rank[order] = torch.arange(len(index), device=index.device) - first
    return (index + rank) % FOLDS


def fold_sums(data: Embeddings, index: Tensor, fold: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Sums [C, FOLDS, D] and counts [C, FOLDS] of the rows' classes and folds, in one pass.

    Raises:
        ValueError: features that are not finite.
    """
    groups = classes * FOLDS
    sums = torch.zeros(groups, data.width, dtype=torch.float64, device=data.device)
    counts = torch.zeros(groups, dtype=torch.int64, device=data.device)
    group = index * FOLDS + fold
    faults = Faults(data)
    for start, x in data.segments():
        order, offsets, _ = class_order(group[start : start + len(x)], groups)
        part_counts, part_sums, _, status = grouped_moments(x, order, offsets, squares=False)
        faults.add(status, start, len(x))
        counts += part_counts
        sums += part_sums
    faults.raise_if_any()
    return sums.view(classes, FOLDS, -1), counts.view(classes, FOLDS)
