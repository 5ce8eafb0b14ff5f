"""lloyd_step against plain PyTorch, flash-kmeans and faiss; iterations of a fit against KMeans."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DEVICES, device_name, seconds_once
from sizes import rows
from torch import Tensor

import resque_ext

CPU_CASES = [(200_000, 256, 10), (200_000, 256, 100), (50_000, 256, 1_000)]
CASES = [("cpu", *case) for case in CPU_CASES]
if "cuda" in DEVICES:
    CASES += [
        ("cuda", rows(1_048_576), 512, 10),
        ("cuda", rows(1_048_576), 512, 100),
        ("cuda", max(rows(262_144), 1_000), 2_048, 1_000),
    ]


def ours(x: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    labels, _, sums, counts = resque_ext.ops.lloyd_step(x, centers, check=False)
    return labels, sums / counts[:, None]


def plain(x: Tensor, centers: Tensor, tf32: bool = False) -> tuple[Tensor, Tensor]:
    """Product, argmin and index_add, a chunk of rows at a time, in float32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        c = centers.float()
        half = c.square().sum(1) / 2
        chunks = x.split(max(2**25 // len(c), 1))
        labels = torch.cat([torch.addmm(half, part, c.T, alpha=-1).argmin(1) for part in chunks])
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    sums = torch.zeros_like(c).index_add_(0, labels, x)
    return labels, sums / torch.bincount(labels, minlength=len(c))[:, None]


def plain_tf32(x: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    return plain(x, centers, tf32=True)


def flash_kmeans(x: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """One iteration; the package runs on CUDA alone."""
    module = pytest.importorskip("flash_kmeans")
    labels, means, _ = module.batch_kmeans_Euclid(
        x[None], len(centers), max_iters=1, init_centroids=centers.float()[None]
    )
    return labels[0].long(), means[0]


def faiss(x: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """The search is faiss's, on as many threads, the sums are index_add's."""
    module = pytest.importorskip("faiss")
    module.omp_set_num_threads(torch.get_num_threads())
    index = module.IndexFlatL2(x.shape[1])
    index.add(centers.float().numpy())
    labels = torch.from_numpy(index.search(x.numpy(), 1)[1][:, 0])
    sums = torch.zeros(centers.shape).index_add_(0, labels, x)
    return labels, sums / torch.bincount(labels, minlength=len(centers))[:, None]


FORMS = {"cpu": [ours, plain, faiss], "cuda": [ours, plain, plain_tf32, flash_kmeans]}


def data(device: str, n: int, d: int, k: int) -> tuple[Tensor, Tensor]:
    """Normal rows, and centres that an iteration from random rows gives."""
    generator = torch.Generator(device)
    generator.seed()
    x = torch.empty(n, d, device=device)
    for part in x.split(2**16):
        part.normal_(generator=generator)
    first = x[torch.randperm(n, generator=generator, device=device)[:k]].double()
    return x, ours(x, first)[1]


def check(found: tuple[Tensor, Tensor], x: Tensor, centers: Tensor, exact: bool) -> None:
    """Labels against float64: all of them, or in low precision nearly all; then the new centres."""
    labels, means = found
    wrong = 0
    half = centers.square().sum(1) / 2
    for part, label in zip(x.split(2**14), labels.split(2**14), strict=True):
        scores = half - part.double() @ centers.T
        gap = scores.gather(1, label[:, None])[:, 0] - scores.amin(1)
        wrong += int((gap > 1e-9).sum())
    assert wrong == 0 if exact else wrong <= len(x) / 20, f"{wrong} wrong labels"
    sums = torch.zeros_like(centers)
    for part, label in zip(x.split(2**16), labels.split(2**16), strict=True):
        sums.index_add_(0, label, part.double())
    truth = sums / torch.bincount(labels, minlength=len(centers))[:, None]
    limit = 1e-12 if exact else 1e-4
    torch.testing.assert_close(means.double(), truth, rtol=limit, atol=limit)


@pytest.mark.parametrize(
    ("device", "n", "d", "k", "form"), [(*case, form) for case in CASES for form in FORMS[case[0]]]
)
def test_lloyd_step(
    measure: Callable[..., float],
    device: str,
    n: int,
    d: int,
    k: int,
    form: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
) -> None:
    x, centers = data(device, n, d, k)
    check(form(x, centers), x, centers, exact=form is ours)
    call: Callable[[], Any] = lambda: form(x, centers)  # noqa: E731
    measure(call, torch.device(device), x.nbytes, against=x.sum, form=form.__name__, centers=k)


def fit(x: Tensor, centers: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """What KMeans.fit does with tol=0: iterations, then labels of the last centres."""
    for _ in range(iterations):
        _, _, sums, counts = resque_ext.ops.lloyd_step(x, centers)
        centers = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centers)
    step = torch.ops.resque_ext.lloyd_step_status
    return step(x, centers, False)[0], centers


@pytest.mark.parametrize(("n", "d", "k"), CPU_CASES)
def test_iterations_against_scikit_learn(benchmark: Any, n: int, d: int, k: int) -> None:
    """Fits from the same centres, on as many threads, in turn; what ten iterations more take.

    scikit-learn's BLAS chooses its kernel itself: an OPENBLAS_CORETYPE would change its speed.
    """
    KMeans = pytest.importorskip("sklearn.cluster").KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    assert "OPENBLAS_CORETYPE" not in os.environ
    threads = torch.get_num_threads()
    x, centers = data("cpu", n, d, k)
    array, start = x.numpy(), centers.float()

    def mine(iterations: int) -> tuple[Tensor, Tensor]:
        return fit(x, start, iterations)

    def theirs(iterations: int) -> Any:
        model = KMeans(k, init=start.numpy(), n_init=1, max_iter=iterations, tol=0)
        with threadpool_limits(threads):
            model.fit(array)
        assert model.n_iter_ == iterations
        return model

    short, long, rounds = (2, 22, 9) if k <= 100 else (2, 6, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it is not meant to converge
        model, (labels, means) = theirs(short), mine(short)
        assert (labels.numpy() != model.labels_).mean() <= 5e-3  # float32 decides the near ties
        # A row at a near tie moves two of the centres.
        off = np.abs(means.numpy() - model.cluster_centers_).max(1)
        assert (off > 1e-3).mean() <= 0.02
        assert off.max() < 0.1
        calls = [lambda i=i, fit=fit: fit(i) for fit in (mine, theirs) for i in (short, long)]
        turns = np.array([[seconds_once(call) for call in calls] for _ in range(rounds)])
    # A fit's beginning, copies of the features among it, varies by more than an iteration takes, so
    # that the medians are taken before the difference.
    iteration = np.diff(turns.reshape(rounds, 2, 2))[..., 0] / (long - short)
    ours_ms, theirs_ms = np.diff(np.median(turns, 0).reshape(2, 2))[:, 0] / (long - short) * 1e3
    ratios = iteration[:, 1] / iteration[:, 0]
    ratio = theirs_ms / ours_ms
    benchmark.extra_info |= {
        "device": device_name(torch.device("cpu")),
        "milliseconds": ours_ms,
        "their_milliseconds": theirs_ms,
        "ratio": ratio,
        "least_and_most_ratio": [min(ratios), max(ratios)],
    }
    print(
        f"\n{n} x {d}, {k} centres, {threads} threads: {ours_ms:.1f} ms an iteration, KMeans "
        f"{theirs_ms:.1f}, share 1 / {ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    )
    benchmark.pedantic(lambda: mine(1), rounds=1)
