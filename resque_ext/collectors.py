"""What each index takes from the forward passes, and its result: one collector an index."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from resque_ext.indices.resque_dist import SIDES, ResqueDist, ResqueDistResult, Side


@dataclass(frozen=True)
class Facts:
    """What the passes know of the model, for every index's result.

    Attributes:
        layer: the embedding's layer.
        layers: the layers that were read.
        skipped: layers that were not, each with the reason.
        old_accuracy, new_accuracy: of the model, where it is a classifier.
    """

    layer: str | None = None
    layers: tuple[str, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    old_accuracy: float | None = None
    new_accuracy: float | None = None


class ResqueDistCollector:
    """RESQUE_dist: embeddings of both sides go into one accumulator."""

    reads_old = True
    embeddings: tuple[Side, ...] = SIDES
    vectors = pooled = raw = False

    def __init__(self, paired: bool) -> None:
        self.paired = paired
        self.acc: ResqueDist | None = None

    def add_embedding(self, x: Tensor, labels: Tensor, side: Side, outputs: int | None) -> None:
        if self.acc is None:
            self.acc = ResqueDist(outputs or label_bound(labels))
        if outputs is None:
            self.acc.grow(label_bound(labels))
        try:
            self.acc.update(x, labels.to(x.device, non_blocking=True), side)
        except (ValueError, TypeError) as error:
            raise type(error)(f"{side}: {without_hint(error)}") from error

    def result(self, facts: Facts) -> ResqueDistResult:
        assert self.acc is not None  # every side had a batch
        self.acc.paired = self.paired
        try:
            result = self.acc._compute(ignore_unseen=True)
        except ValueError as error:
            raise ValueError(without_hint(error)) from error
        return dataclasses.replace(
            result,
            layer=facts.layer,
            old_accuracy=facts.old_accuracy,
            new_accuracy=facts.new_accuracy,
        )


def without_hint(error: Exception) -> str:
    """The message without a hint at arguments that score does not have."""
    message, hint, _ = str(error).partition(" (missing=")
    message, other, _ = message.partition(" (nonfinite=")
    if hint or other:
        message += " (ResqueDist can leave such out of features that are taken by hand)"
    return message


def label_bound(labels: Tensor) -> int:
    return max(int(labels.max()) + 1, 1) if len(labels) else 1


COLLECTORS: Mapping[str, Any] = {"resque_dist": ResqueDistCollector}


def make_collectors(
    names: Sequence[str], options: Mapping[str, Mapping[str, Any]] | None, paired: bool
) -> dict[str, Any]:
    """A collector for each index.

    Raises:
        TypeError: options that are no mapping, or that an index does not have.
        ValueError: options of an index that is not asked for.
    """
    options = {} if options is None else options
    if not isinstance(options, Mapping) or not all(
        isinstance(value, Mapping) for value in options.values()
    ):
        raise TypeError(f"options: expected a mapping of mappings by index, found {options!r}")
    unknown = [name for name in options if name not in names]
    if unknown:
        raise ValueError(
            f"options: expected names among the indices {tuple(names)}, found {unknown[0]!r}"
        )
    collectors = {}
    for name in names:
        given, make = options.get(name, {}), COLLECTORS[name]
        known = [k for k in inspect.signature(make).parameters if k != "paired"]
        wrong = [k for k in given if k not in known]
        if wrong:
            raise TypeError(
                f"options: expected for {name!r} {', '.join(known) or 'none'}, found {wrong[0]!r}"
            )
        collectors[name] = make(paired=paired, **given)
    return collectors
