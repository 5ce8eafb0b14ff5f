"""spatial_mean: the mean over the positions of every sample and channel, against long double."""

import numpy as np
import pytest
import torch
from helpers.oracles import pooled

import resque_ext
from resque_ext.ops import spatial_mean

INSTRUCTION_SETS = True  # see conftest.py
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
LAYOUTS = {
    "nchw": lambda x: x,
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "sliced": lambda x: x[:, 1:, 1:, ::2],
    "tokens": lambda x: x.flatten(2).transpose(1, 2),
    "tokens contiguous": lambda x: x.flatten(2).transpose(1, 2).contiguous(),
    "one position": lambda x: x[:, :, :1, :1],
    "vectors": lambda x: x.flatten(1),
    "transposed vectors": lambda x: x.flatten(1).T,
}


def drawn(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(3)).add_(0.5).to(dtype)


def numbers(x):
    return x.cpu().double().numpy()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(place, layout, dtype):
    x = LAYOUTS[layout](drawn(5, 24, 6, 8, dtype=dtype))
    found = spatial_mean(x.to(place.device))
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    # Summed in float64, rounded once.
    truth, size = pooled(numbers(x)), pooled(np.abs(numbers(x)))
    allowed = (2e-15 if dtype == torch.float64 else 2.0**-24) * size
    assert found.shape == truth.shape
    assert (np.abs(numbers(found) - truth) <= allowed).all()


@pytest.mark.parametrize(("channels", "positions"), [(1, 1), (1, 7), (3, 4096), (130, 33), (8, 49)])
def test_sizes(place, channels, positions):
    for x in (drawn(2, channels, 1, positions), drawn(2, positions, channels)):
        truth = pooled(numbers(x))
        found = numbers(spatial_mean(x.to(place.device)))
        assert (np.abs(found - truth) <= 2.0**-24 * pooled(np.abs(numbers(x)))).all()


def test_a_mean_in_float16_would_overflow(place):
    x = torch.full((2, 3, 16, 16), 60_000.0, dtype=torch.float16, device=place.device)
    assert (spatial_mean(x) == 60_000).all()


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "tokens"])
def test_a_sample_does_not_depend_on_its_batch(place, layout):
    x = LAYOUTS[layout](drawn(33, 20, 7, 7)).to(place.device)
    whole = spatial_mean(x)
    assert torch.equal(whole, torch.cat([spatial_mean(part) for part in x.split([1, 20, 12])]))


def test_bits_do_not_depend_on_threads():
    x, before = drawn(300, 64, 8, 8), torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            found.append(spatial_mean(x))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_nonfinite_values_propagate(place):
    x = drawn(3, 4, 2, 2)
    x[0, 1, 0, 1], x[2, 3, 1, 1] = torch.nan, torch.inf
    found = spatial_mean(x.to(place.device)).isfinite()
    assert (~found).nonzero().tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize("shape", [(0, 4), (0, 4, 3, 3), (0, 5, 4), (3, 0), (3, 0, 2, 2)])
def test_nothing(place, shape):
    width = shape[2] if len(shape) == 3 else shape[1]
    assert spatial_mean(torch.empty(shape, device=place.device)).shape == (shape[0], width)


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        (torch.ones(3), ValueError, r"features: expected \[N, D\].*found shape \(3,\)"),
        (torch.ones(3, 2, 0), None, ""),
        (torch.ones(3, 0, 2), ValueError, "features: expected at least one position"),
        (torch.ones(3, 2, dtype=torch.bool), TypeError, "features: expected float32, float64"),
        ({1.0}, TypeError, "features: expected a torch.Tensor or numpy.ndarray, found set"),
    ],
)
def test_refused(features, error, message):
    if error is None:
        assert spatial_mean(features).shape == (3, 0)
        return
    with pytest.raises(error, match=message):
        spatial_mean(features)


def test_numpy_and_gradients():
    x = drawn(4, 3, 2, 2).requires_grad_()
    found = spatial_mean(x)
    assert not found.requires_grad
    assert torch.equal(found, spatial_mean(x.detach().numpy()))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_torch_backend(place, layout):
    x = LAYOUTS[layout](drawn(4, 8, 4, 6)).to(place.device)
    with resque_ext.backend("torch"):
        plain = spatial_mean(x)
    torch.testing.assert_close(spatial_mean(x), plain, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "tokens", "transposed vectors"])
def test_opcheck(layout):
    torch.library.opcheck(
        torch.ops.resque_ext.spatial_mean.default, (LAYOUTS[layout](drawn(3, 4, 2, 2)),)
    )


def test_compile():
    x = drawn(6, 4, 3, 3)
    compiled = torch.compile(lambda x: spatial_mean(x) * 2, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), spatial_mean(x) * 2)
