"""Lloyd's algorithm by scikit-learn's rules: where it stops, where empty clusters go, hard data."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from resque_ext import adjusted_rand_index, resque_task
from resque_ext.indices import _kmeans
from resque_ext.indices.segments import Embeddings, open_source

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def theirs(x, start, **options):
    return KMeans(len(start), init=start, n_init=1, **options).fit(np.asarray(x, np.float64))


def check(x, start, **options):
    """The same as scikit-learn in float64, from the same centres."""
    x, start = np.asarray(x), np.asarray(start, np.float64)
    y = np.arange(len(x)) % 2
    expected = theirs(x, start, **options)
    found = resque_task(x, y, init=start, **options)
    np.testing.assert_array_equal(found.cluster_labels, expected.labels_)
    assert found.n_iter == expected.n_iter_
    scale = np.abs(np.asarray(x, np.float64) - np.asarray(x, np.float64).mean(0)).max()
    np.testing.assert_allclose(
        found.centers, expected.cluster_centers_, rtol=1e-12, atol=1e-10 * scale
    )
    np.testing.assert_allclose(found.inertia, expected.inertia_, rtol=1e-9, atol=1e-18)
    return found


@pytest.mark.parametrize("seed", range(12))
def test_as_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    n, d, k = int(rng.integers(20, 900)), int(rng.integers(1, 40)), int(rng.integers(1, 20))
    x = rng.standard_normal((n, d)) * rng.exponential(size=d) + rng.normal(0, 5, d)
    found = check(x, x[rng.choice(n, k, replace=False)])
    assert found.converged


@pytest.mark.parametrize("tol", [0, 1e-12, 1e-4, 1e-2, 0.1, 1.0])
def test_tolerance(tol):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((800, 5)) + 3
    assert check(x, x[:9], tol=tol).converged


def test_tolerances_stop_at_different_iterations():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((800, 5)) + 3
    stops = [check(x, x[:9], tol=10.0**-e).n_iter for e in range(8)]
    assert stops == sorted(stops)
    assert len(set(stops)) > 3


@pytest.mark.parametrize("offset", [0, 1e6])
@pytest.mark.parametrize("k", [1, 7])
def test_the_variance_comes_from_the_first_assignment(offset, k):
    x = np.random.default_rng(1).standard_normal((600, 5)) * [1, 2, 3, 4, 0] + offset
    data = Embeddings(open_source(x, None), "pooled", torch.device("cpu"))
    for centers in (x[:k], x[:k] + 2.5):
        start = torch.tensor(centers)
        step = _kmeans._assign(data, start, torch.full((600,), -1))
        found = _kmeans._mean_variance(step, start)
        np.testing.assert_allclose(found, (x - x.mean(0)).var(0).mean(), rtol=1e-9)


@pytest.mark.parametrize("max_iter", [1, 2, 3, 7])
def test_most_iterations(max_iter):
    x = np.random.default_rng(2).standard_normal((700, 4))
    found = check(x, x[:8], max_iter=max_iter, tol=0)
    assert found.n_iter == max_iter
    assert not found.converged


@pytest.mark.parametrize("seed", range(10))
def test_centres_that_nobody_is_near(seed):
    """One, or many at once, and their rows come from clusters that may be left without any."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((int(rng.integers(12, 80)), int(rng.integers(1, 4))))
    empty = int(rng.integers(1, 9))
    start = np.concatenate([x[:2], rng.standard_normal((empty, x.shape[1])) + 30])
    found = check(x, start)
    assert (np.bincount(found.cluster_labels, minlength=len(start)) > 0).all()


def test_empty_centres_take_the_farthest_rows_the_first_of_equals():
    x = np.array([[0.0], [1], [10], [-10], [10], [4]])
    start = np.array([[0.0], [100], [200]])
    found = resque_task(x, np.arange(6) % 2, init=start, max_iter=1)
    # Rows 2, 3 and 4 are all 10 away: the first two go to the empty centres, in that order.
    np.testing.assert_array_equal(found.centers, [[(0 + 1 + 10 + 4) / 4], [10], [-10]])


@pytest.mark.parametrize("start", [[0, 0, 8], [8, 8, 0], [0, 8, 8], [8, 0, 0]])
def test_a_centre_that_no_row_can_be_moved_to(start):
    """All rows lie on their centres: it goes where scikit-learn puts it, labels and all."""
    x = np.array([[0.0], [8], [8], [8]])
    check(x, np.array(start, np.float64)[:, None])


def test_labels_that_repeat_while_a_row_is_moved():
    """The inertia is then that of the labels, which are not those of the nearest centres."""
    x = np.array([[-1.0], [-1], [-1], [10], [11], [15]])
    found = check(x, np.array([[4.0], [12], [1000]]))
    assert found.n_iter == 2
    assert found.table.sum(0).tolist() == [3, 3, 0]
    assert found.centers[:, 0].tolist() == [-1, 10.5, 15]
    assert found.inertia == 20.75


def test_all_rows_equal():
    """Whatever k: it ends, with all rows in one cluster."""
    for value in (0.0, 0.1, -3e7, 1e-300):
        x = np.full((20, 3), value)
        for k in (1, 2, 7, 20):
            found = resque_task(x, np.arange(20) % 4, init=np.repeat(x[:1], k, axis=0))
            assert len(set(found.cluster_labels.tolist())) == 1
            assert found.inertia <= 1e-28  # of a mean that float64 rounds
            assert found.value == 1.0  # one cluster tells nothing of four classes
            assert found.converged
        assert resque_task(x, np.arange(20)).value == 1.0


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_few_distinct_rows(data):
    """Duplicates, more centres than distinct rows: the same partition as scikit-learn's."""
    n = data.draw(st.integers(3, 40))
    bits = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    x = np.where(bits, 8.0, 0.0)[:, None]
    k = data.draw(st.integers(1, min(n, 9)))
    start = x[data.draw(st.lists(st.integers(0, n - 1), min_size=k, max_size=k))]
    expected = theirs(x, start)
    found = resque_task(x, np.arange(n) % 2, init=start)
    table = np.zeros((k, k), np.int64)
    np.add.at(table, (found.cluster_labels, expected.labels_), 1)
    assert adjusted_rand_index(table) == 1
    again = resque_task(x, np.arange(n) % 2, init=start)
    assert again.cluster_labels.tobytes() == found.cluster_labels.tobytes()


def test_an_exact_tie_goes_to_the_lowest_index():
    """Where scikit-learn, in rounded squares about the mean, may send it elsewhere."""
    x = np.array([[0.0, 0], [2, 0], [1, 0], [1, 5], [1, -5]])
    for start in (x[[0, 1]], x[[1, 0]]):
        found = resque_task(x, np.arange(5) % 2, init=start, max_iter=1, tol=1e9)
        assert found.n_iter == 1
        # Rows 2, 3 and 4 are as far from one centre as from the other.
        np.testing.assert_array_equal(found.centers, [(start[0] + x[2:].sum(0)) / 4, start[1]])


@pytest.mark.parametrize("constant", [0.0, 5.0, 1e6 + 0.1])
def test_constant_features(constant):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((300, 6)) + 1
    x[:, [1, 4]] = constant
    check(x, x[:5])


def by_differences(x, start):
    """Lloyd's algorithm, every distance from the differences themselves; no cluster gets empty."""
    centers, labels = start, None
    while True:
        found = np.stack([((x - c) ** 2).sum(1) for c in centers]).argmin(0)
        if labels is not None and (found == labels).all():
            return labels
        labels = found
        centers = np.stack([x[labels == k].mean(0) for k in range(len(centers))])


@pytest.mark.parametrize(("offset", "spread"), [(1e6, 1), (-3e7, 50), (1e9, 1e5)])
def test_far_from_zero(offset, spread):
    """Squares cancel in float32, and from 1e8 on in float64; differences do not."""
    rng = np.random.default_rng(4)
    x = (rng.standard_normal((400, 8)) * spread + offset).astype(np.float32)
    y = np.arange(400) % 7
    near = x.astype(np.float64) - offset
    means = np.stack([near[y == c].mean(0) for c in range(7)])
    expected = theirs(near, means)
    found = resque_task(x, y)
    np.testing.assert_array_equal(found.cluster_labels, expected.labels_)
    np.testing.assert_array_equal(found.cluster_labels, by_differences(near, means))
    assert found.n_iter == expected.n_iter_
    np.testing.assert_allclose(
        found.centers - offset, expected.cluster_centers_, atol=1e-6 * spread
    )


def test_far_from_each_other():
    """Two blobs 1e7 apart, where centring helps nobody: squares lose what tells rows apart."""
    rng = np.random.default_rng(5)
    x = (rng.standard_normal((2_000, 16)) + 3e4).astype(np.float32)
    x[:, 0] += np.arange(2_000) % 2 * 1e7
    y = np.arange(2_000) % 12
    wide = x.astype(np.float64)
    means = np.stack([wide[y == c].mean(0) for c in range(12)])
    expected = by_differences(wide, means)
    np.testing.assert_array_equal(resque_task(x, y, tol=0).cluster_labels, expected)
    rounded = KMeans(12, init=means.astype(np.float32), n_init=1).fit(x)
    assert (rounded.labels_ != expected).any()


@pytest.mark.parametrize(
    ("dtype", "largest"), [(torch.float16, 65_504.0), (torch.bfloat16, 1e19), (torch.float32, 1e30)]
)
def test_norms_near_overflow(dtype, largest):
    """Squares that the features' own type cannot hold; distances are float64's."""
    rng = np.random.default_rng(6)
    x = torch.tensor(rng.uniform(-1, 1, (300, 20)) * largest).to(dtype)
    wide = x.double().numpy()
    y = np.arange(300) % 4
    means = np.stack([wide[y == c].mean(0) for c in range(4)])
    expected = theirs(wide / largest, means / largest)
    found = resque_task(x, y)
    np.testing.assert_array_equal(found.cluster_labels, expected.labels_)
    assert found.n_iter == expected.n_iter_


def test_denormals_and_negative_zero():
    rng = np.random.default_rng(7)
    whole = rng.integers(-8, 9, (60, 3)).astype(np.float64)
    x = np.where(whole == 0, -0.0, whole)
    plain = resque_task(whole, np.arange(60) % 3)
    assert resque_task(x, np.arange(60) % 3).cluster_labels.tobytes() == (
        plain.cluster_labels.tobytes()
    )
    tiny = (whole * 2.0**-145).astype(np.float32)  # denormal in float32, exact in float64
    small = resque_task(tiny, np.arange(60) % 3)
    np.testing.assert_array_equal(small.cluster_labels, plain.cluster_labels)
    assert small.n_iter == plain.n_iter
