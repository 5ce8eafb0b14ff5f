"""The indices that are simple company for the others, and linear_residual, wherever they work."""

import numpy as np
import pytest
import torch
from helpers import screening_made
from torch import nn

from resque_ext import resque_task, score, screen

BASELINES = ("accuracy_drop", "linear_probe", "nearest_class_mean")


@pytest.fixture(scope="module")
def data():
    sides = screening_made.digits(300), screening_made.digits(200, 0.4, 1)
    return [[(torch.from_numpy(x), torch.from_numpy(y))] for x, y in sides]


def accuracy(model, side):
    ((x, y),) = side
    return float((model(x).argmax(1) == y).double().mean())


def test_they_are_what_they_say(data):
    model = screening_made.Small(3)
    found = score(model, *data, indices=(*BASELINES, "resque_task"), progress=False)
    drop = accuracy(model, data[0]) - accuracy(model, data[1])
    assert found["accuracy_drop"].value == pytest.approx(drop, abs=1e-12)
    assert found["accuracy_drop"].old_accuracy == found.old_accuracy
    task = found["resque_task"]
    assert found["linear_probe"].value == task.linear_probe_error
    assert found["nearest_class_mean"].value == task.nearest_class_mean_error
    assert found["linear_probe"].layer == "head:input"
    probe = [line for line in task.warnings if line.startswith("linear_probe_error")]
    assert list(found["linear_probe"].warnings) == probe
    assert found["linear_probe"].reliable == (not probe)


def test_those_of_the_new_side_need_no_old_one(data):
    model = screening_made.Small(3)
    found = score(model, None, data[1], indices=BASELINES[1:], progress=False)
    assert {name: result.value for name, result in found.items()} == {
        name: score(model, *data, indices=name, progress=False).value for name in BASELINES[1:]
    }
    with pytest.raises(TypeError, match=r"^old: expected batches, because 'accuracy_drop' reads"):
        score(model, None, data[1], indices=BASELINES, progress=False)


@pytest.mark.parametrize("name", BASELINES[1:])
def test_all_positions_may_be_read(name):
    """Of maps, whose mean over positions says nothing here."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(120) % 2
    x = 0.1 * torch.randn(120, 1, 2, 2, generator=generator)
    x[:, 0, 0, 0] += y
    x[:, 0, 1, 1] -= y
    body = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.ones_(body.weight)
    model = nn.Sequential(body, nn.Flatten(), nn.Linear(4, 2))
    options = {"layer": "0", "progress": False, "indices": name}
    pooled = score(model, None, [(x, y)], **options)
    flat = score(model, None, [(x, y)], options={name: {"embedding": "flattened"}}, **options)
    assert (pooled.pooling, flat.pooling) == ("mean", "flattened")
    assert flat.value == 0 < 0.2 < pooled.value
    expected = resque_task(x.flatten(1), y, chance=0, baselines=True)
    assert flat.value == getattr(expected, f"{name}_error")


def test_no_classifier_has_no_accuracy():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    data = [[(torch.randn(6, 4), torch.arange(6) % 3)] for _ in range(2)]
    with pytest.raises(ValueError, match=r"^model: expected a classifier, .* found no accuracy$"):
        score(model, *data, indices="accuracy_drop", progress=False)


@pytest.mark.parametrize("width", [4, 5000])
def test_a_probe_that_cannot_be_made(width):
    rows = 1 if width == 4 else 3
    data = [(torch.randn(rows, width), torch.zeros(rows).long())]
    model = nn.Sequential(nn.Identity(), nn.Linear(width, 2))
    expected = rf"^linear_probe_error: .*expected at least two rows .* found shape \(\d, {width}\)$"
    with pytest.raises(ValueError, match=expected):
        score(model, None, data, indices="linear_probe", progress=False)


def test_screen_takes_them_where_the_data_allow_it():
    """Embeddings at hand have been through no model that could be right or wrong."""
    x, y = screening_made.digits(300)
    levels = {"near": 0.05, "far": 0.8}
    inputs = {name: screening_made.digits(200, level, 5) for name, level in levels.items()}
    indices = (*BASELINES, "linear_residual")
    options = {"progress": False, "rank_by": "linear_residual"}
    found = screen(screening_made.models(1), (x, y), inputs, indices, **options)
    assert [row.result.candidate for row in found] == ["near", "far"]
    for row in found:
        assert set(row.result.indices) == set(indices)
        model, new = screening_made.Small(0), inputs[row.result.candidate]
        one = [[tuple(map(torch.from_numpy, side))] for side in ((x, y), new)]
        whole = score(model, *one, indices=indices, progress=False)
        for name in indices:
            assert row.result.indices[name].value == pytest.approx(whole[name].value, abs=1e-9)
    for row in screen({"given": None}, (x, y), inputs, indices[1:], **options):
        assert set(row.result.indices) == set(indices[1:])
        assert np.isfinite([v.value for v in row.result.indices.values()]).all()
    with pytest.raises(ValueError, match=r"^indices: expected inputs of a model for 'accuracy_d"):
        screen({"given": None}, (x, y), inputs, "accuracy_drop", progress=False)
