"""Batches as the training loop wants them: on the device, and as many in every pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, default_collate

from resque_ext.data.checks import IGNORED, IGNORED_FIX, check_labels, describe
from resque_ext.errors import ArgumentError, ArgumentTypeError
from resque_ext.model.batch import labelled
from resque_ext.model.hooks import to_device
from resque_ext.retraining.random_state import Randomness

Adapter = Callable[[Any], tuple[Any, Any]]


class Batches:
    """A loader's batches ``(inputs, labels)``, again and again.

    Args:
        loader: an iterable that can be read more than once.
        name: of the argument, for messages.
        device: where inputs and labels go.
        adapter: makes ``(inputs, labels)`` of a batch; None: they are that.
        indices: labels have to be class indices [N]; else anything with a length.

    Attributes:
        count, samples: of one pass, known after `measure`.
    """

    def __init__(
        self, loader: Any, name: str, device: torch.device, adapter: Adapter | None, indices: bool
    ) -> None:
        if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
            raise ArgumentTypeError(name, "an iterable of batches", describe(loader))
        if isinstance(loader, Iterator):
            raise ArgumentTypeError(
                name,
                "batches that can be read again and again (a list, a DataLoader)",
                f"the one-shot iterator {type(loader).__name__}",
            )
        self.loader, self.name, self.device = loader, name, device
        self.adapter, self.indices = adapter, indices
        self.count = self.samples = 0

    def measure(self, randomness: Randomness) -> None:
        """Finds out how many batches and samples a pass has.

        A DataLoader of a dataset with a length tells. Everything else is read through once, from
        which the training's random numbers take no notice.

        Raises:
            ValueError: there is no batch, or one without samples.
        """
        sizes = _sizes(self.loader) if self.adapter is None else None
        if sizes is None:
            with randomness.kept():
                lengths = [len(labels) for _, labels in map(self._unpack, self.loader)]
            sizes = len(lengths), sum(lengths)
            if 0 in lengths:
                self._refuse_empty(lengths.index(0))
        self.count, self.samples = sizes
        if self.count == 0:
            raise ArgumentError(self.name, "at least one batch", "none")

    def __iter__(self) -> Iterator[tuple[Any, Any, int]]:
        """Inputs and labels on the device, and the number of samples.

        Raises:
            ValueError: another number of batches or samples than the first pass had.
        """
        count = samples = 0
        for batch in self.loader:
            inputs, labels = self._unpack(batch)
            size = len(labels)
            if size == 0:
                self._refuse_empty(count)
            count, samples = count + 1, samples + size
            if count > self.count or samples > self.samples:
                self._refuse(f"more than {count - 1} batches or {samples - size} samples")
            yield to_device(_ordinary(inputs), self.device), _ordinary(labels), size
        if (count, samples) != (self.count, self.samples):
            self._refuse(f"{count} batches with {samples} samples")

    def _unpack(self, batch: Any) -> tuple[Any, Any]:
        inputs, labels = labelled(batch, self.name, self.adapter)
        if self.indices:
            labels = check_labels(labels, f"{self.name} labels")
        elif not hasattr(labels, "__len__"):
            raise ArgumentTypeError(
                f"{self.name} labels", "something with a length", describe(labels)
            )
        return inputs, labels

    def _refuse(self, found: str) -> None:
        raise ArgumentError(
            self.name,
            f"{self.count} batches with {self.samples} samples in every pass, as in the first",
            found,
        )

    def _refuse_empty(self, batch: int) -> None:
        raise ArgumentError(self.name, "at least one sample a batch", f"none in batch {batch}")


def _ordinary(values: Any) -> Any:
    """The same, but tensors made in inference mode copied: gradients cannot be taken of them."""
    if isinstance(values, Tensor):
        return values.clone() if values.is_inference() else values
    if isinstance(values, Mapping):
        return {key: _ordinary(value) for key, value in values.items()}
    if type(values) in (list, tuple):
        return type(values)(map(_ordinary, values))
    return values


def _sizes(loader: Any) -> tuple[int, int] | None:
    """Batches and samples of a pass, where a loader of torch's own kind has them decided."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return None
    # A function of the caller's own that makes the batches may leave samples out.
    if type(loader.batch_sampler) is not BatchSampler or loader.collate_fn is not default_collate:
        return None
    try:
        samples, size = len(loader.sampler), loader.batch_size
    except TypeError:  # a sampler without a length
        return None
    if loader.drop_last:
        samples -= samples % size
    return -(-samples // size), samples


def label_fault(labels: Tensor, classes: int, name: str) -> Tensor | None:
    """Whether class indices are out of range: raised on the CPU, a flag on the device elsewhere.

    Raises:
        ValueError: on the CPU, naming the first.
    """
    if labels.device.type != "cpu":
        return (labels.min() < 0) | (labels.max() >= classes)
    low, high = (int(value) for value in torch.aminmax(labels))
    if low < 0 or high >= classes:
        raise ArgumentError(
            f"{name} labels",
            f"class indices from 0 to {classes - 1}, as the model has {classes} outputs",
            low if low < 0 else high,
            fix=IGNORED_FIX if low == IGNORED else None,
        )
    return None
