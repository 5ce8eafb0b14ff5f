"""A model's embeddings on their way into the sums: kept in a cache, and read from it again.

What is kept is what one stretch of a reading gave, from the last place at which intervals were
looked at to this one. So a pair that stops early leaves the stretches that it has read, each under
its own name, and none of them passes for the whole.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from resque_ext.data.checks import describe
from resque_ext.data.sources.base import Fault
from resque_ext.errors import ArgumentError
from resque_ext.indices.base import EmbeddingBatch, IndexReads, Side
from resque_ext.scoring.forward_pass import Passes
from resque_ext.screening.candidates import INPUTS, Feed, Reading
from resque_ext.screening.embedding_cache import (
    CachedEmbeddings,
    CacheKey,
    EmbeddingCache,
    EntryWriter,
)

if TYPE_CHECKING:
    from resque_ext.screening.old_side import OldSide

log = logging.getLogger(__name__)
OF_THE_MODEL = ("head", "token", "pooling")  # of the facts of `Passes`
COUNTED = ("correct", "judged")
OWN = "what the model itself uses"


def has_identity(feed: Feed | None) -> bool:
    """Whether what a model makes of these data can be found again; embeddings need no model."""
    return feed is None or feed.kind != INPUTS or feed.fingerprint() is not None


class Keeper:
    """The stretches of one reading of one model.

    Args:
        cache: where they are kept.
        model: digest of the model.
        layer: the embedding's, as it was asked for.
        feed: the data, with an identity.
        run: what the last bits of the embeddings depend on besides the places: batches, order,
            device.
    """

    def __init__(
        self, cache: EmbeddingCache, model: str, layer: str | None, feed: Feed, run: dict[str, Any]
    ) -> None:
        self._cache, self._name = cache, feed.source.name
        self._key = (model, layer or OWN, feed.fingerprint())
        self._run = run | how_it_runs()
        self.places: list[tuple[int, int]] = []  # of the reading so far, and the rows run at once
        self.behind_hits = False  # the stretches before this one came from the cache
        self._all = True  # all of them did, this one included

    @classmethod
    def of(
        cls, old: OldSide, passes: Passes, reading: Reading, seed: int | None = None
    ) -> Keeper | None:
        """A keeper for this reading, or None if it cannot be cached.

        Caching needs inputs with a fingerprint, a model with a digest, and indices that read only
        the embedding's vector.
        """
        feed, cache = reading.feed, old.cache
        if cache is None or feed.kind != INPUTS or passes.reads_layers or not has_identity(feed):
            return None
        reads = passes.reads
        asked = [index.reads for index in passes.indices]
        if any(each.flattened for each in asked) or reads.labels != "given":
            return None
        # Labels are kept beside the embeddings.
        if not any(each.labels for each in asked) or not any(each.embeddings for each in asked):
            return None
        if callable(reads.pooling) or callable(reads.mask):  # which nothing tells from others
            return None
        digest, source = old.digest, feed.source
        if digest is None:
            return None
        mixed = seed is not None and source.access != "sequence"
        run = {
            "batches": reading.batch_size,
            "order": [source.access, source.block_rows, seed] if mixed else None,
            "on_fault": feed.on_fault,
            "device": device_name(old.device),
            "autocast": autocast(old.device.type),
            "reads": reads.plain(),
        }
        return cls(cache, digest, old.entry.layer, feed, run)

    def find(self, place: int, at_most: int, passes: Passes) -> CachedEmbeddings | None:
        """What is kept of the stretch to that place, which is the next one."""
        self.places.append((place, at_most))
        self.key = CacheKey(*self._key, dtype="own", run=self._run | {"places": self.places[:]})
        self.behind_hits = self._all and len(self.places) > 1
        if not self._all:
            return None  # the model is at work: it goes on
        found = self._cache.get(self.key, self._name)
        if found is not None and passes.layer_name not in (None, found.facts["layer"]):
            found = None
        self._all = found is not None
        return found

    def record(self, passes: Passes, side: Side, reading: Reading, run: Callable[[], None]) -> None:
        """Calls `run`, which takes the stretch through the model, and keeps what that gives."""
        faults, before, indices = len(reading.faults), passes.facts(), passes.indices
        with _Recorder(self._cache, self.key, self._name, side) as recorder:
            passes.indices = [*indices, recorder]
            try:
                run()
            finally:
                passes.indices = indices
            after = passes.facts()
            recorder.commit(
                reading.faults[faults:],
                {
                    "layer": after["layer_name"],
                    **{name: after[name] for name in OF_THE_MODEL},
                    **{name: after[name][side] - before[name][side] for name in COUNTED},
                    "ended": reading.ended,
                },
            )


def replay(
    entry: CachedEmbeddings, passes: Passes, side: Side, reading: Reading, place: int
) -> None:
    """What the model's run of the stretch to that place did, from its embeddings."""
    facts = entry.facts
    known = {name: facts[name] for name in OF_THE_MODEL}
    passes.restore(passes.facts() | {"layer_name": facts["layer"]} | known)
    with reading.naming_rows():
        passes.embeddings(_counted(_batches(entry), reading), side)
    after = passes.facts()
    for name in COUNTED:
        after[name][side] += facts[name]
    passes.restore(after)
    reading.pass_over(place, entry.rows, entry.faults, facts["ended"])


def _counted(batches: Iterator[tuple[Tensor, Tensor]], reading: Reading) -> Iterator[Any]:
    first = reading.samples
    for x, labels in batches:
        reading.stands_at(first)
        first += len(labels)
        yield x, labels


def _batches(entry: CachedEmbeddings) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches that were kept: of the same rows, dtype and layout, for sums round by them."""
    dtype, start = getattr(torch, entry.facts["dtype"]), 0
    last = torch.channels_last if entry.facts["channels_last"] else torch.contiguous_format
    for size, group in itertools.groupby(entry.facts["batches"]):
        stop = start + size * len(list(group))
        for x, labels in entry.batches(size, start=start, stop=stop):
            yield x.to(dtype).contiguous(memory_format=last), labels
        start = stop


class _Recorder:
    """Reads the embedding beside the indices, and writes it down."""

    def __init__(self, cache: EmbeddingCache, key: CacheKey, name: str, side: Side) -> None:
        self._cache, self._key, self._name = cache, key, name
        self.reads = IndexReads(sides=(side,), embeddings=(side,), labels=True)
        self._stack = contextlib.ExitStack()
        self._entry: EntryWriter | None = None
        self._sizes: list[int] = []
        self._form: tuple[str, bool] | None = None
        self._over = False

    def __enter__(self) -> _Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def update(self, batch: EmbeddingBatch) -> None:
        x, labels = batch.x, batch.labels
        assert labels is not None  # as `reads` says
        if self._over or not len(labels):
            return
        channels_last = x.dim() == 4 and not x.is_contiguous()
        form = str(x.dtype).removeprefix("torch."), channels_last
        try:
            if self._form not in (None, form) or not (
                x.dim() == 2
                or x.is_contiguous()
                or (channels_last and x.is_contiguous(memory_format=torch.channels_last))
            ):
                raise ArgumentError(
                    "features",
                    "one layout in all batches, contiguous or channels_last",
                    f"{describe(x)} of strides {x.stride()}",
                )
            if self._entry is None:
                self._entry = self._stack.enter_context(self._cache.writer(self._key))
            self._entry.add(x, labels.to(x.device))
        except (OSError, ValueError) as error:
            self._give_up(error)
        self._form = form
        self._sizes.append(len(labels))

    def commit(self, faults: Sequence[Fault], facts: dict[str, Any]) -> None:
        if self._over or self._entry is None or self._form is None:
            return
        facts |= {"batches": self._sizes, "dtype": self._form[0], "channels_last": self._form[1]}
        try:
            self._entry.commit(faults=faults, facts=facts)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """A cache that cannot be written to is no reason for a pair to fail."""
        log.warning("%s: its features are not kept: %s", self._name, error)
        self._over = True
        self._stack.close()


def how_it_runs() -> dict[str, Any]:
    """What of this process shows in the last bits of a model's outputs."""
    cudnn = torch.backends.cudnn
    return {
        "torch": torch.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "dtype": str(torch.get_default_dtype()),
        "matmul": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "mkldnn": torch.backends.mkldnn.enabled,
        "cudnn": [cudnn.enabled, cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic],
    }


def autocast(device: str) -> str | None:
    """The dtype of the caller's autocast, if there is one."""
    enabled = torch.is_autocast_enabled(device)
    return str(torch.get_autocast_dtype(device)) if enabled else None


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
