"""How batches and layers are read: the arguments of `score` that say so, checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from resque_ext.data.checks import check_choice, describe
from resque_ext.errors import ArgumentTypeError
from resque_ext.model.batch import MASK, MaskOf, token_mask
from resque_ext.model.layers import ChosenLayers, choose_layers
from resque_ext.model.layout import CHANNELS
from resque_ext.model.pooling import Pooling, check_pooling
from resque_ext.model.streams import DECODER, TokenMasks

LABELS = ("given", "predicted")


@dataclass(frozen=True)
class Reads:
    """See :func:`resque_ext.score` for each.

    Raises:
        TypeError, ValueError: naming the argument.
    """

    layer: str | None = None
    layers: str | Iterable[str] | Callable[[str, nn.Module], Any] = "auto"
    pooling: Pooling = "auto"
    mask: str | MaskOf | None = MASK
    channels: str | None = None
    labels: str = "given"
    batch_adapter: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        check_pooling(self.pooling)
        check_choice(self.labels, LABELS, "labels")
        if self.channels is not None:
            check_choice(self.channels, CHANNELS, "channels")
        if self.mask is not None and not isinstance(self.mask, str) and not callable(self.mask):
            raise ArgumentTypeError(
                "mask",
                "the key of a mapping's mask, a function of the inputs or None",
                describe(self.mask),
            )
        if self.batch_adapter is not None and not callable(self.batch_adapter):
            raise ArgumentTypeError(
                "batch_adapter", "a function of a batch", describe(self.batch_adapter)
            )

    def chosen(self, model: nn.Module) -> ChosenLayers:
        """What `layers` means of the model."""
        return choose_layers(model, self.layers)

    def token_masks(self, inputs: Any, name: str) -> TokenMasks:
        """Which tokens of the inputs are real, by stream; `name` is of the inputs' side."""
        own = token_mask(inputs, self.mask, name)
        if not isinstance(self.mask, str):
            return TokenMasks(own, everywhere=True)
        decoder = token_mask(inputs, f"{DECODER}_{self.mask}", name)
        return TokenMasks.of_batch(inputs, own, decoder)

    def plain(self) -> dict[str, Any]:
        """What of it changes the last bits of an embedding, for a cache's key and a store."""
        own = {"pooling": self.pooling, "mask": self.mask, "channels": self.channels}
        return {k: v if v is None or isinstance(v, str) else describe(v) for k, v in own.items()}
