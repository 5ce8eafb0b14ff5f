"""What the ranks of a `score` have read, each its share, made one."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from resque_ext.data.checks import describe
from resque_ext.errors import ArgumentError, ArgumentTypeError
from resque_ext.indices import registry
from resque_ext.indices.base import SIDES, Index
from resque_ext.model.pooling import together
from resque_ext.model.reads import Reads
from resque_ext.scoring.forward_pass import PARTS, Passes

if TYPE_CHECKING:
    from resque_ext.distributed import Ranks


def check(
    ranks: Any,
    indices: Mapping[str, Index],
    adapt_normalization: bool | str,
    paired: bool,
    reads: Reads,
) -> None:
    """Whether what was asked for can be joined; the same on any number of ranks.

    Raises:
        TypeError, ValueError: naming the argument; on all ranks, before any pass.
    """
    from resque_ext.distributed import Ranks

    if not isinstance(ranks, Ranks):
        raise ArgumentTypeError("ranks", "resque_ext.distributed.Ranks", describe(ranks))
    ranks.begin_call()
    kept = [name for name, index in indices.items() if not index.is_joinable]
    if kept:
        known = [name for name in indices if name not in kept] or registry.of_ranks()
        raise ArgumentError(
            "indices",
            f"those whose states can be joined over ranks ({', '.join(known)})",
            f"{kept[0]!r}, which needs all rows in one place",
        )
    if adapt_normalization == "match":
        raise ArgumentError(
            "adapt_normalization",
            "True or False with ranks",
            "'match', which goes by the batches before",
        )
    asked = {"indices": list(indices), "paired": paired, "adapts": bool(adapt_normalization)}
    asked |= {"labels": reads.labels} | reads.plain()
    _expect_equal(ranks.gather(asked), "ranks: expected the same arguments on all")
    for index in indices.values():
        index.expect_ranks()


def join(ranks: Ranks, passes: Passes, indices: Mapping[str, Index]) -> None:
    """Makes all that was found on this rank's share that of all data.

    Raises:
        RankError: another rank failed or was lost.
        ValueError: no rank has rows of a side, or they have run models that differ.
    """
    found = ranks.gather(passes.facts())
    rows = {side: sum(each["rows"][side] for each in found) for side in SIDES}
    for side in SIDES:
        if not rows[side] and any(side in index.reads.sides for index in indices.values()):
            raise ArgumentError(side, "rows on one rank at least", "none on any")
    ran = [each for each in found if sum(each["rows"].values())]
    same = ("layer_name", "layer_names", "head", "token")
    _expect_equal(
        [{key: each[key] for key in same} for each in ran], "model: expected the same on all ranks"
    )
    counts = {
        name: {side: sum(each[name][side] for each in found) for side in SIDES}
        for name in ("rows", "correct", "judged")
    }
    pooling = {key: functools.reduce(together, (e["pooling"][key] for e in ran)) for key in PARTS}
    passes.restore(ran[0] | counts | {"pooling": pooling})
    for index in indices.values():
        index.reduce(ranks)


def join_statistics(ranks: Ranks, layers: Mapping[str, nn.Module]) -> None:
    """Makes batch-norm layers' averages over this rank's batches those over all ranks' batches.

    An average over n batches is its sum over n: these are added in float64. What it was before was
    rounded to the layer's own type, and so is what it becomes.
    """
    if ranks.size == 1:
        return
    parts = []
    for layer in layers.values():
        count = layer.num_batches_tracked.cpu().double().view(1)
        values = torch.cat([layer.running_mean, layer.running_var]).cpu().double()
        parts += [count, values * count]
    sums = ranks.total(torch.cat(parts))
    for layer in layers.values():
        width = len(layer.running_mean)
        part, sums = sums[: 1 + 2 * width], sums[1 + 2 * width :]
        if part[0] == 0:  # it runs on no rank: as it began
            continue
        mean, variance = (part[1:] / part[0]).split(width)
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(variance)
        layer.num_batches_tracked.fill_(int(part[0]))


def _expect_equal(found: list[dict[str, Any]], expected: str) -> None:
    """The same error on all ranks, which all have the same list; it shows what differs."""
    for rank, each in enumerate(found):
        differing = [key for key in each if each[key] != found[0][key]]
        if differing:
            here, there = ({key: side[key] for key in differing} for side in (found[0], each))
            raise ValueError(f"{expected}, found {here} on rank 0 and {there} on rank {rank}")
