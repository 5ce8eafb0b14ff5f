"""What a shift is, what is checked of its arguments, and the tables that it is found in."""

from __future__ import annotations

import difflib
import functools
import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resque_ext.errors import ArgumentError, ArgumentTypeError, InputError


@dataclass(frozen=True)
class ShiftKind:
    """What the registry knows of a shift."""

    function: Callable[..., Tensor]
    unit: str  # what the level means
    range: tuple[float, float]  # valid levels, both ends included
    levels: tuple[float, ...]  # for demonstrations
    options: tuple[str, ...]  # further keyword arguments of the function


SHIFTS: dict[str, ShiftKind] = {}
"""Shifts with a level, by name."""
CORRUPTIONS: dict[str, ShiftKind] = {}
"""The fifteen corruptions of ImageNet-C, by name; their level is a severity."""
PUBLISHED: dict[str, ShiftKind] = {}
"""The noises of the published code, by name."""
SEVERITY = "severity of ImageNet-C"
"""The unit of the level of those in `CORRUPTIONS`."""
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
REMEDY = "; normalized images: shifts.make(name, level, mean=..., std=...)"


def register(
    table: dict[str, ShiftKind],
    unit: str,
    range: tuple[float, float],
    levels: tuple[float, ...],
    options: tuple[str, ...] = (),
) -> Callable[[Callable[..., None]], Callable[..., Tensor]]:
    """Register a shift. Its body changes the images in place: a copy in the compute dtype, never
    empty; the level is valid and not 0. Bodies keep products and sums apart: each alone is rounded
    exactly, so where a vector loop ends, which depends on the threads, cannot show. `lerp` and
    `add(alpha=)` promise no such thing, as they may or may not fuse the two."""

    def add(body: Callable[..., None]) -> Callable[..., Tensor]:
        name = body.__name__

        @functools.wraps(body)
        def function(
            images: Tensor, level: float, generator: torch.Generator | None = None, **given: Any
        ) -> Tensor:
            check_options(name, kind, given)
            level = check_level(name, kind, level)
            check_tensor("images", images)
            expect(images.dim() == 4, "images", "shape [N, C, H, W]", list(images.shape))
            check_values("images", images, REMEDY)
            if generator is not None:
                check_type("generator", generator, torch.Generator, "a torch.Generator")
                check_device("generator", generator, images.device)
            compute = torch.float64 if images.dtype == torch.float64 else torch.float32
            work = images.detach().to(compute, copy=True)
            if given.get("texture") is not None:
                given["texture"] = check_texture(given["texture"], work)
            if level and work.numel():
                body(work, level, generator, **given)
                work.clamp_(0, 1)
            return work.to(images.dtype)

        table[name] = kind = ShiftKind(function, unit, range, levels, options)
        return function

    return add


def find(
    name: Any, level: Any, severity: Any, published: Any, options: Mapping[str, Any]
) -> tuple[ShiftKind, Any]:
    """The shift that these arguments of `make` and `apply` ask for, and its level."""
    table, how = SHIFTS, ""
    if severity is not None:
        expect(level is None, "severity", "no level beside it", level, ArgumentTypeError)
        expect(
            not published, "severity", "no published=True beside it", published, ArgumentTypeError
        )
        table, how, level = CORRUPTIONS, " with severity=", severity
    elif published:
        table, how = PUBLISHED, " with published=True"
    found = describe(name)
    if table is SHIFTS and isinstance(name, str) and name in CORRUPTIONS:
        found += " (which takes severity= instead of a level)"
    known = isinstance(name, str) and name in table
    near = difflib.get_close_matches(str(name), table, n=1)
    if near and not known:
        found += f" (did you mean {near[0]!r}?)"
    expect(known, "name", f"one of {', '.join(table)}{how}", found)
    check_options(name, table[name], options)
    return table[name], check_level(name, table[name], level)


def describe(value: Any) -> str:
    return repr(value) if isinstance(value, (str, int, float)) else type(value).__name__


def expect(
    holds: bool, argument: str, expected: str, found: Any, error: type[InputError] = ArgumentError
) -> None:
    if not holds:
        raise error(argument, expected, found)


def check_type(argument: str, value: Any, kind: Any, expected: str) -> None:
    holds = isinstance(value, kind) and not isinstance(value, bool)
    expect(holds, argument, expected, describe(value), ArgumentTypeError)


def check_options(name: str, kind: ShiftKind, options: Mapping[str, Any]) -> None:
    for option in options:
        expected = f"only options of {name} ({', '.join(kind.options) or 'it has none'})"
        expect(option in kind.options, "options", expected, repr(option), ArgumentTypeError)


def check_level(name: str, kind: ShiftKind, level: Any) -> float:
    argument, number, law = "level", "a number", numbers.Real
    if kind.unit == SEVERITY:
        argument, number, law = "severity", "an integer", numbers.Integral
    low, high = kind.range
    expected = f"{number} in [{low}, {high}] for {name}" if high < math.inf else "a finite number"
    if not isinstance(level, law) or isinstance(level, bool):
        raise ArgumentTypeError(argument, number, describe(level), fix=f"{expected}")
    expect(math.isfinite(level) and low <= level <= high, argument, expected, level)
    return int(level) if kind.unit == SEVERITY else float(level)


def check_tensor(argument: str, tensor: Any) -> None:
    check_type(argument, tensor, Tensor, "a torch.Tensor")
    kind = "meta" if tensor.is_meta else "nested" if tensor.is_nested else tensor.layout
    expect(
        kind == torch.strided,
        argument,
        "a dense tensor with data",
        f"a {kind} one",
        ArgumentTypeError,
    )
    expected = "dtype float32, float64, float16 or bfloat16 (integers: divide by 255)"
    expect(tensor.dtype in _DTYPES, argument, expected, tensor.dtype, ArgumentTypeError)


def check_values(argument: str, tensor: Tensor, remedy: str = "", slack: float = 0.0) -> None:
    if tensor.device.type == "cpu":
        wrong = ~((tensor >= -slack) & (tensor <= 1 + slack))
        if wrong.any():
            first = wrong.nonzero()[0].tolist()
            found = f"{int(wrong.sum())} other, the first {tensor[tuple(first)].item()} at {first}"
            expect(False, argument, "values in [0, 1]", found + remedy)


def check_device(argument: str, found: Any, device: torch.device) -> None:
    expected = f"one on the images' device, {device}"
    expect(found.device == device, argument, expected, f"one on {found.device}")


def check_texture(texture: Any, images: Tensor) -> Tensor:
    check_tensor("texture", texture)
    _, c, h, w = images.shape
    fits = tuple(texture.shape) in ((h, w), (c, h, w))
    expect(fits, "texture", f"shape [{h}, {w}] or [{c}, {h}, {w}]", list(texture.shape))
    check_device("texture", texture, images.device)
    check_values("texture", texture)
    return texture.detach().to(images.dtype)
