"""RESQUE_dist: the cost of a distribution shift, as the mean angle between class sums."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resque_ext.data.checks import (
    as_tensor,
    check_choice,
    check_count,
    check_features,
    check_labels,
    check_pair,
    class_indices,
    describe,
)
from resque_ext.errors import ArgumentError, ArgumentTypeError, InputError, renamed
from resque_ext.indices import _angles
from resque_ext.indices._class_sums import ClassSums, filled_groups
from resque_ext.indices._debiased import DebiasedAngle, debiased
from resque_ext.indices._resque_dist_result import ResqueDistResult, warnings_of
from resque_ext.indices.base import SIDES, Accumulator, DeferredFaults, Side, expect_kind
from resque_ext.ops.class_moments import SEGMENT_ROWS, add_labelled, grouped_moments, in_one_call
from resque_ext.ops.class_order import class_order
from resque_ext.ops.eager import eager
from resque_ext.ops.status import Status

if TYPE_CHECKING:
    from resque_ext.distributed import Ranks

_PENDING = 1024  # unread CUDA statuses kept at most; then one wait reads them all


def default_blocks(num_classes: int) -> int:
    """Blocks a class: 16, fewer for many classes, whose errors average out (never under 4)."""
    return int(np.clip(2 ** int(np.log2(max(2048 // num_classes, 1))), 4, 16))


@eager
class ResqueDist(Accumulator):
    """RESQUE_dist, streamed: one pass, bounded memory, mergeable.

    Every class's sum is kept in blocks that its rows are dealt to in turn, 8 * 2 * C * blocks * D
    bytes in all, so that standard error and noise floor come from the same pass as the value.

    Args:
        num_classes: C, at least 1.
        paired: row i of the old side is row i of the new one before the shift, and both sides come
            in the same order; makes standard error and noise floor those of paired samples.
        missing: "error": a class without rows on a side, or with a zero or non-finite sum, makes
            compute() raise. "skip": it is left out and listed in the result.
        nonfinite: "error": NaN or infinity in the features raises. "skip": such rows are left out
            and counted in the result.
        blocks: blocks a class, at least 2; default 16, down to 4 for many classes.

    On the CPU a wrong batch raises in update() and leaves the state as it was. On CUDA nothing
    waits for the device: values that are wrong (a label out of range, a non-finite feature) raise
    in compute(), or in a later update() at the latest after 1,024 of them, until reset().

    Source: RESQUE_dist as published (class sums, angle / pi, mean over classes), in float64.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        paired: bool = False,
        missing: str = "error",
        nonfinite: str = "error",
        blocks: int | None = None,
    ) -> None:
        self.num_classes = check_count(num_classes, "num_classes")
        check_choice(missing, ("error", "skip"), "missing")
        check_choice(nonfinite, ("error", "skip"), "nonfinite")
        self.paired, self.missing, self.nonfinite = bool(paired), missing, nonfinite
        if blocks is None:
            blocks = default_blocks(self.num_classes)
        self.blocks = check_count(blocks, "blocks", least=2)
        self.reset()

    def __repr__(self) -> str:
        return (
            f"ResqueDist(num_classes={self.num_classes}, width={self.width}, blocks={self.blocks})"
        )

    def reset(self) -> None:
        """Back to no data; any width and device may come next."""
        self._sides: dict[str, ClassSums] | None = None
        self._faults = DeferredFaults(_PENDING)
        self._updates = dict.fromkeys(SIDES, 0)

    @property
    def width(self) -> int | None:
        """D of the features so far, None before the first."""
        return None if self._sides is None else self._sides["old"].sums.shape[1]

    def update(self, features: Any, labels: Any, side: Side) -> None:
        """Adds a batch to one side.

        Args:
            features: [N, D], [N, C, H, W] or [N, T, D] as :func:`resque_ext.ops.class_moments`
                takes.
            labels: [N] class indices 0..num_classes-1, int32 or int64.
            side: "old" or "new".

        Raises:
            TypeError, ValueError: naming the argument, what was expected and what came.
        """
        check_choice(side, SIDES, "side")
        # State made under a caller's inference mode could not be updated outside of it.
        with torch.inference_mode(False), torch.no_grad():
            x, y = check_features(features), check_labels(labels)
            check_pair(x, y, ("features", "labels"))
            self._add(x, y, side)

    def _add(self, x: Tensor, y: Tensor, side: Side) -> None:
        width = x.shape[2] if x.dim() == 3 else x.shape[1]
        if width == 0:
            raise ArgumentError("features", "at least one column", describe(x))
        sides = self._sides
        if sides is None:
            sides = {
                s: ClassSums.empty(self.num_classes, self.blocks, width, x.device) for s in SIDES
            }
        state = sides[side]
        if state.sums.shape[1] != width or state.sums.device != x.device:
            raise ArgumentError(
                "features",
                f"width {state.sums.shape[1]} on {state.sums.device} as in earlier updates",
                describe(x),
            )
        if in_one_call(x):
            skip = self.nonfinite == "skip"
            status = add_labelled(x, y, state.seen, state.counts, state.sums, skip_nonfinite=skip)
            if any(status.tolist()):
                self._check(status, len(x), width, 0)  # raises only where nothing was added
            self._sides = sides
            if skip:
                state.nonfinite_rows.add_(status[4])
            self._updates[side] += 1
            return
        parts, checks = [], []
        seen, bad_rows = state.seen, 0
        for start in range(0, max(len(x), 1), SEGMENT_ROWS):
            rows, row_labels = x[start : start + SEGMENT_ROWS], y[start : start + SEGMENT_ROWS]
            order, offsets, status = class_order(row_labels, self.num_classes, self.blocks, seen)
            if x.device.type == "cpu":
                self._check(status, len(rows), width, start)
            seen = seen + offsets[:: self.blocks].diff()
            groups, offsets = filled_groups(offsets, len(rows))
            counts, sums, _, faults = grouped_moments(
                rows,
                order,
                offsets,
                squares=False,
                skip_nonfinite=self.nonfinite == "skip",
            )
            if x.device.type == "cpu":
                self._check(faults, len(rows), width, start)
            else:
                checks.append((status + faults, len(rows), start))
            parts.append((groups, counts, sums))
            bad_rows = bad_rows + faults[4]
        # All is known to be right (or, on CUDA, will be read before any result is given).
        self._sides = sides
        for groups, counts, sums in parts:
            state.counts.index_add_(0, groups, counts)
            state.sums.index_add_(0, groups, sums)
        state.seen = seen
        state.nonfinite_rows.add_(bad_rows)
        where = f" of update {self._updates[side]} (side={side!r})"
        for status, count, start in checks:
            check = functools.partial(
                self._check, rows=count, width=width, first_row=start, where=where
            )
            self._faults.add(status, check)
        self._updates[side] += 1
        self._faults.read_if_many()

    def _check(self, words: Tensor, rows: int, width: int, first_row: int, where: str = "") -> None:
        found = Status.read(words, rows, width, first_row)
        found.raise_for_labels("labels", self.num_classes, where)
        if self.nonfinite == "error":
            found.raise_for_nonfinite("features", where)

    def grow(self, num_classes: int) -> None:
        """Makes room for more classes, where their number is not known from the start."""
        more = check_count(num_classes, "num_classes") - self.num_classes
        if more <= 0:
            return
        self._faults.read()
        self.num_classes += more
        with torch.inference_mode(False), torch.no_grad():
            for state in (self._sides or {}).values():
                state.counts = torch.cat([state.counts, state.counts.new_zeros(more * self.blocks)])
                state.sums = torch.cat(
                    [state.sums, state.sums.new_zeros(more * self.blocks, state.sums.shape[1])]
                )
                state.seen = torch.cat([state.seen, state.seen.new_zeros(more)])

    def merge(self, other: ResqueDist) -> None:
        """Adds what `other` has seen, as if its batches had come after this one's own.

        Any split of the data over accumulators gives the same value (to rounding); `other` stays as
        it is and may live on another device.

        Raises:
            TypeError: not a ResqueDist.
            ValueError: other classes, blocks or width, or, where this one is paired, sides of
                either that are not.
        """
        expect_kind(other, self)
        mine = (self.num_classes, self.blocks, self.width or other.width)
        theirs = (other.num_classes, other.blocks, other.width or self.width)
        if mine != theirs:
            raise ArgumentError("other", f"(num_classes, blocks, width) = {mine}", theirs)
        self._faults.read()
        other._faults.read()
        if other._sides is None:
            return
        if self.paired:  # the rows of a pair have to be in one block
            self._check_pairing()
            other._check_pairing(always=True)
        with torch.inference_mode(False), torch.no_grad():
            if self._sides is None:
                device = other._sides["old"].sums.device
                self._sides = {
                    s: ClassSums.empty(self.num_classes, self.blocks, other.width or 0, device)
                    for s in SIDES
                }
            for side in SIDES:
                self._merge_side(self._sides[side], other._sides[side])
                self._updates[side] += other._updates[side]

    def _merge_side(self, mine: ClassSums, theirs: ClassSums) -> None:
        # Block b of the other is this one's block (b + seen) % blocks: dealing goes on in turn.
        device = mine.sums.device
        block = torch.arange(self.blocks, device=device)
        classes = torch.arange(self.num_classes, device=device)[:, None]
        turned = (block + mine.seen[:, None]) % self.blocks
        target = (classes * self.blocks + turned).flatten()  # every row once
        mine.counts[target] += theirs.counts.to(device)
        mine.sums[target] += theirs.sums.to(device)
        mine.seen = mine.seen + theirs.seen.to(device)
        mine.nonfinite_rows += theirs.nonfinite_rows.to(device)

    def fork(self) -> ResqueDist:
        """One that goes on from here with a new side of its own; the old side's sums are shared,
        so that neither may add to the old side any more."""
        self._faults.read()
        other = copy.copy(self)
        other._faults = DeferredFaults(_PENDING)
        other._updates = dict(self._updates)
        if self._sides is not None:
            old, new = (self._sides[side] for side in SIDES)
            other._sides = {"old": copy.copy(old), "new": copy.deepcopy(new)}
        return other

    @property
    def complete(self) -> bool:
        """The new side has rows of every class that the old side has."""
        if self._sides is None:
            return False
        old, new = (self._sides[side].seen > 0 for side in SIDES)
        return not bool((old & ~new).any())

    def reduce(self, ranks: Ranks) -> None:
        """Sums the class sums of all ranks, each rank's blocks turned to where they come in line.

        Raises:
            ValueError: other options or widths on other ranks; the same on all ranks.
        """
        self._faults.read()
        notes = ranks.exchange(
            {
                "accumulator": "ResqueDist",
                "blocks": self.blocks,
                "paired": self.paired,
                "width": self.width,
                "classes": self.num_classes,
            }
        )
        self.grow(max(note.pop("classes") for note in notes))
        widths = {note.pop("width") for note in notes} - {None}
        ranks.expect_equal(notes)
        if len(widths) > 1:
            raise ArgumentError("accumulators", "one width on all ranks", widths)
        if not widths:
            return
        empty = (self.num_classes, self.blocks, widths.pop())
        sides = self._sides
        if sides is None:  # a rank without data
            sides = {s: ClassSums.empty(*empty, ranks.device) for s in SIDES}
        reduced = {}
        for side in SIDES:
            mine, whole = sides[side], ClassSums.empty(*empty, sides[side].sums.device)
            seen = ranks.all_gather(mine.seen)
            whole.seen = sum(seen[: ranks.rank], torch.zeros_like(mine.seen))
            self._merge_side(whole, mine)
            for tensor in (whole.counts, whole.sums, whole.nonfinite_rows):
                ranks.add_up(tensor)
            whole.seen = sum(seen, torch.zeros_like(mine.seen))
            reduced[side] = whole
        self._sides = reduced  # all or nothing: an error before leaves the state as it was

    def state_dict(self) -> dict[str, Tensor]:
        """The whole state as plain tensors, ready for safetensors; empty sides have width 0."""
        self._faults.read()
        sides = self._sides or {
            s: ClassSums.empty(self.num_classes, self.blocks, 0, torch.device("cpu")) for s in SIDES
        }
        state = {"blocks": torch.tensor(self.blocks), "num_classes": torch.tensor(self.num_classes)}
        for side in SIDES:
            state |= {f"{side}.{k}": v.clone() for k, v in vars(sides[side]).items()}
            state[f"{side}.updates"] = torch.tensor(self._updates[side])
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Replaces the state by one of :meth:`state_dict`; nothing changes when it does not fit.

        Raises:
            KeyError: a tensor is missing or unknown.
            ValueError: made for other classes or blocks, or a tensor's shape or dtype is wrong.
        """
        if not isinstance(state, Mapping):
            raise ArgumentTypeError("state", "a mapping of tensors", describe(state))
        expected = ResqueDist(self.num_classes, blocks=self.blocks).state_dict()
        if set(state) != set(expected):
            raise KeyError(
                f"state: expected the keys {sorted(expected)}, found {sorted(map(str, state))}"
            )
        state = {k: as_tensor(v, f"state[{k!r}]") for k, v in state.items()}
        for key in ("num_classes", "blocks"):
            if state[key].numel() != 1 or int(state[key]) != int(expected[key]):
                raise ArgumentError(f"state[{key!r}]", int(expected[key]), state[key].tolist())
        for key in (f"{s}.{f}" for s in SIDES for f in ("counts", "seen", "updates")):
            if state[key].numel() and int(state[key].min()) < 0:
                raise ArgumentError(
                    f"state[{key!r}]", "values of at least 0", int(state[key].min())
                )
        width = state["old.sums"].shape[-1] if state["old.sums"].dim() else -1
        for key, tensor in expected.items():
            shape = (*tensor.shape[:1], width) if key.endswith("sums") else tuple(tensor.shape)
            if tuple(state[key].shape) != shape or state[key].dtype != tensor.dtype:
                raise ArgumentError(
                    f"state[{key!r}]", f"shape {shape}, {tensor.dtype}", describe(state[key])
                )
        self.reset()
        self._updates = {side: int(state[f"{side}.updates"]) for side in SIDES}
        if width:
            fields = ("counts", "sums", "seen", "nonfinite_rows")
            with torch.inference_mode(False), torch.no_grad():
                self._sides = {
                    side: ClassSums(**{f: state[f"{side}.{f}"].clone() for f in fields})
                    for side in SIDES
                }

    def compute(self, *, ignore_unseen: bool = False) -> ResqueDistResult:
        """The index of all data so far; more may follow.

        Args:
            ignore_unseen: classes that neither side has are left out without being asked for.

        Raises:
            ValueError: there is no data, a class has no angle (missing="error"), no class has one,
                or the sides are not paired as they were said to be.
        """
        counts, sums = self._blocks()
        rows = {s: counts[s].sum(axis=1) for s in SIDES}
        with np.errstate(over="ignore", invalid="ignore"):  # such a class has no angle, and says so
            totals = {s: sums[s].sum(axis=1) for s in SIDES}
        per_class = _angles.angles(totals["old"], totals["new"])
        per_class[(rows["old"] == 0) | (rows["new"] == 0)] = np.nan

        missing = np.isnan(per_class)
        unseen = (rows["old"] == 0) & (rows["new"] == 0)
        wrong = missing & ~unseen if ignore_unseen else missing
        if self.missing == "error" and wrong.any():
            raise_for_missing(wrong, rows, totals)
        if missing.all():
            raise ArgumentError(
                "labels", "a class with rows on both sides", f"none of {len(missing)}"
            )
        self._check_pairing()
        keep = ~missing
        old, new = (sums[s] if keep.all() else sums[s][keep] for s in SIDES)
        value = float(per_class[keep].mean())
        error = floor = p_value = None
        kept = {s: counts[s][keep] for s in SIDES}
        matched = not self.paired or np.array_equal(counts["old"], counts["new"])
        if matched:
            error = _angles.std_error(old, new, kept["old"], kept["new"], self.paired)
        if not self.paired:
            floor = _angles.noise_floor(old, kept["old"], rows["new"][keep])
        elif matched and (found := _angles.exchange(old, new, kept["old"])):
            floor, p_value = found
        warnings = warnings_of(value, error, floor, p_value, matched)
        return ResqueDistResult(
            value=value,
            per_class=per_class,
            std_error=error,
            noise_floor=floor,
            counts=rows,
            missing=tuple(np.flatnonzero(missing).tolist()),
            p_value=p_value,
            reliable=not warnings,
            warnings=warnings,
            nonfinite_rows={s: int(self._sides[s].nonfinite_rows) for s in SIDES},
        )

    def _blocks(self) -> tuple[dict[str, NDArray[np.int64]], dict[str, NDArray[np.float64]]]:
        """Rows [C, B] and sums [C, B, D] of both sides, on the host."""
        self._faults.read()
        if self._sides is None:
            raise ArgumentError("update", "at least one batch before compute()", "none")
        shape = (self.num_classes, self.blocks)
        counts = {s: self._sides[s].counts.cpu().numpy().reshape(shape) for s in SIDES}
        sums = {s: self._sides[s].sums.cpu().numpy().reshape(*shape, -1) for s in SIDES}
        return counts, sums

    def debiased(self, confidence: float = 0.95) -> DebiasedAngle | None:
        """What the index would be with infinitely many samples, and an interval for that.

        The plain value is too large on few samples, as noise turns class sums away from each other
        (the noise floor says how far); this one is not, so that values from different numbers of
        samples compare. Classes without an angle are left out, as with ``missing="skip"``.

        Args:
            confidence: of the interval, between 0 and 1.

        Returns:
            None where there are too few samples to tell: fewer than three a class on a side, or
            class means whose length is within the noise.

        Raises:
            ValueError: as :meth:`compute`, or a confidence out of range.
        """
        if not 0 < confidence < 1:
            raise ArgumentError("confidence", "a number between 0 and 1", f"{confidence!r}")
        counts, sums = self._blocks()
        keep = np.all([c.any(axis=1) & sums[s].any(axis=(1, 2)) for s, c in counts.items()], axis=0)
        if not keep.any():
            return None
        old, new = (sums[s][keep] for s in SIDES)
        rows = (counts[s][keep] for s in SIDES)
        return debiased(old, new, *rows, self.paired, confidence)

    def _check_pairing(self, always: bool = False) -> None:
        if self._sides is None or not (self.paired or always):
            return
        old, new = (self._sides[s].seen.cpu() for s in SIDES)
        if not torch.equal(old, new):
            c = int((old != new).nonzero()[0])
            raise ArgumentError(
                "paired",
                "as many rows of each class on both sides",
                f"{int(old[c])} old and {int(new[c])} new rows of class {c}",
            )


def raise_for_missing(
    missing: NDArray[np.bool_],
    rows: Mapping[str, NDArray[np.int64]],
    totals: Mapping[str, NDArray[np.float64]],
) -> None:
    """ValueError with what each of these classes lacks: rows of a side, or a sum with an angle."""
    reasons = []
    for c in np.flatnonzero(missing)[:5]:
        empty = [s for s in SIDES if rows[s][c] == 0]
        if empty:
            reasons.append(f"class {c} has no {' and no '.join(empty)} rows")
            continue
        for s in SIDES:
            if not np.isfinite(totals[s][c]).all():
                reasons.append(f"class {c} has a non-finite {s} sum")
            elif not totals[s][c].any():
                reasons.append(f"class {c} has a zero {s} sum")
    more = int(missing.sum()) - min(int(missing.sum()), 5)
    raise ArgumentError(
        "labels",
        "every class to have an angle",
        "; ".join(reasons) + (f"; and {more} more classes" if more else ""),
        fix="missing='skip' leaves such classes out",
    )


@eager
def resque_dist(
    old: Any,
    new: Any,
    old_labels: Any,
    new_labels: Any,
    num_classes: int | None = None,
    missing: str = "error",
    *,
    nonfinite: str = "error",
    paired: bool = False,
) -> ResqueDistResult:
    """RESQUE_dist of features at hand: the mean over classes of angle(old sum, new sum) / pi.

    Args:
        old, new: features [N, D], [N, C, H, W] or [N, T, D] of one width: tensors, arrays, data
            frames, or lists of rows.
        old_labels, new_labels: class indices [N]; or names of classes, of which class i is the i-th
            of those of both sides in sorted order.
        num_classes: C; by default the classes are those that appear on either side.
        missing, nonfinite, paired: see :class:`ResqueDist`.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    (old_labels, new_labels), _ = class_indices(old_labels=old_labels, new_labels=new_labels)
    sides = {}
    for side, features, labels in (("old", old, old_labels), ("new", new, new_labels)):
        x, y = check_features(features, side), check_labels(labels, f"{side}_labels")
        check_pair(x, y, (side, f"{side}_labels"))
        sides[side] = x, y
    (x, y), (x2, y2) = sides["old"], sides["new"]
    widths = [t.shape[2] if t.dim() == 3 else t.shape[1] for t in (x, x2)]
    if widths[0] != widths[1] or x.device != x2.device:
        raise ArgumentError(
            "old, new", "one width on one device", f"old ({describe(x)}) and new ({describe(x2)})"
        )
    if paired and (len(y) != len(y2) or not torch.equal(y.long(), y2.long())):
        raise ArgumentError("paired", "old_labels and new_labels to be equal", "others")
    known = num_classes is not None
    if num_classes is None:
        num_classes = _count_classes(y, y2)
    acc = ResqueDist(num_classes, paired=paired, missing=missing, nonfinite=nonfinite)
    for side in SIDES:
        try:
            acc.update(*sides[side], side)
        except InputError as error:
            # update() speaks of features and labels; here they are old and old_labels.
            raise renamed(error, features=side, labels=f"{side}_labels") from None
    return acc.compute(ignore_unseen=not known)


def _count_classes(old: Tensor, new: Tensor) -> int:
    """1 + the largest label; refused where that cannot be meant."""
    top = max((int(y.max()) for y in (old, new) if len(y)), default=-1)
    bound = max(100_000, len(old) + len(new))
    if top >= bound:
        raise ArgumentError("num_classes", f"it to be given for labels as large as {top}", "None")
    return max(top + 1, 1)
