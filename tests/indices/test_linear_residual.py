"""linear_residual against scikit-learn's ridge regression, fold by fold; streaming; bad input."""

import itertools

import numpy as np
import pytest
import torch
from helpers.oracles_folds import folds_by_row, unexplained

import resque_ext
from resque_ext import LinearResidual, linear_residual, resque_dist
from resque_ext.indices._folds import fold_at, row_positions


def drawn(n, d, classes, seed=0, offset=0.0):
    """Classes that overlap, in any number of dimensions."""
    rng = np.random.default_rng(seed)
    y = np.r_[np.arange(classes), rng.integers(0, classes, n - classes)]
    means = np.random.default_rng(99).standard_normal((classes, d)) * 2 / d**0.5
    return means[y] + rng.standard_normal((n, d)) + offset, y


def streamed(sides, classes, sizes=(7, 0, 100), **options):
    acc = LinearResidual(classes, **options)
    for side, (x, y) in sides.items():
        x, y = torch.as_tensor(x), torch.as_tensor(y)
        start = 0
        for size in (*sizes, len(y)):
            acc.update(x[start : start + size], y[start : start + size], side)
            start += size
    return acc


@pytest.mark.parametrize(
    ("n", "d", "classes"), [(400, 8, 3), (700, 40, 12), (300, 1, 2), (90, 120, 4), (60, 5, 25)]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_against_scikit_learn(n, d, classes, dtype):
    (x, y), (x2, y2) = drawn(n, d, classes), drawn(n, d, classes, 1)
    x, x2 = x.astype(dtype), x2.astype(dtype)
    share, error = unexplained(x2, y2)
    found = linear_residual(x, x2, y, y2)
    distance = resque_dist(x, x2, y, y2)
    assert share > 0.05
    assert found.unexplained == pytest.approx(share, rel=1e-6, abs=1e-9)
    assert found.distance == distance.value
    assert distance.value > 0 or d == 1  # sums of one sign have no angle
    assert found.value == pytest.approx(share + distance.value / 4, rel=1e-6)
    if distance.std_error is not None:
        expected = (error**2 + (distance.std_error / 4) ** 2) ** 0.5
        assert found.std_error == pytest.approx(expected, rel=1e-6)
    assert not found.adapted
    with resque_ext.backend("torch"):
        plain = linear_residual(x, x2, y, y2)
    assert plain.value == pytest.approx(found.value, abs=1e-9)


def test_the_adapted_side_is_read_out_and_the_plain_one_measured():
    (x, y), (x2, y2), (x3, _) = (drawn(200, 6, 3, seed) for seed in (0, 1, 1))
    x2 = x2 * 3 + 5
    found = linear_residual(x, x2, y, y2, adapted=x3)
    assert found.adapted
    assert found.unexplained == pytest.approx(unexplained(x3, y2)[0], rel=1e-8)
    assert found.distance == resque_dist(x, x2, y, y2).value


@pytest.mark.parametrize("shape", [(6, 2, 5), (4, 6)])
def test_positions_are_averaged(shape):
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    x, x2 = (
        rng.standard_normal((60, *shape)) + y.reshape(-1, 1, *[1] * (len(shape) - 1)) for _ in "12"
    )
    axes = (2, 3) if len(shape) == 3 else 1
    found, means = linear_residual(x, x2, y, y), [t.mean(axes) for t in (x, x2)]
    assert found.value == pytest.approx(linear_residual(*means, y, y).value, rel=1e-9)


def test_streams_are_the_whole_and_states_outlive_other_origins():
    (x, y), (x2, y2) = drawn(300, 9, 4), drawn(350, 9, 4, 1, offset=1000.0)
    whole = linear_residual(x, x2, y, y2, 4)
    acc = streamed({"old": (x, y), "new": (x2, y2)}, 4)
    assert acc.compute().value == pytest.approx(whole.value, rel=1e-9)
    assert whole.unexplained == pytest.approx(unexplained(x2, y2)[0], rel=1e-7)
    acc.reset()
    with pytest.raises(ValueError, match=r"^update: expected rows of the new side"):
        acc.compute()


def test_merged_halves_are_the_whole():
    (x, y), (x2, y2) = drawn(600, 9, 4), drawn(600, 9, 4, 1, offset=3.0)
    whole = linear_residual(x, x2, y, y2, 4)
    halves = [
        streamed({"old": (x[s], y[s]), "new": (x2[s], y2[s])}, 4)
        for s in (slice(0, 250), slice(250, None))
    ]
    into = LinearResidual(4)
    into.merge(halves[0])
    assert into.compute().value == halves[0].compute().value
    into.merge(halves[1])
    found = into.compute()
    assert found.distance == pytest.approx(whole.distance, rel=1e-12)
    assert found.unexplained == pytest.approx(whole.unexplained, abs=1e-9)
    sums = [torch.as_tensor(x2).double().T @ torch.as_tensor(x2).double()]
    state = into._sums
    n, s = state.counts.sum(), state.sums.sum((0, 1))
    cross = torch.outer(s, state.origin)
    about_zero = (
        state.products.sum(0) + cross + cross.T + n * torch.outer(state.origin, state.origin)
    )
    torch.testing.assert_close(about_zero, sums[0], rtol=1e-11, atol=0)
    # What earlier versions dealt on from.
    start = torch.arange(4)
    np.testing.assert_array_equal(state.seen - start, np.bincount(y2, minlength=4))


@pytest.mark.parametrize(("n", "d", "classes"), [(500, 12, 4), (60, 3, 20), (300, 1, 2)])
def test_rows_in_any_order_batches_and_ranks_give_one_value(n, d, classes):
    (x, y), (x2, y2) = drawn(n, d, classes), drawn(n, d, classes, 1)
    whole = linear_residual(x, x2, y, y2, classes)
    rng = np.random.default_rng(2)
    for ranks in (1, 3):
        order = rng.permutation(n)
        parts = [order[r::ranks] for r in range(ranks)]
        sizes = rng.integers(1, n // 3, 3)
        each = [
            streamed({"old": (x[i], y[i]), "new": (x2[i], y2[i])}, classes, sizes) for i in parts
        ]
        for other in each[1:]:
            each[0].merge(other)
        found = each[0].compute()
        assert found.unexplained == pytest.approx(whole.unexplained, abs=1e-9)
        assert found.value == pytest.approx(whole.value, abs=1e-9)


@pytest.mark.parametrize("offset", [0.0, 2.0])
def test_changes_as_of_another_padding_change_next_to_nothing(offset):
    (x, y), (x2, y2) = drawn(600, 32, 4, offset=offset), drawn(600, 32, 4, 1, offset=offset)
    whole = linear_residual(x, x2, y, y2, 4).value
    for seed in range(5):
        rng = np.random.default_rng(seed)
        near = x2 * (1 + 1e-7 * rng.standard_normal(x2.shape))
        assert linear_residual(x, near, y, y2, 4).value == pytest.approx(whole, abs=1e-7)


@pytest.mark.parametrize(("offset", "most"), [(0, 1e-4), (3, 4e-4), (1000, 2e-3)])
@pytest.mark.parametrize("d", [1, 8, 512])
def test_how_often_small_changes_move_a_row_to_another_fold(d, offset, most):
    """And that no fold has many more rows than another."""
    rng = np.random.default_rng(0)
    x = torch.as_tensor(rng.standard_normal((20_000, d)) + offset)
    near = x * (1 + 1e-7 * torch.as_tensor(rng.standard_normal(x.shape)))
    fold, moved = (fold_at(row_positions(rows)) for rows in (x, near))
    assert (fold != moved).double().mean() < most
    if d > 1 or offset < 1000:
        assert 0.18 < (torch.bincount(fold) / len(x)).min() < 0.2
    if d < 512:
        np.testing.assert_array_equal(fold[:500], folds_by_row(x[:500].numpy()))


def test_rows_twice_say_no_more_than_once():
    """In turn they would be in the rows that the readout is made of: 0.32 instead of 0.57."""
    (x, y), order = drawn(100, 64, 10), np.random.default_rng(0).permutation(200)
    once = linear_residual(x, x, y, y)
    twice = linear_residual(x, np.r_[x, x][order], y, np.r_[y, y][order])
    assert twice.unexplained == pytest.approx(once.unexplained, rel=1e-9)


def test_it_depends_on_no_number_of_threads():
    (x, y), (x2, y2) = drawn(3000, 70, 5), drawn(3000, 70, 5, 1)
    threads, values = torch.get_num_threads(), []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            values.append(linear_residual(x, x2, y, y2).value)
    finally:
        torch.set_num_threads(threads)
    assert values[0] == values[1]


def test_its_standard_error_is_the_scatter_of_other_samples():
    """Of 60 pairs of samples; the estimate is of five folds, so it is good to a factor."""
    found = [
        linear_residual(
            *sum(zip(drawn(300, 5, 3, 2 * s), drawn(300, 5, 3, 2 * s + 1), strict=True), ())
        )
        for s in range(60)
    ]
    scatter = np.std([r.value for r in found])
    estimate = np.sqrt(np.mean([r.std_error**2 for r in found]))
    assert 0.5 < estimate / scatter < 2


def test_features_that_say_nothing_and_features_that_say_all():
    y = np.arange(50) % 2
    x, noise = np.eye(2)[y], np.ones((50, 2))
    assert linear_residual(x, x, y, y).value == pytest.approx(0, abs=1e-5)
    nothing = linear_residual(noise, noise, y, y)
    assert nothing.unexplained == 1


@pytest.mark.parametrize(("n", "reliable"), [(60, False), (99, False), (100, True)])
def test_few_rows_are_told(n, reliable):
    (x, y), (x2, y2) = drawn(n, 50, 2), drawn(n, 50, 2, 1)
    found = linear_residual(x, x2, y, y2)
    assert (found.reliable, not found.warnings) == (reliable, reliable)
    if not reliable:
        assert found.warnings[0].startswith("unexplained: may be much too large")
        assert f"needs more than {n} rows; use at least 100" in found.warnings[0]
        assert found.to_dict()["warnings"] == list(found.warnings)


def test_a_class_of_few_rows_is_told():
    y = np.r_[np.arange(40) % 2, [2, 2, 2]]
    x = np.random.default_rng(0).standard_normal((43, 3))
    found = linear_residual(x, x, y, y)
    assert not found.reliable
    assert found.warnings == (
        "unexplained: a class has 3 rows on the new side, so it is missing from a fold; use at "
        "least 5 rows a class",
    )


def shares(n, d, signal, seeds):
    """Mean of U over draws of one distribution whose noise is flat, and of random labels' U."""
    found = []
    means = np.random.default_rng(5).standard_normal((10, d)) * 2.6 / d**0.5
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        y = np.arange(n) % 10
        x = means[y] * signal + rng.standard_normal((n, d))
        found.append(linear_residual(x, x, y, y).unexplained)
    return np.mean(found)


def test_no_peak_where_rows_are_as_many_as_columns_quickly():
    """The old penalty of 1e-3 gave 4 to 10 there."""
    few, equal, many = (shares(n, 64, 1, 2) for n in (32, 80, 1280))
    assert 1.01 > few > equal > many > 0.2
    assert abs(shares(80, 64, 0, 3) - 1) < 0.02


@pytest.mark.full
def test_no_peak_where_rows_are_as_many_as_columns():
    """From a quarter of the columns to 20 times as many; labels that mean nothing stay at 1."""
    ratios = [0.25, 0.5, 1, 1.25, 2.5, 5, 20]
    signal = [shares(int(r * 384), 384, 1, 3) for r in ratios]
    assert all(a > b for a, b in itertools.pairwise(signal))
    assert 1 > signal[0] > 0.8
    nothing = [shares(int(r * 384), 384, 0, 3) for r in ratios]
    np.testing.assert_allclose(nothing, 1, atol=0.004)


def test_new_classes_and_plain_values():
    (x, y), (x2, y2) = drawn(100, 5, 2), drawn(100, 5, 3, 1)
    acc = streamed({"old": (x, y), "new": (x2[y2 < 2], y2[y2 < 2])}, 2)
    acc.grow(3)
    third = y2 == 2
    acc.update(x2[third], y2[third], "new")
    acc.update(x2[third], y2[third], "old")
    order = np.r_[np.flatnonzero(y2 < 2), np.flatnonzero(third)]
    found = acc.compute()
    assert found.unexplained == pytest.approx(unexplained(x2[order], y2[order])[0], rel=1e-8)
    plain = found.to_dict()
    assert plain["value"] == float(found) == found.value
    assert plain["counts"]["new"] == np.bincount(y2, minlength=3).tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"new": np.full((20, 3), np.nan)}, "^new: expected finite values, found 60 NaN"),
        ({"new": np.zeros((20, 4))}, r"^new: expected width 3 on cpu"),
        ({"new": np.zeros((20, 3), bool)}, r"^new: expected float32"),
        ({"new_labels": np.arange(19) % 2}, r"^new, new_labels: expected one label a row"),
        ({"new_labels": np.full(20, -1)}, r"^new_labels: expected class indices 0\.\.1, found -1"),
        ({"old_labels": np.arange(20) % 2 + 0.5}, "^old_labels: expected int32 or int64"),
        (
            dict.fromkeys(("old_labels", "new_labels"), np.zeros(20, int)),
            "^labels: expected rows of at least two classes",
        ),
        ({"adapted": np.zeros((19, 3))}, "^adapted, new_labels: expected one label a row"),
        ({"adapted": np.full((20, 3), np.inf)}, "^adapted: expected finite values"),
        ({"new": np.zeros((0, 3)), "new_labels": np.zeros(0, int)}, "^update: expected rows of"),
    ],
)
def test_bad_input(change, message):
    rng = np.random.default_rng(0)
    given = {side: rng.standard_normal((20, 3)) for side in ("old", "new")}
    given |= {f"{side}_labels": np.arange(20) % 2 for side in ("old", "new")}
    with pytest.raises((TypeError, ValueError), match=message):
        linear_residual(**{**given, **change})


@pytest.mark.parametrize("bad", ["label", "nan", "width", "wide"])
def test_a_refused_batch_leaves_the_state_as_it_was(bad):
    (x, y), (x2, y2) = drawn(80, 5, 3), drawn(80, 5, 3, 1)
    acc = streamed({"old": (x, y), "new": (x2, y2)}, 3)
    before = acc.compute()
    wrong, labels = x2[:4].copy(), y2[:4].copy()
    if bad == "label":
        labels[2] = 3
    elif bad == "nan":
        wrong[1, 1] = np.nan
    else:
        wrong = np.zeros((4, 5000 if bad == "wide" else 4))
    target = LinearResidual(3) if bad == "wide" else acc
    with pytest.raises(ValueError, match=r"^(labels|features): expected"):
        target.update(wrong, labels, "new")
    assert acc.compute().to_dict() == before.to_dict()


def test_sides_and_merges_that_do_not_fit():
    with pytest.raises(ValueError, match=r"^side: expected one of 'old', 'new', found 'adapted'"):
        LinearResidual(2).update(np.zeros((1, 1)), np.zeros(1, int), "adapted")
    with pytest.raises(TypeError, match=r"^other: expected a LinearResidual, found dict"):
        LinearResidual(2).merge({})
    with pytest.raises(ValueError, match=r"^other: expected adapted=False, found True"):
        LinearResidual(2).merge(LinearResidual(2, adapted=True))
    with pytest.raises(ValueError, match=r"^other: expected .*num_classes"):
        LinearResidual(2).merge(LinearResidual(3))
    a, b = LinearResidual(2), LinearResidual(2)
    for acc, width in ((a, 3), (b, 4)):
        acc.update(np.ones((4, width)), np.arange(4) % 2, "new")
    with pytest.raises(ValueError, match=r"^other: expected width 3, found 4"):
        a.merge(b)


@pytest.mark.parametrize("n", [2, 3, 4, 6, 10])
def test_few_rows_have_a_value_whatever_folds_they_are_in(n):
    """Of two rows one in five pairs is in one fold."""
    y, folds = np.arange(n) % 2, set()
    for seed in range(40):
        x = np.random.default_rng(seed).standard_normal((n, 3))
        folds.add(len(set(folds_by_row(x))))
        found = linear_residual(x, x, y, y, missing="skip")
        assert found.unexplained == pytest.approx(unexplained(x, y)[0], rel=1e-9)
    assert n > 3 or 1 in folds


def test_a_class_that_is_in_one_fold_alone_is_in_all():
    """Rows of five classes that are equal within each: a linear layer reads them without error."""
    y = np.arange(100) % 5
    found = linear_residual(np.eye(5)[y], np.eye(5)[y], y, y)
    assert found.unexplained == pytest.approx(0, abs=1e-5)
    assert found.reliable


@pytest.mark.parametrize(("spread", "told"), [(1e-3, True), (0.1, False)])
def test_rows_that_are_almost_equal_are_told(spread, told):
    (x, y), (x2, y2) = drawn(200, 6, 2), drawn(200, 6, 2, 1)
    pattern = np.arange(1, 7.0)
    found = linear_residual(x, x2 * spread + pattern, y, y2)
    assert found.reliable != told
    if told:
        assert found.warnings == (
            "unexplained: most rows are in one fold, as they differ by less than 2% of their "
            "size; take a constant off the features",
        )


def test_rows_that_are_all_in_one_fold_have_no_readout():
    # Class c begins with fold c, and 5 is 0 again.
    x, y = np.eye(6)[[0, 5]], np.array([0, 5])
    with pytest.raises(
        ValueError, match=r"^labels: .* of 5 folds, found 2 rows of 2 classes in 1$"
    ):
        linear_residual(x, x, y, y)
