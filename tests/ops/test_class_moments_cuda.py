"""class_moments on a GPU alone: streams, graphs, devices, and more elements than 32 bits count."""

import pytest
import torch
from helpers import oracles
from helpers.class_moments_made import EXACT, arrays, drawn, labels_for, truth

from resque_ext.ops import backend as _backend
from resque_ext.ops import class_moments


@pytest.fixture
def on_cuda():
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    if not hasattr(_backend.extension(), "cuda"):
        pytest.skip("resque_ext was built without CUDA kernels")
    x, y = drawn(5_000, 32), labels_for(5_000, 10)
    return x.cuda(), y.cuda(), oracles.class_moments(truth(x), y.numpy(), 10)


def test_unchecked_cuda_calls_do_not_wait(on_cuda):
    x, y, expected = on_cuda
    expected.check(arrays(class_moments(x, y, 10)), EXACT)
    y[3] = 99
    torch.cuda.set_sync_debug_mode("error")
    try:
        class_moments(x, y, 10)
        class_moments(x.view(5_000, 8, 2, 2), y, 10, nonfinite="skip")
        with pytest.raises(RuntimeError, match="synchroniz"):
            class_moments(x, y, 10, check=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with pytest.raises(ValueError, match=r"found 99 at position 3$"):
        class_moments(x, y, 10, check=True)


def test_a_side_stream(on_cuda):
    x, y, expected = on_cuda
    stream = torch.cuda.Stream()
    slow = torch.zeros_like(x)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # on another stream the zeros would be read
        slow.copy_(x)
        found = class_moments(slow, y, 10)
    stream.synchronize()
    expected.check(arrays(found), EXACT)


def test_a_cuda_graph(on_cuda):
    x, y, expected = on_cuda
    class_moments(x, y, 10)
    still, graph = torch.zeros_like(x), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = class_moments(still, y, 10)
    still.copy_(x)
    graph.replay()
    torch.cuda.synchronize()
    expected.check(arrays(found), EXACT)


def test_another_current_device(on_cuda):
    x, y, expected = on_cuda
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    there = torch.device("cuda:1")
    assert torch.cuda.current_device() == 0
    found = class_moments(x.to(there), y.to(there), 10)
    assert {part.device for part in found} == {there}
    assert torch.cuda.current_device() == 0
    expected.check(arrays(found), EXACT)
    with pytest.raises(ValueError, match=r"expected one device.*cuda:1.*cuda:0"):
        class_moments(x.to(there), y, 10)


def test_features_on_cuda_and_labels_not(on_cuda):
    x, y, _ = on_cuda
    with pytest.raises(ValueError, match=r"expected one device.*cuda:0.*cpu"):
        class_moments(x, y.cpu(), 10)


@pytest.mark.parametrize("positions", [1, 4])
def test_more_elements_than_32_bits_can_count_on_cuda(on_cuda, positions):
    n, width = 2**21 + 9, 1024
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GB of GPU memory")
    x = torch.zeros(n, width // positions, positions, dtype=torch.float16, device="cuda")
    x[-1, -1] = x[0, -1] = 8
    y = torch.zeros(n, dtype=torch.int32, device="cuda")
    y[-1] = 1
    # [n, channels] as it is, and the means of positions that lie side by side
    features = x[..., 0] if positions == 1 else x.view(n, -1, 2, 2)
    counts, sums, sumsq = class_moments(features, y, 2, check=True)
    assert counts.tolist() == [n - 1, 1]
    assert sums[:, -1].tolist() == [8, 8]
    assert sumsq[:, -1].tolist() == [64, 64]
