"""screen: which of many models is cheapest to reuse on which of many datasets."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from resque_ext.data.checks import check_choice, check_count, check_device, describe
from resque_ext.environment import environment
from resque_ext.errors import ArgumentError, ArgumentTypeError
from resque_ext.forecasting.result import UNITS
from resque_ext.indices.registry import check_names, find, lower_is_cheaper, make_indices
from resque_ext.model.reads import Reads
from resque_ext.screening.budget import Budget, as_budget
from resque_ext.screening.cached_pass import has_identity
from resque_ext.screening.candidates import (
    EMBEDDINGS,
    INPUTS,
    Candidate,
    Feed,
    as_candidate,
    open_feed,
)
from resque_ext.screening.embedding_cache import EmbeddingCache
from resque_ext.screening.old_side import ShelfModel, as_shelf_model
from resque_ext.screening.pair_reading import possible, reads_pairs
from resque_ext.screening.planned import adapted_names, check_runnable, read_indices
from resque_ext.screening.progress import make_progress
from resque_ext.screening.screener import Plan, Screener
from resque_ext.screening.stopping import StoppingRule
from resque_ext.screening.store import Header, NoStore, PairKey, open_store
from resque_ext.screening.table import Screening
from resque_ext.screening.target import ScreeningTarget, as_target

FIRST_LOOK, GROWTH = (
    256,
    1.25,
)  # samples of a pair's first look, and how much more each next one has


def screen(
    models: Mapping[str, Any],
    old: Any,
    candidates: Mapping[str, Any],
    indices: Iterable[str] = ("resque_dist",),
    *,
    rank_by: str | None = None,
    budget: Budget | Mapping[str, Any] | None = None,
    store: str | os.PathLike[str] | None = None,
    resume: bool = True,
    cost_model: Any = None,
    cost_options: Mapping[str, Any] | None = None,
    anytime: bool = True,
    width: float | None = None,
    top: int | None = None,
    confidence: float = 0.95,
    on_fault: str = "raise",
    on_error: str = "record",
    seed: int = 0,
    device: torch.device | str = "cpu",
    batch_size: int = 256,
    progress: bool | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    looks: tuple[int, float] = (FIRST_LOOK, GROWTH),
    cache: str | os.PathLike[str] | None = None,
    scheduler: str | None = None,
    workers: int | None = None,
    target_accuracy: float | None = None,
    probe: int = 0,
    forecast_options: Mapping[str, Any] | None = None,
    adapt_normalization: bool | str = False,
) -> Screening:
    """Ranks every (model, candidate) pair by what reusing the model on the candidate will cost.

    With `target_accuracy` pairs are ranked, over all models, by the forecast epochs of retraining
    until it is reached. Without one they are ranked within each model alone: an index says how far
    data are from what a model knows, not what it can do, so an untrained one may have the lowest.

    Models are built one at a time, and each runs once over its old data; every pair is read once
    ("preindex", which compares rows in pairs, runs the old data again beside a paired candidate).

    Args:
        models: by name: a torch.nn.Module, a function that makes one, a
            :class:`resque_ext.screening.ShelfModel`, or None where all data are embeddings.
        old: data of all models, or a mapping with those of each, by its name. Anything that
            :func:`resque_ext.data.sources.as_source` takes: a path, arrays (features, labels),
            a dataset, batches (inputs, labels) that can be read again. None for "resque_task".
        candidates: by name: data likewise, a shift of the old data (`resque_ext.shifts.make`), or a
            :class:`resque_ext.screening.Candidate`.
        indices: as :func:`resque_ext.score` takes them. Where a candidate does not let one be
            computed ("preindex" without pairs, layers of embeddings), it is left out of that pair.
        rank_by: one of them, or a measure of the cost model or of the forecast; by default
            "epochs" with a target, else the first index.
        budget: seconds or samples at most, see :class:`resque_ext.screening.Budget`; each model
            gets an even share of what is left. Pairs that it ended are read again by a later call
            with another budget, or with one of seconds.
        store: a SQLite file, or for a new one that ends in ".jsonl" JSON lines, that keeps every
            finished pair: the same call goes on where it was interrupted.
        resume: False refuses a store that holds results already.
        cost_model: predicts costs from the indices: :class:`resque_ext.retraining.CostModel`.
            Its predictors are read too, those after re-estimating normalization among them.
        cost_options: of its `predict`.
        anytime: stop reading a pair when its interval parts it from all others of its model, or is
            as narrow as `width`. Needs "resque_dist" alone, and to be ranked by it; otherwise every
            pair is read to its end. Values are then those that infinitely many samples would show.
        width, top, confidence: of the :class:`resque_ext.screening.stopping.StoppingRule`; the
            intervals of a pair hold together with that confidence, however often it is looked at.
        on_fault: "skip" leaves out what cannot be read of a source and lists it; "raise" makes the
            pair fail.
        on_error: "record" keeps the error of a pair that fails and goes on, "raise" ends there.
        seed: of the order in which rows are read where reading may stop early.
        device: where models run.
        batch_size: rows at once; halved where memory does not suffice.
        progress: a bar on stderr; None: where that is a terminal.
        options: further arguments of an index, as :func:`resque_ext.score` takes them.
        looks: samples of a pair's first look, and how many times more each next one has.
        cache: a folder that keeps what models make of data, so that a later call with the same ones
            reads embeddings instead of running models; results are the same, bit for bit. What
            counts as the same, and which data are not kept, docs/screening.md says.
        scheduler: "ray": pairs are read by the workers of a Ray cluster, the one that this process
            has joined or else one that is started on this machine for the time. Every pair is read
            to its end: needs anytime=False and no budget. The table is that of one process.
        workers: of "ray": how many pairs are read at once; None: one on each core.
        target_accuracy: that retraining on four of five rows of a candidate is to reach on each
            fifth row, which is held out. Every pair gets a :func:`resque_ext.forecast` from forward
            passes alone.
        probe: for so many pairs, the first by then of those whose cost is not known, the forecast
            also takes the first steps of retraining.
        forecast_options: further arguments of `forecast` (optimizer, loss, max_epochs, coverage,
            ...), and "batch_size", rows of a training batch, by default 64.
        adapt_normalization: read the indices also after adapting normalization to the candidate, as
            :func:`resque_ext.score` takes it: True or "match". They are named with "_reestimated"
            behind; old data and candidate are run again for each pair.

    Raises:
        TypeError, ValueError, OSError: an argument or source that is wrong, before anything is
            read; a store of something else, in use, or that cannot be written.
    """
    plan, rank_by = make_plan(
        models,
        old,
        candidates,
        indices,
        rank_by=rank_by,
        budget=budget,
        cost_model=cost_model,
        cost_options=cost_options,
        anytime=anytime,
        width=width,
        top=top,
        confidence=confidence,
        on_fault=on_fault,
        on_error=on_error,
        seed=seed,
        device=device,
        batch_size=batch_size,
        options=options,
        looks=looks,
        target_accuracy=target_accuracy,
        probe=probe,
        forecast_options=forecast_options,
        adapt_normalization=adapt_normalization,
    )
    screener = _screener(plan, scheduler, workers)
    if store is not None and not isinstance(store, (str, os.PathLike)):
        raise ArgumentTypeError("store", "a path or None", describe(store))
    if cache is not None:
        plan = replace(plan, cache=_opened_cache(cache))
        _say_what_is_not_kept(plan)
    pairs = len(plan.models) * len(plan.candidates)
    opened = NoStore() if store is None else open_store(store, header(plan, rank_by), resume)
    with opened, make_progress(progress, pairs) as bar:
        return Screening(screener(plan, opened, bar).run(), rank_by)


def _screener(plan: Plan, scheduler: str | None, workers: int | None) -> Callable[..., Screener]:
    """What does it, where that can be done so."""
    ranks = _world_size()
    if ranks > 1:
        raise ArgumentError(
            "screen",
            "one process",
            f"{ranks} ranks of torch.distributed, of which each would do "
            "all of it: scheduler='ray' reads many pairs at once, "
            "score(..., ranks=) one pair by all ranks",
        )
    if scheduler is None:
        if workers is not None:
            raise ArgumentError("workers", "None without scheduler='ray'", f"{workers!r}")
        return Screener
    check_choice(scheduler, ("ray",), "scheduler")
    from resque_ext.screening.ray_screener import RayScreener, check_plan

    check_plan(plan)
    workers = None if workers is None else check_count(workers, "workers")
    return functools.partial(RayScreener, workers=workers)


def _opened_cache(folder: Any) -> EmbeddingCache:
    if not isinstance(folder, (str, os.PathLike)):
        raise ArgumentTypeError("cache", "a folder or None", describe(folder))
    try:
        # Absolute, because a model or a worker may go to another folder. Checksums too: a changed
        # byte would be a wrong result that nobody notices.
        return EmbeddingCache(Path(folder).absolute(), verify=True)
    except OSError as error:
        raise OSError(
            f"cache: {os.fspath(folder)}: expected a folder that can be written, found "
            f"{error.strerror or error}"
        ) from None


def _say_what_is_not_kept(plan: Plan) -> None:
    """One warning for all data that nothing tells from others, and for layers."""
    unknown = [f"old data of {name}" for name, feed in plan.old.items() if not has_identity(feed)]
    unknown += [name for (_, name), feed in plan.feeds.items() if not has_identity(feed)]
    if unknown:
        names = list(dict.fromkeys(unknown))
        warnings.warn(
            f"cache: expected data that a fingerprint tells from others, found none for "
            f"{', '.join(names[:5])}{f' and {len(names) - 5} more' if names[5:] else ''}: models "
            "run on them each time",
            stacklevel=3,
        )
    layers = [name for name in plan.indices if find(name).reads.layers]
    if layers:
        warnings.warn(
            f"cache: expected indices of the embedding alone, found {', '.join(layers)}, which "
            "read layers, which are not kept: models run each time",
            stacklevel=3,
        )


def _world_size() -> int:
    """Ranks of torch.distributed; under torchrun also before that is initialised."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    given = os.environ.get("WORLD_SIZE", "") if torch.distributed.is_torchelastic_launched() else ""
    return int(given) if given.isdecimal() else 1


def make_plan(
    models: Mapping[str, Any],
    old: Any,
    candidates: Mapping[str, Any],
    indices: Iterable[str] = ("resque_dist",),
    *,
    rank_by: str | None = None,
    budget: Any = None,
    cost_model: Any = None,
    cost_options: Mapping[str, Any] | None = None,
    anytime: bool = True,
    width: float | None = None,
    top: int | None = None,
    confidence: float = 0.95,
    on_fault: str = "raise",
    on_error: str = "record",
    seed: int = 0,
    device: torch.device | str = "cpu",
    batch_size: int = 256,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    looks: tuple[int, float] = (FIRST_LOOK, GROWTH),
    target_accuracy: float | None = None,
    probe: int = 0,
    forecast_options: Mapping[str, Any] | None = None,
    adapt_normalization: bool | str = False,
) -> tuple[Plan, str]:
    """What `screen` is about to do, with all sources open, and what it ranks by; see there."""
    names = check_names(indices)
    shelf = {n: as_shelf_model(m, n) for n, m in _named(models, "models").items()}
    given = {n: as_candidate(c) for n, c in _named(candidates, "candidates").items()}
    check_choice(on_fault, ("raise", "skip"), "on_fault")
    check_choice(on_error, ("record", "raise"), "on_error")
    check_count(seed, "seed", least=0)
    check_count(batch_size, "batch_size")
    if not isinstance(confidence, (int, float)) or not 0 < confidence < 1:
        raise ArgumentError("confidence", "a number between 0 and 1", f"{confidence!r}")
    make_indices(names, options, paired=True)  # what is wrong with the options shows now
    StoppingRule(width, top)  # likewise
    looks = _checked_looks(looks)
    _check_cost_model(cost_model, cost_options)
    target = as_target(target_accuracy, probe, forecast_options)
    if target is not None and cost_model is not None:
        raise ArgumentError("target_accuracy", "None beside a cost_model", "both")
    names, adapted, way = read_indices(names, cost_model, adapt_normalization)
    rank_by = _rank_key(rank_by, (*names, *adapted_names(adapted)), cost_model, target)
    budget = as_budget(budget)
    olds = _olds(old, shelf, names, on_fault)
    feeds = _feeds(shelf, olds, given, on_fault)
    _check_classes(olds, feeds)
    _check_indices(names, shelf, given, feeds)
    check_runnable(shelf, feeds, adapted, target)
    streams = names == (rank_by,) and find(rank_by).has_interval and lower_is_cheaper(rank_by)
    streams = streams and not any(c.paired for c in given.values())
    limited = budget.samples is not None or budget.seconds is not None
    anytime = bool(anytime) and streams
    plan = Plan(
        models=shelf,
        old=olds,
        candidates=given,
        feeds=feeds,
        indices=names,
        options=options,
        rounds=streams and (anytime or limited),
        anytime=anytime,
        looks=looks,
        width=width,
        top=top,
        confidence=confidence,
        budget=budget,
        seed=seed,
        device=check_device(device),
        batch_size=batch_size,
        on_error=on_error,
        cost_model=cost_model,
        cost_options=cost_options,
        adapted=adapted,
        way=way,
        rank_by=rank_by,
        target=target,
    )
    return plan, rank_by


def header(plan: Plan, rank_by: str) -> Header:
    """What the store of a plan is known by."""
    olds = {n: None if f is None else f.identity() for n, f in plan.old.items()}
    identity = {
        "models": {name: _described(entry) for name, entry in plan.models.items()},
        "old": olds,
        "candidates": {
            candidate: {
                "paired": plan.candidates[candidate].paired,
                "data": {model: plan.feeds[model, candidate].identity() for model in plan.models},
            }
            for candidate in plan.candidates
        },
        "indices": {name: dict((plan.options or {}).get(name, {})) for name in plan.indices},
        "anytime": [plan.width, plan.top, plan.confidence] if plan.anytime else None,
        "rounds": [plan.seed, *plan.looks] if plan.rounds else None,
        "cost_model": _cost_digest(plan.cost_model, plan.cost_options),
    }
    # Stores of before these could be chosen go on.
    if plan.adapted:
        identity["adapted"] = [list(plan.adapted), plan.way]
    if plan.target is not None:
        identity["target"] = plan.target.identity()
    shown = {"rank_by": rank_by, "batch_size": plan.batch_size, "device": str(plan.device)}
    shown |= {"budget": asdict(plan.budget)}
    return Header(identity, environment(), shown)


def _named(given: Any, what: str) -> Mapping[str, Any]:
    right = isinstance(given, Mapping) and all(isinstance(name, str) and name for name in given)
    if not right:
        raise ArgumentTypeError(what, "a mapping by name", describe(given))
    if not given:
        raise ArgumentError(what, "at least one", "none")
    for name in given:  # as names of files are that are not text
        if name.encode(errors="ignore").decode() != name:
            raise ArgumentError(what, "names that UTF-8 can write", f"{name!r}")
    return given


def _checked_looks(looks: Any) -> tuple[int, float]:
    right = isinstance(looks, (tuple, list)) and len(looks) == 2
    if not right or any(isinstance(n, bool) or not isinstance(n, (int, float)) for n in looks):
        raise ArgumentTypeError(
            "looks", "samples of the first look and a growth above 1, as (256, 1.25)", f"{looks!r}"
        )
    first, growth = check_count(looks[0], "looks"), float(looks[1])
    if not 1 < growth < math.inf:
        raise ArgumentError("looks", "a growth above 1", f"{looks[1]!r}")
    return first, growth


def _check_cost_model(cost_model: Any, cost_options: Any) -> None:
    if cost_model is not None and not hasattr(cost_model, "measures"):
        raise ArgumentTypeError(
            "cost_model", "a CostModel (CostModel.load reads one)", describe(cost_model)
        )
    if cost_options is not None and not isinstance(cost_options, Mapping):
        raise ArgumentTypeError("cost_options", "a mapping", describe(cost_options))
    if cost_options and cost_model is None:
        raise ArgumentError("cost_options", "a cost_model beside them", "None")


def _rank_key(
    rank_by: str | None, names: tuple[str, ...], cost_model: Any, target: ScreeningTarget | None
) -> str:
    measures = () if cost_model is None else tuple(cost_model.measures)
    measures = measures if target is None else tuple(UNITS)
    if rank_by is None:
        return names[0] if target is None else "epochs"
    return check_choice(rank_by, (*names, *measures), "rank_by") or rank_by


def _olds(
    old: Any, shelf: Mapping[str, ShelfModel], names: tuple[str, ...], on_fault: str
) -> dict[str, Feed | None]:
    each = isinstance(old, Mapping) and set(old) == set(shelf)
    if isinstance(old, Mapping) and not each and not {"path", "dataset"} & set(old):
        raise ArgumentError(
            "old",
            f"data of every model ({', '.join(shelf)})",
            f"those of {', '.join(map(str, old)) or 'none'}",
        )
    opened: dict[tuple[int, str], Feed] = {}  # data of several models are opened once
    found: dict[str, Feed | None] = {}
    for name, entry in shelf.items():
        data = old[name] if each else old
        if data is None:
            if any("old" in find(index).reads.sides for index in names):
                raise ArgumentTypeError("old", f"data of {name!r}", "None")
            found[name] = None
            continue
        kind = EMBEDDINGS if entry.make is None else INPUTS
        where = f"old.{name}" if each else "old"
        key = id(data), kind
        if key not in opened:
            opened[key] = open_feed(data, where, kind, on_fault)
        found[name] = opened[key]
        _check_runs(found[name], entry, where, name)
    return found


def _feeds(
    shelf: Mapping[str, ShelfModel],
    olds: Mapping[str, Feed | None],
    candidates: Mapping[str, Candidate],
    on_fault: str,
) -> dict[PairKey, Feed]:
    found: dict[PairKey, Feed] = {}
    for name, candidate in candidates.items():
        opened: dict[str, Feed] = {}
        for model, entry in shelf.items():
            where = f"candidates.{name}"
            if candidate.data is None:
                feed = olds[model]
                if feed is None:
                    raise ArgumentTypeError(where, "old data to shift", "None")
            else:
                kind = candidate.kind or (EMBEDDINGS if entry.make is None else INPUTS)
                if kind not in opened:
                    opened[kind] = open_feed(candidate.data, where, kind, on_fault)
                feed = opened[kind]
            if candidate.shift is not None:
                if feed.kind != INPUTS:
                    raise ArgumentError(where, "inputs to shift", feed.kind)
                feed = Feed(feed.source, on_fault, candidate.shift)
            _check_runs(feed, entry, where, model)
            found[model, name] = feed
    return found


def _check_classes(olds: Mapping[str, Feed | None], feeds: Mapping[PairKey, Feed]) -> None:
    """Raises ValueError where a class that both sides name has another number on each.

    Also where names of one side were numbered in their sorted order and the other side has numbers
    alone. Other names on one side alone are well: datasets call the same class by several names.
    """
    for (model, candidate), feed in feeds.items():
        old = olds[model]
        sources = ((old or feed).source, feed.source)
        for one, other in (sources, sources[::-1]):
            if getattr(one, "sorted_names", False) and other.classes is None:
                raise ArgumentError(
                    f"candidates.{candidate}",
                    "labels of one kind on both sides",
                    f"names of classes ({', '.join(map(str, one.classes[:3]))}...) in "
                    f"{one.name}, and numbers in {other.name}",
                    fix="number the names first, as the other side does",
                )
        there, here = (source.classes or () for source in sources)
        places = {name: i for i, name in enumerate(there)}
        for i, name in enumerate(here):
            if places.get(name, i) != i:
                raise ArgumentError(
                    f"candidates.{candidate}",
                    "classes in the order of the old data",
                    f"{name!r} as class {i}, and as class {places[name]} "
                    "there: give both the same classes=[...]",
                )


def _check_runs(feed: Feed | None, entry: ShelfModel, where: str, model: str) -> None:
    if feed is not None and feed.kind == INPUTS and entry.make is None:
        raise ArgumentError(where, f"embeddings, because {model!r} is no model to run", "inputs")


def _check_indices(
    names: tuple[str, ...],
    shelf: Mapping[str, ShelfModel],
    candidates: Mapping[str, Candidate],
    feeds: Mapping[PairKey, Feed],
) -> None:
    """Raises for an index that no pair at all lets be computed."""
    for name in names:
        if not any(possible([name], f, candidates[key[1]].paired) for key, f in feeds.items()):
            needs = "paired candidates" if reads_pairs(name) else "inputs of a model"
            raise ArgumentError("indices", f"{needs} for {name!r}", "none")


def _cost_digest(cost_model: Any, options: Mapping[str, Any] | None) -> str | None:
    """Of what predictions follow from."""
    if cost_model is None:
        return None
    text = json.dumps([cost_model.to_dict(), dict(options or {})], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _described(entry: ShelfModel) -> str:
    """What a model is called, where its weights are not known before it is built, and what is read
    of it in another way than by default."""
    reads, plain = entry.reads, Reads().plain() | {"labels": "given"}
    other = {k: v for k, v in (reads.plain() | {"labels": reads.labels}).items() if v != plain[k]}
    return _called(entry) + "".join(f" {key}={value}" for key, value in other.items())


def _called(entry: ShelfModel) -> str:
    if entry.description is not None:
        return entry.description
    made = entry.make
    named = made if hasattr(made, "__qualname__") else type(made)
    return f"{named.__module__}:{named.__qualname__}" if made is not None else "embeddings"
