"""class_moments under autograd and compilation, in plain PyTorch, and without its kernels."""

import math

import pytest
import torch
from helpers import oracles
from helpers.class_moments_made import (
    DTYPES,
    VIEWS,
    allowed_error,
    arrays,
    check,
    drawn,
    labels_for,
    truth,
    whole_numbers,
)

import resque_ext
from resque_ext.ops import backend as _backend
from resque_ext.ops import class_moments

# --- Autograd, inference, compilation


def test_gradients_do_not_flow(place):
    x = drawn(20, 3).to(place.device).requires_grad_()
    assert not any(part.requires_grad for part in check(place, x, labels_for(20, 2), 2))
    with torch.inference_mode():
        inside = drawn(20, 3).to(place.device)
        check(place, inside, labels_for(20, 2), 2)
    check(place, inside, labels_for(20, 2), 2)


LAYOUTS = ["matrix", "every other column", "NCHW", "NHWC", "tokens", "one row again and again"]


@pytest.mark.parametrize("view", LAYOUTS)
@pytest.mark.parametrize("name", ["class_moments", "class_moments_status"])
def test_opcheck(place, name, view):
    shape, look, _ = VIEWS[view]
    x = look(drawn(*shape).to(place.device))
    y = labels_for(len(x), 4).to(place.device)
    torch.library.opcheck(getattr(torch.ops.resque_ext, name).default, (x, y, 4))
    if name == "class_moments":
        op = torch.ops.resque_ext.class_moments.default
        torch.library.opcheck(op, (x, y, 4), {"skip_nonfinite": True, "check": True})


@pytest.mark.parametrize(
    "compiler", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.full)]
)
@pytest.mark.parametrize("view", ["matrix", "NHWC", "tokens"])
def test_compile(compiler, view):
    def moments(x, y):
        counts, sums, sumsq = class_moments(x * 2, y, 4)
        return sums / counts[:, None], sumsq

    torch.compiler.reset()
    shape, look, _ = VIEWS[view]
    compiled = torch.compile(moments, backend=compiler, fullgraph=True)
    for n in (len(look(torch.zeros(shape))), 60):  # the second time with other sizes
        x, y = look(drawn(n, *shape[1:])), torch.arange(n) % 4
        for found, expected in zip(compiled(x, y), moments(x, y), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    y[3] = 9
    with pytest.raises(ValueError, match="found 9 at position 3"):
        compiled(x, y)


# --- Plain PyTorch, and what is missing


@pytest.mark.parametrize("view", VIEWS)
def test_torch_backend(place, view):
    shape, look, _ = VIEWS[view]
    dtype = DTYPES[list(VIEWS).index(view) % 4]  # each of them with every kind of layout
    x = look(drawn(*shape, dtype=dtype).to(place.device))
    clean, y = x, labels_for(len(x), 4).to(place.device)
    for fault in (None, math.nan):
        if fault:
            x = clean.clone()
            x[len(x) // 2, 0], y[-1] = fault, 4
        for skip in (False, True):
            native = torch.ops.resque_ext.class_moments_status(x, y, 4, skip)
            with resque_ext.backend("torch"):
                plain = torch.ops.resque_ext.class_moments_status(x, y, 4, skip)
            allowed = 10 * allowed_error(place, x)
            for part, same in zip(native, plain, strict=True):
                torch.testing.assert_close(
                    part, same, rtol=allowed, atol=allowed * 40, equal_nan=True, check_stride=False
                )
            assert native[3].tolist() == plain[3].tolist()
            assert native[0].tolist() == plain[0].tolist()


def test_torch_backend_on_large_and_empty(place):
    with resque_ext.backend("torch"):
        for n, classes in ((0, 3), (1, 1), (5, 9), (40, 100_000), (33_000, 3)):
            x, y = whole_numbers(n, 3), labels_for(n, classes)
            found = class_moments(x.to(place.device), y.to(place.device), classes)
            oracles.class_moments_of_integers(truth(x), y.numpy(), classes).check(arrays(found), 0)


def test_without_the_extension(monkeypatch):
    x, y = drawn(6, 2), labels_for(6, 2)
    monkeypatch.setattr(_backend, "_C", None)
    monkeypatch.setattr(_backend, "_missing", "resque_ext._C is not in here: it was never built")
    message = r"is not in here: it was never built\. .*backend\('torch'\)"
    with pytest.raises(resque_ext.BackendError, match=message):
        class_moments(x, y, 2)
    with resque_ext.backend("torch"):
        assert class_moments(x, y, 2)[0].sum() == 6
    info = resque_ext.build_info()
    assert (info["extension"], info["missing"]) == (None, _backend._missing)


def test_without_cuda_kernels(monkeypatch):
    kernels = type("_C", (), {"cpu": _backend.extension().cpu})
    monkeypatch.setattr(_backend, "_C", kernels)
    assert _backend.kernels(torch.device("cpu")) is kernels.cpu
    message = r"on the CPU, found them on cuda:1: .*without CUDA kernels.*nvcc.*backend\('torch'\)"
    with pytest.raises(resque_ext.BackendError, match=message):
        _backend.kernels(torch.device("cuda:1"))
