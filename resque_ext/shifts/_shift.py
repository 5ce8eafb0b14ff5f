"""Shift: a shift to call with batch after batch."""

from __future__ import annotations

import copy
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from resque_ext.data.transforms import Normalize, as_normalize
from resque_ext.errors import ArgumentTypeError
from resque_ext.shifts._registry import (
    check_tensor,
    check_type,
    check_values,
    describe,
    expect,
    find,
)

IMAGE_KEYS = ("pixel_values", "images", "image", "inputs", "input", "x")


class Shift:
    """A shift to call with batch after batch; the same seed gives the same sequence of outputs.

    Arguments are those of `make`. Each device has its own sequence, begun with the seed at the
    first batch there. Copies, pickled ones too, go on from where the original stood; `reset()`
    starts every sequence again. Processes that should draw different noise need different seeds.
    """

    def __init__(
        self,
        name: str,
        level: float | None = None,
        seed: int = 0,
        *,
        severity: int | None = None,
        published: bool = False,
        mean: Any = None,
        std: Any = None,
        key: str | None = None,
        **options: Any,
    ) -> None:
        check_type("seed", seed, numbers.Integral, "an integer")
        expect(0 <= seed < 2**63, "seed", "an integer in [0, 2^63)", seed)
        _, self.level = find(name, level, severity, published, options)
        self.name, self.seed, self.options = name, int(seed), options
        self.severity = None if severity is None else int(severity)
        self.published = bool(published)
        one = (mean is None) != (std is None)
        expect(not one, "mean, std", "both or neither", "one of them", ArgumentTypeError)
        self.normalize = None if mean is None else as_normalize(mean, std)
        if key is not None:
            check_type("key", key, str, "a text")
        self.key = key
        self.reset()

    def reset(self) -> None:
        """Start the sequence again, on every device."""
        self._generators: dict[torch.device, torch.Generator] = {}  # made when first needed
        self._states: dict[torch.device, Tensor] = {}  # in a copy: what generators will start from

    def __call__(self, inputs: Any) -> Any:
        """Images [N, C, H, W], or a mapping that holds them, to the shifted batch.

        Of a mapping a dict with all its entries comes back. The module says the rest.
        """
        if isinstance(inputs, Mapping):
            key = self._key(inputs)
            return {**inputs, key: self(inputs[key])}
        check_tensor("images", inputs)
        device = inputs.device
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self.seed)
            if device in self._states:
                self._generators[device].set_state(self._states.pop(device))
        if self.normalize is None:
            return self._shifted(inputs, device)
        wide = inputs.detach().to(torch.promote_types(inputs.dtype, torch.float32))
        images = self.normalize.undo(wide)
        # A normalization rounds, and half types to a hundredth.
        slack = max(1e-3, 8 * torch.finfo(inputs.dtype).eps)
        check_values("images", images, " after mean and std were undone", slack)
        if self.level == 0 or self.name == "none":
            return inputs.detach().clone()
        found = self._shifted(images.clamp_(0, 1), device)
        return self.normalize(found).to(inputs.dtype)

    def normalized(self, mean: Any, std: Any) -> Shift:
        """The same shift, its sequence where it stands, for images that are normalized."""
        other = copy.copy(self)
        other.normalize = as_normalize(mean, std)
        return other

    def _shifted(self, images: Tensor, device: torch.device) -> Tensor:
        level = self.level if self.severity is None else None
        kind, level = find(self.name, level, self.severity, self.published, self.options)
        return kind.function(images, level, self._generators[device], **self.options)

    def _key(self, inputs: Mapping[Any, Any]) -> Any:
        keys = ", ".join(map(repr, inputs))
        if self.key is not None:
            expect(self.key in inputs, "key", f"one of the batch's, {keys}", repr(self.key))
            return self.key
        known = [key for key in IMAGE_KEYS if key in inputs] or [
            key
            for key, value in inputs.items()
            if isinstance(value, Tensor) and value.dim() == 4 and value.is_floating_point()
        ]
        expected = "the name of the batch's entry that holds the images, which nothing here tells"
        expect(len(known) == 1, "key", expected, f"none among {keys}")
        return known[0]

    def __getstate__(self) -> dict[str, Any]:
        # States instead of generators: a copy may be loaded where a device is missing.
        states = {device: g.get_state() for device, g in self._generators.items()}
        return {**self.__dict__, "_generators": {}, "_states": {**self._states, **states}}

    def __repr__(self) -> str:
        level = f"level={self.level}" if self.severity is None else f"severity={self.severity}"
        more = {"published": True} if self.published else {}
        if self.normalize is not None:
            more |= {"mean": list(self.normalize.mean), "std": list(self.normalize.std)}
        if self.key is not None:
            more["key"] = self.key
        shown = "".join(f", {name}={value!r}" for name, value in more.items())
        shown += "".join(f", {key}={describe(value)}" for key, value in self.options.items())
        return f"Shift({self.name!r}, {level}, seed={self.seed}{shown})"


def shifted_before(shift: Shift, transforms: Sequence[Callable[[Tensor], Tensor]]) -> Shift:
    """`shift`, which is defined on images in [0, 1], for inputs that `transforms` normalized."""
    if not transforms or not isinstance(transforms[-1], Normalize):
        return shift
    return shift.normalized(transforms[-1].mean, transforms[-1].std)
