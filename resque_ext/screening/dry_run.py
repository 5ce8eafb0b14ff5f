"""What a screening would read, how long it would take, and in how much memory: nothing is written.

Times are those of a small sample of every source and model, so they hold for this machine as it is
now; that reading may stop early is not counted on.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from resque_ext.indices.base import Index
from resque_ext.screening.candidates import EMBEDDINGS, Feed
from resque_ext.screening.old_side import OldSide, run
from resque_ext.screening.pair_reading import reads_pairs
from resque_ext.screening.screener import Plan

SAMPLE = 256  # rows of each source that are read to see how fast that goes


@dataclass(frozen=True)
class Reading:
    """One side of one model.

    Attributes:
        model, data: names; "old" is the old side.
        rows: None where the source does not tell.
        row_bytes: of a row as it is read.
        rows_per_second: of reading and running the model.
        seconds: of all rows; None where they are not known.
        problem: why it could not be tried.
    """

    model: str
    data: str
    rows: int | None
    row_bytes: int | None = None
    rows_per_second: float | None = None
    seconds: float | None = None
    problem: str | None = None


@dataclass(frozen=True)
class DryRun:
    """An estimate.

    Attributes:
        readings: of every old side and every pair.
        seconds: of all, without those whose rows are not known.
        memory_bytes: of the sums of the open pairs, of one batch and of the largest model.
        unknown: readings whose time is not known.
    """

    readings: tuple[Reading, ...]
    seconds: float
    memory_bytes: int
    unknown: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def dry_run(plan: Plan) -> DryRun:
    """Tries every source of a plan, and every model on a few rows of its old data."""
    readings: list[Reading] = []
    memory = 0
    for name, entry in plan.models.items():
        indices = [index for index in plan.indices if not reads_pairs(index)]
        options = {k: v for k, v in (plan.options or {}).items() if k in indices}
        old = OldSide(entry, name, indices, options, plan.device, plan.batch_size)
        try:
            sides = {"old": plan.old[name]} | {c: plan.feeds[name, c] for c in plan.candidates}
            sampled: list[Index] = []
            for data, feed in sides.items():
                if feed is not None:
                    readings.append(_try(old, data, feed, sampled))
            memory = max(memory, _memory(plan, old, readings, sampled))
        finally:
            old.release()
    known = [r.seconds for r in readings if r.seconds is not None]
    return DryRun(tuple(readings), sum(known), memory, len(readings) - len(known))


def _try(old: OldSide, data: str, feed: Feed, sampled: list[Index]) -> Reading:
    """A few rows, once to warm up where there is a model, once timed; `sampled` becomes the indices
    after a pair's rows."""
    try:
        if old.model is not None and feed.kind != EMBEDDINGS and not old.passes.layer_name:
            _sample(old, data, feed, sampled)
        rows, size, seconds = _sample(old, data, feed, sampled)
    # Whatever is wrong with a source or model is what a dry run is asked for.
    except Exception as error:
        line = " ".join(str(error).split()) or type(error).__name__
        return Reading(old.name, data, feed.rows, problem=line)
    rate = rows / seconds if seconds > 0 and rows else None
    total = feed.rows / rate if rate and feed.rows is not None else None
    return Reading(old.name, data, feed.rows, size // max(rows, 1), rate, total)


def _sample(old: OldSide, data: str, feed: Feed, sampled: list[Index]) -> tuple[int, int, float]:
    """Rows, their bytes, and the seconds that they took."""
    began = time.perf_counter()
    reading = feed.reading(min(old.batch_size, SAMPLE))
    try:
        batches = list(reading.until(SAMPLE, old.batch_size))
        if data == "old":
            old.passes = old._fresh()
        passes = old.passes if data == "old" else old.fork(list(old.indices))[1]
        sampled[:] = passes.indices
        run(passes, old.model, batches, feed.kind, "old" if data == "old" else "new")
    finally:
        reading.close()
    return reading.samples, sum(map(_bytes, batches)), time.perf_counter() - began


def _bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, dict):
        value = value.values()
    return sum(map(_bytes, value)) if hasattr(value, "__iter__") else 0


def _memory(plan: Plan, old: OldSide, readings: list[Reading], sampled: list[Index]) -> int:
    row = max((r.row_bytes or 0 for r in readings if r.model == old.name), default=0)
    weights = 0
    model = old.built
    if model is not None:
        weights = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    pairs = len(plan.candidates) if plan.rounds else 1
    rows = max((r.rows or 0 for r in readings if r.model == old.name), default=0)
    sums = sum(index.memory(pairs, rows) for index in sampled)
    return weights + sums + 2 * row * plan.batch_size
