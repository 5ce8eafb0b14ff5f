"""PreIndex: its formula and parts, the three clusterings, and what is refused."""

import json

import pytest
import torch

from resque_ext import preindex, representation_distance, resque_task, score, shifts
from resque_ext.indices.resque_task import class_means


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def data(rows=60, classes=3):
    labels = torch.arange(rows) % classes
    old = {"a": torch.randn(rows, 20), "b": torch.rand(rows, 12, 3, 3)}
    new = {k: v + 0.3 * torch.randn_like(v) for k, v in old.items()}
    maps = torch.randn(rows, 4, 2, 2) + labels[:, None, None, None]
    return old, new, maps, maps + torch.randn_like(maps), labels


def test_parts_and_formula():
    old, new, before, after, labels = data()
    r = preindex(old, new, before, after, labels)
    distances = representation_distance(old, new)
    assert r.p == distances.p
    flat = [x.flatten(1) for x in (before, after)]
    assert r.inv_ari["old"] == resque_task(flat[0], labels).value
    assert r.inv_ari["new"] == resque_task(flat[1], labels).value
    centers = torch.stack([flat[0][labels == c].double().mean(0) for c in range(3)])
    assert torch.allclose(class_means(before, labels), centers, rtol=1e-12)
    assert r.inv_ari["new_from_old_centers"] == resque_task(flat[1], labels, init=centers).value
    assert r.value == float(r) == distances.p[32]["jensen_shannon"] + r.inv_ari["new"]
    assert r.layer_values == {k: v[32]["jensen_shannon"] for k, v in distances.layers.items()}
    json.dumps(r.to_dict(), allow_nan=False)


def test_every_combination():
    old, new, before, after, labels = data()
    for distance, bins, ari in (("kl", 16, "old"), ("bhattacharyya", 64, "new_from_old_centers")):
        r = preindex(old, new, before, after, labels, distance, bins, ari, s=0.5, s_bar=0.1)
        x = r.p[bins][distance] + r.inv_ari[ari]
        assert r.value == pytest.approx(x / (1 + 0.5 * x) - 0.1, rel=1e-14)
    shared = preindex(old, new, before, after, labels, "wasserstein", ranges="shared")
    x = shared.distances.shared.p[32]["wasserstein"] + shared.inv_ari["new"]
    assert shared.value == pytest.approx(x, rel=1e-14)
    pooled = preindex(old, new, before, after, labels, embedding="pooled")
    assert pooled.inv_ari["new"] == resque_task(after, labels).value


def test_standard_error_is_the_sum_of_both():
    old, new, before, after, labels = data()
    r = preindex(old, new, before, after, labels, s=0.5)
    parts = (
        r.distances.std_error[32]["jensen_shannon"]
        + resque_task(after, labels, embedding="flattened").std_error
    )
    x = r.p[32]["jensen_shannon"] + r.inv_ari["new"]
    # The slope of x / (1 + s x).
    assert r.std_error == pytest.approx(parts / (1 + 0.5 * x) ** 2, rel=1e-12)
    one = {k: v[:1] for k, v in old.items()}, {k: v[:1] for k, v in new.items()}
    assert preindex(*one, before[:1], after[:1], labels[:1]).std_error is None


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"distance": "wasserstein"},
            ValueError,
            "distance: expected one of 'wasserstein_heights'",
        ),
        ({"ranges": "x"}, ValueError, "ranges: expected one of"),
        ({"ari": "x"}, ValueError, "ari: expected one of"),
        ({"bins": 20}, ValueError, r"bins: expected one of \(16, 32, 64\), found 20"),
        ({"s": "x"}, TypeError, "s: expected a number"),
        ({"s_bar": float("nan")}, ValueError, "s_bar: expected a finite number"),
        ({"embedding": "x"}, ValueError, "embedding: expected one of"),
    ],
)
def test_refused_options(options, error, message):
    with pytest.raises(error, match=message):
        preindex(*data(), **options)


def test_refused_data():
    old, new, before, after, labels = data()
    with pytest.raises(ValueError, match="new_embedding, labels: expected one label a row"):
        preindex(old, new, before, after[:-1], labels)
    with pytest.raises(ValueError, match="old_embedding, new_embedding: expected one width"):
        preindex(old, new, before, after[:, 1:], labels)
    broken = after.clone()
    broken[3, 0] = torch.nan
    with pytest.raises(ValueError, match="new_embedding: expected finite values"):
        preindex(old, new, before, broken, labels)
    with pytest.raises(ValueError, match="old, new: expected the same layers"):
        preindex(old, {"a": new["a"]}, before, after, labels)
    with pytest.raises(TypeError, match="old: expected a mapping of activations"):
        preindex(before, after, before, after, labels)


class Tokens(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 12, 4, 4)
        self.up = torch.nn.Linear(12, 20)
        self.down = torch.nn.Linear(20, 12)
        self.head = torch.nn.Linear(12, 4)

    def forward(self, x):
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        tokens = tokens + self.down(self.up(tokens).relu_())
        return self.head(tokens.mean(1))


def collected(model, inputs):
    found = {}
    handles = [
        m.register_forward_hook(lambda m, a, y, n=n: found.update({n: y.clone()}))
        for n, m in model.named_modules()
        if n
    ]
    handles.append(
        model.head.register_forward_pre_hook(lambda m, a: found.update(embedding=a[0].clone()))
    )
    with torch.no_grad():
        model(inputs)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("how", ["shift", "two loaders"])
def test_through_score(how):
    model, labels = Tokens().eval(), torch.arange(24) % 4
    x = torch.rand(24, 3, 16, 16)
    y = shifts.gaussian(x, 0.3, torch.Generator().manual_seed(1))
    before, after = collected(model, x), collected(model, y)
    names = ("stem", "up", "down")
    expected = preindex(
        {n: before[n] for n in names},
        {n: after[n] for n in names},
        before["embedding"],
        after["embedding"],
        labels,
    )
    old = list(zip(x.split(10), labels.split(10), strict=True))
    new = list(zip(y.split(10), labels.split(10), strict=True))
    if how == "shift":
        parts = iter(y.split(10))
        options = {"shift": lambda _: next(parts)}
    else:
        options = {"new": new, "paired": True}
    found = score(model, old, indices="preindex", progress=False, **options)
    assert found.value == pytest.approx(expected.value, rel=1e-12)
    for name in names:
        for bins in (16, 32, 64):
            assert found.distances.layers[name][bins] == pytest.approx(
                expected.distances.layers[name][bins], rel=1e-9, abs=1e-12
            )
    assert found.skipped == {"head": "it is the classifier"}
    assert found.layer == "head:input"
    assert found.old_accuracy is not None


def test_score_needs_pairs():
    data = [(torch.rand(4, 3, 16, 16), torch.arange(4))]
    with pytest.raises(ValueError, match="paired: expected True, or shift=, for 'preindex'"):
        score(Tokens(), data, data, indices="preindex", progress=False)
