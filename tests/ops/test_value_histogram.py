"""value_histogram against the arithmetic of floats: values, layouts, sizes, what it refuses."""

import importlib
import math
import warnings

import numpy as np
import pytest
import torch
from helpers import oracles, oracles_values
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import resque_ext
from resque_ext.ops import ValueHistogram, value_histogram
from resque_ext.ops import backend as _backend

module = importlib.import_module("resque_ext.ops.value_histogram")

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
HALVES = DTYPES[2:]
BITS = {torch.float16: (6, 11, 16), torch.bfloat16: (9, 12, 16)}
IN_EVERY_ORDER = [f"cuda_on_cpu:{order}" for order in ("forward", "reverse", "random")]
with_place = settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # a place has no state
)


def drawn(*shape, dtype=torch.float32, seed=0):
    return torch.tensor(np.random.default_rng(seed).standard_normal(shape)).to(dtype)


def patterns(n, dtype, seed=0):
    """Random bits: every exponent, subnormal numbers, infinity and NaN."""
    bits = np.random.default_rng(seed).integers(0, 256, n * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(bits).view(dtype)


def numbers(x):
    return x.detach().double().cpu().numpy()


def check(x, found, bits):
    """The bins that have values are those of the oracle, and so are their ends."""
    expected = oracles_values.bins(numbers(x), str(x.dtype).removeprefix("torch."), bits)
    counts = found.counts.cpu().numpy()
    assert counts.shape == (2**bits,)
    assert counts.dtype == np.int64
    there = np.flatnonzero(counts)
    negative = there < 2 ** (bits - 1)
    near = np.where(negative, -found.upper[there], found.lower[there])
    assert negative.tolist() == expected.negative
    assert near.tolist() == expected.near
    assert counts[there].tolist() == expected.counts
    one_value = bits == 16 and x.dtype in HALVES
    width = found.upper[there] - found.lower[there]
    assert width.tolist() == ([0.0] * len(there) if one_value else expected.step)
    return found


# --- Dtypes, bits and values


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_of_every_kind(place, dtype):
    tails = torch.tensor(np.random.default_rng(1).standard_cauchy(3_000)).to(dtype)
    for x in (
        drawn(3_000, dtype=dtype),
        drawn(3_000, dtype=dtype).relu(),
        tails[tails.isfinite()],
        drawn(500, dtype=dtype) * 1e-5 + 7,
        torch.full((700,), -1.5, dtype=dtype),
        torch.arange(-40, 40).to(dtype),
    ):
        for bits in BITS.get(dtype, (9, 15, 16, 20)):
            check(x, value_histogram(x.to(place.device), bits=bits), bits)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_random_bits(place, dtype):
    x = patterns(9_000, dtype)
    finite = x.isfinite() & (x.double().abs() < 2.0**128)
    assert not finite.all()
    for bits in BITS.get(dtype, (9, 16, 20)):
        found = value_histogram(x.to(place.device), bits=bits, nonfinite="skip")
        check(x, found, bits)
        assert found.total == int(finite.sum())


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_16_bit_value_has_a_bin(place, dtype):
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    finite = every[every.isfinite()]
    found = value_histogram(every.to(place.device), nonfinite="skip")
    assert found.counts.sum() == len(finite)
    there = found.counts.cpu().numpy() == 1
    values = found.representatives[there]
    assert values.tolist() == sorted(numbers(finite).tolist())
    assert (np.isnan(found.representatives) == ~there).all()
    assert (found.lower[there] == values).all()
    assert (found.upper[there] == values).all()


def test_zeros_of_either_sign_are_one_value(place):
    x = torch.tensor([0.0, -0.0, -0.0])
    for dtype in DTYPES:
        found = value_histogram(x.to(dtype).to(place.device))
        assert found.counts[2**15 - 1 : 2**15 + 1].tolist() == [2, 1]
        assert found.representatives[2**15 - 1 : 2**15 + 1].tolist() == [0, 0]
        assert found.points()[1].sum() == 3


@pytest.mark.parametrize("bits", [9, 15, 16, 20])
def test_float64_falls_into_the_bin_that_holds_it(place, bits):
    """Rounded to float32 first, a value just below an edge would go one bin too far."""
    ends = value_histogram(torch.zeros(1), bits=bits).lower
    ends = ends[(np.abs(ends) > 0) & (np.abs(ends) < 2.0**128)]
    ends = ends[:: max(len(ends) // 900, 1)]
    x = torch.tensor(np.concatenate([ends, np.nextafter(ends, 0), np.nextafter(ends, 2 * ends)]))
    check(x, value_histogram(x.to(place.device), bits=bits), bits)


def test_float64_beyond_float32_is_no_finite_value(place):
    below = np.nextafter(2.0**128, 0)
    x = torch.tensor([1.0, below, -below, 2.0**128, -1e300, 1e-320], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"found 2 NaN or infinite \(or beyond float32\).* \[3\] "):
        value_histogram(x.to(place.device), check=True)
    found = check(x, value_histogram(x.to(place.device), nonfinite="skip"), 16)
    assert found.total == 4
    assert found.upper[found.counts.cpu().numpy() > 0].max() == 2.0**128


@pytest.mark.parametrize(("bits", "reach"), [(15, 2**-7), (16, 2**-8), (20, 2**-12)])
def test_a_bin_stands_for_its_middle(bits, reach):
    x = drawn(5_000).abs() + 1e-3
    values, counts, off = value_histogram(x, bits=bits).points()
    nearest = np.abs(numbers(x)[:, None] - values).min(axis=1)
    assert (nearest <= reach * numbers(x)).all()
    assert (off <= reach * values * (1 + reach)).all()
    assert nearest.max() > 0.9 * off[: len(values) // 2].min()
    assert counts.sum() == 5_000


@with_place
@given(st.data())
def test_any_floats(place, data):
    dtype = data.draw(st.sampled_from(DTYPES))
    width = min(8 * dtype.itemsize, 64)
    limit = {"allow_nan": False, "allow_infinity": False}
    floats = st.floats(width=min(width, 32), **limit) | st.floats(-1e38, 1e38, **limit)
    x = torch.tensor(data.draw(st.lists(floats, max_size=40)), dtype=torch.float64)
    x = x.clamp(-6e4, 6e4) if dtype == torch.float16 else x
    x = x.to(dtype)
    bits = data.draw(st.sampled_from(BITS.get(dtype, (9, 15, 16, 20))))
    assert x.isfinite().all()
    check(x, value_histogram(x.to(place.device), bits=bits), bits)


# --- Layouts

VIEWS = {
    "one number": ((), lambda x: x),
    "a row": ((60,), lambda x: x),
    "every other": ((60,), lambda x: x[::2]),
    "misaligned": ((61,), lambda x: x[1:]),
    "matrix": ((12, 7), lambda x: x),
    "transposed": ((12, 7), lambda x: x.t()),
    "columns": ((12, 7), lambda x: x[:, 2:5]),
    "one row again and again": ((1, 7), lambda x: x.expand(9, 7)),
    "NCHW": ((3, 5, 4, 6), lambda x: x),
    "NHWC": ((3, 5, 4, 6), lambda x: x.to(memory_format=torch.channels_last)),
    "channels 1 to 4": ((3, 6, 4, 6), lambda x: x[:, 1:5]),
    "every other line": ((3, 5, 4, 6), lambda x: x[:, :, ::2]),
    "1 x 1": ((9, 8, 1, 1), lambda x: x),
    "tokens": ((3, 7, 5), lambda x: x),
    "tokens side by side": ((3, 5, 7), lambda x: x.transpose(1, 2)),
    "five axes": ((2, 3, 2, 3, 2), lambda x: x.permute(4, 1, 0, 3, 2)),
}
CHANNELS = [name for name, (shape, _) in VIEWS.items() if len(shape) in (2, 3, 4)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("view", VIEWS)
def test_layouts(place, view, dtype):
    shape, look = VIEWS[view]
    x = look(drawn(*shape, dtype=dtype).to(place.device))
    check(x, value_histogram(x), 16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("view", CHANNELS)
def test_channels(place, view, dtype):
    shape, look = VIEWS[view]
    x = look(drawn(*shape, dtype=dtype).to(place.device))
    found = value_histogram(x, by_channel=True, bits=10)
    axis = 2 if x.dim() == 3 else 1
    assert found.counts.shape == (x.shape[axis], 2**10)
    for c in range(x.shape[axis]):
        check(x.select(axis, c), found._replace(counts=found.counts[c]), 10)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("view", CHANNELS)
def test_pooling(place, view, dtype):
    """Means of whole numbers over 2^k positions, or of few, are exact in float32."""
    shape, look = VIEWS[view]
    whole = torch.tensor(np.random.default_rng(2).integers(-8, 9, shape)).to(dtype)
    x = look(whole.to(place.device))
    means = torch.tensor(oracles.pooled(numbers(x)).astype(np.float64))
    kept = x.dtype if x.dim() == 2 or x.dtype == torch.float64 else torch.float32
    found = value_histogram(x, pool=True)
    check(means.to(kept), found, 16)
    assert found.dtype == (torch.float32 if kept == torch.float64 else kept)
    found = value_histogram(x, pool=True, by_channel=True)
    for c in range(means.shape[1]):
        check(means[:, c].to(kept), found._replace(counts=found.counts[c]), 16)


def test_numpy():
    x = np.random.default_rng(3).standard_normal((30, 6)).astype(np.float32)
    for values in (x, x[::-1], x[:, ::-1], np.asfortranarray(x), x.astype(">f4"), x[::3, 2]):
        check(torch.tensor(values.astype("=f4")), value_histogram(values), 16)
    x.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of torch, about memory that is read only
        value_histogram(x)


# --- Sizes


# The CPU counts without a table up to 2^17 values, with one a thread from 2^20 on each.
@pytest.mark.parametrize("n", [0, 1, 7, 2**17, 2**17 + 3, 2**20 + 2**19 + 5, 2**21 + 1])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sizes(dtype, n):
    base = drawn(2**13, dtype=dtype)
    times, rest = divmod(n, len(base))
    found = value_histogram(base.repeat(times + 1)[:n])
    once, more = (check(x, value_histogram(x), 16).counts for x in (base, base[:rest]))
    assert torch.equal(found.counts, once * times + more)


@pytest.mark.parametrize("n", [16_384, 40_000])
@pytest.mark.parametrize("place", IN_EVERY_ORDER, indirect=True)
def test_several_blocks_in_every_order(place, n):
    for dtype in DTYPES:
        x = drawn(n, dtype=dtype)
        check(x, value_histogram(x), 16)
        x[[5, n // 2]] = math.nan
        *_, status = torch.ops.resque_ext.value_histogram_status(x, 16)
        assert status.tolist() == [0, 0, 2, n - 5, 0]


@pytest.mark.parametrize("bits", [16, 20])
def test_thread_count_does_not_show(bits):
    x = patterns(3 * 2**20, torch.float32)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            found.append(torch.ops.resque_ext.value_histogram_status(x, bits))
    finally:
        torch.set_num_threads(before)
    for counts, status in found[1:]:
        assert torch.equal(counts, found[0][0])
        assert torch.equal(status, found[0][1])


@pytest.mark.full
def test_more_values_than_a_table_may_hold():
    """4.3 GB that nobody writes are one page of zeros, read again and again."""
    n = 2**31 + 2**18 + 9
    try:
        memory = np.zeros(n, np.float16)
    except MemoryError:
        pytest.skip("needs 4.3 GB of address space")
    memory[[0, 2**30, n - 1]] = 1, -2, 1
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        values, counts, _ = value_histogram(memory).points()
        assert dict(zip(values.tolist(), counts.tolist(), strict=True)) == {
            -2.0: 1,
            0.0: n - 3,
            1.0: 2,
        }
        memory[n - 2] = np.nan
        with pytest.raises(ValueError, match=rf"found 1 NaN .*the first at \[{n - 2}\]"):
            value_histogram(memory)
    finally:
        torch.set_num_threads(before)


# --- Merging


def test_histograms_of_parts_add_up(place):
    x = drawn(999).to(place.device)
    whole = value_histogram(x)
    parts = [value_histogram(part) for part in x.split([0, 1, 400, 598])]
    total = parts[3] + parts[0] + parts[2] + parts[1]
    assert torch.equal(total.counts, whole.counts)
    assert (total.dtype, total.bits, total.total) == (torch.float32, 16, 999)


@pytest.mark.parametrize(
    ("other", "error", "message"),
    [
        (value_histogram(torch.zeros(1), bits=15), ValueError, r"\(dtype, bits, shape\).*, 15, "),
        (value_histogram(torch.zeros(1).half()), ValueError, r"found \(torch.float16, 16"),
        (value_histogram(torch.zeros(1, 2), by_channel=True), ValueError, r"\(2, 65536\)"),
        (3, TypeError, "expected a ValueHistogram, found int"),
    ],
)
def test_other_histograms_are_not_added(other, error, message):
    with pytest.raises(error, match=f"other: .*{message}"):
        value_histogram(torch.zeros(1)) + other


# --- NaN and infinity


@pytest.mark.parametrize("fault", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nonfinite_values(place, dtype, fault):
    clean = drawn(40, 12, dtype=dtype)
    x = clean.clone()
    x[7, 2] = x[7, 3] = x[30, 0] = fault
    there = x.to(place.device)
    for options in ({}, {"bits": 9}, {"by_channel": True}, {"pool": True}):
        message = r"features: .*found 3 NaN or infinite.*, the first at \[7, 2\] \(nonfinite='skip'"
        with pytest.raises(ValueError, match=message):
            value_histogram(there, check=True, **options)
    found = value_histogram(there, nonfinite="skip")
    check(x, found, 16)
    assert torch.equal(found.counts, value_histogram(there, check=False).counts)
    assert found.total == 40 * 12 - 3


def test_nonfinite_values_in_other_layouts(place):
    x = drawn(6, 5, 3, 4)
    x[4, 1, 2, 3], x[5, 0, 0, 0] = math.inf, math.nan
    for look in (lambda t: t, lambda t: t.to(memory_format=torch.channels_last)):
        y = look(x.to(place.device))
        for options in ({}, {"by_channel": True}):
            with pytest.raises(ValueError, match=r"found 2 .* first at \[4, 1, 2, 3\] "):
                value_histogram(y, check=True, **options)
        with pytest.raises(ValueError, match=r"found 2 .* first at \[4, 1\] "):
            value_histogram(y, pool=True, check=True)
    tokens = x.flatten(2).transpose(1, 2).to(place.device)  # [6, 12, 5]
    for y in (tokens, tokens.contiguous()):
        for options in ({}, {"by_channel": True}):
            with pytest.raises(ValueError, match=r"found 2 .* first at \[4, 11, 1\] "):
                value_histogram(y, check=True, **options)
    single = torch.tensor(math.nan, device=place.device)
    with pytest.raises(ValueError, match=r"found 1 .* first at \[\] "):
        value_histogram(single, check=True)


def test_the_first_of_many_nonfinite_values():
    """With tables on the CPU, whose threads take chunks in any order."""
    x = drawn(2**20).repeat(3)
    x[[2**21 + 5, 2**20 - 1, 2**21 + 9]] = math.nan
    with pytest.raises(ValueError, match=rf"found 3 .*first at \[{2**20 - 1}\]"):
        value_histogram(x)


def test_all_values_nonfinite(place):
    found = value_histogram(torch.full((50, 3), math.nan, device=place.device), nonfinite="skip")
    assert not found.counts.any()


# --- Refused


@pytest.mark.parametrize(
    ("features", "options", "error", "message"),
    [
        ("1.0", {}, TypeError, "features: expected .*, found str"),
        (torch.zeros(3).bool(), {}, TypeError, "features: expected float32.*bool"),
        (torch.zeros(3).cfloat(), {}, TypeError, "features: expected a dense .* complex"),
        (torch.zeros(3, 2).to_sparse(), {}, TypeError, "features: .*torch.sparse_coo"),
        (torch.zeros(3, device="meta"), {}, TypeError, "features: .*on cpu or cuda.*meta"),
        (torch.zeros(3), {"pool": True}, ValueError, r"features: expected \[N, D\].*\(3,\)"),
        (torch.zeros(3), {"by_channel": True}, ValueError, r"features: expected \[N, D\]"),
        (torch.zeros(1, 2, 0, 3), {"pool": True}, ValueError, "features: .*one position"),
        (torch.zeros(3), {"bits": 8}, ValueError, "bits: expected 9 <= bits <= 20 .*found 8"),
        (torch.zeros(3), {"bits": 21}, ValueError, "bits: expected 9 <= bits <= 20 .*found 21"),
        (torch.zeros(3).half(), {"bits": 17}, ValueError, "bits: expected 6 <= bits <= 16 .*17"),
        (torch.zeros(3).bfloat16(), {"bits": 8}, ValueError, "bits: expected 9 <= bits <= 16"),
        (torch.zeros(3), {"bits": 16.0}, TypeError, r"bits: expected an integer, found 16\.0"),
        (torch.zeros(3), {"nonfinite": "drop"}, ValueError, "nonfinite: expected one of"),
        (torch.zeros(3), {"check": 1}, TypeError, "check: expected True or False, found 1"),
        (torch.zeros(3, 2), {"pool": None}, TypeError, "pool: expected True or False, found None"),
    ],
)
def test_refused(features, options, error, message):
    with pytest.raises(error, match=message):
        value_histogram(features, **options)


def test_what_the_launcher_refuses(place):
    zeros = torch.zeros(1_000, dtype=torch.int64, device=place.device)
    for sizes, by_channel, bits, message in (
        ((2, 3, 1, 3, 1, 1), False, 16, "x: expected one row of values"),
        ((1, 3, 2, 6, 2, 1), False, 16, "x: expected one row of values"),
        ((2, 3, 4, 24, 8, 2), True, 16, "stride_c: expected 1"),
        ((1, 3, 1, 3, 1, 1), False, 8, "bits: expected the sign"),
        ((1, 3, 1, 3, 1, 1), True, 21, "bits: expected the sign"),
    ):
        view = _backend.extension().Features(zeros, 0, *sizes)
        args = (view, by_channel, bits, zeros, zeros, zeros)
        with pytest.raises(ValueError, match=message):
            _backend.launch("value_histogram", place.device, *args)


# --- Autograd, inference, compilation, plain PyTorch


def test_gradients_do_not_flow(place):
    x = drawn(20, 3).to(place.device).requires_grad_()
    assert not value_histogram(x).counts.requires_grad
    with torch.inference_mode():
        inside = drawn(20, 3).to(place.device)
        check(inside, value_histogram(inside), 16)
    check(inside, value_histogram(inside), 16)


@pytest.mark.parametrize("view", ["matrix", "NHWC", "tokens", "every other line"])
@pytest.mark.parametrize("name", ["value_histogram", "value_histogram_status"])
def test_opcheck(place, name, view):
    shape, look = VIEWS[view]
    x = look(drawn(*shape).to(place.device))
    op = getattr(torch.ops.resque_ext, name).default
    for pool in (False, True):
        for by_channel in (False, True):
            torch.library.opcheck(op, (x, 12, pool, by_channel))


@pytest.mark.parametrize(
    "compiler", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.full)]
)
@pytest.mark.parametrize("view", ["matrix", "NHWC", "tokens"])
def test_compile(compiler, view):
    def histogram(x):
        found = value_histogram(x * 2, pool=True)
        return found, found.counts.cumsum(0)

    torch.compiler.reset()
    shape, look = VIEWS[view]
    compiled = torch.compile(histogram, backend=compiler, fullgraph=True)
    for n in (shape[0], 60):  # the second time with other sizes
        x = look(drawn(n, *shape[1:]))
        (found, sums), (expected, _) = compiled(x), histogram(x)
        assert isinstance(found, ValueHistogram)
        assert torch.equal(found.counts, expected.counts)
        assert torch.equal(sums, expected.counts.cumsum(0))
        assert found[1:] == expected[1:]
    x[1] = math.nan
    with pytest.raises(ValueError, match=r"first at \[1, 0\]"):
        compiled(x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_torch_backend(place, dtype):
    x = patterns(6 * 5 * 4 * 3, dtype).view(6, 5, 4, 3).to(place.device)
    clean = drawn(6, 5, 4, 3, dtype=dtype).to(place.device)
    for values in (x, clean, clean.to(memory_format=torch.channels_last), clean[:0]):
        for by_channel in (False, True):
            native = torch.ops.resque_ext.value_histogram_status(values, 16, False, by_channel)
            with resque_ext.backend("torch"):
                plain = torch.ops.resque_ext.value_histogram_status(values, 16, False, by_channel)
            assert torch.equal(native[0], plain[0])
            assert torch.equal(native[1], plain[1])


def test_counts_are_added_to_what_is_there(place):
    x = drawn(50, 3).to(place.device)
    for name in ("native", "torch"):
        for by_channel, shape in ((False, (2**12,)), (True, (3, 2**12))):
            counts = torch.full(shape, 7, dtype=torch.int64, device=place.device)
            with resque_ext.backend(name):
                values = module.Values.of(x, False, by_channel)
                found, _ = values.count(12, by_channel, counts)
            fresh = value_histogram(x, bits=12, by_channel=by_channel).counts
            assert found.data_ptr() == counts.data_ptr()
            assert torch.equal(counts, fresh + 7)


# --- On a GPU alone


@pytest.fixture
def on_cuda():
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    if not hasattr(_backend.extension(), "cuda"):
        pytest.skip("resque_ext was built without CUDA kernels")
    x = drawn(50_000, 32)
    return x.cuda(), value_histogram(x)


def test_unchecked_cuda_calls_do_not_wait(on_cuda):
    x, expected = on_cuda
    x[3, 4] = math.nan
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = value_histogram(x)
        value_histogram(x.view(-1, 8, 2, 2), pool=True, nonfinite="skip")
        value_histogram(x[:100], by_channel=True)
        with pytest.raises(RuntimeError, match="synchroniz"):
            value_histogram(x, check=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found.total == expected.total - 1
    with pytest.raises(ValueError, match=r"found 1 .*first at \[3, 4\]"):
        value_histogram(x, check=True)


def test_a_side_stream_and_a_cuda_graph(on_cuda):
    x, expected = on_cuda
    stream, slow = torch.cuda.Stream(), torch.zeros_like(x)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # on another stream the zeros would be read
        slow.copy_(x)
        found = value_histogram(slow)
    stream.synchronize()
    assert torch.equal(found.counts.cpu(), expected.counts)
    still, graph = torch.zeros_like(x), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = value_histogram(still)
    still.copy_(x)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(found.counts.cpu(), expected.counts)


def test_more_values_than_one_launch_counts(on_cuda):
    n = 2**31 + 13
    if torch.cuda.mem_get_info()[0] < 6 << 30:
        pytest.skip("needs 6 GB of GPU memory")
    x = torch.zeros(n, dtype=torch.bfloat16, device="cuda")
    x[0], x[-1] = 1, -2
    values, counts, _ = value_histogram(x, check=True).points()
    assert dict(zip(values.tolist(), counts.tolist(), strict=True)) == {-2: 1, 0: n - 2, 1: 1}
