"""Small models, batches for them, indices of activations taken by hand, a model as it was."""

import copy
import dataclasses

import numpy as np
import torch
from torch import nn

from resque_ext import ResqueDistResult, resque_dist, score

SIDES = ("old", "new")
CLASSES = 3


def mlp(width=6, classes=CLASSES, **options):
    return nn.Sequential(
        nn.Linear(width, 8, **options), nn.ReLU(inplace=True), nn.Linear(8, classes, **options)
    )


def cnn():
    """Layer "1" is changed in place right after it has run, and so is "3"."""
    model = nn.Sequential(
        nn.Conv2d(2, 5, 3),
        nn.BatchNorm2d(5),
        nn.ReLU(inplace=True),
        nn.Conv2d(5, 7, 3),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(7, CLASSES),
    )
    model[1].running_mean.uniform_(-0.3, 0.3)
    model[1].running_var.uniform_(0.5, 2)
    return model.eval()


def batches(shape=(6,), sizes=(16, 16, 9), seed=0, classes=CLASSES, dtype=torch.float32):
    """Batches of two sides' worth of noise, every class in each of them but the smallest."""
    rng = torch.Generator().manual_seed(seed)
    made = []
    for n in sizes:
        labels = torch.randperm(n, generator=rng) % classes
        x = torch.randn(n, *shape, generator=rng) + labels.view(-1, *[1] * len(shape)) + seed
        made.append((x.to(dtype), labels))
    return made


def run(model, old, new=None, **options):
    return score(model, old, new, **{"progress": False, **options})


def by_hand(old, new, layer, logits=None, classes=CLASSES, paired=False):
    """resque_dist of `layer(x)` taken in eval mode outside of score, and the two accuracies."""
    layers = layer if isinstance(layer, tuple) else (layer, layer)
    with torch.no_grad():
        x = [torch.cat([f(x) for x, _ in side]) for f, side in zip(layers, (old, new), strict=True)]
        y = [torch.cat([y for _, y in side]) for side in (old, new)]
        accuracies = [None, None]
        if logits is not None:
            both = logits if isinstance(logits, tuple) else (logits, logits)
            for i, (f, side) in enumerate(zip(both, (old, new), strict=True)):
                hits = sum(int((f(x).argmax(1) == y).sum()) for x, y in side)
                accuracies[i] = hits / len(y[i])
    result = resque_dist(*x, *y, classes, "skip", paired=paired)
    return dataclasses.replace(result, old_accuracy=accuracies[0], new_accuracy=accuracies[1])


def agree(found, expected, layer, tolerance=1e-12):
    assert isinstance(found, ResqueDistResult)
    assert found.layer == layer
    np.testing.assert_allclose(found.per_class, expected.per_class, rtol=tolerance, atol=1e-14)
    np.testing.assert_allclose(found.value, expected.value, rtol=tolerance, atol=1e-14)
    for name in ("std_error", "noise_floor"):
        a, b = getattr(found, name), getattr(expected, name)
        assert (a is None) == (b is None)
        if b is not None:
            np.testing.assert_allclose(a, b, rtol=max(tolerance, 1e-9))
    assert found.missing == expected.missing
    for side in SIDES:
        np.testing.assert_array_equal(found.counts[side], expected.counts[side])
    assert found.old_accuracy == expected.old_accuracy
    assert found.new_accuracy == expected.new_accuracy


class Same:
    """A model and the torch around it are as they were when this was made."""

    def __init__(self, model):
        self.model = model
        self.training = [m.training for m in model.modules()]
        self.state = copy.deepcopy(model.state_dict())
        self.grads = [p.requires_grad for p in model.parameters()]
        self.torch = self.around()

    @staticmethod
    def around():
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_rng_state()

    def check(self):
        assert [m.training for m in self.model.modules()] == self.training
        for m in self.model.modules():
            assert not m._forward_hooks
            assert not m._forward_pre_hooks
        now = self.model.state_dict()
        assert now.keys() == self.state.keys()
        for key, tensor in now.items():
            assert torch.equal(tensor, self.state[key]), key
        assert [p.requires_grad for p in self.model.parameters()] == self.grads
        assert all(p.grad is None for p in self.model.parameters())
        assert self.around()[:2] == self.torch[:2]
