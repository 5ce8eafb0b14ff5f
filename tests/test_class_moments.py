"""class_moments against exact sums: every layout, dtype and size, and everything it refuses."""

import importlib
import math
import warnings

import numpy as np
import oracles
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import resque_ext
from resque_ext import _backend, _inputs
from resque_ext.ops import class_moments

ops = importlib.import_module(
    "resque_ext.ops.class_moments"
)  # in `ops`, its name is the function's

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
HALVES = DTYPES[2:]
EXACT = 1e-12
NHWC = {"memory_format": torch.channels_last}
IN_EVERY_ORDER = [f"cuda_on_cpu:{order}" for order in ("forward", "reverse", "random")]
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
with_place = settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # a place has no state
)


def drawn(*shape, dtype=torch.float32, seed=0):
    return torch.tensor(np.random.default_rng(seed).standard_normal(shape)).to(dtype)


def labels_for(n, classes, seed=1):
    return torch.tensor(np.random.default_rng(seed).integers(0, classes, n))


def whole_numbers(*shape, dtype=torch.float32):
    return torch.tensor(np.random.default_rng(2).integers(-8, 9, shape)).to(dtype)


def arrays(found):
    return [part.cpu().numpy() for part in found]


def truth(features):
    return features.detach().double().cpu().numpy()


def allowed_error(place, features):
    """CUDA hands the means of narrower types on as float32."""
    fused = features.ndim > 2 and place.kernels == "cuda" and features.dtype != torch.float64
    return 1e-6 if fused else EXACT


def check(place, features, labels, classes, **options):
    x, y = features.to(place.device), labels.to(place.device)
    found = class_moments(x, y, classes, **options)
    assert [part.dtype for part in found] == [torch.int64, torch.float64, torch.float64]
    expected = oracles.class_moments(truth(x), labels.cpu().numpy(), classes)
    expected.check(arrays(found), allowed_error(place, features))
    return found


# --- Layouts: how a base tensor is looked at, and whether a kernel reads it where it lies

VIEWS = {
    "matrix": ((37, 12), lambda x: x, True),
    "5 columns": ((37, 5), lambda x: x, True),
    "1 column": ((37, 1), lambda x: x, True),
    "3 columns": ((37, 3), lambda x: x, True),
    "4 columns": ((37, 4), lambda x: x, True),
    "every other row": ((80, 12), lambda x: x[::2], True),
    "misaligned columns": ((37, 13), lambda x: x[:, 1:], True),
    "aligned columns of odd rows": ((37, 13), lambda x: x[:, :12], True),
    "aligned columns of even rows": ((37, 24), lambda x: x[:, 8:16], True),
    "one row again and again": ((1, 12), lambda x: x.expand(37, 12), True),
    "1 column of many": ((37, 12), lambda x: x[:, 3:4], True),
    "every other column": ((37, 24), lambda x: x[:, ::2], False),
    "one column again and again": ((37, 1), lambda x: x.expand(37, 12), False),
    "transposed": ((12, 37), lambda x: x.t(), False),
    "NCHW": ((9, 5, 3, 4), lambda x: x, True),
    "NCHW, 16 positions": ((9, 8, 4, 4), lambda x: x, True),
    "NCHW, 49 positions": ((5, 3, 7, 7), lambda x: x, True),
    "NCHW, 99 positions": ((5, 3, 11, 9), lambda x: x, True),
    "NHWC": ((9, 8, 3, 4), lambda x: x.contiguous(**NHWC), True),
    "NHWC, 5 channels": ((9, 5, 3, 4), lambda x: x.contiguous(**NHWC), True),
    "NHWC, 25 positions": ((4, 8, 5, 5), lambda x: x.contiguous(**NHWC), True),
    "1 x 1": ((9, 8, 1, 1), lambda x: x, True),
    "1 x 1 of a channel": ((9, 8, 1, 1), lambda x: x[:, 2:3], True),
    "1 x W": ((9, 8, 1, 5), lambda x: x, True),
    "H x 1": ((9, 8, 5, 1), lambda x: x, True),
    "every other image": ((18, 5, 3, 4), lambda x: x[::2], True),
    "every other channel": ((9, 10, 3, 4), lambda x: x[:, ::2], True),
    "channels 1 to 6": ((9, 8, 3, 4), lambda x: x[:, 1:7], True),
    "NHWC, channels 1 to 6": ((9, 8, 3, 4), lambda x: x.contiguous(**NHWC)[:, 1:7], True),
    "upper half": ((9, 5, 6, 4), lambda x: x[:, :, :3], True),
    "one line": ((9, 5, 6, 4), lambda x: x[:, :, 2:3], True),
    "one image again and again": ((1, 5, 3, 4), lambda x: x.expand(9, 5, 3, 4), True),
    "left half": ((9, 5, 3, 8), lambda x: x[..., :4], False),
    "every other line": ((9, 5, 6, 4), lambda x: x[:, :, ::2], False),
    "every other position": ((9, 5, 3, 8), lambda x: x[..., ::2], False),
    "one line across": ((9, 5, 3, 4), lambda x: x[..., 1:2], False),
    "W x H": ((9, 5, 3, 4), lambda x: x.transpose(2, 3), False),
    "other axes first": ((3, 9, 4, 5), lambda x: x.permute(1, 3, 0, 2), False),
    "one position again and again": ((9, 5, 1, 1), lambda x: x.expand(9, 5, 3, 4), True),
    "one line again and again": ((9, 5, 1, 4), lambda x: x.expand(9, 5, 3, 4), False),
    "tokens": ((9, 7, 8), lambda x: x, True),
    "tokens of 5": ((9, 11, 5), lambda x: x, True),
    "1 token": ((9, 1, 8), lambda x: x, True),
    "all tokens but the first": ((9, 8, 8), lambda x: x[:, 1:], True),
    "every other token": ((9, 8, 8), lambda x: x[:, ::2], True),
    "tokens side by side": ((9, 8, 7), lambda x: x.transpose(1, 2), True),
    "every other feature": ((9, 7, 16), lambda x: x[..., ::2], False),
    # A single channel has any stride: where it is not 1, the positions must lie side by side.
    "1 channel": ((9, 1, 3, 4), lambda x: x, True),
    "1 channel, every other position": ((9, 1, 3, 8), lambda x: x[..., ::2], False),
    "1 channel of NHWC": ((9, 5, 3, 4), lambda x: x.contiguous(**NHWC)[:, 2:3], True),
    "1 feature, tokens apart": ((9, 7, 2), lambda x: x[..., ::2], False),
    "1 feature of many": ((9, 7, 5), lambda x: x[..., 3:4], True),
}


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


# --- Labels out of range

PATHS = [(50, 4), (50, 400), (33_000, 4)]  # gathered, gathered, streamed on the CPU


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("bad", [-1, "K", 2**31 - 1, -(2**31)])
@pytest.mark.parametrize(("n", "classes"), PATHS)
def test_labels_out_of_range(place, n, classes, bad, dtype):
    bad = classes if bad == "K" else bad
    x, y = whole_numbers(n, 3), labels_for(n, classes).to(dtype)
    y[[17, 23]] = torch.tensor([bad, -7], dtype=dtype)
    here, there = x.to(place.device), y.to(place.device)
    message = rf"labels: expected class indices 0\.\.{classes - 1}, found {bad} at position 17$"
    for mode in ("error", "skip"):
        with pytest.raises(ValueError, match=message):
            class_moments(here, there, classes, check=True, nonfinite=mode)
    good = [*range(17), *range(18, 23), *range(24, n)]
    found = class_moments(here, there, classes, check=False)
    expected = oracles.class_moments_of_integers(truth(x)[good], y[good].numpy(), classes)
    expected.check(arrays(found), 0)


def test_only_labels_out_of_range(place):
    x, y = drawn(40_000, 2).to(place.device), torch.full((40_000,), 9, device=place.device)
    x[3] = math.nan  # a row without a group: nobody looks at it
    for classes in (3, 300):
        _, sums, _, status = torch.ops.resque_ext.class_moments_status(x, y - 10, classes)
        assert status.tolist() == [40_000, -1, 0, 0, 0]
        assert not sums.any()


# --- Values that are not finite


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("n", "classes"), [(60, 4), (900, 400), (33_000, 4)])
def test_nonfinite(place, n, classes, value, dtype):
    if place.name == "cuda_on_cpu":
        n = min(n, 5_000)
    x, y = whole_numbers(n, 6, dtype=dtype), labels_for(n, classes)
    x[n - 2, 3] = x[19, 4] = x[19, 5] = x[20] = value
    here, there = x.to(place.device), y.to(place.device)
    message = (
        "features: expected finite values, found 9 NaN or infinite in 3 rows, the first at row 19, "
        r"column 4 \(nonfinite='skip' leaves such rows out\)"
    )
    with pytest.raises(ValueError, match=message):
        class_moments(here, there, classes, check=True)

    good = [i for i in range(n) if i not in (19, 20, n - 2)]
    found = class_moments(here, there, classes, nonfinite="skip", check=True)
    expected = oracles.class_moments_of_integers(truth(x)[good], y[good].numpy(), classes)
    expected.check(arrays(found), 0)

    _, sums, sumsq = class_moments(here, there, classes, check=False)
    assert not sums[y[20]].isfinite().any()
    assert not sumsq[y[20]].isfinite().any()
    untouched = [c for c in range(classes) if c not in y[[19, 20, n - 2]]]
    np.testing.assert_array_equal(sums.cpu()[untouched], expected.sums[untouched])


@pytest.mark.parametrize("shape", [(30, 6), (40_000, 2), (30, 4, 3, 3), (30, 5, 4)])
@pytest.mark.parametrize("classes", [3, 200])
def test_nothing_finite(place, shape, classes):
    if place.name == "cuda_on_cpu":
        shape = (min(shape[0], 3_000), *shape[1:])
    x = torch.full(shape, math.nan, device=place.device)
    y = labels_for(shape[0], classes).to(place.device)
    for part in class_moments(x, y, classes, nonfinite="skip"):
        assert not part.any()
    n, width = shape[0], shape[2] if len(shape) == 3 else shape[1]
    *_, status = torch.ops.resque_ext.class_moments_status(x, y, classes)
    assert status.tolist() == [0, 0, n * width, n * width, n]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "tokens"])
def test_nonfinite_through_pooling(place, layout, dtype):
    """It is the mean that counts: one bad position makes one bad feature."""
    x = whole_numbers(60, 8, 4, 4, dtype=dtype)
    x[7, 2, 1, 3], x[7, 2, 0, 0], x[40, 5, 3, 3] = math.inf, -math.inf, math.nan
    x = {
        "NCHW": lambda: x,
        "NHWC": lambda: x.contiguous(**NHWC),
        "tokens": lambda: x.flatten(2).transpose(1, 2),
    }[layout]()
    y = labels_for(60, 3)
    with pytest.raises(ValueError, match=r"found 2 .* in 2 rows, the first at row 7, column 2 "):
        class_moments(x.to(place.device), y.to(place.device), 3, check=True)
    check(place, x, y, 3, nonfinite="skip")
    y[7] = -1
    *_, status = torch.ops.resque_ext.class_moments_status(
        x.to(place.device), y.to(place.device), 3
    )
    assert status.tolist() == [60 - 7, -1, 1, 60 * 8 - (40 * 8 + 5), 1]


# --- Segments: more rows than one call of the extension takes


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("rows", [9, 50, 99, 100])
def test_segments(place, monkeypatch, rows, backend):
    monkeypatch.setattr(ops, "SEGMENT_ROWS", rows)
    x, y = drawn(100, 5), labels_for(100, 4)
    with resque_ext.backend(backend):
        check(place, x, y, 4)
        check(place, x.view(100, 5, 1, 1).expand(100, 5, 2, 2), y, 4)
        x[[40, 73, 99], [3, 1, 4]] = math.nan
        there = x.to(place.device)
        with pytest.raises(ValueError, match=r"found 3 .* 3 rows, the first at row 40, column 3 "):
            class_moments(there, y.to(place.device), 4, check=True)
        check(place, x, y, 4, nonfinite="skip")
        y[[35, 80]] = torch.tensor([-3, 11])
        with pytest.raises(ValueError, match=r"found -3 at position 35$"):
            class_moments(there, y.to(place.device), 4, check=True)
        *_, status = torch.ops.resque_ext.class_moments_status(there, y.to(place.device), 4)
        assert status.tolist() == [65, -3, 3, 500 - 203, 3]


# --- Refused


@pytest.mark.parametrize(
    ("features", "labels", "error", "message"),
    [
        ([[1.0]], torch.zeros(1).long(), TypeError, "features: expected a torch.Tensor .* list"),
        (torch.zeros(3, 2).long(), None, TypeError, r"features: expected float32.* \(3, 2\)"),
        (torch.zeros(3, 2).bool(), None, TypeError, "features: expected float32"),
        (torch.zeros(3, 2).cfloat(), None, TypeError, "features: expected a dense .* complex"),
        (torch.zeros(3, 2).to_sparse(), None, TypeError, "features: .*torch.sparse_coo"),
        (torch.zeros(3, 2, device="meta"), None, TypeError, "features: .*on cpu or cuda.*meta"),
        (np.zeros((3, 2), object), None, TypeError, "features: .*numpy dtype object"),
        (np.zeros((3, 2), complex), None, TypeError, "features: .*numpy dtype complex128"),
        (torch.zeros(3), None, ValueError, r"features: expected \[N, D\].*shape \(3,\)"),
        (torch.tensor(1.0), None, ValueError, r"features: expected \[N, D\].*shape \(\)"),
        (torch.zeros(3, 1, 1, 1, 1), None, ValueError, r"features: .*\(3, 1, 1, 1, 1\)"),
        (torch.zeros(3, 4, 0, 2), None, ValueError, "features: .*one position"),
        (torch.zeros(3, 0, 2), None, ValueError, "features: .*one position"),
        (None, torch.zeros(3), TypeError, "labels: expected int32 or int64.*float32"),
        (None, torch.zeros(3).bool(), TypeError, "labels: expected int32 or int64.*bool"),
        (None, torch.zeros(3).half(), TypeError, "labels: expected int32 or int64.*float16"),
        (None, torch.zeros(3).cfloat(), TypeError, "labels: expected a dense"),
        (None, [0, 1, 2], TypeError, "labels: expected a torch.Tensor .* list"),
        (None, torch.zeros(3, 4).long(), ValueError, r"labels: .*one-hot.*labels.argmax\(1\)"),
        (None, torch.tensor(3), ValueError, r"labels: expected shape \[N\].*\(\)"),
        (None, torch.zeros(3, device="meta").long(), TypeError, "labels: .*on cpu or cuda"),
        (None, torch.zeros(4).long(), ValueError, r"features, labels: .*\(3, 2\).*\(4,\)"),
        (None, torch.zeros(0).long(), ValueError, r"features, labels: .*\(3, 2\).*\(0,\)"),
        (None, np.array([2**63], np.uint64), TypeError, r"labels: expected values below 2\^63"),
        (None, np.array(["a"]), TypeError, "labels: .*numpy dtype <U1"),
    ],
)
def test_refused(features, labels, error, message):
    x = torch.zeros(3, 2) if features is None else features
    y = torch.zeros(3).long() if labels is None else labels
    with pytest.raises(error, match=message):
        class_moments(x, y, 3)


def test_quantized_features_are_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantized tensors are on their way out
        x = torch.quantize_per_tensor(torch.zeros(3, 2), 0.1, 0, torch.qint8)
    with pytest.raises(TypeError, match="features: expected a dense real tensor, found quantized"):
        class_moments(x, torch.zeros(3).long(), 2)


@pytest.mark.parametrize(
    ("classes", "error"),
    [
        *[(value, TypeError) for value in (2.0, "2", None, True, np.float64(2), torch.tensor(2))],
        *[(value, ValueError) for value in (0, -1, 2**31, 2**70)],
    ],
)
def test_refused_num_classes(classes, error):
    with pytest.raises(error, match="num_classes: expected"):
        class_moments(torch.zeros(3, 2), torch.zeros(3).long(), classes)


def test_num_classes_of_numpy():
    assert len(class_moments(torch.zeros(3, 2), torch.zeros(3).long(), np.int32(4))[0]) == 4


def test_refused_options():
    with pytest.raises(
        ValueError, match="nonfinite: expected one of 'error', 'skip', found 'drop'"
    ):
        class_moments(torch.zeros(3, 2), torch.zeros(3).long(), 2, nonfinite="drop")
    with pytest.raises(ValueError, match=r"name: expected one of .*, found 'numpy'"):
        resque_ext.backend("numpy").__enter__()


def test_features_and_labels_on_two_devices():
    """Only on CUDA can both be taken by themselves."""
    x, y = torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64, device="meta")
    with pytest.raises(ValueError, match=r"expected one device.*cpu.*meta"):
        _inputs.check_pair(x, y, ("features", "labels"))


def test_features_that_are_refused_by_the_launcher(place):
    """Neither channels nor positions side by side: the kernels would read the wrong places."""
    memory = torch.zeros(1_000, dtype=torch.int64, device=place.device)
    zeros = memory.data_ptr()
    for sizes in ((2, 3, 1, 6, 2, 1), (2, 3, 4, 24, 8, 2), (2, 1, 4, 8, 8, 2), (2, 1, 0, 1, 1, 1)):
        view = _backend.extension().Features(zeros, 0, *sizes)
        args = _backend.extension().ClassMoments(view, zeros, zeros, 1, True, False, *[zeros] * 5)
        with pytest.raises(
            ValueError, match=r"stride_c: expected 1|positions: expected at least 1"
        ):
            _backend.call("class_moments", args, place.device)


# --- Autograd, inference, compilation


def test_gradients_do_not_flow(place):
    x = drawn(20, 3).to(place.device).requires_grad_()
    assert not any(part.requires_grad for part in check(place, x, labels_for(20, 2), 2))
    with torch.inference_mode():
        inside = drawn(20, 3).to(place.device)
        check(place, inside, labels_for(20, 2), 2)
    check(place, inside, labels_for(20, 2), 2)


LAYOUTS = ["matrix", "every other column", "NCHW", "NHWC", "tokens", "one row again and again"]


@pytest.mark.parametrize("view", LAYOUTS)
@pytest.mark.parametrize("name", ["class_moments", "class_moments_status"])
def test_opcheck(place, name, view):
    shape, look, _ = VIEWS[view]
    x = look(drawn(*shape).to(place.device))
    y = labels_for(len(x), 4).to(place.device)
    torch.library.opcheck(getattr(torch.ops.resque_ext, name).default, (x, y, 4))
    if name == "class_moments":
        op = torch.ops.resque_ext.class_moments.default
        torch.library.opcheck(op, (x, y, 4), {"skip_nonfinite": True, "check": True})


@pytest.mark.parametrize("compiler", ["eager", "aot_eager", "inductor"])
@pytest.mark.parametrize("view", ["matrix", "NHWC", "tokens"])
def test_compile(compiler, view):
    def moments(x, y):
        counts, sums, sumsq = class_moments(x * 2, y, 4)
        return sums / counts[:, None], sumsq

    torch.compiler.reset()
    shape, look, _ = VIEWS[view]
    compiled = torch.compile(moments, backend=compiler, fullgraph=True)
    for n in (len(look(torch.zeros(shape))), 60):  # the second time with other sizes
        x, y = look(drawn(n, *shape[1:])), torch.arange(n) % 4
        for found, expected in zip(compiled(x, y), moments(x, y), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    y[3] = 9
    with pytest.raises(ValueError, match="found 9 at position 3"):
        compiled(x, y)


# --- Plain PyTorch, and what is missing


@pytest.mark.parametrize("view", VIEWS)
def test_torch_backend(place, view):
    shape, look, _ = VIEWS[view]
    dtype = DTYPES[list(VIEWS).index(view) % 4]  # each of them with every kind of layout
    x = look(drawn(*shape, dtype=dtype).to(place.device))
    clean, y = x, labels_for(len(x), 4).to(place.device)
    for fault in (None, math.nan):
        if fault:
            x = clean.clone()
            x[len(x) // 2, 0], y[-1] = fault, 4
        for skip in (False, True):
            native = torch.ops.resque_ext.class_moments_status(x, y, 4, skip)
            with resque_ext.backend("torch"):
                plain = torch.ops.resque_ext.class_moments_status(x, y, 4, skip)
            allowed = 10 * allowed_error(place, x)
            for part, same in zip(native, plain, strict=True):
                torch.testing.assert_close(
                    part, same, rtol=allowed, atol=allowed * 40, equal_nan=True, check_stride=False
                )
            assert native[3].tolist() == plain[3].tolist()
            assert native[0].tolist() == plain[0].tolist()


def test_torch_backend_on_large_and_empty(place):
    with resque_ext.backend("torch"):
        for n, classes in ((0, 3), (1, 1), (5, 9), (40, 100_000), (33_000, 3)):
            x, y = whole_numbers(n, 3), labels_for(n, classes)
            found = class_moments(x.to(place.device), y.to(place.device), classes)
            oracles.class_moments_of_integers(truth(x), y.numpy(), classes).check(arrays(found), 0)


def test_without_the_extension(monkeypatch):
    x, y = drawn(6, 2), labels_for(6, 2)
    monkeypatch.setattr(_backend, "_C", None)
    monkeypatch.setattr(_backend, "_missing", "resque_ext._C is not in here: it was never built")
    message = r"is not in here: it was never built\. .*backend\('torch'\)"
    with pytest.raises(resque_ext.BackendError, match=message):
        class_moments(x, y, 2)
    with resque_ext.backend("torch"):
        assert class_moments(x, y, 2)[0].sum() == 6
    info = resque_ext.build_info()
    assert (info["extension"], info["missing"]) == (None, _backend._missing)


def test_without_cuda_kernels(monkeypatch):
    kernels = type("_C", (), {"cpu": _backend.extension().cpu})
    monkeypatch.setattr(_backend, "_C", kernels)
    assert _backend.kernels(torch.device("cpu")) is kernels.cpu
    message = r"on the CPU, found them on cuda:1: .*without CUDA kernels.*nvcc.*backend\('torch'\)"
    with pytest.raises(resque_ext.BackendError, match=message):
        _backend.kernels(torch.device("cuda:1"))


# --- On a GPU alone


@pytest.fixture
def on_cuda():
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    if not hasattr(_backend.extension(), "cuda"):
        pytest.skip("resque_ext was built without CUDA kernels")
    x, y = drawn(5_000, 32), labels_for(5_000, 10)
    return x.cuda(), y.cuda(), oracles.class_moments(truth(x), y.numpy(), 10)


def test_unchecked_cuda_calls_do_not_wait(on_cuda):
    x, y, expected = on_cuda
    expected.check(arrays(class_moments(x, y, 10)), EXACT)
    y[3] = 99
    torch.cuda.set_sync_debug_mode("error")
    try:
        class_moments(x, y, 10)
        class_moments(x.view(5_000, 8, 2, 2), y, 10, nonfinite="skip")
        with pytest.raises(RuntimeError, match="synchroniz"):
            class_moments(x, y, 10, check=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with pytest.raises(ValueError, match=r"found 99 at position 3$"):
        class_moments(x, y, 10, check=True)


def test_a_side_stream(on_cuda):
    x, y, expected = on_cuda
    stream = torch.cuda.Stream()
    slow = torch.zeros_like(x)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # on another stream the zeros would be read
        slow.copy_(x)
        found = class_moments(slow, y, 10)
    stream.synchronize()
    expected.check(arrays(found), EXACT)


def test_a_cuda_graph(on_cuda):
    x, y, expected = on_cuda
    class_moments(x, y, 10)
    still, graph = torch.zeros_like(x), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = class_moments(still, y, 10)
    still.copy_(x)
    graph.replay()
    torch.cuda.synchronize()
    expected.check(arrays(found), EXACT)


def test_another_current_device(on_cuda):
    x, y, expected = on_cuda
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    there = torch.device("cuda:1")
    assert torch.cuda.current_device() == 0
    found = class_moments(x.to(there), y.to(there), 10)
    assert {part.device for part in found} == {there}
    assert torch.cuda.current_device() == 0
    expected.check(arrays(found), EXACT)
    with pytest.raises(ValueError, match=r"expected one device.*cuda:1.*cuda:0"):
        class_moments(x.to(there), y, 10)


def test_features_on_cuda_and_labels_not(on_cuda):
    x, y, _ = on_cuda
    with pytest.raises(ValueError, match=r"expected one device.*cuda:0.*cpu"):
        class_moments(x, y.cpu(), 10)


@pytest.mark.parametrize("positions", [1, 4])
def test_more_elements_than_32_bits_can_count_on_cuda(on_cuda, positions):
    n, width = 2**21 + 9, 1024
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GB of GPU memory")
    x = torch.zeros(n, width // positions, positions, dtype=torch.float16, device="cuda")
    x[-1, -1] = x[0, -1] = 8
    y = torch.zeros(n, dtype=torch.int32, device="cuda")
    y[-1] = 1
    # [n, channels] as it is, and the means of positions that lie side by side
    features = x[..., 0] if positions == 1 else x.view(n, -1, 2, 2)
    counts, sums, sumsq = class_moments(features, y, 2, check=True)
    assert counts.tolist() == [n - 1, 1]
    assert sums[:, -1].tolist() == [8, 8]
    assert sumsq[:, -1].tolist() == [64, 64]
