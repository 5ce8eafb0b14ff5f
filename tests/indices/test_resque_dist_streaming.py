"""ResqueDist in parts: any split and any order, merging, and states that are kept and loaded."""

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers.resque_dist_made import SIDES, X, Y, filled, same, sample, snapshot, truth, unchanged
from hypothesis import given, settings
from hypothesis import strategies as st

from resque_ext import ResqueDist
from resque_ext.ops.class_moments import grouped_moments
from resque_ext.ops.class_order import class_order

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


@pytest.mark.parametrize(("rows", "classes", "width"), [(3, 40, 5), (300, 4, 20), (3000, 2, 3)])
def test_sums_are_to_the_bit_those_of_the_batches(place, rows, classes, width):
    found, sums, seen = ResqueDist(classes), 0.0, torch.zeros(classes, dtype=torch.int64)
    for batch in range(3):
        x, y = (t.to(place.device) for t in sample(rows, classes, width, batch))
        found.update(x, y, "old")
        order, offsets, _ = class_order(y, classes, found.blocks, seen.to(place.device))
        _, own, _, _ = grouped_moments(x, order, offsets, squares=False)
        sums = sums + own
        seen += torch.bincount(y.cpu(), minlength=classes)
    state = found.state_dict()
    assert torch.equal(state["old.sums"], sums)
    assert torch.equal(state["old.seen"].cpu(), seen)
    assert int(state["old.counts"].sum()) == 3 * rows


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
        changed("old.seen", lambda t: set(t.tolist())),
        TypeError,
        r"state\['old.seen'\]: expected a torch.Tensor or numpy.ndarray, found set",
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


@pytest.mark.parametrize("what", ["grow", "load_state_dict"])
def test_state_made_in_inference_mode_goes_on_outside(what):
    acc = filled()
    state = acc.state_dict()
    with torch.inference_mode():
        acc.grow(4) if what == "grow" else acc.load_state_dict(state)
    acc.update(X, Y, "old")
    assert acc.state_dict()["old.counts"].sum() == 52
