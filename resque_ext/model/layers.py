"""The layers of a model that an index reads: which they are, and their outputs as features.

Names are those of the model's modules; what a module gives when it runs again within one forward
pass is a layer of its own, "NAME#2" and so on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from resque_ext.data.checks import FLOATS, describe
from resque_ext.errors import ArgumentError, ArgumentTypeError
from resque_ext.model.hooks import LayerError, find_layer
from resque_ext.model.inputs import check_observable
from resque_ext.model.layout import CHANNEL_NORMS, LAYER_NORMS, Layouts, width_of
from resque_ext.model.order import Order, remedy
from resque_ext.model.outputs import at_path, entries, main_tensor
from resque_ext.model.pooling import Features
from resque_ext.model.streams import TokenMasks

Predicate = Callable[[str, nn.Module], Any]
Consumer = Callable[[str, Features], None]
OUTPUT = "output"  # the model's own
_AGAIN = re.compile(r"(.+)#([1-9]\d*)")


@dataclass(frozen=True)
class Place:
    """Something that can be read in a forward pass.

    Attributes:
        name: as it was asked for.
        module: whose output it is, or whose input.
        is_input: it is what the module reads.
        path: in the module's output, to the tensor; None: the one that is clear.
        run: which of the module's runs in a forward pass, from 1 on; None: not said.
    """

    name: str
    module: nn.Module
    is_input: bool = False
    path: str | None = None
    run: int | None = None

    @classmethod
    def of(cls, model: nn.Module, name: Any, argument: str) -> Place:
        """What "NAME", "NAME:input", "NAME:PATH", "output" or "output:PATH" names; "NAME#2" and so
        on is what the module gives when it runs again.

        Raises:
            TypeError: not a string.
            LayerError: no such module.
        """
        if not isinstance(name, str):
            find_layer(model, name, argument)
        base, colon, path = name.partition(":")
        modules = dict(model.named_modules())
        run = None
        if base not in modules and (again := _AGAIN.fullmatch(base)):
            base, run = again[1], int(again[2])
        own = base == OUTPUT and OUTPUT not in modules
        # The model itself, where it is one linear layer, has no name.
        itself = own or name == ":input"
        module = model if itself else find_layer(model, base if colon or run else name, argument)
        path = path or None
        return cls(name, module, path == "input", None if path == "input" else path, run)

    def attach(self, consume: Callable[[Any], None]) -> list[Any]:
        """Registers a hook that hands on what there is to read; the caller removes it."""

        def read(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            consume(args[0] if args else kwargs.get("input", next(iter(kwargs.values()), None)))

        def gave(_module: nn.Module, _args: Any, output: Any) -> None:
            consume(output)

        check_observable(self.module)
        if self.is_input:
            return [self.module.register_forward_pre_hook(read, with_kwargs=True)]
        return [self.module.register_forward_hook(gave)]

    def tensor(self, found: Any, argument: str) -> tuple[Tensor, Tensor | None]:
        """The tensor in what the hook handed on, and the mask that it brings: of a packed sequence,
        which is padded; else None.

        Raises:
            LayerError: nothing at the path.
            TypeError: no tensor, or several.
        """
        x = found if self.path is None else at_path(found, self.path, self.name, argument)
        tensor, mask = clear_tensor(x, getattr(self.module, "batch_first", True))
        if tensor is None:
            paths = [f"'{self.name}:{key}'" for key, v in entries(x).items() if _has_tensor(v)]
            hint = f" ({argument}= takes {', '.join(paths)})" if paths else ""
            raise ArgumentTypeError(
                argument, f"{self.name!r} to give a tensor", f"{describe(x)}{hint}"
            )
        return tensor, mask


def clear_tensor(found: Any, batch_first: bool) -> tuple[Tensor | None, Tensor | None]:
    """`main_tensor`, and of a packed sequence, which is padded, its mask [N, T]."""
    first = found[0] if type(found) in (tuple, list) and found else found
    if not isinstance(first, PackedSequence):
        return main_tensor(found), None
    x, lengths = pad_packed_sequence(first, batch_first=batch_first)
    lengths = lengths.to(x.device)
    places = torch.arange(x.shape[1 if batch_first else 0], device=x.device)
    return x, places < lengths[:, None]


def _has_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or any(map(_has_tensor, entries(value).values()))


@dataclass(frozen=True)
class ChosenLayers:
    """What to read.

    Attributes:
        places: what was chosen, by name.
        named: they were asked for by name, so that one which cannot be read is an error.
        rule: "auto", the classifier is dropped; "published", those that turn out to be no wider
            than there are classes are; None, none is.
    """

    places: dict[str, Place]
    named: bool = False
    rule: str | None = None


def choose_layers(model: nn.Module, layers: str | Iterable[str] | Predicate) -> ChosenLayers:
    """What `layers` means of `model`.

    Args:
        layers: "auto", every module with weights that makes features; "published", every module
            with `out_features` or `out_channels`; names as `layer` of `score` takes them; or a
            function of (name, module) that says which.

    Raises:
        TypeError: something else.
        ValueError: no module at all.
        KeyError: no module of that name.
    """
    modules = {name: m for name, m in model.named_modules() if name}
    if isinstance(layers, str) and layers in ("auto", "published"):
        rule = makes_features if layers == "auto" else lambda m: width_of(m) is not None
        chosen = {name: m for name, m in modules.items() if rule(m)}
        if not chosen:
            what = "weights" if layers == "auto" else "out_features or out_channels"
            raise ArgumentError(
                "layers",
                f"a model with modules that have {what}",
                f"none in {type(model).__name__}",
                fix="layers= takes names or a function",
            )
        return ChosenLayers(_places(chosen), rule=layers)
    if callable(layers):
        chosen = {name: m for name, m in modules.items() if layers(name, m)}
        if not chosen:
            raise ArgumentError(
                "layers",
                f"a function that says yes to a module of {type(model).__name__}",
                f"that it says no to all {len(modules)}",
            )
        return ChosenLayers(_places(chosen))
    if isinstance(layers, (str, bytes)) or not isinstance(layers, Iterable):
        raise ArgumentTypeError(
            "layers",
            "'auto', 'published', names of modules or a function of (name, module)",
            f"{layers!r}",
        )
    names = list(layers)
    if not names:
        raise ArgumentError("layers", "at least one name", "none")
    return ChosenLayers({n: Place.of(model, n, "layers") for n in names}, named=True)


def _places(modules: dict[str, nn.Module]) -> dict[str, Place]:
    return {name: Place(name, module) for name, module in modules.items()}


def makes_features(module: nn.Module) -> bool:
    """A layer with weights that gives other features than it reads: linear, convolution, embedding,
    recurrence, attention, or any other with a matrix of its own. Norms and scalings are none."""
    # The projection within nn.MultiheadAttention is a product of that, and never runs itself.
    if isinstance(module, (*CHANNEL_NORMS, *LAYER_NORMS, NonDynamicallyQuantizableLinear)):
        return False
    if isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
        return True
    # What holds a layer's own weights: a parametrization, or those of a quantized one.
    if any(n not in ("parametrizations", "_packed_params") for n, _ in module.named_children()):
        return False
    matrix = any(p.dim() > 1 for p in module.parameters())
    return matrix or width_of(module) is not None


class LayersReader:
    """Hands the output of every chosen layer to a consumer, the moment it is there.

    Attributes:
        names: the layers read so far, in the order in which they first ran.
        skipped: layers that were not read, each with the reason.
    """

    def __init__(self, chosen: ChosenLayers, layouts: Layouts, order: Order) -> None:
        self.chosen, self._layouts, self._order = chosen, layouts, order
        self._consume: Consumer | None = None
        self._rows, self._masks = 0, TokenMasks()
        self._runs: dict[str, int] = {}
        self.names: dict[str, Place] = {}
        self.skipped: dict[str, str] = {}

    def attach(self) -> list[Any]:
        """Registers the hooks; the caller removes them."""
        return [
            h for place in self.chosen.places.values() for h in place.attach(self._taker(place))
        ]

    def run(
        self, forward: Callable[[], Any], rows: int, masks: TokenMasks, consume: Consumer
    ) -> Any:
        """One forward pass over `rows` samples; `consume` gets every layer's features, once.

        Raises:
            KeyError: a layer that was asked for by name did not run, or cannot be read.
        """
        self._consume, self._rows, self._masks = consume, rows, masks
        self._runs = dict.fromkeys(self.chosen.places, 0)
        try:
            output = forward()
        finally:
            self._consume = None
        for name, count in self._runs.items():
            asked = self.chosen.places[name].run or 1
            if count < asked and name not in self.skipped:
                often = f" {asked} times" if count else ""
                self._skip(name, f"it did not run{often} in the forward pass")
        return output

    def _taker(self, place: Place) -> Callable[[Any], None]:
        name = place.name

        def take(found: Any) -> None:
            if self._consume is None or name in self.skipped:
                return
            self._runs[name] += 1
            layer, runs = name, self._runs[name]
            if place.run is not None and place.run != runs:
                return
            if place.run is None and runs > 1:
                layer = f"{name}#{runs}"
            features = self._features(place, found, runs)
            if features is not None:
                self.names.setdefault(layer, place)
                self._consume(layer, features)

        return take

    def _features(self, place: Place, found: Any, run: int) -> Features | None:
        name = place.name
        x: Tensor | None
        if self.chosen.named:
            x, own = place.tensor(found, "layers")
        else:
            x, own = clear_tensor(found, getattr(place.module, "batch_first", True))
        if x is None or x.dtype not in FLOATS:
            what = describe(found) if x is None else describe(x)
            return self._skip(name, f"its output is no tensor of floats ({what})")
        x = self._order.in_front(x, place, self._rows)
        if x.dim() not in (2, 3, 4, 5) or x.shape[0] != self._rows:
            hint = f"; {remedy(name)}" if self.chosen.named else ""
            return self._skip(
                name,
                f"its output does not have one row a sample: {self._rows} samples, "
                f"{describe(x)}{hint}",
            )
        try:
            return self._layouts.features(
                x,
                name,
                place.module,
                self._masks.of(name, place.module, run) if own is None else own,
                "layers",
                place.is_input,
            )
        except LayerError as error:
            if self.chosen.named:
                raise
            return self._skip(name, str(error))

    def leave_out(self, names: Mapping[str, str]) -> set[str]:
        """Skips those of these layers that were read, each with its reason; their names, every run
        of them."""
        for name in names.keys() & self.chosen.places.keys():
            self._skip(name, names[name])
        gone = {layer for layer, place in self.names.items() if place.name in self.skipped}
        for layer in gone:
            del self.names[layer]
        return gone

    def _skip(self, name: str, reason: str) -> None:
        if self.chosen.named:
            raise LayerError(f"layers: expected {name!r} to be read, but {reason}")
        self.skipped[name] = reason

    def drop(self, heads: set[str], num_classes: int | None) -> set[str]:
        """The layers that count, now that it is known which modules are heads and how many classes
        there are; those that do not are noted in `skipped`.

        Raises:
            ValueError: none is left.
        """
        kept = set(self.names)
        for layer, place in self.names.items():
            width = width_of(place.module) or 0
            if self.chosen.rule == "auto" and place.name in heads:
                self.skipped[layer] = "it is the classifier"
            elif self.chosen.rule == "published" and num_classes and width <= num_classes:
                self.skipped[layer] = f"its width {width} is not above the {num_classes} classes"
            else:
                continue
            kept.discard(layer)
        if not kept:
            wanted = "wider than the number of classes" if self.chosen.rule == "published" else ""
            wanted = f"{wanted} ({num_classes})" if wanted else "beside the classifier"
            raise ArgumentError(
                "layers",
                f"a layer {wanted} to run",
                "none",
                fix="layers= takes names or a function of (name, module)",
            )
        return kept
