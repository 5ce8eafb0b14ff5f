"""Histograms of values in parts, however they are cut, and W1 from them, on every kind of data."""

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resque_ext.ops import value_histogram, wasserstein_from_histograms

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
KINDS = {
    "normal": lambda n, g: g.standard_normal(n),
    "relu": lambda n, g: np.maximum(g.standard_normal(n), 0),
    "constant": lambda n, g: np.full(n, g.standard_normal()),
    "tiny range": lambda n, g: 1 + g.integers(0, 100, n) * 2.0**-23,
    "huge offset": lambda n, g: 3e4 + g.standard_normal(n),
    "denormal": lambda n, g: g.integers(-5000, 5000, n) * 2.0**-149,
    "denormal in float16": lambda n, g: g.integers(-900, 900, n) * 2.0**-24,
    "integers": lambda n, g: g.integers(-64, 65, n).astype(float),
    "heavy tails": lambda n, g: g.standard_cauchy(n),
}


def drawn(kind, n, dtype, rng):
    return torch.tensor(np.clip(KINDS[kind](n, rng), -6e4, 6e4)).to(dtype)


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # a place has no state
)
@given(st.data())
def test_any_split_adds_up_to_the_whole(place, data):
    dtype, kind = data.draw(st.sampled_from(DTYPES)), data.draw(st.sampled_from(list(KINDS)))
    cuts = data.draw(st.lists(st.integers(0, 300), max_size=5).map(sorted))
    by_channel = data.draw(st.booleans())
    x = drawn(kind, 300 * 3, dtype, np.random.default_rng(len(cuts))).view(300, 3)
    x = x.to(place.device)
    options = {"by_channel": by_channel, "bits": data.draw(st.sampled_from([11, 16]))}
    ends = list(zip([0, *cuts], [*cuts, 300], strict=True))
    parts = [value_histogram(x[begin:end], **options) for begin, end in ends]
    total = parts[0]
    for i in data.draw(st.permutations(range(1, len(parts)))):
        total = total + parts[i]
    assert torch.equal(total.counts, value_histogram(x, **options).counts)
    assert total.total == x.numel()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_wasserstein_of_unequal_samples(place, kind, dtype):
    """16-bit values to 1e-9 of SciPy's, wider ones within the bound that is stated."""
    rng = np.random.default_rng(5)
    a, b = drawn(kind, 1_501, dtype, rng), drawn(kind, 700, dtype, rng)
    expected = scipy.stats.wasserstein_distance(a.double().numpy(), b.double().numpy())
    found = wasserstein_from_histograms(*(value_histogram(x.to(place.device)) for x in (a, b)))
    exact = dtype.itemsize == 2
    assert (found.bound == 0) == (exact or expected == found == found.bound == 0)
    assert abs(found - expected) <= found.bound + 1e-9 * expected
    if not exact:
        size = sum(float(x.double().abs().mean()) for x in (a, b))
        # Denormal numbers are half a bin of 2^-133 off at most.
        assert found.bound <= 1.01 * size * 2.0**-8 + 2 * 2.0**-133
