"""ResqueDist and resque_dist: values, streaming and merging, what is refused, what is left out."""

import dataclasses
import json
import sys
import warnings

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resque_ext import ResqueDist, ResqueDistResult, backend, resque_dist
from resque_ext.indices.resque_dist import default_blocks

SIDES = ("old", "new")
on_backends = pytest.mark.parametrize("name_of_backend", ["native", "torch"])


def sample(n, classes, width, seed=0):
    """Rows away from zero, so that no class sum nearly cancels; classes as even as can be."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    rng.shuffle(labels)
    return torch.from_numpy(rng.normal(size=(n, width)) + 2), torch.from_numpy(labels)


def truth(old, old_labels, new, new_labels, classes):
    """The definition, in the widest floats there are."""
    angles = []
    for c in range(classes):
        units = []
        for x, y in ((old, old_labels), (new, new_labels)):
            u = x.double().numpy().astype(np.longdouble)[y.numpy() == c].sum(axis=0)
            units.append(u / np.sqrt((u**2).sum()))
        u, v = units
        apart, along = np.sqrt(((u - v) ** 2).sum()), np.sqrt(((u + v) ** 2).sum())
        angles.append(float(2 * np.arctan2(apart, along) / np.longdouble(np.pi)))
    return np.array(angles)


def filled(classes=3, width=4, rows=40, **options):
    acc = ResqueDist(classes, **options)
    for seed, side in enumerate(SIDES):
        acc.update(*sample(rows, classes, width, seed), side)
    return acc


def same(a, b, tolerance=0.0):
    """Two results agree in everything, numbers to `tolerance`."""
    for f in dataclasses.fields(ResqueDistResult):
        x, y = getattr(a, f.name), getattr(b, f.name)
        if f.name == "counts":
            for side in SIDES:
                np.testing.assert_array_equal(x[side], y[side])
        elif isinstance(x, float | np.ndarray) and y is not None:
            np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance, err_msg=f.name)
        else:
            assert x == y, f.name


def snapshot(acc):
    return {k: v.clone() for k, v in acc.state_dict().items()} | {"width": acc.width}


def unchanged(acc, before):
    now = snapshot(acc)
    assert now.keys() == before.keys()
    assert now.pop("width") == before["width"]
    for key, tensor in now.items():
        assert tensor.dtype == before[key].dtype
        assert torch.equal(tensor, before[key]), key


# Values


@on_backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_value_is_the_definition(name_of_backend, dtype):
    (x, y), (x2, y2) = sample(90, 4, 33, 1), sample(61, 4, 33, 2)
    x, x2 = x.to(dtype), x2.to(dtype)
    expected = truth(x, y, x2, y2, 4)
    with backend(name_of_backend):
        result = resque_dist(x, x2, y, y2, 4)
    np.testing.assert_allclose(result.per_class, expected, rtol=1e-12)
    assert abs(result.value - expected.mean()) < 1e-14
    assert result.per_class.dtype == np.float64
    assert isinstance(result.value, float)
    assert result.missing == ()
    assert result.nonfinite_rows == {"old": 0, "new": 0}
    np.testing.assert_array_equal(result.counts["old"], np.bincount(y))
    np.testing.assert_array_equal(result.counts["new"], np.bincount(y2))
    assert result.layer is result.old_accuracy is result.new_accuracy is None


@on_backends
def test_positions_are_averaged(name_of_backend):
    _, y = sample(30, 3, 1)
    maps = torch.randn(2, 30, 6, 5, 4) + 1
    means = maps.double().mean((3, 4))
    with backend(name_of_backend):
        expected = resque_dist(*means, y, y)
        for form in (torch.contiguous_format, torch.channels_last):
            old, new = (m.to(memory_format=form) for m in maps)
            same(resque_dist(old, new, y, y), expected, 1e-12)
        tokens = maps.flatten(3).transpose(2, 3)  # [2, N, T, D]
        same(resque_dist(*tokens, y, y), expected, 1e-12)
        same(resque_dist(*tokens.contiguous(), y, y), expected, 1e-12)


def test_identical_sides_are_0_and_opposite_ones_1():
    x, y = sample(50, 4, 7)
    assert resque_dist(x, x, y, y).value == 0
    assert resque_dist(x, x.clone().flip(0), y, y.flip(0)).value < 1e-15
    assert resque_dist(x, -x, y, y).value == 1
    assert (resque_dist(x, -x, y, y).per_class == 1).all()
    assert resque_dist(x[:, :1], x[:, :1] + 5, y, y).value == 0  # in one dimension, signs only


def test_symmetric_and_free_of_scale_and_rotation():
    (x, y), (x2, y2) = sample(60, 4, 9, 1), sample(45, 4, 9, 2)
    angles = resque_dist(x, x2, y, y2).per_class
    np.testing.assert_array_equal(resque_dist(x2, x, y2, y).per_class, angles)
    for scale in (1e-200, 3.7, 1e200):
        scaled = resque_dist(x, scale * x2, y, y2).per_class
        np.testing.assert_allclose(scaled, angles, rtol=1e-13)
    turn, _ = torch.linalg.qr(torch.randn(9, 9, dtype=torch.float64))
    turned = resque_dist(x @ turn, x2 @ turn, y, y2)
    np.testing.assert_allclose(turned.per_class, angles, rtol=1e-12)
    alone = resque_dist(x, x2 @ turn, y, y2)
    assert abs(alone.value - angles.mean()) > 0.01  # one side alone: a shift like any other


@on_backends
def test_sums_beyond_the_features_own_range(name_of_backend):
    """float16 sums beyond 65,504, float32 values whose squares overflow, denormals."""
    y = torch.arange(4000) % 2
    with backend(name_of_backend):
        for value, dtype in ((6e4, torch.float16), (1e30, torch.float32), (1e-40, torch.float32)):
            x = torch.full((4000, 3), value, dtype=dtype)
            z = x.clone()
            z[:, 0] = 0
            expected = np.arctan2(1, np.sqrt(2)) / np.pi
            np.testing.assert_allclose(resque_dist(x, z, y, y).per_class, expected, rtol=1e-13)


@pytest.mark.parametrize("classes", [2, 5])  # 32 groups of rows at most, and more: two ways
def test_thread_count_does_not_show(classes):
    """Several megabytes a side, so that there is work for more than one thread."""
    (x, y), (x2, y2) = sample(60_000, classes, 8, 1), sample(40_000, classes, 32, 2)
    tokens = x2.float().reshape(-1, 4, 8)
    before, states = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            acc = ResqueDist(classes)
            acc.update(x, y, "old")
            acc.update(tokens, y2, "new")
            states.append((snapshot(acc), acc.compute()))
            unchanged(acc, states[0][0])
            same(states[0][1], states[-1][1])
    finally:
        torch.set_num_threads(before)


# Streaming and merging


@st.composite
def streams(draw):
    """Sizes, and cuts of both sides' rows into batches in some order."""
    classes, width = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    seed, blocks = draw(st.integers(0, 99)), draw(st.sampled_from([None, 2, 5]))
    rows = {s: classes * draw(st.integers(1, 12)) for s in SIDES}
    batches = []
    for s in SIDES:
        cuts = sorted(draw(st.lists(st.integers(0, rows[s]), max_size=6)))
        batches += [(s, a, b) for a, b in zip([0, *cuts], [*cuts, rows[s]], strict=True)]
    return classes, width, seed, blocks, rows, batches


examples = settings(max_examples=40, deadline=None, derandomize=True, database=None)


@examples
@given(streams(), st.data())
def test_any_split_in_any_order_is_the_whole(stream, data):
    classes, width, seed, blocks, rows, batches = stream
    sides = {s: sample(rows[s], classes, width, seed + i) for i, s in enumerate(SIDES)}
    whole = ResqueDist(classes, blocks=blocks)
    for s in SIDES:
        whole.update(*sides[s], s)
    expected = whole.compute()
    np.testing.assert_allclose(
        expected.per_class, truth(*sides["old"], *sides["new"], classes), rtol=0, atol=1e-12
    )

    # In the order of the rows each goes to the same block: everything agrees.
    split = ResqueDist(classes, blocks=blocks)
    for s, a, b in data.draw(
        st.permutations(SIDES).map(lambda o: sorted(batches, key=lambda t: o.index(t[0])))
    ):
        split.update(sides[s][0][a:b], sides[s][1][a:b], s)
    same(split.compute(), expected, 1e-12)

    # In another order the blocks differ, the index does not.
    shuffled = ResqueDist(classes, blocks=blocks)
    for s, a, b in data.draw(st.permutations(batches)):
        shuffled.update(sides[s][0][a:b], sides[s][1][a:b], s)
    np.testing.assert_allclose(shuffled.compute().per_class, expected.per_class, rtol=0, atol=1e-12)


@examples
@given(streams(), st.data())
def test_merging_any_split_is_the_whole(stream, data):
    classes, width, seed, blocks, rows, batches = stream
    sides = {s: sample(rows[s], classes, width, seed + i) for i, s in enumerate(SIDES)}
    whole = ResqueDist(classes, blocks=blocks)
    parts = [ResqueDist(classes, blocks=blocks) for _ in range(3)]
    # Parts take their batches in ascending order, so that merging them in turn keeps that order.
    for s in SIDES:
        whole.update(*sides[s], s)
        mine = [batch for batch in batches if batch[0] == s]
        owners = sorted(
            data.draw(st.lists(st.integers(0, 2), min_size=len(mine), max_size=len(mine)))
        )
        for owner, (_, a, b) in zip(owners, mine, strict=True):
            parts[owner].update(sides[s][0][a:b], sides[s][1][a:b], s)
    before = [snapshot(p) for p in parts[1:]]
    parts[0].merge(parts[1])
    parts[0].merge(parts[2])
    same(parts[0].compute(), whole.compute(), 1e-12)
    for part, state in zip(parts[1:], before, strict=True):
        unchanged(part, state)
    # Another order: the same index.
    parts[2].merge(parts[1])
    if all(parts[2].state_dict()[f"{s}.seen"].all() for s in SIDES):
        assert 0 <= parts[2].compute().value <= 1


def test_merge_with_an_empty_one():
    acc, empty = filled(), ResqueDist(3)
    expected = acc.compute()
    before = snapshot(acc)
    acc.merge(empty)
    unchanged(acc, before)
    empty.merge(acc)
    unchanged(empty, before)
    same(empty.compute(), expected)
    empty.update(*sample(9, 3, 4), "new")  # a state of its own, not a view of the other's
    unchanged(acc, before)
    both = ResqueDist(3)
    both.merge(ResqueDist(3))
    assert both.width is None


def test_merge_with_itself_doubles_the_rows():
    acc = filled()
    value, counts = acc.compute().value, acc.compute().counts
    acc.merge(acc)
    assert abs(acc.compute().value - value) < 1e-14
    np.testing.assert_array_equal(acc.compute().counts["new"], 2 * counts["new"])


def test_merging_many_small_ones_keeps_the_blocks_balanced():
    """100 accumulators of 1 to 3 rows a class: dealt on in turn, not all into the first blocks."""
    rng = np.random.default_rng(0)
    classes = 3
    whole, merged = ResqueDist(classes), ResqueDist(classes)
    for _ in range(100):
        part = ResqueDist(classes)
        for side in SIDES:
            y = torch.from_numpy(np.repeat(np.arange(classes), rng.integers(1, 4, classes)))
            x = torch.from_numpy(rng.normal(size=(len(y), 6)) + np.eye(3, 6)[y] + (side == "new"))
            part.update(x, y, side)
            whole.update(x, y, side)
        merged.merge(part)
    for side in SIDES:
        counts = merged.state_dict()[f"{side}.counts"].reshape(classes, -1)
        assert ((counts.amax(1) - counts.amin(1)) <= 1).all()
    assert merged.compute().std_error > 0
    same(merged.compute(), whole.compute(), 1e-12)


@pytest.mark.parametrize(
    ("other", "error", "message"),
    [
        ({"classes": 4}, ValueError, r"other: expected .*\(3, 16, 4\), found \(4, 16, 4\)"),
        ({"blocks": 8}, ValueError, r"other: expected .*\(3, 16, 4\), found \(3, 8, 4\)"),
        ({"width": 5}, ValueError, r"other: expected .*\(3, 16, 4\), found \(3, 16, 5\)"),
        (None, TypeError, r"other: expected a ResqueDist, found dict"),
    ],
)
def test_merge_refuses(other, error, message):
    acc = filled()
    before = snapshot(acc)
    with pytest.raises(error, match=message):
        acc.merge({} if other is None else filled(**other))
    unchanged(acc, before)


def test_reset_takes_any_width_again():
    acc = filled()
    expected = acc.compute()
    acc.reset()
    assert acc.width is None
    with pytest.raises(ValueError, match="expected at least one batch"):
        acc.compute()
    for seed, side in enumerate(SIDES):
        acc.update(*sample(20, 3, 9, seed), side)
    assert acc.width == 9
    acc.reset()
    for seed, side in enumerate(SIDES):
        acc.update(*sample(40, 3, 4, seed), side)
    same(acc.compute(), expected)


def test_grow_is_as_if_there_had_been_room_from_the_start():
    small, large = ResqueDist(2, blocks=4), ResqueDist(5, blocks=4)
    small.grow(1)  # never shrinks
    assert small.num_classes == 2
    for seed, side in enumerate(SIDES):
        for acc in (small, large):
            acc.update(*sample(20, 2, 3, seed), side)
    small.grow(5)
    unchanged(small, snapshot(large))
    for seed, side in enumerate(SIDES):
        for acc in (small, large):
            acc.update(*sample(30, 5, 3, seed + 5), side)
    same(small.compute(), large.compute())
    early = ResqueDist(1)
    early.grow(3)
    early.update(*sample(9, 3, 2), "old")
    with pytest.raises(TypeError, match=r"num_classes: expected an integer, found 2\.5"):
        early.grow(2.5)


def test_compute_changes_nothing_and_more_may_follow():
    acc = ResqueDist(3)
    acc.update(*sample(30, 3, 4, 0), "old")
    acc.update(*sample(30, 3, 4, 1), "new")
    before = snapshot(acc)
    same(acc.compute(), acc.compute())
    unchanged(acc, before)
    acc.update(*sample(30, 3, 4, 2), "new")
    assert acc.compute().counts["new"].sum() == 60


# Keeping and loading


@pytest.mark.parametrize("empty", [False, True])
def test_state_round_trip_through_safetensors(empty):
    acc = ResqueDist(3) if empty else filled()
    state = safetensors.torch.load(safetensors.torch.save(acc.state_dict()))
    loaded = ResqueDist(3)
    loaded.update(*sample(9, 3, 7), "old")  # replaced, its width too
    loaded.load_state_dict(state)
    unchanged(loaded, snapshot(acc))
    for a in (acc, loaded):
        a.update(*sample(24, 3, 4, 7), "old")
        a.update(*sample(24, 3, 4, 8), "new")
    same(loaded.compute(), acc.compute())


def test_state_dict_is_a_copy_both_ways():
    acc = filled()
    expected, state = acc.compute(), acc.state_dict()
    other = ResqueDist(3)
    other.load_state_dict(state)
    for tensor in state.values():
        tensor.zero_()
    same(acc.compute(), expected)
    same(other.compute(), expected)


def changed(key, change):
    def apply(state):
        state[key] = change(state[key])

    return apply


BAD_STATES = {
    "key missing": (lambda s: s.pop("new.seen"), KeyError, "state: expected the keys .*new.seen"),
    "key unknown": (
        lambda s: s.update(more=torch.zeros(1)),
        KeyError,
        "state: expected the keys .* found .*'more'",
    ),
    "other classes": (
        changed("num_classes", lambda t: t + 1),
        ValueError,
        r"state\['num_classes'\]: expected 3, found 4",
    ),
    "other blocks": (
        changed("blocks", lambda t: t - 1),
        ValueError,
        r"state\['blocks'\]: expected 16, found 15",
    ),
    "classes not a number": (
        changed("num_classes", lambda t: torch.tensor([3, 3])),
        ValueError,
        r"state\['num_classes'\]: expected 3, found \[3, 3\]",
    ),
    "shape": (
        changed("old.counts", lambda t: t[:-1]),
        ValueError,
        r"state\['old.counts'\]: expected shape \(48,\), torch.int64, found shape \(47,\)",
    ),
    "width of one side": (
        changed("new.sums", lambda t: t[:, :2]),
        ValueError,
        r"state\['new.sums'\]: expected shape \(48, 4\), torch.float64, found shape \(48, 2\)",
    ),
    "rank": (changed("old.sums", lambda t: t[..., None]), ValueError, r"state\['old.sums'\]: exp"),
    "scalar sums": (changed("old.sums", lambda t: t.sum()), ValueError, r"state\['old.sums'\]: ex"),
    "dtype": (
        changed("old.sums", lambda t: t.float()),
        ValueError,
        r"state\['old.sums'\]: expected .* torch.float64, found .* torch.float32",
    ),
    "not a tensor": (
        changed("old.seen", lambda t: t.tolist()),
        TypeError,
        r"state\['old.seen'\]: expected a torch.Tensor or numpy.ndarray, found list",
    ),
}


@pytest.mark.parametrize("case", BAD_STATES)
def test_load_refuses_and_leaves_the_state(case):
    spoil, error, message = BAD_STATES[case]
    acc = filled(rows=30)
    before = snapshot(acc)
    state = filled(rows=50).state_dict()
    spoil(state)
    with pytest.raises(error, match=message):
        acc.load_state_dict(state)
    unchanged(acc, before)


# Batches that are refused


X, Y = sample(12, 3, 4, 5)


def spoilt(row, column, value, dtype=torch.float64):
    x = X.clone()
    x[row, column] = value
    return x.to(dtype)


def relabelled(position, label):
    y = Y.clone()
    y[position] = label
    return y


FINITE = "expected finite values, found 1 NaN or infinite in 1 rows, the first at row"
BAD_BATCHES = {
    "label too large": (
        X,
        relabelled(5, 3),
        ValueError,
        r"labels: .* 0\.\.2, found 3 at position 5",
    ),
    "label below 0": (
        X,
        relabelled(11, -1),
        ValueError,
        r"labels: .*0\.\.2, found -1 at position 11",
    ),
    "label far away": (
        X,
        relabelled(0, 2**62),
        ValueError,
        r"labels: .* found 4611686018427387904 ",
    ),
    "int32 label": (X, relabelled(2, 7).int(), ValueError, r"labels: .* found 7 at position 2"),
    "NaN": (spoilt(7, 2, np.nan), Y, ValueError, rf"features: {FINITE} 7, column 2"),
    "inf": (spoilt(0, 0, -np.inf), Y, ValueError, rf"features: {FINITE} 0, column 0"),
    "inf in half": (
        spoilt(3, 1, 1e6, torch.half),
        Y,
        ValueError,
        rf"features: {FINITE} 3, column 1",
    ),
    "width": (
        X[:, :3],
        Y,
        ValueError,
        r"features: expected width 4 on cpu .* found shape \(12, 3\)",
    ),
    "width of maps": (
        X[:, :2, None, None],
        Y,
        ValueError,
        r"features: expected width 4 .*12, 2, 1, 1",
    ),
    "no columns": (X[:, :0], Y, ValueError, r"features: expected at least one column, .*\(12, 0\)"),
    "no positions": (X[:, :0, None], Y, ValueError, r"features: expected at least one position"),
    "rank 1": (X[:, 0], Y, ValueError, r"features: expected \[N, D\], .* found shape \(12,\)"),
    "rank 5": (
        X[..., None, None, None],
        Y,
        ValueError,
        r"features: expected \[N, D\], \[N, C, H, W\]",
    ),
    "integers": (X.long(), Y, TypeError, r"features: expected float32, .* found .* torch.int64"),
    "bool": (X > 0, Y, TypeError, r"features: expected float32, .* found .* torch.bool"),
    "complex": (X.cfloat(), Y, TypeError, r"features: expected a dense real tensor, found complex"),
    "sparse": (X.to_sparse(), Y, TypeError, r"features: expected a dense .*sparse_coo"),
    "meta": (
        X.to("meta"),
        Y,
        TypeError,
        r"features: expected a tensor on cpu or cuda, found .* meta",
    ),
    "list": (
        X.tolist(),
        Y,
        TypeError,
        r"features: expected a torch.Tensor or numpy.ndarray, .* list",
    ),
    "objects": (
        np.array([None]),
        Y,
        TypeError,
        r"features: expected real numbers, found .* object",
    ),
    "meta labels": (X, Y.to("meta"), TypeError, r"labels: expected a tensor on cpu or cuda"),
    "float labels": (X, Y.float(), TypeError, r"labels: expected int32 or int64 .* torch.float32"),
    "bool labels": (X, Y > 0, TypeError, r"labels: expected int32 or int64 .* torch.bool"),
    "a list of labels": (
        X,
        Y.tolist(),
        TypeError,
        r"labels: expected a torch.Tensor .* found list",
    ),
    "one-hot": (
        X,
        torch.eye(3).long()[Y],
        ValueError,
        r"labels: expected shape \[N\].*argmax\(1\)",
    ),
    "a label too few": (
        X,
        Y[:-1],
        ValueError,
        r"features, labels: expected one label a row, found features \(shape \(12, 4\), "
        r"torch.float64, cpu\) and labels \(shape \(11,\), torch.int64, cpu\)",
    ),
}


@on_backends
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("case", BAD_BATCHES)
def test_a_refused_batch_leaves_the_state_bit_for_bit(case, side, name_of_backend):
    x, y, error, message = BAD_BATCHES[case]
    acc = filled()
    before = snapshot(acc)
    with backend(name_of_backend), pytest.raises(error, match=message):
        acc.update(x, y, side)
    unchanged(acc, before)
    acc.update(X, Y, side)


@pytest.mark.parametrize("case", [c for c in BAD_BATCHES if "width" not in c])
def test_a_refused_first_batch_fixes_no_width(case):
    x, y, error, message = BAD_BATCHES[case]
    acc = ResqueDist(3)
    with pytest.raises(error, match=message):
        acc.update(x, y, "old")
    assert acc.width is None
    acc.update(torch.ones(3, 9), torch.arange(3), "old")


def test_side_is_old_or_new():
    acc = filled()
    before = snapshot(acc)
    for side in ("both", "OLD", None, 0):
        with pytest.raises(ValueError, match=f"side: expected one of 'old', 'new', found {side!r}"):
            acc.update(X, Y, side)
    unchanged(acc, before)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_classes": 0}, ValueError, "num_classes: expected 1 <= num_classes < 2.31, found 0"),
        ({"num_classes": 2**31}, ValueError, "num_classes: expected 1 <= .* found 2147483648"),
        ({"num_classes": True}, TypeError, "num_classes: expected an integer, found True"),
        ({"num_classes": 3.0}, TypeError, r"num_classes: expected an integer, found 3\.0"),
        ({"blocks": 1}, ValueError, "blocks: expected 2 <= blocks < 2.31, found 1"),
        ({"blocks": "4"}, TypeError, "blocks: expected an integer, found '4'"),
        (
            {"missing": "ignore"},
            ValueError,
            "missing: expected one of 'error', 'skip', found 'ignore'",
        ),
        ({"nonfinite": None}, ValueError, "nonfinite: expected one of 'error', 'skip', found None"),
    ],
)
def test_options_are_checked(options, error, message):
    with pytest.raises(error, match=message):
        ResqueDist(**{"num_classes": 3, **options})


def test_default_blocks():
    assert [default_blocks(c) for c in (1, 10, 128, 200, 512, 10**6)] == [16, 16, 16, 8, 4, 4]
    assert repr(filled()) == "ResqueDist(num_classes=3, width=4, blocks=16)"


# Rows and classes that are left out


@on_backends
def test_nonfinite_rows_can_be_left_out(name_of_backend):
    (x, y), (x2, y2) = sample(40, 3, 4, 1), sample(40, 3, 4, 2)
    bad = x.clone()
    bad[3, 1], bad[17, 0], bad[17, 3], bad[39, 2] = np.nan, np.inf, np.nan, -np.inf
    good = bad.isfinite().all(1)
    with backend(name_of_backend):
        result = resque_dist(bad, x2, y, y2, nonfinite="skip")
        expected = resque_dist(x[good], x2, y[good], y2)
        assert result.nonfinite_rows == {"old": 3, "new": 0}
        np.testing.assert_array_equal(result.counts["old"], expected.counts["old"])
        np.testing.assert_allclose(result.per_class, expected.per_class, rtol=1e-12)
        acc = ResqueDist(3, nonfinite="skip")
        for part in (slice(0, 10), slice(10, 40)):
            acc.update(bad[part], y[part], "old")
            acc.update(x2[part], y2[part], "new")
        same(acc.compute(), result, 1e-12)
        merged = ResqueDist(3)
        merged.merge(acc)
        assert merged.compute().nonfinite_rows == {"old": 3, "new": 0}
        with pytest.raises(
            ValueError, match=r"old: .* found 4 NaN or infinite in 3 rows, .* row 3, c"
        ):
            resque_dist(bad, x2, y, y2)
        bad[y == 1] = np.nan  # all rows of a class
        with pytest.raises(ValueError, match="class 1 has no old rows"):
            resque_dist(bad, x2, y, y2, nonfinite="skip")


def one_class_wrong(case):
    """Sides of 5 classes, something wrong with class 1 (and 3), and what the message says of it."""
    (x, y), (x2, y2) = sample(50, 5, 4, 1), sample(50, 5, 4, 2)
    if case == "no old rows":
        return x[y != 1], x2, y[y != 1], y2, "class 1 has no old rows"
    if case == "no new rows":
        return x, x2[y2 != 1], y, y2[y2 != 1], "class 1 has no new rows"
    if case == "no rows":
        return x[y != 1], x2[y2 != 1], y[y != 1], y2[y2 != 1], "class 1 has no old and no new rows"
    if case == "zero sum":
        x[y == 1] = torch.tensor([[1.0], [-1.0]]).repeat(int((y == 1).sum()) // 2, 4).double()
        return x, x2, y, y2, "class 1 has a zero old sum"
    if case == "overflowed sum":  # 10 rows in 10 blocks: finite block by block
        x2[y2 == 1] = 1e308
        return x, x2, y, y2, "class 1 has a non-finite new sum"
    if case == "overflowed block":
        x2 = torch.cat([x2, torch.full((40, 4), 1e308, dtype=torch.float64)])
        y2 = torch.cat([y2, torch.ones(40, dtype=torch.int64)])
        return x, x2, y, y2, "class 1 has a non-finite new sum"
    keep = (y2 != 1) & (y2 != 3)
    return x, x2[keep], y, y2[keep], "class 1 has no new rows; class 3 has no new rows"


CASES = ["no old rows", "no new rows", "no rows", "zero sum", "overflowed sum", "overflowed block"]
CASES += ["two classes"]


@on_backends
@pytest.mark.filterwarnings("ignore:overflow encountered")  # that none is shown has its own test
@pytest.mark.parametrize("case", CASES)
def test_a_class_without_an_angle(case, name_of_backend):
    old, new, old_labels, new_labels, message = one_class_wrong(case)
    wrong = (1, 3) if case == "two classes" else (1,)
    with backend(name_of_backend):
        with pytest.raises(ValueError, match=f"labels: expected every class .*{message}.*'skip'"):
            resque_dist(old, new, old_labels, new_labels, 5)
        result = resque_dist(old, new, old_labels, new_labels, 5, "skip")
        others = ~np.isin(old_labels, wrong), ~np.isin(new_labels, wrong)
        expected = resque_dist(
            old[others[0]], new[others[1]], old_labels[others[0]], new_labels[others[1]]
        )
    assert result.missing == wrong
    assert np.isnan(result.per_class[list(wrong)]).all()
    assert np.isfinite(result.per_class).sum() == 5 - len(wrong)
    np.testing.assert_allclose(result.per_class, expected.per_class, rtol=1e-12)
    np.testing.assert_allclose(result.value, np.nanmean(result.per_class), rtol=1e-15)
    # Errors and floors are those of the classes that are left.
    assert abs(result.std_error - expected.std_error) < 1e-12
    assert 0 < result.noise_floor < 1


def test_an_overflow_is_told_once_and_by_the_error():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        old, new, old_labels, new_labels, message = one_class_wrong("overflowed sum")
        with pytest.raises(ValueError, match=message):
            resque_dist(old, new, old_labels, new_labels, 5)


def test_many_classes_without_an_angle_are_counted():
    x, y = torch.ones(2, 3), torch.tensor([0, 8])
    with pytest.raises(
        ValueError, match=r"class 1 has .*class 5 has .*; and 2 more classes \(missing="
    ):
        resque_dist(x, x, y, y, 9)


def test_no_class_at_all_has_an_angle():
    x, y = sample(6, 2, 3)
    with pytest.raises(
        ValueError, match="labels: expected a class with rows on both sides, found none"
    ):
        resque_dist(x, x, y * 0, y * 0 + 1, 2, "skip")
    empty = resque_dist, x[:0], x[:0], y[:0], y[:0]
    with pytest.raises(ValueError, match="labels: expected a class with rows on both sides"):
        empty[0](*empty[1:])
    with pytest.raises(ValueError, match="update: expected at least one batch before compute"):
        ResqueDist(2).compute()


def test_one_row_a_class_has_a_value_but_no_error():
    x, y = sample(3, 3, 4)
    result = resque_dist(x, x + 1, y, y)
    assert result.value > 0
    assert result.std_error is result.noise_floor is None
    assert resque_dist(x[:1], x[:1] + 1, y[:1] * 0, y[:1] * 0).value > 0  # N = C = 1


@on_backends
def test_empty_batches_are_welcome(name_of_backend):
    with backend(name_of_backend):
        acc = ResqueDist(3)
        acc.update(torch.empty(0, 4), torch.empty(0, dtype=torch.int64), "new")
        assert acc.width == 4
        with pytest.raises(ValueError, match=r"features: expected width 4 .*found shape \(0, 5\)"):
            acc.update(torch.empty(0, 5), torch.empty(0, dtype=torch.int64), "new")
        for seed, side in enumerate(SIDES):
            acc.update(*sample(40, 3, 4, seed), side)
            before = snapshot(acc)
            acc.update(torch.empty(0, 4, 2, 2), torch.empty(0, dtype=torch.int32), side)
            before[f"{side}.updates"] += 1
            unchanged(acc, before)
        same(acc.compute(), filled().compute())


# What is taken


def test_numpy_is_as_good_as_torch():
    (x, y), (x2, y2) = sample(40, 3, 4, 1), sample(30, 3, 4, 2)
    x, x2 = x.float(), x2.float()
    expected = resque_dist(x, x2, y, y2)
    old, new, old_labels, new_labels = (t.numpy() for t in (x, x2, y, y2))
    same(resque_dist(old, new, old_labels, new_labels), expected)
    same(resque_dist(x, new, old_labels, y2), expected)
    frozen = old.copy()
    frozen.setflags(write=False)
    forms = [
        (old[::-1], old_labels[::-1]),
        (np.asfortranarray(old), old_labels.astype(np.uint8)),
        (old.astype(">f4"), old_labels.astype(">i8")),
        (frozen, old_labels.astype(np.int16)),
        (np.repeat(old, 2, axis=1)[:, ::2], np.repeat(old_labels, 3)[::3]),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for a, b in forms:
            found = resque_dist(a, new, b, new_labels)
            np.testing.assert_allclose(found.per_class, expected.per_class, rtol=1e-12)
    half = resque_dist(old.astype(np.float16), new, old_labels, new_labels)
    assert half.value == resque_dist(x.half(), x2, y, y2).value


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
def test_labels_of_any_usual_integer(dtype):
    x, y = sample(40, 3, 4)
    same(resque_dist(x, x + 1, y.to(dtype), y), resque_dist(x, x + 1, y, y))


def test_views():
    x, y = sample(40, 3, 4)
    wide = torch.zeros(80, 12, dtype=x.dtype)
    view = wide[::2, 1::3]
    view.copy_(x)
    labels = torch.stack([y, y + 5], 1)[:, 0]
    expected = resque_dist(x, x + 1, y, y)
    same(resque_dist(view, x + 1, labels, y), expected, 1e-12)
    same(resque_dist(x.t().contiguous().t(), x + 1, y, y), expected, 1e-12)
    row = x[:1].expand(40, 4)
    same(resque_dist(row, x + 1, y, y), resque_dist(row.clone(), x + 1, y, y), 1e-12)


def test_gradients_and_inference_mode():
    (x, y), (x2, y2) = sample(40, 3, 4, 0), sample(40, 3, 4, 1)
    expected = filled().compute()
    acc = ResqueDist(3)
    acc.update(x.clone().requires_grad_(), y, "old")
    with torch.inference_mode():
        acc.update(x2.clone(), y2.clone(), "new")
        same(acc.compute(), expected)
    assert not any(t.requires_grad for t in acc.state_dict().values())
    first = ResqueDist(3)
    with torch.inference_mode():  # the state is made here, and goes on outside
        inside = x.clone(), y.clone()
        first.update(*inside, "old")
    first.update(x2 * 1, y2, "new")
    same(first.compute(), expected)
    with torch.inference_mode():
        empty = ResqueDist(3)
        empty.merge(first)
    empty.update(*inside, "old")
    assert empty.compute().counts["old"].sum() == 80
    same(resque_dist(*[inside[0]] * 2, *[inside[1]] * 2), resque_dist(x, x, y, y))
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("what", ["grow", "load_state_dict"])
def test_state_made_in_inference_mode_goes_on_outside(what):
    acc = filled()
    state = acc.state_dict()
    with torch.inference_mode():
        acc.grow(4) if what == "grow" else acc.load_state_dict(state)
    acc.update(X, Y, "old")
    assert acc.state_dict()["old.counts"].sum() == 52


# Paired sides


def test_paired_sides():
    x, y = sample(80, 4, 6)
    x2 = x + torch.tensor([1.0, 0, 0, 0, 0, 0]) + 0.01 * torch.randn(80, 6, dtype=torch.float64)
    paired, apart = (resque_dist(x, x2, y, y, paired=p) for p in (True, False))
    assert paired.value == apart.value
    assert paired.noise_floor == apart.noise_floor
    assert 0 < paired.std_error < apart.std_error
    acc = ResqueDist(4, paired=True)
    acc.update(x2, y, "new")
    for part in (slice(0, 33), slice(33, 80)):
        acc.update(x[part], y[part], "old")
    same(acc.compute(), paired, 1e-12)


def test_paired_sides_must_match():
    x, y = sample(30, 3, 4)
    message = "paired: expected old_labels and new_labels to be equal"
    with pytest.raises(ValueError, match=message):
        resque_dist(x, x, y, y.flip(0), paired=True)
    with pytest.raises(ValueError, match=message):
        resque_dist(x, x[:-1], y, y[:-1], paired=True)
    resque_dist(x, x, y, y.int(), paired=True)  # equal in value
    acc = ResqueDist(3, paired=True)
    acc.update(x, y, "old")
    more = x[y == 1]
    acc.update(torch.cat([x, more]), torch.cat([y, y[y == 1]]), "new")
    with pytest.raises(
        ValueError,
        match=r"paired: expected as many rows of each class .* 10 old and 20 new rows of class 1",
    ):
        acc.compute()


# The one call


def test_one_call_names_its_own_arguments():
    x, y = sample(12, 3, 4, 5)
    for case, (bad, bad_labels, error, message) in BAD_BATCHES.items():
        if case in ("width", "width of maps", "no columns"):
            continue  # here it is the two sides that differ
        name, colon, rest = message.partition(":")
        for side in SIDES:
            own = {"features": side, "labels": f"{side}_labels"}
            own["features, labels"] = f"{side}, {side}_labels"
            rest_of_side = rest.replace("found features", f"found {side}")
            rest_of_side = rest_of_side.replace("and labels", f"and {side}_labels")
            arguments = {"old": x, "new": x, "old_labels": y, "new_labels": y, "num_classes": 3}
            arguments |= {side: bad, f"{side}_labels": bad_labels}
            with pytest.raises(error, match=f"^{own[name]}{colon}{rest_of_side}"):
                resque_dist(**arguments)


def test_one_call_wants_one_width():
    x, y = sample(12, 3, 4)
    with pytest.raises(
        ValueError,
        match=r"old, new: expected one width on one device, found old \(shape \(12, 4\), .*\) "
        r"and new \(shape \(12, 3\), ",
    ):
        resque_dist(x, x[:, :3], y, y)
    with pytest.raises(ValueError, match="missing: expected one of"):
        resque_dist(x, x, y, y, missing="drop")
    with pytest.raises(TypeError, match="num_classes: expected an integer, found '3'"):
        resque_dist(x, x, y, y, "3")


def test_classes_are_those_that_appear():
    x, y = sample(30, 3, 4)
    gaps = torch.tensor([0, 5, 2])[y]  # 1, 3 and 4 appear on neither side
    result = resque_dist(x, x + 1, gaps, gaps)
    assert result.missing == (1, 3, 4)
    assert len(result.per_class) == 6
    plain = resque_dist(x, x + 1, y, y)
    np.testing.assert_array_equal(result.per_class[[0, 5, 2]], plain.per_class)
    assert abs(result.value - plain.value) < 1e-15
    with pytest.raises(
        ValueError, match=r"class 1 has no old and no new rows; class 3 .*; class 4 "
    ):
        resque_dist(x, x + 1, gaps, gaps, num_classes=6)
    with pytest.raises(
        ValueError, match="class 5 has no new rows"
    ):  # on one side only: an error still
        resque_dist(x, x[y != 1], gaps, gaps[y != 1])


@pytest.mark.parametrize("label", [100_000, 10**12, 2**62])
def test_absurd_labels_are_not_classes(label):
    """Without num_classes they would ask for that many class sums."""
    x, y = sample(12, 3, 4)
    y[4] = label
    message = f"num_classes: expected it to be given for labels as large as {label}, found None"
    with pytest.raises(ValueError, match=message):
        resque_dist(x, x, y, y)
    with pytest.raises(ValueError, match=rf"old_labels: .* 0\.\.2, found {label} at position 4"):
        resque_dist(x, x, y, y, 3)


def test_negative_labels_without_a_number_of_classes():
    x, y = sample(12, 3, 4)
    with pytest.raises(ValueError, match=r"new_labels: .* 0\.\.2, found -2 at position 2"):
        resque_dist(x, x, y, y - 3 * (y == 1))
    with pytest.raises(ValueError, match=r"old_labels: .* 0\.\.0, found -1 at position 0"):
        resque_dist(x, x, y * 0 - 1, y * 0 - 1)


# The result


def test_result_is_a_number_and_strict_json():
    x, y = sample(30, 3, 4)
    x[0, 0] = np.nan
    gaps = torch.tensor([0, 3, 2])[y]
    for result in (
        resque_dist(x, x + 1, gaps, gaps, nonfinite="skip"),
        resque_dist(x[1:4], x[1:4] + 1, torch.arange(3), torch.arange(3)),  # no error, no floor
    ):
        assert float(result) == result.value
        plain = json.loads(json.dumps(result.to_dict(), allow_nan=False))
        assert set(plain) == {f.name for f in dataclasses.fields(ResqueDistResult)}
        assert plain["value"] == result.value
        assert plain["std_error"] == result.std_error
        assert plain["noise_floor"] == result.noise_floor
        assert plain["missing"] == list(result.missing)
        assert plain["nonfinite_rows"] == result.nonfinite_rows
        assert plain["counts"] == {s: result.counts[s].tolist() for s in SIDES}
        per_class = [np.nan if a is None else a for a in plain["per_class"]]
        np.testing.assert_array_equal(per_class, result.per_class)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.value = 0.0


@pytest.mark.parametrize("word", ["seen", "counts", "updates"])
def test_a_state_with_negative_numbers_is_refused(word):
    """`seen` decides where rows are written."""
    acc = ResqueDist(2)
    acc.update(torch.randn(8, 3), torch.arange(8) % 2, "old")
    state = acc.state_dict()
    state[f"old.{word}"] = torch.full_like(state[f"old.{word}"], -5)
    with pytest.raises(ValueError, match=rf"old\.{word}.*at least 0, found -5"):
        ResqueDist(2).load_state_dict(state)


def test_a_state_that_is_none_is_named():
    with pytest.raises(TypeError, match=r"^state: expected a mapping"):
        ResqueDist(2).load_state_dict(None)


def test_paired_sides_that_lost_their_pairs():
    x, y = torch.randn(40, 3) + 1, torch.arange(40) % 2
    halves = [ResqueDist(2, paired=True) for _ in range(2)]
    halves[0].update(x[:20], y[:20], "old")
    halves[1].update(x[:20], y[:20], "new")
    with pytest.raises(ValueError, match=r"^paired: expected as many rows"):
        halves[0].merge(halves[1])
    acc = ResqueDist(2, paired=True, nonfinite="skip")
    broken = x.clone()
    broken[3, 1] = torch.nan
    acc.update(x, y, "old")
    acc.update(broken, y, "new")
    found = acc.compute()
    assert found.nonfinite_rows["new"] == 1
    assert found.std_error is None


def test_few_rows_of_many_classes_add_up():
    """A batch that touches few groups goes by another way to the same sums."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(600, 5, generator=generator)
    y = torch.randint(0, 300, (600,), generator=generator)
    whole, parts = ResqueDist(300), ResqueDist(300)
    whole.update(x, y, "old")
    for start in range(0, 600, 7):
        parts.update(x[start : start + 7], y[start : start + 7], "old")
    a, b = whole.state_dict(), parts.state_dict()
    for word in ("counts", "seen"):
        assert torch.equal(a[f"old.{word}"], b[f"old.{word}"])
    torch.testing.assert_close(a["old.sums"], b["old.sums"], rtol=1e-12, atol=1e-12)
    assert int(a["old.counts"].sum()) == 600


def test_positions_in_errors_count_from_the_first_row(monkeypatch):
    # By its entry in sys.modules: the package's attribute of that name is the function.
    monkeypatch.setattr(sys.modules[ResqueDist.__module__], "SEGMENT_ROWS", 10)
    x, y = torch.randn(30, 3), torch.arange(30) % 2
    wrong = y.clone()
    wrong[25] = 9
    with pytest.raises(ValueError, match="found 9 at position 25"):
        ResqueDist(2).update(x, wrong, "old")
    x[27, 1] = torch.nan
    with pytest.raises(ValueError, match="first at row 27, column 1"):
        ResqueDist(2).update(x, y, "old")
