"""What a model is given: bytes as images, and models whose layers cannot be observed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from resque_ext.errors import ArgumentTypeError


@contextlib.contextmanager
def bytes_as_images(model: nn.Module, inputs: Any) -> Iterator[None]:
    """While it lasts, a layer with floating weights that is given uint8 gets floats in [0, 1].

    Such a layer would fail; a model that makes floats of its inputs itself does so before, and is
    left alone. So it is for tensors of bytes, and for images among the values of a mapping.
    """
    if not _has_bytes(inputs):
        yield
        return
    handles = []
    try:
        for module in model.modules():
            weight = getattr(module, "weight", None)
            if isinstance(weight, Tensor) and weight.is_floating_point():
                handles.append(module.register_forward_pre_hook(_as_floats))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _has_bytes(inputs: Any) -> bool:
    if isinstance(inputs, Tensor):
        return inputs.dtype == torch.uint8 and inputs.dim() > 1
    if isinstance(inputs, Mapping):
        return any(isinstance(x, Tensor) and x.dim() > 2 and _has_bytes(x) for x in inputs.values())
    return False


def _as_floats(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    # Embeddings are given indices, not values.
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return None
    if not args or not isinstance(args[0], Tensor) or args[0].dtype != torch.uint8:
        return None
    return args[0].to(module.weight.dtype) / 255, *args[1:]


def check_observable(model: nn.Module) -> None:
    """Raises TypeError for a model whose layers run as one program, in which none can be read."""
    if isinstance(model, torch.jit.ScriptModule):
        kind = "a TorchScript model"
    # Of torch.export, which puts an `eval` of its own in place that raises.
    elif isinstance(model, torch.fx.GraphModule) and "eval" in vars(model):
        kind = "an exported model"
    else:
        return
    raise ArgumentTypeError(
        "model",
        "a torch.nn.Module whose layers can be observed",
        f"{kind} ({type(model).__name__}), which runs as one program: "
        "pass the model that it was made of, or the embeddings that it "
        "gives to the functions that take features",
    )
