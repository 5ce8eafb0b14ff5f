"""value_histogram and the Wasserstein distance from it, against PyTorch, SciPy and POT."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DEVICES, device_name
from sizes import rows
from torch import Tensor

from resque_ext.ops import Distance, value_histogram, wasserstein_from_histograms
from resque_ext.tools.bench import seconds_of

DATA: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda x: x,
    "half_zero": lambda x: x.relu_(),
    "constant": lambda x: x.fill_(float(x[0])),
}
SIZES = {"cpu": 2**26, "cuda": rows(2**29)}
FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "bits15": lambda x: value_histogram(x, bits=15, check=False).counts,
    "bits16": lambda x: value_histogram(x, check=False).counts,
    "histc256": lambda x: torch.histc(x, 256),
    "sort": lambda x: x.sort().values,
}


def values(device: str, n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator(device)
    generator.seed()
    x = torch.empty(n, dtype=dtype, device=device)
    for part in x.split(2**24):
        part.copy_(torch.randn(len(part), generator=generator, device=device))
    return x


def check(counts: Tensor, x: Tensor, bits: int) -> None:
    """Against a count of the same bits by PyTorch, in the order of the values."""
    signed = torch.int16 if x.element_size() == 2 else torch.int32
    width = 8 * x.element_size()
    expected = torch.zeros(2**bits, dtype=torch.int64, device=x.device)
    for part in x.split(2**22):
        pattern = (part.view(signed).long() & (2**width - 1)) >> (width - bits)
        expected += torch.bincount(pattern, minlength=2**bits)
    half = 2 ** (bits - 1)
    assert torch.equal(counts, torch.cat([expected[half:].flip(0), expected[:half]]))


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("device", DEVICES)
def test_value_histogram(measure: Callable[..., float], device: str, form: str, data: str) -> None:
    n = SIZES[device]
    if form == "sort":
        n //= 16  # and so is its time, nearly
    x = DATA[data](values(device, n))
    if form.startswith("bits"):
        check(FORMS[form](x), x, int(form[4:]))
    measure(
        lambda: FORMS[form](x), torch.device(device), x.nbytes, against=x.sum, form=form, data=data
    )


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("device", DEVICES)
def test_value_histogram_against_histc(benchmark: Any, device: str, data: str) -> None:
    """In turn over the same values: 15 bits, 16 bits, and the 256 bins of torch.histc."""
    place, names = torch.device(device), ("bits15", "bits16", "histc256")
    x = DATA[data](values(device, SIZES[device]))
    check(FORMS["bits15"](x), x, 15)
    check(FORMS["bits16"](x), x, 16)
    assert FORMS["histc256"](x).sum() > 0
    turns = [[seconds_of(lambda f=f: FORMS[f](x), place) for f in names] for _ in range(7)]
    ours = {f: statistics.median(turn[k] for turn in turns) for k, f in enumerate(names[:2])}
    ratios = {f: statistics.median(t[2] / t[k] for t in turns) for k, f in enumerate(names[:2])}
    benchmark.extra_info |= {
        "device": device_name(place),
        "bytes_per_s": {f: x.nbytes / taken for f, taken in ours.items()},
        "times_histc": ratios,
    }
    for form, ratio in ratios.items():
        print(
            f"\nvalue_histogram on {device}, {data}, {form}: "
            f"{x.nbytes / ours[form] / 1e9:.1f} GB/s, {ratio:.1f} x torch.histc"
        )
    benchmark.pedantic(lambda: FORMS["bits16"](x), rounds=1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("device", DEVICES)
def test_value_histogram_of_16_bits(
    measure: Callable[..., float], device: str, dtype: torch.dtype
) -> None:
    x = values(device, SIZES[device], dtype)
    check(FORMS["bits16"](x), x, 16)
    measure(lambda: FORMS["bits16"](x), torch.device(device), x.nbytes, against=x.sum)


def from_histograms(a: Tensor, b: Tensor) -> Distance:
    histograms = [value_histogram(x, check=False) for x in (a, b)]
    return wasserstein_from_histograms(*histograms)


def by_sorting(a: Tensor, b: Tensor) -> Tensor:
    """Of as many values on both sides."""
    return (a.sort().values - b.sort().values).abs().double().mean()


def by_scipy(a: Tensor, b: Tensor) -> float:
    stats = pytest.importorskip("scipy.stats")
    return stats.wasserstein_distance(a.cpu().numpy(), b.cpu().numpy())


def by_pot(a: Tensor, b: Tensor) -> float:
    ot = pytest.importorskip("ot")
    return float(ot.wasserstein_1d(a.cpu().double().numpy(), b.cpu().double().numpy()))


@pytest.mark.parametrize("form", [from_histograms, by_sorting, by_scipy, by_pot])
@pytest.mark.parametrize("device", DEVICES)
def test_wasserstein(
    measure: Callable[..., float], device: str, form: Callable[[Tensor, Tensor], float]
) -> None:
    n = 2**20
    a, b = values(device, n), values(device, n) * 1.2 + 0.1
    low, high = (np.sort(x.cpu().double().numpy()) for x in (a, b))
    truth = np.abs(low - high).mean()
    found = form(a, b)
    assert abs(float(found) - truth) <= (1e-2 if form is from_histograms else 1e-5) * truth
    if isinstance(found, Distance):
        assert found.lower <= truth <= found.upper
    bytes_read = a.nbytes + b.nbytes

    def read() -> Tensor:
        return a.sum() + b.sum()

    measure(lambda: form(a, b), torch.device(device), bytes_read, against=read)
