"""RESQUE_task and its parts against scikit-learn and plain PyTorch."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DEVICES, device_name
from sizes import rows
from torch import Tensor

import resque_ext
from resque_ext.ops import pair_counts

LABELS = rows(4_194_304)


def bincount(a: Tensor, b: Tensor, k: int) -> Tensor:
    return torch.bincount(a * k + b, minlength=k * k).view(k, k)


def ours(a: Tensor, b: Tensor, k: int) -> Tensor:
    return pair_counts(a, b, k, k, check=False)


FORMS = {"pair_counts": ours, "bincount": bincount}


def labellings(device: str, k: int, kind: str) -> tuple[Tensor, Tensor]:
    """Of which six in ten agree; sorted ones have long runs of one cell."""
    generator = torch.Generator(device)
    generator.seed()
    a, b = (torch.randint(k, (LABELS,), generator=generator, device=device) for _ in "ab")
    b = torch.where(torch.rand(LABELS, generator=generator, device=device) < 0.6, a, b)
    if kind == "sorted":
        order = torch.argsort(a * k + b)
        a, b = a[order], b[order]
    return a, b


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["random", "sorted"])
@pytest.mark.parametrize("k", [10, 100, 1_000])
@pytest.mark.parametrize("device", DEVICES)
def test_pair_counts(
    measure: Callable[..., float], device: str, k: int, kind: str, form: str
) -> None:
    a, b = labellings(device, k, kind)
    table = FORMS[form](a, b, k)
    assert torch.equal(table, bincount(a, b, k))
    assert int(table.sum()) == LABELS
    measure(
        lambda: FORMS[form](a, b, k),
        torch.device(device),
        a.nbytes + b.nbytes,
        against=lambda: (a.sum(), b.sum()),
        form=form,
        classes=k,
    )


@pytest.mark.parametrize("k", [10, 100, 1_000])
@pytest.mark.parametrize("device", DEVICES)
def test_adjusted_rand_index(benchmark: Any, device: str, k: int) -> None:
    """Table and index together, read back where the labels are on a GPU."""
    adjusted_rand_score = pytest.importorskip("sklearn.metrics").adjusted_rand_score
    a, b = labellings(device, k, "random")
    numpy_a, numpy_b = a.cpu().numpy(), b.cpu().numpy()

    def index() -> float:
        return resque_ext.adjusted_rand_index(ours(a, b, k))

    def theirs() -> float:
        return adjusted_rand_score(numpy_a, numpy_b)

    assert abs(index() - theirs()) < 1e-12
    times = compared(index, theirs, rounds=3)
    report(benchmark, f"adjusted Rand index of {k} x {k} on {device}", times, torch.device(device))
    benchmark.pedantic(index, rounds=1)


@pytest.mark.parametrize("k", [10, 100])
def test_resque_task(benchmark: Any, k: int) -> None:
    """200,000 x 256 float32: the class means, as many iterations, the ARI, on as many threads."""
    KMeans = pytest.importorskip("sklearn.cluster").KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import adjusted_rand_score

    rng = np.random.default_rng()
    y = rng.integers(0, k, 200_000)
    x = rng.standard_normal((200_000, 256), dtype=np.float32)
    x += 0.2 * rng.standard_normal((k, 256), dtype=np.float32)[y]
    iterations = 10

    def index() -> Any:
        return resque_ext.resque_task(x, y, max_iter=iterations, tol=0, chance=0)

    def theirs() -> Any:
        means = np.stack([x[y == c].mean(0) for c in range(k)])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # it is not meant to converge
            model = KMeans(k, init=means, n_init=1, max_iter=iterations, tol=0).fit(x)
        return model, 1 - adjusted_rand_score(y, model.labels_)

    result, (model, value) = index(), theirs()
    assert result.n_iter == model.n_iter_  # 10, or where classes were drawn far apart fewer
    assert abs(result.inertia / model.inertia_ - 1) < 1e-4
    assert abs(result.value - value) < 1e-3  # their labels are float32's
    some = x[:2_000].astype(np.float64)
    apart = np.stack([((some - c) ** 2).sum(1) for c in result.centers])
    np.testing.assert_array_equal(result.cluster_labels[:2_000], apart.argmin(0))
    times = compared(index, theirs, rounds=3)
    report(benchmark, f"RESQUE_task, {k} clusters", times, torch.device("cpu"))
    benchmark.pedantic(index, rounds=1)


@pytest.mark.skipif("cuda" not in DEVICES, reason="copies to a GPU")
def test_stream_to_cuda(benchmark: Any) -> None:
    """Features in host memory, segment by segment, against one copy of them a pass."""
    device, n = torch.device("cuda"), rows(1_000_000)
    x, y = torch.randn(n, 512), torch.arange(n) % 10
    passes = 4  # the class means, two iterations, and the last assignment
    pinned = x[:65_536].pin_memory()

    def streamed() -> Any:
        return resque_ext.resque_task(x, y, max_iter=2, tol=0, device=device, chance=0)

    def copied() -> None:
        for _ in range(passes):
            for start in range(0, len(x), len(pinned)):
                pinned[: len(x) - start].to(device, non_blocking=True)
        torch.cuda.synchronize()

    there = resque_ext.resque_task(x.to(device), y.to(device), max_iter=2, tol=0, chance=0)
    found = streamed()
    assert found.centers.tobytes() == there.centers.tobytes()
    assert found.cluster_labels.tobytes() == there.cluster_labels.tobytes()
    times = compared(streamed, copied, rounds=3)
    report(benchmark, "RESQUE_task of host memory against bare pinned copies", times, device)
    benchmark.pedantic(streamed, rounds=1)


def compared(
    call: Callable[[], Any], other: Callable[[], Any], rounds: int
) -> tuple[float, float, float]:
    """Medians of seconds of both, timed in turn, and of their ratio."""
    pairs = []
    for _ in range(rounds):
        begin = time.perf_counter()
        call()
        middle = time.perf_counter()
        other()
        pairs.append((middle - begin, time.perf_counter() - middle))
    mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    return mine, theirs, statistics.median(b / a for a, b in pairs)


def report(
    benchmark: Any, name: str, times: tuple[float, float, float], device: torch.device
) -> None:
    mine, theirs, ratio = times
    benchmark.extra_info |= {
        "device": device_name(device),
        "milliseconds": mine * 1e3,
        "their_milliseconds": theirs * 1e3,
        "ratio": ratio,
    }
    print(f"\n{name}: {mine * 1e3:.2f} ms, the other {theirs * 1e3:.1f} ms, share 1 / {ratio:.2f}")
