"""Iterables of batches, and functions that make them: a DataLoader, a list, a generator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resque_ext.data.checks import IGNORED, as_tensor, check_labels, describe
from resque_ext.data.sources.base import Batch, Kind, Reading, SourceBase, check_kind
from resque_ext.data.sources.regroup import cut, rows_in
from resque_ext.errors import ArgumentError, ArgumentTypeError


class BatchSource(SourceBase):
    """Batches (inputs or features, labels), in the order in which they come.

    Batches may be mappings with an entry "labels", and labels may be missing: inputs alone, or None
    beside them. Such rows have the label -100, which indices that read labels refuse.

    Batch i is the share of rank i modulo the number of ranks, so every rank has to be given the
    same batches in the same order; whoever shuffles, does so with a seed.

    Args:
        batches: an iterable that can be gone through again, or a function that returns one.
        name: how reports call it.
        kind: "inputs" or "embeddings".
        rows: how many rows all batches have together, where that is known.
        fingerprint: what tells these data from others, where something does.
        batch_adapter: turns a batch of another form into a pair (inputs, labels).

    Raises:
        TypeError: a one-shot iterator, or nothing that gives batches.
    """

    access = "sequence"

    def __init__(
        self,
        batches: Iterable[Any] | Callable[[], Iterable[Any]],
        name: str = "batches",
        kind: Kind = "inputs",
        rows: int | None = None,
        fingerprint: dict[str, Any] | None = None,
        batch_adapter: Callable[[Any], tuple[Any, Any]] | None = None,
    ) -> None:
        if isinstance(batches, Iterator):
            raise ArgumentTypeError(
                name,
                "batches that can be read again (a DataLoader, a list, "
                "or a function that returns an iterable)",
                f"the one-shot iterator {type(batches).__name__}",
            )
        if not callable(batches) and not isinstance(batches, Iterable):
            raise ArgumentTypeError(name, "an iterable of batches", describe(batches))
        self._made, self._adapter = batches, batch_adapter
        self.name, self.kind, self.rows = name, check_kind(kind), rows
        self._fingerprint = fingerprint

    def fingerprint(self) -> dict[str, Any] | None:
        return self._fingerprint

    def _pieces(self, reading: Reading) -> Iterator[Batch]:
        made = self._made if isinstance(self._made, Iterable) else self._made()
        if not isinstance(made, Iterable):
            raise ArgumentTypeError(
                self.name,
                "a function that returns an iterable of batches",
                f"one that returns {describe(made)}",
            )
        row = number = 0
        for batch in made:
            x, y = self._pair(batch, number)
            first, last = max(reading.start - row, 0), len(y)
            if reading.stop is not None:
                last = min(last, reading.stop - row)
            row += len(y)
            if first < last and number % reading.world_size == reading.rank:
                yield (x, y) if last - first == len(y) else (cut(x, first, last), y[first:last])
            number += 1
            if reading.stop is not None and row >= reading.stop:
                return
        if number == 0:
            raise ArgumentError(self.name, "at least one batch", "none")
        if self.rows is not None and row != self.rows:
            raise ArgumentError(self.name, f"{self.rows} rows as it says", row)

    def _pair(self, batch: Any, number: int) -> Batch:
        if self._adapter is not None:
            batch = self._adapter(batch)
        if isinstance(batch, Mapping):
            x, y = {k: v for k, v in batch.items() if k != "labels"}, batch.get("labels")
        elif isinstance(batch, (Tensor, np.ndarray)):
            x, y = batch, None
        elif isinstance(batch, (tuple, list)) and len(batch) in (1, 2):
            x, y = (*batch, None)[:2]
        else:
            raise ArgumentTypeError(
                self.name,
                "batches (inputs, labels), or inputs alone",
                f"{describe(batch)}; batch_adapter= turns any batch into such a pair",
            )
        x = as_tensor(x, f"{self.name}: inputs") if isinstance(x, np.ndarray) else x
        if y is None:  # what no index reads as a class, and no accuracy counts
            y = torch.full((rows_in(x) or 0,), IGNORED)
        y = check_labels(y, f"{self.name}: labels")
        if rows_in(x) != len(y):
            raise ArgumentError(
                self.name,
                "one label a row",
                f"batch {number} of inputs ({describe(x)}) and labels ({describe(y)})",
            )
        return x, y
