"""The baselines beside RESQUE_task against scikit-learn, fold by fold."""

import numpy as np
import pytest
import torch
from helpers.oracles_folds import FOLDS, folds_of
from sklearn.linear_model import Ridge

import resque_ext
from resque_ext import resque_task
from resque_ext.indices import _baselines, segments


def expected(x, y):
    """(nearest class mean, linear probe), each row judged by what its fold had no part in."""
    x = np.asarray(x, np.float64)
    labels, index = np.unique(y, return_inverse=True)
    fold, wrong = folds_of(x, y), np.zeros(2)
    targets, scores, wanted = np.eye(len(labels))[index], [], []
    for f in range(FOLDS):
        train, test = fold != f, fold == f
        if not test.any():
            continue
        with np.errstate(invalid="ignore"):
            means = np.stack([x[train & (index == c)].sum(0) for c in range(len(labels))])
            means /= np.bincount(index[train], minlength=len(labels))[:, None]
        apart = ((x[test, None] - means) ** 2).sum(-1)
        wrong[0] += (np.nanargmin(apart, 1) != index[test]).sum()
        near = x - x[train].mean(0)
        rows = []
        mean = targets[train].mean(0)
        for penalty in 10.0 ** np.arange(-3, 3.5, 0.5) * near[train].var(0).mean() * train.sum():
            if penalty > 0:
                probe = Ridge(alpha=penalty, solver="svd").fit(near[train], targets[train])
                rows.append(probe.predict(near[test]).reshape(test.sum(), -1))
        rows.append(np.tile(mean, (test.sum(), 1)))  # an infinite penalty
        scores.append(rows)
        wanted.append(index[test])
    used = range(len(wanted))
    squares = np.array(
        [[((np.eye(len(labels))[wanted[f]] - s) ** 2).sum() for s in scores[f]] for f in used]
    )
    for i, f in enumerate(used):
        best = np.delete(squares, i, axis=0).sum(0)
        chosen = np.flatnonzero(best <= best.min() * (1 + 1e-9))[0]
        wrong[1] += (scores[f][chosen].argmax(1) != wanted[f]).sum()
    return wrong / len(x)


def found(x, y, **options):
    result = resque_task(x, y, max_iter=1, baselines=True, **options)
    return [result.nearest_class_mean_error, result.linear_probe_error]


def drawn(n, d, classes, seed=0):
    """Classes that overlap, in any number of dimensions."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    return rng.standard_normal((classes, d))[y] * 2 / d**0.5 + rng.standard_normal((n, d)), y


@pytest.mark.parametrize(
    ("n", "d", "classes"), [(400, 8, 3), (700, 40, 12), (90, 120, 4), (300, 1, 2), (60, 5, 25)]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_as_scikit_learn(n, d, classes, dtype):
    x, y = drawn(n, d, classes)
    x = x.astype(dtype)
    errors = expected(x, y)
    assert 0 < errors[0] < 1
    np.testing.assert_array_equal(found(x, y), errors)
    with resque_ext.backend("torch"):
        np.testing.assert_array_equal(found(x, y), errors)


def test_features_of_very_different_scales_far_from_zero():
    x, y = drawn(500, 6, 4)
    scaled = x * np.array([1e-3, 1, 1, 1e2, 1, 1]) + np.array([0, 1e6, -1e6, 1e8, 3, 0])
    np.testing.assert_array_equal(found(scaled, y), expected(scaled, y))


def test_the_order_of_labels_values_does_not_matter():
    x, y = drawn(300, 6, 3)
    assert found(x, y) == found(x, np.array([-5, 0, 10**12])[y])


def test_on_labels_without_any_sense_both_are_near_chance():
    rng = np.random.default_rng(3)
    errors = found(rng.standard_normal((3_000, 10)), rng.integers(0, 4, 3_000))
    assert all(abs(error - 0.75) < 0.04 for error in errors)


def test_what_a_row_was_part_of_never_judges_it():
    """Without folds every row would be nearest to the mean of its class, which is the row."""
    rng = np.random.default_rng(4)
    x = rng.standard_normal((30, 200))
    assert found(x, np.arange(30)) == [1.0, 1.0]
    np.testing.assert_array_equal(expected(x, np.arange(30)), [1.0, 1.0])


def test_one_class():
    x, _ = drawn(40, 3, 2)
    assert found(x, np.zeros(40, np.int64)) == [0.0, 0.0]


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6 + 0.1])
def test_rows_that_are_all_equal(value):
    """Nothing to tell classes apart by: the probe gives everybody the most frequent class."""
    y = np.repeat([0, 1, 2], [20, 50, 30])
    nearest, probe = found(np.full((100, 4), value), y)
    assert probe == 0.5
    assert nearest >= 0.5


def test_few_rows():
    x, y = drawn(7, 3, 3)
    np.testing.assert_array_equal(found(x, y), expected(x, y))
    assert found(x[:1], y[:1]) == [None, None]
    two = found(np.array([[0.0], [1.0]]), np.array([3, 3]))
    assert two == [0.0, 0.0]


def test_wide_embeddings_have_no_probe(monkeypatch):
    x, y = drawn(80, 9, 3)
    monkeypatch.setattr(_baselines, "WIDEST", 8)
    nearest, probe = found(x, y)
    assert probe is None
    assert nearest == expected(x, y)[0]


@pytest.mark.parametrize(("n", "told"), [(79, True), (80, False)])
def test_few_rows_for_a_probe_are_told(n, told):
    x, y = drawn(n, 40, 2)
    result = resque_task(x, y, baselines=True, chance=0, start="held-out")
    warned = [line for line in result.warnings if line.startswith("linear_probe_error: may be")]
    assert bool(warned) == told
    assert result.reliable  # `value` is not the probe's
    assert not resque_task(x, y, chance=0, start="held-out").warnings


def test_the_probe_has_no_peak_where_rows_are_as_many_as_columns():
    """Errors fall with rows; a penalty of 1e-3 gives 0.86 at 80 rows of 64 columns, 0.84 at 40."""
    means = np.random.default_rng(5).standard_normal((10, 64)) * 0.25
    errors = []
    for n in (40, 80, 160, 1280):
        y = np.arange(n) % 10
        x = means[y] + np.random.default_rng(n).standard_normal((n, 64))
        errors.append(found(x, y)[1])
    assert errors[0] > errors[1] >= errors[2] > errors[3]
    assert errors[1] < 0.75


def test_rows_in_chunks(monkeypatch):
    x, y = drawn(400, 8, 5)
    monkeypatch.setattr(_baselines, "_CHUNK", 8 * 7)
    monkeypatch.setattr(segments, "SEGMENT_ELEMENTS", 8 * 150)
    np.testing.assert_array_equal(found(x, y), expected(x, y))


def test_pooled_features():
    x, y = drawn(200, 5 * 12, 3)
    maps = torch.tensor(x.reshape(200, 5, 3, 4))
    np.testing.assert_array_equal(found(maps, y), expected(maps.mean((2, 3)).numpy(), y))
    np.testing.assert_array_equal(found(maps, y, embedding="flattened"), expected(x, y))
