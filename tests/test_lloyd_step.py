"""lloyd_step against NumPy's float64: labels, sums and distances for every layout and dtype."""

import math

import numpy as np
import oracles_kmeans
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import resque_ext
from resque_ext.ops import lloyd_step

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
BACKENDS = ["native", "torch"]
EXACT = 1e-12
with_place = settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # a place has no state
)


def drawn(*shape, dtype=torch.float32, seed=0):
    return torch.tensor(np.random.default_rng(seed).standard_normal(shape)).to(dtype)


def truth(tensor):
    return tensor.detach().double().cpu().numpy()


def check(place, features, centers):
    """Labels equal, the rest to 1e-12 of the sums of absolute values."""
    x, c = features.to(place.device), centers.to(place.device)
    found = lloyd_step(x, c, check=True)
    expected = oracles_kmeans.lloyd_step(truth(x), truth(c))
    assert [part.dtype for part in found] == [torch.int64, *[torch.float64] * 2, torch.int64]
    np.testing.assert_array_equal(found.labels.cpu(), expected.labels)
    np.testing.assert_array_equal(found.counts.cpu(), expected.counts)
    assert found.inertia.shape == ()
    np.testing.assert_allclose(found.inertia.cpu(), expected.inertia, rtol=EXACT)
    least = np.finfo(np.float64).smallest_subnormal
    error = np.abs(found.sums.cpu().numpy() - expected.sums)
    assert (error <= EXACT * expected.absolute + least).all()
    whole = torch.ops.resque_ext.lloyd_step_status(x, c, True, True)
    for part, same in zip((whole[0], *whole[2:5]), found, strict=True):
        assert torch.equal(part, same)
    np.testing.assert_allclose(whole[1].cpu(), expected.distances, rtol=EXACT)
    assert 0 <= int(whole[5]) <= len(x)
    assert whole[6].tolist() == [0] * 5
    labels, *_, sums, counts, _, _ = torch.ops.resque_ext.lloyd_step_status(x, c, False)
    assert torch.equal(labels, found.labels)
    assert (sums.shape, counts.shape) == ((0, x.shape[1]), (0,))
    return found


VIEWS = {
    "matrix": ((37, 12), lambda x: x),
    "5 columns": ((37, 5), lambda x: x),
    "1 column": ((37, 1), lambda x: x),
    "no column": ((37, 0), lambda x: x),
    "130 columns": ((37, 130), lambda x: x),
    "every other row": ((80, 12), lambda x: x[::2]),
    "misaligned columns": ((37, 13), lambda x: x[:, 1:]),
    "one row again and again": ((1, 12), lambda x: x.expand(37, 12)),
    "1 column of many": ((37, 12), lambda x: x[:, 3:4]),
    "every other column": ((37, 24), lambda x: x[:, ::2]),
    "one column again and again": ((37, 1), lambda x: x.expand(37, 12)),
    "transposed": ((12, 37), lambda x: x.t()),
    "no row": ((0, 12), lambda x: x),
    "1 row": ((1, 12), lambda x: x),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("view", VIEWS)
def test_layouts(place, view, dtype, backend):
    shape, look = VIEWS[view]
    x = look(drawn(*shape, dtype=dtype))
    with resque_ext.backend(backend):
        for k in (1, 4, 40):
            check(place, x, drawn(k, x.shape[1], seed=1))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 3, 8, 21, 128, 300])
def test_whatever_the_tie(place, width, dtype, backend):
    """Centres around every row at one distance, up to the last bit: NumPy's sum decides."""
    rng = np.random.default_rng(width)
    x = torch.tensor(rng.standard_normal((20, 1)).repeat(width, 1)).to(dtype)
    away = rng.standard_normal(width)
    centers = [rng.permutation(away) * rng.choice([-1, 1], width) for _ in range(9)]
    c = torch.tensor(np.array([*centers, centers[3], centers[0]]))
    with resque_ext.backend(backend):
        check(place, x, c)
        check(place, x - x, c)


@with_place
@given(
    n=st.integers(0, 40),
    width=st.integers(1, 20),
    k=st.integers(1, 12),
    seed=st.integers(0, 99),
    dtype=st.sampled_from(DTYPES),
)
def test_few_values(place, n, width, k, seed, dtype):
    """Whole numbers from -2 to 2: duplicates and ties everywhere."""
    rng = np.random.default_rng(seed)
    x = torch.tensor(rng.integers(-2, 3, (n, width))).to(dtype)
    c = torch.tensor(rng.integers(-2, 3, (k, width))).double()
    check(place, x, c)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nonfinite(place, dtype, backend):
    x, c = drawn(60, 5, dtype=dtype), drawn(4, 5, seed=1)
    x[[7, 7, 40, 59], [2, 4, 0, 3]] = torch.tensor(
        [math.nan, math.inf, -math.inf, math.nan], dtype=dtype
    )
    there = x.to(place.device), c.to(place.device)
    with resque_ext.backend(backend):
        message = r"^features: .* found 4 NaN or infinite in 3 rows, the first at row 7, column 2$"
        with pytest.raises(ValueError, match=message):
            lloyd_step(*there, check=True)
        found = lloyd_step(*there, check=False)
        assert found.labels[[7, 40, 59]].tolist() == [0, 0, 0]
        assert not found.inertia.isfinite()
        good = x.isfinite().all(1)
        assert torch.equal(found.labels.cpu()[good], lloyd_step(x[good], c).labels)
        c[[2, 3], [1, 0]] = math.inf
        message = r"^centers: .* found 2 NaN or infinite, the first at row 2, column 1$"
        with pytest.raises(ValueError, match=message):
            lloyd_step(there[0], c.to(place.device), check=True)
