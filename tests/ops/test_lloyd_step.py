"""lloyd_step against NumPy's float64: labels, sums and distances for every layout and value."""

import importlib
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import oracles_kmeans
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import resque_ext
from resque_ext.ops import backend as _backend
from resque_ext.ops import lloyd_step

ops = importlib.import_module("resque_ext.ops.lloyd_step")  # in `ops`, its name is the function's

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
    x, c = x.detach(), c.detach()
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


# --- Sizes


@pytest.mark.parametrize(
    ("n", "width", "k"),
    [
        *[(1, 1, 1), (2, 3, 9), (50, 3, 10_000), (5, 32_768, 3), (4, 70_000, 2), (33, 257, 13)],
        *[(300, 600, 25), (3_000, 2, 12), (1_500, 1, 4)],
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_sizes(place, n, width, k, dtype):
    if place.name == "cuda_on_cpu":
        n, width, k = min(n, 140), min(width, 1_300), min(k, 600)  # seconds, and the same paths
    check(place, drawn(n, width, dtype=dtype), drawn(k, width, seed=1))


@pytest.mark.parametrize(
    ("n", "width", "k"),
    # The sums in a slot for each window of rows, and by a second pass over the grouped rows.
    [(9_000, 24, 7), (1_500, 512, 100)],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_both_ways_to_the_sums(n, width, k, dtype):
    x, c = drawn(n, width, dtype=dtype), drawn(k, width, seed=1)
    labels, inertia, sums, counts = lloyd_step(x, c)
    plain = torch.zeros(k, width, dtype=torch.float64).index_add_(0, labels, x.double())
    torch.testing.assert_close(sums, plain, rtol=0, atol=1e-10)
    assert torch.equal(counts, torch.bincount(labels, minlength=k))
    each = torch.cdist(x.double(), c.double(), compute_mode="donot_use_mm_for_euclid_dist")
    assert torch.equal(labels, each.argmin(1))
    torch.testing.assert_close(inertia, each.amin(1).square().sum(), rtol=EXACT, atol=0)


@pytest.mark.full
def test_more_elements_than_32_bits_can_count():
    """4.3 GB that nobody writes are one page of zeros, read again and again."""
    width, n = 1024, 2**21 + 9
    try:
        memory = np.zeros((n, width), np.float16)
    except MemoryError:
        pytest.skip("needs 4.3 GB of address space")
    memory[[0, n - 1], -1] = 2, 3
    centers = np.zeros((2, width))
    centers[1, -1] = 2
    labels, inertia, sums, counts = lloyd_step(memory, centers)
    assert labels[[0, 1, n - 2, n - 1]].tolist() == [1, 0, 0, 1]
    assert (counts.tolist(), inertia.item()) == ([n - 2, 2], 1)
    assert sums[:, -1].tolist() == [0, 5]
    memory[-1, -1] = np.inf
    with pytest.raises(ValueError, match=f"found 1 .* the first at row {n - 1}, column 1023$"):
        lloyd_step(memory, centers)


MEMORY = """
import torch, resque_ext
def read(name):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(l for l in lines if l.startswith(name)).split()[1]) * 1024
x, c = torch.ones(200_000, 256), torch.randn(100, 256)
x[:, 0] = torch.arange(len(x)) % 100
resque_ext.ops.lloyd_step(x[:5000], c)
before = read("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
found = resque_ext.ops.lloyd_step(x, c)
print((read("VmHWM") - before) / x.nbytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's count of a process's memory")
@pytest.mark.full
def test_memory():
    """All that a call takes, its results included, is a tenth of the features at most."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True)
    assert 0.005 < float(done.stdout) <= 0.1, done.stderr


# --- Values


def float32_labels(x, c):
    """What a product in float32 makes of it."""
    x, c = x.float().numpy(), c.float().numpy()
    return (np.square(c).sum(1) / 2 - x @ c.T).argmin(1)


@pytest.mark.parametrize("offset", [0, 1e3, 1e6])
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("width", [2, 40, 700])
def test_near_ties(place, width, dtype, offset):
    """Rows almost halfway between two centres: nothing but the recheck gets their labels right."""
    rng = np.random.default_rng(width)
    n = 300 if place.name != "cuda_on_cpu" else 100
    away = rng.standard_normal(width)
    middle = rng.standard_normal((n, width))
    middle -= (middle @ away / (away @ away))[:, None] * away
    middle += rng.standard_normal((n, 1)) * 1e-8 * away
    x = torch.tensor(middle + offset).to(dtype)
    c = torch.tensor(np.stack([away, -away, 9 * away, -9 * away]) + offset)
    if dtype == torch.float64:  # and for its product: nearer still
        c[1] = 2 * x[0] - c[0]
        x[: n // 2] = (
            x[0] + torch.tensor(rng.integers(-2, 3, (n // 2, width))) * x[0].abs() * 2**-52
        )
    found = check(place, x, c)
    assert (float32_labels(x, c) != found.labels.cpu().numpy()).any()
    rechecked = torch.ops.resque_ext.lloyd_step_status(x.to(place.device), c.to(place.device))[5]
    assert rechecked > 0 or offset == 1e6  # float32 rounds the rows themselves, far from a tie


def test_the_product_alone_decides_nearly_all():
    """Else the fast path would be none, and every test of it one of the recheck."""
    for dtype in DTYPES:
        for x, c in (
            (drawn(4_000, 96, dtype=dtype), drawn(30, 96, seed=1)),
            (drawn(4_000, 96, dtype=dtype) + 100, drawn(30, 96, seed=1) + 100),
            (drawn(400, 3_000, dtype=dtype), drawn(30, 3_000, seed=1)),
        ):
            rechecked = torch.ops.resque_ext.lloyd_step_status(x, c)[5]
            assert rechecked <= len(x) / 50
    c[3] = 1e6  # one centre that has gone astray
    assert torch.ops.resque_ext.lloyd_step_status(x, c)[5] <= len(x) / 50


EXTREMES = {
    torch.float32: [1e30, -3e38, 1e-45, 1e-38, -1e-39, 3e-20, 1e19],
    torch.float64: [1e200, -1.7e308, 5e-324, 1e-308, 1e-160, 1e30],
    torch.float16: [65504, -65504, 6e-8, 6e-5, -3e-6, 60000],
    torch.bfloat16: [1e30, -3e38, 1e-40, 1e-38, 3e-20, 1e19],
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1, 1e-3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_extreme_values(place, dtype, scale, backend):
    """Squares beyond float32, sums beyond float16, denormals; in rows, in centres and in both."""
    rng = np.random.default_rng(7)
    values = torch.tensor(EXTREMES[dtype], dtype=torch.float64)
    x = values[torch.tensor(rng.integers(0, len(values), (60, 9)))]
    x[::3] *= torch.tensor(rng.standard_normal((20, 9)))
    x[::7] = drawn(9, 9)
    x = x.clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max).to(dtype)
    c = torch.cat([x[5:15].double() * scale, drawn(3, 9, seed=1).double(), x[5:7].double()])
    with resque_ext.backend(backend):
        check(place, x, c)
        tiny = (x.abs() < 1e-30).all(1)
        check(place, torch.where(x.abs() < 1e-30, x, 0), torch.where(c.abs() < 1e-30, c, 0))
        check(place, x[~tiny], drawn(4, 9, seed=2))
        check(place, drawn(20, 9, dtype=dtype), c)


@with_place
@given(
    n=st.integers(0, 50),
    width=st.integers(1, 40),
    k=st.integers(1, 30),
    spread=st.integers(-40, 40),
    offset=st.sampled_from([0, 1, -1000, 1e6]),
    grain=st.sampled_from([2, 2**9, 2**30]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 999),
)
def test_any_values(place, n, width, k, spread, offset, grain, dtype, seed):
    """Coarse grids, where ties abound, and fine ones; far from zero; duplicate rows, columns."""
    rng = np.random.default_rng(seed)
    scale = 2.0 ** (spread if dtype != torch.float16 else spread // 8)
    pool = (rng.integers(-grain, grain + 1, (n + k, width)) / grain * scale + offset).clip(
        -6e4, 6e4
    )
    pool[:, rng.random(width) < 0.2] = min(offset, 6e4)  # what float16 holds
    pool = torch.tensor(pool).to(dtype)
    x, c = pool[:n], pool[n:].double()
    c[torch.tensor(rng.random(k) < 0.3)] = c[0].clone()
    if n:
        c[-1] = x[0].double()
    check(place, x, c)


def test_duplicate_centers_go_to_the_first(place):
    x, c = drawn(200, 30), drawn(5, 30, seed=1)
    found = check(place, x, torch.cat([c, c, c]))
    assert found.labels.max() < 5
    assert found.counts[5:].tolist() == [0] * 10
    found = check(place, torch.ones(9, 4), torch.ones(3, 4))
    assert (found.labels.tolist(), found.inertia.item()) == ([0] * 9, 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_centers_of_any_kind(place, dtype):
    x, c = drawn(50, 12), drawn(24, 24, seed=1).to(dtype)
    for centers in (c[:6, :12], c[::4, ::2], c[:12, :6].t(), c[:1, :12].expand(6, 12)):
        check(place, x, centers)
    by_numpy = lloyd_step(x.numpy(), c[:6, :12].numpy()) if place.name != "cuda" else None
    if by_numpy:
        assert torch.equal(by_numpy.labels, lloyd_step(x, c[:6, :12]).labels)


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


# --- The same bits


@pytest.mark.parametrize(
    ("n", "width", "k", "dtype"),
    [
        *[(30_000, 48, 6, torch.float32), (30_000, 33, 40, torch.bfloat16)],
        *[(3_000, 300, 200, torch.float32), (300, 5_000, 30, torch.float64)],
    ],
)
def test_bits_do_not_depend_on_threads(n, width, k, dtype):
    x, c = drawn(n, width, dtype=dtype), drawn(k, width, seed=1)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 5, 1):
            torch.set_num_threads(threads)
            found.append(torch.ops.resque_ext.lloyd_step_status(x, c, True, True))
    finally:
        torch.set_num_threads(before)
    for again in found[1:]:
        for part, first in zip(again, found[0], strict=True):
            assert part.numpy().tobytes() == first.numpy().tobytes()


def test_bits_do_not_depend_on_the_run(place):
    n = 20_000 if place.name != "cuda_on_cpu" else 2_000
    x, c = drawn(n, 17).to(place.device), drawn(9, 17, seed=1).to(place.device)
    first = lloyd_step(x, c)
    for _ in range(4):
        for part, same in zip(lloyd_step(x, c), first, strict=True):
            assert torch.equal(part, same)


@pytest.mark.parametrize("place", ["cpu:baseline", "cpu:avx2", "cpu:avx512"], indirect=True)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_other_instruction_sets(place, dtype):
    for n, width, k in ((70, 21, 5), (40, 300, 14), (9, 3, 40), (300, 64, 100)):
        check(place, drawn(n, width, dtype=dtype), drawn(k, width, seed=1))
        ties = torch.arange(n * width).view(n, width) % 3
        check(place, ties.to(dtype), drawn(k, width, seed=1).round())


# --- Segments: more rows than one call of the extension takes


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [9, 50, 99, 100])
def test_segments(place, monkeypatch, rows, backend):
    monkeypatch.setattr(ops, "SEGMENT_ROWS", rows)
    x, c = drawn(100, 5), drawn(4, 5, seed=1)
    with resque_ext.backend(backend):
        check(place, x, c)
        x[[40, 73, 99], [3, 1, 4]] = math.nan
        with pytest.raises(ValueError, match=r"found 3 .* 3 rows, the first at row 40, column 3$"):
            lloyd_step(x.to(place.device), c.to(place.device), check=True)


# --- Refused


@pytest.mark.parametrize(
    ("features", "centers", "error", "message"),
    [
        ({1.0}, None, TypeError, "features: expected a torch.Tensor .* set"),
        (torch.zeros(3, 2).bool(), None, TypeError, "features: expected float32"),
        (torch.zeros(3, 2).cfloat(), None, TypeError, "features: expected a dense .* complex"),
        (torch.zeros(3, 2).to_sparse(), None, TypeError, "features: .*torch.sparse_coo"),
        (torch.zeros(3, 2, device="meta"), None, TypeError, "features: .*on cpu or cuda.*meta"),
        (torch.zeros(3), None, ValueError, r"features: expected \[N, D\], found shape \(3,\)"),
        (torch.zeros(3, 2, 1), None, ValueError, r"features: expected \[N, D\].*\(3, 2, 1\)"),
        (None, {1.0, 2.0}, TypeError, "centers: expected a torch.Tensor .* set"),
        (None, torch.zeros(4, 2).bool(), TypeError, "centers: expected float32.*bool"),
        (None, torch.zeros(2), ValueError, r"centers: expected \[K, D\], found shape \(2,\)"),
        (None, torch.zeros(4, 3), ValueError, r"one width, found features .*\(3, 2\).*\(4, 3\)"),
        (None, torch.zeros(0, 2), ValueError, "centers: expected at least one centre"),
        (None, np.full((1, 2), np.nan), ValueError, "centers: expected finite values, found 2 NaN"),
        (None, None, TypeError, "check: expected True, False or None, found 1"),
    ],
)
def test_refused(features, centers, error, message):
    x = torch.zeros(3, 2) if features is None else features
    c = torch.zeros(4, 2) if centers is None else centers
    with pytest.raises(error, match=message):
        lloyd_step(x, c, check=1 if "check" in message else None)


def test_refused_by_the_launcher(place):
    zeros = torch.zeros(1_000, dtype=torch.int64, device=place.device)
    for sizes, k, message in (
        ((2, 3, 4, 12, 1, 3), 1, "positions: expected 1, found 4"),
        ((2, 3, 1, 6, 2, 1), 1, "stride_c: expected 1"),
        ((2, 3, 1, 3, 1, 1), 0, "k: expected 1 <= k"),
    ):
        args = (_backend.extension().Features(zeros, 0, *sizes), zeros, k, *[zeros] * 8)
        with pytest.raises(ValueError, match=message):
            _backend.launch("lloyd_step", place.device, *args)


# --- Autograd, compilation


def test_gradients_do_not_flow(place):
    x, c = drawn(20, 3).requires_grad_(), drawn(2, 3, seed=1).requires_grad_()
    assert not any(part.requires_grad for part in check(place, x, c))
    with torch.inference_mode():
        check(place, drawn(20, 3), drawn(2, 3))


@pytest.mark.parametrize("view", ["matrix", "every other column", "one row again and again"])
def test_opcheck(place, view):
    shape, look = VIEWS[view]
    x, c = look(drawn(*shape)).to(place.device), drawn(4, 12, seed=1).to(place.device)
    for op, options in (
        (torch.ops.resque_ext.lloyd_step.default, {"check": True}),
        (torch.ops.resque_ext.lloyd_step_status.default, {"distances": True}),
        (torch.ops.resque_ext.lloyd_step_status.default, {"update": False}),
    ):
        torch.library.opcheck(op, (x, c), options)


@pytest.mark.parametrize(
    "compiler", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.full)]
)
def test_compile(compiler):
    def step(x, c):
        labels, inertia, sums, counts = lloyd_step(x * 2, c)
        return labels, inertia, sums / counts[:, None]

    torch.compiler.reset()
    compiled = torch.compile(step, backend=compiler, fullgraph=True)
    for n in (40, 61):  # the second time with other sizes
        x, c = drawn(n, 6), drawn(3, 6, seed=1)
        for found, expected in zip(compiled(x, c), step(x, c), strict=True):
            torch.testing.assert_close(found, expected, rtol=EXACT, atol=EXACT)
    x[3, 1] = math.inf
    with pytest.raises(ValueError, match=r"found 1 .* row 3, column 1$"):
        compiled(x, c)
