"""The contract of an index: what it reads of two sides of data, and what it does with that.

`score`, `screen`, studies, ranks and the command line ask the index, never a list of names. See
docs/adding_an_index.md.
"""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resque_ext.errors import ArgumentTypeError
from resque_ext.indices.shown import results_table, with_layers
from resque_ext.ops import spatial_mean
from resque_ext.plots.charts import layer_chart

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from resque_ext.distributed import Ranks

Side = Literal["old", "new"]
SIDES: tuple[Side, Side] = ("old", "new")


@dataclass(frozen=True)
class IndexReads:
    """What an index reads. What no index asks for is not made.

    Attributes:
        sides: that have to be run; ("new",) for an index that needs no old data.
        embeddings: the sides whose embedding it reads.
        flattened: of the embedding it reads every position, not one vector.
        layers: None, or how it reads the layers: "pooled" (a vector a sample), "raw" (the output as
            it is, inside the forward pass) or "paired" (both sides of the same samples at once).
        labels: it needs the class of every sample of `sides`.
        accuracy: it needs the model's accuracy, and so a model that is run.
        as_is: where normalization is adapted, it also reads the new side's embedding under the
            model as it is, in a pass of its own.
    """

    sides: tuple[Side, ...] = SIDES
    embeddings: tuple[Side, ...] = ()
    flattened: bool = False
    layers: Literal["pooled", "raw", "paired"] | None = None
    labels: bool = False
    accuracy: bool = False
    as_is: bool = False


@dataclass(eq=False)
class EmbeddingBatch:
    """The embedding of a batch of one side.

    Attributes:
        x: [N, D], [N, C, H, W] or [N, T, D]; to be averaged over positions where it has any.
        labels: [N] class indices; None where no index asks for them and the batch has none.
        side: "old" or "new".
        outputs: K of a classifier's output [N, K], None for other models.
        as_is: of the new side under the model as it is, beside the adapted one.
    """

    x: Tensor
    labels: Tensor | None
    side: Side
    outputs: int | None = None
    as_is: bool = False
    _rows: dict[bool, Tensor] = field(default_factory=dict, repr=False)

    def rows(self, flattened: bool = False) -> Tensor:
        """A copy [N, D], for all indices that keep it: averaged over positions, or flattened.

        What comes after an embedding in the model may change it in place.
        """
        if flattened not in self._rows:
            with torch.inference_mode(False), torch.no_grad():
                whole = flattened or self.x.dim() == 2
                made = self.x.flatten(1).clone() if whole else spatial_mean(self.x)
            self._rows[flattened] = made
        return self._rows[flattened]


@dataclass(eq=False)
class LayerBatch:
    """Layers of a batch of one side: all of them pooled, or one of them raw.

    Attributes:
        layers: by name, [N, D] where pooled, else as the layer gives it.
        side: "old" or "new".
        mask: [N, T], nonzero for real tokens of raw layers [N, T, D]; None: all are real.
    """

    layers: Mapping[str, Tensor]
    side: Side
    mask: Tensor | None = None


@dataclass(eq=False)
class PairBatch:
    """Layers of a batch of the same samples, before and after a shift.

    Attributes:
        old, new: by name, [N, D] or tokens [N, T, D].
        masks: of the old and of the new tokens, [N, T] or None.
    """

    old: Mapping[str, Tensor]
    new: Mapping[str, Tensor]
    masks: tuple[Tensor | None, Tensor | None] = (None, None)


@dataclass(frozen=True)
class Facts:
    """What the passes know of the model, for every index's result.

    Attributes:
        layer: the embedding's layer.
        layers: the layers that were read.
        skipped: layers that were not, each with the reason.
        old_accuracy, new_accuracy: of the model, if it is a classifier.
        pooling: what was done to the positions of the embedding.
        layer_pooling: what was done to those of the layers.
        labels: where labels are from.
    """

    layer: str | None = None
    layers: tuple[str, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    old_accuracy: float | None = None
    new_accuracy: float | None = None
    pooling: str | None = None
    layer_pooling: str | None = None
    labels: str | None = None

    def of_embedding(self) -> dict[str, Any]:
        """The fields of the result of an index that reads the embedding."""
        return {"layer": self.layer, "pooling": self.pooling, "labels": self.labels}

    def of_accuracy(self) -> dict[str, Any]:
        return {"old_accuracy": self.old_accuracy, "new_accuracy": self.new_accuracy}


class Result:
    """What `compute` returns: it also has `value`, `std_error`, `noise_floor`, `reliable`,
    `warnings` and `to_dict()`."""

    value: float

    def __float__(self) -> float:
        return self.value

    def plot(self) -> Figure:
        """The values of all layers, for an index that reads them.

        Raises:
            ValueError: it reads none, or matplotlib is not installed.
        """
        return layer_chart(with_layers({type(self).__name__: self}))

    def _repr_html_(self) -> str:
        return results_table({type(self).__name__: self})

    @property
    def layer_values(self) -> dict[str, float]:
        """Of every layer, for an index that has such values; else {}."""
        return {}

    @property
    def class_values(self) -> dict[str, float]:
        """Of every class by its number, for an index that has such values; else {}."""
        return {}


@dataclass(frozen=True)
class IndexResult(Result):
    """A result with nothing of its own, enough for most indices.

    Attributes:
        value: of the index.
        std_error, noise_floor: of `value`; None where they are not known.
        reliable: whether `value` can be relied on; `warnings` says why not, and what to do.
        layer, pooling, labels: of the embedding, where one was read.
        old_accuracy, new_accuracy: of the model, if it is a classifier.
    """

    value: float
    std_error: float | None = None
    noise_floor: float | None = None
    reliable: bool = True
    warnings: tuple[str, ...] = ()
    layer: str | None = None
    old_accuracy: float | None = None
    new_accuracy: float | None = None
    pooling: str | None = None
    labels: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and None, for JSON."""
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        return found | {"warnings": list(self.warnings)}


class Index(ABC):
    """An index as `score` and all that is built on it use it.

    The keyword arguments of `__init__` are its options, the defaults there are theirs.

    A subclass declares `reads` and has `update` and `compute`. With `state_dict`, `load_state_dict`
    and `merge` it can be computed over ranks, and a screening that was interrupted goes on from
    what is stored of the old side.

    Attributes:
        reads: what it reads; of the class, or of an instance where options decide.
        lower_is_cheaper: whether a smaller value means a cheaper retraining.
        in_one_place: it needs all rows in one process, so ranks cannot share the work.
        has_interval: `interval` gives one, so a screening may stop reading early.
        is_baseline: a study has it beside all others, to hold them against.
        predictor: its name among the predictors of a study; None: the name of the index.
        predictor_options: options in a study, which keeps the value and its standard error alone.
        paired: the sides are the same samples, row by row. Set before the first update.
        adapted: the new side is read after its normalization was adapted. Likewise.
    """

    reads: IndexReads = IndexReads()
    lower_is_cheaper: ClassVar[bool] = True
    in_one_place: ClassVar[bool] = False
    has_interval: ClassVar[bool] = False
    is_baseline: ClassVar[bool] = False
    predictor: ClassVar[str | None] = None
    predictor_options: ClassVar[Mapping[str, Any]] = {}
    paired = adapted = False
    _options: Mapping[str, Any]

    def __new__(cls, **options: Any) -> Index:
        index = super().__new__(cls)
        index._options = options
        return index

    @classmethod
    def options(cls) -> dict[str, Any]:
        """Names and defaults of its options."""
        _, *found = inspect.signature(cls.__init__).parameters.values()
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        return {each.name: each.default for each in found if each.kind in named}

    @property
    def is_storable(self) -> bool:
        """Whether what it has seen of the old side can be stored and read back: it has a
        `state_dict`, or nothing to keep."""
        reads_old = "old" in self.reads.embeddings or self.reads.layers is not None
        return not reads_old or type(self).state_dict is not Index.state_dict

    @property
    def is_joinable(self) -> bool:
        """Whether ranks can share the work: it has `merge`, and its state can be sent."""
        return not self.in_one_place and type(self).merge is not Index.merge and self.is_storable

    @abstractmethod
    def update(self, batch: Any) -> None:
        """Adds a batch: an EmbeddingBatch, LayerBatch or PairBatch, as `reads` says."""

    @abstractmethod
    def compute(self, facts: Facts) -> Any:
        """The result of all batches so far."""

    def state_dict(self) -> dict[str, Tensor]:
        """The state as plain tensors; {} before the first batch."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Replaces the state by one of `state_dict`; nothing changes when it does not fit."""
        if state:
            raise KeyError(f"state: expected no tensors, found {sorted(map(str, state))}")

    def merge(self, other: Index) -> None:
        """Adds what `other` has seen, as if its batches had come after this one's own."""
        name = type(self).__name__
        fix = "in_one_place = True says that it has none"
        raise ArgumentTypeError(name, "a method merge for ranks", "none", fix=fix)

    def fresh(self) -> Any:
        """Another one of the same options, without data."""
        other = type(self)(**self._options)
        other.paired, other.adapted = self.paired, self.adapted
        return other

    def fork(self) -> Any:
        """One that goes on from here with a new side of its own."""
        return copy.deepcopy(self)

    def reduce(self, ranks: Ranks) -> None:
        """Makes it that of the data of all ranks, in the order of the ranks."""
        if ranks.size == 1:
            return
        whole = self.fresh()
        for state in ranks.gather_states(self.state_dict(), {"index": type(self).__name__}):
            part = self.fresh()
            part.load_state_dict(state)
            whole.merge(part)
        vars(self).update(vars(whole))

    def expect_ranks(self) -> None:  # noqa: B027 (few need it)
        """Told before the first update where `reduce` will follow."""

    def discard(self, layers: Iterable[str]) -> None:  # noqa: B027 (few need it)
        """Forgets raw layers that turn out not to count; told at the end of the first batch."""

    def check_classes(self, rows: Mapping[str, NDArray[np.int64]]) -> None:  # noqa: B027 (few need it)
        """Raises as `compute` would for the rows [C] of each class on both sides, where these are
        known before any pass."""

    def interval(self, confidence: float, ended: bool) -> tuple[float, float, float] | None:
        """(value, low, high) without the bias of few samples, or None if unknown yet.

        Args:
            confidence: of the interval, between 0 and 1.
            ended: there are no more rows to come.
        """
        return None

    def memory(self, pairs: int, rows: int | None = None) -> int:
        """Bytes that the state of the old side and of `pairs` such new sides takes together.

        Args:
            rows: that each new side is going to have, where the state grows with them.
        """
        return sum(x.nbytes for x in self.state_dict().values()) * (1 + pairs)


def expect_kind(other: Any, mine: Any) -> None:
    """Raises TypeError where `other` is no such accumulator or index."""
    wanted = type(mine).__name__
    article = "an" if wanted[0] in "AEIOU" else "a"
    if not isinstance(other, type(mine)):
        raise ArgumentTypeError("other", f"{article} {wanted}", type(other).__name__)


class DeferredFaults:
    """Statuses of batches that were added without waiting for the device, to be read later.

    The first wrong batch is an error again and again, for it is in the sums.

    Args:
        limit: unread statuses kept at most; then one wait reads them all.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._unread: list[tuple[Tensor, Callable[[Tensor], None], str]] = []
        self._fault: ValueError | None = None

    def add(self, status: Tensor, check: Callable[[Tensor], None], key: str = "") -> None:
        """Keeps a status; `check` raises ValueError for its values on the CPU."""
        self._unread.append((status, check, key))

    def discard(self, key: str) -> None:
        """Forgets the statuses that were added under this key."""
        self._unread = [entry for entry in self._unread if entry[2] != key]

    def read_if_many(self) -> None:
        """`read`, once there are `limit` of them."""
        if len(self._unread) >= self.limit:
            self.read()

    def read(self) -> None:
        """Waits for the device.

        Raises:
            ValueError: of the first wrong batch.
        """
        if self._unread and self._fault is None:
            statuses = _on_cpu([status for status, *_ in self._unread])
            for status, (_, check, _) in zip(statuses, self._unread, strict=True):
                try:
                    check(status)
                except ValueError as error:
                    self._fault = error
                    break
        self._unread = []
        if self._fault is not None:
            raise self._fault


def _on_cpu(tensors: Sequence[Tensor]) -> list[Tensor]:
    """By one wait for each device and shape."""
    read: dict[int, Tensor] = {}
    for like in {(x.device, x.shape) for x in tensors}:
        there = [i for i, x in enumerate(tensors) if (x.device, x.shape) == like]
        read |= zip(there, torch.stack([tensors[i] for i in there]).cpu(), strict=True)
    return [read[i] for i in range(len(tensors))]


class Accumulator(ABC):
    """A streamed index of features at hand: its state is plain tensors, and states merge.

    Subclasses have `reset`, `update`, `merge`, `state_dict`, `load_state_dict` and `compute`.
    """

    @abstractmethod
    def reset(self) -> None:
        """Back to no data."""

    @abstractmethod
    def merge(self, other: Any) -> None:
        """Adds what `other` has seen."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """The state as plain tensors, copies."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Replaces the state; nothing changes when it does not fit."""

    def empty(self) -> Any:
        """Another one of the same options, without data."""
        other = copy.copy(self)
        other.reset()
        return other

    def reduce(self, ranks: Ranks) -> None:
        """Makes it that of the data of all ranks, in the order of the ranks; its state is on the
        CPU after it."""
        whole = self.empty()
        note = {"accumulator": type(self).__name__}
        for state in ranks.gather_states(self.state_dict(), note):
            part = self.empty()
            part.load_state_dict(state)
            whole.merge(part)
        vars(self).update(vars(whole))
