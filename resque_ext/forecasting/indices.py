"""What forward passes alone say: accuracy after adapting normalization, a linear probe's error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from resque_ext.errors import ArgumentError
from resque_ext.model import normalization
from resque_ext.retraining.batches import Batches
from resque_ext.retraining.random_state import Randomness
from resque_ext.retraining.settings import Settings, Transform
from resque_ext.retraining.setup import trainable_copy
from resque_ext.scoring.score import score

WAYS = ("auto", True, "match", False)


@dataclass(frozen=True)
class Linear:
    """The error of a linear classifier of the embeddings, 0 to 1, or None.

    Attributes:
        notes: why there is none, or why it is not to be relied on.
    """

    error: float | None
    notes: tuple[str, ...] = ()


class Part:
    """Every n-th batch ``(inputs, labels)`` of a side, alike in every pass.

    Args:
        batches: measured.
        transform: of inputs, or None.
        settings: their memory format.
        randomness: for loaders that shuffle.
        samples: about how many to read at most, in whole batches spread over the pass.
    """

    def __init__(
        self,
        batches: Batches,
        transform: Callable[[Any], Any] | None,
        settings: Settings,
        randomness: Randomness,
        samples: int,
    ) -> None:
        self.batches, self.settings, self.randomness = batches, settings, randomness
        self.transform = Transform(transform)
        self.every = max(1, batches.samples // samples)

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        self.transform.restart()
        with self.randomness.kept(self.settings.seed):
            for i, (inputs, labels, _) in enumerate(self.batches):
                if i % self.every == 0:
                    yield self.settings.laid_out(self.transform(inputs)), labels

    def inputs(self) -> Iterator[Any]:
        """The inputs alone."""
        return (inputs for inputs, _ in self)


def choose_way(model: nn.Module, way: Any, has_old: bool) -> bool | str:
    """How to adapt a model's normalization: True (running statistics), "match", or False.

    Raises:
        ValueError: a way that the model or the data do not allow.
    """
    if way not in WAYS:
        raise ArgumentError("adapt_normalization", "'auto', True, 'match' or False", f"{way!r}")
    statistics = bool(normalization.reestimable(model))
    matchable = bool(normalization.matchable(model))
    if way == "auto":
        return "match" if matchable and has_old else statistics
    if way is True and not statistics:
        raise ArgumentError(
            "adapt_normalization",
            "a model with running statistics (batch-norm, instance norm)",
            f"none in {type(model).__name__}",
        )
    if way == "match" and not (has_old and matchable):
        found = "no normalization layers" if has_old else "no old data"
        raise ArgumentError("adapt_normalization", "old data and normalization to match", found)
    return way


def adapted(
    model: nn.Module, way: bool | str, new: Part, old: Part | None, settings: Settings
) -> nn.Module:
    """A copy of the model with its normalization taken to the new side (see `normalization`)."""
    copy = trainable_copy(model, settings.device, settings.channels_last)
    with settings.precision():
        olds = old.inputs if way == "match" and old is not None else None
        return normalization.adapted(copy, new.inputs, olds)


def linear_error(model: nn.Module, new: Part, layer: str | None, settings: Settings) -> Linear:
    """Of a linear probe on the new side, each fifth of it judged by the other four."""
    try:
        with settings.precision():
            probe = score(
                model,
                None,
                new,
                "linear_probe",
                layer=layer,
                device=settings.device,
                progress=False,
            )
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        # An embedding that cannot be read is no fault of the retraining: it does without.
        lines = str(error.args[0] if error.args else error).splitlines()
        return Linear(None, (f"no linear probe: {lines[0] if lines else type(error).__name__}",))
    return Linear(probe.value, probe.warnings)
