"""Errors of accumulators, said in the words of those who run a model: `score` and `screen`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from resque_ext.errors import InputError, within
from resque_ext.indices.base import SIDES

# What to do about it here, where the accumulator names an argument that score does not have.
MISSING_OPTION = "options={'resque_dist': {'missing': 'skip'}} leaves such classes out"
BY_HAND = "{} can leave such out of features that are taken by hand"


def expect_both_sides(rows: Mapping[str, NDArray[np.int64]], fix: str | None) -> None:
    """ValueError for classes with rows on one side alone."""
    from resque_ext.indices.resque_dist import raise_for_missing

    there = [rows[side] > 0 for side in SIDES]
    missing = there[0] != there[1]
    if missing.any():
        try:
            raise_for_missing(missing, rows, {})
        except ValueError as error:
            raise reworded(error, missing=fix) from error


def reworded(
    error: Exception,
    side: str | None = None,
    missing: str | None = None,
    nonfinite: str | None = None,
) -> Exception:
    """An accumulator's error, which says the side, and what can be done about it here."""
    if not isinstance(error, InputError):
        return within(side, error) if side else error
    fix = error.fix
    for argument, instead in (("missing", missing), ("nonfinite", nonfinite)):
        if fix is not None and fix.startswith(f"{argument}="):
            fix = instead
    return error.but(side=side or error.side, fix=fix)


def label_bound(labels: Tensor) -> int:
    """One more than the largest label, at least 1."""
    return max(int(labels.max()) + 1, 1) if len(labels) else 1
