"""Where a layer's output has its channels: a property of modules, never read off a shape alone.

A module says it itself (a convolution, a linear layer, a norm), or the modules within it say it by
their widths, or the argument `channels` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.pooling import (
    _AdaptiveAvgPoolNd,
    _AdaptiveMaxPoolNd,
    _AvgPoolNd,
    _LPPoolNd,
    _MaxPoolNd,
)

from resque_ext.data.checks import describe
from resque_ext.model.hooks import LayerError
from resque_ext.model.pooling import Features, matches

FIRST, LAST = "first", "last"
CHANNELS = (FIRST, LAST)
LAYER_NORMS = (nn.LayerNorm, nn.RMSNorm)
CHANNEL_NORMS = (_BatchNorm, _InstanceNorm, nn.GroupNorm)
_POOLS = (_AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd, _LPPoolNd, _MaxPoolNd)
# Modules without weights that leave every value where it is.
_KEEPING = (
    nn.Identity,
    nn.modules.dropout._DropoutNd,
    *(getattr(nn.modules.activation, name) for name in nn.modules.activation.__all__),
)
_OVER_MAPS = (*_POOLS, nn.Upsample, nn.PixelShuffle, nn.Dropout2d, nn.ZeroPad2d)


def width_of(module: nn.Module) -> int | None:
    """`out_features` or `out_channels` of a module that has one."""
    return _integer(module, "out_features", "out_channels")


def _integer(module: nn.Module, *names: str) -> int | None:
    for name in names:
        value = getattr(module, name, None)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def channel_dim(module: nn.Module, x: Tensor) -> int:
    """The dimension of what a normalization layer reads or returns that holds its channels."""
    shape = getattr(module, "normalized_shape", None)
    if shape is None:
        return 1
    # torchvision, timm and transformers derive from LayerNorm what normalizes the channels of
    # [N, C, H, W]; some of them say so.
    derived = type(module) not in LAYER_NORMS
    if derived and x.dim() == 4 and tuple(shape) == (x.shape[1],):
        return 3 if getattr(module, "data_format", None) == "channels_last" else 1
    return x.dim() - len(shape)


class Layouts:
    """Outputs of a model's layers as features; where a layer has its channels is found once.

    Args:
        root: the model.
        channels: "first", "last" or None: where they are if no module says it.
    """

    def __init__(self, root: nn.Module, channels: str | None) -> None:
        self._root, self._channels = root, channels
        self._found: dict[str, str] = {}
        configs = (getattr(m, "config", None) for m in root.modules())
        self._windows = any(hasattr(c, "attention_window") for c in configs)

    def features(
        self,
        x: Tensor,
        name: str,
        module: nn.Module,
        mask: Tensor | None,
        argument: str,
        is_input: bool = False,
    ) -> Features:
        """Vectors [N, D], tokens [N, T, D] or a map [N, C, H, W], a view where that is possible.

        Args:
            x: the output, [N, D], or with positions before or behind the channels.
            name, module: of the layer.
            mask: [N, T], of the tokens that are real.
            argument: which named the layer, for messages.
            is_input: x is what the module reads.

        Raises:
            LayerError: nothing says where the channels are.
        """
        if x.dim() not in (3, 4, 5):
            return Features(x)
        if name not in self._found:
            self._found[name] = self._side(x, name, module, argument, is_input)
        last = self._found[name] == LAST
        if x.dim() > 3:
            return Features(x.flatten(1, -2) if last else x if x.dim() == 4 else x.flatten(3))
        tokens = x if last else x.transpose(1, 2)
        mask = self._padded(mask, tokens)
        if matches(tokens, mask):
            return Features(tokens, mask, convolved=not last)
        others = mask is not None and not bool(mask.all())
        return Features(x if last else x.unsqueeze(3), others=others)

    def _padded(self, mask: Tensor | None, tokens: Tensor) -> Tensor | None:
        """The mask, longer where the model itself pads behind the tokens: to windows of attention,
        as transformers' Longformer and LED do."""
        more = 0 if mask is None else tokens.shape[1] - mask.shape[1]
        return nn.functional.pad(mask, (0, more)) if more > 0 and self._windows else mask

    def _side(self, x: Tensor, name: str, module: nn.Module, argument: str, is_input: bool) -> str:
        within = _agreed(module, x, True) if is_input else _within(module, x)
        found = _own(module, x) or self._channels or within
        source = module if _has_weights(module) else self._root
        if found is None and source is self._root:
            # An activation or dropout: what the rest of the model says of such a width.
            found = _agreed(source, x) or _format(source)
        if found is None:
            found = _single(x)
        if found is None and x.dim() == 3 and not _votes(source, x, is_input):
            found = LAST  # tokens
        if found is None:
            raise LayerError(
                f"channels: expected 'first' ([N, C, ...]) or 'last' ([N, ..., C]), because no "
                f"module says where {name!r} of {argument}= has its channels in {describe(x)}, "
                "found None"
            )
        return found


def _own(module: nn.Module, x: Tensor) -> str | None:
    """What the module itself says."""
    if isinstance(module, (_ConvNd, *CHANNEL_NORMS, *_OVER_MAPS)):
        return FIRST
    if isinstance(module, LAYER_NORMS):
        return LAST if channel_dim(module, x) == x.dim() - 1 else FIRST
    if isinstance(module, (nn.Linear, nn.Embedding, nn.RNNBase, nn.MultiheadAttention)):
        return LAST
    dims = getattr(module, "dims", None)  # of torchvision's Permute
    if isinstance(dims, (list, tuple)) and len(dims) == x.dim() and len(dims) > 3:
        return LAST if list(dims[1:-1]) == list(range(2, x.dim())) else FIRST
    if _integer(module, "out_channels") == x.shape[1]:
        return FIRST
    if _integer(module, "out_features", "nf") == x.shape[-1]:
        return LAST
    return _format(module)


def _single(x: Tensor) -> str | None:
    """Of one position: the channels are what is left."""
    if x.shape[2:].numel() == 1:
        return FIRST
    return LAST if x.shape[1:-1].numel() == 1 else None


def _format(module: nn.Module) -> str | None:
    """timm's `output_fmt`, a text or an enumeration of texts."""
    found = getattr(module, "output_fmt", None)
    found = getattr(found, "value", found)
    return {"NCHW": FIRST, "NCL": FIRST, "NHWC": LAST, "NLC": LAST}.get(found)


def _within(module: nn.Module, x: Tensor) -> str | None:
    """What the modules within say: of a Sequential the last that can tell, else all as one."""
    if not isinstance(module, nn.Sequential):
        return _agreed(module, x)
    for child in reversed(list(module.children())):
        found = _own(child, x)
        if found is not None:
            # What follows it may move the channels: they have to be where it has put them.
            widths = {width for side, width in _widths(child) if side == found and width}
            at = x.shape[1 if found == FIRST else -1]
            return found if not widths or at in widths else None
        if _has_weights(child):
            return _within(child, x)
        if not isinstance(child, _KEEPING):
            return _agreed(module, x) if x.shape[1] != x.shape[-1] else None
    return None


def _agreed(module: nn.Module, x: Tensor, is_input: bool = False) -> str | None:
    votes = _votes(module, x, is_input)
    return votes.pop() if len(votes) == 1 else None


def _votes(module: nn.Module, x: Tensor, is_input: bool) -> set[str]:
    """Where modules within have channels of a width that x has there."""
    widths = _widths(module, is_input)
    return {side for side, width in widths if width == x.shape[1 if side == FIRST else -1]}


def _widths(module: nn.Module, is_input: bool = False) -> Iterator[tuple[str, Any]]:
    """Of every module within: where its channels are, and how many it gives (or reads)."""
    prefix = "in" if is_input else "out"
    for m in module.modules():
        if isinstance(m, CHANNEL_NORMS):
            yield FIRST, _integer(m, "num_features", "num_channels")
        elif isinstance(m, LAYER_NORMS):
            over_maps = getattr(m, "data_format", None) == "channels_first"
            # torchvision's and timm's LayerNorm2d.
            over_maps = over_maps or type(m).__name__.endswith("2d")
            yield FIRST if over_maps else LAST, m.normalized_shape[0 if over_maps else -1]
        elif isinstance(m, _ConvNd):
            yield FIRST, _integer(m, f"{prefix}_channels")
        elif isinstance(m, nn.Embedding):
            yield LAST, m.embedding_dim
        elif not any(True for _ in m.children()) or isinstance(m, nn.Linear):
            yield LAST, _integer(m, f"{prefix}_features", "nf")


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None
