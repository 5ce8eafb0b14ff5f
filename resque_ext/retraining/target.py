"""What a target asks for: the error that it allows, and the checks at which it can be met."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable
from dataclasses import dataclass

LEAST_PROBE_ERROR = 0.002  # of a linear probe


@dataclass(frozen=True)
class Target:
    """A target accuracy on so many test samples.

    Attributes:
        accuracy: fraction, above 0 and at most 1.
        samples: of the test data.
    """

    accuracy: float
    samples: int

    @property
    def least_error(self) -> float:
        """Half a sample: what no error at all counts as where a logarithm is taken."""
        return 0.5 / self.samples

    @property
    def allowed(self) -> float:
        """The error that the target leaves, never below `least_error`."""
        return max(1 - self.accuracy, self.least_error)

    def octaves(self, error: float) -> float:
        """An error in units of the error allowed, as log2."""
        return math.log2(max(error, self.least_error) / self.allowed)

    def probe_octaves(self, probe_error: float) -> float:
        """The linear probe's error in units of the error allowed, as log2."""
        return math.log2(max(probe_error, LEAST_PROBE_ERROR) / self.allowed)


@dataclass(frozen=True)
class Checks:
    """After which steps a retraining reads its test accuracy: step 0 and these.

    Args:
        batches: after which batches of an epoch, the last one among them.
        per_epoch: batches of an epoch.
    """

    batches: tuple[int, ...]
    per_epoch: int

    @classmethod
    def of(cls, batches: Iterable[int], per_epoch: int) -> Checks:
        return cls(tuple(sorted(batches)), per_epoch)

    def at_or_after(self, step: float) -> int:
        """The first check, of those after training began, that is not before `step`."""
        epoch, batch = divmod(max(math.ceil(step), 1) - 1, self.per_epoch)
        return epoch * self.per_epoch + self.batches[bisect.bisect_left(self.batches, batch + 1)]

    def until(self, step: float) -> int:
        """How many checks there are up to a step, that before any training included."""
        epoch, batch = divmod(math.floor(step), self.per_epoch)
        return 1 + epoch * len(self.batches) + bisect.bisect_right(self.batches, batch)
