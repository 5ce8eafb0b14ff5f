"""What ARM keeps of one side of one layer: bins, the bins of each filter, or the values themselves.

All three stage a batch before they add it, so that one which is refused leaves nothing behind; deal
batches in turn to two halves; add up exactly, in any order; and give weighted points to measure
between.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from resque_ext.data.checks import describe
from resque_ext.errors import ArgumentError
from resque_ext.ops import reference
from resque_ext.ops.value_histogram import Values, bin_dtype, bin_values
from resque_ext.ops.wasserstein import Floats, Integers

BITS = 16  # every bit of the narrow dtypes; of float32 as many as bfloat16 has
BINS = 2**BITS
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# Filters whose bins are spread out at a time, 512 KB each: on the CPU few enough for a cache, on
# CUDA enough to be worth the wait for how many bins have values.
CHANNELS = {"cpu": 8, "cuda": 128}
FIRST_TRY = 4096  # values of a filter that are kept before its bins are tried instead


def reads_at_once(device: torch.device) -> bool:
    """Whether reading a value costs nothing, so that a wrong batch can be refused."""
    return device.type == "cpu"


class Points(NamedTuple):
    """Values and how often each occurs, by group; `reach` is how far the true ones may lie."""

    groups: Integers
    values: Floats
    counts: Integers
    reach: Floats


class Staged(NamedTuple):
    """A batch that is ready to be added."""

    values: Values
    data: Tensor | None
    status: Tensor  # empty where only adding the batch tells


class State(ABC):
    """One side of one layer.

    Attributes:
        dtype: of the values, after pooling.
        width: the number of channels.
        rows: how many rows each half has seen.
        updates: batches so far; the next one goes to half `updates % 2`.
        values: how many values came, whether finite or not.
        skipped: [] int64, non-finite values that were left out.
    """

    fields: tuple[str, ...] = ()  # of state_dict, beside `meta`
    by_channel = False

    def __init__(self, dtype: torch.dtype, width: int, device: torch.device) -> None:
        self.dtype, self.width, self.device = dtype, width, device
        self.rows = [0, 0]
        self.updates = 0
        self.values = 0
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)

    @property
    def single(self) -> bool:
        """Every row had one value a channel, so that the values of a filter are independent."""
        return self.values == sum(self.rows) * self.width

    def like(self) -> Any:
        """An empty one of the same kind."""
        return type(self)(self.dtype, self.width, self.device)

    @abstractmethod
    def stage(self, values: Values) -> Staged: ...

    def commit(self, staged: Staged) -> Tensor:
        """Adds a staged batch and returns its status."""
        half = self.updates % 2
        self.rows[half] += staged.values.length
        self.updates += 1
        self.values += staged.values.view.numel()
        status = self._add(staged, half)
        self.skipped = self.skipped + status[2]
        return status

    def merged(self, other: Any) -> Any:
        """Both together, as if the batches of `other` had come after this one's own."""
        out, turn = self.like(), self.updates % 2
        out.rows = [self.rows[h] + other.rows[h ^ turn] for h in range(2)]
        out.updates = self.updates + other.updates
        out.values = self.values + other.values
        out.skipped = self.skipped + other.skipped.to(self.device)
        out._fill(self, other, turn)
        return out

    def meta(self) -> Tensor:
        """Everything but the data, as integers."""
        numbers = [DTYPES.index(self.dtype), self.width, *self.rows, self.updates, self.values]
        return torch.tensor([*numbers, int(self.skipped)])

    def load(self, state: Mapping[str, Tensor], name: str) -> None:
        """Takes over tensors() and meta(), of a state called `name` in messages.

        Raises:
            ValueError: one does not fit.
        """
        *rows, self.updates, self.values, skipped = state["meta"].tolist()[2:]
        self.rows = rows
        self.skipped += skipped
        whole = self.values % self.width == 0 and self.values >= sum(rows) * self.width
        _expect_meta(whole, name, f"{sum(rows)} rows of {self.width} values each", state)
        self._load(state, name)

    @property
    @abstractmethod
    def nbytes(self) -> int: ...

    @abstractmethod
    def bytes_of(self, values: Values) -> int:
        """How much larger a batch makes the state, at first."""

    def compact(self) -> None:  # noqa: B027 (most kinds are as small as they get)
        """As small as it gets, where that takes more than keeping what came."""

    @abstractmethod
    def points(self, first: int = 0, last: int | None = None, half: int | None = None) -> Points:
        """All values (of one half), or those of the channels from `first` to before `last`."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The data, by the names of `fields`."""

    def _expect_total(self, counts: Tensor, name: str) -> None:
        total = self.values - int(self.skipped)
        right = bool((counts >= 0).all()) and int(counts.sum()) == total
        _expect(right, name, "counts", f"counts of {total} values in all", counts)

    @abstractmethod
    def _add(self, staged: Staged, half: int) -> Tensor: ...

    @abstractmethod
    def _fill(self, mine: Any, theirs: Any, turn: int) -> None: ...

    @abstractmethod
    def _load(self, state: Mapping[str, Tensor], name: str) -> None: ...


class Bins(State):
    """One histogram a half: [2, 65,536] counts, 1 MB whatever comes."""

    fields = ("counts",)

    def __init__(self, dtype: torch.dtype, width: int, device: torch.device) -> None:
        super().__init__(dtype, width, device)
        self.counts = torch.zeros(2, BINS, dtype=torch.int64, device=device)

    @property
    def nbytes(self) -> int:
        return self.counts.nbytes

    def bytes_of(self, values: Values) -> int:
        return 0

    def stage(self, values: Values) -> Staged:
        if not reads_at_once(self.device):
            return Staged(values, None, torch.empty(0))
        return Staged(values, *values.count(BITS))

    def _add(self, staged: Staged, half: int) -> Tensor:
        if staged.data is None:
            return staged.values.count(BITS, counts=self.counts[half])[1]
        self.counts[half] += staged.data
        return staged.status

    def points(self, first: int = 0, last: int | None = None, half: int | None = None) -> Points:
        counts = (self.counts.sum(0) if half is None else self.counts[half]).cpu().numpy()
        there = np.flatnonzero(counts)
        return _points(self.dtype, np.zeros_like(there), there, counts[there])

    def tensors(self) -> dict[str, Tensor]:
        return {"counts": self.counts.clone()}

    def _fill(self, mine: Any, theirs: Any, turn: int) -> None:
        self.counts = mine.counts + theirs.counts.roll(turn, 0).to(self.device)

    def _load(self, state: Mapping[str, Tensor], name: str) -> None:
        counts = state["counts"]
        shape = f"shape (2, {BINS}), torch.int64"
        right = tuple(counts.shape) == (2, BINS) and counts.dtype == torch.int64
        _expect(right, name, "counts", shape, counts)
        self._expect_total(counts, name)
        edges = counts[:, np.isnan(bin_values(bin_dtype(self.dtype), BITS)[0])]
        _expect(not edges.any(), name, "counts", "0 for infinity and NaN", edges)
        self.counts += counts.to(self.device)


class FilterBins(State):
    """The bins of each filter: as 16-bit patterns of the values, or sorted with their counts.

    A pattern takes 2 bytes, a bin of one filter 8, and a filter's values fall into some hundreds of
    bins: so values are kept until there are FIRST_TRY of each filter, then their bins if these are
    smaller, and again whenever as much has come as the bins take. A table of all bins would be
    larger than either: 512 KB a filter.
    """

    fields = ("keys", "counts")
    by_channel = True

    def __init__(self, dtype: torch.dtype, width: int, device: torch.device) -> None:
        super().__init__(dtype, width, device)
        self.sparse: list[tuple[Tensor, Tensor]] = []  # channel * BINS + bin, ascending; counts
        self.patterns: list[Tensor] = []  # [n, channels, positions] int16
        self._next_try = FIRST_TRY

    @property
    def _pattern_dtype(self) -> torch.dtype:
        """The dtype whose values the patterns are; the top half of a float32 is a bfloat16."""
        return torch.float16 if self.dtype == torch.float16 else torch.bfloat16

    @property
    def nbytes(self) -> int:
        sparse = sum(keys.nbytes + counts.nbytes for keys, counts in self.sparse)
        return sparse + sum(p.nbytes for p in self.patterns)

    def bytes_of(self, values: Values) -> int:
        return 2 * values.view.numel()

    def stage(self, values: Values) -> Staged:
        x = values.view
        x = reference.cut_to_float32(x) if x.dtype == torch.float64 else x
        if x.dtype == torch.float32:
            patterns = (x.view(torch.int32) >> 16).to(torch.int16)
        else:
            patterns = x.view(torch.int16).clone()
        exponent = 0x7C00 if self.dtype == torch.float16 else 0x7F80
        return Staged(values, patterns, _status((patterns & exponent) == exponent))

    def _add(self, staged: Staged, half: int) -> Tensor:
        assert staged.data is not None  # as stage() has it
        self.patterns.append(staged.data)
        if self._kept() >= self._next_try:
            self.compact()
        return staged.status

    def _kept(self) -> int:
        """Values of each filter that are kept as patterns."""
        return sum(p.shape[0] * p.shape[2] for p in self.patterns)

    def compact(self) -> None:
        """Bins in place of patterns where these are smaller. Waits for the device."""
        keys, counts = self._bins(0, self.width)
        if keys.nbytes + counts.nbytes < self.nbytes:
            self.sparse, self.patterns = [(keys, counts)], []
            self._next_try = max(FIRST_TRY, (keys.nbytes + counts.nbytes) // (2 * self.width))
        else:
            self._next_try = 2 * self._kept()

    def _bins(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Keys and counts of the filters from `first` to before `last`."""
        if not self.patterns and len(self.sparse) == 1:
            part = _between(self.sparse[0][0], first, last)
            return self.sparse[0][0][part], self.sparse[0][1][part]
        step = CHANNELS[self.device.type]
        dense = torch.empty(min(step, last - first), BINS, dtype=torch.int64, device=self.device)
        parts = [self._spread(c, dense[: last - c]) for c in range(first, last, step)]
        keys, counts = (torch.cat(part) for part in zip(*parts, strict=True))
        return keys, counts

    def _spread(self, first: int, dense: Tensor) -> tuple[Tensor, Tensor]:
        """The same of the filters from `first` on, by way of all bins of as many as `dense` has."""
        last, flat, start = first + len(dense), dense.zero_().view(-1), first * BINS
        for keys, counts in self.sparse:
            part = _between(keys, first, last)
            flat[keys[part].long() - start] += counts[part]
        for patterns in self.patterns:
            view = patterns[:, first:last].view(self._pattern_dtype)
            # Again what is not finite is left out; its number is known.
            Values(view, (), ()).count(BITS, True, dense)
        there = flat.nonzero().flatten()
        # 32 bits as long as they hold any key, and any count.
        keys = (there + start).to(torch.int32 if self.width < 2**15 else torch.int64)
        return keys, flat[there].to(torch.int32 if self.values < 2**31 else torch.int64)

    def points(self, first: int = 0, last: int | None = None, half: int | None = None) -> Points:
        keys, counts = (t.cpu().numpy() for t in self._bins(first, last or self.width))
        groups, bins = np.divmod(keys.astype(np.int64), BINS)
        return _points(self.dtype, groups - first, bins, counts.astype(np.int64))

    def tensors(self) -> dict[str, Tensor]:
        keys, counts = self._bins(0, self.width)
        return {"keys": keys.long(), "counts": counts.long()}

    def _fill(self, mine: Any, theirs: Any, turn: int) -> None:
        there = [tuple(t.to(self.device) for t in pair) for pair in theirs.sparse]
        self.sparse = [*mine.sparse, *there]
        self.patterns = [*mine.patterns, *(p.to(self.device) for p in theirs.patterns)]
        self._next_try = max(mine._next_try, theirs._next_try)
        if len(self.sparse) > 1 or self._kept() >= self._next_try:
            self.compact()

    def _load(self, state: Mapping[str, Tensor], name: str) -> None:
        keys, counts = state["keys"], state["counts"]
        for key, x in (("keys", keys), ("counts", counts)):
            right = x.dim() == 1 and x.dtype == torch.int64 and len(x) == len(keys)
            _expect(right, name, key, f"shape ({len(keys)},), torch.int64", x)
        self._expect_total(counts, name)
        values = bin_values(bin_dtype(self.dtype), BITS)[0]
        right = bool((keys.diff() > 0).all() & (keys >= 0).all() & (keys < self.width * BINS).all())
        right = right and not np.isnan(values[(keys % BINS).cpu().numpy()]).any()
        _expect(right, name, "keys", "channel * 65536 + bin, ascending", keys)
        if len(keys):
            self.sparse = [(keys.to(self.device).clone(), counts.to(self.device).clone())]


_SIZES = (torch.Tensor.numel, lambda x: x.isfinite().sum())


class Samples(State):
    """The values themselves, by half."""

    fields = ("first", "second")

    def __init__(
        self, dtype: torch.dtype, width: int, device: torch.device, by_channel: bool = False
    ) -> None:
        super().__init__(dtype, width, device)
        self.by_channel = by_channel
        self.halves: tuple[list[Tensor], list[Tensor]] = ([], [])  # [n, groups]

    @property
    def groups(self) -> int:
        return self.width if self.by_channel else 1

    def like(self) -> Samples:
        return Samples(self.dtype, self.width, self.device, self.by_channel)

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for half in self.halves for x in half)

    def bytes_of(self, values: Values) -> int:
        return values.view.nbytes

    def stage(self, values: Values) -> Staged:
        data = values.view.transpose(1, 2).reshape(-1, self.groups).clone()
        return Staged(values, data, _status(~values.view.isfinite()))

    def _add(self, staged: Staged, half: int) -> Tensor:
        assert staged.data is not None  # as stage() has it
        self.halves[half].append(staged.data)
        return staged.status

    def points(self, first: int = 0, last: int | None = None, half: int | None = None) -> Points:
        empty = torch.empty(0, self.groups, dtype=torch.float64)
        parts = [x for h in range(2) if half in (None, h) for x in self.halves[h]]
        x = torch.cat([x[:, first:last].cpu().double() for x in (empty, *parts)]).numpy()
        x = np.sort(x.T, axis=1)  # so that sums over them do not show the order of the batches
        good = np.isfinite(x)
        groups = np.broadcast_to(np.arange(len(x))[:, None], x.shape)[good]
        return Points(groups, x[good], np.ones_like(groups), np.zeros(len(groups)))

    def tensors(self) -> dict[str, Tensor]:
        empty = torch.empty(0, self.groups, dtype=self.dtype, device=self.device)
        return {f: torch.cat([empty, *x]) for f, x in zip(self.fields, self.halves, strict=True)}

    def _fill(self, mine: Any, theirs: Any, turn: int) -> None:
        for half in range(2):
            there = [x.to(self.device) for x in theirs.halves[half ^ turn]]
            self.halves[half].extend([*mine.halves[half], *there])

    def _load(self, state: Mapping[str, Tensor], name: str) -> None:
        for half, key in enumerate(self.fields):
            x, expected = state[key], f"shape [n, {self.groups}], {self.dtype}"
            right = x.dim() == 2 and x.shape[1] == self.groups and x.dtype == self.dtype
            _expect(right, name, key, expected, x)
            self.halves[half].append(x.to(self.device).clone())
        found = [sum(int(part(state[key])) for key in self.fields) for part in _SIZES]
        right = found == [self.values, self.values - int(self.skipped)]
        _expect_meta(right, name, f"{found[0]} values, {found[1]} of them finite", state)


def _between(keys: Tensor, first: int, last: int) -> slice:
    """Where the keys of the filters from `first` to before `last` are."""
    ends = keys.new_tensor([first * BINS, last * BINS])
    return slice(*torch.searchsorted(keys, ends).tolist())


def _points(dtype: torch.dtype, groups: Integers, bins: Integers, counts: Integers) -> Points:
    lower, upper, middle = (part[bins] for part in bin_values(bin_dtype(dtype), BITS))
    return Points(groups, middle, counts, np.maximum(middle - lower, upper - middle))


def _status(bad: Tensor) -> Tensor:
    """The status words of values of which some are not finite: see csrc/resque.h."""
    status = torch.zeros(5, dtype=torch.int64, device=bad.device)
    if bad.numel() == 0 or (reads_at_once(bad.device) and not bad.any()):
        return status
    status[2] = bad.sum()
    status[3] = torch.where(bad.any(), bad.numel() - bad.flatten().int().argmax(), 0)
    return status


def _expect(right: bool, name: str, key: str, expected: str, found: Tensor) -> None:
    if not right:
        raise ArgumentError(f"{name}[{key!r}]", expected, describe(found))


def _expect_meta(right: bool, name: str, expected: str, state: Mapping[str, Tensor]) -> None:
    if not right:
        raise ArgumentError(f"{name}['meta']", expected, state["meta"].tolist())
