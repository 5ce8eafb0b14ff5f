"""pair_counts, cell by cell, against rows counted one by one."""

import importlib
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import resque_ext
from resque_ext.ops import backend as _backend
from resque_ext.ops import pair_counts

ops = importlib.import_module("resque_ext.ops.pair_counts")  # in `ops`, its name is the function's

SHARED_CELLS = 12_288  # the CUDA kernel's tables in shared memory have so many at most
IN_EVERY_ORDER = [f"cuda_on_cpu:{order}" for order in ("forward", "reverse", "random")]
DTYPES = [(np.int64, np.int64), (np.int32, np.int32), (np.int32, np.int64), (np.int64, np.int32)]


def drawn(n, classes, seed=0):
    return np.random.default_rng(seed).integers(0, classes, n)


def counted(a, b, shape):
    """Row by row; rows with a label that has no place are left out."""
    table = np.zeros(shape, np.int64)
    for i, j in zip(a.tolist(), b.tolist(), strict=True):
        if 0 <= i < shape[0] and 0 <= j < shape[1]:
            table[i, j] += 1
    return table


def check(place, a, b, num_a, num_b, **options):
    x, y = (torch.as_tensor(labels).to(place.device) for labels in (a, b))
    found = pair_counts(x, y, num_a, num_b, **options)
    assert found.dtype == torch.int64
    np.testing.assert_array_equal(
        found.cpu(), counted(x.cpu().numpy(), y.cpu().numpy(), (num_a, num_b))
    )


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("num_a", [1, 2, 7, 96, 130])
@pytest.mark.parametrize("num_b", [1, 3, 128, 129])
def test_tables(place, num_a, num_b, dtypes):
    assert SHARED_CELLS == 96 * 128
    a, b = drawn(3_000, num_a).astype(dtypes[0]), drawn(3_000, num_b, 1).astype(dtypes[1])
    check(place, a, b, num_a, num_b)


# The CPU counts in private tables from 16,384 rows on where there are 16 rows a cell.
@pytest.mark.parametrize("n", [0, 1, 4_095, 4_096, 4_097, 16_383, 16_384, 40_000])
@pytest.mark.parametrize("classes", [3, 60, 300])
def test_rows(place, n, classes):
    check(place, drawn(n, classes), drawn(n, classes, 1), classes, classes)


@pytest.mark.parametrize("classes", [2, 33, 400])
def test_equal_labels_side_by_side(place, classes):
    """All of a warp in one cell, and the threads of the CPU in one cell as well."""
    a = np.sort(drawn(20_000, classes))
    for b in (a, a[::-1].copy(), np.zeros_like(a), drawn(20_000, classes)):
        check(place, a, b, classes, classes)
    check(place, np.full(20_000, classes - 1), np.full(20_000, classes - 1), classes, classes)


@pytest.mark.parametrize("place", IN_EVERY_ORDER, indirect=True)
@pytest.mark.parametrize("classes", [5, 120])
def test_every_order_of_threads(place, classes):
    check(place, drawn(9_000, classes), drawn(9_000, classes, 1), classes, classes)


@pytest.mark.parametrize("step", [2, 3])
@pytest.mark.parametrize("classes", [4, 200])
def test_strided_labels(place, step, classes):
    x, y = (torch.tensor(drawn(6_000, classes, seed)).to(place.device) for seed in (0, 1))
    check(place, x[::step], y[: len(x[::step])], classes, classes)
    check(place, x[:2_000], y[1::step][:2_000], classes, classes)
    check(place, x[:1].expand(6_000), y, classes, classes)


def test_few_rows_of_a_large_table(place):
    check(place, np.array([0, 2_999, 2_999, 7]), np.array([999, 0, 0, 5]), 3_000, 1_000)


def test_threads_of_the_cpu():
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            for classes in (2, 3, 60, 1_500):  # private tables, and one table for all
                a, b = (drawn(200_000, classes, seed) for seed in (1, 2))
                found = pair_counts(a, b, classes, classes)
                expected = np.bincount(a * classes + b, minlength=classes * classes)
                np.testing.assert_array_equal(found.flatten(), expected)
    finally:
        torch.set_num_threads(before)


def test_sizes_are_inferred(place):
    a, b = np.array([0, 4, 1]), np.array([2, 0, 0])
    x, y = (torch.tensor(labels).to(place.device) for labels in (a, b))
    np.testing.assert_array_equal(pair_counts(x, y).cpu(), counted(a, b, (5, 3)))
    np.testing.assert_array_equal(pair_counts(x, y, num_b=4).cpu(), counted(a, b, (5, 4)))
    assert pair_counts(x[:0], y[:0]).tolist() == [[0]]
    with pytest.raises(ValueError, match="num_b: expected it to be given for labels_b as large as"):
        pair_counts(x, torch.tensor([0, 10**6, 0], device=place.device))


def test_small_labels_of_numpy():
    a, b = drawn(500, 9), drawn(500, 5, 1)
    for kind in (np.uint8, np.int8, np.int16, np.uint32, ">i4"):
        found = pair_counts(a.astype(kind), b.astype(kind), 9, 5)
        np.testing.assert_array_equal(found, counted(a, b, (9, 5)))
    np.testing.assert_array_equal(pair_counts(a[::-1], b[::-1], 9, 5), counted(a, b, (9, 5)))
    a.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of torch, about memory that is read only
        pair_counts(a, b)


def test_more_rows_than_a_call_takes(place, monkeypatch):
    """As for rows beyond 2^31: segments add to one table, positions stay those of all rows."""
    a, b = drawn(5_000, 6), drawn(5_000, 200, 1)
    monkeypatch.setattr(ops, "SEGMENT_ROWS", 700)
    check(place, a, b, 6, 200)
    a[4_300:4_310], b[701] = 6, -2
    x, y = (torch.tensor(labels).to(place.device) for labels in (a, b))
    with pytest.raises(ValueError, match=r"labels_a: .* 0..5, found 6 at position 4300"):
        pair_counts(x, y, 6, 200, check=True)
    with pytest.raises(ValueError, match=r"labels_b: .* 0..199, found -2 at position 701"):
        pair_counts(x, y, 7, 200, check=True)


@pytest.mark.full
def test_more_rows_than_31_bits_can_count():
    """8.6 GB that nobody writes are one page of zeros, read again and again."""
    n = 2**31 + 9
    try:
        a = np.zeros(n, np.int32)
    except MemoryError:
        pytest.skip("needs 8.6 GB of address space")
    a[[0, 2**30, n - 1]] = 1
    table = pair_counts(torch.from_numpy(a), torch.zeros(1, dtype=torch.int64).expand(n), 2, 1)
    assert table.tolist() == [[n - 3], [3]]


# --- What is refused


@pytest.mark.parametrize("classes", [10, 150])
@pytest.mark.parametrize("at", [0, 1, 4_096, 4_999])
@pytest.mark.parametrize("bad", [-1, 150, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_first_bad_label(place, classes, at, bad, dtype):
    a, b = (drawn(5_000, classes, seed).astype(dtype) for seed in (0, 1))
    wrong = a.copy()
    wrong[at] = bad
    wrong[at + 1 :: 700] = -5
    for pair, name in (((wrong, b), "labels_a"), ((b, wrong), "labels_b"), ((wrong, wrong), "_a")):
        x, y = (torch.tensor(labels).to(place.device) for labels in pair)
        with pytest.raises(
            ValueError, match=rf"{name}: .* 0..{classes - 1}, found {bad} at position {at}"
        ):
            pair_counts(x, y, classes, classes, check=True)
        check(place, x, y, classes, classes, check=False)


@pytest.mark.parametrize("bad", [2**32, 2**32 + 3, -(2**63), 2**63 - 1, -(2**32) + 2])
def test_labels_that_fit_once_cut_to_32_bits(place, bad):
    for classes in (5, 200):
        a, b = np.array([1, 3, bad, 0]), np.array([1, 3, 2, 0])
        check(place, a, b, classes, classes, check=False)
        check(place, b, a, classes, classes, check=False)


ONES = torch.ones(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("a", "b", "error", "message"),
    [
        (ONES.float(), ONES, TypeError, "labels_a: expected int32 or int64 class indices"),
        (ONES, ONES.bool(), TypeError, "labels_b: expected int32 or int64 class indices"),
        (ONES, {1}, TypeError, "labels_b: expected a torch.Tensor or numpy.ndarray"),
        (ONES[None], ONES, ValueError, r"labels_a: expected shape \[N\]"),
        (ONES, torch.ones(4).long(), ValueError, r"labels_a, labels_b: .*\(3,\).*\(4,\)"),
        (ONES, torch.ones(3, device="meta").long(), TypeError, "labels_b: .*on cpu or cuda"),
        (ONES.to_sparse(), ONES, TypeError, "labels_a: expected a dense real tensor"),
    ],
)
def test_refused_labels(a, b, error, message):
    with pytest.raises(error, match=message):
        pair_counts(a, b, 2, 2)


@pytest.mark.parametrize(
    ("sizes", "error", "message"),
    [
        ((0, 2), ValueError, "num_a: expected 1 <= num_a"),
        ((2, -1), ValueError, "num_b: expected 1 <= num_b"),
        ((2.0, 2), TypeError, "num_a: expected an integer"),
        ((2, True), TypeError, "num_b: expected an integer"),
        ((2**16, 2**15), ValueError, r"num_a \* num_b < 2\^31 cells, found 65536 \* 32768"),
    ],
)
def test_refused_sizes(sizes, error, message):
    with pytest.raises(error, match=message):
        pair_counts(ONES, ONES, *sizes)


def test_refused_check():
    with pytest.raises(TypeError, match="check: expected True, False or None, found 1"):
        pair_counts(ONES, ONES, 2, 2, check=1)


def test_sizes_that_the_launcher_refuses(place):
    zeros = torch.zeros(64, dtype=torch.int64, device=place.device)
    for n, a, b, message in (
        (2**31, 1, 1, "n: "),
        (1, 0, 1, "count_a: "),
        (1, 1, 2**31, "count_b"),
    ):
        args = (zeros, True, 1, zeros, True, 1, n, a, b, zeros, zeros, zeros, zeros)
        with pytest.raises(ValueError, match=message):
            _backend.launch("pair_counts", place.device, *args)


# --- Compilation, plain PyTorch


@pytest.mark.parametrize("name", ["pair_counts", "pair_counts_status"])
def test_opcheck(place, name):
    x = torch.tensor(drawn(80, 5)).to(place.device)
    for a, b in ((x, x.int()), (x[::2], x[1::2]), (x[:0], x[:0])):
        torch.library.opcheck(getattr(torch.ops.resque_ext, name).default, (a, b, 5, 6))


@pytest.mark.parametrize(
    "compiler", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.full)]
)
def test_compile(compiler):
    def shares(a, b):
        table = pair_counts(a, b * 2, 5, 7)
        return table / table.sum()

    torch.compiler.reset()
    compiled = torch.compile(shares, backend=compiler, fullgraph=True)
    for n in (90, 70):
        a, b = torch.tensor(drawn(n, 5)), torch.tensor(drawn(n, 4, 1))
        assert torch.equal(compiled(a, b), shares(a, b))
    a[3] = 9
    with pytest.raises(ValueError, match=r"labels_a: .* found 9 at position 3"):
        compiled(a, b)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # a place has no state
)
@given(data=st.data())
def test_torch_backend_on_any_labels(place, data):
    num_a, num_b = data.draw(st.integers(1, 150)), data.draw(st.integers(1, 150))
    n = data.draw(st.integers(0, 80))
    labels = [
        data.draw(st.lists(st.integers(-1, k) | st.just(0), min_size=n, max_size=n))
        for k in (num_a, num_b)
    ]
    a, b = (torch.tensor(x, dtype=torch.int64).to(place.device) for x in labels)
    native = torch.ops.resque_ext.pair_counts_status(a, b, num_a, num_b)
    with resque_ext.backend("torch"):
        plain = torch.ops.resque_ext.pair_counts_status(a, b, num_a, num_b)
    for part, same in zip(native, plain, strict=True):
        assert torch.equal(part, same)
    expected = counted(np.array(labels[0]), np.array(labels[1]), (num_a, num_b))
    np.testing.assert_array_equal(plain[0].cpu(), expected)
