"""Which indices a screening reads, and as what: those asked for, and what a cost model needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from resque_ext.cost_model.target import DERIVED
from resque_ext.errors import ArgumentError
from resque_ext.indices import registry
from resque_ext.screening.candidates import INPUTS, Feed
from resque_ext.screening.old_side import ShelfModel
from resque_ext.screening.pair_reading import predictor_of
from resque_ext.screening.store import PairKey
from resque_ext.screening.target import ScreeningTarget
from resque_ext.studies.study_run import REESTIMATED

WAYS = (False, True, "match")


def read_indices(
    names: tuple[str, ...], cost_model: Any, way: Any
) -> tuple[tuple[str, ...], tuple[str, ...], bool | str]:
    """The indices that are read as they are, those after adapting normalization, and how.

    Raises:
        ValueError: another way; a predictor of the cost model that no index is.
    """
    if way not in WAYS:
        raise ArgumentError("adapt_normalization", "True, False or 'match'", f"{way!r}")
    adapted = list(names) if way else []
    plain = list(names)
    known = {predictor_of(name): name for name in registry.names()}
    for predictor in () if cost_model is None else cost_model.predictors:
        predictor = DERIVED.get(predictor, predictor)
        name = known.get(predictor.removesuffix(REESTIMATED))
        if name is None:
            raise ArgumentError(
                "cost_model",
                f"predictors that are indices ({', '.join(known)}, each "
                f"also with {REESTIMATED} behind)",
                f"{predictor!r}",
            )
        where = adapted if predictor.endswith(REESTIMATED) else plain
        if name not in where:
            where.append(name)
    return tuple(plain), tuple(adapted), way or True


def adapted_names(indices: Iterable[str]) -> tuple[str, ...]:
    """What indices are called after adapting normalization."""
    return tuple(name + REESTIMATED for name in indices)


def check_runnable(
    shelf: Mapping[str, ShelfModel],
    feeds: Mapping[PairKey, Feed],
    adapted: tuple[str, ...],
    target: ScreeningTarget | None,
) -> None:
    """Raises where a pair has no model to run that is asked for."""
    wants = "target_accuracy" if target is not None else "adapt_normalization"
    if target is None and not adapted:
        return
    for (model, candidate), feed in feeds.items():
        if shelf[model].make is None or feed.kind != INPUTS:
            fix = f"{adapted_names(adapted)[0]} needs them" if target is None else None
            expected = "a model to run and inputs for it"
            found = f"embeddings ({model}, {candidate})"
            raise ArgumentError(wants, expected, found, fix=fix)
