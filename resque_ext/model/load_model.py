"""A model by name: `module:callable`, and weights in a file of plain tensors."""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

from resque_ext.data.callables import current_folder_first, find_callable, returning
from resque_ext.data.checks import describe
from resque_ext.errors import ArgumentTypeError
from resque_ext.model.weights import load_weights


def load_model(name: str, weights: str | os.PathLike[str] | None = None) -> nn.Module:
    """The model that `module:callable` returns when called without arguments, in eval mode.

    Args:
        name: such as ``torchvision.models:resnet18`` or ``mine:make_model`` for ``mine.py`` in the
            current folder.
        weights: a state_dict: .safetensors, or .pt, .pth, .bin or .ckpt by ``weights_only=True``.
            Known nesting (``{"state_dict": ...}``, ``{"model": ...}``) and prefixes (``module.``,
            ``_orig_mod.``, ``model.``) are left out and tied weights filled in, with a warning.

    Raises:
        ValueError: no such module or callable; weights that are damaged or of another model.
        TypeError: what it returns is no model.
        FileNotFoundError: no such file.
    """
    with current_folder_first():
        found = find_callable(name, "model")
        with returning("model", name):
            model = found if isinstance(found, nn.Module) else found()
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError("model", f"{name!r} to return a torch.nn.Module", describe(model))
    if weights is not None:
        load_weights(model, Path(weights))
    return model.eval()
