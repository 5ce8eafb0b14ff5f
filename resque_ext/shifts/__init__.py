"""Distribution shifts on batches of images: seeded, batched, on the images' device.

Every shift is `shift(images, level, generator=None)` and returns a new tensor.

    images      [N, C, H, W], values in [0, 1], float32, float64, float16 or bfloat16, any memory
                format. Never modified; detached from the graph.
    level       a number; each docstring and `SHIFTS` give its unit and valid range.
    generator   a torch.Generator on the images' device; None is torch's global one of that device.
    returns     same shape, dtype, device and memory format, values in [0, 1].

- Level 0 gives the images back exactly (a copy) and draws nothing from the generator.
- Half types are computed in float32 and rounded once, at the end; float64 in float64.
- Results on the CPU do not depend on the number of threads, draws not on the memory format.
- A random result is a function of the generator's state, the device type, the compute dtype and the
  batch's shape: a batch in two halves gets other noise of the same law. Shifts without draws treat
  every image alone, whatever the batch.
- Values are checked on the CPU only: NaN or a value outside [0, 1] is a ValueError. Elsewhere that
  would stop the stream: NaN goes through to the result (unless impulse or salt and pepper replaces
  it) and other values are clamped.

`make` gives a shift with a seed, which also takes batches that are mappings and normalized images.
The fifteen corruptions of ImageNet-C go by their usual names and a severity from 1 to 5:
`make("fog", severity=3)`. With `published=True` noises are those of the published code.

TypeError for what is no dense floating tensor, no number or no option; ValueError for a wrong rank,
level, value, device or name. Messages name the argument, what was expected and what was found.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from resque_ext.shifts import _corruptions, _published  # noqa: F401 (they fill tables)
from resque_ext.shifts._basic import (
    brightness,
    contrast,
    frost,
    gaussian,
    gaussian_blur,
    impulse,
    none,
    salt_and_pepper,
    shot,
)
from resque_ext.shifts._registry import CORRUPTIONS, PUBLISHED, SEVERITY, SHIFTS, ShiftKind, find
from resque_ext.shifts._shift import Shift, shifted_before

__all__ = [
    "CORRUPTIONS",
    "PUBLISHED",
    "SEVERITY",
    "SHIFTS",
    "Shift",
    "ShiftKind",
    "apply",
    "brightness",
    "contrast",
    "frost",
    "gaussian",
    "gaussian_blur",
    "impulse",
    "make",
    "names",
    "none",
    "salt_and_pepper",
    "shifted_before",
    "shot",
]


def names() -> list[str]:
    """The names of the shifts that have a level; `CORRUPTIONS` has those with a severity."""
    return list(SHIFTS)


def apply(
    images: Tensor,
    name: str,
    level: float | None = None,
    generator: torch.Generator | None = None,
    *,
    severity: int | None = None,
    published: bool = False,
    **options: Any,
) -> Tensor:
    """Shift `images` [N, C, H, W] by the shift called `name`; see the module and `make`."""
    kind, level = find(name, level, severity, published, options)
    return kind.function(images, level, generator, **options)


def make(
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
) -> Shift:
    """A `Shift`: the named shift at a level, with random sequences of its own.

    Args:
        name: one of `names()`, or of `CORRUPTIONS` with a severity.
        level: in the unit `SHIFTS[name].unit`.
        seed: an integer from 0 to 2^63 - 1.
        severity: instead of a level, 1 to 5: the corruption of ImageNet-C of that name. The option
            `variant` says whose parameters are taken: "imagenet", "cifar" (of CIFAR-10-C), or
            "auto", those of CIFAR-10-C up to a shorter side of 64 pixels.
        published: take the noise of the published code, one of `PUBLISHED`: images of 8 bits,
            additive noise that wraps around, frost as 0.98 x + 0.2 texture (at level 0.2).
        mean, std: of a loader that normalizes images in [0, 1], a number a channel: the images are
            brought back to [0, 1], shifted, and normalized again.
        key: where a batch that is a mapping holds the images; by default the only one of
            "pixel_values", "images", "image", "inputs", "input" and "x", or else the only floating
            [N, C, H, W].
        options: further arguments of the shift, as `texture` for "frost".

    Raises:
        TypeError, ValueError: as the module says.
    """
    return Shift(
        name,
        level,
        seed,
        severity=severity,
        published=published,
        mean=mean,
        std=std,
        key=key,
        **options,
    )
