"""Arm as an accumulator: streaming, merging, keeping, what it refuses and what memory it takes."""

import contextlib
import importlib

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers.state_made import snapshot, unchanged
from hypothesis import given, settings
from hypothesis import strategies as st

from resque_ext import Arm, arm, backend
from resque_ext.indices import _arm_state

_arm = importlib.import_module("resque_ext.indices.arm")  # in `indices`, the name is the function's

SIDES = ("old", "new")
KINDS = {
    "layer": {},
    "filter": {"per": "filter"},
    "layer, exact": {"exact": True},
    "filter, exact": {"per": "filter", "exact": True},
}
every_kind = pytest.mark.parametrize("kind", KINDS)
examples = settings(max_examples=25, deadline=None, derandomize=True, database=None)


def layers(rows, seed=0, dtype=torch.float32):
    rng = np.random.default_rng(seed)
    maps, rows_ = rng.normal(size=(rows, 4, 3, 3)), rng.normal(size=(rows, 5)) * 3
    return {"conv": torch.tensor(maps).to(dtype), "fc.1": torch.tensor(rows_).to(dtype)}


def filled(kind="layer", rows=20, **options):
    acc = Arm(**KINDS[kind], **options)
    for k, side in enumerate(SIDES):
        for seed in range(3):
            acc.update(layers(rows + seed, seed + 4 * k), side)
    return acc


def same(a, b, floor=True):
    """Two accumulators give the same result, bit for bit."""
    a, b = (acc.compute().to_dict() for acc in (a, b))
    if not floor:  # it knows in which order batches came, and warnings go by it
        for result in (a, *a["layers"].values(), b, *b["layers"].values()):
            for name in ("noise_floor", "reliable", "warnings"):
                result.pop(name, None)
    assert a == b


# Streaming and merging


@st.composite
def streams(draw):
    """Cuts of both sides' rows into batches, in some order."""
    rows = {s: draw(st.integers(1, 40)) for s in SIDES}
    batches = []
    for s in SIDES:
        cuts = sorted(draw(st.lists(st.integers(0, rows[s]), max_size=5)))
        batches += [(s, a, b) for a, b in zip([0, *cuts], [*cuts, rows[s]], strict=True)]
    return rows, batches


def part(sides, s, a, b):
    return {layer: x[a:b] for layer, x in sides[s].items()}


@every_kind
@pytest.mark.parametrize("pool", [True, pytest.param(False, marks=pytest.mark.full)])
def test_any_split_in_any_order_is_the_whole_exactly(kind, pool, monkeypatch):
    monkeypatch.setattr(_arm_state, "FIRST_TRY", 7)  # values become bins, now and then

    @examples
    @given(streams(), st.sampled_from([torch.float32, torch.bfloat16, torch.float64]), st.data())
    def run(stream, dtype, data):
        rows, batches = stream
        sides = {s: layers(rows[s], k, dtype) for k, s in enumerate(SIDES)}
        whole, shuffled = (Arm(pool=pool, **KINDS[kind]) for _ in range(2))
        for s in SIDES:
            whole.update(sides[s], s)
        for s, a, b in data.draw(st.permutations(batches)):
            shuffled.update(part(sides, s, a, b), s)
        same(shuffled, whole, floor=False)

        parts = [Arm(pool=pool, **KINDS[kind]) for _ in range(3)]
        for s, a, b in batches:
            parts[data.draw(st.integers(0, 2))].update(part(sides, s, a, b), s)
        before = [snapshot(p) for p in parts[1:]]
        parts[0].merge(parts[1])
        parts[0].merge(parts[2])
        same(parts[0], whole, floor=False)
        for p, state in zip(parts[1:], before, strict=True):
            unchanged(p, state)

    run()


@every_kind
def test_merging_is_as_if_the_batches_had_followed(kind):
    """So the halves of the noise floor go on in turn."""
    one, two, both = (Arm(**KINDS[kind]) for _ in range(3))
    for seed in range(5):
        for side in SIDES:
            batch = layers(9 + seed, seed + 10 * (side == "new"))
            (one if seed < 3 else two).update(batch, side)
            both.update(batch, side)
    one.merge(two)
    same(one, both)
    for acc in (one, both):
        acc.update(layers(9, 77), "old")
    same(one, both)


@every_kind
def test_merge_with_itself_and_with_an_empty_one(kind):
    acc, empty = filled(kind), Arm(**KINDS[kind])
    before, result = snapshot(acc), acc.compute()
    acc.merge(empty)
    unchanged(acc, before)
    empty.merge(acc)
    unchanged(empty, before)
    empty.update(layers(9), "new")  # a state of its own, not a view of the other's
    unchanged(acc, before)
    acc.merge(acc)
    doubled = acc.compute()
    assert doubled.value == result.value
    for layer, found in doubled.layers.items():
        assert found.counts["old"] == 2 * result.layers[layer].counts["old"]


def test_merge_takes_layers_that_it_lacks():
    one, two = Arm(), Arm()
    x = layers(20)
    one.update({"conv": x["conv"]}, "old")
    one.update(x, "new")
    two.update({"fc.1": x["fc.1"]}, "old")
    one.merge(two)
    assert one.compute().value == 0


@pytest.mark.parametrize(
    ("other", "error", "message"),
    [
        (Arm(per="filter"), ValueError, r"\(per, pool, exact\) = \('layer', True, False\), found"),
        (Arm(pool=False), ValueError, r"found \('layer', False, False\)"),
        (Arm(exact=True), ValueError, r"found \('layer', True, True\)"),
        ({"old": {"fc.1": torch.ones(3, 4)}}, ValueError, r"width 5 and torch.float32 .*'fc.1'"),
        ({"new": {"a": torch.ones(3, 2)}}, ValueError, r"width 3 and torch.float32 of layer 'a'"),
        ({"new": {"conv": torch.ones(3, 4).half()}}, ValueError, "'conv' on the new .*float16"),
        ({}, TypeError, "expected an Arm, found dict"),
    ],
)
def test_merge_refuses(other, error, message):
    acc = filled()
    acc.update({"a": torch.ones(4, 3)}, "old")
    if isinstance(other, dict) and other:
        sides, other = other, Arm()
        for side, activations in sides.items():
            other.update(activations, side)
    before = snapshot(acc)
    with pytest.raises(error, match=f"other: .*{message}"):
        acc.merge(other)
    unchanged(acc, before)


@every_kind
def test_reset_and_compute(kind):
    acc = filled(kind)
    before = snapshot(acc)
    same(acc, acc)
    unchanged(acc, before)
    acc.reset()
    assert acc.nbytes == 0
    with pytest.raises(ValueError, match="update: expected at least one batch"):
        acc.compute()
    for side in SIDES:
        acc.update({"other": torch.ones(3, 9).half()}, side)
    assert acc.compute().value == 0
    options = f"per={acc.per!r}, pool=True, scale=None, exact={acc.exact}"
    assert repr(acc) == f"Arm({options}, layers=1)"


def test_layers_may_come_one_by_one_and_in_inference_mode():
    one, all_ = Arm(), Arm()
    for side in SIDES:
        x = layers(20, side == "new")
        all_.update(x, side)
        with torch.inference_mode():
            for layer, values in layers(20, side == "new").items():
                one.update({layer: values}, side)
    same(one, all_)
    one.update(layers(5), "old")  # outside of it


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_came_may_change_afterwards(kind, dtype):
    acc, fresh, x = Arm(**KINDS[kind]), Arm(**KINDS[kind]), layers(20, dtype=dtype)
    for side in SIDES:
        acc.update(x, side)
        for values in x.values():
            values.mul_(2)
    fresh.update(layers(20, dtype=dtype), "old")
    fresh.update({k: v * 2 for k, v in layers(20, dtype=dtype).items()}, "new")
    same(acc, fresh)


# Keeping and loading


@every_kind
@pytest.mark.parametrize("empty", [False, True])
def test_state_round_trip_through_safetensors(kind, empty):
    acc = Arm(**KINDS[kind]) if empty else filled(kind)
    state = safetensors.torch.load(safetensors.torch.save(acc.state_dict()))
    loaded = Arm(**KINDS[kind])
    loaded.update({"other": torch.ones(2, 3)}, "old")  # replaced
    loaded.load_state_dict(state)
    unchanged(loaded, snapshot(acc))
    for a in (acc, loaded):
        a.update(layers(24, 7), "old")
        a.update(layers(24, 8), "new")
    same(loaded, acc)
    for x in state.values():  # a copy both ways
        x.zero_()
    same(loaded, acc)


def changed(key, change):
    def apply(state):
        state[key] = change(state[key])

    return apply


def nudged(key, index, by):
    def change(x):
        x = x.clone()
        x[index] += by
        return x

    return changed(key, change)


BINS, PARTS = "old.counts.fc.1", ("keys", "counts")
BAD_STATES = {
    "no config": ("layer", lambda s: s.pop("config"), KeyError, "key 'config'"),
    "other options": ("layer", nudged("config", 1, -1), ValueError, r"\['config'\]: .*\[0, 0, 0\]"),
    "part missing": ("layer", lambda s: s.pop(BINS), KeyError, r"'fc.1'\]: expected the parts"),
    "meta missing": ("layer", lambda s: s.pop("old.meta.fc.1"), KeyError, "SIDE.PART.LAYER"),
    "part unknown": (
        "layer",
        lambda s: s.update({"old.more.fc.1": torch.zeros(1)}),
        KeyError,
        r"expected the parts \['counts', 'meta'\], found \['counts', 'meta', 'more'\]",
    ),
    "no such side": ("layer", lambda s: s.update(x=torch.zeros(1)), KeyError, "SIDE.PART.LAYER"),
    "dtype unknown": ("layer", nudged("old.meta.fc.1", 0, 4), ValueError, r"'meta'\]: expected 7"),
    "negative": ("layer", nudged("old.meta.fc.1", 2, -99), ValueError, r"'meta'\]: expected 7"),
    "shape": ("layer", changed(BINS, lambda t: t[:, 1:]), ValueError, r"\(2, 65536\), .*65535"),
    "dtype": ("layer", changed(BINS, lambda t: t.int()), ValueError, "expected .*int64.*int32"),
    "below 0": ("layer", nudged(BINS, (0, 4), -1), ValueError, "counts of 315 values"),
    "too many": ("layer", nudged(BINS, (0, 40_000), 1), ValueError, "counts of 315 values"),
    "NaN": (
        "layer",
        lambda s: (nudged(BINS, (0, -1), 5)(s), nudged("old.meta.fc.1", 5, 5)(s)),
        ValueError,
        "0 for infinity and NaN",
    ),
    "not a tensor": ("layer", changed(BINS, lambda t: "bins"), TypeError, "expected a torch.T"),
    "widths": (
        "filter",
        lambda s: s.update({f"old.{p}.fc.1": s[f"old.{p}.conv"] for p in ("meta", *PARTS)}),
        ValueError,
        r"one width of 'fc.1', found \[4, 5\]",
    ),
    "keys out of order": (
        "filter",
        changed("old.keys.conv", lambda t: t.flip(0)),
        ValueError,
        "bin, ascending",
    ),
    "key too large": ("filter", nudged("old.keys.conv", -1, 2**18), ValueError, "bin, ascending"),
    "key of NaN": (
        "filter",
        changed("old.keys.conv", lambda t: torch.cat([t[:-1], t.new_tensor([2**18 - 1])])),
        ValueError,
        "bin, ascending",
    ),
    "fewer counts": (
        "filter",
        changed("old.counts.conv", lambda t: t[:-1]),
        ValueError,
        r"'counts'\]: expected shape",
    ),
    "more counts": ("filter", nudged("old.counts.conv", 0, 1), ValueError, "counts of 252 values"),
    "fewer samples": (
        "layer, exact",
        changed("old.first.conv", lambda t: t[:-1]),
        ValueError,
        r"'meta'\]: expected 251 values, 251 of them finite",
    ),
    "samples that are not finite": (
        "layer, exact",
        nudged("old.first.conv", (3, 0), np.inf),
        ValueError,
        r"'meta'\]: expected 252 values, 251 of them finite",
    ),
    "more rows": (
        "layer",
        nudged("old.meta.conv", 2, 9),
        ValueError,
        r"72 rows of 4 values each, found \[0, 4, 51, 21",
    ),
    "other samples": (
        "filter, exact",
        changed("old.second.conv", lambda t: t.double()),
        ValueError,
        r"\[n, 4\], torch.float32, found .* torch.float64",
    ),
}


@pytest.mark.parametrize("case", BAD_STATES)
def test_load_refuses_and_leaves_the_state(case):
    kind, spoil, error, message = BAD_STATES[case]
    acc = filled(kind, rows=9)
    before = snapshot(acc)
    state = filled(kind).state_dict()
    spoil(state)
    with pytest.raises(error, match=message):
        acc.load_state_dict(state)
    unchanged(acc, before)


def test_load_refuses_other_things():
    with pytest.raises(TypeError, match="state: expected a mapping of tensors, found list"):
        Arm().load_state_dict([])
    with pytest.raises(ValueError, match="state: expected a state of at most max_bytes=100"):
        Arm(max_bytes=100).load_state_dict(filled().state_dict())


# Batches that are refused


X = layers(12, 5)


def spoilt(layer, index, value):
    x = {k: v.clone() for k, v in X.items()}
    x[layer][index] = value
    return x


BAD_BATCHES = {
    "NaN": (spoilt("fc.1", (7, 2), np.nan), ValueError, r"\['fc.1'\]: .* found 1 .* \[7, 2\]"),
    "inf": (spoilt("conv", (3, 1, 2, 2), np.inf), ValueError, r"\['conv'\]: .* at \[3, 1\]"),
    "width": ({**X, "fc.1": X["fc.1"][:, 1:]}, ValueError, r"width 5 .*, found shape \(12, 4\)"),
    "dtype": ({**X, "fc.1": X["fc.1"].half()}, ValueError, r"expected torch.float32 .*old side"),
    "rank": ({**X, "fc.1": X["fc.1"][0]}, ValueError, r"\['fc.1'\]: expected \[N, D\]"),
    "bools": ({**X, "fc.1": X["fc.1"].bool()}, TypeError, r"\['fc.1'\]: expected float32"),
    "no columns": ({**X, "new": X["fc.1"][:, :0]}, ValueError, r"\['new'\]: expected at least one"),
    "a list": ([X], TypeError, "activations: expected a mapping .* found list"),
    "names": ({**X, 1: X["fc.1"]}, TypeError, "activations: expected names of layers, found 1"),
}


@every_kind
@pytest.mark.parametrize("name_of_backend", ["native", "torch"])
@pytest.mark.parametrize("case", BAD_BATCHES)
def test_a_refused_batch_leaves_the_state_bit_for_bit(case, kind, name_of_backend):
    batch, error, message = BAD_BATCHES[case]
    acc, first = filled(kind), Arm(**KINDS[kind])
    before = snapshot(acc)
    with backend(name_of_backend):
        with pytest.raises(error, match=message):
            acc.update(batch, "old")
        if case not in ("width", "dtype"):
            with pytest.raises(error, match=message):
                first.update(batch, "old")
            assert first.nbytes == 0
    unchanged(acc, before)
    acc.update(X, "old")


def test_side_is_old_or_new():
    acc = filled()
    before = snapshot(acc)
    for side in ("both", None, 0):
        with pytest.raises(ValueError, match=f"side: expected one of 'old', 'new', found {side!r}"):
            acc.update(X, side)
    unchanged(acc, before)


def test_a_layer_on_one_side_alone():
    acc = filled()
    acc.update({"more": torch.ones(3, 2)}, "new")
    with pytest.raises(
        ValueError, match=r"'more'\]: .* both sides, .* new side .* none on the old"
    ):
        acc.compute()


def test_sides_may_differ_in_dtype():
    acc = Arm()
    x = torch.randn(40, 3).bfloat16()
    acc.update({"a": x}, "old")
    acc.update({"a": x.double()}, "new")
    assert acc.compute().value <= acc.compute().bound


# Memory


@every_kind
def test_more_than_max_bytes_is_refused(kind):
    acc = filled(kind)
    before = snapshot(acc)
    acc.max_bytes = acc.nbytes + 100
    batch = {"more": torch.randn(40, 5)}
    message = rf"activations: expected a state of at most max_bytes={acc.max_bytes}, found .* \d+"
    with pytest.raises(ValueError, match=message):
        acc.update(batch, "old")
    unchanged(acc, before)
    other = Arm(**KINDS[kind])
    other.update(batch, "old")
    with pytest.raises(ValueError, match=rf"other: .*max_bytes={acc.max_bytes}"):
        acc.merge(other)
    unchanged(acc, before)
    acc.max_bytes = 2**30
    acc.update(batch, "old")
    acc.merge(other)


def test_a_layer_takes_a_megabyte_a_side():
    acc = filled()
    assert acc.nbytes == 4 * 2**20
    acc.update(layers(3_000, 9), "old")
    assert acc.nbytes == 4 * 2**20


def test_filters_keep_values_until_their_bins_are_smaller(monkeypatch):
    """Values of a few bins: 2 bytes each at first, then 8 bytes a bin."""
    x = torch.randint(4, (1_000, 6)).float()
    acc = Arm(per="filter")
    for k in range(1, 5):
        acc.update({"a": x}, "old")
        assert acc.nbytes == 2 * 6 * 1_000 * k
    acc.update({"a": x}, "old")
    assert acc.nbytes == 8 * 6 * 4
    acc.update({"a": x}, "old")
    assert acc.nbytes == 8 * 6 * 4 + 2 * 6 * 1_000
    # Values that are all different are smaller than their bins would be, and are tried less often.
    tried, compact = [], _arm_state.FilterBins.compact
    monkeypatch.setattr(
        _arm_state.FilterBins, "compact", lambda state: (tried.append(state.nbytes), compact(state))
    )
    spread = torch.arange(1, 20_001, dtype=torch.int16).view(torch.bfloat16).view(-1, 1)
    acc = Arm(per="filter")
    for part in spread.split(1_000):
        acc.update({"a": part}, "old")
    assert acc.nbytes == 2 * 20_000
    assert tried == [2 * 5_000, 2 * 10_000, 2 * 20_000]
    acc.max_bytes = 2 * 20_000 + 10
    with pytest.raises(ValueError, match="max_bytes"):
        acc.update({"a": spread[:10]}, "old")
    assert acc.nbytes == 2 * 20_000


def test_room_is_made_before_a_batch_is_refused():
    x = torch.randint(4, (1_000, 6)).float()
    acc = Arm(per="filter", max_bytes=2 * 6 * 1_000 + 1_000)
    for _ in range(3):
        acc.update({"a": x}, "old")  # the second and third time the values become bins first
    assert acc.nbytes <= acc.max_bytes
    acc.update({"a": x}, "new")
    assert acc.compute().layers["a"].counts == {"old": 18_000, "new": 6_000}
    assert acc.compute().value == 0


def test_counts_of_2_31_and_more():
    """32 bits are enough for as long as no more values have come."""
    acc = Arm(per="filter")
    for side in SIDES:
        acc.update({"a": torch.ones(5_000, 2)}, side)
    assert acc._states["old"]["a"].sparse[0][1].dtype == torch.int32
    for _ in range(20):
        acc.merge(acc)
    kept = acc._states["old"]["a"]
    assert kept.sparse[0][1].dtype == torch.int64
    assert kept.sparse[0][1].tolist() == [5_000 * 2**20] * 2
    assert acc.compute().layers["a"].counts["old"] == 5_000 * 2**21
    assert acc.compute().value == 0


# What CUDA does, where reading a value would mean to wait


@contextlib.contextmanager
def nothing_read_at_once(monkeypatch):
    monkeypatch.setattr(_arm_state, "reads_at_once", lambda device: False)
    monkeypatch.setattr(_arm, "reads_at_once", lambda device: False)
    yield
    monkeypatch.undo()


@every_kind
def test_wrong_values_raise_later_where_reading_would_wait(kind, monkeypatch):
    message = r"activations\['fc.1'\]: .*found 1 .*first at \[7, 2\] of update 3 \(side='old'\)"
    with nothing_read_at_once(monkeypatch):
        acc = filled(kind)
        same(acc, filled(kind))
        acc.update(BAD_BATCHES["NaN"][0], "old")
        acc.update(X, "new")
        for call in (acc.compute, acc.state_dict, lambda: acc.merge(acc), acc.compute):
            with pytest.raises(ValueError, match=message):
                call()
        acc.reset()
        acc.update(X, "old")
        acc.update(X, "new")
        assert acc.compute().value == 0

        skipping = filled(kind, nonfinite="skip")
        skipping.update(BAD_BATCHES["NaN"][0], "old")
        assert skipping.compute().nonfinite_values == {"old": 1, "new": 0}
        with pytest.raises(ValueError, match=r"old\['fc.1'\]: .*found 1 .* at \[7, 2\] \("):
            arm(BAD_BATCHES["NaN"][0], X, **KINDS[kind])
    at_once = filled(kind)
    with nothing_read_at_once(monkeypatch):
        same(at_once, filled(kind))


def test_a_layer_that_is_discarded_has_no_say(monkeypatch):
    with nothing_read_at_once(monkeypatch):
        acc = Arm()
        for side in SIDES:
            acc.update(BAD_BATCHES["NaN"][0], side)
        acc.discard(["fc.1", "none such"])
        assert list(acc.compute().layers) == ["conv"]


def test_unread_statuses_are_read_before_they_are_too_many(monkeypatch):
    with nothing_read_at_once(monkeypatch):
        monkeypatch.setattr(_arm, "_PENDING", 5)
        acc = Arm()
        acc.update(BAD_BATCHES["NaN"][0], "old")
        acc.update(X, "old")
        with pytest.raises(ValueError, match=r"of update 0 \(side='old'\)"):
            acc.update(X, "old")


# On a GPU alone


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every_kind
def test_updates_on_cuda_do_not_wait(kind):
    x = {k: v.cuda() for k, v in layers(300).items()}
    acc = Arm(**KINDS[kind])
    for side in SIDES:
        acc.update(x, side)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for side in SIDES:
            acc.update(x, side)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    cpu = Arm(**KINDS[kind])
    for _ in range(2):
        for side in SIDES:
            cpu.update(layers(300), side)
    assert acc.compute().value == cpu.compute().value == 0
    cpu.merge(acc)
    assert cpu.compute().value == 0
