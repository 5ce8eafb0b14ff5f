"""score: indices from a model and two sides of data, in one forward pass a side."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm.auto import tqdm

from resque_ext._inputs import DEVICES, check_labels, describe
from resque_ext.indices.resque_dist import SIDES, ResqueDist, ResqueDistResult, Side
from resque_ext.observe import (
    LayerReader,
    copied,
    evaluating,
    forward,
    no_hooks_left,
    to_device,
    unwrap,
)

INDICES = ("resque_dist",)
Batch = tuple[Any, Tensor]


def score(
    model: nn.Module,
    old: Iterable[Any],
    new: Iterable[Any] | None = None,
    indices: Iterable[str] = ("resque_dist",),
    layer: str | None = None,
    layers: Any = "auto",
    paired: bool = False,
    shift: Callable[[Any], Any] | None = None,
    adapt_normalization: bool = False,
    batch_adapter: Callable[[Any], tuple[Any, Any]] | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> ResqueDistResult:
    """What reusing `model` on new data will cost, from one forward pass over each side.

    Args:
        model: a trained model; run in eval mode without gradients, and given back as it came.
        old, new: batches ``(inputs, labels)``; labels are class indices [N], inputs what the model
            takes (a mapping as keyword arguments). Without `new`, `shift`
            makes the new side from the old batches, on the device.
        indices: names of indices; "resque_dist".
        layer: the module whose output is the embedding, or "NAME:input" for what a module reads; by
            default the representation that the last linear layer reads. [N, D], [N, C, H, W] and
            [N, T, D] are taken; positions are averaged.
        layers: for indices that read several layers; "auto" here.
        paired: the new batches are the old ones, row by row, after a shift (given by `shift`).
        shift: a function of a batch of inputs, such as :func:`resque_ext.shifts.make` gives; its
            `reset()`, where it has one, is called before each pass, so that every pass sees the
            same.
        adapt_normalization: re-estimate batch-norm statistics on the new side first, on a copy of
            the model: one pass more over the new side, forward only. The old side keeps the model
            as it is.
        batch_adapter: makes ``(inputs, labels)`` of any other batch.
        device: where to run; by default where the model is. A model elsewhere is copied.
        progress: show a progress bar on stderr.

    Returns:
        The index's own result, with `layer` and both sides' accuracy where the model is a
        classifier: its output (or the output's `logits`) is [N, K] with K >= 2, and every label
        then has to be below K. Classes that neither side has are listed in `missing`.

    Raises:
        TypeError: a batch that is not ``(inputs, labels)``; a one-shot iterator where two passes
            are needed.
        KeyError: no such layer, or a layer that does not run.
        ValueError: an empty side, a model without running statistics, or data that an index
            refuses.
    """
    _check_arguments(model, new, indices, layers, shift, batch_adapter)
    inner = unwrap(model)
    device = _device(inner, device)
    run = _Run(layer, batch_adapter, device, progress)
    if shift is not None:
        paired = True
    inner = _on_device(inner, device)
    adapted = None
    if adapt_normalization:
        adapted = _adapted(inner, old if shift is not None else new, run, shift)
    if shift is not None:
        _restart(shift)
        run.both(inner, adapted or inner, old, shift)
    else:
        run.side(inner, old, "old")
        run.side(adapted or inner, new, "new")
    return run.result(paired)


def _check_arguments(
    model: Any, new: Any, indices: Any, layers: Any, shift: Any, batch_adapter: Any
) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, found {describe(model)}")
    if not isinstance(indices, Iterable):
        raise TypeError(f"indices: expected names among {INDICES}, found {indices!r}")
    names = (indices,) if isinstance(indices, str) else tuple(indices)
    unknown = [name for name in names if name not in INDICES]
    if unknown or not names:
        raise ValueError(f"indices: expected names among {INDICES}, found {unknown or names}")
    if not isinstance(layers, str) or layers != "auto":
        raise ValueError(
            f"layers: expected 'auto', because {names} read one layer (see layer=), "
            f"found {layers!r}"
        )
    if (new is None) == (shift is None):
        found = "both" if shift is not None else "neither"
        raise ValueError(f"new, shift: expected one of the two, found {found}")
    for name, function in (("shift", shift), ("batch_adapter", batch_adapter)):
        if function is not None and not callable(function):
            raise TypeError(f"{name}: expected a function of a batch, found {describe(function)}")


def _device(model: nn.Module, device: torch.device | str | None) -> torch.device:
    if device is not None:
        return _checked_device(device)
    first = next(model.parameters(), next(model.buffers(), None))
    return first.device if first is not None else torch.device("cpu")


def _checked_device(device: Any) -> torch.device:
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        found = None
    if found is None or found.type not in DEVICES:
        raise ValueError(f"device: expected a cpu or cuda device, found {device!r}")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device: expected one of this machine's {torch.cuda.device_count()} CUDA devices, "
            f"found {device!r}"
        )
    return found


def _on_device(model: nn.Module, device: torch.device) -> nn.Module:
    """The model itself, or a copy of it where it lives elsewhere."""
    here = _device(model, None)
    same = here.type == device.type and device.index in (None, here.index)
    return model if same else copy.deepcopy(model).to(device)


def _adapted(
    model: nn.Module, new: Any, run: _Run, shift: Callable[[Any], Any] | None
) -> nn.Module:
    """A copy of the model with batch-norm statistics of the new side: cumulative averages."""
    norms = [
        name
        for name, m in model.named_modules()
        if isinstance(m, _BatchNorm) and m.running_mean is not None
    ]
    if not norms:
        raise ValueError(
            "adapt_normalization: expected a model with batch-norm running statistics, found "
            f"none in {type(model).__name__}; there is nothing to re-estimate"
        )
    if isinstance(new, Iterator):
        raise TypeError(
            "adapt_normalization: expected new data that can be read twice (a list, a DataLoader), "
            f"found the one-shot iterator {type(new).__name__}"
        )
    _restart(shift)
    model = copy.deepcopy(model)
    modules = dict(model.named_modules())
    with evaluating(model):
        for name in norms:
            modules[name].reset_running_stats()
            modules[name].momentum = None
            modules[name].training = True
        for inputs, labels in run.batches(new, "new", "normalization"):
            if len(labels):  # a batch without rows would count as one with zero statistics
                forward(model, inputs if shift is None else shift(copied(inputs)))
    return model


def _restart(shift: Callable[[Any], Any] | None) -> None:
    """A seeded shift back at its beginning, so that every pass sees the same shifted data."""
    reset = getattr(shift, "reset", None)
    if callable(reset):
        reset()


class _Run:
    """The passes over both sides and what they add up to."""

    def __init__(
        self,
        layer: str | None,
        batch_adapter: Callable[[Any], tuple[Any, Any]] | None,
        device: torch.device,
        progress: bool,
    ) -> None:
        self.layer, self.adapter = layer, batch_adapter
        self.device, self.progress = device, progress
        self.layer_name: str | None = None  # what the first side read, for the second to read too
        self.acc: ResqueDist | None = None
        self.outputs: int | None = None  # K of a classifier's output [N, K]
        self.correct: dict[str, Tensor | int] = dict.fromkeys(SIDES, 0)
        self.rows = dict.fromkeys(SIDES, 0)

    def batches(self, data: Any, side: Side, what: str) -> Iterator[Batch]:
        """The side's batches on the device, the labels left where they are."""
        count = 0
        if not hasattr(data, "__iter__") and not hasattr(data, "__getitem__"):
            raise TypeError(f"{side}: expected an iterable of batches, found {describe(data)}")
        iterator = iter(data)
        try:
            total = len(data)
        except TypeError:  # a generator, or a DataLoader of an IterableDataset
            total = None
        with tqdm(
            total=total, desc=f"{side} {what}", disable=not self.progress, leave=False
        ) as bar:
            for batch in iterator:
                inputs, labels = self._unpack(batch, side)
                yield to_device(inputs, self.device), labels
                count += 1
                bar.update()
        if count == 0:
            raise ValueError(f"{side}: expected at least one batch, found none")

    def _unpack(self, batch: Any, side: Side) -> Batch:
        if self.adapter is not None:
            batch = self.adapter(batch)
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            found = describe(batch)
            if isinstance(batch, (tuple, list)):
                found = f"{type(batch).__name__} of ({'; '.join(map(describe, batch))})"
            elif isinstance(batch, dict):
                found = f"dict of ({'; '.join(f'{k}: {describe(v)}' for k, v in batch.items())})"
            raise TypeError(
                f"{side}: expected batches (inputs, labels), found {found}; batch_adapter= turns "
                "any batch into such a pair"
            )
        inputs, labels = batch
        return inputs, check_labels(labels, f"{side} labels")

    def side(self, model: nn.Module, data: Any, side: Side) -> None:
        """One forward pass over one side."""
        with evaluating(model):
            reader = LayerReader(model, self.layer_name or self.layer)
            with no_hooks_left(reader.attach()):
                for inputs, labels in self.batches(data, side, "side"):
                    self._batch(model, reader, inputs, labels, side)
        self.layer_name = reader.name

    def both(
        self, old_model: nn.Module, new_model: nn.Module, data: Any, shift: Callable[[Any], Any]
    ) -> None:
        """Each old batch as it is and shifted, so that the sides are paired for certain."""
        with evaluating(old_model), evaluating(new_model):
            readers = {"old": LayerReader(old_model, self.layer)}
            readers["new"] = (
                readers["old"] if new_model is old_model else LayerReader(new_model, self.layer)
            )
            handles = [h for reader in set(readers.values()) for h in reader.attach()]
            with no_hooks_left(handles):
                for inputs, labels in self.batches(data, "old", "and new side"):
                    self._batch(old_model, readers["old"], inputs, labels, "old")
                    self._batch(new_model, readers["new"], shift(copied(inputs)), labels, "new")
        self.layer_name = readers["old"].name

    def _batch(
        self, model: nn.Module, reader: LayerReader, inputs: Any, labels: Tensor, side: Side
    ) -> None:
        held: list[Tensor] = []

        def consume(activation: Tensor) -> None:
            if self.acc is None:
                # A copy, because the number of classes is known at the end of the pass only.
                held.append(activation.clone())
            else:
                self._add(activation, labels, side)

        output = reader.run(lambda: forward(model, inputs), consume)
        logits = getattr(output, "logits", output)
        if self.acc is None:
            self.outputs = _classifier_outputs(logits, labels)
            self.acc = ResqueDist(self.outputs or _label_bound(labels))
            self._add(held[0], labels, side)
        if self.outputs is not None:
            hits = logits.argmax(1) == labels.to(logits.device, non_blocking=True)
            self.correct[side] = self.correct[side] + hits.sum()
        self.rows[side] += len(labels)

    def _add(self, activation: Tensor, labels: Tensor, side: Side) -> None:
        assert self.acc is not None
        if self.outputs is None:
            self.acc.grow(_label_bound(labels))
        try:
            self.acc.update(activation, labels.to(activation.device, non_blocking=True), side)
        except (ValueError, TypeError) as error:
            raise type(error)(f"{side}: {_without_hint(error)}") from error

    def result(self, paired: bool) -> ResqueDistResult:
        assert self.acc is not None  # every side had a batch
        self.acc.paired = paired
        accuracy = {
            s: float(self.correct[s]) / self.rows[s] if self.outputs and self.rows[s] else None
            for s in SIDES
        }
        try:
            result = self.acc._compute(ignore_unseen=True)
        except ValueError as error:
            raise ValueError(_without_hint(error)) from error
        return dataclasses.replace(
            result,
            layer=self.layer_name,
            old_accuracy=accuracy["old"],
            new_accuracy=accuracy["new"],
        )


def _without_hint(error: Exception) -> str:
    """The message without a hint at arguments that score does not have."""
    message, hint, _ = str(error).partition(" (missing=")
    message, other, _ = message.partition(" (nonfinite=")
    if hint or other:
        message += " (ResqueDist can leave such out of features that are taken by hand)"
    return message


def _label_bound(labels: Tensor) -> int:
    return max(int(labels.max()) + 1, 1) if len(labels) else 1


def _classifier_outputs(output: Any, labels: Tensor) -> int | None:
    """K where the output reads as scores of K classes, one row a sample."""
    if not isinstance(output, Tensor) or output.dim() != 2 or output.shape[1] < 2:
        return None
    return output.shape[1] if output.shape[0] == len(labels) else None
