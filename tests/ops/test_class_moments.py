"""class_moments against exact sums: every layout, dtype and size."""

import importlib
import math
import warnings

import numpy as np
import pytest
import torch
from helpers import oracles
from helpers.class_moments_made import (
    DTYPES,
    EXACT,
    HALVES,
    IN_EVERY_ORDER,
    VIEWS,
    arrays,
    check,
    drawn,
    labels_for,
    truth,
    whole_numbers,
)

from resque_ext.ops import class_moments

INSTRUCTION_SETS = True  # see conftest.py
ops = importlib.import_module(
    "resque_ext.ops.class_moments"
)  # in `ops`, its name is the function's


# --- Layouts


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("view", VIEWS)
def test_layouts(place, view, dtype):
    shape, look, _ = VIEWS[view]
    x = look(drawn(*shape, dtype=dtype).to(place.device))
    check(place, x, labels_for(len(x), 4), 4)


@pytest.mark.parametrize("view", VIEWS)
def test_where_a_kernel_reads(view):
    shape, look, in_place = VIEWS[view]
    x = look(drawn(*shape))
    assert (ops.channel_view(x).data_ptr() == x.data_ptr()) == in_place


@pytest.mark.parametrize("place", IN_EVERY_ORDER, indirect=True)
@pytest.mark.parametrize("view", ["matrix", "NCHW, 99 positions", "NHWC", "tokens"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_order_of_threads(place, view, dtype):
    shape, look, _ = VIEWS[view]
    x = look(drawn(*shape, dtype=dtype)).repeat(12, *[1] * (len(shape) - 1))
    check(place, x, labels_for(len(x), 3), 3)
    x[[5, 50]] = math.inf
    check(place, x, labels_for(len(x), 3), 3, nonfinite="skip")


@pytest.mark.parametrize("offset", [1, 2, 3, 7])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_misaligned_pointers(place, dtype, offset):
    base = drawn(40 * 8 + offset, dtype=dtype).to(place.device)[offset:]
    check(place, base.view(40, 8), labels_for(40, 3), 3)
    check(place, base.view(5, 8, 2, 4), labels_for(5, 3), 3)
    check(place, base.view(5, 8, 8), labels_for(5, 3), 3)


def test_numpy(place):
    if place.name == "cuda":
        pytest.skip("NumPy arrays are on the CPU")
    x = np.random.default_rng(3).standard_normal((30, 6)).astype(np.float32)
    y = np.random.default_rng(4).integers(0, 4, 30)
    for features in (x, x[::-1], x[:, ::-1], np.asfortranarray(x), x.astype(">f4"), x[::3]):
        for kind in (np.int32, np.int64, np.uint8, np.int16, np.uint64):
            labels = y[: len(features)][::-1].astype(kind)
            found = class_moments(features, labels, 4)
            oracles.class_moments(features, labels, 4).check(arrays(found), EXACT)
    x.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of torch, about memory that is read only
        class_moments(x, y, 4)


# --- Sizes


@pytest.mark.parametrize(
    ("n", "width", "classes"),
    [
        *[(0, 4, 3), (1, 1, 1), (1, 3, 5), (2, 4, 1), (17, 0, 2)],
        *[(5, 4, 9), (40, 3, 100_000), (300, 4, 1), (3, 65_536, 2), (600, 130, 7)],
        *[(4_000, 3, 1_500), (3_000, 2, 40), (700, 1, 2)],
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sizes(place, n, width, classes, dtype):
    x, y = whole_numbers(n, width, dtype=dtype), labels_for(n, classes)
    found = class_moments(x.to(place.device), y.to(place.device), classes)
    oracles.class_moments_of_integers(truth(x), y.numpy(), classes).check(arrays(found), 0)


@pytest.mark.parametrize("shape", [(0, 4), (0, 4, 2, 3), (0, 7, 4)])
def test_no_rows(place, shape):
    y = torch.zeros(0, dtype=torch.int32, device=place.device)
    # The strides of a tensor without elements can be anything: from NumPy they come as zeros.
    for x in (torch.zeros(shape), torch.tensor(np.zeros(shape)), torch.zeros(5, *shape[1:])[5:]):
        counts, sums, sumsq = class_moments(x.to(place.device), y, 3)
        assert (counts.tolist(), sums.shape, sumsq.shape) == ([0, 0, 0], (3, 4), (3, 4))
        assert not sums.any()
        assert not sumsq.any()


# From 32,768 rows and up to 32 groups on, the CPU streams through the rows; else it gathers them.
@pytest.mark.parametrize("classes", [1, 3, 32, 33])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_rows(place, classes, dtype):
    n = 33_000 if place.name != "cuda_on_cpu" else 9_000
    for labels in (
        labels_for(n, classes),
        labels_for(n, classes).sort().values,
        torch.full((n,), classes - 1),
    ):
        x = whole_numbers(n, 9, dtype=dtype)
        found = class_moments(x.to(place.device), labels.to(place.device), classes)
        expected = oracles.class_moments_of_integers(truth(x), labels.numpy(), classes)
        expected.check(arrays(found), 0)


@pytest.mark.full
@pytest.mark.parametrize("classes", [5, 50])
def test_rows_wider_than_a_tile_of_the_cpu(classes):
    x, y = whole_numbers(33_000, 1_100, dtype=torch.float16), labels_for(33_000, classes)
    ones = torch.nn.functional.one_hot(y, classes).double().T
    _, sums, sumsq = class_moments(x, y, classes)
    assert torch.equal(sums, ones @ x.double())
    assert torch.equal(sumsq, ones @ x.double().square())


def test_partial_sums_add_up_without_rounding(place):
    """Between 2^60 and -2^60 every 1 would be lost."""
    n = 40_000 if place.name != "cuda_on_cpu" else 4_000
    x = torch.zeros(n, 2)
    x[0], x[-1] = 2.0**60, -(2.0**60)
    x[n // 4 : -n // 4 : n // 20] = 1  # far apart, and far from the ends: one in a partial sum
    ones = int((x == 1).sum()) // 2
    _, sums, _ = class_moments(x.to(place.device), torch.zeros(n, device=place.device).long(), 1)
    assert ones >= 9
    assert sums.tolist() == [[ones, ones]]


@pytest.mark.parametrize("classes", [4, 400])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_error_of_many_rows(place, classes, dtype):
    """Rows that cancel leave only the error; the bound is of the sum of absolute values."""
    n = 33_000 if place.name != "cuda_on_cpu" else 6_000
    rng = np.random.default_rng(5)
    x = torch.tensor(np.exp(rng.normal(0, 3, (n // 2, 3)))).clamp(max=6e4).to(dtype)
    x, y = torch.cat([x, -x]), labels_for(n // 2, classes).repeat(2)
    check(place, x, y, classes)


def test_more_elements_than_32_bits_can_count():
    """4.3 GB that nobody writes are one page of zeros, read again and again."""
    width, n = 1024, 2**21 + 9
    try:
        memory = np.zeros((n, width), np.float16)
    except MemoryError:
        pytest.skip("needs 4.3 GB of address space")
    memory[[0, 2**20, n - 2, n - 1], -1] = 1, 2, 4, 8
    labels = np.zeros(n, np.int32)
    labels[-1] = 1
    for classes in (2, 100):  # streamed, and gathered
        counts, sums, sumsq = class_moments(memory, labels, classes)
        assert (counts[0].item(), counts[1].item()) == (n - 1, 1)
        assert (sums[0, -1].item(), sums[1, -1].item()) == (7, 8)
        assert (sumsq[0, -1].item(), sumsq[1, -1].item()) == (21, 64)
    memory[-1, -1] = np.inf
    with pytest.raises(
        ValueError, match=f"found 1 .* in 1 rows, the first at row {n - 1}, .* 1023 "
    ):
        class_moments(memory, labels, 2)


# --- Values


def test_squares_beyond_float32(place):
    x = torch.tensor([[1e30, -3e38], [-1e30, 1e-45], [2e30, 0.0]])
    check(place, x, torch.tensor([0, 1, 0]), 2)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_sums_beyond_float16(place, dtype):
    x = torch.full((900, 5), 60_000.0).to(dtype)
    counts, sums, _ = check(place, x, torch.zeros(900, dtype=torch.int64), 1)
    assert sums[0, 0].item() == counts[0].item() * x[0, 0].item() > 5e7
    check(place, x.view(100, 5, 3, 3), torch.zeros(100, dtype=torch.int64), 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_extreme_values(place, dtype):
    """Denormals, the least and greatest numbers, and zeros of either sign."""
    info = torch.finfo(dtype)
    large = info.max if dtype != torch.float64 else 1e150
    values = [info.smallest_normal, info.smallest_normal / 4, large, -large, -0.0, 0.0, 1.0]
    x = torch.tensor(values, dtype=torch.float64).to(dtype)
    x = torch.stack([x, -x, x.roll(3)]).repeat(3, 1)
    check(place, x, labels_for(9, 2), 2)


@pytest.mark.parametrize("width", [8, 3])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_16_bit_value(place, dtype, width):
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    every = every[every.isfinite()]
    x = every[: len(every) // width * width].view(-1, width)
    y = torch.arange(len(x))  # a class for each row: its sum is the row
    _, sums, sumsq = class_moments(x.to(place.device), y.to(place.device), len(x))
    assert torch.equal(sums.cpu(), x.double())
    assert torch.equal(sumsq.cpu(), x.double() ** 2)


def test_negative_zero_adds_nothing(place):
    x = torch.full((20, 3), -0.0, device=place.device)
    _, sums, sumsq = class_moments(x, torch.zeros(20, dtype=torch.int64, device=place.device), 2)
    assert not sums.any()
    assert not sumsq.any()


@pytest.mark.parametrize("rows", [40, 40_000])
def test_sums_beyond_float64(place, rows):
    """Finite values whose sum is not: infinity, and no complaint, in either mode."""
    rows = min(rows, 4_000) if place.name == "cuda_on_cpu" else rows
    x = torch.full((rows, 2), 1.5e308, dtype=torch.float64)
    x[:, 1] = 1e200  # its square is infinite
    y = torch.arange(rows) % 2
    for mode in ("error", "skip"):
        found = class_moments(x.to(place.device), y.to(place.device), 2, nonfinite=mode, check=True)
        counts, sums, sumsq = (part.cpu() for part in found)
        assert counts.tolist() == [rows // 2] * 2
        assert sums[:, 0].tolist() == [math.inf] * 2
        assert sumsq.tolist() == [[math.inf] * 2] * 2
        torch.testing.assert_close(sums[:, 1], torch.full_like(sums[:, 1], rows / 2 * 1e200))


def test_results_that_nobody_touches(place):
    x, y = drawn(40, 300).to(place.device), torch.arange(40, device=place.device) * 24 % 1000
    counts, sums, sumsq = check(place, x, y, 1000)
    sums += 1  # theirs like any other tensor's
    kept = sums.clone()
    del sumsq
    class_moments(x, y, 1000)  # finds other memory
    assert torch.equal(sums, kept)
    assert torch.equal(sums[counts == 0], torch.ones_like(sums[counts == 0]))


@pytest.mark.parametrize("place", ["cpu", "cpu:baseline", "cpu:avx2", "cpu:avx512"], indirect=True)
@pytest.mark.parametrize(
    ("width", "classes"),
    [
        *[(3, 33), (16, 10)],
        *(
            pytest.param(*size, marks=pytest.mark.full)
            for size in [(24, 100), (48, 128), (130, 40)]
        ),
    ],
)
def test_narrow_rows_of_some_classes(place, width, classes):
    """On the CPU from 32,768 rows on they are summed in the order in which they lie."""
    x = drawn(33_000, width)
    check(place, x, labels_for(len(x), classes), classes)
    x[[7, 32_768], width // 2] = math.inf
    check(place, x, labels_for(len(x), classes), classes, nonfinite="skip")
