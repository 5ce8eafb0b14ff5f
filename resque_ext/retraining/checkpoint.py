"""One file with the whole state of a run: tensors as safetensors, the rest as JSON in its header.

Nothing in it is ever executed. It is written beside its place and moved there in one step, so that
a reader finds the old state or the new one, whenever the writer was killed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from resque_ext.data.checks import describe
from resque_ext.errors import ArgumentTypeError
from resque_ext.storage.atomic import replaced
from resque_ext.storage.json_text import parse_json

FORMAT = "resque_ext.retrain/1"


class CheckpointError(ValueError):
    """A file that is not a checkpoint, or that of another run."""


class Checkpoint:
    """The state of a run in memory, on the CPU: a copy, which later steps do not change.

    Args:
        state: dicts, lists, tuples, numbers, strings, None and tensors, nested at will.

    Raises:
        TypeError: anything else; the message says where it is.
    """

    def __init__(self, state: Mapping[str, Any]) -> None:
        self._tensors: dict[str, Tensor] = {}
        self._text = json.dumps(_pack(state, "state", self._tensors))

    def state(self) -> dict[str, Any]:
        """The state, its tensors copied."""
        tensors = {name: tensor.clone() for name, tensor in self._tensors.items()}
        return _unpack(json.loads(self._text), tensors)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the file that `retrain(checkpoint=path)` goes on from, in one step."""
        with replaced(Path(path)) as beside:
            save_file(self._tensors, beside, metadata={"format": FORMAT, "state": self._text})


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Writes a state as :class:`Checkpoint` has it."""
    Checkpoint(state).save(path)


def load(path: Path) -> dict[str, Any]:
    """What `save` wrote, its tensors on the CPU.

    Raises:
        CheckpointError: a directory, a truncated or foreign file; one line.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint: expected a file, found a directory at {path}")
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise CheckpointError(
                    f"checkpoint: expected the format {FORMAT!r}, found "
                    f"{metadata.get('format')!r} in {path}"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _unpack(parse_json(metadata["state"]), tensors)
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"checkpoint: expected one that retrain wrote, found {path} unreadable "
            f"({type(error).__name__}: {error})"
        ) from None


def check_complete(path: Path | str, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raises CheckpointError where a part is missing."""
    for name in expected:
        if name not in found:
            raise CheckpointError(
                f"checkpoint: expected one that retrain wrote, found {path} without {name!r}"
            )


def check_same(path: Path | str, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raises CheckpointError, naming what differs, where the file is another run's."""
    for name in expected:
        if expected[name] != found.get(name):
            raise CheckpointError(
                f"checkpoint: expected one of this run, found {path} with {name} "
                f"{_short(found.get(name))} instead of {_short(expected[name])}"
            )


def check_shapes(path: Path | str, mine: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError where a tensor is missing, or of another shape or dtype."""
    for name, tensor in mine.items():
        found = saved.get(name)
        if found is None or (found.shape, found.dtype) != (tensor.shape, tensor.dtype):
            raise CheckpointError(
                f"checkpoint: expected one of this model, found {path} with {name} "
                f"{'missing' if found is None else describe(found)} instead of {describe(tensor)}"
            )


def check_equal(path: Path | str, mine: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError where a tensor is missing or differs in a single bit."""
    check_shapes(path, mine, saved)
    for name, tensor in mine.items():
        # Bytes, because NaN is not equal to itself.
        here, there = (
            t.contiguous().flatten().view(torch.uint8) for t in (tensor.cpu(), saved[name])
        )
        if not torch.equal(here, there):
            raise CheckpointError(
                f"checkpoint: expected one that began with this model, found {path} with another "
                f"{name}"
            )


def _bytes(tensor: Tensor) -> Tensor:
    """To compare by, because NaN is not equal to itself."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _pack(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    """JSON for a value; what JSON does not have is a dict with one key that says what it is."""
    if isinstance(value, (np.integer, np.floating, np.bool_)):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        # A copy: safetensors refuses tensors that share memory.
        tensors[where] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": where}
    if isinstance(value, np.ndarray) and value.dtype.kind in "iuf":
        return {"array": [value.tolist(), str(value.dtype)]}
    if isinstance(value, Mapping):
        items = [[_pack(k, where, tensors), v] for k, v in value.items()]
        return {"dict": [[k, _pack(v, f"{where}.{k}", tensors)] for k, v in items]}
    if isinstance(value, (list, tuple)):
        packed = [_pack(v, f"{where}.{i}", tensors) for i, v in enumerate(value)]
        return {"tuple": packed} if isinstance(value, tuple) else packed
    raise ArgumentTypeError(
        "checkpoint", "tensors and plain values", f"{type(value).__name__} in {where}"
    )


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(entry, tensors) for entry in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "array":
        return np.array(content[0], dtype=content[1])
    if kind == "tuple":
        return tuple(_unpack(entry, tensors) for entry in content)
    return {_unpack(k, tensors): _unpack(v, tensors) for k, v in content}
