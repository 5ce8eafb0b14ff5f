"""Backbones, whose output is an embedding: which part of it is read, by hand without the package's
own hooks."""

import pytest
import torch
from helpers import optional
from helpers.score_made import run as score
from torch import nn

from resque_ext import resque_dist

CLASSES = 3


def side(seed, shape=(3, 16, 16), rows=12):
    g = torch.Generator().manual_seed(seed)
    return [(torch.rand(rows, *shape, generator=g) * seed, torch.arange(rows) % CLASSES)]


def right(function, old, new):
    """RESQUE_dist of what `function` makes of the inputs, in float64."""
    with torch.no_grad():
        x = [function(x).double() for ((x, _),) in (old, new)]
    return resque_dist(*x, old[0][1], new[0][1], CLASSES).value


class Residual(nn.Module):
    """Its shortcut is a convolution of single pixels that is as wide as the output."""

    def __init__(self, width, to, stride=2):
        super().__init__()
        self.conv = nn.Conv2d(width, to, 3, stride, 1)
        self.norm = nn.BatchNorm2d(to)
        self.downsample = nn.Conv2d(width, to, 1, stride)

    def forward(self, x):
        return (self.norm(self.conv(x)) + self.downsample(x)).relu()


def stages():
    return nn.Sequential(Residual(3, 8), Residual(8, 16))


def test_a_pooled_map_is_the_embedding_and_no_head():
    model = nn.Sequential(stages(), nn.AdaptiveAvgPool2d(1)).eval()
    old, new = side(1), side(2)
    found = score(model, old, new)
    assert found.layer == "output"
    assert found.old_accuracy is None
    assert found.value == pytest.approx(right(lambda x: model(x)[:, :, 0, 0], old, new), rel=1e-6)
    read = score(model, old, new, indices="arm")
    assert "0.1.downsample" in read.layers
    assert not read.skipped


def test_a_pooled_signal_is_the_embedding():
    model = nn.Sequential(nn.Conv1d(2, 8, 1), nn.ReLU(), nn.AdaptiveMaxPool1d(1)).eval()
    old, new = side(1, (2, 9)), side(2, (2, 9))
    found = score(model, old, new)
    assert found.layer == "output"
    assert found.value == pytest.approx(right(lambda x: model(x)[:, :, 0], old, new), rel=1e-6)


class Pooled(nn.Module):
    """Nothing but the shape says where the channels of its output are."""

    def __init__(self):
        super().__init__()
        self.stages = stages()

    def forward(self, x):
        return self.stages(x).repeat(1, 2, 1, 1).amax((2, 3), keepdim=True)


def test_one_position_tells_where_the_channels_are():
    model, old, new = Pooled().eval(), side(1), side(2)
    found = score(model, old, new)
    assert found.layer == "output"
    assert found.value == pytest.approx(right(lambda x: model(x).flatten(1), old, new), rel=1e-6)


class Summed(nn.Module):
    """Scores of pixels that are the sum of two heads'."""

    def __init__(self):
        super().__init__()
        self.body, self.low, self.high = stages(), nn.Conv2d(16, 4, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x):
        x = self.body(x)
        scores = self.high(x.sigmoid()) + self.low(x)
        return {"out": nn.functional.interpolate(scores, (16, 16), mode="bilinear")}


def test_heads_of_pixels_whose_sum_is_returned():
    model, old, new = Summed().eval(), side(1), side(2)
    found = score(model, old, new, indices=("resque_dist", "arm"))
    assert found.layer == "low:input"
    expected = right(lambda x: model.body(x).mean((2, 3)), old, new)
    assert found["resque_dist"].value == pytest.approx(expected, rel=1e-6)
    assert {"low", "high"} <= set(found.skipped)


class Depths(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.stages, self.kind = stages(), kind

    def forward(self, x):
        first = self.stages[0](x)
        return self.kind([first, self.stages[1](first)])


@pytest.mark.parametrize(
    ("kind", "layer"),
    [(list, "output:1"), (tuple, "output:1"), (lambda x: {"a": x[0], "b": x[1]}, "output:b")],
)
def test_of_maps_at_several_depths_the_last_is_the_embedding(kind, layer):
    model, old, new = Depths(kind).eval(), side(1), side(2)
    found = score(model, old, new)
    assert found.layer == layer
    assert found.pooling == "mean"
    expected = right(lambda x: model.stages(x).mean((2, 3)), old, new)
    assert found.value == pytest.approx(expected, rel=1e-6)


def test_a_mapping_of_one_tensor_is_that():
    model, old, new = Depths(lambda x: {"emb": x[1].amax((2, 3))}).eval(), side(1), side(2)
    found = score(model, old, new)
    assert found.layer == "output:emb"
    expected = right(lambda x: model.stages(x).amax((2, 3)), old, new)
    assert found.value == pytest.approx(expected, rel=1e-6)


class Pixels(nn.Module):
    """Scores of pixels on a coarse grid, and an auxiliary head that runs behind the model's own."""

    def __init__(self, resize):
        super().__init__()
        self.first, self.second = stages()
        self.own, self.aux, self.resize = nn.Conv2d(16, 4, 1), nn.Conv2d(8, 4, 1), resize

    def forward(self, x):
        a = self.first(x)
        b = self.second(a)
        return {"out": self.resize(self.own(b)), "aux": self.resize(self.aux(a))}


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "bilinear", "align_corners": False},
        {"mode": "bilinear", "align_corners": True},
        {"mode": "nearest"},
    ],
)
def test_the_head_of_pixels_is_the_one_whose_scores_come_first(options):
    model = Pixels(lambda x: nn.functional.interpolate(x, (16, 16), **options)).eval()
    old, new = side(1), side(2)
    found = score(model, old, new)
    assert found.layer == "own:input"
    expected = right(lambda x: model.second(model.first(x)).mean((2, 3)), old, new)
    assert found.value == pytest.approx(expected, rel=1e-6)


@pytest.mark.full
def test_torchvision_backbones():
    models = optional.module("torchvision").models
    from torchvision.models.feature_extraction import create_feature_extractor

    net = models.resnet18(weights=None).eval()
    old, new = side(1, (3, 64, 64)), side(2, (3, 64, 64))
    trunk = nn.Sequential(*list(net.children())[:-1]).eval()
    maps = create_feature_extractor(net, {"layer3": "a", "layer4": "b"}).eval()
    expected = right(lambda x: trunk(x).flatten(1), old, new)
    for model, layer in ((trunk, "output"), (maps, "output:b")):
        found = score(model, old, new)
        assert found.layer == layer
        assert found.value == pytest.approx(expected, rel=1e-6)


@pytest.mark.full
@pytest.mark.parametrize(
    "options", [{"num_classes": 0, "global_pool": ""}, {"features_only": True}]
)
def test_timm_backbones(options):
    timm = optional.module("timm")
    model = timm.create_model("resnet18", pretrained=False, **options).eval()
    old, new = side(1, (3, 64, 64)), side(2, (3, 64, 64))

    def last(x):
        y = model(x)
        return (y[-1] if isinstance(y, list) else y).mean((2, 3))

    assert score(model, old, new).value == pytest.approx(right(last, old, new), rel=1e-6)
