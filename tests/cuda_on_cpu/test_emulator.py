"""The emulator computes what CUDA would, in every order of threads, and faults are caught."""

import ctypes
import sys
from pathlib import Path

import numpy as np
import pytest

from cuda_on_cpu.barriers import VARIABLE, count_barriers, switch_barriers
from cuda_on_cpu.build import build_module, run, unavailable

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

PLANTED = Path(__file__).parent / "planted"
ORDERS = {"forward": (0, 0), "reverse": (1, 0), "random": (2, 7)}


def load(path):
    library = ctypes.CDLL(str(path))
    library.cuda_on_cpu_set_order.argtypes = [ctypes.c_int, ctypes.c_uint64]
    library.cuda_on_cpu_last_fault.restype = ctypes.c_char_p
    return library


def call(function, *arguments):
    """Arrays go as pointers, integers as 64 bits, which a narrower parameter takes as well."""
    return function(
        *(
            ctypes.c_void_p(a.ctypes.data) if isinstance(a, np.ndarray) else ctypes.c_int64(a)
            for a in arguments
        )
    )


@pytest.fixture(scope="module", params=[(), ("CUDA_ON_CPU_UCONTEXT",)], ids=["own", "ucontext"])
def compute_library(request):
    return load(build_module([PLANTED / "compute.cu"], "compute.so", defines=request.param))


@pytest.fixture(params=ORDERS)
def compute(compute_library, request):
    compute_library.cuda_on_cpu_set_order(*ORDERS[request.param])
    return compute_library


@pytest.fixture(scope="module")
def stuck():
    return load(build_module([PLANTED / "stuck.cu"], "stuck.so"))


# --- Right results


def test_block_sums(compute):
    x = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    sums = np.full(9, np.nan)
    assert call(compute.run_sum_blocks, x, x.size, sums.size, sums) == 0
    padded = np.pad(x, (0, -x.size % (9 * 128))).astype(np.float64).reshape(-1, 9, 128)
    np.testing.assert_allclose(sums, padded.sum((0, 2)), rtol=1e-12, atol=1e-12)


def test_last_block_adds_up(compute):
    x = np.random.default_rng(1).standard_normal(5_000).astype(np.float32)
    sums, finished, total = np.zeros(20), np.zeros(1, np.uint32), np.zeros(1)
    assert call(compute.run_sum_all, x, x.size, sums.size, sums, finished, total) == 0
    np.testing.assert_allclose(total[0], x.sum(dtype=np.float64), rtol=1e-12)
    assert finished[0] == 0


def test_three_dimensional_grid_and_block(compute):
    out = np.full(3 * 2 * 5 * 4 * 7 * 3, -1)
    assert call(compute.run_number_threads, out) == 0
    np.testing.assert_array_equal(out, np.arange(out.size))


def test_matching_lanes(compute):
    keys = np.random.default_rng(2).integers(0, 5, 4 * 96).astype(np.int32)
    counts, ranks = np.zeros(5, np.uint32), np.full(keys.size, -1, np.int32)
    assert call(compute.run_count_keys, keys, 4, counts, ranks) == 0
    np.testing.assert_array_equal(counts, np.bincount(keys))
    warps = keys.reshape(-1, 32)
    expected = [[np.sum(warp[:i] == warp[i]) for i in range(32)] for warp in warps]
    np.testing.assert_array_equal(ranks.reshape(-1, 32), expected)


def test_divergent_subsets(compute):
    x = np.arange(64, dtype=np.int32) ** 2
    out = np.zeros_like(x)
    assert call(compute.run_sum_subsets, x, out) == 0
    for warp in range(2):
        values, results = x[32 * warp :][:32], out[32 * warp :][:32]
        for subset in range(3):
            # Each round after the first multiplies the sum by the number of lanes.
            lanes = len(values[subset::3])
            expected = values[subset::3].sum() * lanes**subset
            if subset == 1:
                expected += 32 * warp + 31
            assert (results[subset::3] == np.int64(expected).astype(np.int32)).all()


@pytest.mark.parametrize("width", [8, 16, 32])
@pytest.mark.parametrize(("name", "dtype"), [("float", "f4"), ("double", "f8"), ("int64", "i8")])
def test_shuffles(compute, name, dtype, width):
    x = np.random.default_rng(3).integers(-(2**62), 2**62, 32).astype(dtype)
    for by in (0, 1, 5, 9, 31):
        out = np.zeros((32, 4), dtype)
        assert call(getattr(compute, f"run_shuffle_{name}"), x, by, width, out) == 0
        lane = np.arange(32)
        first, last = lane & -width, lane | (width - 1)
        up, down, across = lane - by, lane + by, lane ^ by
        sources = [
            first + by % width,
            np.where(up >= first, up, lane),
            np.where(down <= last, down, lane),
            np.where(across <= last, across, lane),
        ]
        np.testing.assert_array_equal(out, x[np.stack(sources, axis=1)])


@pytest.mark.parametrize("values", [np.arange(64) % 7 % 3, np.ones(64), np.zeros(64)])
def test_votes(compute, values):
    x = values.astype(np.int32)
    out = np.zeros((64, 10), np.int32)
    assert call(compute.run_vote, x, out) == 0
    for warp in range(2):
        mine = x[32 * warp :][:32]
        ballot = sum(1 << lane for lane in range(32) if mine[lane])
        expected = [
            np.uint32(ballot).view(np.int32),
            *(mine.any(), mine.all(), (mine == mine[0]).all()),
            *(mine.min(), mine.max(), np.bitwise_xor.reduce(mine)),
            *((x != 0).sum(), x.any(), x.all()),
        ]
        np.testing.assert_array_equal(out[32 * warp :][:32], np.tile(expected, (32, 1)))


def test_atomics(compute):
    exact = ["add", "lowest", "highest", "or", "and", "xor", "wrapped"]
    types = dict.fromkeys(exact, "u4") | dict.fromkeys(exact[:3], "i4")
    types |= {"sum32": "f4", "sum64": "f8", "wide": "u8", "wide_max": "u8", "spun": "u8"}
    totals = np.zeros(1, np.dtype(list(types.items()), align=True))
    totals["and"] = 0xFFFFFFFF
    assert call(compute.run_accumulate, totals) == 0
    n = 5 * 48
    last = n - 1
    xor = np.bitwise_xor.reduce(np.arange(n))
    words = [n * last // 2, -last, last, 0xFFFFFFFF, 0xFFFF0000, xor, n % 10]
    assert list(totals[0]) == [*words, 0.5 * n, 0.25 * n, n << 40, last << 33, 2 * n]


def test_memory_that_nobody_wrote_is_nan(compute):
    out = np.zeros(2, np.float32)
    assert call(compute.run_read_stale, out) == 0
    assert np.isnan(out).all()


def bits_of_halves(x):
    """To bfloat16 and half, rounded to nearest, ties to even; NaN becomes 0x7fff as in CUDA."""
    bits = x.view(np.uint32).astype(np.uint64)
    bfloat16 = ((bits + 0x7FFF + (bits >> np.uint64(16) & np.uint64(1))) >> np.uint64(16)).astype(
        np.uint16
    )
    with np.errstate(over="ignore"):
        half = x.astype(np.float16).view(np.uint16)
    return np.where(np.isnan(x), 0x7FFF, bfloat16), np.where(np.isnan(x), 0x7FFF, half)


def test_every_half_and_bfloat16_there_and_back(compute):
    bits = np.arange(1 << 16, dtype=np.uint16)
    half, bfloat16 = np.zeros((2, bits.size), np.float32)
    assert call(compute.run_widen, bits, half, bfloat16) == 0
    np.testing.assert_array_equal(half, bits.view(np.float16).astype(np.float32))
    # A bfloat16 NaN keeps its payload, a half NaN does not.
    np.testing.assert_array_equal(bfloat16.view(np.uint32), bits.astype(np.uint32) << 16)
    assert (half.view(np.uint32)[np.isnan(half)] == 0x7FFFFFFF).all()
    for wide, column in ((half, 1), (bfloat16, 0)):
        narrow = np.zeros((2, wide.size), np.uint16)
        assert call(compute.run_narrow, wide, wide.size, narrow[1], narrow[0]) == 0
        np.testing.assert_array_equal(narrow[column], np.where(np.isnan(wide), 0x7FFF, bits))


def test_rounding_to_half_and_bfloat16(compute):
    """Between any two neighbours: the middle, and one float on either side of it."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    half = bits.view(np.float16).astype(np.float32)
    with np.errstate(invalid="ignore"):
        half_middles = (half[:-1] + half[1:]) / 2  # exact: one bit more than a half has
    bfloat16_middles = (bits.astype(np.uint32) << 16 | 0x8000).view(np.float32)
    middles = np.concatenate([half_middles, bfloat16_middles, np.float32([65519.99, 65520, 1e30])])
    steps = np.int32([[-1], [0], [1]])
    x = (middles.view(np.int32) + steps).view(np.float32).ravel()
    narrow = np.zeros((2, x.size), np.uint16)
    assert call(compute.run_narrow, x, x.size, narrow[1], narrow[0]) == 0
    np.testing.assert_array_equal(narrow, bits_of_halves(x))


def test_order_from_the_environment(monkeypatch):
    library = build_module([PLANTED / "compute.cu"], "compute.so")
    load_it = [sys.executable, "-c", f"import ctypes; ctypes.CDLL({str(library)!r})"]
    monkeypatch.setenv("RESQUE_CUDA_ON_CPU_ORDER", "random:3")
    assert run(load_it).returncode == 0
    monkeypatch.setenv("RESQUE_CUDA_ON_CPU_ORDER", "sideways")
    assert "forward, reverse or random:SEED, not sideways" in run(load_it).stderr


# --- Launches that CUDA refuses, and threads that cannot go on

INVALID_VALUE, INVALID_CONFIGURATION, LAUNCH_FAILURE = 1, 9, 719


@pytest.mark.parametrize(
    ("grid_x", "grid_y", "block_x", "block_z", "shared_bytes", "error"),
    [
        (1, 1, 1024, 1, 48 << 10, 0),
        (0, 1, 32, 1, 0, INVALID_CONFIGURATION),
        (1, 65536, 32, 1, 0, INVALID_CONFIGURATION),
        (1, 1, 0, 1, 0, INVALID_CONFIGURATION),
        (1, 1, 1025, 1, 0, INVALID_CONFIGURATION),
        (1, 1, 513, 2, 0, INVALID_CONFIGURATION),
        (1, 1, 1, 65, 0, INVALID_CONFIGURATION),
        (1, 1, 1 << 16, 1 << 16, 0, INVALID_CONFIGURATION),
        (1, 1, 32, 1, (48 << 10) + 1, INVALID_VALUE),
    ],
)
def test_launch_configurations(stuck, grid_x, grid_y, block_x, block_z, shared_bytes, error):
    out = np.zeros(1024, np.int32)
    sizes = (grid_x, grid_y, block_x, block_z, shared_bytes)
    assert call(stuck.run_store, *sizes, out) == error
    assert out.any() == (error == 0)


def test_shared_memory_on_request(stuck):
    out = np.zeros(32, np.int32)
    limit = 227 << 10
    assert call(stuck.run_store_with_shared, limit + 1, 0, out) == INVALID_VALUE
    assert call(stuck.run_store_with_shared, 64 << 10, (64 << 10) + 1, out) == INVALID_VALUE
    assert not out.any()
    assert call(stuck.run_store_with_shared, limit, limit, out) == 0
    assert out[0] == 2


def test_static_and_dynamic_shared_memory_together(stuck):
    out = np.zeros(32, np.int32)
    assert call(stuck.run_take_much_shared, 16 << 10, out) == 0
    assert out.all()
    assert call(stuck.run_take_much_shared, (16 << 10) + 4, out) == LAUNCH_FAILURE
    assert b"static and dynamic shared memory together" in stuck.cuda_on_cpu_last_fault()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("kernel", "parts"),
    [
        (
            "leave_before_barrier",
            ["threads wait for ever", "40 wait in __syncthreads (", "24 have exited, of 64"],
        ),
        (
            "stay_out_of_barrier",
            ["threads wait for ever", "32 wait in __syncthreads (", "32 have exited, of 64"],
        ),
        ("take_different_barriers", ["not all threads of the block are in the same barrier"]),
        (
            "name_absent_lanes",
            [
                "16 wait in __shfl_xor_sync (",
                "with mask 0xffffffff in warp 0",
                "with mask 0xffffffff in warp 1",
                "32 have exited, of 64",
            ],
        ),
        ("leave_out_oneself", ["a lane's mask leaves out the lane itself", "mask 0x0000ffff"]),
        (
            "disagree_on_mask",
            ["8 wait in __syncwarp (", "with mask 0xffffffff in warp", "have exited, of 64"],
        ),
        ("give_up", ["a thread called __trap()", "thread 3;"]),
    ],
)
def test_threads_that_cannot_go_on(stuck, kernel, parts, order):
    stuck.cuda_on_cpu_set_order(*ORDERS[order])
    out = np.zeros(64, np.int32)
    for _ in range(3):
        assert call(getattr(stuck, f"run_{kernel}"), out) == LAUNCH_FAILURE
    name, text = ctypes.c_char_p(), ctypes.c_char_p()
    stuck.error_text(LAUNCH_FAILURE, ctypes.byref(name), ctypes.byref(text))
    assert name.value == b"cudaErrorLaunchFailure"
    assert text.value == stuck.cuda_on_cpu_last_fault()
    for part in [*parts, "in block (", "stuck.cu:"]:
        assert part in text.value.decode()
    # The process goes on, and so does the emulator.
    out[:] = 0
    assert call(stuck.run_store, 1, 1, 64, 1, 0, out) == 0
    assert (out == 1).all()


# --- Faults for the sanitizers

FAULTS = [
    ("address", "shared_overrun", "AddressSanitizer: heap-buffer-overflow", 1),
    ("address", "dynamic_shared_overrun", "AddressSanitizer: heap-buffer-overflow", 1),
    ("address", "global_overrun", "AddressSanitizer: heap-buffer-overflow", 1),
    ("address", "stack_overrun", "out of bounds for type 'int [4]'", 4),
    ("address", "overflow", "runtime error: signed integer overflow", 0x7FFFFFFF - 64),
    ("address", "misaligned", "within misaligned address", 3),
    ("address", "cast", "outside the range of representable values of type 'int'", 3),
    ("thread", "race_in_block", "ThreadSanitizer: data race", 64),
    ("thread", "race_in_warp", "ThreadSanitizer: data race", 1),
    ("thread", "race_between_blocks", "ThreadSanitizer: data race", 40),
    ("thread", "missing_fence", "ThreadSanitizer: data race", 2),
]


@pytest.mark.full
@pytest.mark.parametrize(("sanitizer", "kernel", "message", "result"), FAULTS)
def test_planted_fault(sanitizer, kernel, message, result):
    sources = [PLANTED / "faults.cu", PLANTED / "faults_main.cpp"]
    faults = build_module(sources, "faults", sanitizer=sanitizer)
    bad = run([faults, kernel, "fault"], sanitizer=sanitizer)
    assert bad.returncode != 0
    assert message in bad.stderr
    assert "faults.cu:" in bad.stderr
    clean = run([faults, kernel, "clean"], sanitizer=sanitizer)
    assert (clean.returncode, clean.stdout, clean.stderr) == (0, f"cudaSuccess {result}\n", "")


@pytest.mark.full
def test_global_memory_of_numpy_is_checked():
    library = build_module([PLANTED / "compute.cu"], "compute.so", sanitizer="address")
    script = """if True:
        import ctypes, sys
        import numpy as np
        library = ctypes.CDLL(sys.argv[1])
        x, sums = np.ones(1000, np.float32), np.zeros(int(sys.argv[2]))
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in (x, sums)]
        library.run_sum_blocks(pointers[0], ctypes.c_int64(x.size), 4, pointers[1])
        print(sums.sum())
    """
    command = [sys.executable, "-c", script, library]
    clean = run([*command, "4"], sanitizer="address")
    assert (clean.returncode, clean.stdout) == (0, "1000.0\n"), clean.stderr
    bad = run([*command, "3"], sanitizer="address")
    assert "AddressSanitizer: heap-buffer-overflow" in bad.stderr
    assert "compute.cu:" in bad.stderr


@pytest.mark.full
def test_every_barrier_that_is_left_out_is_missed(tmp_path, monkeypatch):
    source = (PLANTED / "barriers.cu").read_text()
    (tmp_path / "barriers.cu").write_text(switch_barriers(source))
    program = build_module([tmp_path / "barriers.cu"], "barriers", sanitizer="thread")
    clean = run([program], sanitizer="thread")
    assert (clean.returncode, clean.stdout, clean.stderr) == (0, "cudaSuccess right\n", "")
    assert count_barriers(source) == 4
    for index in range(4):
        monkeypatch.setenv(VARIABLE, str(index))
        done = run([program], sanitizer="thread")
        assert "ThreadSanitizer: data race" in done.stderr, index


def test_barriers_are_found_in_code_alone():
    source = "// __syncthreads();\n/* __syncwarp() */ __syncwarp(m(\n  3)); f(); __syncthreads();"
    assert count_barriers(source) == 2
    found = switch_barriers(source)
    assert found.endswith(
        "#line 1\n// __syncthreads();\n/* __syncwarp() */ "
        "(left_out == 0 ? (void)0 : (void)__syncwarp(m(\n  3))); f(); "
        "(left_out == 1 ? (void)0 : (void)__syncthreads());"
    )


def test_a_build_is_kept_until_something_changes(tmp_path):
    source, header = tmp_path / "main.cpp", tmp_path / "value.h"
    source.write_text('#include "value.h"\nint main() { return VALUE; }\n')
    header.write_text("#define VALUE 3\n")
    first = build_module([source], "program")
    written = first.stat().st_mtime_ns
    assert build_module([source], "program") == first
    assert first.stat().st_mtime_ns == written
    header.write_text("#define VALUE 4\n")
    second = build_module([source], "program")
    assert (run([first]).returncode, run([second]).returncode) == (3, 4)
    source.write_text("int main() { return x; }\n")
    with pytest.raises(RuntimeError, match=r"main\.cpp"):
        build_module([source], "program")
