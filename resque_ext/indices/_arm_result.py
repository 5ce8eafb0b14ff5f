"""What ARM gives: the distance of each layer, their mean, and what is known of its uncertainty."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resque_ext.indices.base import Result
from resque_ext.ops.wasserstein import Distance


class LayerDistance(Distance):
    """One layer's distance, a float; with scale="old-std" it and its kin are divided by `old_std`.

    Attributes:
        bound: the exact distance is between `lower` and `upper`, this far off at most; infinite
            where `old_std`, by which it is divided, may be 0 for all that the bins tell.
        noise_floor: what no shift at all would show at these sample sizes, or None.
        counts: finite values behind it, by side.
        old_std: standard deviation of the old values, never divided.
        per_filter: [C] float64 distances, with per="filter"; else None.
    """

    noise_floor: float | None
    counts: Mapping[str, int]
    old_std: float
    per_filter: NDArray[np.float64] | None

    def __new__(cls, value: float, bound: float = 0.0, **facts: Any) -> LayerDistance:
        distance = super().__new__(cls, value, bound)
        distance.__dict__.update(facts)
        return distance  # type: ignore[return-value]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and None, for JSON."""
        return {
            "value": float(self),
            "bound": self.bound if np.isfinite(self.bound) else None,
            "noise_floor": self.noise_floor,
            "counts": dict(self.counts),
            "old_std": self.old_std,
            "per_filter": None if self.per_filter is None else self.per_filter.tolist(),
        }


@dataclass(frozen=True)
class ArmResult(Result):
    """ARM and what is known of its uncertainty, in the unit of the activations (or of `old_std`).

    Attributes:
        value: the mean over layers of their distances.
        layers: each layer's :class:`LayerDistance`, a float.
        bound: the exact value is within this of `value`: 0 for 16-bit values, or exact=True.
        noise_floor: what no shift at all would show at these sample sizes, or None where a layer
            has none. A value near its floor is not evidence of a shift.
        reliable: whether `value` is above its noise floor; False where the floor is not known.
            `warnings` says why not, and what to do.
        std_error: None: it would take the distributions of a dozen blocks of samples, not of two.
        nonfinite_values: NaN and infinite values that were left out, by side.
        per, scale: as asked.
        skipped: layers of a model that were not read, each with the reason, where one was run.
        old_accuracy, new_accuracy: of the model, where one was run and it is a classifier.
        pooling: how positions of a layer's output became a vector, where a model was run: "vector"
            (there was nothing to pool), "token" (the one whose scores the model returns), "mean",
            "masked mean", "first", "last", "flattened", "none" or a function's name.
    """

    value: float
    layers: Mapping[str, LayerDistance]
    bound: float
    noise_floor: float | None
    nonfinite_values: Mapping[str, int]
    per: str
    scale: str | None
    std_error: None = None
    reliable: bool = True
    warnings: tuple[str, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    old_accuracy: float | None = None
    new_accuracy: float | None = None
    pooling: str | None = None

    @property
    def layer_values(self) -> dict[str, float]:
        """The distance of every layer."""
        return {name: float(distance) for name, distance in self.layers.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and None, for JSON."""
        return {
            "value": self.value,
            "bound": self.bound if np.isfinite(self.bound) else None,
            "std_error": None,
            "noise_floor": self.noise_floor,
            "reliable": self.reliable,
            "warnings": list(self.warnings),
            "per": self.per,
            "scale": self.scale,
            "nonfinite_values": dict(self.nonfinite_values),
            "layers": {name: layer.to_dict() for name, layer in self.layers.items()},
            "skipped": dict(self.skipped),
            "old_accuracy": self.old_accuracy,
            "new_accuracy": self.new_accuracy,
            "pooling": self.pooling,
        }
