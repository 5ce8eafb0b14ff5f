"""Reading one pair: the candidate's rows through the model, block after block, to a PairResult."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from resque_ext.cost_model.target import with_target
from resque_ext.data.sources.base import Fault
from resque_ext.errors import ArgumentError
from resque_ext.indices.base import IndexReads
from resque_ext.indices.registry import find
from resque_ext.scoring.score import score
from resque_ext.screening.cached_pass import Keeper, replay
from resque_ext.screening.candidates import ALL, EMBEDDINGS, Feed, Reading
from resque_ext.screening.memory import retry_with_half
from resque_ext.screening.old_side import OldSide, run
from resque_ext.screening.results import IndexValue, PairResult, PredictedCost
from resque_ext.screening.stopping import Estimate, look_confidence
from resque_ext.studies.study_run import REESTIMATED


class PairReading:
    """One pair, while it is read.

    Args:
        old: the model after its old data.
        name: of the candidate.
        feed: its rows.
        indices: those that can be read of it.
        seed: mixes the rows; None: as they lie.
        confidence: of the interval over all looks; None: no interval.

    Attributes:
        looks: what the index was at each look.
        seconds: of wall time so far.
    """

    def __init__(
        self,
        old: OldSide,
        name: str,
        feed: Feed,
        indices: Sequence[str],
        seed: int | None = None,
        confidence: float | None = None,
    ) -> None:
        self.old, self.name, self.feed = old, name, feed
        self._indices, self._seed, self._confidence = tuple(indices), seed, confidence
        self.looks: list[Estimate | None] = []
        self.seconds = 0.0
        self._nominal = old.batch_size
        self._restart()
        self._keeper: Keeper | None = None
        self._keeps = old.cache is not None

    def _restart(self) -> None:
        self.indices, self.passes = self.old.fork(self._indices)
        self.reading: Reading = self.feed.reading(
            self._nominal if self.feed.shift is not None else self.old.batch_size,
            self._seed,
            self.old.device,
        )

    @property
    def samples(self) -> int:
        return self.reading.samples

    @property
    def ended(self) -> bool:
        return self.reading.ended

    def read(self, place: int = ALL) -> None:
        """Reads on to that place of the candidate's order.

        Raises:
            OutOfMemory: not even a batch of one row fits.
        """
        began = time.perf_counter()
        first = True

        def once() -> None:
            nonlocal first
            if first:
                first = False
                self._read_on(place)
                return
            # Half of a batch may be in the sums: all of it again, in batches that nobody kept.
            self._keeper, self._keeps = None, False
            self.reading.close()
            self._restart()
            self._run(place)

        try:
            retry_with_half(once, self.old, f"{self.old.name}, {self.name}")
        except BaseException:
            self.reading.close()  # whoever keeps the error would keep the thread that reads ahead
            raise
        finally:
            self.seconds += time.perf_counter() - began

    def _read_on(self, place: int) -> None:
        """From the cache for as long as all was there, and else by the model."""
        if self._keeps and self._keeper is None:
            self._keeper = Keeper.of(self.old, self.passes, self.reading, self._seed)
            self._keeps = self._keeper is not None
        keeper = self._keeper
        if keeper is None:
            self._run(place)
            return
        entry = keeper.find(place, self.old.batch_size, self.passes)
        if entry is not None:
            replay(entry, self.passes, "new", self.reading, place)
            return
        if keeper.behind_hits and not self.reading.can_pass_over:
            self.reading.close()
            self._restart()
            for past, _ in keeper.places[:-1]:
                self._run(past)
        keeper.record(self.passes, "new", self.reading, lambda: self._run(place))

    def _run(self, place: int) -> None:
        batches = self.reading.until(place, self.old.batch_size)
        there = next(batches, None)
        if there is None and self.samples:  # the last block ended with the data
            return
        batches = batches if there is None else chain([there], batches)
        with self.reading.naming_rows():
            run(self.passes, self.old.model, batches, self.feed.kind, "new")

    def look(self) -> Estimate | None:
        """The index without the bias of few samples, with an interval that holds at every look."""
        assert self._confidence is not None
        confidence = look_confidence(len(self.looks) + 1, self._confidence)
        (index,) = self.indices.values()  # only one alone is read in looks
        found = index.interval(confidence, self.ended)
        estimate = None if found is None else Estimate(*found, samples=self.samples)
        self.looks.append(estimate)
        return estimate

    def result(self, stopped: str) -> PairResult:
        """What was found."""
        self.reading.close()
        if not self.samples:
            return unread(self.old, self.name, self.feed, stopped)
        began = time.perf_counter()
        facts = self.passes.known()
        found = {name: index.compute(facts) for name, index in self.indices.items()}
        values = index_values(found)
        last = self.looks[-1] if self.looks else None
        if last is not None:
            (name,) = values
            values[name] = dataclasses.replace(
                values[name], value=last.value, low=last.low, high=last.high
            )
        self.seconds += time.perf_counter() - began
        return PairResult(
            self.old.name,
            self.name,
            values,
            {},
            self.old.samples,
            self.samples,
            self.feed.rows,
            self.seconds,
            stopped,
            (*self.old.faults, *self.reading.faults),
            class_values(found),
            layer_values(found),
            pooling=facts.pooling,
            labels=facts.labels,
            old_accuracy=facts.old_accuracy,
            new_accuracy=facts.new_accuracy,
        )


def read_both(
    old: OldSide,
    old_feed: Feed | None,
    name: str,
    feed: Feed,
    indices: Sequence[str],
    options: Mapping[str, Any] | None,
    paired: bool = True,
    adapt_normalization: bool | str = False,
) -> PairResult:
    """A pair by a `score` of its own, which runs the old side again beside the candidate.

    Args:
        paired: the candidate's rows are the old data's, shifted: both sides come batch by batch.
        adapt_normalization: as `score` takes it.
    """
    began = time.perf_counter()
    sides: list[_Again] = []

    def once() -> None:
        nonlocal found
        for side in sides:
            side.close()
        feeds = [each for each in (old_feed, feed) if each is not None]
        sides[:] = [_Again(each, old) for each in feeds]
        with sides[-1].naming_rows():  # pairs come in the same batches on both sides
            found = score(
                old.model,  # type: ignore[arg-type]
                None if old_feed is None else sides[0],
                sides[-1],
                indices,
                old.entry.layer,
                old.entry.layers,
                paired=paired,
                adapt_normalization=adapt_normalization,
                device=old.device,
                progress=False,
                options={k: v for k, v in (options or {}).items() if k in indices},
                pooling=old.entry.pooling,
                mask=old.entry.mask,
                channels=old.entry.channels,
                labels=old.entry.labels,
                mapping=True,
            )

    found: Any = None
    try:
        retry_with_half(once, old, f"{old.name}, {name}")
    finally:
        for side in sides:
            side.close()
    return PairResult(
        old.name,
        name,
        index_values(found),
        {},
        sides[0].samples if old_feed is not None else 0,
        sides[-1].samples,
        feed.rows,
        time.perf_counter() - began,
        "end",
        tuple(fault for side in sides for fault in side.faults),
        class_values(found),
        layer_values(found),
        pooling=found.pooling,
        labels=found.labels,
        old_accuracy=found.old_accuracy,
        new_accuracy=found.new_accuracy,
    )


class _Again:
    """A feed as batches for `score`, read anew in every pass."""

    def __init__(self, feed: Feed, old: OldSide) -> None:
        self._feed, self._old = feed, old
        self._reading: Reading | None = None

    def __iter__(self) -> Iterator[Any]:
        self.close()
        self._reading = self._feed.reading(self._old.batch_size, device=self._old.device)
        return self._reading.until(ALL, self._old.batch_size)

    @property
    def samples(self) -> int:
        return 0 if self._reading is None else self._reading.samples

    @property
    def faults(self) -> Sequence[Fault]:
        return () if self._reading is None else self._reading.faults

    @contextlib.contextmanager
    def naming_rows(self) -> Iterator[None]:
        """As of the reading that is under way when an error comes."""
        try:
            yield
        except ValueError as error:
            if self._reading is None:
                raise
            with self._reading.naming_rows():
                raise error from None

    def close(self) -> None:
        if self._reading is not None:
            self._reading.close()


def possible(indices: Sequence[str], feed: Feed, paired: bool) -> list[str]:
    """Those indices that this candidate lets be computed."""

    def is_possible(reads: IndexReads) -> bool:
        if feed.kind == EMBEDDINGS and (reads.layers or reads.accuracy):  # no model is run
            return False
        return paired or reads.layers != "paired"

    return [name for name in indices if is_possible(find(name).reads)]


def reads_pairs(index: str) -> bool:
    """Whether an index reads both sides together, so that the old one is run for every pair."""
    return find(index).reads.layers == "paired"


def unread(old: OldSide, name: str, feed: Feed | None, stopped: str) -> PairResult:
    """A pair of which nothing was read."""
    rows = None if feed is None else feed.rows
    return PairResult(old.name, name, {}, old_samples=old.samples, available=rows, stopped=stopped)


def error_line(error: BaseException) -> str:
    """The message of an error in one line that any encoding can hold."""
    message = error.args[0] if isinstance(error, KeyError) and error.args else error
    line = " ".join(str(message).split()) or type(error).__name__
    return line.encode(errors="backslashreplace").decode()  # names of files may be no text


def failed(model: str, name: str, error: BaseException, **known: Any) -> PairResult:
    """A pair that failed."""
    line = error_line(error)
    fault = getattr(error, "fault", None)
    faults: tuple[Fault, ...] = (fault,) if isinstance(fault, Fault) else ()
    return PairResult(model, name, {}, stopped="error", error=line, faults=faults, **known)


def index_values(found: Mapping[str, Any]) -> dict[str, IndexValue]:
    return {
        name: IndexValue(
            float(result.value),
            _finite(result.std_error),
            _finite(result.noise_floor),
            reliable=result.reliable,
            warnings=result.warnings,
        )
        for name, result in found.items()
    }


def class_values(found: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Values of the classes, by index and number of the class, where an index has such."""
    return {name: result.class_values for name, result in found.items() if result.class_values}


def layer_values(found: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    return {
        name: {layer: float(v) for layer, v in result.layer_values.items() if v is not None}
        for name, result in found.items()
        if result.layer_values
    }


def predict(
    cost_model: Any,
    values: Mapping[str, IndexValue],
    options: Mapping[str, Any] | None = None,
    accuracy: float | None = None,
) -> dict[str, PredictedCost]:
    """What a cost model says of these indices, by measure; {} without one.

    Outside of the range that the model has seen it goes on, and says so.

    Raises:
        ValueError: a predictor has no value.
    """
    if cost_model is None:
        return {}
    given: dict[str, float] = {predictor_of(name): each.value for name, each in values.items()}
    more = dict(options or {})
    target = more.get("target_accuracy", getattr(cost_model, "target_accuracy", None))
    if target is not None and accuracy is not None:
        more.setdefault("accuracy", accuracy)  # a target that is met costs nothing
    given = with_target(given, cost_model.predictors, target)
    lacking = [name for name in cost_model.predictors if name not in given]
    if lacking:
        raise ArgumentError(
            "cost_model",
            f"the predictors {', '.join(cost_model.predictors)}",
            f"none of {', '.join(lacking)} for this candidate",
        )
    found = cost_model.predict(given, **({"extrapolate": "flag"} | more))
    return predicted_costs(found)


def predicted_costs(found: Mapping[str, Any]) -> dict[str, PredictedCost]:
    """Those predictions that are known."""
    return {
        name: PredictedCost(p.value, p.low, p.high, p.unit, p.extrapolated)
        for name, p in found.items()
        if p.value is not None and p.low is not None
    }


def predictor_of(index: str) -> str:
    """The name of an index among the predictors of a study."""
    adapted = index.endswith(REESTIMATED)
    name = index.removesuffix(REESTIMATED)
    return (find(name).predictor or name) + (REESTIMATED if adapted else "")


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
