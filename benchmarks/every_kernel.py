"""Runs every CUDA kernel once over every dtype and layout, small, and checks the results.

For compute-sanitizer, which makes everything a hundred times slower.
"""

import time

import torch
from sizes import SMALL

import resque_ext
from resque_ext.ops.class_moments import grouped_moments
from resque_ext.ops.class_order import class_order
from resque_ext.ops.pair_counts import _pair_counts_status

BEGIN = time.perf_counter()
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
SHAPES = ((3_000, 5), (3_000, 64), (600, 40, 3, 3), (300, 16, 4, 4), (200, 7, 24))

# Rows, columns and centres of lloyd_step. Few centres: several groups of threads, one, two columns
# a thread, copies of single values, several spans of rows. Many: narrow tiles, wide ones, and wide
# ones side by side.
CLUSTERS = (
    *((3_000, 5, 3), (3_000, 64, 16), (600, 512, 10), (300, 700, 8), (300, 129, 9)),
    *((2_200_000, 2, 3), (3_000, 64, 40), (600, 256, 300), (700, 1_100, 600), (40, 2_048, 10)),
)
# Every tile of row_distances, and more values a row than fit a tile.
ROWS = ((40_000, 24), (5_000, 300), (300, 2_048), (3, 70_000))
if SMALL:
    DTYPES, SHAPES, ROWS = DTYPES[::2], SHAPES[::2], ROWS[2:3]
    CLUSTERS = tuple(each for each in CLUSTERS if each[0] <= 1_000)


def main() -> None:
    torch.manual_seed(0)
    for dtype in DTYPES:
        for shape in SHAPES:
            for channels_last in (False, True) if len(shape) == 4 else (False,):
                x = torch.randn(shape, device="cuda").to(dtype)
                if channels_last:
                    x = x.to(memory_format=torch.channels_last)
                for classes in (3, 300):
                    check(x, torch.randint(classes, shape[:1], device="cuda"), classes)
                count(x)
                measure(x, x.roll(1, 0))
        progress(f"class_moments, value_histogram, row_distances of {dtype}")
    for shape in ROWS:
        for dtype in DTYPES:
            measure(*(torch.randn(shape, device="cuda").to(dtype) for _ in range(2)))
        progress(f"row_distances of {shape}")
    for classes in (1, 255, 256, 65_536):
        labels = torch.randint(-1, classes + 1, (5_000,), device="cuda", dtype=torch.int32)
        compare(class_order(labels, classes, 4), labels, classes)
    progress("class_order")
    for classes in (1, 96, 300):  # tables in shared memory, and in the result
        for dtypes in ((torch.int64, torch.int32), (torch.int32, torch.int64)):
            check_pairs(classes, dtypes)
    progress("pair_counts")
    for dtype in DTYPES:
        for n, width, k in CLUSTERS:
            check_clusters(torch.randn(n, width, device="cuda").to(dtype), k)
        progress(f"lloyd_step of {dtype}")
    print("every kernel ran and agreed with plain PyTorch")


def progress(what: str) -> None:
    """A line at once: a sanitizer takes minutes, and a time limit may come before the end."""
    torch.cuda.synchronize()
    print(f"{time.perf_counter() - BEGIN:6.1f} s: {what} agree with plain PyTorch", flush=True)


def check(x: torch.Tensor, labels: torch.Tensor, classes: int) -> None:
    x[1, 2] = torch.nan
    x[-1, 0] = torch.inf
    order, offsets, _ = class_order(labels, classes)
    for squares in (True, False):
        ours = grouped_moments(x, order, offsets, squares=squares, skip_nonfinite=True)
        with resque_ext.backend("torch"):
            plain = grouped_moments(x, order, offsets, squares=squares, skip_nonfinite=True)
        for a, b in zip(ours, plain, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-5)


def count(x: torch.Tensor) -> None:
    """With the NaN and the infinity that are in x by now, and with values of every exponent."""
    op = torch.ops.resque_ext.value_histogram_status
    wide = torch.randint(-(2**15), 2**15, (4 * x.numel(),), device="cuda", dtype=torch.int16)
    for values in (x, x.flatten()[1:], wide.view(x.dtype)):
        for by_channel in (False, True) if values.dim() > 1 else (False,):
            ours = op(values, 12, False, by_channel)
            with resque_ext.backend("torch"):
                plain = op(values, 12, False, by_channel)
            assert torch.equal(ours[0], plain[0])
            assert torch.equal(ours[1], plain[1])


def measure(old: torch.Tensor, new: torch.Tensor) -> None:
    """Histograms to the last count, but for means, whose last bit may move a value across an edge.

    Both sides hold NaN and infinity where `old` does: those pairs are NaN, and reported.
    """
    op = torch.ops.resque_ext.row_distances_status
    exact, tolerance = old.dim() != 4, 1e-9 if old.dim() != 4 else 1e-2
    for bins in ((16, 32, 64), (10, 128)):
        for shared, skip in ((False, False), (True, True)):
            ours = op(old, new, bins, shared, True, True, skip)
            with resque_ext.backend("torch"):
                plain = op(old, new, bins, shared, True, True, skip)
            for k in (0, 2):  # sums, rows
                torch.testing.assert_close(
                    ours[k], plain[k], rtol=tolerance, atol=tolerance, equal_nan=True
                )
            for k in (1, 3, 5) + ((4,) if exact else ()):  # used, float64 edges, status, counts
                assert torch.equal(ours[k], plain[k])


def compare(ours: tuple[torch.Tensor, ...], labels: torch.Tensor, classes: int) -> None:
    with resque_ext.backend("torch"):
        plain = class_order(labels, classes, 4)
    grouped = int(plain[1][-1])
    assert torch.equal(ours[0][:grouped], plain[0][:grouped])
    assert torch.equal(ours[1], plain[1])
    assert torch.equal(ours[2], plain[2])


def check_pairs(classes: int, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    a, b = (torch.randint(-1, classes + 1, (9_000,), device="cuda").to(d) for d in dtypes)
    for pair in ((a, b), (a.sort().values, b.sort().values), (a[::2], b[1::2])):
        ours = _pair_counts_status(*pair, classes, classes)
        with resque_ext.backend("torch"):
            plain = _pair_counts_status(*pair, classes, classes)
        assert all(torch.equal(x, y) for x, y in zip(ours, plain, strict=True))


def check_clusters(x: torch.Tensor, k: int) -> None:
    """With centres that are copies, so that rows are open between two of them, and between many."""
    centers = x[:k].double()
    centers[1 : k // 2 : 4] = centers[0 : k // 2 - 1 : 4]
    centers[k - k // 4 :] = centers[k // 2]
    step = torch.ops.resque_ext.lloyd_step_status
    for bad in (False, True):
        if bad:
            x[-1, 0], x[k, -1] = torch.inf, torch.nan
        for update, distances in ((True, False), (True, True), (False, False)):
            ours = step(x, centers, update, distances)
            with resque_ext.backend("torch"):
                plain = step(x, centers, update, distances)
            labels, squared, inertia, sums, counts, _, status = zip(ours, plain, strict=True)
            for a, b in (labels, counts, status):
                assert torch.equal(a, b)
            for a, b in () if bad else (squared, inertia, sums):
                torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-9)


if __name__ == "__main__":
    main()
