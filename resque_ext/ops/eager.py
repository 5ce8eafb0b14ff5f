"""What torch.compile leaves alone: the graph breaks there, and plain Python runs."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException

from resque_ext.errors import ArgumentTypeError

T = TypeVar("T", bound=Callable[..., Any])


def eager(function: T) -> T:
    """Runs a function, or every public method of a class, as plain Python inside torch.compile.

    The compiler would round NumPy code differently, and would not see what a kernel writes.
    torch.compiler.disable alone would import torch's compiler, which takes seconds; nothing can be
    compiled before somebody else has imported it.
    """
    if inspect.isclass(function):
        for name, member in list(vars(function).items()):
            if inspect.isfunction(member) and (name == "__init__" or not name.startswith("_")):
                setattr(function, name, eager(member))
        return function
    disabled: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            if "torch._dynamo" not in sys.modules:
                return function(*args, **kwargs)
            if not disabled:
                disabled.append(torch.compiler.disable(function))
            return disabled[0](*args, **kwargs)
        except DataDependentOutputException as error:
            raise ArgumentTypeError(
                function.__name__,
                "tensors with their values in memory",
                f"fake ones, which have none for {error.func}",
            ) from None

    call._torchdynamo_disable = True  # type: ignore[attr-defined]  # not to be inlined
    return call  # type: ignore[return-value]
