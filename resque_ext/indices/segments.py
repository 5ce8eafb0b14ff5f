"""Features that may be larger than memory, read in passes of fixed segments of rows.

A segment has as many rows as its width allows, whatever the batches, shards or memory that the rows
come from, and the results of segments are combined in their order. So a stream gives the bits that
the same rows give in memory.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resque_ext.data import files
from resque_ext.data.checks import as_array, as_tensor, check_features, check_labels, describe
from resque_ext.errors import ArgumentError, ArgumentTypeError
from resque_ext.ops import spatial_mean

# Elements of a segment: 256 MB of float32. On an H100 a read of it takes 90 us, several times what
# launching the kernels on it costs.
SEGMENT_ELEMENTS = 2**26
EMBEDDINGS = ("pooled", "flattened")


class Source(ABC):
    """Rows of features that can be read any number of times.

    Attributes:
        row_shape: (D,), (C, H, W) or (T, D).
        dtype: of the features.
        rows: N.
        device: where the features are.
        in_memory: whether they are tensors or arrays in memory, all of them.
    """

    row_shape: tuple[int, ...]
    dtype: torch.dtype
    rows: int
    device: torch.device
    in_memory: bool

    @property
    def segment_rows(self) -> int:
        """Rows of a segment: a function of the width alone."""
        return max(1, SEGMENT_ELEMENTS // max(1, torch.Size(self.row_shape).numel()))

    @abstractmethod
    def parts(self) -> Iterator[Tensor]:
        """The rows in order, in parts of any length; each is good until the next is taken."""

    def segments(self, device: torch.device) -> Iterator[tuple[int, Tensor]]:
        """(first row, segment) in order, on `device`; each is good until the next is taken."""
        size = max(1, min(self.segment_rows, self.rows))
        buffer = _Buffer if self.device == device or device.type == "cpu" else _StagedBuffer
        buffers = buffer((size, *self.row_shape), self.dtype, device)
        start = 0
        for segment in buffers.fill(_cut(self._checked_parts(), self.segment_rows, self.rows)):
            yield start, segment
            start += len(segment)

    def rows_at(self, positions: list[int]) -> Tensor:
        """These rows, in this order, on the CPU: by a pass over all."""
        found: dict[int, Tensor] = {}
        start = 0
        for part in self._checked_parts():
            for p in positions:
                if start <= p < start + len(part):
                    found[p] = part[p - start].cpu().clone()
            start += len(part)
        return torch.stack([found[p] for p in positions])

    def _checked_parts(self) -> Iterator[Tensor]:
        found = 0
        for part in self.parts():
            if part.shape[1:] != self.row_shape or part.dtype != self.dtype:
                expected = f"rows of shape {self.row_shape}, {self.dtype}, as the first"
                raise ArgumentError("features", expected, describe(part))
            found += len(part)
            if found > self.rows:
                break
            yield part
        if found != self.rows:
            raise ArgumentError(
                "features, labels",
                "one label a row in every pass",
                f"{self.rows} labels and {'more' if found > self.rows else found} rows",
            )


class Arrays(Source):
    """One or more arrays, in memory or mapped into it, one after another."""

    def __init__(self, arrays: list[Any], names: list[str]) -> None:
        # No row is read or copied yet: the checks are made of none.
        empty = [check_features(x[:0], name) for x, name in zip(arrays, names, strict=True)]
        self._arrays = arrays
        self.row_shape, self.dtype = tuple(empty[0].shape[1:]), empty[0].dtype
        for x, name in zip(empty, names, strict=True):
            if x.shape[1:] != self.row_shape or x.dtype != self.dtype:
                raise ArgumentError(
                    f"{names[0]}, {name}",
                    "rows of one shape and dtype",
                    f"{self.row_shape}, {self.dtype} and {tuple(x.shape[1:])}, {x.dtype}",
                )
        devices = {x.device for x in empty}
        self.device = devices.pop() if len(devices) == 1 else torch.device("cpu")
        self.in_memory = not any(isinstance(x, np.memmap) for x in arrays)
        self.rows = sum(len(x) for x in arrays)

    def parts(self) -> Iterator[Tensor]:
        # No more than a segment at a time: what torch cannot look at in place is copied.
        for array in self._arrays:
            for i in range(0, len(array), self.segment_rows):
                yield check_features(array[i : i + self.segment_rows])

    def rows_at(self, positions: list[int]) -> Tensor:
        ends = np.cumsum([len(x) for x in self._arrays]).tolist()
        found = []
        for p in positions:
            which = int(np.searchsorted(ends, p, side="right"))
            at = p - ends[which] + len(self._arrays[which])
            found.append(check_features(self._arrays[which][at : at + 1]).cpu())
        return torch.cat(found)


class Batches(Source):
    """What a function returns: the same batches, in the same order, at every call.

    Without `labels` the batches are pairs ``(features, labels)``: one pass then counts the rows and
    keeps the labels, and later passes have to bring the same.
    """

    def __init__(self, make: Callable[[], Iterable[Any]], labels: Tensor | None) -> None:
        self._make, self._paired = make, labels is None
        self.in_memory, self.labels = False, labels
        parts: list[Tensor] = []
        first = None
        for x, y in self._batches():
            if first is None:
                first = x
            if y is None:
                break  # one batch tells the shape, and the labels the number of rows
            parts.append(y.to("cpu", torch.int64, copy=True))
        if first is None:
            raise ArgumentError("features", "at least one batch", "none")
        if self._paired:
            self.labels = torch.cat(parts)
        self.row_shape, self.dtype = tuple(first.shape[1:]), first.dtype
        self.rows, self.device = len(self.labels), first.device

    def _batches(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        made = self._make()
        if not isinstance(made, Iterable):
            raise ArgumentTypeError(
                "features",
                "a function that returns an iterable of batches",
                f"one that returns {describe(made)}",
            )
        for batch in made:
            pair = isinstance(batch, (tuple, list)) and len(batch) == 2
            x = check_features(batch[0] if pair else batch)
            if self._paired and not pair:
                raise ArgumentTypeError(
                    "labels",
                    "them to be given, or batches that are pairs (features, labels)",
                    f"None and batches of {describe(batch)}",
                )
            y = check_labels(batch[1]) if self._paired else None
            if y is not None and len(y) != len(x):
                raise ArgumentError(
                    "features, labels",
                    "one label a row",
                    f"a batch of features ({describe(x)}) and labels ({describe(y)})",
                )
            yield x, y

    def parts(self) -> Iterator[Tensor]:
        row = 0
        for x, y in self._batches():
            if y is not None and not torch.equal(y.cpu().long(), self.labels[row : row + len(y)]):
                raise ArgumentError(
                    "features",
                    "the same labels in every pass",
                    f"others in the batch that begins at row {row}",
                    fix="is the data shuffled?",
                )
            row += len(x)
            yield x


def open_source(features: Any, labels: Tensor | None) -> Source:
    """Whatever holds features, ready to be read.

    Args:
        features: a tensor, an array or what converts to one, rows as a list, the path of a .npy
            file, a list or tuple of any of these, one after another; or a function that returns an
            iterable of batches, or an iterable that begins again every time, such as a DataLoader.
        labels: [N], or None where batches bring them.

    Raises:
        TypeError: a one-shot iterator, or anything else.
        FileNotFoundError, ValueError: no such file, another content, shards that do not fit.
    """
    features = as_array(features, "features")
    if isinstance(features, (Tensor, np.ndarray, str, os.PathLike)):
        return Arrays([_open_array(features, "features")], ["features"])
    if isinstance(features, (list, tuple)):
        names = [f"features[{i}]" for i in range(len(features))]
        if not names:
            raise ArgumentError("features", "at least one shard", "an empty list")
        return Arrays([_open_array(x, n) for x, n in zip(features, names, strict=True)], names)
    if isinstance(features, Iterator):
        raise ArgumentTypeError(
            "features",
            "data for several passes (arrays, or a function that returns an iterable of batches)",
            f"the one-shot iterator {type(features).__name__}",
        )
    if isinstance(features, Iterable):
        return Batches(features.__iter__, labels)
    if callable(features):
        return Batches(features, labels)
    raise ArgumentTypeError(
        "features",
        "a tensor, an array, the path of a .npy file, a list of these, "
        "or a function that returns an iterable of batches",
        describe(features),
    )


def open_labels(labels: Any) -> Tensor:
    """Labels [N], int32 or int64: an array, the path of a .npy file, or a list of these."""
    labels = as_array(labels, "labels", row_dims=0)
    if isinstance(labels, (list, tuple)) and labels:
        return torch.cat([open_labels(part).cpu().long() for part in labels])
    return check_labels(_open_array(labels, "labels"))


def _open_array(x: Any, name: str) -> Any:
    """An array or tensor with at least one axis; no row is read or copied."""
    x = files.map_array(x) if isinstance(x, (str, os.PathLike)) else as_array(x, name)
    if isinstance(x, np.ndarray) and x.ndim > 0:
        return x
    x = as_tensor(x, name)
    if x.dim() == 0:
        raise ArgumentError(name, "at least one axis", describe(x))
    return x


def _cut(parts: Iterable[Tensor], rows: int, total: int) -> Iterator[tuple[Tensor, int, bool]]:
    """Parts as pieces of segments of `rows` rows: (piece, where it goes, whether it ends one)."""
    seen = 0
    for part in parts:
        start = 0
        while start < len(part):
            at = seen % rows
            piece = part[start : start + rows - at]
            start, seen = start + len(piece), seen + len(piece)
            yield piece, at, seen % rows == 0 or seen == total


class _Buffer:
    """Segments where they lie, or gathered where several parts make one."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self._shape, self._options = shape, {"dtype": dtype, "device": device}

    def fill(self, pieces: Iterable[tuple[Tensor, int, bool]]) -> Iterator[Tensor]:
        buffer = None
        for piece, at, last in pieces:
            if at == 0 and last:
                yield piece.to(self._options["device"])
                continue
            if buffer is None:
                buffer = torch.empty(self._shape, **self._options)
            buffer[at : at + len(piece)] = piece
            if last:
                yield buffer[: at + len(piece)]


class _StagedBuffer(_Buffer):
    """Segments that go from host memory to a CUDA device while the one before is worked on.

    Two pairs of buffers, pinned and on the device, take turns; copies run on a stream of their own.
    Nothing waits but the host, for the copy of two segments ago before it writes to that pinned
    buffer again.
    """

    def fill(self, pieces: Iterable[tuple[Tensor, int, bool]]) -> Iterator[Tensor]:
        device = self._options["device"]
        work, copies = torch.cuda.current_stream(device), torch.cuda.Stream(device)
        slots = [_Slot(self._shape, self._options) for _ in range(2)]
        turn, waiting = 0, None
        try:
            for piece, at, last in pieces:
                slot = slots[turn]
                if at == 0:
                    slot.copied.synchronize()
                slot.pinned[at : at + len(piece)].copy_(piece)
                if not last:
                    continue
                slot.rows = at + len(piece)
                slot.send(copies)
                if waiting is not None:
                    yield from waiting.lend(work)
                turn, waiting = 1 - turn, slot
            if waiting is not None:
                yield from waiting.lend(work)
        finally:
            # The allocator may give the buffers to others on this stream, behind the last copy.
            work.wait_stream(copies)


class _Slot:
    """A pinned buffer, its twin on the device, and the events that guard them."""

    def __init__(self, shape: tuple[int, ...], options: dict[str, Any]) -> None:
        self.pinned = torch.empty(shape, dtype=options["dtype"], pin_memory=True)
        self.there = torch.empty(shape, **options)
        self.copied, self.used = torch.cuda.Event(), torch.cuda.Event()
        self.used.record(torch.cuda.current_stream(options["device"]))
        self.rows = 0

    def send(self, copies: Any) -> None:
        """Copies to the device when the work on what is there is over."""
        copies.wait_event(self.used)
        with torch.cuda.stream(copies):
            self.there[: self.rows].copy_(self.pinned[: self.rows], non_blocking=True)
            self.copied.record(copies)

    def lend(self, work: Any) -> Iterator[Tensor]:
        """The segment, to be worked on by `work` until the next is asked for."""
        work.wait_event(self.copied)
        yield self.there[: self.rows]
        self.used.record(work)


class Embeddings:
    """The rows of a source as vectors [N, width] on a device.

    Args:
        source: the features.
        embedding: "pooled", the mean over the positions of [N, C, H, W] or the tokens of [N, T, D];
            "flattened", all of a row's values side by side.
        device: where the vectors are wanted.
    """

    def __init__(self, source: Source, embedding: str, device: torch.device) -> None:
        self._source, self._pools = source, embedding == "pooled" and len(source.row_shape) > 1
        self.device, self.rows = device, source.rows
        shape = torch.Size(source.row_shape)
        self.width = (shape[0] if len(shape) == 3 else shape[-1]) if self._pools else shape.numel()
        # What lies in memory is averaged once, into a small part of what it takes itself.
        self._pooled: Tensor | None = None
        if self._pools and source.in_memory and source.device == device and self.rows:
            self._pooled = torch.cat([x for _, x in self.segments()])

    def segments(self) -> Iterator[tuple[int, Tensor]]:
        """(first row, [n, width]) in order; each is good until the next is taken."""
        if self._pooled is not None:
            for start in range(0, self.rows, self._source.segment_rows):
                yield start, self._pooled[start : start + self._source.segment_rows]
            return
        for start, x in self._source.segments(self.device):
            yield start, self._embed(x)

    def rows_at(self, positions: list[int]) -> Tensor:
        """These rows, in this order."""
        if self._pooled is not None:
            return self._pooled[torch.tensor(positions, device=self.device)]
        return self._embed(self._source.rows_at(positions).to(self.device))

    def _embed(self, x: Tensor) -> Tensor:
        return spatial_mean(x) if self._pools else x.flatten(1)
