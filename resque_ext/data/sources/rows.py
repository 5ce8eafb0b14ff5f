"""Sources whose rows can be read in any order: in memory, in raw files, one file or item a row."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from resque_ext.data.checks import as_tensor, check_features, check_labels, class_indices, describe
from resque_ext.data.sources.base import (
    Access,
    Batch,
    Kind,
    Reading,
    SourceBase,
    check_kind,
)
from resque_ext.data.sources.order import BlockOrder, Plan, Spans, rows_of
from resque_ext.data.transforms import Transforms
from resque_ext.errors import ArgumentError

Take = Callable[[Spans], Batch | None]


class RowsSource(SourceBase):
    """Rows by number."""

    rows: int

    @property
    def access(self) -> Access:
        return "rows" if self.block_rows == 1 else "blocks"

    def row_at(self, place: int, order: BlockOrder | None) -> int:
        """The number of the row at a place of an order."""
        ((spans,),) = Plan.of(self.rows, order, self.block_rows).spans(place, place + 1, 1)
        return int(spans[0])

    @abstractmethod
    def _reader(self, reading: Reading) -> AbstractContextManager[Take]:
        """Reads the rows of spans, of a batch at most; None where none of them could be read."""

    def _pieces(self, reading: Reading) -> Iterator[Batch]:
        plan = Plan.of(self.rows, reading.order, self.block_rows)
        with self._reader(reading) as take:
            for spans in plan.spans(*reading.share(self.rows), reading.batch_size):
                piece = take(spans)
                if piece is not None:
                    yield piece
                del piece


class ArraySource(RowsSource):
    """Arrays or tensors in memory.

    Args:
        features: embeddings [N, D], [N, C, H, W] or [N, T, D] of a floating dtype; or a model's
            inputs [N, ...], of which uint8 ones become floats in [0, 1].
        labels: [N] class indices, or names of classes, numbered in sorted order.
        name: how reports call it.
        kind: "embeddings" or "inputs".
        fingerprint: what tells these arrays from others, where something does.
        transforms: of a batch of inputs, in turn: functions, or texts as
            :func:`resque_ext.data.transforms.make_transform` takes.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """

    def __init__(
        self,
        features: Any,
        labels: Any,
        name: str = "arrays",
        kind: Kind = "embeddings",
        fingerprint: dict[str, Any] | None = None,
        transforms: Sequence[Any] = (),
    ) -> None:
        self.name, self.kind = name, check_kind(kind)
        named = "features" if kind == "embeddings" else "inputs"
        x = check_features(features) if kind == "embeddings" else as_tensor(features, "inputs")
        (labels,), names = class_indices(labels=labels)
        self.classes = None if names is None else tuple(names.tolist())
        self.sorted_names = names is not None  # the order of the classes is that of their names
        y = check_labels(labels)
        if x.dim() < 2 or len(x) != len(y) or len(y) == 0:
            raise ArgumentError(
                f"{named}, labels",
                f"{named} [N, ...] and as many labels",
                f"{named} ({describe(x)}) and labels ({describe(y)})",
            )
        self._features, self._labels, self.rows = x, y, len(y)
        self._fingerprint, self._transforms = fingerprint, Transforms(transforms)

    def fingerprint(self) -> dict[str, Any] | None:
        return self._transforms.named(self._fingerprint)

    def _reader(self, reading: Reading) -> AbstractContextManager[Take]:
        return nullcontext(self._take)

    def _take(self, spans: Spans) -> Batch:
        if len(spans) == 1:
            rows: Any = slice(*spans[0].tolist())
        else:
            rows = torch.from_numpy(rows_of(spans)).to(self._features.device)
        x = self._features[rows]
        if self.kind == "inputs":
            x = self._transforms.inputs(x)
        return x, self._labels[rows if isinstance(rows, slice) else rows.to(self._labels.device)]
