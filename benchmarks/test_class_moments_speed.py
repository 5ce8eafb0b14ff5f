"""class_moments against the forms of plain PyTorch, and the preparation of the labels alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import DEVICES
from sizes import rows
from torch import Tensor

import resque_ext
from resque_ext.ops.class_order import class_order

CPU_CASES = [(200_000, 512, k) for k in (10, 100, 1_000, 20_000)]
CUDA_CASES = [
    (rows(1_048_576), 512, 10),
    (rows(1_048_576), 512, 100),
    (rows(262_144), 2_048, 1_000),
    (rows(1_048_576), 512, 20_000),
]
CASES = [("cpu", *c, torch.float32) for c in CPU_CASES]
if "cuda" in DEVICES:
    CASES += [("cuda", *c, torch.float32) for c in CUDA_CASES]
    CASES += [("cuda", rows(1_048_576), 512, k, torch.bfloat16) for k in (10, 100, 1_000)]


def one_hot_matmul(x: Tensor, y: Tensor, k: int) -> Tensor:
    return torch.nn.functional.one_hot(y, k).to(x.dtype).T @ x


def index_add(x: Tensor, y: Tensor, k: int) -> Tensor:
    wide = x.float()
    return wide.new_zeros(k, x.shape[1]).index_add_(0, y, wide)


def sorted_segments(x: Tensor, y: Tensor, k: int) -> Tensor:
    order = torch.argsort(y)
    lengths = torch.bincount(y, minlength=k)
    return torch.segment_reduce(x[order].float(), "sum", lengths=lengths)


def ours(x: Tensor, y: Tensor, k: int) -> Tensor:
    return resque_ext.ops.class_moments(x, y, k, check=False)[1]


FORMS = {
    "class_moments": ours,
    "index_add": index_add,
    "one_hot_matmul": one_hot_matmul,
    "sorted_segments": sorted_segments,
}


def data(device: str, n: int, d: int, k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator(device)
    generator.seed()
    x = torch.empty(n, d, dtype=dtype, device=device)
    for part in x.split(2**16):
        part.copy_(torch.randn(part.shape, generator=generator, device=device) + 0.5)
    return x, torch.randint(k, (n,), generator=generator, device=device)


def check(result: Tensor, x: Tensor, y: Tensor, k: int, tolerance: float) -> None:
    """Against float64, relative to the sum of absolute values."""
    truth = torch.zeros(k, x.shape[1], dtype=torch.float64, device=x.device)
    scale = torch.zeros_like(truth)
    for part, labels in zip(x.split(2**15), y.split(2**15), strict=True):
        wide = part.double()
        truth.index_add_(0, labels, wide)
        scale.index_add_(0, labels, wide.abs())
    error = ((result.double() - truth).abs() / scale.clamp(min=1e-300)).max().item()
    assert error <= tolerance, f"error {error:.2g} of the sum of absolute values"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("device", "n", "d", "k", "dtype"), CASES)
def test_class_moments(
    measure: Callable[..., float],
    form: str,
    device: str,
    n: int,
    d: int,
    k: int,
    dtype: torch.dtype,
) -> None:
    if form == "one_hot_matmul" and n * k > 2e9:
        pytest.skip("the one-hot matrix alone would take more memory than the features")
    x, y = data(device, n, d, k, dtype)
    call: Callable[[], Any] = lambda: FORMS[form](x, y, k)  # noqa: E731
    low = form == "one_hot_matmul" and dtype == torch.bfloat16
    check(call(), x, y, k, 1e-12 if form == "class_moments" else 3e-2 if low else 1e-3)
    measure(call, torch.device(device), x.nbytes, against=x.sum, form=form, classes=k)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("form", ["class_moments", "mean_index_add"])
@pytest.mark.parametrize("device", DEVICES)
def test_spatial_mean_and_moments(
    measure: Callable[..., float], device: str, form: str, channels_last: bool
) -> None:
    n = rows(8_192) if device == "cuda" else 1_024
    x = torch.randn(n, 512, 16, 16, device=device, dtype=torch.bfloat16)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    y = torch.randint(10, (n,), device=device)

    def plain() -> Tensor:
        return index_add(x.mean((2, 3)), y, 10)

    call = plain if form == "mean_index_add" else lambda: ours(x, y, 10)
    pooled = x.double().mean((2, 3)) if device == "cpu" else x.float().mean((2, 3)).double()
    truth = torch.zeros(10, 512, dtype=torch.float64, device=device).index_add_(0, y, pooled)
    scale = torch.zeros_like(truth).index_add_(0, y, pooled.abs())
    limit = 2e-2 if form == "mean_index_add" else 1e-5 if device == "cuda" else 1e-6
    assert ((call().double() - truth).abs() / scale).max() <= limit
    measure(call, torch.device(device), x.nbytes, against=x.sum, form=form)


@pytest.mark.parametrize("k", [10, 1_000, 20_000])
@pytest.mark.parametrize("device", DEVICES)
def test_class_order(measure: Callable[..., float], device: str, k: int) -> None:
    y = torch.randint(k, (rows(1_048_576),), device=device)
    order, offsets, _ = class_order(y, k)
    assert torch.equal(order.long(), torch.argsort(y, stable=True))
    assert torch.equal(offsets.diff(), torch.bincount(y, minlength=k))
    measure(lambda: class_order(y, k), torch.device(device), y.nbytes, against=y.sum, classes=k)
