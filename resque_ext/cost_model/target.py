"""Predictors that have the target in them, so that runs to several targets are of one model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from resque_ext.cost_model.scaling import check_number
from resque_ext.errors import ArgumentError
from resque_ext.retraining.target import LEAST_PROBE_ERROR
from resque_ext.studies.study_run import REESTIMATED

OVER_ALLOWED = "error_over_allowed"
# By name: the predictor, an error from 0 to 1, that is taken in units of the error allowed.
DERIVED = {OVER_ALLOWED + end: "linear_probe_error" + end for end in ("", REESTIMATED)}


def has_target(predictors: Iterable[str]) -> bool:
    """Whether one of them has the target in it."""
    return any(name in DERIVED for name in predictors)


def with_target(
    values: Mapping[str, Any], predictors: Iterable[str], target_accuracy: float | None
) -> dict[str, Any]:
    """The values, and those that follow from them and the target: log2(error / (1 - target)).

    What is given itself stays; where error or target are not known nothing is added.
    """
    found = dict(values)
    for name in predictors:
        source = DERIVED.get(name)
        error = None if source is None else values.get(source)
        if name in found or error is None or target_accuracy is None:
            continue
        allowed = max(1 - target_accuracy, LEAST_PROBE_ERROR)
        found[name] = math.log2(max(check_number(source, error), LEAST_PROBE_ERROR) / allowed)
    return found


def checked_target(name: str, value: Any) -> float | None:
    """An accuracy above 0 and at most 1, or None.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    if value is None:
        return None
    found = check_number(name, value, least=0.0)
    if found > 1:
        raise ArgumentError(name, "at most 1", repr(value))
    return found
