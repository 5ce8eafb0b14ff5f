"""The adjusted Rand index against exact fractions and scikit-learn; the bootstrap against draws."""

from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from resque_ext import adjusted_rand_index
from resque_ext.indices import _contingency
from resque_ext.ops import pair_counts


def pairs(n):
    return n * (n - 1) // 2


def exact(table):
    """Hubert and Arabie's formula in fractions: (index - expected) / (most - expected)."""
    rows = table.tolist()
    n = sum(map(sum, rows))
    together = sum(pairs(x) for row in rows for x in row)
    in_rows = sum(pairs(sum(row)) for row in rows)
    in_columns = sum(pairs(sum(column)) for column in zip(*rows, strict=True))
    expected = Fraction(in_rows * in_columns, pairs(n))
    most = Fraction(in_rows + in_columns, 2)
    return float((together - expected) / (most - expected))


def table_of(n, k, agreement, seed=0):
    """Counts of n samples in k classes and k clusters, a share of which agrees."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(k * k, 0.5)).reshape(k, k) * (1 - agreement)
    p[np.arange(k), rng.permutation(k)] += agreement / k
    return rng.multinomial(n, p.flatten() / p.sum()).reshape(k, k)


@pytest.mark.parametrize("k", [2, 3, 10, 100, 1_000])
@pytest.mark.parametrize("n", [10**6, 10**10, 2**62])
@pytest.mark.parametrize("agreement", [0.0, 0.4, 0.999])
def test_exact_where_others_overflow(n, k, agreement):
    table = table_of(n, k, agreement)
    assert adjusted_rand_index(table) == exact(table)


def test_counts_beyond_what_int64_can_sum():
    """Rows and columns of 2^63 and more: nothing wraps around."""
    table = np.array([[2**62, 2**62 - 7], [2**62 + 5, 2**61]])
    assert adjusted_rand_index(table) == exact(table)
    table = np.full((3, 2), 2**62)
    assert adjusted_rand_index(table) == exact(table)


def test_published_overflow():
    """100,000 samples, 10 classes: int64 products of pair counts give -14.6 in one library."""
    rng = np.random.default_rng(0)
    a = rng.integers(0, 10, 100_000)
    b = np.where(rng.random(100_000) < 0.6, a, rng.integers(0, 10, 100_000))
    table = pair_counts(a, b)
    expected = adjusted_rand_score(a, b)
    assert abs(adjusted_rand_index(table) - expected) < 1e-15
    assert 0.3 < expected < 0.5


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_as_scikit_learn(data):
    n = data.draw(st.integers(1, 40))
    a, b = (data.draw(st.lists(st.integers(0, 4), min_size=n, max_size=n)) for _ in "ab")
    found = adjusted_rand_index(pair_counts(np.array(a), np.array(b), 5, 5))
    assert abs(found - adjusted_rand_score(a, b)) < 1e-14
    assert -0.5 <= found <= 1


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([0, 0, 0], [0, 0, 0], 1.0),  # one cluster, one class
        ([0], [0], 1.0),
        ([0, 1, 2, 3], [2, 0, 1, 3], 1.0),  # every sample its own, twice
        ([0, 0, 0, 0], [0, 1, 2, 3], 0.0),
        ([0, 0, 1, 1], [0, 0, 0, 0], 0.0),
        ([0, 0, 1, 1], [0, 1, 0, 1], -0.5),  # the least there is
        ([0, 0, 1, 1], [1, 1, 0, 0], 1.0),
    ],
)
def test_special_cases(a, b, expected):
    assert adjusted_rand_index(pair_counts(np.array(a), np.array(b))) == expected
    assert adjusted_rand_score(a, b) == expected


def test_no_samples():
    assert adjusted_rand_score([], []) == 1.0
    for shape in ((1, 1), (3, 2), (0, 4), (0, 0)):
        assert adjusted_rand_index(np.zeros(shape, np.int64)) == 1.0


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_names_of_labels_do_not_matter(data):
    shape = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    cells = st.integers(0, 3) | st.integers(0, 2**40)
    flat = data.draw(st.lists(cells, min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))
    table = np.array(flat, np.int64).reshape(shape)
    value = adjusted_rand_index(table)
    assert -0.5 <= value <= 1
    assert adjusted_rand_index(table.T) == value
    for order in permutations(range(shape[0])):
        assert adjusted_rand_index(table[list(order)]) == value
    wider = np.zeros((shape[0] + 2, shape[1] + 1), np.int64)
    wider[1:-1, 1:] = table  # labels that nobody has
    assert adjusted_rand_index(wider) == value


def test_tensors_and_arrays():
    table = table_of(500, 4, 0.5)
    value = exact(table)
    for form in (
        torch.tensor(table),
        table.astype(np.int32),
        table[::-1],
        np.asfortranarray(table),
    ):
        assert adjusted_rand_index(form) == value
    assert adjusted_rand_index(torch.tensor(table).T) == value
    assert adjusted_rand_index(table.astype(np.uint16)) == value


@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        (np.ones((2, 2)), TypeError, "table: expected int32 or int64 counts, found"),
        (np.ones((2, 2), bool), TypeError, "table: expected int32 or int64 counts, found"),
        ({1, 2}, TypeError, "table: expected a torch.Tensor or numpy.ndarray, found set"),
        (np.ones(4, np.int64), ValueError, r"table: expected shape \[Ka, Kb\]"),
        (np.array([[1, 2], [3, -4]]), ValueError, "at least 0, found -4 at row 1, column 1"),
        (np.ones((2, 2), complex), TypeError, "table: expected real numbers"),
    ],
)
def test_refused_tables(table, error, message):
    with pytest.raises(error, match=message):
        adjusted_rand_index(table)


# --- The bootstrap


def population(p):
    """The index of infinitely many samples from a distribution of cells."""
    a, b = (p.sum(1) ** 2).sum(), (p.sum(0) ** 2).sum()
    return ((p * p).sum() - a * b) / ((a + b) / 2 - a * b)


def mixed(k, agreement):
    return (1 - agreement) / k**2 + agreement * np.eye(k) / k


@pytest.mark.parametrize(
    ("k", "agreement", "n"), [(3, 0.5, 300), (10, 0.7, 400), (20, 0.4, 1_000), (40, 0.3, 1_500)]
)
def test_the_interval_covers(k, agreement, n):
    """Of 200 intervals of 95%, 190 +- 3: at least 180, also where most cells are empty."""
    rng, p = np.random.default_rng(k), mixed(k, agreement)
    truth = population(p)
    covered, values, errors = 0, [], []
    for seed in range(200):
        table = rng.multinomial(n, p.flatten()).reshape(k, k)
        found = _contingency.bootstrap(table, seed, replicates=200)
        covered += found.low <= truth <= found.high
        values.append(adjusted_rand_index(table))
        errors.append(found.std_error)
    assert 180 <= covered <= 200
    assert 0.8 < np.mean(errors) / np.std(values) < 1.25


def test_both_ways_to_draw_agree():
    """A table of many samples is drawn by cells, one of few by samples."""
    p = mixed(6, 0.5).flatten()
    cells = np.random.default_rng(0).multinomial(5_000, p)
    for n in (5_000, 100):
        rng = np.random.default_rng(1)
        counts = cells if n == 5_000 else np.random.default_rng(0).multinomial(n, p)
        drawn = _contingency._draw(rng, counts[counts > 0], np.full(4_000, n))
        assert (drawn.sum(1) == n).all()
        share = counts[counts > 0] / n
        np.testing.assert_allclose(
            drawn.mean(0), n * share, atol=5 * np.sqrt(n * share / 4_000).max()
        )
        spread = np.sqrt(n * share * (1 - share))
        np.testing.assert_allclose(drawn.std(0), spread, rtol=0.1)


def test_the_interval_lies_around_the_index():
    for k, n in ((2, 50), (10, 10**10), (50, 3_000), (100, 2_000)):
        table = table_of(n, k, 0.3)
        value, found = adjusted_rand_index(table), _contingency.bootstrap(table, 0)
        assert found.low < value < found.high
        assert found.low >= -0.5
        assert found.high <= 1
        assert 0.5 < (found.high - found.low) / (2 * 1.96 * found.std_error) < 1.5


def test_more_samples_make_it_smaller():
    table = table_of(1_000, 4, 0.5)
    few, many = (_contingency.bootstrap(table * scale, 0) for scale in (1, 100))
    np.testing.assert_allclose(few.std_error / many.std_error, 10, rtol=0.15)


def test_the_same_seed_gives_the_same():
    table = table_of(800, 5, 0.4)
    assert _contingency.bootstrap(table, 3) == _contingency.bootstrap(table, 3)
    assert _contingency.bootstrap(table, 3) != _contingency.bootstrap(table, 4)


def test_nothing_to_resample():
    assert _contingency.bootstrap(np.zeros((2, 2), np.int64), 0) is None
    assert _contingency.bootstrap(np.array([[1, 0]]), 0) is None
    found = _contingency.bootstrap(np.array([[7]]), 0)  # one cell: equal in every replicate
    assert (found.std_error, found.low, found.high) == (0, 1, 1)


def plain_bootstrap(table, seed, replicates):
    """All cells at once, from the table and one sample more that is spread as chance would."""
    n = table.sum()
    p = (table + np.outer(table.sum(1), table.sum(0)) / n**2) / (n + 1)
    rng = np.random.default_rng(seed)
    drawn = [
        adjusted_rand_index(rng.multinomial(n, p.ravel()).reshape(p.shape))
        for _ in range(replicates)
    ]
    difference = np.array(drawn) - population(p)
    return difference.std(ddof=1), adjusted_rand_index(table) + np.quantile(
        difference, [0.025, 0.975]
    )


@pytest.mark.parametrize(("n", "k"), [(60, 3), (400, 4), (500, 12)])
def test_the_bootstrap_is_that_of_the_table_and_a_sample_by_chance(n, k):
    """The standard errors of two bootstraps of 2,000 agree to a few percent; so do their ends."""
    table = np.diag(np.full(k, n // k)) if n == 400 else table_of(n, k, 0.6)
    error, (low, high) = plain_bootstrap(table, 1, 2000)
    found = _contingency.bootstrap(table, 2, 2000)
    if n == 400:  # without a disagreement: at least to three of them
        three = np.full((k, k), 3 / n / (k * (k - 1)))
        np.fill_diagonal(three, (1 - 3 / n) / k)
        low = min(low, population(three))
    assert found.std_error == pytest.approx(error, rel=0.1)
    assert found.low == pytest.approx(low, abs=0.35 * error)
    assert found.high == pytest.approx(min(high, 1), abs=0.35 * error)


def test_a_table_without_disagreement_is_not_certain():
    """About 3 / N: of ten classes, 0 of N seen leaves up to some 3 of N disagreements open."""
    for n in (100, 1000, 10_000):
        found = _contingency.bootstrap(np.diag(np.full(10, n // 10)), 0)
        assert found.high == 1
        assert 1 / n < 1 - found.low < 8 / n
        assert found.std_error > 0


def coverage(errors, n, k, tables):
    """The share of intervals with the true index, where so many errors of n are expected."""
    share = errors / n
    p = np.full((k, k), share / (k * (k - 1)))
    np.fill_diagonal(p, (1 - share) / k)
    truth, rng, covered = population(p), np.random.default_rng(int(errors * 10)), 0
    for seed in range(tables):
        table = rng.multinomial(n, p.ravel()).reshape(k, k)
        found = _contingency.bootstrap(table, seed, replicates=200)
        covered += found.low <= truth <= found.high
    return covered / tables


def test_the_interval_covers_few_errors_quickly():
    assert coverage(1, 300, 4, 60) >= 0.85


@pytest.mark.full
@pytest.mark.parametrize("errors", [0.1, 0.5, 1, 2, 3, 5, 10, 30, 100, 210])
@pytest.mark.parametrize("k", [2, 10])
def test_the_interval_covers_from_a_tenth_of_an_error_on(errors, k):
    """95% intervals, 500 tables: 0.92 less three deviations of the share, 0.036."""
    assert coverage(errors, 300, k, 500) >= 0.92 - 0.036
