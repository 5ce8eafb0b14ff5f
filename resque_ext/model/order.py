"""Which dimension of a layer's output holds the samples: the first, or behind a sequence's.

A module says it by its `batch_first`; torch's transformer layers say it of all that is within them.
Of any other module a tensor [N, N, D] does not tell, so that a batch of another size has to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from resque_ext.model.layers import Place

_LAYERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
_STACKS = (nn.TransformerEncoder, nn.TransformerDecoder)


class Order:
    """Brings the samples of a model's layers in front.

    Attributes:
        unsure: by the layer's name, the place of what the passes so far do not tell.
    """

    def __init__(self, root: nn.Module) -> None:
        self._second = {m: said for m in root.modules() if (said := _said(m)) is not None}
        # Within torch's own layers everything is as these read it.
        for layer in [m for m in self._second if isinstance(m, (*_LAYERS, *_STACKS))]:
            for module in layer.modules():
                self._second.setdefault(module, self._second[layer])
        self._sure: set[str] = set()
        self.unsure: dict[str, Place] = {}

    def in_front(self, x: Tensor, place: Place, rows: int) -> Tensor:
        """The tensor of a place with its samples, of which there are `rows`, in front."""
        if x.dim() != 3:
            return x
        part = "" if place.is_input or place.path is None else place.path.split(".")[0]
        if isinstance(place.module, nn.RNNBase) and part == "1":
            return x.transpose(0, 1)  # final states [layers, N, D], whatever batch_first is
        if isinstance(place.module, nn.MultiheadAttention) and part == "1":
            return x  # weights [N, T, S]
        second = self._second.get(place.module)
        if second:
            return x.transpose(0, 1) if x.shape[1] == rows else x
        if second is None and x.shape[0] == rows and place.name not in self._sure:
            if x.shape[1] == rows > 1:
                self.unsure.setdefault(place.name, place)
            elif x.shape[1] != rows:
                self._sure.add(place.name)
        return x

    def settle(self, forward: Callable[[Any], Any], inputs: Any, rows: int) -> dict[str, str]:
        """Runs the batch without its last sample where a layer is unsure: of those that do not then
        have a sample less in front, why they cannot be read."""
        places, self.unsure = self.unsure, {}
        unsure = {name: p for name, p in places.items() if name not in self._sure}
        if not unsure:
            return {}
        shapes: dict[str, list[torch.Size]] = {name: [] for name in unsure}  # of every run

        def note(name: str) -> Callable[[Any], None]:
            def taken(found: Any) -> None:
                shapes[name].append(unsure[name].tensor(found, "layer")[0].shape)

            return taken

        handles = [h for name, place in unsure.items() for h in place.attach(note(name))]
        try:
            forward(_without_last(inputs, rows))
        except Exception:  # a model for one size of batch: nothing is known then
            shapes = {name: [] for name in unsure}
        finally:
            for handle in handles:
                handle.remove()
        wrong = {}
        for name, place in unsure.items():
            run = place.run
            ran = shapes[name] if run is None else shapes[name][run - 1 : run]
            odd = [shape for shape in ran if shape[:1] != (rows - 1,)]
            if ran and not odd:
                self._sure.add(name)
            else:
                second = any(len(shape) == 3 and shape[1] == rows - 1 for shape in odd)
                what = "has its samples second" if second else "may have its samples second"
                wrong[name] = f"its output [{rows}, {rows}, D] {what}; {remedy(name)}"
        return wrong


def remedy(name: str) -> str:
    """What to do about a layer whose samples are not in front."""
    base = name.partition(":")[0].partition("#")[0]
    return (
        f"where it is [T, N, D], set batch_first = False on the module {base!r}; else name one "
        "whose output has one row a sample"
    )


def _said(module: nn.Module) -> bool | None:
    """Whether samples come second in what the module reads and gives; None: it does not say."""
    if isinstance(module, _STACKS) and len(module.layers):
        return _said(module.layers[0])
    found = getattr(module, "batch_first", None)
    if found is None and isinstance(module, _LAYERS):
        found = module.self_attn.batch_first
    return None if not isinstance(found, bool) else not found


def _without_last(inputs: Any, rows: int) -> Any:
    if isinstance(inputs, (Tensor, np.ndarray)):
        return inputs[:-1] if inputs.ndim and inputs.shape[0] == rows else inputs
    if isinstance(inputs, Mapping):
        return {key: _without_last(x, rows) for key, x in inputs.items()}
    if isinstance(inputs, (list, tuple)):
        parts = [_without_last(x, rows) for x in inputs]
        return type(inputs)(*parts) if hasattr(inputs, "_fields") else type(inputs)(parts)
    return inputs
