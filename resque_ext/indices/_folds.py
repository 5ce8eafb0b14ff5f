"""Rows dealt to five folds by what they are, not by where they stand: sums and rows of each fold.

A row's position on a line is a fixed function of the row alone, and its fold that position's
fraction, in fifths. So neither the order of rows, nor batches, nor the split between ranks moves a
row to another fold, and rows that are equal are in one fold.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from resque_ext.indices._kmeans import Faults
from resque_ext.indices.segments import Embeddings
from resque_ext.ops.class_moments import grouped_moments
from resque_ext.ops.class_order import class_order

FOLDS = 5
# Rows that differ by 2% spread over all folds; changes of 1e-7, as another padding makes them in
# float32, move fewer than one row in 10,000, and of features around zero one in 80,000.
_SPREAD = 32.0
_GOLDEN = 5**0.5 / 2 + 0.5
_CHUNK = 2**22  # elements widened to float64 at a time


@functools.lru_cache(maxsize=8)
def _directions(width: int) -> Tensor:
    """[width] numbers of mean 0 and variance 1 that look random: the first ones of any width."""
    squares = torch.arange(1, width + 1, dtype=torch.float64) ** 2
    return (squares * _GOLDEN % 1 - 0.5) * 12**0.5


def row_positions(x: Tensor) -> Tensor:
    """Where the rows [N, D] are on the line, [N] float64; 0 for rows that are zero or not finite.

    32 (w . z / n + log n) with fixed numbers w, where z is the row x less the mean of its values,
    and n^2 = |z|^2 + |x / 32|^2: a constant in all columns, or a common scale, changes no spread.
    """
    found = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    if not x.shape[1]:
        return found
    w = _directions(x.shape[1]).to(x.device)
    rows = max(1, _CHUNK // x.shape[1])
    for part, into in zip(x.split(rows), found.split(rows), strict=True):
        whole = part.double()
        top = whole.abs().amax(1, keepdim=True)
        whole = whole / top  # neither squares nor sums overflow
        z = whole - whole.mean(1, keepdim=True)
        n = torch.hypot(z.norm(dim=1), whole.norm(dim=1) / _SPREAD)
        into.copy_(_SPREAD * ((z @ w) / n + n.log() + top[:, 0].log()))
    return found.nan_to_num_(0, 0, 0)


def fold_at(positions: Tensor) -> Tensor:
    """The folds [N] of rows at these positions."""
    return ((positions - positions.floor()) * FOLDS).long().clamp_(max=FOLDS - 1)


def fold_of_rows(positions: Tensor, index: Tensor) -> Tensor:
    """The fold of every row [N] of the classes `index` [N].

    Rows of a class that would all be in one fold go to the folds in turn, in the order of their
    positions, class c from fold c % FOLDS on: so every class of two rows or more is in two folds.
    """
    fold = fold_at(positions)
    if not len(fold):
        return fold
    classes = int(index.max()) + 1
    counts = torch.bincount(index * FOLDS + fold, minlength=classes * FOLDS).view(classes, FOLDS)
    alone = (counts > 0).sum(1) == 1
    if not alone.any():
        return fold
    order = positions.argsort(stable=True)
    order = order[index[order].argsort(stable=True)]
    sizes = counts.sum(1)
    first = torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
    rank = torch.empty_like(index)
    rank[order] = torch.arange(len(index), device=index.device) - first
    return torch.where(alone[index], (index + rank) % FOLDS, fold)


def positions_of(data: Embeddings) -> Tensor:
    """The positions [N] of all rows, in one pass."""
    found = torch.empty(data.rows, dtype=torch.float64, device=data.device)
    for start, x in data.segments():
        found[start : start + len(x)] = row_positions(x)
    return found


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
