"""Data without labels, and labels that the model predicts."""

import numpy as np
import pytest
import torch
from helpers.score_made import run as score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from resque_ext import arm, representation_distance, resque_dist, resque_task

CLASSES = 3


def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, CLASSES)).eval()


def side(seed, sizes=(16, 9)):
    g = torch.Generator().manual_seed(seed)
    return [
        (3 * torch.randn(n, 6, generator=g) + seed / 2, torch.arange(n) % CLASSES) for n in sizes
    ]


OLD, NEW = side(0), side(1)
FORMS = {
    "bare": lambda x, y: x,
    "array": lambda x, y: x.numpy(),
    "a list of one": lambda x, y: [x],
    "None": lambda x, y: (x, None),
    "floats": lambda x, y: (x, y / 3),
    "multi-hot": lambda x, y: (x, torch.eye(CLASSES)[y]),
    "per pixel": lambda x, y: (x, y[:, None, None].expand(-1, 4, 4)),
    "text": lambda x, y: (x, [str(int(i)) for i in y]),
    "mapping": lambda x, y: {"input": x},
    "mapping with labels": lambda x, y: {"input": x, "labels": y / 3},
}
on_forms = pytest.mark.parametrize("form", FORMS)


def formed(data, form):
    return [FORMS[form](x, y) for x, y in data]


@on_forms
def test_arm_and_p_read_no_labels(form):
    model = make()
    old, new = formed(OLD, form), formed(NEW, form)
    found = score(model, old, new, indices=("arm", "representation_distance"), paired=True)
    with torch.no_grad():
        sides = [torch.cat([model[0](x) for x, _ in data]) for data in (OLD, NEW)]
    assert found["arm"].value == pytest.approx(arm(*sides).value, rel=1e-6)
    p = representation_distance(*({"0": x} for x in sides)).p[32]["jensen_shannon"]
    assert found["representation_distance"].value == pytest.approx(p, rel=1e-9)
    assert found.layers == ("0",)
    assert found.old_accuracy is found.new_accuracy is None
    assert found.labels is None
    labelled = score(model, OLD, NEW, indices="arm")
    assert labelled.value == found["arm"].value
    assert labelled.old_accuracy is not None


def test_loaders_without_labels():
    data = [DataLoader(TensorDataset(torch.cat([x for x, _ in s])), 10) for s in (OLD, NEW)]
    found = score(make(), *data, indices="arm")
    assert found.value == pytest.approx(score(make(), OLD, NEW, indices="arm").value, rel=1e-6)
    shifted = score(make(), data[0], shift=lambda x: x + 0.5, indices="representation_distance")
    assert shifted.value > 0


@on_forms
@pytest.mark.parametrize("index", ["resque_dist", "resque_task", "linear_residual"])
def test_class_wise_indices_say_what_can_be_done(form, index):
    with pytest.raises((TypeError, ValueError)) as caught:
        score(make(), OLD, formed(NEW, form), indices=index)
    message = str(caught.value)
    assert message.startswith("new")
    assert "labels='predicted'" in message
    assert "batch_adapter=" in message


@on_forms
def test_predicted_labels_of_the_new_side(form):
    """Against the model's own classes, taken by hand."""
    model = make()
    names = ("resque_dist", "resque_task", "linear_residual", "arm")
    found = score(model, OLD, formed(NEW, form), indices=names, labels="predicted")
    with torch.no_grad():
        x = [torch.cat([model[:2](x) for x, _ in data]) for data in (OLD, NEW)]
        predicted = torch.cat([model(x).argmax(1) for x, _ in NEW])
    given = torch.cat([y for _, y in OLD])
    expected = resque_dist(*x, given, predicted, CLASSES)
    np.testing.assert_allclose(found["resque_dist"].per_class, expected.per_class, rtol=1e-9)
    assert found["resque_task"].value == resque_task(x[1], predicted).value
    assert {found[n].labels for n in names[:3]} == {"predicted"}
    assert found.labels == "predicted"
    assert found.old_accuracy is not None
    if form in ("bare", "None", "mapping"):
        assert found.new_accuracy is None
    assert score(model, OLD, NEW).labels == "given"


def test_predicted_labels_of_both_sides_where_the_old_one_has_none():
    model = make()
    bare = [[x for x, _ in data] for data in (OLD, NEW)]
    skip = {"resque_dist": {"missing": "skip"}}  # the model may not predict every class
    found = score(model, *bare, labels="predicted", options=skip)
    with torch.no_grad():
        x = [torch.cat([model[:2](x) for x in data]) for data in bare]
        y = [torch.cat([model(x).argmax(1) for x in data]) for data in bare]
    assert found.value == pytest.approx(resque_dist(*x, *y, CLASSES, "skip").value, rel=1e-9)
    task = score(model, None, bare[1], indices="resque_task", labels="predicted")
    assert task.value == resque_task(x[1], y[1]).value
    both = score(model, bare[0], shift=lambda x: x * 1.2, indices="preindex", labels="predicted")
    assert both.labels == "predicted"


def test_accuracy_is_of_the_labels_that_were_given():
    model = make()
    found = score(model, OLD, NEW, labels="predicted")
    with torch.no_grad():
        hits = sum(int((model(x).argmax(1) == y).sum()) for x, y in NEW)
    assert found.new_accuracy == hits / 25


def test_a_model_that_is_no_classifier_predicts_nothing():
    model = nn.Sequential(make()[:2], nn.LayerNorm(8))
    bare = [x for x, _ in NEW]
    with pytest.raises(ValueError, match="expected 'given', because the model is no classif"):
        score(model, OLD, bare, labels="predicted")


def test_inputs_without_a_tensor():
    with pytest.raises(TypeError, match=r"old: expected inputs with a tensor, .*found list"):
        score(make(), [[["a", "b"]]], [["a"]], indices="arm")
