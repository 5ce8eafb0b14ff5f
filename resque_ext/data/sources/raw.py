"""Arrays that lie in a file as they lie in memory, row by row: what .npy and .safetensors share.

Rows are read by `preadv` into memory that is used again, not through a mapping: what a mapping has
read counts as the process's own memory for as long as it lasts.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resque_ext.data.checks import WIDE_UNSIGNED, as_float, check_labels
from resque_ext.data.sources.base import (
    Batch,
    Kind,
    Reading,
    check_kind,
    file_fingerprint,
)
from resque_ext.data.sources.buffers import Buffers
from resque_ext.data.sources.order import Spans
from resque_ext.data.sources.rows import RowsSource, Take
from resque_ext.data.transforms import Transforms
from resque_ext.errors import ArgumentError

# Up to this size a file is in the page cache after one pass, and single rows cost little.
SINGLE_ROWS_BYTES = 2**30
BLOCK_BYTES = 2**16  # beyond: what a disk reads in about the time that it takes to find it


@dataclass(frozen=True)
class RawArray:
    """Where an array lies.

    Attributes:
        path: the file.
        member: the array's name in it, if it has one.
        offset: of the first element, in bytes.
        shape: of the whole.
        dtype: of an element.
        swapped: the bytes of an element are in the other order than the machine's.
        columns_first: the last axis changes slowest (Fortran order).
    """

    path: Path
    member: str | None
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    swapped: bool = False
    columns_first: bool = False

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def where(self) -> str:
        return str(self.path) if self.member is None else f"{self.path}: {self.member}"

    def describe(self) -> str:
        return f"shape {self.shape}, {self.dtype}"

    def read(self, file: int, spans: Spans, buffers: Buffers) -> Tensor:
        """The rows of spans, in their order.

        Raises:
            OSError: the disk's, or the file has become shorter.
        """
        rows = int((spans[:, 1] - spans[:, 0]).sum())
        out = buffers.lend((rows, *self.shape[1:]), self.dtype)
        raw = out.view(-1).view(torch.uint8).numpy()
        if self.columns_first:
            self._gather(file, spans, raw)
        else:
            self._read_rows(file, spans, memoryview(raw))
        if self.swapped:
            raw.view(f"u{self.dtype.itemsize}").byteswap(inplace=True)
        return out

    def _gather(self, file: int, spans: Spans, raw: np.ndarray) -> None:
        """Rows whose elements lie far apart, through a mapping that lasts for this reading."""
        element = np.dtype(f"u{self.dtype.itemsize}")
        with mmap.mmap(file, 0, access=mmap.ACCESS_READ) as mapped:
            if len(mapped) < self.offset + self.row_bytes * self.shape[0]:
                raise OSError(f"expected {self.shape[0]} rows, found the end")
            whole = np.ndarray(self.shape, element, mapped, self.offset, order="F")
            rows = np.concatenate([whole[first:last] for first, last in spans.tolist()])
            del whole  # else the mapping cannot end
        raw.view(element)[:] = rows.reshape(-1)

    def _read_rows(self, file: int, spans: Spans, into: memoryview) -> None:
        size, at = self.row_bytes, 0
        for first, last in spans.tolist():
            end = at + (last - first) * size
            place = self.offset + first * size
            while at < end:
                count = os.preadv(file, [into[at:end]], place)
                if count == 0:
                    raise OSError(f"expected {end - at} bytes more at {place}, found the end")
                at, place = at + count, place + count


class RawSource(RowsSource):
    """Features and labels in raw arrays of one file or two."""

    def __init__(
        self,
        form: str,
        features: RawArray,
        labels: RawArray,
        name: str | None,
        kind: Kind,
        transforms: Sequence[Any],
        options: dict[str, Any],
    ) -> None:
        self.kind = check_kind(kind)
        check_arrays(features, labels, self.kind)
        self._form, self._options, self._transforms = form, options, Transforms(transforms)
        self._features, self._labels = features, labels
        self.name, self.rows = name or str(features.path), features.shape[0]
        big = features.row_bytes * self.rows > SINGLE_ROWS_BYTES
        self.block_rows = max(1, BLOCK_BYTES // features.row_bytes) if big else 1

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row's features."""
        return self._features.shape[1:]

    @property
    def dtype(self) -> torch.dtype:
        """Of the features in the file."""
        return self._features.dtype

    def fingerprint(self) -> dict[str, Any] | None:
        files = dict.fromkeys((self._features.path, self._labels.path))
        options = {"kind": self.kind} | self._options
        return self._transforms.named(file_fingerprint(self._form, files, options))

    @contextmanager
    def _reader(self, reading: Reading) -> Iterator[Take]:
        with ExitStack() as stack:
            files = []
            for array in (self._features, self._labels):
                files.append(os.open(array.path, os.O_RDONLY | os.O_CLOEXEC))
                stack.callback(os.close, files[-1])
            if reading.order is None:
                os.posix_fadvise(files[0], 0, 0, os.POSIX_FADV_SEQUENTIAL)
            buffers = [Buffers(), Buffers()]

            def take(spans: Spans) -> Batch | None:
                try:
                    x = self._features.read(files[0], spans, buffers[0])
                    y = self._labels.read(files[1], spans, buffers[1])
                except OSError as error:
                    rows = f"rows {spans.min()} to {spans.max() - 1}"
                    reading.fault(self._features.path, self._features.member, f"{rows}: {error}")
                    return None
                if self.kind == "inputs":
                    # As `as_tensor` makes them of arrays: models take no other unsigned type.
                    x = self._transforms.inputs(x.long() if x.dtype in WIDE_UNSIGNED else x)
                else:
                    x = as_float(x, "features")
                return x, check_labels(y)

            yield take


def check_arrays(features: RawArray, labels: RawArray, kind: Kind) -> None:
    """Raises ValueError unless these are rows with a label each."""
    x, y = features, labels
    ranks = (2, 3, 4) if kind == "embeddings" else range(2, 9)
    if len(x.shape) not in ranks or 0 in x.shape[1:]:
        wanted = "[N, D], [N, C, H, W] or [N, T, D]" if kind == "embeddings" else "[N, ...]"
        raise ArgumentError(x.where, wanted, x.describe())
    if y.dtype.is_floating_point or len(y.shape) != 1:
        hint = " (one-hot labels: save their argmax)" if len(y.shape) == 2 else ""
        raise ArgumentError(y.where, "integer labels [N]", f"{y.describe()}{hint}")
    if x.shape[0] != y.shape[0] or x.shape[0] == 0:
        raise ArgumentError(
            x.where,
            "rows and as many labels",
            f"{x.shape[0]} rows and {y.shape[0]} labels in {y.where}",
        )
