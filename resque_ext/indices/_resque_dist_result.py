"""What RESQUE_dist gives: the angles, and what is known of their uncertainty."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resque_ext.indices.base import SIDES, Result

SIGNIFICANT = 0.05  # of a sign test's p-value
CLEAR = 2  # standard errors above the noise floor, which 2 to 6% of samples without a shift are


@dataclass(frozen=True)
class ResqueDistResult(Result):
    """RESQUE_dist and what is known of its uncertainty. Angles are in units of pi, 0 to 1.

    Attributes:
        value: mean over classes of the angle between the old and the new class sum.
        per_class: [C] float64 angles, NaN for a class that was left out.
        std_error: standard error of `value` from the scatter of blocks of samples: within 15% of
            the true deviation from no shift to a clear one for 8 blocks or more, up to a fifth too
            large for paired sides and up to a third where a few directions hold most of the
            variance. None where a class has fewer than three samples on a side, or where paired
            rows were left out on one side only.
        noise_floor: what no shift at all would show at these sample sizes; for paired sides, what a
            random exchange of old and new within pairs would show, 0 where every pair is equal.
            None where a class has fewer than two samples, or likewise. A value above its floor is
            no evidence of a shift yet: half of all samples without a shift are.
        p_value: of paired sides, by a sign test: the share of 200 random exchanges within pairs
            that show no less than `value`; at most 0.05 is evidence of a shift. Else None.
        reliable: whether `value` stands clear of what no shift would show; False where that is not
            known. `warnings` says why not, and what to do.
        counts: rows of each class behind the sums, by side: [C] int64.
        missing: classes that were left out because they have no angle.
        nonfinite_rows: rows left out for NaN or infinite features, by side.
        layer: what was read, where a model was run: a module's name, or "NAME:input".
        old_accuracy, new_accuracy: of the model, where one was run and it is a classifier.
        pooling: how positions of a layer's output became a vector, where a model was run: "vector"
            (there was nothing to pool), "token" (the one whose scores the model returns), "mean",
            "masked mean", "first", "last", "flattened", "none" or a function's name.
        labels: "given" or "predicted" (by the model, on the new side), where a model was run.
    """

    value: float
    per_class: NDArray[np.float64]
    std_error: float | None
    noise_floor: float | None
    counts: Mapping[str, NDArray[np.int64]]
    missing: tuple[int, ...] = ()
    p_value: float | None = None
    reliable: bool = True
    warnings: tuple[str, ...] = ()
    nonfinite_rows: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(SIDES, 0))
    layer: str | None = None
    old_accuracy: float | None = None
    new_accuracy: float | None = None
    pooling: str | None = None
    labels: str | None = None

    @property
    def class_values(self) -> dict[str, float]:
        """The angle of every class that has one, by its number."""
        return {str(c): float(a) for c, a in enumerate(self.per_class) if np.isfinite(a)}

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and None, for JSON."""
        return {
            "value": self.value,
            "std_error": self.std_error,
            "noise_floor": self.noise_floor,
            "p_value": self.p_value,
            "reliable": self.reliable,
            "warnings": list(self.warnings),
            "per_class": [None if np.isnan(a) else float(a) for a in self.per_class],
            "counts": {side: self.counts[side].tolist() for side in SIDES},
            "missing": list(self.missing),
            "nonfinite_rows": dict(self.nonfinite_rows),
            "layer": self.layer,
            "old_accuracy": self.old_accuracy,
            "new_accuracy": self.new_accuracy,
            "pooling": self.pooling,
            "labels": self.labels,
        }


def warnings_of(
    value: float,
    error: float | None,
    floor: float | None,
    p_value: float | None,
    matched: bool,
) -> tuple[str, ...]:
    """Why a value is not to be relied on, and what to do; nothing where it is."""
    if not matched:
        return (
            "std_error, noise_floor: unknown, because rows of pairs were left out on one side "
            "only; leave out both rows of such pairs",
        )
    if error is None or floor is None:
        return (
            "std_error: unknown, because a class has fewer than three rows on a side, or blocks "
            "without an angle; read more rows",
        )
    if p_value is not None and value > 0 and p_value > SIGNIFICANT:
        return (
            "value: no shift detected, as random exchanges within pairs show as much in "
            f"{p_value:.0%} of cases; read more rows to detect a small shift",
        )
    if p_value is None and value <= floor + CLEAR * error:
        return (
            f"value: no shift detected, as it is not {CLEAR} standard errors above the noise "
            "floor; read more rows to detect a small shift, or see ResqueDist.debiased()",
        )
    return ()
