"""ResqueDist and resque_dist: values, what is taken, paired sides and the result."""

import dataclasses
import json
import warnings

import numpy as np
import pytest
import torch
from helpers.resque_dist_made import (
    SIDES,
    filled,
    on_backends,
    same,
    sample,
    snapshot,
    truth,
    unchanged,
)

from resque_ext import ResqueDist, ResqueDistResult, backend, resque_dist

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


# Paired sides


def test_paired_sides():
    x, y = sample(80, 4, 6)
    x2 = x + torch.tensor([1.0, 0, 0, 0, 0, 0]) + 0.01 * torch.randn(80, 6, dtype=torch.float64)
    paired, apart = (resque_dist(x, x2, y, y, paired=p) for p in (True, False))
    assert paired.value == apart.value
    assert 0 < paired.noise_floor < apart.noise_floor
    assert 0 < paired.std_error < apart.std_error
    assert paired.p_value == 1 / 200
    assert apart.p_value is None
    assert (paired.reliable, paired.warnings) == (True, ())
    acc = ResqueDist(4, paired=True)
    acc.update(x2, y, "new")
    for part in (slice(0, 33), slice(33, 80)):
        acc.update(x[part], y[part], "old")
    same(acc.compute(), paired, 1e-12)


def test_equal_pairs_have_no_floor():
    """Nothing changed, which is certain; two samples of one distribution have a floor."""
    x, y = sample(80, 4, 6)
    found = resque_dist(x, x, y, y, paired=True)
    assert (found.value, found.noise_floor, found.std_error, found.p_value) == (0, 0, 0, 1)
    assert found.reliable
    assert resque_dist(x, x, y, y).noise_floor > 0.01


def test_pairs_that_scatter_without_a_shift_are_told():
    x, y = sample(400, 4, 6)
    noise = torch.randn(400, 6, generator=torch.Generator().manual_seed(0))
    found = resque_dist(x, x + 0.3 * noise, y, y, paired=True)
    assert found.value > 0
    assert found.p_value > 0.05
    assert not found.reliable
    (warning,) = found.warnings
    assert warning.startswith("value: no shift detected, as random exchanges within pairs show as")
    assert found.to_dict()["warnings"] == [warning]


@pytest.mark.parametrize(("shift", "reliable"), [(0.0, False), (2.0, True)])
def test_values_near_the_noise_floor_are_told(shift, reliable):
    x, y = sample(400, 4, 6)
    x2, y2 = sample(400, 4, 6)
    found = resque_dist(x, x2 + shift * torch.eye(6)[0], y, y2)
    assert found.reliable == reliable
    near = found.value <= found.noise_floor + 2 * found.std_error
    assert near != reliable
    starts = [line.partition(",")[0] for line in found.warnings]
    assert starts == ([] if reliable else ["value: no shift detected"])


def test_too_few_rows_are_told():
    x, y = sample(8, 4, 6)  # two rows a class: a floor, no standard error
    found = resque_dist(x, x + 1, y, y)
    assert found.noise_floor is not None
    assert found.std_error is None
    assert not found.reliable
    assert "a class has fewer than three rows on a side" in found.warnings[0]


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
    assert found.noise_floor is None
    assert found.p_value is None
    assert "rows of pairs were left out on one side only" in found.warnings[0]
    assert found.std_error is None


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
