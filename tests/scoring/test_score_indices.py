"""score with the indices that read the new side alone, or every layer, and with several at once."""

import pytest
import torch
from torch import nn

import resque_ext
from resque_ext import arm, resque_task, score, shifts
from resque_ext.ops import spatial_mean

CLASSES = 3


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def cnn():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 12, 3),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, CLASSES),
    )
    return model.eval()


def batches(sizes=(16, 16, 9), shape=(3, 8, 8), classes=CLASSES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.rand(n, *shape, generator=generator), torch.arange(n) % classes) for n in sizes]


def outputs(model, data, module):
    """Copies of what a module gives for all batches."""
    found = []
    handle = module.register_forward_hook(lambda m, a, y: found.append(y.clone()))
    with torch.no_grad():
        for inputs, _ in data:
            model(inputs)
    handle.remove()
    return torch.cat(found)


def labels_of(data):
    return torch.cat([y for _, y in data])


def test_a_new_task_alone():
    """Its labels are none of the model's own classes, and are not 0..C-1."""
    model, data = cnn(), batches()
    data = [(x, 10 * y - 7) for x, y in data]
    found = score(model, None, data, indices="resque_task", progress=False)
    embedding = outputs(model, data, model[6])
    expected = resque_task(embedding, labels_of(data), baselines=True)
    assert found.value == expected.value
    assert found.linear_probe_error == expected.linear_probe_error is not None
    assert found.nearest_class_mean_error == expected.nearest_class_mean_error
    assert found.classes.tolist() == [-7, 3, 13]
    assert found.layer == "7:input"


@pytest.mark.parametrize("embedding", ["pooled", "flattened"])
def test_a_new_task_at_a_layer_with_positions(embedding):
    model, data = cnn(), batches()
    options = {"resque_task": {"embedding": embedding, "baselines": False}}
    found = score(
        model, None, data, indices="resque_task", layer="3", options=options, progress=False
    )
    x = outputs(model, data, model[3])
    expected = resque_task(x, labels_of(data), embedding=embedding)
    assert found.value == expected.value
    assert found.centers.shape == expected.centers.shape
    assert found.linear_probe_error is None


@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.parametrize("per", ["layer", "filter"])
def test_arm_of_every_layer(pool, per):
    """Conv2d 0 is normalized by what follows, conv2d 3 changed in place; 7 is the classifier."""
    model, old, new = cnn(), batches(seed=0), batches((20, 11), seed=1)
    options = {"arm": {"pool": pool, "per": per}}
    found = score(model, old, new, indices="arm", options=options, progress=False)
    sides = [
        {name: outputs(model, data, model[int(name)]) for name in ("0", "3")} for data in (old, new)
    ]
    expected = arm(*sides, pool=pool, per=per)
    assert found.layer_values == expected.layer_values
    assert found.skipped == {"7": "it is the classifier"}
    assert found.old_accuracy is not None


def test_several_at_once_are_what_each_is_alone():
    model, data = cnn(), batches()
    shift = shifts.make("gaussian", 0.2, seed=1)
    names = ("resque_dist", "resque_task", "arm")
    together = score(model, data, shift=shift, indices=names, progress=False)
    assert tuple(together) == names
    for name in names:
        alone = score(model, data, shift=shift, indices=name, progress=False)
        assert alone.to_dict() == together[name].to_dict()
    assert together.layer == "7:input"
    assert together.layers == ("0", "3")
    assert together.old_accuracy == together["resque_dist"].old_accuracy
    assert set(together.to_dict()) == set(names)
    with pytest.raises(TypeError, match="expected one index to make a float of, found 3"):
        float(together)
    assert "resque_dist=" in repr(together)


def test_arm_after_adapting():
    model, data = cnn(), batches()
    plain, adapted = (
        score(
            model,
            data,
            shift=lambda x: x * 3 + 1,
            indices="arm",
            layers=["1"],
            adapt_normalization=adapt,
            progress=False,
        ).value
        for adapt in (False, True)
    )
    assert adapted < plain / 3


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"indices": "resque_task", "old": None, "new": None}, ValueError, "new, shift: expected"),
        ({"old": None}, TypeError, "old: expected batches, because 'resque_dist' reads it"),
        ({"indices": ["arm", "arm"]}, ValueError, "indices: expected every name once"),
        (
            {"indices": "arm", "options": {"arm": {"bins": 3}}},
            TypeError,
            "options: expected for 'arm' per, pool, .*found 'bins'",
        ),
        ({"options": {"arm": {}}}, ValueError, "options: expected names among the indices"),
        ({"options": 5}, TypeError, "options: expected a mapping of mappings"),
        ({"indices": "arm", "options": {"arm": {"per": "x"}}}, ValueError, "per: expected one of"),
        ({"indices": "arm", "layers": ["nope"]}, KeyError, "layers: expected the name of a module"),
        ({"indices": "arm", "layers": ["7", "x"]}, KeyError, "found 'x'"),
    ],
)
def test_refused(options, error, message):
    model, data = cnn(), batches()
    options = {"old": data, "new": data, **options}
    with pytest.raises(error, match=message):
        score(model, progress=False, **options)
    assert not any(m._forward_hooks for m in model.modules())


def test_values_that_are_not_finite_are_located():
    model, data = cnn(), batches()
    broken = [(x.clone(), y) for x, y in data]
    broken[1][0][2] = torch.nan
    with pytest.raises(ValueError, match=r"new: activations\['0'\]: expected finite"):
        score(model, data, broken, indices="arm", progress=False)
    with pytest.raises(ValueError, match="features: expected finite values"):
        score(model, None, broken, indices="resque_task", progress=False)


def test_torch_backend_gives_the_same():
    model, data = cnn(), batches()
    names, shift = ("resque_dist", "resque_task", "arm"), shifts.make("contrast", 0.5)
    native = score(model, data, shift=shift, indices=names, progress=False)
    with resque_ext.backend("torch"):
        plain = score(model, data, shift=shift, indices=names, progress=False)
    for name in names:
        assert plain[name].value == pytest.approx(native[name].value, rel=1e-6, abs=1e-9)


def test_autocast_and_channels_last():
    """Layers give bfloat16; the vectors that are compared are pooled in float64 all the same."""
    model, data = cnn().to(memory_format=torch.channels_last), batches()
    with torch.autocast("cpu", torch.bfloat16):
        found = score(model, data, shift=lambda x: x / 2, indices="arm", progress=False)
        x = outputs(model, data, model[3])
    assert x.dtype == torch.bfloat16
    plain = score(model, data, shift=lambda x: x / 2, indices="arm", progress=False)
    assert found.value == pytest.approx(plain.value, rel=0.02)
    assert spatial_mean(x).dtype == torch.float32


@pytest.mark.parametrize("indices", ["arm", ("arm",), ("arm", "resque_dist")])
def test_a_mapping_whatever_the_number_of_indices(indices):
    model, data, shift = cnn(), batches(), shifts.make("gaussian", 0.2)
    alone = score(model, data, shift=shift, indices="arm", progress=False)
    assert isinstance(alone, resque_ext.ArmResult)
    found = score(model, data, shift=shift, indices=indices, progress=False, mapping=True)
    assert list(found) == (["arm"] if indices == "arm" else list(indices))
    assert found["arm"].value == alone.value
    assert found.layers == tuple(alone.layers) or list(found.layers) == list(alone.layers)
