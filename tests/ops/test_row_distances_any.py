"""row_distances of rows that are hard to bin, and what distances over shared ranges promise."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import oracles_rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resque_ext import representation_distance
from resque_ext.ops import row_distances

INSTRUCTION_SETS = True  # see conftest.py
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SHARED = slice(4, 8)
WASSERSTEIN, JENSEN_SHANNON, BHATTACHARYYA, KL = range(4)
with_place = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # a place has no state
)


def status_of(old, new, bins):
    found = torch.ops.resque_ext.row_distances_status(old, new, bins, True, True, True, False)
    return [part.cpu() for part in found]


def array(x):
    """As NumPy, bfloat16 as float32."""
    return (x.float() if x.dtype == torch.bfloat16 else x).numpy()


def check_counts(place, old, new, bins):
    expected = oracles_rows.row_distances(array(old), array(new), bins, True)
    *_, float64_edges, counts, _ = status_of(old.to(place.device), new.to(place.device), bins)
    np.testing.assert_array_equal(counts.numpy(), expected.counts)
    assert float64_edges.tolist() == expected.float64_edges.tolist()


def neighbours(number, dtype, steps):
    """The number that many numbers of the dtype further up."""
    x = torch.tensor([number]).to(dtype)
    for step in [np.sign(steps)] * abs(steps):
        x = torch.nextafter(x, torch.tensor([float(step) * torch.inf]).to(dtype))
    return float(x)


@st.composite
def rows(draw, dtype, width):
    """Any numbers, whole numbers, or numbers that lie closer together than bins may."""
    kind = draw(st.sampled_from(["any", "whole", "close"]))
    if kind == "close":
        base = draw(st.floats(-1e4, 1e4, width=16))
        every = [neighbours(base, dtype, k) for k in range(-3, 4)]
        one = st.sampled_from(every)
    elif kind == "whole":
        one = st.integers(-64, 64).map(float)
    else:
        most = 6e4 if dtype == torch.float16 else 1e38
        one = st.floats(-most, most, allow_nan=False)
    values = draw(st.lists(one, min_size=width, max_size=width))
    return torch.tensor(values, dtype=torch.float64).to(dtype)


@with_place
@given(st.data())
def test_any_rows_have_numpys_counts(place, data):
    dtype = data.draw(st.sampled_from(DTYPES))
    width = data.draw(st.integers(1, 24))
    bins = data.draw(st.lists(st.integers(2, 256), min_size=1, max_size=3, unique=True))
    old, new = (torch.stack([data.draw(rows(dtype, width)) for _ in range(2)]) for _ in range(2))
    check_counts(place, old, new, bins)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bins", [16, 32, 64, 10])
def test_values_at_edges_and_beside_them(place, dtype, bins):
    """numpy's own edges, and the numbers next to each: every comparison decides something."""
    held = np.float64 if dtype == torch.float64 else np.float32
    made = []
    for low, high in ((-1.7, 2.9), (0.1, 0.9), (0, 1), (1e3, 1.001e3), (-6e-5, 3e-5)):
        ends = torch.tensor([low, high]).to(dtype)
        low, high = (held(v) for v in ends.double().tolist())
        edges = np.histogram_bin_edges(np.zeros(1, held), bins, (low, high))
        beside = [np.nextafter(edges, held(to)) for to in (-np.inf, np.inf)]
        made.append(np.clip(np.concatenate([edges, *beside]), low, high))
    old = torch.tensor(np.stack(made)).to(dtype)
    check_counts(place, old, old.flip(0), (bins, 2 * bins))


# --- What distances over shared ranges promise


def test_the_order_of_samples_and_of_values_does_not_show(place):
    generator = torch.Generator().manual_seed(0)
    old, new = (torch.randn(50, 90, generator=generator).relu() for _ in range(2))
    samples, values = torch.randperm(50, generator=generator), torch.randperm(90)
    old, new = old.to(place.device), new.to(place.device)
    expected = row_distances(old, new, shared=True, rows=True)
    found = row_distances(old[samples], new[samples], shared=True, rows=True)
    assert torch.equal(found.rows, expected.rows[samples])
    torch.testing.assert_close(found.sums, expected.sums, rtol=1e-14, atol=0)
    # Each side's values in an order of its own: a histogram does not know it.
    found = row_distances(old[:, values], new[:, values.flip(0)], shared=True, rows=True)
    assert torch.equal(found.rows, expected.rows)
    p = [
        representation_distance({"a": x}, {"a": y}, shared=True).shared.p
        for x, y in ((old, new), (old[samples], new[samples]))
    ]
    for bins, table in p[0].items():
        assert list(p[1][bins].values()) == pytest.approx(list(table.values()), rel=1e-13)


@with_place
@given(st.data())
def test_zero_for_equal_histograms_and_for_no_others(place, data):
    """But for kl, which leaves out the bins where either side has nothing, as published."""
    few = st.lists(st.integers(0, 7), min_size=6, max_size=6)
    old, new = (torch.tensor([data.draw(few) for _ in range(3)]).float() for _ in range(2))
    bins = (2, 3, 8)
    _, _, found, _, counts, _ = status_of(old.to(place.device), new.to(place.device), bins)
    assert (found[..., SHARED][..., :KL] >= 0).all()
    ends = np.cumsum((0, *bins))
    for k, (begin, end) in enumerate(pairwise(ends)):
        equal = (counts[:, 2, begin:end] == counts[:, 3, begin:end]).all(1)
        for column in (WASSERSTEIN, JENSEN_SHANNON, BHATTACHARYYA):
            assert torch.equal(found[:, k, SHARED][:, column] == 0, equal)


def test_kl_is_zero_too_where_no_bin_has_both(place):
    old, new = torch.zeros(4, 20, device=place.device), torch.ones(4, 20, device=place.device)
    found = row_distances(old, new, bins=8, shared=True).sums[0, SHARED] / 4
    torch.testing.assert_close(found[:KL].cpu(), torch.tensor([7 / 8, np.log(2), 1.0]).double())
    assert found[KL] == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_growing_shift(place, dtype):
    """Whole numbers from 0 to 64: the published distances do not move, the true one does."""
    generator = torch.Generator().manual_seed(0)
    whole = torch.randint(0, 65, (30, 100), generator=generator)
    whole[:, :2] = torch.tensor([0, 64])
    old = whole.to(dtype).to(place.device)
    shifts = (0, 32, 64, 128, 192)
    for bins in (16, 32, 64):
        found = []
        for shift in shifts:
            rows = row_distances(old, old + shift, bins=bins, shared=True, rows=True).rows[:, 0]
            assert (rows[:, :4] == 0).all()
            # Moving every value to its bin's place moves no distance by more than a bin.
            width = (64 + shift) / bins
            assert ((rows[:, 4 + WASSERSTEIN] - shift).abs() <= width).all()
            found.append(float(rows[:, 4 + WASSERSTEIN].mean()))
        line = np.polyfit(shifts, found, 1)
        assert line[0] == pytest.approx(1, abs=1 / bins)
        assert found[0] == 0
