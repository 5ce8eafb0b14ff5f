"""ARM: how far the activations of every layer move, as distances between whole distributions."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from resque_ext.data.checks import as_array, check_choice, check_features, describe
from resque_ext.errors import ArgumentError, ArgumentTypeError
from resque_ext.indices._arm_distance import layer_distance
from resque_ext.indices._arm_result import ArmResult
from resque_ext.indices._arm_state import (
    DTYPES,
    Bins,
    FilterBins,
    Samples,
    Staged,
    State,
    reads_at_once,
)
from resque_ext.indices._state import tensors_of
from resque_ext.indices.base import SIDES, Accumulator, DeferredFaults, Side, expect_kind
from resque_ext.model.pooling import Features, check_mask, matches
from resque_ext.ops.eager import eager
from resque_ext.ops.value_histogram import Values, check_finite

PER = ("layer", "filter")
_PENDING = 16_384  # unread CUDA statuses kept at most; then one wait reads them all
_META = 7  # numbers in the `meta` of a layer's side


class _Layer(NamedTuple):
    """A layer of a batch, ready to be added."""

    layer: str
    where: str  # its name in messages
    state: State
    parts: list[Staged]


@eager
class Arm(Accumulator):
    """ARM, streamed: one pass, bounded memory, mergeable without any rounding.

    A layer's distance is the Wasserstein distance W1 between the distributions of its old and of
    its new activations over all samples; ARM is the mean over layers. Sides need not be paired, nor
    have equally many samples.

    Args:
        per: "layer": the activations of all filters together. "filter": W1 of each filter by
            itself, averaged over the filters.
        pool: [N, C, H, W] and [N, T, D] are averaged over positions or tokens first; False takes
            every position as a value. [N, D] is taken as it is.
        scale: None, or "old-std": each layer's distance is divided by the standard deviation of its
            old activations, because layers differ in scale.
        max_bytes: the most that the state may take; a batch that would take more is refused. A
            layer takes 1 MB a side; with per="filter" 2 bytes a value, until the filters' bins are
            smaller (8 bytes each, some hundreds a filter).
        nonfinite: "error": NaN or infinity in what is counted raises. "skip": such values are left
            out and counted in the result.
        exact: keep float32 and float64 values as they are and sort them, 4 or 8 bytes a value,
            instead of counting them over bins.

    Values that come as bfloat16 or float16 (and are not averaged) are counted exactly. float32 and
    float64 values (and so all pooled ones) are counted by the top 16 bits of their float32 pattern.
    A value is then known to 2^-8 of itself; `bound` is the resulting error of the distance.

    The noise floor of per="layer" is the distance between two halves of the old side, batches dealt
    to them in turn, times sqrt((1/N + 1/M) / (1/N1 + 1/N2)) for N old and M new samples, N1 + N2 =
    N; so batches have to be alike, as shuffled ones are, and two or more. With per="filter" it is
    the mean over filters of sqrt(2/pi (1/N + 1/M)) * integral of sqrt(F (1 - F)), with F the old
    distribution function. This is the expected distance of two sets of independent values; several
    positions of one sample are not independent.

    On the CPU a wrong batch raises in update() and leaves the state as it was. On CUDA update()
    does not wait for the device: non-finite values raise in compute(), or in a later update() at
    the latest after 16,384 layers, until reset(). With per="filter" it waits when it turns values
    into bins, once in 4,096 values of a filter or less often.

    Source: ARM as published (the activations of all filters), its distance as
    scipy.stats.wasserstein_distance defines it.
    """

    def __init__(
        self,
        *,
        per: str = "layer",
        pool: bool = True,
        scale: str | None = None,
        max_bytes: int = 2**30,
        nonfinite: str = "error",
        exact: bool = False,
    ) -> None:
        check_choice(per, PER, "per")
        check_choice(nonfinite, ("error", "skip"), "nonfinite")
        if scale is not None:
            check_choice(scale, ("old-std",), "scale")
        for flag, name in ((pool, "pool"), (exact, "exact")):
            if not isinstance(flag, bool):
                raise ArgumentTypeError(name, "True or False", f"{flag!r}")
        if isinstance(max_bytes, bool) or not isinstance(max_bytes, (int, np.integer)):
            raise ArgumentTypeError("max_bytes", "an integer", f"{max_bytes!r}")
        if max_bytes < 1:
            raise ArgumentError("max_bytes", "at least 1", max_bytes)
        self.per, self.pool, self.scale, self.exact = per, pool, scale, exact
        self.max_bytes, self.nonfinite = int(max_bytes), nonfinite
        self.reset()

    def __repr__(self) -> str:
        options = f"per={self.per!r}, pool={self.pool}, scale={self.scale!r}, exact={self.exact}"
        return f"Arm({options}, layers={len(self._states['old'].keys() | self._states['new'])})"

    def reset(self) -> None:
        """Back to no data; any layers and device may come next."""
        self._states: dict[str, dict[str, State]] = {side: {} for side in SIDES}
        self._faults = DeferredFaults(_PENDING)

    @property
    def nbytes(self) -> int:
        """The bytes that the state takes now."""
        return sum(state.nbytes for states in self._states.values() for state in states.values())

    def update(self, activations: Mapping[str, Any], side: Side, mask: Any = None) -> None:
        """Adds a batch of some layers to one side.

        Args:
            activations: by layer, [N, D], [N, C, H, W] or [N, T, D] of float32, float64, float16 or
                bfloat16. A layer keeps its dtype and device within a side, and its width.
            side: "old" or "new".
            mask: [N, T], nonzero for real tokens: of all layers [N, T, D] of these N and T others
                do not count. None: all are real.

        Raises:
            TypeError, ValueError: naming the layer, what was expected and what came; also when
                the state would take more than `max_bytes`.
        """
        check_choice(side, SIDES, "side")
        # State made under a caller's inference mode could not be updated outside of it.
        with torch.inference_mode(False), torch.no_grad():
            layers = _checked(activations, "activations")
            real = None if mask is None else check_mask(mask, "mask")
            self._add(layers, side, "activations", mask=real)

    def discard(self, layers: Iterable[str]) -> None:
        """Forgets these layers on both sides; those that are not there are passed over."""
        for layer in set(layers):
            for states in self._states.values():
                states.pop(layer, None)
            self._faults.discard(layer)

    def _add(
        self,
        layers: Mapping[str, Tensor],
        side: Side,
        name: str,
        in_halves: bool = False,
        mask: Tensor | None = None,
    ) -> None:
        """A batch, or two: the even and the odd rows."""
        batch: list[_Layer] = []
        for layer, x in layers.items():
            where = f"{name}[{layer!r}]"
            real = mask.to(x.device) if mask is not None and matches(x, mask) else None
            x = Features(x, real).pooled() if self.pool else x
            state = self._state(layer, x, side, where)
            parts = []
            for first, step in ((0, 2), (1, 2)) if in_halves else ((0, 1),):
                part, samples = x[first::step], None
                if x.dim() == 3 and real is not None:
                    part, samples = part[real[first::step]], len(part)  # [real tokens, D]
                values = Values.of(part, False, state.by_channel)
                values = values._replace(rows=(first, step), samples=samples)
                parts.append(state.stage(values))
            if reads_at_once(x.device) and self.nonfinite == "error":
                check_finite([(part.values, part.status) for part in parts], where)
            batch.append(_Layer(layer, where, state, parts))
        self._make_room(side, batch, name)
        # All is known to be right (or, on CUDA, will be read before any result is given).
        for layer, where, state, parts in batch:
            self._states[side][layer] = state
            update = "" if in_halves else f" of update {state.updates} (side={side!r})"
            found = [(part.values.without_data(), state.commit(part)) for part in parts]
            if not reads_at_once(state.device) and self.nonfinite == "error":
                for values, status in found:
                    check = functools.partial(_check, values, where, update)
                    self._faults.add(status, check, layer)
        self._faults.read_if_many()

    def _state(self, layer: str, x: Tensor, side: Side, where: str) -> State:
        """The layer's state on this side, a new one at first; checks that `x` goes with it."""
        width = x.shape[2] if x.dim() == 3 else x.shape[1]
        if width == 0:
            raise ArgumentError(where, "at least one column", describe(x))
        states = [self._states[s].get(layer) for s in (side, *SIDES)]
        for known in filter(None, states):
            if known.width != width:
                raise ArgumentError(
                    where, f"width {known.width} as in earlier updates", describe(x)
                )
        state = states[0]
        if state is None:
            return self._new_state(x.dtype, width, x.device)
        if (state.dtype, state.device) != (x.dtype, x.device):
            raise ArgumentError(
                where,
                f"{state.dtype} on {state.device} as in earlier updates of the {side} side",
                describe(x),
            )
        return state

    def _new_state(self, dtype: torch.dtype, width: int, device: torch.device) -> State:
        if self.exact and dtype.itemsize > 2:
            return Samples(dtype, width, device, self.per == "filter")
        kind = FilterBins if self.per == "filter" else Bins
        return kind(dtype, width, device)

    def _make_room(self, side: Side, batch: Sequence[_Layer], name: str) -> None:
        def needed() -> int:
            new = [b.state.nbytes for b in batch if b.layer not in self._states[side]]
            more = [b.state.bytes_of(part.values) for b in batch for part in b.parts]
            return self.nbytes + sum(new) + sum(more)

        if needed() <= self.max_bytes:
            return
        for states in self._states.values():
            for state in states.values():
                state.compact()
        self._check_bytes(needed(), name)

    def _check_bytes(self, needed: int, name: str) -> None:
        if needed > self.max_bytes:
            raise ArgumentError(
                name,
                f"a state of at most max_bytes={self.max_bytes}",
                f"that it would take {needed} bytes",
            )

    def merge(self, other: Arm) -> None:
        """Adds what `other` has seen: any split of the data gives exactly the same distances.

        `other` stays as it is and may live on another device.

        Raises:
            TypeError: not an Arm.
            ValueError: other options, or widths or dtypes of a layer, or too many bytes.
        """
        expect_kind(other, self)
        mine, theirs = ((a.per, a.pool, a.exact) for a in (self, other))
        if mine != theirs:
            raise ArgumentError("other", f"(per, pool, exact) = {mine}", theirs)
        self._faults.read()
        other._faults.read()
        merged: dict[str, dict[str, State]] = {side: dict(self._states[side]) for side in SIDES}
        with torch.inference_mode(False), torch.no_grad():
            for side in SIDES:
                for layer, theirs_ in other._states[side].items():
                    known = merged[side].get(layer)
                    like = known or next(
                        (s[layer] for s in self._states.values() if layer in s), theirs_
                    )
                    dtype = theirs_.dtype if known is None else known.dtype
                    if (like.width, dtype) != (theirs_.width, theirs_.dtype):
                        raise ArgumentError(
                            "other",
                            f"width {like.width} and {dtype} of layer {layer!r} on the {side} side",
                            f"{theirs_.width} and {theirs_.dtype}",
                        )
                    merged[side][layer] = (known or theirs_.like()).merged(theirs_)
        needed = sum(state.nbytes for states in merged.values() for state in states.values())
        self._check_bytes(needed, "other")
        self._states = merged

    def _config(self) -> list[int]:
        return [PER.index(self.per), int(self.pool), int(self.exact)]

    def state_dict(self) -> dict[str, Tensor]:
        """The whole state as plain tensors, ready for safetensors."""
        self._faults.read()
        state = {"config": torch.tensor(self._config())}
        with torch.inference_mode(False), torch.no_grad():
            for side in SIDES:
                for layer, kept in self._states[side].items():
                    parts = {"meta": kept.meta()} | kept.tensors()
                    state |= {f"{side}.{part}.{layer}": x for part, x in parts.items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Replaces the state by one of :meth:`state_dict`; nothing changes when it does not fit.

        Raises:
            KeyError: a tensor is missing or unknown.
            TypeError: something that is not a tensor.
            ValueError: made with other options, or a tensor is not what it should be.
        """
        tensors = tensors_of(state, self._config(), ("per", "pool", "exact"))
        parts: dict[tuple[str, str], dict[str, Tensor]] = {}
        for key, x in tensors.items():
            side, part, layer = ([*str(key).split(".", 2), "", ""])[:3]
            parts.setdefault((side, layer), {})[part] = x
        loaded: dict[str, dict[str, State]] = {side: {} for side in SIDES}
        with torch.inference_mode(False), torch.no_grad():
            for (side, layer), fields in parts.items():
                loaded_state = self._loaded(side, layer, fields)
                loaded[side][layer] = loaded_state
        for layer in loaded["old"].keys() & loaded["new"].keys():
            widths = [loaded[side][layer].width for side in SIDES]
            if widths[0] != widths[1]:
                raise ArgumentError("state", f"one width of {layer!r}", widths)
        self._check_bytes(sum(s.nbytes for p in loaded.values() for s in p.values()), "state")
        self.reset()
        self._states = loaded

    def _loaded(self, side: str, layer: str, fields: Mapping[str, Tensor]) -> State:
        name = f"state[{side!r}, {layer!r}]"
        meta = fields.get("meta")
        if side not in SIDES or meta is None:
            raise KeyError(
                f"{name}: expected keys SIDE.PART.LAYER with a 'meta', found {sorted(fields)}"
            )
        right = (
            tuple(meta.shape) == (_META,) and meta.dtype == torch.int64 and bool((meta >= 0).all())
        )
        if not right or int(meta[0]) >= len(DTYPES) or not 1 <= int(meta[1]) < 2**31:
            raise ArgumentError(f"{name}['meta']", f"{_META} numbers of a state", meta.tolist())
        device = next((x.device for part, x in fields.items() if part != "meta"), meta.device)
        state = self._new_state(DTYPES[int(meta[0])], int(meta[1]), device)
        if set(fields) != {"meta", *state.fields}:
            raise KeyError(
                f"{name}: expected the parts {sorted(('meta', *state.fields))}, found "
                f"{sorted(fields)}"
            )
        state.load(fields, name)
        return state

    def compute(self) -> ArmResult:
        """The index of all data so far; more may follow. Waits for the device.

        Raises:
            ValueError: there is no data, a layer is on one side alone or has no values there, or
                its old values do not vary (scale="old-std").
        """
        self._faults.read()
        old, new = (self._states[side] for side in SIDES)
        if not old and not new:
            raise ArgumentError("update", "at least one batch before compute()", "none")
        if old.keys() != new.keys():
            layer = next(name for name in {**old, **new} if name not in old or name not in new)
            here, there = ("old", "new") if layer in old else ("new", "old")
            raise ArgumentError(
                f"activations[{layer!r}]",
                "them on both sides",
                f"them on the {here} side and none on the {there} side",
            )
        with torch.inference_mode(False), torch.no_grad():
            layers = {
                layer: layer_distance(
                    layer, old[layer], new[layer], self.per == "filter", self.scale is not None
                )
                for layer in old
            }
        value = float(np.mean([float(d) for d in layers.values()]))
        floors = [layer.noise_floor for layer in layers.values()]
        floor = None if None in floors else float(np.mean(floors))  # type: ignore[arg-type]
        warnings: tuple[str, ...] = ()
        if floor is None:
            warnings = ("noise_floor: unknown, as a layer has too few values; read more rows",)
        elif value <= floor:
            warnings = (
                "value: no shift detected, as it is not above the noise floor; read more rows to "
                "detect a small shift",
            )
        return ArmResult(
            value=value,
            layers=layers,
            bound=float(np.mean([d.bound for d in layers.values()])),
            noise_floor=floor,
            reliable=not warnings,
            warnings=warnings,
            nonfinite_values={
                side: sum(int(s.skipped) for s in self._states[side].values()) for side in SIDES
            },
            per=self.per,
            scale=self.scale,
        )


def _check(values: Values, name: str, where: str, status: Tensor) -> None:
    check_finite([(values, status)], name, where)


def _checked(activations: Any, name: str) -> dict[str, Tensor]:
    """Activations by layer, each a tensor that an index takes."""
    if not isinstance(activations, Mapping):
        raise ArgumentTypeError(name, "a mapping of activations by layer", describe(activations))
    for layer in activations:
        if not isinstance(layer, str):
            raise ArgumentTypeError(name, "names of layers", f"{layer!r}")
    return {layer: check_features(x, f"{name}[{layer!r}]") for layer, x in activations.items()}


@eager
def arm(
    old: Any,
    new: Any,
    *,
    per: str = "layer",
    pool: bool = True,
    scale: str | None = None,
    max_bytes: int = 2**30,
    nonfinite: str = "error",
    exact: bool = False,
) -> ArmResult:
    """ARM of activations at hand: the mean over layers of W1 between old and new activations.

    Args:
        old, new: by layer, activations as :meth:`Arm.update` takes; one tensor, array, data frame
            or list of rows alone is a layer by the name of "".
        per, pool, scale, max_bytes, nonfinite, exact: see :class:`Arm`. The halves of the noise
            floor are the even and the odd rows.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    acc = Arm(
        per=per, pool=pool, scale=scale, max_bytes=max_bytes, nonfinite=nonfinite, exact=exact
    )
    sides: dict[Side, dict[str, Tensor]] = {}
    for side, given in (("old", old), ("new", new)):
        alone = as_array(given, side)  # a mapping comes back as it is
        sides[side] = _checked({"": alone} if hasattr(alone, "ndim") else given, side)
    if sides["old"].keys() != sides["new"].keys():
        raise ArgumentError(
            "old, new", "the same layers", f"{sorted(sides['old'])} and {sorted(sides['new'])}"
        )
    with torch.inference_mode(False), torch.no_grad():
        for side, layers in sides.items():
            acc._add(layers, side, side, in_halves=True)
    return acc.compute()
