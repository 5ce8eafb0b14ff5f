"""row_distances against numpy's own histograms: every kind of row, dtype and layout."""

import functools
import math

import numpy as np
import pytest
import torch
from helpers import oracles_rows

import resque_ext
from resque_ext.ops import row_distances

INSTRUCTION_SETS = True  # see conftest.py
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
NHWC = {"memory_format": torch.channels_last}
OWN, SHARED = slice(0, 4), slice(4, 8)


def status_of(old, new, bins, shared=True, skip=False):
    return torch.ops.resque_ext.row_distances_status(old, new, bins, shared, True, True, skip)


def array(x):
    """As NumPy, bfloat16 as float32."""
    return (x.float() if x.dtype == torch.bfloat16 else x).detach().cpu().numpy()


def check(place, old, new, bins=(16, 32, 64), shared=True):
    """Counts to the bit and distances to float64's rounding."""
    expected = oracles_rows.row_distances(array(old), array(new), bins, shared)
    x, y = old.to(place.device), new.to(place.device)
    sums, used, rows, float64_edges, counts, status = (
        part.cpu() for part in status_of(x, y, bins, shared)
    )
    np.testing.assert_array_equal(counts.numpy(), expected.counts)
    assert float64_edges.tolist() == expected.float64_edges.tolist()
    assert used.item() == len(old)
    np.testing.assert_allclose(rows.numpy(), expected.rows, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(
        sums.numpy(), expected.rows.sum(0), rtol=1e-10, atol=1e-13 * max(len(old), 1)
    )
    return sums, rows, counts, status


def drawn(*shape, dtype=torch.float32, seed=0):
    return torch.tensor(np.random.default_rng(seed).standard_normal(shape)).to(dtype)


KINDS = {
    "normal": lambda n, m, g: g.standard_normal((n, m)),
    "relu": lambda n, m, g: np.maximum(g.standard_normal((n, m)), 0),
    "heavy tails": lambda n, m, g: g.standard_cauchy((n, m)),
    "constant": lambda n, m, g: np.tile(g.standard_normal((n, 1)), m),
    "zero": lambda n, m, g: np.zeros((n, m)),
    "negative zero": lambda n, m, g: g.choice([-0.0, 0.0], (n, m)),
    "constant and huge": lambda n, m, g: np.tile(10.0 ** g.integers(3, 38, (n, 1)), m),
    "tiny range": lambda n, m, g: 1 + g.integers(0, 100, (n, m)) * 2.0**-23,
    "two neighbours": lambda n, m, g: 3 + g.integers(0, 2, (n, m)) * 2.0**-22,
    "huge offset": lambda n, m, g: 1e6 + g.standard_normal((n, m)),
    "denormal": lambda n, m, g: g.integers(0, 5000, (n, m)) * 2.0**-149,
    "few denormals": lambda n, m, g: g.integers(-3, 4, (n, m)) * 2.0**-149,
    "integers": lambda n, m, g: g.integers(0, 65, (n, m)).astype(float),
    "overflowing": lambda n, m, g: g.choice([-3e38, 3e38, 0.0, 1e38], (n, m)),
    "lognormal": lambda n, m, g: np.exp(5 * g.standard_normal((n, m))),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kinds_of_rows(place, kind, dtype):
    rng = np.random.default_rng(3)
    old, new = (torch.tensor(KINDS[kind](9, 200, rng)) for _ in range(2))
    if dtype == torch.float16:
        old, new = (x.clamp(-6e4, 6e4) for x in (old, new))
    check(place, old.to(dtype), new.to(dtype), (16, 32, 64, 10, 2, 255))


@pytest.mark.parametrize("m", [1, 2, 3, 15, 16, 17, 31, 63, 64, 65, 100, 257, 511, 512, 513, 1000])
def test_widths(place, m):
    check(place, drawn(5, m), drawn(5, m, seed=1))


@pytest.mark.parametrize(
    "bins", [(2, 3), (15, 16, 17), (63, 65), (127, 128, 129), (255, 256)], ids=str
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numbers_of_bins(place, dtype, bins):
    check(place, drawn(9, 577, dtype=dtype), drawn(9, 577, dtype=dtype, seed=1), bins)


CPU_SETS = ["cpu", "cpu:baseline", "cpu:avx2", "cpu:avx512"]


@functools.cache  # the same for every instruction set
def side_by_side(m, dtype):
    old, new = drawn(530, m), drawn(530, m, seed=1)
    close, constant, bad = [0, 7, 8, 31, 46, 300, 529], [1, 15, 47, 301], [2, 9, 10, 63, 302, 528]
    old[close] = 1 + (old[close] * 10).round() * 2.0**-23
    new[constant] = 3.0
    old[bad, 5] = math.nan
    new[bad[::2], 6] = math.inf
    old, new = old.to(dtype), new.to(dtype)
    return old, new, bad, oracles_rows.row_distances(array(old), array(new), (16, 32, 64), True)


@pytest.mark.parametrize(
    ("m", "dtype"), [*((65, d) for d in DTYPES), (577, torch.float32)], ids=str
)
@pytest.mark.parametrize("place", CPU_SETS, indirect=True)
def test_rows_side_by_side(place, m, dtype):
    """32 pairs a group, eight rows at a time: some are binned one by one, some are left out."""
    old, new, bad, expected = side_by_side(m, dtype)
    sums, used, rows, _, counts, _ = status_of(old, new, (16, 32, 64), skip=True)
    np.testing.assert_array_equal(counts, expected.counts)
    np.testing.assert_allclose(rows, expected.rows, rtol=1e-10, atol=1e-13)
    assert used.item() == 530 - len(bad)
    good = np.delete(expected.rows, bad, 0).sum(0)
    np.testing.assert_allclose(sums, good, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("place", CPU_SETS, indirect=True)
@pytest.mark.parametrize(("n", "m"), [(64, 8192), (64, 8193), (2, 70_001), (1, 8 * 65_535 + 9)])
def test_long_rows(place, n, m):
    """In pieces of at most 65,535 values, as many as a count of 16 bits holds."""
    old, new = drawn(n, m), drawn(n, m, seed=1)
    check(place, old, new, (16, 64, 200))
    old[:, 1:] = 0.0  # all but one value in one bin
    check(place, old, new, (16, 64, 200))


@pytest.mark.parametrize("place", CPU_SETS, indirect=True)
def test_a_row_alone(place):
    """The same bits as among others, where more of the logarithms come from a table."""
    old, new = drawn(530, 300), drawn(530, 300, seed=1)
    _, _, rows, *_ = status_of(old, new, (4, 32))
    for i in range(0, 530, 13):
        assert torch.equal(status_of(old[i : i + 1], new[i : i + 1], (4, 32))[2], rows[i : i + 1])


@pytest.mark.parametrize("n", [0, 1, 2, 31, 32, 33, 70, 144])
def test_numbers_of_rows(place, n):
    sums, *_ = check(place, drawn(n, 40), drawn(n, 40, seed=1))
    assert sums.shape == (3, 8)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "tokens"])
def test_layouts(place, layout, dtype):
    """Whole numbers over four positions: every mean is exact, whatever the order of the sum."""
    rng = np.random.default_rng(2)
    old, new = (torch.tensor(rng.integers(-99, 99, (7, 24, 2, 2))).to(dtype) for _ in range(2))
    if layout == "NHWC":
        old = old.contiguous(**NHWC)  # the other side as it is
    if layout == "tokens":
        old, new = old.flatten(2), new.flatten(2)
    check(place, old, new)


@pytest.mark.parametrize("skip", [False, True])
def test_nonfinite(place, skip):
    old, new = drawn(8, 30), drawn(8, 30, seed=1)
    old[2, 7], new[2, 3], new[5, 1], new[5, 2] = math.nan, math.inf, -math.inf, math.nan
    x, y = old.to(place.device), new.to(place.device)
    good = [0, 1, 3, 4, 6, 7]
    sums, used, rows, edges, counts, status = (
        part.cpu() for part in status_of(x, y, (8, 16), skip=skip)
    )
    expected = oracles_rows.row_distances(old.numpy(), new.numpy(), (8, 16), True)
    np.testing.assert_array_equal(counts, expected.counts)
    np.testing.assert_allclose(rows, expected.rows, rtol=1e-10, atol=1e-13)
    assert status.tolist() == [[0, 0, 1, 240 - 67, 1], [0, 0, 3, 240 - 63, 2]]
    assert edges.tolist() == [0, 0]
    if skip:
        assert used.item() == 6
        np.testing.assert_allclose(sums, expected.rows[good].sum(0), rtol=1e-10)
        assert row_distances(x, y, nonfinite="skip").used.item() == 6
    else:
        assert used.item() == 8
        assert sums.isnan().all()
        with pytest.raises(ValueError, match=r"^old: expected finite values, found 1 .*row 2, col"):
            row_distances(x, y, check=True)
        with pytest.raises(ValueError, match=r"^new: .* found 3 .* 2 rows, the first at row 2, c"):
            row_distances(x.nan_to_num(0), y, check=True)


@pytest.mark.parametrize("kind", KINDS)
def test_torch_backend(kind):
    rng = np.random.default_rng(4)
    for dtype in (torch.float32, torch.float64):
        x, y = (torch.tensor(KINDS[kind](5, 90, rng)).to(dtype) for _ in range(2))
        native = status_of(x, y, (16, 7, 64))
        with resque_ext.backend("torch"):
            plain = status_of(x, y, (16, 7, 64))
        for k, (a, b) in enumerate(zip(native, plain, strict=True)):
            if k in (0, 2):
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
            else:
                assert torch.equal(a, b)
