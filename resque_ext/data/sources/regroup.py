"""Pieces of any length as batches of one: cut, and joined, but never padded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from resque_ext.data.checks import describe
from resque_ext.errors import ArgumentError


def regroup(pieces: Iterable[tuple[Any, Tensor]], size: int) -> Iterator[tuple[Any, Tensor]]:
    """Batches of `size` rows, fewer in the last alone; a piece that is one is passed on."""
    held: list[tuple[Any, Tensor]] = []
    count = 0
    for x, y in pieces:
        at = 0
        while at < len(y):
            taken = min(size - count, len(y) - at)
            whole = taken == len(y)
            held.append((x, y) if whole else (cut(x, at, at + taken), y[at : at + taken]))
            at, count = at + taken, count + taken
            if count == size:
                batch, held, count = join(held), [], 0
                yield batch
                del batch  # the reader's own again, as soon as nobody else has it
        del x, y
    if held:
        yield join(held)


def rows_in(x: Any) -> int | None:
    """Rows of inputs: of a tensor, or of the tensors of a mapping or sequence if they agree."""
    if isinstance(x, Tensor):
        return x.shape[0] if x.dim() else None
    parts = list(x.values()) if isinstance(x, Mapping) else x if _is_sequence(x) else []
    found = {rows_in(part) for part in parts}
    return found.pop() if len(found) == 1 else None


def cut(x: Any, start: int, stop: int) -> Any:
    """Rows start..stop of inputs."""
    return taken(x, slice(start, stop))


def taken(x: Any, rows: slice | Tensor) -> Any:
    """These rows of inputs."""
    if isinstance(x, Tensor):
        return x[rows]
    if isinstance(x, Mapping):
        return {key: taken(value, rows) for key, value in x.items()}
    return type(x)(taken(value, rows) for value in x)


def join(batches: list[tuple[Any, Tensor]]) -> tuple[Any, Tensor]:
    """Batches one behind the other as one."""
    if len(batches) == 1:
        return batches[0]
    xs, ys = zip(*batches, strict=True)
    return _join(xs), torch.cat(_one_type(ys))


def _join(xs: tuple[Any, ...]) -> Any:
    first = xs[0]
    if isinstance(first, Tensor):
        for x in xs[1:]:
            if not isinstance(x, Tensor) or (x.shape[1:], x.dtype) != (
                first.shape[1:],
                first.dtype,
            ):
                raise ArgumentError(
                    "inputs",
                    "rows of one shape and dtype",
                    f"({describe(first)}) and ({describe(x)})",
                )
        return torch.cat(xs)
    if isinstance(first, Mapping):
        return {key: _join(tuple(x[key] for x in xs)) for key in first}
    return type(first)(_join(parts) for parts in zip(*xs, strict=True))


def _one_type(labels: tuple[Tensor, ...]) -> list[Tensor]:
    return [y.long() for y in labels] if len({y.dtype for y in labels}) > 1 else list(labels)


def _is_sequence(x: Any) -> bool:
    return type(x) in (tuple, list)
