"""The arguments of `forecast`, checked: what needs neither a model nor data."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from resque_ext.cost_model.scaling import check_number
from resque_ext.data.checks import check_count, describe
from resque_ext.errors import ArgumentError, ArgumentTypeError
from resque_ext.forecasting.costs import Steps
from resque_ext.retraining.calibration import Calibration
from resque_ext.retraining.retrain import make_settings
from resque_ext.retraining.settings import Settings

SHORTEST_PROBE = 16
# Of retrain's arguments, those that a forecast has no use for.
NOT_OURS = {"target_accuracy", "max_epochs", "device", "seed", "progress", "checkpoint_seconds"}
RECIPE = tuple(f.name for f in dataclasses.fields(Settings) if f.name not in NOT_OURS)


def check_options(
    steps: Sequence[int] = (16, 32),
    target_accuracy: float = 1.0,
    max_epochs: float = 200,
    *,
    max_share: float = 0.2,
    width: float = 4.0,
    coverage: float = 0.9,
    samples: int = 2000,
    carbon_intensity: float | None = None,
    calibration: Calibration | None = None,
    seed: int = 0,
    device: torch.device | None = None,
    **recipe: Any,
) -> tuple[Settings, Limits]:
    """What the arguments of `forecast` ask for, as far as no model and no data are needed.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    strange = [name for name in recipe if name not in RECIPE]
    if strange:
        raise ArgumentTypeError(
            "forecast", f"arguments of retrain among {', '.join(RECIPE)}", f"{strange[0]!r}"
        )
    check_count(samples, "samples")
    if calibration is not None and not isinstance(calibration, Calibration):
        found = describe(calibration)
        raise ArgumentTypeError("calibration", "a Calibration, which refit makes", found)
    if carbon_intensity is not None:
        check_number("carbon_intensity", carbon_intensity, least=0.0)
    settings = make_settings(
        device or torch.device("cpu"),
        recipe,
        target_accuracy=target_accuracy,
        max_epochs=max_epochs,
        seed=seed,
    )
    return settings, Limits.checked(steps, max_share, width, coverage)


@dataclass(frozen=True)
class Limits:
    """How far a probe may go, and the coverage of intervals."""

    lengths: tuple[int, ...]
    max_share: float
    width: float
    coverage: float

    @classmethod
    def checked(cls, steps: Any, max_share: Any, width: Any, coverage: Any) -> Limits:
        if isinstance(steps, (str, bytes)) or not isinstance(steps, Iterable):
            raise ArgumentTypeError("steps", "numbers such as (16, 32)", f"{steps!r}")
        lengths = tuple(check_count(length, "steps") for length in steps)
        powers = all(n >= SHORTEST_PROBE and n.bit_count() == 1 for n in lengths)
        if not powers or any(a >= b for a, b in itertools.pairwise(lengths)):
            raise ArgumentError("steps", "ascending powers of two from 16", f"{steps!r}")
        share = check_number("max_share", max_share, above=0.0)
        if share > 1:
            raise ArgumentError("max_share", "at most 1", f"{max_share!r}")
        if check_number("width", width) < 1:
            raise ArgumentError("width", "a factor of at least 1", f"{width!r}")
        if not 0.5 <= check_number("coverage", coverage) < 1:
            raise ArgumentError("coverage", "0.5 <= coverage < 1", f"{coverage!r}")
        return cls(lengths, share, float(width), float(coverage))

    def enough(self, steps: Steps | None, taken: int) -> bool:
        """Whether a longer probe is not wanted."""
        if steps is None or not taken:
            return False
        if steps.high is not None and steps.high <= self.width * steps.low:
            return True
        return taken >= self.max_share * steps.value
