"""Normalization taken to new data, against activations matched by hand, one layer after another."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from resque_ext import linear_residual, resque_dist, score
from resque_ext.model import normalization
from resque_ext.shifts import make


def group_norm_cnn():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.GroupNorm(2, 8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3),
        nn.InstanceNorm2d(8, affine=True),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    ).eval()


def batch_norm_cnn():
    model = group_norm_cnn()
    model[1], model[4] = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
    return model.eval()


class Tokens(nn.Module):
    """A small transformer; its last norm runs twice, and is called by keyword."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True, norm_first=True)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.norm(input=self.block(self.embed(x)))
        return self.head(self.norm(input=x + 1).mean(1))


def batches(shape=(3, 8, 8), sizes=(16, 9), seed=0, scale=1.0, offset=0.0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.rand(n, *shape, generator=generator) * scale + offset, torch.arange(n) % 3)
        for n in sizes
    ]


def inputs_of(data):
    return [x for x, _ in data]


def matched(x, old, dims):
    """x with the mean and deviation of `old` in every channel, over `dims`, in float64."""
    x, old = x.double(), old.double()
    deviation = (
        (old.var(dims, False, keepdim=True) + 1e-5) / (x.var(dims, False, keepdim=True) + 1e-5)
    ).sqrt()
    return ((x - x.mean(dims, True)) * deviation + old.mean(dims, True)).float()


def test_group_and_instance_norm_by_hand():
    """One batch, so that what is matched while estimating is what is matched after."""
    model = group_norm_cnn()
    old, new = torch.rand(20, 3, 8, 8), torch.rand(30, 3, 8, 8) * 0.3 + 0.4
    with torch.no_grad():
        x, z = old, new
        for i, layer in enumerate(model):
            if i in (1, 4):
                z = matched(z, x, (0, 2, 3))
            x, z = layer(x.clone()), layer(z.clone())
        copied = normalization.adapted(model, lambda: [new], lambda: [old])
        torch.testing.assert_close(copied(new), z, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model(old), x)
        assert not torch.allclose(model(new), z, atol=1e-2)
        torch.testing.assert_close(copied(new[:5]), z[:5], rtol=1e-4, atol=1e-5)


def test_layer_norm_of_tokens_in_each_of_its_runs():
    model = Tokens().eval()
    old, new = torch.rand(20, 5, 4), torch.rand(30, 5, 4) * 3 - 2
    read = {}

    def keep(which):
        runs = read.setdefault(which, [])
        return lambda _m, _a, kwargs, _y: runs.append(kwargs["input"].clone())

    with torch.no_grad():
        handle = model.norm.register_forward_hook(keep("old"), with_kwargs=True)
        model(old)
        handle.remove()
        copied = normalization.adapted(model, lambda: [new[:18], new[18:]], lambda: [old])
        copied.norm.register_forward_hook(keep("new"), with_kwargs=True)
        copied(new)
    assert len(read["old"]) == len(read["new"]) == 2
    for a, b in zip(read["old"], read["new"], strict=True):
        # Near, not equal: the first of two batches was matched without the second.
        torch.testing.assert_close(b.mean((0, 1)), a.mean((0, 1)), rtol=0, atol=0.1)
        assert (b.std((0, 1)) / a.std((0, 1)) - 1).abs().max() < 0.15


def test_a_constant_channel_and_half_precision():
    model = nn.Sequential(nn.GroupNorm(1, 2)).eval()
    old, new = torch.rand(8, 2, 4, 4), torch.rand(8, 2, 4, 4)
    new[:, 1] = 7
    copied = normalization.adapted(model, lambda: [new], lambda: [old])
    with torch.no_grad():
        expected = model(matched(new, old, (0, 2, 3)))
        torch.testing.assert_close(copied(new), expected, rtol=1e-4, atol=1e-4)
    half = copy.deepcopy(model).bfloat16()
    copied = normalization.adapted(half, lambda: [new.bfloat16()], lambda: [old.bfloat16()])
    with torch.no_grad():
        found = copied(new.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)


class ImageNorm(nn.LayerNorm):
    """As torchvision's LayerNorm2d: over the channels of [N, C, H, W]."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("module", "shape", "dim"),
    [
        (nn.GroupNorm(2, 4), (2, 4, 5, 4), 1),
        (nn.LayerNorm(4), (2, 4, 5, 4), 3),
        (nn.LayerNorm(4), (2, 5, 4), 2),
        (ImageNorm(4), (2, 4, 5, 4), 1),
        (nn.LayerNorm((4, 5, 6)), (2, 4, 5, 6), 1),
        (nn.RMSNorm(4), (2, 3, 4), 2),
    ],
)
def test_where_the_channels_are(module, shape, dim):
    assert normalization.channel_dim(module, torch.rand(shape)) == dim


def test_batch_norm_alone_is_re_estimated_whichever_way_it_is_asked():
    model = batch_norm_cnn()
    old, new = batches(), batches(seed=1, scale=0.3, offset=0.5)
    found = [
        score(model, old, new, adapt_normalization=way, progress=False).value
        for way in (True, "match", False)
    ]
    assert found[0] == found[1] != found[2]
    # Whatever the statistics were: the mean of the means of the batches.
    parts = inputs_of(new)
    model[1].num_batches_tracked += 5
    first = normalization.adapted(model, lambda: parts)[1]
    with torch.no_grad():
        means = [model[0](x).mean((0, 2, 3)) for x in parts]
    torch.testing.assert_close(first.running_mean, torch.stack(means).mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make_model", [group_norm_cnn, Tokens])
def test_score_matches_models_without_running_statistics(make_model):
    model = make_model().eval()
    shape = (3, 8, 8) if make_model is group_norm_cnn else (5, 4)
    old, new = batches(shape), batches(shape, seed=1, scale=0.2, offset=0.5)
    before = copy.deepcopy(model.state_dict())
    plain = score(model, old, new, progress=False)
    found = score(model, old, new, adapt_normalization="match", progress=False)
    copied = normalization.adapted(model, lambda: inputs_of(new), lambda: inputs_of(old))
    head = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    other = [m for m in copied.modules() if isinstance(m, nn.Linear)][-1]
    expected = resque_dist(
        embeddings(model, head, old), embeddings(copied, other, new), labels(old), labels(new)
    )
    assert found.value == pytest.approx(expected.value, rel=1e-9)
    assert found.value < plain.value
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def embeddings(model, head, data):
    read = []
    handle = head.register_forward_pre_hook(lambda _, args: read.append(args[0].clone()))
    with torch.no_grad():
        for x, _ in data:
            model(x)
    handle.remove()
    return torch.cat(read)


def labels(data):
    return torch.cat([y for _, y in data])


@pytest.mark.parametrize("way", [False, True, "match"])
@pytest.mark.parametrize("by_shift", [False, True])
def test_linear_residual_through_score(way, by_shift):
    """The distance is that of the model as it is, the readout that of the adapted one."""
    model, old = batch_norm_cnn(), batches(sizes=(40, 25))
    shift = make("gaussian", 0.3, 5)
    new = batches(sizes=(30, 15), seed=1, scale=0.3, offset=0.5)
    if by_shift:
        new = [(shift(x), y) for x, y in old]
        shift.reset()
    given = {"shift": shift} if by_shift else {"new": new}
    found = score(
        model, old, indices="linear_residual", adapt_normalization=way, progress=False, **given
    )
    copied = normalization.adapted(model, lambda: inputs_of(new)) if way else model
    expected = linear_residual(
        embeddings(model, model[8], old),
        embeddings(model, model[8], new),
        labels(old),
        labels(new),
        adapted=embeddings(copied, copied[8], new) if way else None,
        paired=by_shift,
    )
    assert found.value == pytest.approx(expected.value, rel=1e-6)
    assert found.std_error == pytest.approx(expected.std_error, rel=1e-5)
    assert found.adapted == bool(way)
    assert found.layer == "8:input"
    with torch.no_grad():
        right = sum(int((copied(x).argmax(1) == y).sum()) for x, y in new)
    assert found.new_accuracy == right / len(labels(new))


def test_several_indices_share_what_is_adapted():
    model, old, new = group_norm_cnn(), batches(), batches(seed=1, scale=0.3)
    names = ("resque_dist", "linear_residual")
    both = score(model, old, new, names, adapt_normalization="match", progress=False)
    for name in names:
        alone = score(model, old, new, name, adapt_normalization="match", progress=False)
        assert alone.value == both[name].value
    plain = score(model, old, new, progress=False)
    assert both["linear_residual"].distance == plain.value != both["resque_dist"].value


@pytest.mark.parametrize(
    ("model", "way", "message"),
    [
        (group_norm_cnn(), True, "^adapt_normalization: expected a model with running stat"),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), "match", "expected a model with normaliz"),
        (group_norm_cnn(), "mach", "expected True, False or 'match', found 'mach'"),
    ],
)
def test_what_cannot_be_adapted(model, way, message):
    with pytest.raises(ValueError, match=message):
        score(model, batches(), batches(), adapt_normalization=way, progress=False)


@pytest.mark.parametrize("side", ["old", "new"])
def test_one_shot_data_is_refused_before_it_is_read(side):
    data = {"old": batches(), "new": batches()}
    data[side] = iter(data[side])
    with pytest.raises(TypeError, match=f"^adapt_normalization: expected {side} data that can be"):
        score(group_norm_cnn(), **data, adapt_normalization="match", progress=False)
    assert len(list(data[side])) == 2


@pytest.mark.parametrize("broken", ["old", "new"])
def test_a_loader_that_fails_leaves_the_model_as_it_was(broken):
    class Fails(list):
        def __iter__(self):
            yield from list.__iter__(self)
            raise OSError("the disk is gone")

    model = group_norm_cnn()
    model[5].train()
    data = {"old": batches(), "new": batches()}
    data[broken] = Fails(data[broken])
    with pytest.raises(OSError, match="the disk is gone"):
        score(model, **data, adapt_normalization="match", progress=False)
    assert [m.training for m in model] == [False] * 5 + [True] + [False] * 3
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_a_layer_that_runs_more_often_on_the_new_side():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(4)

        def forward(self, x):
            return self.norm(self.norm(x)) if x.mean() > 1 else self.norm(x)

    with pytest.raises(KeyError, match=r"expected 'norm' to run as often on both sides"):
        normalization.adapted(Twice(), lambda: [torch.ones(2, 4) * 2], lambda: [torch.zeros(2, 4)])


def test_moments_are_numpys_and_of_any_batches():
    x = np.random.default_rng(0).standard_normal((50, 4, 3, 5)).astype(np.float32) + 100
    moments = normalization.ChannelMoments()
    for part in np.split(x, [7, 7, 30]):
        moments.add(torch.from_numpy(part), 1)
    mean, variance = moments.mean_and_variance()
    np.testing.assert_allclose(mean, x.astype(np.float64).mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(variance, x.astype(np.float64).var((0, 2, 3)), rtol=1e-8)


def test_nothing_to_match_to_is_said():
    model = group_norm_cnn()
    full = [(torch.rand(4, 3, 8, 8), torch.arange(4) % 2)]
    empty = [(torch.rand(0, 3, 8, 8), torch.zeros(0, dtype=torch.int64))]
    with pytest.raises(ValueError, match=r"^old: expected rows to match the new side to, found no"):
        score(model, empty, full, adapt_normalization="match", progress=False)
