"""linear_residual: what no linear layer reads of the new side, and how far the old model is off."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resque_ext.data.checks import (
    check_choice,
    check_features,
    check_labels,
    check_pair,
    class_indices,
    describe,
)
from resque_ext.errors import ArgumentError, ArgumentTypeError, InputError, renamed
from resque_ext.indices._baselines import few_rows
from resque_ext.indices._folds import FOLDS
from resque_ext.indices._readout import ReadoutSums
from resque_ext.indices._state import tensors_of
from resque_ext.indices.base import SIDES, Accumulator, Result
from resque_ext.indices.resque_dist import ResqueDist, ResqueDistResult, _count_classes
from resque_ext.ops.eager import eager

DISTANCE_WEIGHT = 0.25  # of RESQUE_dist beside the unexplained share
RESIDUAL_SIDES = (*SIDES, "adapted")
_DISTANCE, _READOUT = "distance.", "readout."  # before the names of a state's tensors


@dataclass(frozen=True)
class LinearResidualResult(Result):
    """The index and its two parts.

    Attributes:
        value: `unexplained` + 0.25 `distance`: about 0 where the classes of the new side are read
            off without any error and no class has moved; about 1 or above where nothing is left.
        unexplained: the share of the new side's classes, as one-hot vectors, that a linear readout
            leaves unexplained in rows that it was made without: 0 to 1, which random labels reach,
            and beyond that by no more than chance.
        distance: RESQUE_dist of the same data, the model as it is: 0 to 1.
        std_error: of `value`, from the readout's five folds and the distance's own, as if these two
            were independent; None where the distance has none.
        reliable: whether there are enough rows for `value` to mean something; `warnings` says why
            not, and what to do.
        adapted: `unexplained` is of the new side after its normalization was adapted.
        resque_dist: the whole result of RESQUE_dist.
        layer: what was read, where a model was run.
        old_accuracy, new_accuracy: of the model, where one was run and it is a classifier; with
            `adapted`, the new side's after adaptation.
        pooling: how positions of a layer's output became a vector, where a model was run: "vector"
            (there was nothing to pool), "token" (the one whose scores the model returns), "mean",
            "masked mean", "first", "last", "flattened", "none" or a function's name.
        labels: "given" or "predicted" (by the model, on the new side), where a model was run.
    """

    value: float
    unexplained: float
    distance: float
    std_error: float | None
    adapted: bool
    resque_dist: ResqueDistResult
    reliable: bool = True
    warnings: tuple[str, ...] = ()
    layer: str | None = None
    old_accuracy: float | None = None
    new_accuracy: float | None = None
    pooling: str | None = None
    labels: str | None = None

    noise_floor = None  # it has none

    @property
    def counts(self) -> Mapping[str, NDArray[np.int64]]:
        """Rows of each class behind `distance`, by side."""
        return self.resque_dist.counts

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and None, for JSON."""
        return {
            "value": self.value,
            "std_error": self.std_error,
            "reliable": self.reliable,
            "warnings": list(self.warnings),
            "unexplained": self.unexplained,
            "distance": self.distance,
            "adapted": self.adapted,
            "counts": {side: self.counts[side].tolist() for side in SIDES},
            "layer": self.layer,
            "old_accuracy": self.old_accuracy,
            "new_accuracy": self.new_accuracy,
            "pooling": self.pooling,
            "labels": self.labels,
        }


@eager
class LinearResidual(Accumulator):
    """linear_residual, streamed: one pass, bounded memory, mergeable.

        linear_residual = U + RESQUE_dist / 4
        U = sum |t - r(x)|^2 / sum |t - q|^2

    over the new side's embeddings x with their one-hot classes t, in five folds: r is ridge
    regression of the classes on the embeddings of the other four folds, with an intercept, q the
    shares of the classes there. The fold of a row is a function of the row, whatever the order of
    rows and batches; rows that are equal share one. A class whose rows would all share one goes to
    the folds in turn, each row as the mean of them all. The penalty of each fold is the one that
    leaves the least squared error on the other folds, of 1e-3 to 1e3 times the features' mean
    variance, in steps of half a decade, and infinity, which leaves q: so few rows make U larger, up
    to 1, and not more than that. What a linear layer can undo so counts a little, by RESQUE_dist;
    what it cannot counts in full.

    Kept are sums of products, 8 * 5 * D^2 bytes: 10 MB for D = 512; D is at most 4,096. compute()
    decomposes five D x D matrices: about 0.4 s for D = 512 on one core, 4 s for 1,280, two minutes
    for 4,096. The state has no penalty in it: one that was saved by an earlier version loads, and
    its value is that of the penalties chosen now.

    Args:
        num_classes: C, at least 1 (and two of them with rows on the new side).
        adapted: U is of a third side "adapted": the new side's embeddings after the model's
            normalization was adapted to it. Without it, U is of the new side.
        paired, missing, blocks: see :class:`ResqueDist`; they are about the distance.

    On CUDA update() of the side that is read out waits for the device.

    Source: chosen by measured retraining; see docs/better_index.md.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        adapted: bool = False,
        paired: bool = False,
        missing: str = "error",
        blocks: int | None = None,
    ) -> None:
        self.adapted = bool(adapted)
        self.distance = ResqueDist(num_classes, paired=paired, missing=missing, blocks=blocks)
        self._sums: ReadoutSums | None = None

    def __repr__(self) -> str:
        return f"LinearResidual(num_classes={self.num_classes}, adapted={self.adapted})"

    @property
    def num_classes(self) -> int:
        return self.distance.num_classes

    @property
    def blocks(self) -> int:
        return self.distance.blocks

    def reset(self) -> None:
        """Back to no data; any width and device may come next."""
        self.distance.reset()
        self._sums = None

    def update(self, features: Any, labels: Any, side: Literal["old", "new", "adapted"]) -> None:
        """Adds a batch to one side.

        Args:
            features: [N, D], [N, C, H, W] or [N, T, D]; positions are averaged.
            labels: [N] class indices 0..num_classes-1, int32 or int64.
            side: "old", "new" or, with `adapted`, "adapted".

        Raises:
            TypeError, ValueError: naming the argument, what was expected and what came; the state
                is unchanged.
        """
        check_choice(side, RESIDUAL_SIDES if self.adapted else SIDES, "side")
        x, y = check_features(features), check_labels(labels)
        check_pair(x, y, ("features", "labels"))
        width = x.shape[2] if x.dim() == 3 else x.shape[1]
        self._check_width(x, width)
        if side != ("adapted" if self.adapted else "new"):
            self.distance.update(x, y, side)
            return
        with torch.inference_mode(False), torch.no_grad():
            batch = None
            if len(x) and width:
                batch = ReadoutSums.of(x, y, self.num_classes, self._sums)
            if side == "new":
                self.distance.update(x, y, side)
            if batch is None:
                return
            if self._sums is None:
                self._sums = batch
            else:
                self._sums.add(batch)
                self._sums.seen = batch.seen

    @property
    def width(self) -> int | None:
        """Columns of the features; None before the first batch."""
        return self.distance.width if self._sums is None else len(self._sums.origin)

    def _check_width(self, x: Tensor, width: int) -> None:
        known = self.width
        place = x.device if self._sums is None else self._sums.origin.device
        if known not in (None, width) or place != x.device:
            raise ArgumentError(
                "features", f"width {known} on {place} as in earlier updates", describe(x)
            )

    def grow(self, num_classes: int) -> None:
        """Makes room for more classes, where their number is not known from the start."""
        before = self.num_classes
        self.distance.grow(num_classes)
        if self._sums is not None and self.num_classes > before:
            self._sums.grow(self.num_classes - before)

    def merge(self, other: LinearResidual) -> None:
        """Adds what `other` has seen; it stays as it is and may live on another device.

        The folds of both are joined one to one, so the value is that of all rows in one stream,
        however they were split. Only states of earlier versions have their rows in other folds,
        which changes `unexplained` by less than its standard error.

        Raises:
            TypeError: not a LinearResidual.
            ValueError: other classes or width, or only one of the two is `adapted`.
        """
        if not isinstance(other, LinearResidual):
            raise ArgumentTypeError("other", "a LinearResidual", describe(other))
        if self.adapted != other.adapted:
            raise ArgumentError("other", f"adapted={self.adapted}", other.adapted)
        if self.width and other.width and self.width != other.width:
            raise ArgumentError("other", f"width {self.width}", other.width)
        mine, theirs = self._sums, other._sums
        self.distance.merge(other.distance)
        if theirs is None:
            return
        with torch.inference_mode(False), torch.no_grad():
            if mine is None:
                values = {name: value.clone() for name, value in vars(theirs).items()}
                self._sums = ReadoutSums(**values)
                return
            mine.add(theirs)
            turn = torch.arange(self.num_classes, device=mine.seen.device)
            mine.seen = mine.seen + theirs.seen.to(mine.seen.device) - turn

    def empty(self) -> LinearResidual:
        """Another one of the same options, without data."""
        other = copy.copy(self)
        other.distance, other._sums = self.distance.empty(), None
        return other

    def fork(self) -> LinearResidual:
        """One that goes on from here with a new side of its own; see :meth:`ResqueDist.fork`."""
        other = copy.copy(self)
        other.distance, other._sums = self.distance.fork(), copy.deepcopy(self._sums)
        return other

    def _config(self) -> list[int]:
        return [self.num_classes, int(self.adapted)]

    def state_dict(self) -> dict[str, Tensor]:
        """The whole state as plain tensors, ready for safetensors; what is empty has width 0."""
        sums = self._sums or ReadoutSums.empty(self.num_classes, 0, torch.device("cpu"))
        return (
            {"config": torch.tensor(self._config())}
            | {_DISTANCE + key: x for key, x in self.distance.state_dict().items()}
            | {_READOUT + key: x.clone() for key, x in vars(sums).items()}
        )

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Replaces the state by one of :meth:`state_dict`; nothing changes when it does not fit.

        Raises:
            KeyError: a tensor is missing or unknown.
            TypeError: something that is not a tensor.
            ValueError: made for other classes or with another `adapted`, or a tensor is not what it
                should be.
        """
        tensors = tensors_of(state, self._config(), ("num_classes", "adapted"))
        expected = set(LinearResidual(self.num_classes).state_dict()) - {"config"}
        if set(tensors) != expected:
            raise KeyError(
                f"state: expected the keys {sorted(expected)}, found {sorted(map(str, tensors))}"
            )
        parts: dict[str, dict[str, Tensor]] = {
            start: {k.removeprefix(start): x for k, x in tensors.items() if k.startswith(start)}
            for start in (_DISTANCE, _READOUT)
        }
        with torch.inference_mode(False), torch.no_grad():
            distance = self._loaded_distance(parts[_DISTANCE])
            sums = ReadoutSums.loaded(parts[_READOUT], self.num_classes, _READOUT)
            width, rows = len(sums.origin), sums.counts.sum(1)
            if distance.width and width and distance.width != width:
                raise ArgumentError(
                    f"state['{_READOUT}origin']",
                    f"width {distance.width}, as in '{_DISTANCE}new.sums'",
                    width,
                )
            moved = parts[_DISTANCE]["new.counts"].view(self.num_classes, -1).sum(1)
            if not self.adapted and not torch.equal(moved.to(rows.device), rows):
                raise ArgumentError(
                    f"state['{_READOUT}counts']",
                    f"the rows {moved.tolist()}, as in '{_DISTANCE}new.counts'",
                    rows.tolist(),
                )
        self.distance, self._sums = distance, sums if width else None

    def _loaded_distance(self, tensors: dict[str, Tensor]) -> ResqueDist:
        """With the blocks of the state: growing keeps those of fewer classes."""
        blocks, sized = tensors["blocks"], tensors["old.counts"].numel()
        if blocks.numel() != 1 or not 2 <= blocks.item() == sized / self.num_classes:
            raise ArgumentError(
                f"state['{_DISTANCE}blocks']",
                f"as many blocks a class as there are in '{_DISTANCE}old.counts'",
                blocks.tolist(),
            )
        distance = ResqueDist(
            self.num_classes,
            paired=self.distance.paired,
            missing=self.distance.missing,
            blocks=int(blocks),
        )
        try:
            distance.load_state_dict(tensors)
        except InputError as error:
            place = error.argument.replace("state['", f"state['{_DISTANCE}", 1)
            raise error.but(argument=place) from None
        return distance

    def compute(self, *, ignore_unseen: bool = False) -> LinearResidualResult:
        """The index of all data so far; more may follow.

        Args:
            ignore_unseen: as in :meth:`ResqueDist.compute`.

        Raises:
            ValueError: a side has no data, fewer than two classes have rows on the new side, or
                RESQUE_dist has no value.
        """
        if self._sums is None:
            side = "adapted" if self.adapted else "new"
            raise ArgumentError("update", f"rows of the {side} side before compute()", "0")
        distance = self.distance.compute(ignore_unseen=ignore_unseen)
        left = self._sums.unexplained()
        error = distance.std_error
        if error is not None:
            error = float(np.hypot(left.std_error, DISTANCE_WEIGHT * error))
        rows = self._sums.counts.sum(1)
        warnings = few_rows("unexplained", int(rows.sum()), len(self._sums.origin))
        if left.crowded:
            warnings += (
                "unexplained: most rows are in one fold, as they differ by less than 2% of their "
                "size; take a constant off the features",
            )
        fewest = int(rows[rows > 0].min())
        if fewest < FOLDS:
            warnings += (
                f"unexplained: a class has {fewest} rows on the new side, so it is missing "
                f"from a fold; use at least {FOLDS} rows a class",
            )
        return LinearResidualResult(
            value=left.value + DISTANCE_WEIGHT * distance.value,
            unexplained=left.value,
            distance=distance.value,
            std_error=error,
            adapted=self.adapted,
            resque_dist=distance,
            reliable=not warnings,
            warnings=warnings,
        )


@eager
def linear_residual(
    old: Any,
    new: Any,
    old_labels: Any,
    new_labels: Any,
    num_classes: int | None = None,
    missing: str = "error",
    *,
    adapted: Any = None,
    paired: bool = False,
) -> LinearResidualResult:
    """linear_residual of features at hand; see :class:`LinearResidual`.

    Args:
        old, new: features [N, D], [N, C, H, W] or [N, T, D] of one width: tensors, arrays, data
            frames, or lists of rows.
        old_labels, new_labels: class indices [N]; or names of classes, of which class i is the i-th
            of those of both sides in sorted order.
        num_classes: C; by default the classes are those that appear on either side.
        missing, paired: see :class:`ResqueDist`.
        adapted: the new side's features once more, in the same order, after the model's
            normalization was adapted to it (:func:`resque_ext.model.normalization.adapted`).

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    (old_labels, new_labels), _ = class_indices(old_labels=old_labels, new_labels=new_labels)
    sides = {"old": (old, old_labels), "new": (new, new_labels)}
    if adapted is not None:
        sides["adapted"] = (adapted, new_labels)
    checked = {}
    for side, (features, labels) in sides.items():
        name = "old_labels" if side == "old" else "new_labels"
        x, y = check_features(features, side), check_labels(labels, name)
        check_pair(x, y, (side, name))
        checked[side] = x, y
    known = num_classes is not None
    if num_classes is None:
        num_classes = _count_classes(checked["old"][1], checked["new"][1])
    acc = LinearResidual(num_classes, adapted=adapted is not None, paired=paired, missing=missing)
    for side, (x, y) in checked.items():
        try:
            acc.update(x, y, side)  # type: ignore[arg-type]
        except InputError as error:
            # update() speaks of features and labels; here they have names of their own.
            label = "old_labels" if side == "old" else "new_labels"
            raise renamed(error, features=side, labels=label) from None
    return acc.compute(ignore_unseen=not known)
