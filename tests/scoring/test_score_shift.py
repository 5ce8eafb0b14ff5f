"""score with shift= and adapt_normalization=: against shifted batches and statistics by hand."""

import copy

import pytest
import torch
from helpers.score_made import CLASSES, Same, agree, batches, by_hand, cnn, mlp, run
from torch import nn

from resque_ext import score


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


# shift


class Alternating:
    """Adds one thing to every other batch, starting anew after reset()."""

    def __init__(self):
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        return x + torch.arange(x[0].numel()).view(x[0].shape) * (self.calls % 2)

    def reset(self):
        self.calls = 0


@pytest.mark.parametrize("layer", [None, "0"])
def test_shift_makes_a_paired_new_side(layer):
    model, old = mlp(), batches(seed=0)
    shift = Alternating()
    new = [(shift(x), y) for x, y in old]
    same = Same(model)
    found = run(
        model, (b for b in old), shift=Alternating(), layer=layer
    )  # one pass for both sides
    same.check()
    take = model[:2] if layer is None else model[:1]
    agree(found, by_hand(old, new, take, model, paired=True), layer or "2:input")
    shift(old[0][0])  # used before: it begins anew
    agree(run(model, old, shift=shift, layer=layer), found, found.layer)
    apart = run(model, old, new, layer=layer)
    assert found.value == apart.value
    assert found.std_error < apart.std_error
    assert run(model, old, new, layer=layer, paired=True).std_error == found.std_error


def test_paired_sides_must_match():
    model, old = mlp(), batches(seed=0)
    with pytest.raises(ValueError, match="paired: expected as many rows of each class"):
        run(model, old, old[:2], paired=True)


def test_a_shift_that_works_in_place_changes_neither_the_data_nor_the_index():
    """Both passes over the new side, and the old side, start from the caller's own images."""
    old = batches((2, 8, 8), seed=0)
    kept = [(x.clone(), y) for x, y in old]
    model = cnn()
    for adapt in (False, True):
        runs = [
            score(model, old, shift=shift, adapt_normalization=adapt, progress=False).value
            for shift in (lambda x: x * 3 + 1, lambda x: x.mul_(3).add_(1))
        ]
        assert runs[0] == runs[1]
        assert all(torch.equal(a[0], b[0]) for a, b in zip(old, kept, strict=True))


# adapt_normalization


def adapted(model, new):
    """By hand: only batch norm in train mode, from scratch, cumulative averages over batches."""
    model = copy.deepcopy(model).eval()
    for m in model.modules():
        if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) and m.track_running_stats:
            m.reset_running_stats()
            m.momentum = None
            m.train()
    with torch.no_grad():
        for x, _ in new:
            model(x)
    return model.eval()


def test_adapted_normalization_on_the_new_side_only():
    """With dropout before the batch norm, whose statistics would show it if it were on."""
    model = nn.Sequential(nn.Dropout(0.5), *cnn())
    old, new = batches((2, 8, 8), seed=0), batches((2, 8, 8), (20, 13), seed=2)
    other = adapted(model, new)
    model.train()
    model[4].eval()
    same = Same(model)
    found = run(model, old, new, adapt_normalization=True)
    same.check()  # bit for bit, its statistics and batch counts too
    plain = copy.deepcopy(model).eval()
    expected = by_hand(old, new, (plain[:-1], other[:-1]), (plain, other))
    agree(found, expected, "9:input", 1e-6)
    assert abs(found.value - run(model, old, new).value) > 1e-3
    assert model[2].momentum == 0.1
    # Statistics start from scratch each time.
    agree(run(model, old, new, adapt_normalization=True), found, "9:input")


def test_adapted_normalization_with_shift():
    model, old = cnn(), batches((2, 8, 8), seed=0)
    shift = Alternating()
    new = [(shift(x), y) for x, y in old]
    other = adapted(model, new)
    shift(old[0][0])  # used before: each pass begins anew, and so sees the same shifted data
    same = Same(model)
    found = run(model, old, shift=shift, adapt_normalization=True)
    same.check()
    expected = by_hand(old, new, (model[:-1], other[:-1]), (model, other), paired=True)
    agree(found, expected, "8:input", 1e-6)
    agree(run(model, old, shift=shift, adapt_normalization=True), found, "8:input")


def test_adapted_normalization_undoes_a_change_of_scale():
    """What batch norm takes out of its input is no shift after it."""
    model = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, CLASSES))
    old = batches(sizes=(300, 300), seed=0)
    model = adapted(model, old)
    far = [(5 * x + 3, y) for x, y in old]
    assert run(model, old, far).value > 0.05
    assert run(model, old, far, adapt_normalization=True).value < 1e-5


def test_adapted_normalization_needs_something_to_adapt():
    old = batches()
    still = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, track_running_stats=False), *mlp(8))
    for model in (mlp(), nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 3)), still):
        same = Same(model)
        with pytest.raises(
            ValueError,
            match=r"^adapt_normalization: expected a model with running statistics .*, found "
            r"none in Sequential",
        ):
            run(model, old, old, adapt_normalization=True)
        same.check()


def test_adapted_normalization_needs_data_twice():
    model, old = cnn(), batches((2, 8, 8))
    same = Same(model)
    message = "adapt_normalization: .* read twice .* found the one-shot iterator"
    with pytest.raises(TypeError, match=f"{message} list_iterator"):
        run(model, old, iter(old), adapt_normalization=True)
    with pytest.raises(TypeError, match=f"{message} generator"):
        run(model, (b for b in old), shift=torch.neg, adapt_normalization=True)
    same.check()
    assert run(model, iter(old), old, adapt_normalization=True).value > 0  # the old side: once


def test_adapted_normalization_leaves_empty_batches_out():
    model, old, new = cnn(), batches((2, 8, 8), seed=0), batches((2, 8, 8), seed=1)
    empty = (new[0][0][:0], new[0][1][:0])
    expected = run(model, old, new, adapt_normalization=True)
    found = run(model, old, [new[0], empty, *new[1:]], adapt_normalization=True)
    agree(found, expected, "8:input")
