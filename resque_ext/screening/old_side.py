"""The shelf of models: each is built when its turn comes, and runs once over its old data."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import safetensors.torch
import torch
from torch import nn

from resque_ext.data.checks import describe
from resque_ext.data.sources.base import Fault
from resque_ext.errors import ArgumentError, ArgumentTypeError
from resque_ext.indices.registry import make_indices
from resque_ext.model.batch import MASK, MaskOf
from resque_ext.model.digest import NoDigestError, model_digest
from resque_ext.model.hooks import unwrap
from resque_ext.model.inputs import check_observable
from resque_ext.model.pooling import Pooling
from resque_ext.model.reads import Reads
from resque_ext.scoring.forward_pass import Passes
from resque_ext.screening.cached_pass import Keeper, replay
from resque_ext.screening.candidates import ALL, EMBEDDINGS, Feed
from resque_ext.screening.embedding_cache import EmbeddingCache
from resque_ext.screening.memory import retry_with_half
from resque_ext.storage.json_text import parse_json

STATE = "resque_ext.OldSide/2"


@dataclass(frozen=True)
class ShelfModel:
    """A model of a screening, where it needs more than a function that makes it.

    Attributes:
        make: the model, a function that returns it, or None where all data are embeddings.
        layer, layers: as `score` takes them.
        description: of what it is made of, for the store to recognise it by.
        pooling, mask, channels, labels: as `score` takes them.
    """

    make: nn.Module | Callable[[], nn.Module] | None = None
    layer: str | None = None
    layers: Any = "auto"
    description: str | None = None
    pooling: Pooling = "auto"
    mask: str | MaskOf | None = MASK
    channels: str | None = None
    labels: str = "given"

    @property
    def reads(self) -> Reads:
        """How batches and layers are read.

        Raises:
            TypeError, ValueError: naming the argument.
        """
        return Reads(self.layer, self.layers, self.pooling, self.mask, self.channels, self.labels)

    def build(self, name: str) -> nn.Module:
        """The model.

        Raises:
            TypeError: the function returned something else.
        """
        made = self.make if isinstance(self.make, nn.Module) else self.make()  # type: ignore[misc]
        if not isinstance(made, nn.Module):
            raise ArgumentTypeError(
                f"models[{name!r}]",
                "a function that returns a torch.nn.Module",
                f"one that returns {describe(made)}",
            )
        inner = unwrap(made)
        check_observable(inner)
        return inner


def as_shelf_model(given: Any, name: str) -> ShelfModel:
    if isinstance(given, ShelfModel):
        return given
    if given is None or callable(given):  # a Module is callable too
        return ShelfModel(given)
    raise ArgumentTypeError(
        f"models[{name!r}]",
        "a torch.nn.Module, a function that makes one, or None for embeddings",
        describe(given),
    )


class OldSide:
    """One model after its old data: where every pair of it goes on from.

    Attributes:
        model: None where nothing is run.
        passes: after the old side, with its `indices`.
        samples: rows of the old data.
        faults: what of them could not be read.
        batch_size: smaller than asked once memory was short.
        cache: of what the model makes of data.
    """

    def __init__(
        self,
        entry: ShelfModel,
        name: str,
        indices: Sequence[str],
        options: Mapping[str, Mapping[str, Any]] | None,
        device: torch.device,
        batch_size: int,
        cache: EmbeddingCache | None = None,
    ) -> None:
        self.entry, self.name, self.device, self.batch_size = entry, name, device, batch_size
        self.cache = cache
        self._digest: str | None = ""
        self._empty = make_indices(indices, options, paired=False)
        self.samples = 0
        self.faults: tuple[Fault, ...] = ()
        self._model: nn.Module | None = None
        self.passes = self._fresh()

    def _fresh(self) -> Passes:
        self.indices = {name: index.fork() for name, index in self._empty.items()}
        return Passes(list(self.indices.values()), self.entry.reads, self.device, progress=False)

    @property
    def model(self) -> nn.Module | None:
        if self._model is None and self.entry.make is not None:
            self._model = self.entry.build(self.name).to(self.device)
        return self._model

    @property
    def digest(self) -> str | None:
        """What tells the model from others; None, with a warning, where nothing does."""
        if self._digest == "":
            assert self.model is not None
            try:
                self._digest = model_digest(self.model)
            except NoDigestError as error:
                self._digest = None
                warnings.warn(
                    f"cache: expected a model that can be told from others, found {self.name} with "
                    f"{error}: what it makes of data is not kept",
                    stacklevel=2,
                )
        return self._digest

    def read(self, feed: Feed) -> None:
        """Takes in the old data, by the model or from the cache."""

        def once() -> None:
            self.passes = self._fresh()
            reading = feed.reading(self.batch_size, device=self.device)
            keeper = Keeper.of(self, self.passes, reading)

            def through() -> None:
                batches = reading.until(ALL, self.batch_size)
                with reading.naming_rows():
                    run(self.passes, self.model, batches, feed.kind, "old")

            try:
                if keeper is None:
                    through()
                elif (entry := keeper.find(ALL, self.batch_size, self.passes)) is not None:
                    replay(entry, self.passes, "old", reading, ALL)
                else:
                    keeper.record(self.passes, "old", reading, through)
            finally:
                reading.close()
            self.samples, self.faults = reading.samples, tuple(reading.faults)

        retry_with_half(once, self, f"{self.name}, old side")

    @property
    def built(self) -> nn.Module | None:
        """The model, if it has been made."""
        return self._model

    @property
    def reads_old(self) -> bool:
        return any("old" in index.reads.sides for index in self.indices.values())

    def release(self) -> None:
        """Lets the model go, at once: it may be large, and the next one is about to be built."""
        self._model = None

    def fork(self, names: Sequence[str]) -> tuple[dict[str, Any], Passes]:
        """These indices and passes for one pair."""
        indices = {name: self.indices[name].fork() for name in names}
        return indices, self.passes.fork(list(indices.values()))

    def to_bytes(self) -> bytes:
        """The state in the safetensors format."""
        tensors = {
            f"{name}/{key}": tensor.cpu().contiguous()
            for name, index in self.indices.items()
            for key, tensor in index.state_dict().items()
        }
        facts = {"format": STATE, "samples": self.samples, "facts": self.passes.facts()}
        facts["faults"] = [asdict(fault) for fault in self.faults]
        header = torch.frombuffer(bytearray(json.dumps(facts).encode()), dtype=torch.uint8)
        return safetensors.torch.save(tensors | {"facts": header})

    def load_bytes(self, data: bytes) -> None:
        """As after the reading that `to_bytes` was called after.

        Raises:
            ValueError: damaged, or of another kind.
        """
        try:
            tensors = safetensors.torch.load(data)
            facts = parse_json(bytes(tensors.pop("facts").tolist()))
            self.passes = self._fresh()
            for name, index in self.indices.items():
                own = f"{name}/"
                mine = {k.removeprefix(own): t for k, t in tensors.items() if k.startswith(own)}
                index.load_state_dict({key: tensor.to(self.device) for key, tensor in mine.items()})
            self.passes.restore(facts["facts"])
            self.samples = facts["samples"]
            self.faults = tuple(Fault(**fault) for fault in facts["faults"])
        except (safetensors.SafetensorError, LookupError, TypeError, ValueError) as error:
            raise ValueError(
                f"expected the old side of {self.name!r}, found it damaged ({error})"
            ) from None


def run(passes: Passes, model: nn.Module | None, batches: Any, kind: str, side: Any) -> None:
    """A side's batches through the model, or past it where they are embeddings."""
    if kind == EMBEDDINGS:
        passes.embeddings(batches, side)
    elif model is None:
        raise ArgumentError(side, "embeddings, because there is no model", "inputs")
    else:
        passes.side(model, batches, side)
