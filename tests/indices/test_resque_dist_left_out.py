"""Rows and classes that ResqueDist and resque_dist leave out, or must not."""

import warnings

import numpy as np
import pytest
import torch
from helpers.resque_dist_made import SIDES, filled, on_backends, same, sample, snapshot, unchanged

from resque_ext import ResqueDist, backend, resque_dist


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
