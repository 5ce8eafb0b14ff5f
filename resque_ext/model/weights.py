"""A model's weights from a file of plain tensors, under the names that training tools give them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from resque_ext.data.checks import describe
from resque_ext.errors import ArgumentError
from resque_ext.model.hooks import unwrap

# Where training scripts put a state_dict in a checkpoint, the likeliest first.
NESTED = ("state_dict", "model_state_dict", "model_state", "model", "net", "weights")
# What DataParallel and DDP, torch.compile, FSDP, activation checkpointing, and wrappers such as
# Lightning's put before names; the first of them inside of names too.
WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
PREFIXES = (*WRAPPERS, "model.", "net.")
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # torch's messages have some


def load_weights(model: nn.Module, path: Path) -> None:
    """Loads a state_dict: .safetensors, or .pt, .pth, .bin or .ckpt by ``weights_only=True``.

    Known nesting (`NESTED`) and prefixes before every name (`PREFIXES`) are left out, and names of
    tied weights that the file has once are filled in; a warning says so.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file, one without tensors, or the weights of another model.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a file of weights, found none")
    state, changes = _unpacked(_read(path), path)
    inner = unwrap(model)
    state, more = _named(state, inner)
    changes += more
    if changes:
        warnings.warn(f"{path}: weights read {', '.join(changes)}", stacklevel=3)
    try:
        inner.load_state_dict(state)
    except RuntimeError as error:
        done = f" (read {', '.join(changes)})" if changes else ""
        raise ArgumentError(
            path,
            f"the weights of {type(inner).__name__}",
            f"others{done}: {' '.join(str(error).split())[:300]}",
            fix=f"prefixes that are left out: {' '.join(PREFIXES)}",
        ) from None


def _read(path: Path) -> Any:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        expected = f"the suffix {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        raise ArgumentError(path, expected, f"{suffix!r}")
    try:
        if suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    # Damaged bytes end in exceptions of nearly every type.
    except Exception as error:
        lines = _COLOURS.sub("", str(error)).strip().splitlines() or [type(error).__name__]
        raise ArgumentError(
            path,
            "a whole file of plain tensors",
            lines[0],
            fix="save model.state_dict(), not the model",
        ) from None


def _unpacked(found: Any, path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors by name, and how they were come by."""
    way: list[str] = []
    while isinstance(found, Mapping) and not _is_state(found):
        name = next((n for n in NESTED if isinstance(found.get(n), Mapping)), None)
        if name is None:
            break
        way.append(name)
        found = found[name]
    if not _is_state(found):
        held = describe(found)
        if isinstance(found, Mapping):
            held += f" of {', '.join(map(repr, list(found)[:5])) or 'nothing'}"
        raise ArgumentError(path, f"tensors by name, or under one of {', '.join(NESTED)}", held)
    return dict(found), [f"from {'.'.join(way)!r}"] if way else []


def _is_state(found: Any) -> bool:
    return (
        isinstance(found, Mapping)
        and bool(found)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items())
    )


def _named(state: dict[str, Tensor], model: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors by the model's own names as far as possible, and what was changed for that."""
    wanted = model.state_dict(keep_vars=True)
    tied: dict[tuple[Any, ...], list[str]] = {}
    for name, x in wanted.items():
        if isinstance(x, Tensor) and x.numel():
            key = x.device, x.data_ptr(), x.shape, x.stride(), x.dtype
            tied.setdefault(key, []).append(name)
    best: tuple[int, dict[str, Tensor], list[str]] | None = None
    for renamed, changes in _renamings(state):
        if len(renamed) != len(state):  # two names have become one
            continue
        filled = dict(renamed)
        for names in tied.values():
            there = [name for name in names if name in renamed]
            if there:
                filled |= {name: renamed[there[0]] for name in names if name not in renamed}
        added = sorted(filled.keys() - renamed.keys())
        more = [f"with {added[0]!r} as tied to another"] if added else []
        wrong = len(filled.keys() ^ wanted.keys())
        if best is None or wrong < best[0]:
            best = wrong, filled, changes + more
        if wrong == 0:
            break
    assert best is not None  # the names as they are come first
    return best[1], best[2]


def _renamings(state: dict[str, Tensor]) -> Iterator[tuple[dict[str, Tensor], list[str]]]:
    """The state under its own names, and without more and more of the known prefixes."""
    stripped: list[str] = []
    while True:
        changes = [f"without the prefix {''.join(stripped)!r}"] if stripped else []
        yield state, changes
        # Of modules that were wrapped inside of another one.
        inner, left_out = state, []
        for part in WRAPPERS:
            if any(f".{part}" in name for name in inner):
                inner = {name.replace(f".{part}", "."): x for name, x in inner.items()}
                left_out.append(f"without {part!r} inside names")
                yield inner, [*changes, *left_out]
        prefix = next((p for p in PREFIXES if all(n.startswith(p) for n in state)), None)
        if prefix is None:
            return
        stripped.append(prefix)
        state = {name.removeprefix(prefix): x for name, x in state.items()}
