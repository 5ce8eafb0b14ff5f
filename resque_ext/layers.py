"""Every layer of a model that an index reads: which they are, and their outputs as features.

Names are those of the model's modules; what a module gives when it runs again within one forward
pass is a layer of its own, "NAME#2" and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from resque_ext._inputs import FLOATS, describe
from resque_ext.observe import LayerError, find_layer

Predicate = Callable[[str, nn.Module], Any]
Consumer = Callable[[str, Tensor], None]


@dataclass(frozen=True)
class ChosenLayers:
    """The modules to read, by name.

    Attributes:
        modules: what was chosen.
        named: they were asked for by name, so that one which cannot be read is an error.
        by_width: those that turn out to be no wider than there are classes are dropped.
    """

    modules: dict[str, nn.Module]
    named: bool
    by_width: bool


def choose_layers(model: nn.Module, layers: str | Iterable[str] | Predicate) -> ChosenLayers:
    """The modules of `model` that `layers` means.

    Args:
        layers: "auto", every module with `out_features` or `out_channels`; names of modules; or a
            function of (name, module) that says which.

    Raises:
        TypeError: something else.
        ValueError: no module at all.
        KeyError: no module of that name.
    """
    modules = {name: m for name, m in model.named_modules() if name}
    if isinstance(layers, str) and layers == "auto":
        chosen = {name: m for name, m in modules.items() if width_of(m) is not None}
        if not chosen:
            raise ValueError(
                "layers: expected a model with modules that have out_features or out_channels, "
                f"found none in {type(model).__name__} (layers= takes names or a function)"
            )
        return ChosenLayers(chosen, named=False, by_width=True)
    if callable(layers):
        chosen = {name: m for name, m in modules.items() if layers(name, m)}
        if not chosen:
            raise ValueError(
                f"layers: expected a function that says yes to a module of {type(model).__name__}, "
                f"found that it says no to all {len(modules)}"
            )
        return ChosenLayers(chosen, named=False, by_width=False)
    if isinstance(layers, (str, bytes)) or not isinstance(layers, Iterable):
        raise TypeError(
            "layers: expected 'auto', names of modules or a function of (name, module), found "
            f"{layers!r}"
        )
    names = list(layers)
    if not names:
        raise ValueError("layers: expected at least one name, found none")
    return ChosenLayers({n: find_layer(model, n, "layers") for n in names}, True, by_width=False)


def width_of(module: nn.Module) -> int | None:
    """`out_features` or `out_channels` of a module that has one."""
    for attribute in ("out_features", "out_channels"):
        width = getattr(module, attribute, None)
        if isinstance(width, int) and not isinstance(width, bool):
            return width
    return None


def as_features(output: Tensor, module: nn.Module) -> Tensor:
    """A layer's output as [N, D], [N, C, H, W] or [N, T, D], a view where there is one.

    A convolution has its channels second, whatever its number of dimensions; anything else has its
    features last.
    """
    channels_second = getattr(module, "out_channels", None) is not None
    if channels_second and output.dim() == 3:  # [N, C, L]
        return output.unsqueeze(3)
    if channels_second and output.dim() == 5:  # [N, C, D, H, W]
        return output.flatten(3)
    if not channels_second and output.dim() == 4 and width_of(module) == output.shape[3]:
        return output.flatten(1, 2)  # a linear layer over [N, H, W, C]
    return output


class LayersReader:
    """Hands the output of every chosen layer to a consumer, the moment it is there.

    Attributes:
        names: the layers read so far, in the order in which they first ran.
        skipped: layers that were not read, each with the reason.
    """

    def __init__(self, chosen: ChosenLayers) -> None:
        self._chosen = chosen
        self._consume: Consumer | None = None
        self._rows = 0
        self._runs: dict[str, int] = {}
        self.names: dict[str, nn.Module] = {}
        self.skipped: dict[str, str] = {}

    def attach(self) -> list[Any]:
        """Registers the hooks; the caller removes them."""
        return [
            module.register_forward_hook(self._hook(name, module))
            for name, module in self._chosen.modules.items()
        ]

    def run(self, forward: Callable[[], Any], rows: int, consume: Consumer) -> Any:
        """One forward pass over `rows` samples; `consume` gets every layer's features, once.

        Raises:
            KeyError: a layer that was asked for by name did not run, or cannot be read.
        """
        self._consume, self._rows = consume, rows
        self._runs = dict.fromkeys(self._chosen.modules, 0)
        try:
            output = forward()
        finally:
            self._consume = None
        for name, count in self._runs.items():
            if count == 0 and name not in self.skipped:
                self._skip(name, "it did not run in the forward pass")
        return output

    def _hook(self, name: str, module: nn.Module) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            if self._consume is None or name in self.skipped:
                return
            self._runs[name] += 1
            layer = name if self._runs[name] == 1 else f"{name}#{self._runs[name]}"
            features = self._features(name, module, output)
            if features is not None:
                self.names.setdefault(layer, module)
                self._consume(layer, features)

        return hook

    def _features(self, name: str, module: nn.Module, output: Any) -> Tensor | None:
        if not isinstance(output, Tensor) or output.dtype not in FLOATS:
            return self._skip(name, f"its output is no tensor of floats ({describe(output)})")
        features = as_features(output, module)
        if features.dim() not in (2, 3, 4) or features.shape[0] != self._rows:
            return self._skip(
                name,
                f"its output does not have one row a sample: {self._rows} samples, "
                f"{describe(output)}",
            )
        return features

    def _skip(self, name: str, reason: str) -> None:
        if self._chosen.named:
            raise LayerError(f"layers: expected {name!r} to be read, but {reason}")
        self.skipped[name] = reason


def drop_narrow(reader: LayersReader, num_classes: int) -> set[str]:
    """The layers that `layers="auto"` keeps: those wider than there are classes.

    What is dropped goes to the reader's `skipped`.

    Raises:
        ValueError: none is left.
    """
    kept = set(reader.names)
    if reader._chosen.by_width:
        for layer, module in reader.names.items():
            width = width_of(module) or 0
            if width <= num_classes:
                kept.discard(layer)
                reader.skipped[layer] = f"its width {width} is not above the {num_classes} classes"
    if not kept:
        raise ValueError(
            f"layers: expected a layer wider than the number of classes ({num_classes}) to run, "
            "found none (layers= takes names or a function of (name, module))"
        )
    return kept
