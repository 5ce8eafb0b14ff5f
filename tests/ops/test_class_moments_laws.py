"""Laws of class_moments: the same bits however it is run, parts that add up, exact scaling."""

import math

import pytest
import torch
from helpers import oracles
from helpers.class_moments_made import EXACT, arrays, drawn, labels_for, truth
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resque_ext.ops import class_moments

with_place = settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # a place has no state
)


# --- The same bits


@pytest.mark.parametrize("shape", [(40_000, 48), (4_000, 16, 6, 6), (4_000, 36, 16)])
@pytest.mark.parametrize("classes", [6, 600])
def test_bits_do_not_depend_on_threads(shape, classes):
    x, y = drawn(*shape), labels_for(shape[0], classes)
    assert x.nbytes > 5 << 20  # the CPU starts a thread for every MB
    x[7] = math.nan
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 5, 1):
            torch.set_num_threads(threads)
            found.append(class_moments(x, y, classes, nonfinite="skip"))
            found.append(class_moments(x, y, classes, check=False))
    finally:
        torch.set_num_threads(before)
    for parity in (0, 1):
        for again in found[2 + parity :: 2]:
            for part, first in zip(again, found[parity], strict=True):
                assert part.numpy().tobytes() == first.numpy().tobytes()


def test_bits_do_not_depend_on_the_run(place):
    n = 20_000 if place.name != "cuda_on_cpu" else 3_000
    x, y = drawn(n, 7).to(place.device), labels_for(n, 5).to(place.device)
    first = class_moments(x, y, 5)
    for _ in range(5):
        for part, same in zip(class_moments(x, y, 5), first, strict=True):
            assert torch.equal(part, same)


# --- Laws


batches = st.tuples(st.integers(0, 90), st.integers(1, 9), st.integers(1, 12), st.integers(0, 99))


@with_place
@given(batch=batches)
def test_order_of_rows_does_not_matter(place, batch):
    n, width, classes, seed = batch
    x, y = drawn(n, width, seed=seed), labels_for(n, classes, seed)
    shuffled = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    expected = oracles.class_moments(truth(x), y.numpy(), classes)
    for rows in (torch.arange(n), shuffled):
        found = class_moments(x[rows].to(place.device), y[rows].to(place.device), classes)
        expected.check(arrays(found), EXACT)


@with_place
@given(batch=batches, cut=st.floats(0, 1))
def test_parts_add_up(place, batch, cut):
    n, width, classes, seed = batch
    x, y = drawn(n, width, seed=seed).to(place.device), labels_for(n, classes).to(place.device)
    at = int(cut * n)
    parts = [class_moments(x[s], y[s], classes) for s in (slice(at), slice(at, n))]
    whole = oracles.class_moments(truth(x), y.cpu().numpy(), classes)
    whole.check(arrays(a + b for a, b in zip(*parts, strict=True)), EXACT)


@with_place
@given(batch=batches, power=st.integers(-60, 60))
def test_powers_of_two_scale_to_the_bit(place, batch, power):
    n, width, classes, seed = batch
    x, y = drawn(n, width, seed=seed).to(place.device), labels_for(n, classes).to(place.device)
    _, sums, sumsq = class_moments(x, y, classes)
    _, scaled, scaled_sumsq = class_moments(x * 2.0**power, y, classes)
    assert torch.equal(scaled, sums * 2.0**power)
    assert torch.equal(scaled_sumsq, sumsq * 4.0**power)
