"""row_distances against plain PyTorch, eager and compiled, and the published kind of loop."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import DEVICES, device_name, seconds, seconds_once
from sizes import rows
from torch import Tensor

from resque_ext.ops import row_distances

BINS = (16, 32, 64)
CPU_SHAPE = (20_000, 512)
CUDA_SHAPES = [(rows(131_072), 2_048), (rows(262_144), 512), (rows(524_288), 128)]
CHUNKS = {"cpu": (250, 500, 1_000, 2_000, 4_000), "cuda": (16_384, 65_536)}
LOOP_ROWS = 40  # of the published kind of loop, some milliseconds each
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
TINY = torch.finfo(torch.float32).tiny

Heights = Callable[[Tensor, int], Tensor]


def pairs(device: str, *shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Fresh activations, and the same a little moved."""
    generator = torch.Generator(device)
    generator.seed()
    old, new = (torch.empty(shape, dtype=dtype, device=device) for _ in range(2))
    for x, y in zip(old.split(2**13), new.split(2**13), strict=True):
        x.copy_(torch.randn(x.shape, generator=generator, device=device))
        y.copy_(x + 0.3 * torch.randn(x.shape, generator=generator, device=device))
    return old, new


# --- Plain PyTorch, as fast as it goes: one histogram of 64 bins a row, folded to 32 and 16; no
# correction at edges; all in float32; pairs in chunks that stay in a cache.


def bins_of(x: Tensor, bins: int) -> Tensor:
    low, high = x.aminmax(dim=1, keepdim=True)
    return ((x - low) * (bins / (high - low))).to(torch.int32).clamp_(max=bins - 1)


def by_scatter(x: Tensor, bins: int) -> Tensor:
    ones = x.new_ones(1, 1, dtype=torch.float32).expand_as(x)
    counts = x.new_zeros(len(x), bins, dtype=torch.float32)
    return counts.scatter_add_(1, bins_of(x, bins).long(), ones) / x.shape[1]


def by_bincount(x: Tensor, bins: int) -> Tensor:
    first = torch.arange(0, len(x) * bins, bins, dtype=torch.int32, device=x.device)
    index = bins_of(x, bins) + first[:, None]
    counts = torch.bincount(index.view(-1), minlength=len(x) * bins)
    return counts.view(len(x), bins).float() / x.shape[1]


def by_index_add(x: Tensor, bins: int) -> Tensor:
    first = torch.arange(0, len(x) * bins, bins, dtype=torch.int32, device=x.device)
    index = (bins_of(x, bins) + first[:, None]).view(-1)
    counts = x.new_zeros(len(x) * bins, dtype=torch.float32)
    ones = x.new_ones(1, dtype=torch.float32).expand_as(index)
    return counts.index_add_(0, index, ones).view(len(x), bins) / x.shape[1]


HEIGHTS: tuple[Heights, ...] = (by_scatter, by_bincount, by_index_add)


def distances(p: Tensor, q: Tensor) -> Tensor:
    """The sums over rows of the four distances of heights [n, bins]."""
    log_p, log_q, middle = p.clamp_min(TINY).log(), q.clamp_min(TINY).log(), (p + q) * 0.5
    heights = (p.sort(1).values - q.sort(1).values).abs().mean(1)
    js = ((p * log_p + q * log_q) * 0.5 - middle * middle.clamp_min(TINY).log()).sum(1)
    kl = (p * (log_p - log_q) * (q > 0)).sum(1)
    return torch.stack([heights, js, 1 - (p * q).sqrt().sum(1), kl]).double().sum(1)


def chunk_distances(x: Tensor, y: Tensor, heights: Heights) -> Tensor:
    n, most = len(x), max(BINS)
    p, q = heights(x, most), heights(y, most)
    return torch.stack([distances(p.view(n, b, -1).sum(2), q.view(n, b, -1).sum(2)) for b in BINS])


def chunked(chunk: int, call: Callable[..., Tensor], old: Tensor, new: Tensor) -> Tensor:
    total = torch.zeros(len(BINS), 4, dtype=torch.float64, device=old.device)
    for x, y in zip(old.split(chunk), new.split(chunk), strict=True):
        total += call(x, y)
    return total


class Form(NamedTuple):
    name: str
    run: Callable[[Tensor, Tensor], Tensor]


def fastest(old: Tensor, new: Tensor, compiled: bool) -> Form:
    """Of every way to count and every chunk, by the time that the first pairs take."""
    some = tuple(x[: max(CHUNKS[old.device.type])] for x in (old, new))
    forms: dict[float, Form] = {}
    for heights in HEIGHTS:
        if compiled and heights is by_bincount:
            continue  # its size depends on the data, which ends the compiled graph

        def eager(x: Tensor, y: Tensor, heights: Heights = heights) -> Tensor:
            return chunk_distances(x, y, heights)

        torch.compiler.reset()  # of one function it compiles eight shapes, and runs others eagerly
        call = torch.compile(eager, dynamic=False) if compiled else eager
        for chunk in CHUNKS[old.device.type]:
            form = Form(f"{heights.__name__}, {chunk} pairs", partial(chunked, chunk, call))
            forms[seconds(lambda form=form: form.run(*some), old.device, 5)] = form
    return forms[min(forms)]


# --- The published kind of loop: every row, every number of bins, by NumPy and SciPy; histograms
# once for all distances or, as functions of two rows make them, for each.


def heights_of(x: np.ndarray, bins: int) -> np.ndarray:
    density = np.histogram(x, bins=bins, density=True)[0]
    return density / density.sum()


def kl(p: np.ndarray, q: np.ndarray) -> float:
    both = (p > 0) & (q > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(both, p * np.log(p / q), 0).sum()


def by_loop(old: np.ndarray, new: np.ndarray, once: bool) -> np.ndarray:
    stats = pytest.importorskip("scipy.stats")
    distance = pytest.importorskip("scipy.spatial.distance")
    measures: tuple[Callable[..., float], ...] = (
        stats.wasserstein_distance,
        lambda p, q: distance.jensenshannon(p, q) ** 2,
        lambda p, q: 1 - np.sqrt(p * q).sum(),
        kl,
    )
    sums = np.zeros((len(BINS), 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for a, b in zip(old, new, strict=True):
            for k, bins in enumerate(BINS):
                if once:
                    p, q = heights_of(a, bins), heights_of(b, bins)
                    sums[k] += [measure(p, q) for measure in measures]
                else:
                    sums[k] += [m(heights_of(a, bins), heights_of(b, bins)) for m in measures]
    return sums


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_row_distances_against_others(benchmark: Any, device: str, compiled: bool) -> None:
    """Pairs a second of the op, the best chunked PyTorch form and the loop, in turn in one run."""
    place = torch.device(device)
    old, new = pairs(device, *(CPU_SHAPE if device == "cpu" else CUDA_SHAPES[1]))

    def ours() -> Tensor:
        return row_distances(old, new, bins=BINS, check=False).sums

    few = tuple(x[:LOOP_ROWS].cpu().numpy() for x in (old, new))
    np.testing.assert_allclose(
        row_distances(old[:LOOP_ROWS], new[:LOOP_ROWS], bins=BINS).sums.cpu(),
        by_loop(*few, once=True),
        rtol=1e-4,  # heights that were divided by float32 widths and their sum
        atol=1e-6,
    )
    torch_form = fastest(old, new, compiled)
    # Without numpy's rule a value at an edge may fall into the bin beside it.
    torch.testing.assert_close(torch_form.run(old, new), ours(), rtol=1e-3, atol=0)
    rounds = []
    for _ in range(5):
        if device == "cpu":
            mine = statistics.median(seconds_once(ours) for _ in range(3))
            theirs = seconds_once(lambda: torch_form.run(old, new))
        else:
            mine, theirs = (seconds(f, place, 3) for f in (ours, lambda: torch_form.run(old, new)))
        loops = (
            seconds_once(lambda once=once: by_loop(*few, once)) / LOOP_ROWS * len(old)
            for once in (True, False)
        )
        rounds.append((mine, theirs / mine, *(loop / mine for loop in loops)))
    mine, against_torch, *against_loops = (statistics.median(r) for r in zip(*rounds, strict=True))
    benchmark.extra_info |= {
        "device": device_name(place),
        "pairs_per_s": len(old) / mine,
        "torch_form": torch_form.name,
        "times_torch": against_torch,
        "times_loop": dict(zip(("counting once", "for each"), against_loops, strict=True)),
    }
    print(
        f"\nrow_distances on {device}: {len(old) / mine:,.0f} pairs/s, {against_torch:.1f} x "
        f"{'compiled' if compiled else 'eager'} PyTorch ({torch_form.name}), "
        f"{against_loops[0]:,.0f} x the loop, {against_loops[1]:,.0f} x one that counts anew for "
        "every distance"
    )
    benchmark.pedantic(ours, rounds=3)


SHAPES = {"cpu": [CPU_SHAPE, (4_000, 2_048), (80_000, 128)], "cuda": CUDA_SHAPES}


@pytest.mark.parametrize(
    ("device", "shape"),
    [(d, s) for d in DEVICES for s in SHAPES[d]],
    ids=lambda v: v if isinstance(v, str) else "x".join(map(str, v)),
)
@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_row_distances(
    measure: Callable[..., float], device: str, shape: tuple[int, int], shared: bool
) -> None:
    """Against the reading of both sides once."""
    old, new = pairs(device, *shape)
    few = slice(0, 500)
    expected = chunk_distances(old[few], new[few], by_scatter)
    found = row_distances(old[few], new[few], bins=BINS).sums
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)
    measure(
        lambda: row_distances(old, new, bins=BINS, shared=shared, check=False),
        torch.device(device),
        old.nbytes + new.nbytes,
        against=lambda: (old.sum(), new.sum()),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("layout", ["rows", "NCHW", "NHWC"])
@pytest.mark.parametrize("device", DEVICES)
def test_row_distances_of_every_dtype(
    measure: Callable[..., float], device: str, layout: str, dtype: torch.dtype
) -> None:
    """Rows of 512 values, and images whose means over 64 positions are those."""
    n = {"cpu": 1_000, "cuda": rows(65_536)}[device]
    shape = (n * 8, 512) if layout == "rows" else (n // 4, 512, 8, 8)
    sides = pairs(device, *shape, dtype=dtype)
    if layout == "NHWC":
        sides = tuple(x.contiguous(memory_format=torch.channels_last) for x in sides)
    old, new = sides
    few = [x[:200].float().flatten(2).mean(2) if x.dim() == 4 else x[:200].float() for x in sides]
    expected = chunk_distances(*few, by_scatter)
    found = row_distances(old[:200], new[:200], bins=BINS).sums
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=0)
    measure(
        lambda: row_distances(old, new, bins=BINS, check=False),
        torch.device(device),
        old.nbytes + new.nbytes,
        against=lambda: (old.sum(), new.sum()),
    )
