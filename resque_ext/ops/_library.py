"""Registers the package's ops with torch from Python: schema, kernel, fake kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from resque_ext.ops.eager import eager

_library = torch.library.Library("resque_ext", "DEF")


class _Op:
    """A registered op; called directly, it runs its kernel without the dispatcher."""

    def __init__(self, name: str, kernel: Callable[..., Any]) -> None:
        self.name = name
        self._kernel = kernel

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._kernel(*args, **kwargs)

    def fake(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Registers the function that gives shapes and dtypes without data."""
        torch.library.register_fake(f"resque_ext::{self.name}", function, lib=_library)
        return function


def define(schema: str) -> Callable[[Callable[..., Any]], _Op]:
    """Registers the decorated function as the op `schema` names, for every device.

    The tag says that the layout of what comes in is the kernel's own business: torch.compile then
    hands inputs over with the strides that eager code would see.
    """

    def register(kernel: Callable[..., Any]) -> _Op:
        name = schema.partition("(")[0]
        _library.define(schema, tags=(torch.Tag.needs_fixed_stride_order,))
        kernel = eager(kernel)
        _library.impl(name, kernel, "CompositeExplicitAutograd")
        return _Op(name, kernel)

    return register
