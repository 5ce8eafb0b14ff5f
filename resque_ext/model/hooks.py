"""Running a model to read it: unwrapped, in eval mode, its inputs on the device, no hook left."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from resque_ext.errors import ArgumentTypeError
from resque_ext.model.inputs import as_floats, check_observable


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside DataParallel, DistributedDataParallel and torch.compile's wrapper."""
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod
        else:
            return model


@contextlib.contextmanager
def evaluating(model: nn.Module, versions: bool = False) -> Iterator[None]:
    """Eval mode, no gradients, compiled code set aside (its graphs would run past hooks).

    Every module's own train or eval state comes back on the way out, also when something fails.

    Args:
        model: what is to be run.
        versions: tensors count their in-place changes, which they do not in inference mode.
    """
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with (
            torch.inference_mode(not versions),
            torch.no_grad(),
            _eager(),
            _layer_by_layer(model),
        ):
            yield
    finally:
        for module, mode in training.items():
            module.training = mode


def _eager() -> contextlib.AbstractContextManager[Any]:
    """Compiled code set aside. What was never loaded has compiled nothing, and to ask would load
    it: three seconds."""
    if "torch._dynamo" not in sys.modules:
        return contextlib.nullcontext()
    return torch.compiler.set_stance("force_eager")


@contextlib.contextmanager
def _layer_by_layer(model: nn.Module) -> Iterator[None]:
    """torch's transformer encoder hands padded tensors to its layers: for its fused path, which it
    leaves to the layers to take or, where they have hooks, not to, it would make them nested."""
    before = torch.backends.mha.get_fastpath_enabled()
    if not before or not any(isinstance(m, nn.TransformerEncoder) for m in model.modules()):
        yield
        return
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextlib.contextmanager
def no_hooks_left(handles: list[torch.utils.hooks.RemovableHandle]) -> Iterator[None]:
    """Removes the hooks on the way out, also when something fails."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def find_layer(model: nn.Module, name: str, argument: str = "layer") -> nn.Module:
    """The module called `name`, which came as `argument`.

    Raises:
        TypeError: not a string.
        KeyError: no such module; the message has the nearest names.
    """
    if not isinstance(name, str):
        raise ArgumentTypeError(argument, "a module's name", f"{name!r}")
    check_observable(model)
    modules = dict(model.named_modules())
    if not name or name not in modules:
        near = difflib.get_close_matches(name, modules, n=3) or [n for n in modules if n][-3:]
        raise LayerError(
            f"{argument}: expected the name of a module of {type(model).__name__}, found {name!r} "
            f"(nearest: {', '.join(near)})"
        )
    check_observable(modules[name])
    return modules[name]


class LayerError(KeyError):
    """A layer that is not there, or that did not run as it has to; a readable KeyError."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


def to_device(inputs: Any, device: torch.device) -> Any:
    """Tensors and NumPy arrays inside lists, tuples and mappings, moved to `device`."""
    if isinstance(inputs, Tensor):
        return inputs.to(device, non_blocking=True)
    if isinstance(inputs, Mapping):
        return {key: to_device(value, device) for key, value in inputs.items()}
    if isinstance(inputs, (list, tuple)):
        moved = [to_device(value, device) for value in inputs]
        return type(inputs)(*moved) if hasattr(inputs, "_fields") else type(inputs)(moved)
    if isinstance(inputs, (np.ndarray, np.generic)):
        if any(stride < 0 for stride in inputs.strides):
            inputs = inputs.copy()  # torch has no negative strides
        return torch.as_tensor(inputs).to(device, non_blocking=True)
    return inputs


def copied(inputs: Any) -> Any:
    """The same with every tensor copied, for a function that may change what it is given."""
    if isinstance(inputs, Tensor):
        return inputs.clone()
    if isinstance(inputs, Mapping):
        return {key: copied(value) for key, value in inputs.items()}
    if isinstance(inputs, (list, tuple)):
        copies = [copied(value) for value in inputs]
        return type(inputs)(*copies) if hasattr(inputs, "_fields") else type(inputs)(copies)
    return inputs


def forward(model: nn.Module, inputs: Any) -> Any:
    """model(inputs); a mapping as keyword arguments, unless the model takes one as a whole.

    Numbers of another dtype than its weights become floats.
    """
    with as_floats(model, inputs):
        if not isinstance(inputs, Mapping) or _takes_a_mapping(model, inputs):
            return model(inputs)
        return model(**inputs)


def _takes_a_mapping(model: nn.Module, inputs: Mapping[Any, Any]) -> bool:
    """Its one argument has another name than every entry, as that of an nn.Sequential has."""
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):
        return False
    try:
        signature.bind(**inputs)
    except TypeError:
        required = [
            p
            for p in signature.parameters.values()
            if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        return len(required) == 1 and required[0].name not in inputs
    return False
