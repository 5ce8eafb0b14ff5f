"""The work of a screening: model after model, and of each all candidates, one by one or in rounds.

In rounds every open pair is read up to the same number of samples before any is read on, so that
intervals can be compared and reading ends where it decides nothing more. A restart goes the same
way: pairs that are finished are not read again, their looks are taken from the store.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from resque_ext.model.digest import weights_digest
from resque_ext.screening.budget import Budget, Purse
from resque_ext.screening.candidates import Candidate, Feed
from resque_ext.screening.embedding_cache import EmbeddingCache
from resque_ext.screening.old_side import OldSide, ShelfModel
from resque_ext.screening.pair_reading import (
    ALL,
    PairReading,
    error_line,
    failed,
    possible,
    predict,
    read_both,
    reads_pairs,
    unread,
)
from resque_ext.screening.progress import Progress
from resque_ext.screening.results import PairResult
from resque_ext.screening.stopping import Estimate, StoppingRule, look_sizes
from resque_ext.screening.store import Finished, Look, PairKey, Store, StoreError
from resque_ext.screening.table import placed_rows
from resque_ext.screening.target import ScreeningTarget, with_forecast, without_probe
from resque_ext.studies.study_run import REESTIMATED

log = logging.getLogger(__name__)
STATES_BYTES = 2**31  # of all open pairs' states; beyond, pairs are read one by one


@dataclass(frozen=True)
class Plan:
    """A screening, with everything opened that is opened before it begins.

    Attributes:
        models, candidates: by name, in the order in which they are taken.
        old: every model's old data; None where no index reads any.
        feeds: by model and candidate.
        indices, options: as `score` takes them.
        adapted, way: indices that are read after adapting normalization, and how that is done.
        rank_by: an index or a measure.
        rounds: read all pairs of a model in rounds.
        anytime: pairs stop when their interval decides.
        looks: the first look's samples, and how much later each other one is than the last.
        width, top, confidence: of the stopping rule.
        cost_options: of the cost model's predictions.
        target: that retraining is to reach; None without forecasts.
        cache: of what models make of data; None: they run each time.
    """

    models: Mapping[str, ShelfModel]
    old: Mapping[str, Feed | None]
    candidates: Mapping[str, Candidate]
    feeds: Mapping[PairKey, Feed]
    indices: tuple[str, ...]
    options: Mapping[str, Mapping[str, Any]] | None
    rounds: bool
    anytime: bool
    looks: tuple[int, float]
    width: float | None
    top: int | None
    confidence: float
    budget: Budget
    seed: int
    device: torch.device
    batch_size: int
    on_error: str
    cost_model: Any = None
    cost_options: Mapping[str, Any] | None = None
    cache: EmbeddingCache | None = None
    adapted: tuple[str, ...] = ()
    way: bool | str = True
    rank_by: str = "resque_dist"
    target: ScreeningTarget | None = None

    def reads_old_again(self, candidate: Candidate) -> bool:
        """Whether a pair needs the old data beside its own."""
        if self.target is not None or self.adapted:
            return True
        return candidate.paired and any(map(reads_pairs, self.indices))


class Screener:
    """Does what a plan says, and puts every finished pair into the store."""

    def __init__(self, plan: Plan, store: Store, progress: Progress) -> None:
        self.plan, self.store, self.progress = plan, store, progress
        self.finished = store.finished()
        # What a budget cut short is not finished for another one; seconds are each run's own.
        other = store.earlier_options.get("budget") != asdict(plan.budget)
        self._reopened = {
            key
            for key, pair in self.finished.items()
            if pair.result.stopped == "budget" and (other or plan.budget.seconds is not None)
        }
        for key in self._reopened:
            del self.finished[key]
        self.purse = Purse(plan.budget, len(plan.models))

    def run(self) -> list[PairResult]:
        """Every pair's result, in the order of models and candidates."""
        for key, pair in self.finished.items():
            self.progress.done(key, pair.result)
        for name in self.plan.models:
            self.purse.next_model()
            self._model(name)
        self._settle()
        self._probe_first()
        order = [(m, c) for m in self.plan.models for c in self.plan.candidates]
        return [self.finished[key].result for key in order]

    def _model(self, name: str) -> None:
        plan = self.plan
        keys = [(name, candidate) for candidate in plan.candidates]
        missing = [key for key in keys if key not in self.finished]
        if not missing:
            self.purse.spend(sum(self.finished[key].result.new_samples for key in keys))
            return
        old = self.fresh_side(name)
        try:
            try:
                self._old_side(old)
            except StoreError:
                raise
            except Exception as error:
                self._fail(missing, error)
                return
            if plan.rounds and self._states_fit(old, len(keys)):
                self._in_rounds(old, keys)
            else:
                self._one_by_one(old, keys)
        finally:
            old.release()

    def fresh_side(self, name: str) -> OldSide:
        """A model before its old data."""
        plan = self.plan
        indices = [index for index in plan.indices if not reads_pairs(index)]
        options = {k: v for k, v in (plan.options or {}).items() if k in indices}
        sizes = plan.device, plan.batch_size
        return OldSide(plan.models[name], name, indices, options, *sizes, plan.cache)

    def _settle(self) -> None:
        """At the end: here every pair is finished by then."""

    def _old_side(self, old: OldSide) -> None:
        """The model after its old data: from the store, or by running it."""
        feed = self.plan.old[old.name]
        kept = self.store.old_side(old.name)
        if feed is None or not old.reads_old:
            return
        if not all(index.is_storable for index in old.indices.values()):  # read anew each time
            self.progress.begin(f"{old.name}: old data")
            old.read(feed)
            return
        if kept is not None:
            digest, state = kept
            if digest != self._digest(old):
                raise StoreError(
                    f"store: {self.store.path}: expected the weights of {old.name!r} that its "
                    "results are of, found others"
                )
            try:
                old.load_bytes(state)
            except ValueError as error:  # of the store, not of the pairs: they are not marked by it
                raise StoreError(f"store: {self.store.path}: {error}") from None
            return
        self.progress.begin(f"{old.name}: old data")
        old.read(feed)
        self.store.keep_old_side(old.name, self._digest(old), old.to_bytes())

    def _digest(self, old: OldSide) -> str:
        # Nothing is run, and so nothing built, where all data are embeddings.
        return "" if old.entry.make is None else weights_digest(old.model)  # type: ignore[arg-type]

    def _states_fit(self, old: OldSide, pairs: int) -> bool:
        (index,) = old.indices.values()
        needed = index.memory(pairs) - index.memory(0)
        if needed > STATES_BYTES:
            log.warning(
                "%s: the states of %d pairs take %d bytes, more than %d: they are read one by "
                "one, each to its end",
                *(old.name, pairs, needed, STATES_BYTES),
            )
        return needed <= STATES_BYTES

    def _one_by_one(self, old: OldSide, keys: list[PairKey]) -> None:
        plan = self.plan
        for key in keys:
            if key in self.finished:
                self.purse.spend(self.finished[key].result.new_samples)
                continue
            feed, paired = plan.feeds[key], plan.candidates[key[1]].paired
            self.progress.begin(f"{key[0]}: {key[1]}")

            def read(key: PairKey = key, feed: Feed = feed, paired: bool = paired) -> PairResult:
                if self.purse.out_of_time or self.purse.samples <= 0:
                    return unread(old, key[1], feed, "budget")
                indices = possible(plan.indices, feed, paired)
                if not indices:
                    raise ValueError(
                        f"expected a candidate of which {', '.join(plan.indices)} can be computed, "
                        f"found {feed.kind} that are {'' if paired else 'not '}paired"
                    )
                if any(map(reads_pairs, indices)):
                    found = read_both(old, plan.old[key[0]], key[1], feed, indices, plan.options)
                else:
                    found = self._read_alone(PairReading(old, key[1], feed, indices))
                return self._completed(old, key, found)

            result = self._caught(key, feed, old, read)
            self.purse.spend(result.new_samples)
            self._finish(Finished(result))

    def _read_alone(self, pair: PairReading) -> PairResult:
        """A pair to its end, or as far as the budget goes."""
        limit = min(ALL, self.purse.samples)
        for place in look_sizes(*self.plan.looks) if limit < ALL or self._timed else (ALL,):
            pair.read(int(min(place, limit)))
            self.progress.at((pair.old.name, pair.name), pair)
            if pair.ended or place >= limit or self.purse.out_of_time:
                break
        return pair.result("end" if pair.ended else "budget")

    def _completed(self, old: OldSide, key: PairKey, pair: PairResult) -> PairResult:
        """A pair that was read, with what follows from it or needs passes of its own."""
        plan, feed = self.plan, self.plan.feeds[key]
        if not pair.new_samples:
            return pair
        if plan.adapted:
            also = read_both(
                old,
                plan.old.get(key[0]),
                key[1],
                feed,
                plan.adapted,
                plan.options,
                plan.candidates[key[1]].paired,
                plan.way,
            )
            named = {name + REESTIMATED: value for name, value in also.indices.items()}
            pair = dataclasses.replace(
                pair, indices=pair.indices | named, seconds=pair.seconds + also.seconds
            )
        if plan.target is not None:
            return self._forecast(old, key, pair, ())
        costs = predict(plan.cost_model, pair.indices, plan.cost_options, pair.new_accuracy)
        return dataclasses.replace(pair, predicted=costs)

    def _forecast(
        self, old: OldSide, key: PairKey, pair: PairResult, steps: tuple[int, ...]
    ) -> PairResult:
        plan = self.plan
        assert plan.target is not None
        data = plan.old.get(key[0]), plan.feeds[key]
        found = plan.target.of(old, *data, steps, plan.seed)
        pair = with_forecast(pair, found)
        return dataclasses.replace(pair, seconds=pair.seconds + found.probe.seconds)

    def _probe_first(self) -> None:
        """The first steps of retraining for the pairs that come first so far."""
        plan = self.plan
        if plan.target is None or not plan.target.probe:
            return
        found = [pair.result for pair in self.finished.values()]
        forecasts = [r.forecast for r in found if r.forecast is not None]
        tried = [each for each in forecasts if each.probe_steps or each.probe_error]
        open_ones = [
            row.result
            for row in placed_rows(found, plan.rank_by)
            if row.result.forecast is not None
            and row.result.forecast.stage == "indices"
            and row.result.forecast.probe_error is None
        ]
        for pair in open_ones[: max(plan.target.probe - len(tried), 0)]:
            if self.purse.out_of_time or self.purse.samples <= 0:
                return
            key = pair.model, pair.candidate
            self.progress.begin(f"{key[0]}: probe of {key[1]}")
            old = self.fresh_side(key[0])
            try:
                result = self._forecast(old, key, pair, plan.target.steps)
            except Exception as error:
                if plan.on_error == "raise":
                    raise
                log.warning("%s, %s: probe: %s", *key, error_line(error))
                result = without_probe(pair, error_line(error))
            finally:
                old.release()
            finished = dataclasses.replace(self.finished[key], result=result)
            self.store.add(finished, replace=True)
            self.finished[key] = finished

    @property
    def _timed(self) -> bool:
        return self.plan.budget.seconds is not None

    def _in_rounds(self, old: OldSide, keys: list[PairKey]) -> None:
        plan = self.plan
        rule = StoppingRule(plan.width, plan.top)
        past = {key: self.finished[key] for key in keys if key in self.finished}
        confidence = plan.confidence if plan.anytime else None
        pairs = {
            key: PairReading(old, key[1], plan.feeds[key], plan.indices, plan.seed, confidence)
            for key in keys
            if key not in past
        }
        for number, place in enumerate(look_sizes(*plan.looks)):
            if not pairs:
                break
            cost = sum(
                _rows(plan.feeds[key], place) - _rows(plan.feeds[key], self._last(number))
                for key in keys
                if key in pairs or past.get(key, _NEVER).rounds > number
            )
            if cost > self.purse.samples or self.purse.out_of_time:
                self._close(pairs, dict.fromkeys(pairs, "budget"), number + 1)
                break
            self.purse.spend(cost)
            for key in keys:
                if key in past:
                    looks = past[key].looks
                    if plan.anytime and number < len(looks):
                        rule.observe(key, _estimate(looks[number]))
                    elif past[key].result.error is not None:
                        rule.estimates.pop(key, None)  # as in the round in which it failed
                elif key in pairs and not self._round(key, pairs, place, rule, number):
                    break
            if self.purse.out_of_time:
                self._close(pairs, dict.fromkeys(pairs, "budget"), number + 1)
                break
            decisions = rule.decide() if plan.anytime else {}
            closing = {
                key: "end" if pair.ended else decisions[key]
                for key, pair in pairs.items()
                if pair.ended or decisions.get(key, "continue") != "continue"
            }
            self._close(pairs, closing, number + 1)

    def _last(self, number: int) -> int:
        """The place up to which the round before has read."""
        sizes = look_sizes(*self.plan.looks)
        return [0, *(next(sizes) for _ in range(number))][-1]

    def _round(
        self,
        key: PairKey,
        pairs: dict[PairKey, PairReading],
        place: int,
        rule: StoppingRule,
        number: int,
    ) -> bool:
        """Reads one pair on; False where time is up."""
        pair = pairs[key]
        self.progress.begin(f"{key[0]}: round {number + 1}, {len(pairs)} pairs open")

        def read() -> None:
            pair.read(place)
            if self.plan.anytime:
                rule.observe(key, pair.look())

        error = self._caught(key, pair.feed, pair.old, read)
        if error is not None:
            del pairs[key]
            rule.estimates.pop(key, None)  # it has no place that others could be parted from
            self._finish(Finished(error, _looks(pair), number + 1))
            return True
        self.progress.at(key, pair)
        return not self.purse.out_of_time

    def _close(
        self, pairs: dict[PairKey, PairReading], why: Mapping[PairKey, str], rounds: int
    ) -> None:
        for key, stopped in why.items():
            pair = pairs.pop(key)

            def result(pair: PairReading = pair, stopped: str = stopped) -> PairResult:
                return self._completed(pair.old, (pair.old.name, pair.name), pair.result(stopped))

            found = self._caught(key, pair.feed, pair.old, result)
            self._finish(Finished(found, _looks(pair), rounds))

    def _caught(self, key: PairKey, feed: Feed, old: OldSide, do: Callable[[], Any]) -> Any:
        """What `do` returns, or the result of a pair that failed."""
        try:
            return do()
        except StoreError:
            raise
        except Exception as error:
            if self.plan.on_error == "raise":
                raise
            log.warning("%s, %s: %s", *key, error_line(error))
            return failed(*key, error, old_samples=old.samples, available=feed.rows)

    def _fail(self, keys: list[PairKey], error: Exception) -> None:
        """The same for all pairs of a model that cannot be run."""
        if self.plan.on_error == "raise":
            raise error
        log.warning("%s: %s", keys[0][0], error_line(error))
        for key in keys:
            self._finish(Finished(failed(*key, error, available=self.plan.feeds[key].rows)))

    def _finish(self, pair: Finished) -> None:
        self.store.add(pair, replace=pair.key in self._reopened)
        self.finished[pair.key] = pair
        self.progress.done(pair.key, pair.result)


_NEVER = Finished(PairResult("", "", {}))


def _rows(feed: Feed, place: int) -> int:
    return place if feed.rows is None else min(place, feed.rows)


def _estimate(look: Look) -> Estimate | None:
    return None if look is None else Estimate(look[1], look[2], look[3], look[0])


def _looks(pair: PairReading) -> tuple[Look, ...]:
    return tuple(e and (e.samples, e.value, e.low, e.high) for e in pair.looks)
