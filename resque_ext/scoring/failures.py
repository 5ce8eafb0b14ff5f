"""Indices that fail: one alone where the others go on, and before a pass is spent on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler, TensorDataset

from resque_ext.data.checks import check_labels
from resque_ext.indices.base import SIDES, EmbeddingBatch, Index, IndexReads

_MOST_CLASSES = 1_000_000


@dataclass(frozen=True)
class Failed:
    """In place of the result of an index that failed: see `errors` of :func:`resque_ext.score`.

    float() raises the error, and to_dict() has its text under "error".
    """

    error: Exception

    def __float__(self) -> float:
        raise self.error

    def to_dict(self) -> dict[str, Any]:
        return {"error": str(self)}

    def __str__(self) -> str:
        return f"{type(self.error).__name__}: {self.error}"


class Guarded:
    """An index that takes nothing more once it has failed, and then says so in its result."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self.error: Exception | None = None

    @property
    def reads(self) -> IndexReads:
        """Nothing once it has failed; but the sides are run as they were going to be."""
        reads = self._index.reads
        return reads if self.error is None else IndexReads(sides=reads.sides)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._index, name)
        return self._guarded(found) if callable(found) else found

    def _guarded(self, method: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.error is None:
                try:
                    return method(*args, **kwargs)
                except Exception as error:
                    self.error = error
            return Failed(self.error)

        return call


class AsItIs:
    """An index in the pass over the new side under the model as it is, beside the adapted one."""

    def __init__(self, index: Any) -> None:
        self._index = index

    @property
    def reads(self) -> IndexReads:
        reads = self._index.reads
        sides: tuple[Any, ...] = ("new",)
        embeddings = tuple(side for side in reads.embeddings if side in sides)
        return replace(reads, sides=sides, embeddings=embeddings, layers=None)

    def update(self, batch: EmbeddingBatch) -> None:
        self._index.update(replace(batch, as_is=True))


def check_classes(indices: Sequence[Any], model: nn.Module, old: Any, new: Any) -> None:
    """Lets indices refuse classes that one side lacks, where labels are at hand before a pass.

    They are in lists of batches and in loaders of a whole TensorDataset. Elsewhere nothing is known
    until the new side has been read. Labels beyond the model's classes are left to its first pass,
    which says more.
    """
    labels = {side: _labels_at_hand(data) for side, data in zip(SIDES, (old, new), strict=True)}
    if any(found is None for found in labels.values()):
        return
    classes = 1 + max(int(y.max()) for y in labels.values())
    linear = [m.out_features for m in model.modules() if isinstance(m, nn.Linear)]
    if linear and classes > linear[-1] > 1:
        return
    rows = {side: torch.bincount(y, minlength=classes).numpy() for side, y in labels.items()}
    for index in indices:
        index.check_classes(rows)


def _labels_at_hand(data: Any) -> Tensor | None:
    """The class indices of all batches, or None where they are not at hand or are none."""
    if isinstance(data, DataLoader):
        sampler, dataset = data.sampler, data.dataset
        whole = isinstance(sampler, SequentialSampler) or (
            type(sampler) is RandomSampler and not sampler.replacement
        )
        tensors = dataset.tensors if type(dataset) is TensorDataset else ()
        if not whole or data.drop_last or len(sampler) != len(dataset) or len(tensors) != 2:
            return None
        data = [tensors]
    if not isinstance(data, (list, tuple)):
        return None
    parts = []
    for batch in data:
        pair = isinstance(batch, (list, tuple)) and len(batch) == 2
        y = batch.get("labels") if isinstance(batch, Mapping) else batch[1] if pair else None
        if not isinstance(y, (Tensor, np.ndarray)) or y.ndim != 1:
            return None
        try:
            parts.append(check_labels(y).cpu().long())
        except (TypeError, ValueError):
            return None
    found = torch.cat(parts) if parts else torch.empty(0)
    return found if len(found) and found.min() >= 0 and found.max() < _MOST_CLASSES else None
