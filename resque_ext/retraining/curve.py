"""The learning curve of a probe: how many doublings of the steps are left until the target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LOSS_PER_ERROR = 3.3  # cross-entropy per unit of error near a target
LEAST_SLOPE = 0.08  # octaves of error a doubling of the steps; a flatter curve counts as this
MOST_OCTAVES = 6.0
LEAST_LOSS = 1e-9  # of which a logarithm is taken


@dataclass(frozen=True)
class Point:
    """Held-out loss (mean cross-entropy) and error (1 - accuracy) after `step` steps."""

    step: int
    loss: float
    error: float


@dataclass(frozen=True)
class Curve:
    """Straight lines through log2(loss) and log2(error) over log2(step), at the last step.

    Attributes:
        step: k, the last one.
        loss, error: the lines at k, as log2.
        loss_slope, error_slope: by how many octaves they fall when the steps double.
    """

    step: int
    loss: float
    error: float
    loss_slope: float
    error_slope: float

    @classmethod
    def fitted(cls, points: Sequence[Point], least_error: float) -> Curve:
        """By least squares over the points in [k/4, k].

        Args:
            points: ascending; at least two of them in that range.
            least_error: what an error of 0 counts as, half a sample of the test data.
        """
        last = points[-1].step
        part = [point for point in points if 0 < last <= 4 * point.step]
        steps = np.log2([point.step for point in part])
        loss_slope, loss = _line(steps, [max(point.loss, LEAST_LOSS) for point in part])
        error_slope, error = _line(steps, [max(point.error, least_error) for point in part])
        return cls(last, loss, error, -loss_slope, -error_slope)

    def octaves(self, allowed: float) -> float:
        """Doublings of the steps until the error is `allowed`, from loss and error together."""
        error, loss = self.heights(allowed)
        return _octaves((error + loss) / 2, (self.error_slope + self.loss_slope) / 2)

    def heights(self, allowed: float) -> tuple[float, float]:
        """How far error and loss are above the target, in octaves."""
        error = self.error - math.log2(allowed)
        return error, self.loss - math.log2(LOSS_PER_ERROR * allowed)


def _line(x: np.ndarray, values: Sequence[float]) -> tuple[float, float]:
    """Slope of log2(values) over x, and the line at the last x."""
    y = np.log2(values)
    away = x - x.mean()
    slope = float(away @ y / (away @ away))
    return slope, float(y.mean() + slope * away[-1])


def _octaves(height: float, slope: float) -> float:
    return min(max(height, 0.0) / max(slope, LEAST_SLOPE), MOST_OCTAVES)
