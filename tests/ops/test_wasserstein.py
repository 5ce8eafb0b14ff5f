"""Distances, moments and quantiles from histograms, against SciPy and NumPy on the values."""

import copy
import math
import pickle

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resque_ext.ops import Distance, value_histogram, wasserstein_from_histograms
from resque_ext.ops.wasserstein import joined, wasserstein_by_group

HALVES = [torch.float16, torch.bfloat16]


def pairs(seed=0):
    """Two samples of unequal size, by what is hard about them."""
    rng = np.random.default_rng(seed)
    return {
        "normal": (rng.normal(size=4_000), rng.normal(0.3, 1.2, 2_717)),
        "relu": (np.maximum(rng.normal(size=3_000), 0), np.maximum(rng.normal(-0.2, 1, 5_001), 0)),
        "heavy tails": (rng.standard_cauchy(3_001), 2 * rng.standard_cauchy(1_000)),
        "very heavy tails": (np.exp(rng.normal(0, 9, 900)), np.exp(rng.normal(1, 9, 4_000))),
        "tiny": (rng.normal(size=500) * 1e-7, rng.normal(size=600) * 2e-7),
        "far away": (rng.normal(size=2_000) + 1e4, rng.normal(size=1_999) + 1.01e4),
        "constant": (np.full(7, 2.5), np.full(900, -1.25)),
        "one value": (np.array([3.0]), rng.normal(size=1_000)),
        "either sign": (-np.abs(rng.normal(size=800)), np.abs(rng.normal(size=700))),
    }


def distance(a, b, **options):
    return wasserstein_from_histograms(value_histogram(a, **options), value_histogram(b, **options))


def truth(a, b):
    return scipy.stats.wasserstein_distance(a.double().numpy(), b.double().numpy())


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("kind", pairs())
def test_16_bit_values_are_exact(kind, dtype):
    a, b = (torch.tensor(x).clamp(-6e4, 6e4).to(dtype) for x in pairs()[kind])
    found, expected = distance(a, b), truth(a, b)
    assert abs(found - expected) <= 1e-9 * expected
    assert (found.bound, found.lower, found.upper) == (0, found, found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("bits", [15, 16, 20])
@pytest.mark.parametrize("kind", pairs())
def test_float32_is_within_its_bound(kind, bits, dtype):
    a, b = (torch.tensor(x).to(dtype) for x in pairs()[kind])
    found, expected = distance(a, b, bits=bits), truth(a, b)
    slack = 1e-9 * expected
    assert found.lower - slack <= expected <= found.upper + slack
    # The bound is that of the values: 2^-(bits - 8) of their mean size.
    size = sum(float(x.double().abs().mean()) for x in (a, b))
    assert found.bound <= 1.01 * size * 2.0 ** -(bits - 8)


@pytest.mark.parametrize("kind", ["normal", "relu", "heavy tails", "very heavy tails", "tiny"])
def test_ordinary_float32_is_within_a_percent(kind):
    a, b = (torch.tensor(x).float() for x in pairs()[kind])
    for bits in (15, 16):
        assert abs(distance(a, b, bits=bits) - truth(a, b)) <= 1e-2 * truth(a, b)


def test_the_bound_is_needed():
    """All values at one end of their bins: the distance is off by as much as the bound says."""
    a, b = torch.full((5,), 1.0), torch.full((3,), float(np.nextafter(np.float32(2), 0)))
    found = distance(a, b, bits=15)
    assert abs(found - truth(a, b)) > 0.9 * found.bound > 0.014


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_any_16_bit_values(data):
    dtype = data.draw(st.sampled_from(HALVES))
    floats = st.floats(width=16, allow_nan=False, allow_infinity=False) | st.just(-0.0)
    a, b = (
        torch.tensor(data.draw(st.lists(floats, min_size=1, max_size=30))).to(dtype) for _ in "ab"
    )
    expected = truth(a, b)
    found = distance(a, b)
    assert abs(found - expected) <= 1e-9 * expected + 1e-15
    assert found == distance(b, a)
    assert distance(a, a.repeat(3)) == 0


def test_histograms_of_different_kinds():
    a, b = pairs()["normal"]
    whole, narrow = torch.tensor(a).bfloat16(), torch.tensor(b).half()
    found = wasserstein_from_histograms(value_histogram(whole), value_histogram(narrow))
    assert abs(found - truth(whole, narrow)) < 1e-9
    coarse = value_histogram(torch.tensor(b), bits=12)
    found = wasserstein_from_histograms(value_histogram(whole), coarse)
    assert found.lower <= truth(whole, torch.tensor(b)) <= found.upper


def test_a_merged_histogram_has_the_same_distance():
    a, b = (torch.tensor(x).float() for x in pairs()["heavy tails"])
    parts = [value_histogram(part) for part in a.split([1, 2_000, 1_000])]
    merged = parts[2] + parts[0] + parts[1]
    other = value_histogram(b)
    assert wasserstein_from_histograms(merged, other) == distance(a, b)


def test_the_upper_tail_keeps_its_digits():
    """One value in 10^9 far out: 1 - F is one part in 10^9, F itself nearly 1."""
    counts = value_histogram(torch.tensor([0.0, 1e30])).counts
    many, more = counts.clone(), counts.clone()
    many[2**15], more[2**15] = 10**9, 10**9 + 1
    a = value_histogram(torch.tensor([0.0, 1e30]))
    found = wasserstein_from_histograms(a._replace(counts=many), a._replace(counts=more))
    far = a.points()[0][1]
    expected = far / ((10**9 + 1) * (10**9 + 2))
    assert abs(found - expected) <= 1e-6 * expected
    direct = abs(10**9 / (10**9 + 1) - (10**9 + 1) / (10**9 + 2)) * far
    assert abs(direct - expected) > 1e-2 * expected  # what F alone would give


def test_groups_are_measured_each_by_itself():
    rng = np.random.default_rng(4)
    sizes = rng.integers(1, 40, (2, 9))
    sides = [[rng.normal(size=n) for n in row] for row in sizes]
    values = [np.concatenate(side) for side in sides]
    groups = np.concatenate([np.repeat(np.arange(9), row) for row in sizes])
    ones = [np.ones(len(v), np.int64) for v in values]
    order = rng.permutation(len(groups))
    points = [part[order] for part in joined(values[0], ones[0], values[1], ones[1])]
    found, spreads = wasserstein_by_group(groups[order], *points, 9)
    expected = [scipy.stats.wasserstein_distance(*pair) for pair in zip(*sides, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)

    def spread(x):
        share = np.arange(1, len(x)) / len(x)
        return (np.sqrt(share * (1 - share)) * np.diff(np.sort(x))).sum()

    np.testing.assert_allclose(spreads, [spread(x) for x in sides[0]], rtol=1e-12)


# --- Moments and quantiles


@pytest.mark.parametrize("kind", pairs())
def test_moments(kind):
    x = torch.tensor(pairs()[kind][0])
    half = x.clamp(-6e4, 6e4).half().double().numpy()
    found = value_histogram(torch.tensor(half).half()).moments()
    np.testing.assert_allclose(found, (half.mean(), half.std()), rtol=1e-12, atol=1e-14)
    single = value_histogram(x.float())
    values, counts, reach = single.points()
    mean, std = single.moments()
    exact = x.float().double().numpy()
    share = counts / counts.sum()
    assert abs(mean - exact.mean()) <= (share * reach).sum() * (1 + 1e-12)
    assert abs(std - exact.std()) <= math.sqrt((share * reach**2).sum()) * (1 + 1e-12)
    assert len(values) == len(counts)


@pytest.mark.parametrize("kind", pairs())
def test_quantiles(kind):
    x = torch.tensor(pairs()[kind][0]).clamp(-6e4, 6e4).half()
    q = np.array([[0, 0.001, 0.25], [0.5, 0.9, 1]])
    found = value_histogram(x).quantiles(q)
    expected = np.quantile(x.double().numpy(), q, method="inverted_cdf")
    assert found.tolist() == expected.tolist()
    coarse = value_histogram(x.float(), bits=15).quantiles(0.5)
    median = expected[1, 0]
    assert abs(coarse - median) <= 2**-7 * abs(median)
    assert value_histogram(x.float()).quantiles(0).shape == ()


def test_half_the_values_zero_have_a_median_of_zero():
    found = value_histogram(torch.randn(1_000).sub(0.5).relu())
    assert found.quantiles(0.5) == 0


# --- Refused


def test_refused_histograms():
    one, empty = value_histogram(torch.ones(3)), value_histogram(torch.ones(0))
    channels = value_histogram(torch.ones(3, 2), by_channel=True)
    with pytest.raises(ValueError, match="histogram: expected at least one value, found none"):
        wasserstein_from_histograms(one, empty)
    with pytest.raises(ValueError, match="histogram: expected one of one channel"):
        wasserstein_from_histograms(channels, one)
    with pytest.raises(TypeError, match="b: expected a ValueHistogram, found Tensor"):
        wasserstein_from_histograms(one, one.counts)
    for call in (empty.moments, lambda: empty.quantiles(0.5)):
        with pytest.raises(ValueError, match="found none"):
            call()
    for q in (-0.1, 1.5, math.nan, [0.5, 2]):
        with pytest.raises(ValueError, match="q: expected shares from 0 to 1"):
            one.quantiles(q)
    assert wasserstein_from_histograms(channels._replace(counts=channels.counts[1]), one) == 0


def test_a_distance_is_a_float():
    found = Distance(2.0, 0.5)
    assert (found, found.lower, found.upper, Distance(0.1, 1).lower) == (2, 1.5, 2.5, 0)
    for same in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert (same, same.bound) == (2, 0.5)
