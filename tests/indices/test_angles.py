"""Angles, their standard error and their noise floor: exact cases, plain loops, and redraws."""

import math
import warnings

import numpy as np
import pytest

from resque_ext.indices import _angles
from resque_ext.indices._angles import angles, exchange, noise_floor, std_error

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
    them. What the first order leaves out is of the order of the squared relative noise of a sum,
    here under (0.7 sqrt(5) / (1.5 sqrt(77)))^2 = 1.4%. The root mean square of the R estimates
    themselves is known far better: each has 15 degrees of freedom a class.
    """
    values, errors, others = redraws(paired, rows, seed=sum(rows))
    spread = values.std(ddof=1)
    root_mean_square = math.sqrt(np.square(errors).mean())
    assert abs(root_mean_square / spread - 1) < 5 / math.sqrt(2 * len(values)) + 0.014
    if paired:  # what the sides share moves both sums together, hardly the angle
        assert (errors < others).all()
        assert math.sqrt(np.square(others).mean()) > 1.3 * spread


def plain_std_error(old, new, m, n, paired):
    """From [D, D] covariances of the directions, class by class, without a Gram matrix."""

    def direction(sums, counts):
        """The unit vector, the rows r of blocks with rows, and their number less one."""
        there = np.flatnonzero(counts)
        total, rows, g = sums.sum(0), counts.sum(), len(there)
        mean = total / rows
        unit = mean / np.linalg.norm(mean)
        r = []
        for b in there:
            away = np.sqrt(counts[b]) * (sums[b] / counts[b] - mean) / np.sqrt(rows * (g - 1))
            r.append((away - (away @ unit) * unit) / np.linalg.norm(mean))
        return unit, np.array(r), g - 1

    def squares(k, nu):
        return nu**2 / ((nu - 1) * (nu + 2)) * (np.trace(k @ k) - np.trace(k) ** 2 / nu)

    classes, _, width = old.shape
    total = least = 0.0
    for c in range(classes):
        (u, ru, nu), (v, rv, nv) = direction(old[c], m[c]), direction(new[c], n[c])
        if u @ v < 0:
            v, rv = -v, -rv
        d = v - u
        ku, kv = ru.T @ ru, rv.T @ rv
        if paired:
            k = (rv - ru).T @ (rv - ru)
            t, trace = squares(k, nu), np.trace(k)
        else:
            k = ku + kv
            t, trace = squares(ku, nu) + squares(kv, nv) + 2 * np.trace(ku @ kv), np.trace(k)
        t = max(t, trace**2 / width)
        q, cos2 = d @ k @ d, (u @ v) ** 2
        total += (q - t * cos2 / 2) / (np.pi**2 * (1 - cos2))
        least += q / (2 * np.pi**2 * (1 - cos2))
    return math.sqrt(max(total, least)) / classes


def uneven(seed, classes=7, blocks=6, width=4):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 9, size=(2, classes, blocks))
    counts[:, :, :2] += 1
    sums = (rng.normal(size=(2, classes, blocks, width)) + 2) * counts[..., None]
    return sums[0], sums[1], counts[0], counts[1]


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("opposite", [1, -1])
def test_std_error_is_that_of_plain_covariances(paired, seed, opposite):
    """Of unequal blocks, some empty, and of angles beyond a right one."""
    old, new, m, n = uneven(seed)
    assert (m == 0).any()
    assert (n == 0).any()
    if paired:
        n, new = m, np.where(m[:, :, None] > 0, new, 0)
    new = new * opposite
    found = std_error(old, new, m, n, paired)
    assert found == pytest.approx(plain_std_error(old, new, m, n, paired), rel=1e-9)


def test_std_error_of_equal_sides():
    """Pairs that are equal stay equal in any sample; samples that happen to be do not."""
    old, _, m, _ = uneven(3)
    assert std_error(old, old, m, m, paired=True) == 0
    found = std_error(old, old, m, m, paired=False)
    near = old * (1 + 1e-9 * np.random.default_rng(0).normal(size=old.shape))
    assert 0.4 < found / std_error(old, near, m, m, paired=False) < 2.5


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_std_error_and_exchange_do_not_depend_on_the_unit(scale):
    old, new, m, _ = uneven(4)
    new = np.where(m[:, :, None] > 0, new, 0)
    for paired in (False, True):
        found = std_error(old * scale, new * scale, m, m, paired)
        assert found == pytest.approx(std_error(old, new, m, m, paired), rel=1e-12)
    assert exchange(old * scale, new * scale, m).floor == pytest.approx(
        exchange(old, new, m).floor, rel=1e-12
    )


# The true deviation: cells of shift, spectrum and pairing. `bounds` are what is promised of blocks.
CELLS = [
    (paired, spectrum, shift)
    for paired in (False, True)
    for spectrum in ("flat", "steep")
    for shift in (0, 0.05, 0.1, 0.3, 1.0)
]


def ratio(paired, spectrum, shift, draws, width=64, classes=5, rows=160, blocks=16):
    """The root mean square of the standard errors over the deviation of the values; and what the
    noise floor, or the sign test, says of them."""
    rng = np.random.default_rng(7)
    sigma = np.ones(width) if spectrum == "flat" else np.arange(1, width + 1) ** -0.5
    sigma = sigma / np.sqrt(np.square(sigma).mean())
    mean = rng.normal(size=(classes, width)) * 0.5 + 0.3
    away = rng.normal(size=(classes, width))
    away -= (away * mean).sum(1, keepdims=True) / (mean**2).sum(1, keepdims=True) * mean
    away *= np.linalg.norm(mean, axis=1, keepdims=True) / np.linalg.norm(away, axis=1)[:, None]
    values, errors, floors, tests = [], [], [], []
    for _ in range(draws):
        old, m, noise = blocks_of(rng, mean, sigma, rows, blocks)
        new, n, own = blocks_of(rng, mean + shift * away, sigma, rows, blocks)
        if paired:
            new += noise - 0.7 * own
            shown = exchange(old, new, m)
            floors.append(shown.floor)
            tests.append(shown.p_value <= 0.05)
        else:
            floors.append(noise_floor(old, m, n.sum(axis=1)))
        values.append(angles(old.sum(axis=1), new.sum(axis=1)).mean())
        errors.append(std_error(old, new, m, n, paired))
    values, floors = np.array(values), np.array(floors)
    root_mean_square = math.sqrt(np.square(errors).mean())
    clear = tests if paired else values > floors + 2 * np.array(errors)
    return root_mean_square / values.std(ddof=1), floors.mean() / values.mean(), np.mean(clear)


def judged(paired, shift, found, slack):
    error, floor, clear = found
    assert 0.85 - slack < error < (1.2 if paired else 1.15) + slack
    if shift == 0:
        assert abs(floor - 1) < 0.03 + slack
        assert clear < (0.08 if paired else 0.09) + slack
    if shift >= 0.3:
        assert clear == 1


@pytest.mark.parametrize(("paired", "spectrum", "shift"), CELLS[::5])
def test_std_error_near_no_shift_quickly(paired, spectrum, shift):
    """The deviation of 150 draws is known to 6%."""
    judged(paired, shift, ratio(paired, spectrum, shift, 150), 0.12)


@pytest.mark.full
@pytest.mark.parametrize(("paired", "spectrum", "shift"), CELLS)
def test_std_error_is_the_true_deviation_from_no_shift_to_a_clear_one(paired, spectrum, shift):
    """Within 15%; of paired sides at most a fifth above. That of 1,500 draws is known to 1.8%."""
    judged(paired, shift, ratio(paired, spectrum, shift, 1500), 0.02)


@pytest.mark.full
@pytest.mark.parametrize("shift", [0, 0.2, 1.0])
def test_std_error_of_four_blocks(shift):
    error, *_ = ratio(False, "flat", shift, 1500, blocks=4)
    assert 0.83 < error < 1.23


@pytest.mark.parametrize("size", [1, 8 * 4 * 6 * 4 * 3])
def test_chunks_of_classes_change_nothing(monkeypatch, size):
    old, new, m, n = uneven(9)
    rows = n.sum(axis=1)
    whole = [std_error(old, new, m, n, paired) for paired in (False, True)]
    whole += [noise_floor(old, m, rows), *exchange(old, new, m)]
    assert len(_angles.chunks(7, 4)) == 1
    monkeypatch.setattr(_angles, "_CHUNK_BYTES", size)
    assert len(_angles.chunks(7, 4 * 6 * 4)) > 1
    found = [std_error(old, new, m, n, paired) for paired in (False, True)]
    found += [noise_floor(old, m, rows), *exchange(old, new, m)]
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


# What an exchange within pairs would show


def exchanged(old, new, swap):
    """The mean angle after the blocks of `swap` [C, B] changed sides."""
    u = np.where(swap[:, :, None], new, old).sum(axis=1)
    v = np.where(swap[:, :, None], old, new).sum(axis=1)
    return angles(u, v).mean()


def pairs(seed, shift, blocks=5, classes=3, width=4):
    rng = np.random.default_rng(seed)
    counts = np.full((classes, blocks), 6)
    old = (rng.normal(size=(classes, blocks, width)) + 2) * 6
    return old, old + rng.normal(size=old.shape) + shift, counts


@pytest.mark.parametrize("shift", [0, np.array([0.4, 0, -0.3, 0])])
def test_the_sign_test_is_that_of_all_exchanges(shift):
    """Of all 2^15 exchanges of 15 blocks; 199 of them are within 5 deviations of that share."""
    old, new, counts = pairs(1, shift)
    value = exchanged(old, new, np.zeros(counts.shape, bool))
    patterns = (np.arange(2**15)[:, None] >> np.arange(15) & 1).astype(bool).reshape(-1, 3, 5)
    u = np.where(patterns[..., None], new, old).sum(axis=2)
    v = np.where(patterns[..., None], old, new).sum(axis=2)
    share = (angles(u, v).mean(axis=1) >= value * (1 - 1e-12)).mean()
    found = exchange(old, new, counts).p_value
    assert abs(found - share) < 5 * math.sqrt(share * (1 - share) / 199) + 1 / 200
    assert (found * 200) % 1 == pytest.approx(0, abs=1e-9)


def test_the_paired_floor_is_that_of_random_halves():
    """Of four equal blocks every halving exchanges two: the floor is a mean over the three ways to
    halve, each with its own share of the eight halvings, so between the least and the largest."""
    old, new, counts = pairs(2, 0.3, blocks=4, classes=1)
    ways = [
        exchanged(old, new, np.isin(np.arange(4), half)[None]) for half in ([0, 1], [0, 2], [0, 3])
    ]
    assert min(ways) < exchange(old, new, counts).floor < max(ways)


def test_the_paired_floor_of_unequal_blocks():
    """Two blocks of 3 and 5 rows: one way to halve them, each weighed by the other's rows."""
    old, new, _ = pairs(3, 0.3, blocks=2, classes=1)
    counts = np.array([[3, 5]])
    d, total = new - old, (old + new).sum(axis=1)[0]
    away = math.sqrt(5 / 3) * d[0, 0] - math.sqrt(3 / 5) * d[0, 1]
    expected = angles(total - away, total + away)
    found = exchange(old, new, counts)
    assert found.floor == pytest.approx(expected, rel=1e-12)
    # The data, their exchange and the two with one block exchanged: as much or less in each half.
    assert found.p_value > 0.3


def test_equal_pairs_show_nothing():
    old, _, counts = pairs(4, 0)
    assert exchange(old, old, counts) == (0, 1)


@pytest.mark.full
@pytest.mark.parametrize("blocks", [4, 16])
def test_the_level_of_the_sign_test(blocks):
    """At 5%: 2,000 samples without a shift; 100 +- 10 of them are expected."""
    rng = np.random.default_rng(blocks)
    mean = rng.normal(size=(4, 20)) + 0.5
    found = []
    for _ in range(2000):
        old, m, noise = blocks_of(rng, mean, 1.0, 80, blocks)
        new, _, own = blocks_of(rng, mean, 1.0, 80, blocks)
        found.append(exchange(old, new + noise - 0.6 * own, m).p_value)
    assert 0.02 < np.mean(np.array(found) <= 0.05) < 0.08


def test_noise_floor_is_reproducible():
    old, _, m, n = uneven(4)
    assert noise_floor(old, m, n.sum(axis=1)) == noise_floor(old, m, n.sum(axis=1))


# Too little to say anything


def test_none_where_a_class_has_too_few_blocks():
    """Three for a standard error, two for a floor."""
    old, new, m, n = uneven(5)
    one, two = m.copy(), m.copy()
    one[3, 1:], two[3, 2:] = 0, 0
    assert noise_floor(old, two, n.sum(axis=1)) is not None
    assert exchange(old, new, two) is not None
    assert exchange(old, new, one) is None
    for paired in (False, True):
        assert std_error(old, new, two, n, paired) is None
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
