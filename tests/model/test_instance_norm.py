"""Instance norm with running statistics is re-estimated as batch-norm is, against float64."""

import numpy as np
import pytest
import torch
from torch import nn

from resque_ext import score
from resque_ext.model import normalization


def model(affine=True):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.InstanceNorm2d(3, affine=affine, track_running_stats=True, momentum=0.3),
        nn.Conv2d(3, 6, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    ).eval()


def images(n, seed=0, scale=1.0, offset=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, 6, 6, generator=generator) * scale + offset


def statistics(batches):
    """Means over batches of the samples' own means and (unbiased) variances, by channel."""
    of = [x.numpy().astype(np.float64) for x in batches]
    mean = np.mean([x.mean((2, 3)).mean(0) for x in of], axis=0)
    return mean, np.mean([x.var((2, 3), ddof=1).mean(0) for x in of], axis=0)


@pytest.mark.parametrize("sizes", [(8,), (8, 3, 5)])
def test_statistics_are_cumulative_averages(sizes):
    net = model()
    before = {key: x.clone() for key, x in net.state_dict().items()}
    new = images(sum(sizes), 1, 4.0, -3.0)
    parts = new.split(sizes)
    copied = normalization.adapted(net, lambda: parts)
    mean, variance = statistics(parts)
    layer = copied[0]
    np.testing.assert_allclose(layer.running_mean, mean, rtol=1e-5)
    np.testing.assert_allclose(layer.running_var, variance, rtol=1e-5)
    assert int(layer.num_batches_tracked) == len(sizes)
    assert not layer.training
    assert not layer._forward_pre_hooks
    read = (new.double() - torch.tensor(mean)[:, None, None]) / (
        torch.tensor(variance)[:, None, None] + layer.eps
    ).sqrt()
    with torch.no_grad():
        torch.testing.assert_close(layer(new), read.float(), rtol=1e-4, atol=1e-5)
    for key, x in net.state_dict().items():
        assert torch.equal(x, before[key])
    assert net[0].momentum == 0.3


def test_a_layer_that_runs_twice_counts_both():
    layer = nn.InstanceNorm1d(2, track_running_stats=True)
    twice = nn.Sequential(layer, layer).eval()
    x = torch.rand(4, 2, 9) * 3 + 1
    copied = normalization.adapted(twice, lambda: [x])
    own = (x - x.mean(2, True)) / (x.var(2, False, keepdim=True) + layer.eps).sqrt()
    expected = (x.mean((0, 2)) + own.mean((0, 2))) / 2
    torch.testing.assert_close(copied[0].running_mean, expected, rtol=1e-4, atol=1e-5)
    assert int(copied[0].num_batches_tracked) == 2


@pytest.mark.parametrize("way", [True, "match"])
def test_a_change_of_scale_is_no_shift_after_it(way):
    old = [(images(30, s), torch.arange(30) % 3) for s in range(2)]
    net = normalization.adapted(model(), lambda: [x for x, _ in old])
    far = [(5 * x + 3, y) for x, y in old]
    assert score(net, old, far, progress=False).value > 0.02
    found = score(net, old, far, adapt_normalization=way, progress=False)
    assert found.value < 1e-4


def test_with_statistics_it_is_re_estimated_and_without_matched():
    net = nn.Sequential(nn.InstanceNorm2d(3), nn.InstanceNorm2d(3, track_running_stats=True))
    assert list(normalization.matchable(net)) == ["0"]
    assert list(normalization.reestimable(net)) == ["1"]


def test_a_sample_of_one_position_has_no_variance():
    net = nn.Sequential(nn.InstanceNorm2d(3, track_running_stats=True)).eval()
    with pytest.raises(ValueError, match=r"^new: expected two or more values a channel in every s"):
        normalization.adapted(net, lambda: [torch.rand(5, 3, 1, 1)])
