"""A trained model made ready for a new task: another last layer, parts that stay as they are."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from resque_ext.data.checks import check_count, describe
from resque_ext.errors import ArgumentError, ArgumentTypeError
from resque_ext.model.hooks import find_layer, unwrap

# Where torchvision's models, and timm's of the same shape, keep the layer that gives the classes.
HEADS = ("fc", "classifier", "heads", "head")


def replace_head(
    model: nn.Module,
    num_classes: int,
    head: str | Callable[[nn.Module, int], nn.Module | None] | None = None,
    seed: int | None = None,
) -> nn.Module:
    """A copy of `model` whose last linear layer is a new one for `num_classes` classes.

    The new layer has the old one's input width, dtype and device, a bias if that had one, and
    torch's default initialisation; everything else is copied as it is.

    Args:
        model: a classifier; not changed.
        num_classes: C of the new task.
        head: the layer to replace: its name ("fc", "classifier.6"), or that of a container, whose
            last linear layer is replaced. Or a function of (copied model, num_classes) that changes
            the copy in place or returns another model. By default the first of `fc`, `classifier`,
            `heads`, `head` that the model has.
        seed: of the initialisation; torch's generators are restored afterwards. None draws from
            the global one.

    Returns:
        The copy, unwrapped from DataParallel, DistributedDataParallel and torch.compile.

    Raises:
        KeyError: no layer of that name.
        ValueError: no linear layer there, or the model has no head that is known.
        TypeError: an argument of the wrong type.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError("model", "a torch.nn.Module", describe(model))
    num_classes = check_count(num_classes, "num_classes")
    fresh = copy.deepcopy(unwrap(model))
    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        if callable(head):
            given = head(fresh, num_classes)
            if given is not None and not isinstance(given, nn.Module):
                raise ArgumentTypeError("head", "it to give a model or None", f"{given!r}")
            return fresh if given is None else given
        name = _linear_name(fresh, _head_name(fresh) if head is None else head)
        _set_module(fresh, name, _like(find_layer(fresh, name), num_classes))
    return fresh


def freeze(
    model: nn.Module, patterns: str | Iterable[str], unfreeze: str | Iterable[str] = ()
) -> list[str]:
    """Makes the parameters whose name matches a glob pattern untrainable, in place.

    "layer1.*" takes layer1 and all within, "*" everything, "*.bias" every bias; patterns of
    `unfreeze` win. :func:`retrain` leaves batch-norm layers all of whose parameters are frozen in
    eval mode, so that their running statistics stay, too.

    Returns:
        The names of all parameters that are frozen now.

    Raises:
        ValueError: a pattern that matches no parameter; nothing is changed then.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError("model", "a torch.nn.Module", describe(model))
    parameters = dict(unwrap(model).named_parameters())
    frozen = _matches(parameters, patterns, "patterns")
    trained = _matches(parameters, unfreeze, "unfreeze")
    for name, parameter in parameters.items():
        if name in trained:
            parameter.requires_grad_(True)
        elif name in frozen:
            parameter.requires_grad_(False)
    return [name for name, parameter in parameters.items() if not parameter.requires_grad]


def training_mode(model: nn.Module) -> None:
    """Train mode, but for batch-norm layers whose own parameters are all frozen."""
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            own = list(module.parameters(recurse=False))
            if own and not any(parameter.requires_grad for parameter in own):
                module.eval()


def _matches(names: Iterable[str], patterns: str | Iterable[str], argument: str) -> set[str]:
    found: set[str] = set()
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        if not isinstance(pattern, str):
            raise ArgumentTypeError(argument, "glob patterns", f"{pattern!r}")
        matching = {name for name in names if fnmatch.fnmatchcase(name, pattern)}
        if not matching:
            raise ArgumentError(
                argument,
                "a pattern that matches a parameter",
                f"{pattern!r}",
                fix=(
                    f"the names are like {', '.join(map(repr, list(names)[:3])) or 'none at all'}"
                ),
            )
        found |= matching
    return found


def _head_name(model: nn.Module) -> str:
    children = dict(model.named_children())
    for name in HEADS:
        if name in children:
            return name
    raise ArgumentError(
        "head",
        f"a model with one of {', '.join(map(repr, HEADS))}, or a name or function",
        f"{type(model).__name__} with {', '.join(map(repr, children)) or 'no layers'}",
    )


def _linear_name(model: nn.Module, name: str) -> str:
    """`name` itself, where that is a linear layer, or the name of the last one within."""
    if not isinstance(name, str):
        raise ArgumentTypeError("head", "a name, a function or None", f"{name!r}")
    inside = find_layer(model, name, "head").named_modules(prefix=name)
    linears = [n for n, module in inside if isinstance(module, nn.Linear)]
    if not linears:
        found = type(find_layer(model, name)).__name__
        raise ArgumentError("head", f"a linear layer in {name!r}", f"{found} without one")
    return linears[-1]


def _like(old: nn.Module, num_classes: int) -> nn.Linear:
    assert isinstance(old, nn.Linear)
    weight = old.weight
    new = nn.Linear(
        old.in_features,
        num_classes,
        bias=old.bias is not None,
        device=weight.device,
        dtype=weight.dtype,
    )
    return new.train(old.training)


def _set_module(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
