"""Transforms of inputs, and what a fingerprint says of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from resque_ext.data.checks import describe
from resque_ext.model.loading import make_transform


class Transforms:
    """Functions of a batch of inputs, in turn.

    Args:
        given: functions, or texts as :func:`resque_ext.model.loading.make_transform` takes.

    Raises:
        TypeError, ValueError: neither.
    """

    def __init__(self, given: Sequence[Any] = ()) -> None:
        if isinstance(given, str) or not isinstance(given, Sequence):
            raise TypeError(f"transforms: expected a list, found {given!r}")
        for one in given:
            if not isinstance(one, str) and not callable(one):
                raise TypeError(f"transforms: expected names or functions, found {describe(one)}")
        self._calls = [make_transform(one) if isinstance(one, str) else one for one in given]
        self._texts = list(given) if all(isinstance(one, str) for one in given) else None

    def __call__(self, x: Tensor) -> Tensor:
        for call in self._calls:
            x = call(x)
        return x

    def inputs(self, x: Tensor) -> Tensor:
        """Inputs as a model takes them: images of bytes become floats in [0, 1]."""
        return self(x.float() / 255 if x.dtype == torch.uint8 else x)

    def one(self, image: Tensor) -> Tensor:
        """Of a single image."""
        return self.inputs(image.unsqueeze(0))[0]

    def named(self, fingerprint: dict[str, Any] | None) -> dict[str, Any] | None:
        """A fingerprint with these transforms; None for functions, which nothing tells apart."""
        if fingerprint is None or self._texts is None:
            return None
        return fingerprint | {"transforms": self._texts}
