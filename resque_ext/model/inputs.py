"""What a model is given: numbers of another dtype, and models whose layers cannot be observed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from resque_ext.errors import ArgumentTypeError

_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)  # these are given indices, not values
_NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm)  # these take lower precision, too
# What fails on anything but floats of its weights' dtype.
_STRICT = (nn.Linear, _ConvNd, nn.RNNBase, *_NORMS)
_SCALES = {torch.uint8: 255, torch.uint16: 65535}  # images in [0, 1]


@contextlib.contextmanager
def as_floats(model: nn.Module, inputs: Any) -> Iterator[None]:
    """While it lasts, a layer with floating weights that is given other numbers gets its dtype.

    Such a layer would fail; a model that makes floats of its inputs itself does so before, and is
    left alone. Bytes, as of images, and uint16 become [0, 1]; other integers, where the model has
    no embedding that they could be indices of, and floats of another precision keep their values.
    """
    kinds = set(_kinds(inputs))
    made_of = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    floats = {k for k in kinds if k.is_floating_point}
    scaled = kinds & _SCALES.keys()
    indices = kinds - floats - scaled and any(isinstance(m, _EMBEDDINGS) for m in model.modules())
    if made_of is None or not (scaled or floats - {made_of} or (kinds - floats and not indices)):
        yield
        return
    handles = []
    try:
        for module in model.modules():
            weight = getattr(module, "weight", None)
            weighted = isinstance(weight, Tensor) and weight.is_floating_point()
            if isinstance(module, _STRICT) or (scaled and weighted):
                handles.append(module.register_forward_pre_hook(_convert))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _kinds(inputs: Any) -> Iterator[torch.dtype]:
    """The dtypes of numbers among the inputs; of a mapping not of what may be masks and labels."""
    if isinstance(inputs, Tensor):
        if inputs.dim() > 1 and inputs.dtype != torch.bool and not inputs.is_complex():
            yield inputs.dtype
    elif isinstance(inputs, Mapping):
        for x in inputs.values():
            if isinstance(x, Tensor) and (x.dim() > 2 or x.is_floating_point()):
                yield from _kinds(x)
    elif isinstance(inputs, (list, tuple)):
        for x in inputs:
            yield from _kinds(x)


def _convert(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    x = args[0] if args else None
    if not isinstance(x, Tensor) or isinstance(module, _EMBEDDINGS):
        return None
    weight = next((p for p in module.parameters(recurse=False) if p.is_floating_point()), None)
    weight = module.weight if weight is None and hasattr(module, "weight") else weight
    if weight is None or x.dtype == weight.dtype:
        return None
    if x.dtype in _SCALES:
        return x.to(weight.dtype) / _SCALES[x.dtype], *args[1:]
    if not isinstance(module, _STRICT):
        return None
    lower = x.is_floating_point() and x.dtype != torch.float64
    if lower and (isinstance(module, _NORMS) or torch.is_autocast_enabled(x.device.type)):
        return None
    return x.to(weight.dtype), *args[1:]


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
