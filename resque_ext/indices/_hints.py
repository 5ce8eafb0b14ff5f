"""Errors of accumulators, said in the words of those who run a model: `score` and `screen`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from resque_ext.indices.base import SIDES
from resque_ext.ops.status import row_error

# Hints of this place, where those of the accumulators name arguments that score does not have.
MISSING_OPTION = " (options={'resque_dist': {'missing': 'skip'}} leaves such classes out)"
BY_HAND = " ({} can leave such out of features that are taken by hand)"


def expect_both_sides(rows: Mapping[str, NDArray[np.int64]], hint: str) -> None:
    """ValueError for classes with rows on one side alone."""
    from resque_ext.indices.resque_dist import raise_for_missing

    there = [rows[side] > 0 for side in SIDES]
    missing = there[0] != there[1]
    if missing.any():
        try:
            raise_for_missing(missing, rows, {})
        except ValueError as error:
            raise ValueError(without_hint(str(error), hint)) from error


def without_hint(message: str, missing: str = "", nonfinite: str = "") -> str:
    """The message with these hints in place of those at arguments that score does not have."""
    for argument, hint in (("missing", missing), ("nonfinite", nonfinite)):
        before, found, _ = message.partition(f" ({argument}=")
        if found:
            return before + hint
    return message


def of_side(error: Exception, side: str, **hints: str) -> Exception:
    """The same error, which says which side it is of."""
    if hasattr(error, "row"):  # see row_error
        return row_error(f"{side}: {without_hint(error.template, **hints)}", error.row)
    return type(error)(f"{side}: {without_hint(str(error), **hints)}")


def label_bound(labels: Tensor) -> int:
    """One more than the largest label, at least 1."""
    return max(int(labels.max()) + 1, 1) if len(labels) else 1
