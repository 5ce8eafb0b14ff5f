"""Angles, their standard error and their noise floor: exact cases, plain loops, and redraws."""

import math
import warnings

import numpy as np
import pytest

from resque_ext.indices import _angles
from resque_ext.indices._angles import angles, noise_floor, std_error

ROTATIONS = [1e-12, 1e-9, 1e-7, 1e-5, 1e-3, 0.1, math.pi / 6, 1.0, math.pi / 2, 2.0, 3.0]


@pytest.fixture(autouse=True)
def _no_numpy_warnings():
    """A division by zero on the way to a NaN must not show."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# Angles


@pytest.mark.parametrize("theta", ROTATIONS)
def test_rotation_from_an_axis_keeps_all_digits(theta):
    """cos and sin are right to the last bit, so the angle's relative error is a few roundings."""
    u, v = np.zeros((2, 5))
    u[3], v[3], v[1] = 1, math.cos(theta), math.sin(theta)
    assert abs(angles(u, v) / (theta / math.pi) - 1) < 8 * 2**-53
    assert angles(u, v) == angles(v, u)


@pytest.mark.parametrize("theta", [*ROTATIONS, math.pi - 1e-3, math.pi - 1e-9, math.pi])
@pytest.mark.parametrize("width", [2, 3, 64, 1000])
def test_rotation_in_a_random_plane(theta, width):
    """Here the components round, by 2^-53 of themselves: that turns a vector by under 4 * 2^-53."""
    plane, _ = np.linalg.qr(np.random.default_rng(width).normal(size=(width, 2)))
    u, v = plane[:, 0], math.cos(theta) * plane[:, 0] + math.sin(theta) * plane[:, 1]
    assert abs(angles(u, v) - theta / math.pi) < 16 * 2**-53


@pytest.mark.parametrize(
    ("u", "v", "expected"),
    [
        ([1, 2, 3], [2, 4, 6], 0),
        ([3, 0], [-1, 0], 1),
        ([1, 2, -3], [-2, -4, 6], 1),
        ([1, 0], [0, 5], 1 / 2),
        ([1, 0], [7, 7], 1 / 4),
        ([1, 1, 0], [0, 1, 1], 1 / 3),
        ([1, 1, 0], [0, -1, -1], 2 / 3),
        ([2], [3], 0),
        ([2], [-3], 1),
    ],
)
def test_angles_of_integers(u, v, expected):
    found = angles(np.array(u, dtype=float), np.array(v, dtype=float))
    assert abs(found - expected) <= 2**-53
    if expected in (0, 1):
        assert found == expected


@pytest.mark.parametrize("a", [1e-300, 2.0**-1000, 1e-5, 3.0, 1e300])
@pytest.mark.parametrize("b", [1e-300, 7.0, 2.0**1000, 1e300])
def test_scale_of_a_side_does_not_matter(a, b):
    rng = np.random.default_rng(0)
    u, v = rng.normal(size=(2, 6, 40))
    np.testing.assert_allclose(angles(a * u, b * v), angles(u, v), rtol=0, atol=8 * 2**-53)
    if math.frexp(a)[0] == math.frexp(b)[0] == 0.5:  # powers of two round nothing
        np.testing.assert_array_equal(angles(a * u, b * v), angles(u, v))


def test_ends_of_the_range():
    """Squares that would overflow, sums of squares that would, and denormals."""
    for value in (1.7e308, 5e-324):
        u = np.full(1000, value)
        assert angles(u, u) == 0
        assert angles(u, -u) == 1
    assert abs(angles(np.array([5e-324, 5e-324]), np.array([1e308, 0])) - 1 / 4) < 2**-53


@pytest.mark.parametrize("wrong", [np.zeros(3), [0, np.nan, 1], [np.inf, 0, 0], [1, -np.inf, 2]])
def test_no_angle_is_nan_and_only_that_one(wrong):
    u = np.ones((4, 3))
    v = u.copy()
    v[2] = wrong
    for found in (angles(u, v), angles(v, u)):
        assert np.isnan(found).tolist() == [False, False, True, False]
    assert angles(np.ones((2, 5, 3)), np.ones((2, 1, 3))).shape == (2, 5)  # any leading axes


# Standard error


def blocks_of(rng, mean, sigma, rows, blocks):
    """Sums and counts [R, B, D], [R, B] of `rows` normal rows a draw, dealt to blocks in turn."""
    draws, width = mean.shape
    counts = np.full((draws, blocks), rows // blocks)
    counts[:, : rows % blocks] += 1
    noise = rng.normal(size=(draws, blocks, width)) * np.sqrt(counts)[..., None] * sigma
    return counts[..., None] * mean[:, None] + noise, counts, noise


def redraws(paired, rows, seed, draws=2000, classes=3, width=5, blocks=16):
    """Values of the index and their standard errors, over new draws of the same populations."""
    rng = np.random.default_rng(seed)
    mean = rng.normal(size=(2, classes, width)) + 1.5
    values, errors, others = [], [], []
    for _ in range(draws):
        old, m, noise = blocks_of(rng, mean[0], 0.7, rows[0], blocks)
        new, n, own = blocks_of(rng, mean[1], 0.7, rows[1], blocks)
        if paired:  # the new rows keep the old ones' noise, and have a little of their own
            new += noise + 0.2 * own - own
        values.append(angles(old.sum(axis=1), new.sum(axis=1)).mean())
        errors.append(std_error(old, new, m, n, paired))
        others.append(std_error(old, new, m, n, not paired) if paired else np.nan)
    return np.array(values), np.array(errors), np.array(others)


@pytest.mark.parametrize(
    ("paired", "rows"),
    [(False, (160, 160)), (False, (203, 77)), (True, (160, 160)), (True, (101, 101))],
)
def test_std_error_is_the_spread_of_redraws(paired, rows):
    """A standard deviation of R draws has the relative error 1/sqrt(2R), 1.6% for 2,000: five of
    them. The jackknife's bias is of the order of the squared relative noise of a sum, here under
    (0.7 sqrt(5) / (1.5 sqrt(77)))^2 = 1.4%. The root mean square of the R estimates themselves is
    known far better: each has 15 degrees of freedom a class.
    """
    values, errors, others = redraws(paired, rows, seed=sum(rows))
    spread = values.std(ddof=1)
    root_mean_square = math.sqrt(np.square(errors).mean())
    assert abs(root_mean_square / spread - 1) < 5 / math.sqrt(2 * len(values)) + 0.014
    if paired:  # what the sides share moves both sums together, hardly the angle
        assert (errors < others).all()
        assert math.sqrt(np.square(others).mean()) > 1.3 * spread


def plain_jackknife(old, new, m, n, paired):
    """Busing, Meijer and van der Leeden (1999), equations 5 to 8, one block after another."""
    classes, blocks, _ = old.shape

    def variance(statistic, rows):
        there = [b for b in range(blocks) if rows[b] > 0]
        g, total, whole = len(there), sum(rows), statistic(None)
        without = {b: statistic(b) for b in there}
        centre = g * whole - sum((1 - rows[b] / total) * without[b] for b in there)
        result = 0
        for b in there:
            h = total / rows[b]
            pseudo = h * whole - (h - 1) * without[b]
            result += (pseudo - centre) ** 2 / (h - 1) / g
        return result

    def angle(c, b_old, b_new):
        u = sum(old[c, b] for b in range(blocks) if b != b_old)
        v = sum(new[c, b] for b in range(blocks) if b != b_new)
        return float(angles(u, v))

    result = 0.0
    for c in range(classes):
        if paired:
            result += variance(lambda b, c=c: angle(c, b, b), m[c])
        else:
            result += variance(lambda b, c=c: angle(c, b, None), m[c])
            result += variance(lambda b, c=c: angle(c, None, b), n[c])
    return math.sqrt(result) / classes


def uneven(seed, classes=7, blocks=6, width=4):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 9, size=(2, classes, blocks))
    counts[:, :, :2] += 1
    sums = (rng.normal(size=(2, classes, blocks, width)) + 2) * counts[..., None]
    return sums[0], sums[1], counts[0], counts[1]


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_std_error_is_a_plain_jackknife_of_unequal_blocks(paired, seed):
    old, new, m, n = uneven(seed)
    assert (m == 0).any()
    assert (n == 0).any()
    n = m if paired else n
    if paired:
        new[n == 0] = 0
    found = std_error(old, new, m, n, paired)
    assert abs(found / plain_jackknife(old, new, m, n, paired) - 1) < 1e-12


@pytest.mark.parametrize("size", [1, 8 * 4 * 6 * 4 * 3])
def test_chunks_of_classes_change_nothing(monkeypatch, size):
    old, new, m, n = uneven(9)
    rows = n.sum(axis=1)
    whole = [std_error(old, new, m, n, paired) for paired in (False, True)]
    whole.append(noise_floor(old, m, rows))
    assert len(_angles.chunks(7, 4)) == 1
    monkeypatch.setattr(_angles, "_CHUNK_BYTES", size)
    assert len(_angles.chunks(7, 4 * 6 * 4)) > 1
    found = [std_error(old, new, m, n, paired) for paired in (False, True)]
    found.append(noise_floor(old, m, rows))
    np.testing.assert_allclose(found, whole, rtol=1e-13)


# Noise floor


@pytest.mark.parametrize("rows", [(160, 160), (50, 400), (400, 50), (45, 37), (5, 7), (2, 2)])
def test_noise_floor_is_the_index_of_two_samples_of_one_distribution(rows):
    """Both means over R draws, each with the error of its own spread; five of them. The angle is
    linear in the noise up to its square, (0.3 / sqrt(2 * 1.5^2))^2 = 2% for the smallest samples.
    """
    rng = np.random.default_rng(sum(rows))
    mean = rng.normal(size=(3, 5)) * 0.3 + 1.5
    sigma = np.array([0.1, 0.2, 0.3, 0.3, 0.05])  # not the same in all directions
    values, floors = [], []
    for _ in range(2000):
        old, m, _ = blocks_of(rng, mean, sigma, rows[0], 16)
        new, n, _ = blocks_of(rng, mean, sigma, rows[1], 16)
        values.append(angles(old.sum(axis=1), new.sum(axis=1)).mean())
        floors.append(noise_floor(old, m, n.sum(axis=1)))
    error = math.sqrt((np.var(values) + np.var(floors)) / len(values))
    assert abs(np.mean(floors) - np.mean(values)) < 5 * error + 0.02 * np.mean(values)


def test_noise_floor_of_two_blocks_is_their_angle_scaled():
    """With two filled blocks there is one way to halve them; empty ones take no part."""
    rng = np.random.default_rng(3)
    old = np.zeros((1, 6, 4))
    counts = np.zeros((1, 6), dtype=np.int64)
    old[0, [1, 4]] = rng.normal(size=(2, 4)) + 2
    counts[0, [1, 4]] = 3, 5
    expected = angles(old[0, 1], old[0, 4]) * math.sqrt((1 / 8 + 1 / 11) / (1 / 3 + 1 / 5))
    assert abs(noise_floor(old, counts, np.array([11])) / expected - 1) < 1e-14


def test_noise_floor_is_reproducible():
    old, _, m, n = uneven(4)
    assert noise_floor(old, m, n.sum(axis=1)) == noise_floor(old, m, n.sum(axis=1))


# Too little to say anything


def test_none_where_a_class_has_fewer_than_two_blocks():
    old, new, m, n = uneven(5)
    one = m.copy()
    one[3, 1:] = 0
    rows = n.sum(axis=1)
    assert noise_floor(old, one, rows) is None
    assert noise_floor(old, m, np.ones_like(rows)) is not None  # one new row is enough
    for paired in (False, True):
        assert std_error(old, new, one, n, paired) is None
        assert std_error(old, new, m, one, paired) is None


def test_none_where_a_part_has_no_angle():
    """All of a class in one of its two blocks: without that block there is no angle."""
    old = np.zeros((1, 2, 3))
    old[0, 0] = 1
    counts = np.array([[2, 2]])
    for paired in (False, True):
        assert std_error(old, old, counts, counts, paired) is None
    assert noise_floor(old, counts, np.array([4])) is None
