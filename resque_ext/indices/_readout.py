"""A cross-validated linear readout of streamed features, from sums of products alone.

NumPy on purpose where results are made: its sums do not depend on torch's number of threads.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from resque_ext.data.checks import describe
from resque_ext.errors import ArgumentError
from resque_ext.indices._baselines import WIDEST
from resque_ext.indices._folds import FOLDS, fold_at, row_positions
from resque_ext.indices._ridge import Array, chosen_penalties, fold_paths
from resque_ext.ops import spatial_mean
from resque_ext.ops.class_moments import grouped_moments
from resque_ext.ops.class_order import class_order
from resque_ext.ops.status import Status

_ROWS = 2048  # rows widened to float64 at a time
# Solving by other numbers of threads changes the last digits, which a share of 1 can do without.
_DECIMALS = 10
_ROUNDING = 1e-9  # of squares: what rounding leaves where rows are equal

# Rows of which by chance never so large a share are in one fold.
_MANY_ROWS, _CROWDED = 50, 0.5


class Unexplained(NamedTuple):
    """The share of the classes that a readout leaves unexplained, and its standard error.

    `crowded`: so many rows are in one fold, without being equal, that neither says much.
    """

    value: float
    std_error: float
    crowded: bool


@dataclass
class ReadoutSums:
    """Sums of features about an origin, and of their products, by fold.

    A row's fold is a function of the row, so folds depend neither on batches and their order nor on
    any chance. In states of earlier versions the rows of each class were dealt to the folds in
    turn; they may be added to.
    """

    origin: Tensor  # [D] float64, near the mean: products about it keep their digits
    counts: Tensor  # [C, FOLDS] int64
    sums: Tensor  # [C, FOLDS, D] float64
    products: Tensor  # [FOLDS, D, D] float64
    seen: Tensor  # [C] int64: c + rows of class c, what earlier versions dealt from

    @classmethod
    def empty(cls, classes: int, width: int, device: torch.device) -> ReadoutSums:
        """Those of no rows, about zero."""
        zeros = functools.partial(torch.zeros, dtype=torch.float64, device=device)
        return cls(
            zeros(width),
            torch.zeros(classes, FOLDS, dtype=torch.int64, device=device),
            zeros(classes, FOLDS, width),
            zeros(FOLDS, width, width),
            torch.arange(classes, device=device),
        )

    @classmethod
    def loaded(cls, tensors: Mapping[str, Tensor], classes: int, prefix: str) -> ReadoutSums:
        """Copies of tensors by field; `prefix` stands before a field in messages.

        Raises:
            ValueError: a tensor is not what it should be.
        """
        origin = tensors["origin"]
        width, place = origin.shape[0] if origin.dim() == 1 else 0, origin.device
        if width > WIDEST:
            raise ArgumentError(f"state['{prefix}origin']", f"at most {WIDEST} columns", width)
        # On "meta" for their shapes: products are large.
        for field, wanted in vars(cls.empty(classes, width, torch.device("meta"))).items():
            x = tensors[field]
            if (x.shape, x.dtype, x.device) != (wanted.shape, wanted.dtype, place):
                raise ArgumentError(
                    f"state['{prefix}{field}']",
                    f"shape {tuple(wanted.shape)}, {wanted.dtype}, {place}",
                    describe(x),
                )
        counts, dealt = tensors["counts"], torch.arange(classes, device=origin.device)
        if int(counts.min()) < 0 or not torch.equal(tensors["seen"] - dealt, counts.sum(1)):
            raise ArgumentError(
                f"state['{prefix}counts']",
                f"the rows of each class and fold, as in '{prefix}seen'",
                counts.tolist(),
            )
        return cls(**{field: tensors[field].clone() for field in cls.__dataclass_fields__})

    @classmethod
    def of(cls, x: Tensor, y: Tensor, classes: int, before: ReadoutSums | None) -> ReadoutSums:
        """Those of one batch [N, ...] that follows `before`; on CUDA this waits for the device.

        Raises:
            ValueError: a label out of range, features that are not finite, or too wide.
        """
        x = spatial_mean(x) if x.dim() > 2 else x
        width = x.shape[1]
        if width > WIDEST:
            raise ArgumentError(
                "features", f"at most {WIDEST} columns, whose products are kept", describe(x)
            )
        start = torch.arange(classes, device=x.device) if before is None else before.seen
        _, _, status = class_order(y, classes)
        Status.read(status, len(x), width).raise_for_labels("labels", classes)
        fold = fold_at(row_positions(x))
        order, offsets, _ = class_order(y.long() * FOLDS + fold, classes * FOLDS)
        counts, sums, _, status = grouped_moments(x, order, offsets, squares=False)
        Status.read(status, len(x), width).raise_for_nonfinite("features", fix=None)
        rows = counts.sum()
        origin = sums.sum(0) / rows.clamp(min=1) if before is None else before.origin
        products = sums.new_zeros(FOLDS, width, width)
        for f in range(FOLDS):
            own = (fold == f).nonzero()[:, 0]
            for part in own.split(_ROWS):
                near = x[part].double() - origin
                products[f] += near.T @ near
        return cls(
            origin,
            counts.view(classes, FOLDS),
            (sums - counts[:, None] * origin).view(classes, FOLDS, width),
            products,
            start + offsets[::FOLDS].diff(),
        )

    def add(self, other: ReadoutSums) -> None:
        """Adds sums of other rows, fold to fold; takes them to its own origin."""
        device = self.origin.device
        away = other.origin.to(device) - self.origin
        counts, sums = other.counts.to(device), other.sums.to(device)
        if away.any():
            s, n = sums.sum(0), counts.sum(0)  # [FOLDS, D], [FOLDS]
            cross = s[:, :, None] * away
            self.products += cross + cross.mT + n[:, None, None] * torch.outer(away, away)
        self.products += other.products.to(device)
        self.counts += counts
        self.sums += sums + counts[:, :, None] * away

    def grow(self, more: int) -> None:
        """Makes room for `more` classes."""
        classes, _, width = self.sums.shape
        start = torch.arange(classes, classes + more, device=self.seen.device)
        self.counts = torch.cat([self.counts, self.counts.new_zeros(more, FOLDS)])
        self.sums = torch.cat([self.sums, self.sums.new_zeros(more, FOLDS, width)])
        self.seen = torch.cat([self.seen, start])

    def unexplained(self) -> Unexplained:
        """See :class:`resque_ext.indices.linear_residual.LinearResidual`.

        Raises:
            ValueError: fewer than two classes have rows, or fewer than two folds.
        """
        n = self.counts.cpu().numpy().astype(np.float64)  # [C, FOLDS]
        s, products = self.sums.cpu().numpy(), self.products.cpu().numpy()
        crowded = _crowded(n, s, products)
        n, s, products = _dealt(n, s, products)
        there = n.sum(1) > 0
        folds = int((n.sum(0) > 0).sum())
        if there.sum() < 2 or folds < 2:
            raise ArgumentError(
                "labels",
                f"rows of at least two classes on the new side, in at least two of {FOLDS} folds",
                f"{int(n.sum())} rows of {int(there.sum())} classes in {folds}",
            )
        errors = np.stack([path.errors for path in fold_paths(n[there], s[there], products)])
        left = errors[np.arange(folds), chosen_penalties(errors)]
        total = errors[:, -1]
        value = left.sum() / total.sum()
        spread = np.square(left - value * total).sum() * folds / (folds - 1)
        error = np.sqrt(spread) / total.sum()
        return Unexplained(round(float(value), _DECIMALS), round(float(error), _DECIMALS), crowded)


def _dealt(n: Array, s: Array, products: Array) -> tuple[Array, Array, Array]:
    """Counts, sums and products after classes that are in one fold alone went to all folds.

    No other fold says anything of such a class. So its rows go to the folds in turn, class c from
    fold c % FOLDS on, each as the mean of them all, which it is where they are equal.
    """
    alone = np.flatnonzero((n > 0).sum(1) == 1)
    if not len(alone):
        return n, s, products
    rows = n[alone].sum(1, keepdims=True)
    means = s[alone].sum(1) / rows
    after = np.ceil((rows - (np.arange(FOLDS) - alone[:, None]) % FOLDS) / FOLDS).clip(min=0)
    moved = after - n[alone]
    n, s, products = n.copy(), s.copy(), products.copy()
    n[alone], s[alone] = after, after[:, :, None] * means[:, None]
    for f in range(FOLDS):
        products[f] += (means * moved[:, f, None]).T @ means
    return n, s, products


def _crowded(n: Array, s: Array, products: Array) -> bool:
    """Whether most of many rows are in one fold, and not because they are equal."""
    rows, f = n.sum(0), int(n.sum(0).argmax())
    if rows.sum() < _MANY_ROWS or rows[f] <= _CROWDED * rows.sum():
        return False
    whole = np.trace(products[f])
    within = whole - (np.square(s[:, f]).sum(1) / n[:, f].clip(min=1)).sum()
    return bool(within > _ROUNDING * whole)
