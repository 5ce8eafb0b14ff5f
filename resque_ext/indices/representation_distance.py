"""The representation distance p: how far every sample's activations move, layer by layer."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resque_ext.data.checks import check_choice, check_count, check_features, describe
from resque_ext.errors import ArgumentError, ArgumentTypeError
from resque_ext.indices._state import tensors_of
from resque_ext.indices.base import Accumulator, DeferredFaults, expect_kind
from resque_ext.model.pooling import check_mask, matches
from resque_ext.ops.eager import eager
from resque_ext.ops.row_distances import (
    DISTANCES,
    SHARED_DISTANCES,
    check_bins,
    check_tokens,
    row_distances_with_status,
    row_width,
    token_distances_with_status,
)
from resque_ext.ops.status import Status

_PENDING = 16_384  # unread CUDA statuses kept at most; then one wait reads them all

Table = Mapping[int, Mapping[str, float]]


@dataclass(frozen=True)
class DistanceTable:
    """Distances by number of bins, then by name.

    Attributes:
        p: the mean over layers of the mean over samples.
        layers: by layer, the mean over samples.
        std_error: of p, by a jackknife over blocks of samples, jointly over the layers; None with
            fewer than two samples of a layer.
    """

    p: Table
    layers: Mapping[str, Table]
    std_error: Mapping[int, Mapping[str, float | None]]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and None, for JSON; numbers of bins as text."""

        def plain(table: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
            return {str(bins): dict(values) for bins, values in table.items()}

        return {
            "p": plain(self.p),
            "layers": {layer: plain(table) for layer, table in self.layers.items()},
            "std_error": plain(self.std_error),
        }


@dataclass(frozen=True)
class RepresentationDistanceResult(DistanceTable):
    """The published distances, each row binned over its own range, and what is known of them.

    Attributes:
        p, layers, std_error: as in :class:`DistanceTable`, of the names wasserstein_heights,
            jensen_shannon, bhattacharyya and kl.
        shared: the same over the ranges that the rows of a pair share, of the names wasserstein,
            jensen_shannon, bhattacharyya and kl; None where that was not asked for.
        samples: pairs behind each layer's means.
        nonfinite_pairs: pairs of each layer that were left out.
        float64_edges: histograms of each layer, by number of bins, whose edges the precision of the
            data could not tell apart, or whose range it could not hold.
        reliable: whether there are samples enough for a standard error; `warnings` says so.
    """

    shared: DistanceTable | None
    samples: Mapping[str, int]
    nonfinite_pairs: Mapping[str, int]
    float64_edges: Mapping[str, Mapping[int, int]]
    reliable: bool = True
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and None, for JSON; numbers of bins as text."""
        edges = {
            layer: {str(bins): count for bins, count in found.items()}
            for layer, found in self.float64_edges.items()
        }
        return super().to_dict() | {
            "shared": None if self.shared is None else self.shared.to_dict(),
            "samples": dict(self.samples),
            "nonfinite_pairs": dict(self.nonfinite_pairs),
            "float64_edges": edges,
            "reliable": self.reliable,
            "warnings": list(self.warnings),
        }


@dataclass
class _LayerState:
    """One layer's sums, block by block: sample j of the layer goes to block j % blocks."""

    sums: Tensor  # [blocks, bins, columns] float64
    counts: Tensor  # [blocks] int64, of pairs that were not left out
    seen: int  # pairs so far, those left out included
    float64_edges: Tensor  # [bins] int64

    FIELDS = ("sums", "counts", "float64_edges")


@eager
class RepresentationDistance(Accumulator):
    """The representation distance p, streamed: one pass, bounded memory, mergeable.

    Row i of a layer's old activations and row i of its new ones are the same sample before and
    after a shift. A pair's distance is that of the histograms of the two rows (see
    :func:`resque_ext.ops.row_distances`); p is the mean over layers of the mean over samples. It
    takes every layer that it is given: which are wide enough to count is the caller's to choose.

    Args:
        bins: numbers of bins, each from 2 to 256.
        shared: also the distances over shared ranges, which see shifts and rescalings of the
            activations; ranges of their own hide those.
        nonfinite: "error": NaN or infinity raises. "skip": such pairs are left out of the layer and
            counted in the result.
        blocks: blocks of samples behind the standard error, at least 2. The state has 8 * blocks *
            bins * distances bytes a layer.

    On the CPU a wrong batch raises in update() and leaves the state as it was. On CUDA nothing
    waits for the device: non-finite values raise in compute(), or in a later update() at the latest
    after 16,384 layers, until reset().

    Source: the representation distance of PreIndex as published.
    """

    def __init__(
        self,
        bins: int | Sequence[int] = (16, 32, 64),
        *,
        shared: bool = False,
        nonfinite: str = "error",
        blocks: int = 16,
    ) -> None:
        self.bins = check_bins(bins)
        if not isinstance(shared, bool):
            raise ArgumentTypeError("shared", "True or False", f"{shared!r}")
        check_choice(nonfinite, ("error", "skip"), "nonfinite")
        self.shared, self.nonfinite = shared, nonfinite
        self.blocks = check_count(blocks, "blocks", least=2)
        self.reset()

    def __repr__(self) -> str:
        return (
            f"RepresentationDistance(bins={self.bins}, shared={self.shared}, "
            f"layers={len(self._layers)})"
        )

    @property
    def _columns(self) -> int:
        return len(DISTANCES) + (len(SHARED_DISTANCES) if self.shared else 0)

    def reset(self) -> None:
        """Back to no data; any layers and device may come next."""
        self._layers: dict[str, _LayerState] = {}
        self._faults = DeferredFaults(_PENDING)

    def update(
        self, layers: Mapping[str, tuple[Any, Any]], mask: Any = None, new_mask: Any = None
    ) -> None:
        """Adds a batch of pairs.

        Args:
            layers: by layer, (old, new) of one shape, dtype and device: [N, M], [N, C, H, W], whose
                rows are the means over H and W, or tokens [N, T, D], whose rows are all T * D
                values.
            mask: [N, T], nonzero for real tokens: of all old [N, T, D] of these N and T others do
                not count. None: all are real.
            new_mask: the same of new tokens. Where either is given, T may differ between the sides,
                and a sample may have more real tokens on one of them.

        Raises:
            TypeError, ValueError: naming the layer, what was expected and what came.
        """
        # State made under a caller's inference mode could not be updated outside of it.
        with torch.inference_mode(False), torch.no_grad():
            masks = tuple(
                None if m is None else check_mask(m, n)
                for m, n in ((mask, "mask"), (new_mask, "new_mask"))
            )
            self._add(_checked(layers, masks))

    def _add(self, layers: Mapping[str, _Pair]) -> None:
        staged: dict[str, _LayerState] = {}
        unread = []
        for layer, (old, new, masks) in layers.items():
            state = self._layers.get(layer) or self._empty(old.device)
            if state.sums.device != old.device:
                raise ArgumentError(
                    f"layers[{layer!r}]",
                    f"{state.sums.device} as in earlier updates",
                    describe(old),
                )
            skip = self.nonfinite == "skip"
            options = {"shared": self.shared, "skip_nonfinite": skip}
            if masks == (None, None):
                _, _, each, edges, _, status = row_distances_with_status(
                    old, new, self.bins, rows=True, **options
                )
            else:
                each, edges, status = token_distances_with_status(
                    old, new, masks, self.bins, **options
                )
            if not skip:
                widths = row_width(old), row_width(new)
                check = functools.partial(_check, layer, len(old), widths)
                unread.append((status, check))
            staged[layer] = self._added(state, each, edges)
        if unread and unread[0][0].device.type == "cpu":
            for status, check in unread:
                check(status)
            unread = []
        # All is known to be right (or, on CUDA, will be read before any result is given).
        self._layers |= staged
        for status, check in unread:
            self._faults.add(status, check)
        self._faults.read_if_many()

    def _empty(self, device: torch.device) -> _LayerState:
        shape = (self.blocks, len(self.bins), self._columns)
        return _LayerState(
            torch.zeros(shape, dtype=torch.float64, device=device),
            torch.zeros(self.blocks, dtype=torch.int64, device=device),
            0,
            torch.zeros(len(self.bins), dtype=torch.int64, device=device),
        )

    def _added(self, state: _LayerState, each: Tensor, edges: Tensor) -> _LayerState:
        """The state with further rows [n, bins, columns], dealt to the blocks in turn.

        By padding to whole rounds of blocks, not by scattering: sums then have one order.
        """
        n, turn = len(each), state.seen % self.blocks
        rounds = -(-(turn + n) // self.blocks)
        dealt = each.new_zeros((rounds * self.blocks, *each.shape[1:]))
        dealt[turn : turn + n] = each
        there = torch.zeros(rounds * self.blocks, dtype=torch.bool, device=each.device)
        there[turn : turn + n] = True
        if self.nonfinite == "skip":  # their distances are NaN
            there &= ~dealt.flatten(1).isnan().any(1)
            dealt = torch.where(there[:, None, None], dealt, 0)
        shape = (rounds, self.blocks)
        return _LayerState(
            state.sums + dealt.view(*shape, *each.shape[1:]).sum(0),
            state.counts + there.view(shape).sum(0),
            state.seen + n,
            state.float64_edges + edges,
        )

    def merge(self, other: RepresentationDistance) -> None:
        """Adds what `other` has seen; it stays as it is and may live on another device.

        Any split of the data gives the same p (to rounding), and standard errors to within their
        own noise.

        Raises:
            TypeError: not a RepresentationDistance.
            ValueError: other bins, blocks or ranges.
        """
        expect_kind(other, self)
        mine, theirs = ((a.bins, a.shared, a.blocks) for a in (self, other))
        if mine != theirs:
            raise ArgumentError("other", f"(bins, shared, blocks) = {mine}", theirs)
        self._faults.read()
        other._faults.read()
        with torch.inference_mode(False), torch.no_grad():
            for layer, more in other._layers.items():
                state = self._layers.get(layer) or self._empty(more.sums.device)
                device, turn = state.sums.device, state.seen % self.blocks  # dealing goes on
                self._layers[layer] = _LayerState(
                    state.sums + more.sums.to(device).roll(turn, 0),
                    state.counts + more.counts.to(device).roll(turn, 0),
                    state.seen + more.seen,
                    state.float64_edges + more.float64_edges.to(device),
                )

    def _config(self) -> list[int]:
        return [int(self.shared), self.blocks, *self.bins]

    def state_dict(self) -> dict[str, Tensor]:
        """The whole state as plain tensors, ready for safetensors."""
        self._faults.read()
        state = {"config": torch.tensor(self._config())}
        for layer, kept in self._layers.items():
            state |= {f"{f}.{layer}": getattr(kept, f).clone() for f in _LayerState.FIELDS}
            state[f"seen.{layer}"] = torch.tensor(kept.seen)
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Replaces the state by one of :meth:`state_dict`; nothing changes when it does not fit.

        Raises:
            KeyError: a tensor is missing or unknown.
            TypeError: something that is not a tensor.
            ValueError: made with other options, or a tensor is not what it should be.
        """
        tensors = tensors_of(state, self._config(), ("shared", "blocks", "bins"))
        parts: dict[str, dict[str, Tensor]] = {}
        for key, x in tensors.items():
            part, _, layer = key.partition(".")
            parts.setdefault(layer, {})[part] = x
        loaded = {layer: self._loaded(layer, fields) for layer, fields in parts.items()}
        self.reset()
        self._layers = loaded

    def _loaded(self, layer: str, fields: Mapping[str, Tensor]) -> _LayerState:
        if set(fields) != {"seen", *_LayerState.FIELDS}:
            raise KeyError(
                f"state: expected seen, {', '.join(_LayerState.FIELDS)} of layer {layer!r}, found "
                f"{', '.join(sorted(fields))}"
            )
        like = self._empty(fields["sums"].device)
        for part in _LayerState.FIELDS:
            wanted, x = getattr(like, part), fields[part]
            if (wanted.shape, wanted.dtype, wanted.device) != (x.shape, x.dtype, x.device):
                raise ArgumentError(f"state['{part}.{layer}']", describe(wanted), describe(x))
        seen = fields["seen"]
        if (
            seen.numel() != 1
            or seen.dtype != torch.int64
            or int(seen) < int(fields["counts"].sum())
        ):
            raise ArgumentError(f"state['seen.{layer}']", "the number of pairs", seen.tolist())
        with torch.inference_mode(False), torch.no_grad():
            kept = {part: fields[part].clone() for part in _LayerState.FIELDS}
        return _LayerState(seen=int(seen), **kept)

    def compute(self, layers: Iterable[str] | None = None) -> RepresentationDistanceResult:
        """The index of all data so far; more may follow. Waits for the device.

        Args:
            layers: those that count, by default all.

        Raises:
            ValueError: there is no data, or a layer has no pair that counts.
            KeyError: no such layer.
        """
        self._faults.read()
        names = list(self._layers) if layers is None else list(layers)
        unknown = [name for name in names if name not in self._layers]
        if unknown:
            raise KeyError(f"layers: expected layers of earlier updates, found {unknown[0]!r}")
        if not names:
            raise ArgumentError("update", "at least one batch before compute()", "none")
        states = [self._layers[name] for name in names]
        sums = np.stack([state.sums.cpu().numpy() for state in states])  # [layers, blocks, ...]
        counts = np.stack([state.counts.cpu().numpy() for state in states])  # [layers, blocks]
        for name, state, count in zip(names, states, counts.sum(1), strict=True):
            if count == 0:
                raise ArgumentError(
                    f"layers[{name!r}]", "a pair that is finite", f"none of {state.seen}"
                )
        own = self._table(names, sums[..., : len(DISTANCES)], counts, DISTANCES)
        shared = None
        if self.shared:
            rest = sums[..., len(DISTANCES) :]
            shared = self._table(names, rest, counts, SHARED_DISTANCES)
        edges = [state.float64_edges.tolist() for state in states]
        used = counts.sum(1).tolist()
        warnings: tuple[str, ...] = ()
        if None in own.std_error[self.bins[0]].values():
            warnings = ("std_error: unknown, as a layer has fewer than two pairs; read more rows",)
        return RepresentationDistanceResult(
            own.p,
            own.layers,
            own.std_error,
            shared,
            dict(zip(names, used, strict=True)),
            {n: s.seen - u for n, s, u in zip(names, states, used, strict=True)},
            {n: dict(zip(self.bins, e, strict=True)) for n, e in zip(names, edges, strict=True)},
            not warnings,
            warnings,
        )

    def _table(
        self,
        names: Sequence[str],
        sums: NDArray[np.float64],
        counts: NDArray[np.int64],
        distances: Sequence[str],
    ) -> DistanceTable:
        def named(values: Any) -> dict[int, dict[str, Any]]:
            return {
                b: {d: None if v is None else float(v) for d, v in zip(distances, row, strict=True)}
                for b, row in zip(self.bins, values, strict=True)
            }

        means = sums.sum(1) / counts.sum(1)[:, None, None]  # [layers, bins, distances]
        error = _jackknife(sums, counts)
        if error is None:
            error = [[None] * len(distances)] * len(self.bins)
        return DistanceTable(
            named(means.mean(0)),
            {name: named(mean) for name, mean in zip(names, means, strict=True)},
            named(error),
        )


def _jackknife(sums: NDArray[np.float64], counts: NDArray[np.int64]) -> NDArray[np.float64] | None:
    """Standard error of the mean over layers of sum / count, leaving one block out in turn.

    Args:
        sums: [layers, blocks, ...].
        counts: [layers, blocks].

    Returns:
        [...], or None with fewer than two blocks that have samples.
    """
    filled = counts.any(0)
    rest = counts.sum(1, keepdims=True) - counts[:, filled]
    blocks = int(filled.sum())
    if blocks < 2 or (rest == 0).any():
        return None
    without = sums.sum(1, keepdims=True) - sums[:, filled]
    means = (without / rest[:, :, None, None]).mean(0)  # [blocks, ...]
    spread = ((means - means.mean(0)) ** 2).sum(0)
    return np.sqrt((blocks - 1) / blocks * spread)


def _check(layer: str, rows: int, widths: tuple[int, int], status: Tensor) -> None:
    for words, width, side in zip(status, widths, ("old", "new"), strict=True):
        Status.read(words, rows, width).raise_for_nonfinite(f"layers[{layer!r}] ({side})")


Masks = tuple[Tensor | None, Tensor | None]
_Pair = tuple[Tensor, Tensor, Masks]


def _checked(layers: Any, masks: Masks) -> dict[str, _Pair]:
    if not isinstance(layers, Mapping):
        raise ArgumentTypeError("layers", "a mapping of (old, new) by layer", describe(layers))
    checked = {}
    for layer, pair in layers.items():
        name = f"layers[{layer!r}]"
        if not isinstance(layer, str):
            raise ArgumentTypeError("layers", "names of layers", f"{layer!r}")
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise ArgumentTypeError(name, "a pair (old, new)", describe(pair))
        names = (f"{name} (old)", f"{name} (new)")
        old, new = (check_features(x, n) for x, n in zip(pair, names, strict=True))
        own: Masks = tuple(  # type: ignore[assignment]
            mask.to(x.device) if mask is not None and matches(x, mask) else None
            for x, mask in zip((old, new), masks, strict=True)
        )
        check_tokens(old, new, own, names)
        checked[layer] = old, new, own
    return checked


@eager
def representation_distance(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    *,
    bins: int | Sequence[int] = (16, 32, 64),
    shared: bool = False,
    nonfinite: str = "error",
) -> RepresentationDistanceResult:
    """The representation distance p of activations at hand, paired row by row.

    Args:
        old, new: by layer, activations as :meth:`RepresentationDistance.update` takes them.
        bins, shared, nonfinite: see :class:`RepresentationDistance`.

    Raises:
        TypeError, ValueError: naming the layer, what was expected and what came.
    """
    acc = RepresentationDistance(bins, shared=shared, nonfinite=nonfinite)
    acc.update(paired_layers(old, new))
    return acc.compute()


def paired_layers(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """(old, new) by layer.

    Raises:
        TypeError: not two mappings.
        ValueError: other layers on the two sides.
    """
    for side, layers in (("old", old), ("new", new)):
        if not isinstance(layers, Mapping):
            raise ArgumentTypeError(side, "a mapping of activations by layer", describe(layers))
    if old.keys() != new.keys():
        raise ArgumentError("old, new", "the same layers", f"{sorted(old)} and {sorted(new)}")
    return {layer: (old[layer], new[layer]) for layer in old}
