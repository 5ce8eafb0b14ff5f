"""One side's embeddings, kept for an index that reads them many times."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from resque_ext.data.checks import as_tensor, check_choice, describe
from resque_ext.errors import ArgumentError
from resque_ext.indices.base import EmbeddingBatch, Facts, Index, IndexReads, expect_kind
from resque_ext.indices.segments import EMBEDDINGS


class KeptEmbeddings:
    """One side's embeddings, batch by batch, where the model has put them.

    Rows that are flattened may differ in width, where batches differ in tokens: there are zeros
    behind the shorter ones.

    Attributes:
        width: D of the widest so far.
    """

    def __init__(self, flatten: bool) -> None:
        self.flatten = flatten
        self._clear()

    def _clear(self) -> None:
        self.width = 0
        self._shards: list[Tensor] = []  # [n, D] each: pooled to float32, or flattened as they are
        self._labels: list[Tensor] = []
        self._flattens = False  # there was something to flatten

    def add(self, batch: EmbeddingBatch) -> None:
        labels = batch.labels
        if labels is None or not len(labels):
            return
        self._flattens |= self.flatten and batch.x.dim() > 2
        self._append(batch.rows(self.flatten), labels)

    def _append(self, rows: Tensor, labels: Tensor) -> None:
        with torch.inference_mode(False), torch.no_grad():
            self._shards.append(rows)
            self.width = max(self.width, rows.shape[1])
            self._labels.append(labels.to(rows.device, torch.int64, non_blocking=True))

    def shards(self, width: int) -> list[Tensor]:
        """[n, width] each."""
        pad = torch.nn.functional.pad
        return [x if x.shape[1] == width else pad(x, (0, width - x.shape[1])) for x in self._shards]

    @property
    def labels(self) -> Tensor:
        return torch.cat(self._labels) if self._labels else torch.empty(0, dtype=torch.int64)

    def bytes_of(self, rows: int | None) -> int:
        """Bytes that these rows take, or as many rows like them."""
        found = sum(x.nbytes for x in (*self._shards, *self._labels))
        here = sum(map(len, self._labels))
        return found if rows is None or not here else found * rows // here

    def facts(self, facts: Facts) -> dict[str, Any]:
        """The fields of a result of these embeddings."""
        return facts.of_embedding() | ({"pooling": "flattened"} if self._flattens else {})

    def merge(self, other: KeptEmbeddings) -> None:
        """Adds the other's rows after these."""
        for rows, labels in zip(other._shards, other._labels, strict=True):
            self._append(rows, labels)
        self._flattens |= other._flattens

    def state_dict(self) -> dict[str, Tensor]:
        """{} without rows."""
        if not self._shards:
            return {}
        rows = torch.cat(self.shards(self.width))
        flattens = torch.tensor(self._flattens)
        return {"rows": rows, "labels": self.labels.clone(), "flattened": flattens}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Replaces the rows by those of `state_dict`; nothing changes when it does not fit.

        Raises:
            KeyError: a tensor is missing or unknown.
            TypeError: something that is not a tensor.
            ValueError: a tensor is not what it should be.
        """
        keys = {"rows", "labels", "flattened"}
        if state and set(state) != keys:
            raise KeyError(
                f"state: expected the keys {sorted(keys)}, found {sorted(map(str, state))}"
            )
        found = {key: as_tensor(x, f"state[{key!r}]") for key, x in state.items()}
        if found:
            rows, labels, flattened = found["rows"], found["labels"], found["flattened"]
            if rows.dim() != 2 or not rows.is_floating_point():
                raise ArgumentError("state['rows']", "[N, D] floats", describe(rows))
            if labels.shape != rows.shape[:1] or labels.dtype != torch.int64:
                raise ArgumentError(
                    "state['labels']", f"shape ({len(rows)},), torch.int64", describe(labels)
                )
            if flattened.numel() != 1:
                raise ArgumentError("state['flattened']", "one flag", describe(flattened))
        self._clear()
        if found:
            self._append(found["rows"].clone(), found["labels"].clone())
            self._flattens = bool(found["flattened"])


class KeptIndex(Index):
    """An index of the new side's embeddings alone, which it keeps.

    Args:
        embedding: "pooled", the mean over positions or tokens, or "flattened".
    """

    reads = IndexReads(sides=("new",), embeddings=("new",), labels=True)
    in_one_place = True

    def __init__(self, embedding: str = "pooled") -> None:
        check_choice(embedding, EMBEDDINGS, "embedding")
        self.reads = dataclasses.replace(self.reads, flattened=embedding == "flattened")
        self._kept = KeptEmbeddings(self.reads.flattened)

    def update(self, batch: EmbeddingBatch) -> None:
        self._kept.add(batch)

    def fork(self) -> Any:
        """One for another new side: nothing of the old one is read."""
        return self.fresh()

    def merge(self, other: Index) -> None:
        expect_kind(other, self)
        self._kept.merge(other._kept)

    def state_dict(self) -> dict[str, Tensor]:
        return self._kept.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._kept.load_state_dict(state)

    def memory(self, pairs: int, rows: int | None = None) -> int:
        return pairs * self._kept.bytes_of(rows)
