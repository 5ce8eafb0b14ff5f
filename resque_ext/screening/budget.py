"""How much a screening may read, shared evenly among the models that are left."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from resque_ext.errors import ArgumentError, ArgumentTypeError


@dataclass(frozen=True)
class Budget:
    """Of a screening; what was not read within it says so.

    Attributes:
        seconds: of wall time, of this run alone where one is resumed.
        samples: of candidates, of earlier runs too.
    """

    seconds: float | None = None
    samples: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("seconds", self.seconds), ("samples", self.samples)):
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and not (number and value > 0 and math.isfinite(value)):
                raise ArgumentError(f"budget: {name}", "a number above 0", f"{value!r}")
        if isinstance(self.samples, float):
            raise ArgumentTypeError("budget: samples", "an integer", f"{self.samples!r}")


def as_budget(given: Any) -> Budget:
    """A budget from one, from a mapping of its attributes, or from None for no limit."""
    if given is None or isinstance(given, Budget):
        return given or Budget()
    known = ("seconds", "samples")
    if not isinstance(given, Mapping) or set(given) - set(known):
        raise ArgumentTypeError("budget", f"a Budget or a mapping of {known}", f"{given!r}")
    return Budget(**given)


class Purse:
    """A budget as it is spent.

    Args:
        budget: of all models.
        models: how many there are.
    """

    def __init__(self, budget: Budget, models: int) -> None:
        self._budget, self._models = budget, models
        self._began = time.monotonic()
        self._left = math.inf if budget.samples is None else budget.samples
        self.samples, self._deadline = self._left, math.inf

    def next_model(self) -> None:
        """An even share of what is left, for the next of the models."""
        share = max(self._models, 1)
        self._models -= 1
        self.samples = self._left if math.isinf(self._left) else self._left // share
        if self._budget.seconds is not None:
            now = time.monotonic()
            left = max(self._budget.seconds - (now - self._began), 0)
            self._deadline = now + left / share

    def spend(self, samples: int) -> None:
        self.samples -= samples
        self._left -= samples

    @property
    def out_of_time(self) -> bool:
        return time.monotonic() >= self._deadline
