"""Tensors in what a module returns: a tensor, a tuple, a mapping or an output object."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from resque_ext.data.checks import FLOATS, describe
from resque_ext.model.hooks import LayerError

LOGITS = "logits"
HIDDEN = "last_hidden_state"  # the tokens of a transformers model
SENTENCE = "sentence_embedding"  # of sentence-transformers
POOLED = "pooler_output"


def entries(output: Any) -> dict[str, Any]:
    """The parts of an output by key, field or position; {} of a tensor or anything without."""
    if isinstance(output, Tensor):
        return {}
    if isinstance(output, Mapping):
        return {str(key): value for key, value in output.items()}
    if isinstance(output, (tuple, list)):
        fields = getattr(output, "_fields", range(len(output)))
        return {str(key): value for key, value in zip(fields, output, strict=True)}
    if dataclasses.is_dataclass(output):
        return {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    # Of any other object what it holds, and what it may compute under these names.
    named = {
        k: getattr(output, k) for k in (LOGITS, HIDDEN, SENTENCE, POOLED) if hasattr(output, k)
    }
    return named | dict(getattr(output, "__dict__", {}))


def at_path(output: Any, path: str, name: str, argument: str = "layer") -> Any:
    """The part of an output at "KEY", "0" or "KEY.0" and so on.

    Raises:
        LayerError: no such part; the message has those that there are.
    """
    for part in path.split("."):
        parts = entries(output)
        by_position = dict(zip(map(str, range(len(parts))), parts.values(), strict=True))
        if part not in parts and part in by_position:  # of what has names, too
            output = by_position[part]
            continue
        if part not in parts:
            raise LayerError(
                f"{argument}: expected {name!r} to have {part!r} in its output, found "
                f"{', '.join(map(repr, parts)) or describe(output)}"
            )
        output = parts[part]
    return output


def main_tensor(output: Any) -> Tensor | None:
    """The features in a module's output: itself, its last hidden state, the first of a tuple, or
    the only tensor of floats there is; None where that is not clear."""
    if isinstance(output, Tensor):
        return output
    parts = entries(output)
    if isinstance(parts.get(HIDDEN), Tensor):
        return parts[HIDDEN]
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        return output[0]
    floats = [x for x in parts.values() if isinstance(x, Tensor) and x.dtype in FLOATS]
    return floats[0] if len(floats) == 1 else None


def score_tensors(output: Any) -> Iterator[tuple[str, Tensor]]:
    """What may be a classifier's scores, by path, the likeliest first: "" is the output itself."""
    parts = {"": output} if isinstance(output, Tensor) else entries(output)
    for key in sorted(parts, key=lambda key: key != LOGITS):
        x = parts[key]
        if isinstance(x, Tensor) and x.dtype in FLOATS and x.dim() >= 2:
            yield key, x


def sentence_path(output: Any) -> str | None:
    """Where an output without scores has its embedding; None where it has none by name."""
    parts = entries(output)
    if isinstance(parts.get(SENTENCE), Tensor):
        return SENTENCE
    hidden, vector = parts.get(HIDDEN), parts.get(POOLED)
    if isinstance(hidden, Tensor) and (hidden.dim() == 3 or not isinstance(vector, Tensor)):
        return HIDDEN
    return POOLED if isinstance(vector, Tensor) else None
