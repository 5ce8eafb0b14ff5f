"""score: against activations taken by hand; the model given back as it came."""

import collections
import copy

import numpy as np
import pytest
import torch
from helpers.score_made import CLASSES, Same, agree, batches, by_hand, cnn, mlp, run
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from resque_ext import score


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


class Tokens(nn.Module):
    """[N, D] to tokens [N, T, D]; the layer registered last runs first, and one never runs."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(1, 5)
        self.body = nn.Linear(5, 4)
        self.idle = nn.Linear(4, 4)
        self.gate = nn.Linear(6, 1)

    def forward(self, x):
        gate = self.gate(x)
        tokens = self.mix(x[..., None]).tanh()
        return self.body(tokens.mean(1)) * gate


class Wrapped(nn.Module):
    """Puts what a model gives into something else."""

    def __init__(self, inner, wrap):
        super().__init__()
        self.inner, self.wrap = inner, wrap

    def forward(self, *args, **kwargs):
        return self.wrap(self.inner(*args, **kwargs))


Output = collections.namedtuple("Output", ["loss", "logits"])


# Against activations by hand


@pytest.mark.parametrize("layer", ["0", "1", "3", "6", "8", None])
def test_cnn(layer):
    """What comes after "1" and "3" changes their outputs in place: not what was read of them."""
    model, old, new = cnn(), batches((2, 8, 8), seed=0), batches((2, 8, 8), (10, 20), seed=1)
    plain = copy.deepcopy(model)
    reference = plain[:-1] if layer is None else plain[: int(layer) + 1]

    def take(x):
        for module in reference:  # a copy after each, so that nothing in place reaches back
            x = module(x.clone())
        return x

    same = Same(model)
    found = run(model, old, new, layer=layer)
    same.check()
    expected = by_hand(old, new, take, plain)
    agree(found, expected, layer or "8:input", 1e-6 if layer in ("0", "1", "3") else 1e-12)
    assert found.missing == ()
    assert 0 < found.value < 1


def test_the_first_batch_too_is_read_before_it_changes():
    """One batch a side: kept until the number of classes is known, while the model goes on."""
    model, old, new = mlp(), batches(sizes=(30,), seed=0), batches(sizes=(20,), seed=1)
    agree(run(model, old, new, layer="0"), by_hand(old, new, model[:1], model), "0")

    class Spoils(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, CLASSES)

        def forward(self, x):
            out = self.fc(x).clone()
            x.zero_()
            return out

    spoils = Spoils()
    fresh = [(x.clone(), y) for x, y in old], [(x.clone(), y) for x, y in new]
    agree(run(spoils, *fresh), by_hand(old, new, nn.Identity(), spoils.fc), "fc:input")


def test_tokens_and_the_last_linear_layer_that_runs():
    """The default follows execution: neither the one registered last nor one that never runs."""
    model, old, new = Tokens(), batches(seed=0), batches(seed=1, sizes=(31, 5))
    tokens = lambda x: model.mix(x[..., None])  # noqa: E731
    agree(run(model, old, new, layer="mix"), by_hand(old, new, tokens, model, 4), "mix")
    read = lambda x: tokens(x).tanh().mean(1)  # noqa: E731
    agree(run(model, old, new), by_hand(old, new, read, model, 4), "body:input")


def test_layer_by_a_dotted_name_of_a_container():
    model = nn.Sequential(collections.OrderedDict(body=mlp()[:2], head=nn.Linear(8, CLASSES)))
    old, new = batches(seed=0), batches(seed=1)
    agree(run(model, old, new, layer="body"), by_hand(old, new, model.body, model), "body")
    agree(run(model, old, new, layer="body.1"), by_hand(old, new, model.body, model), "body.1")


@pytest.mark.parametrize(
    ("wrap", "classifier"),
    [
        (lambda y: Output(None, y), True),
        (lambda y: {"logits": y}, True),
        (lambda y: (y, None), True),
        (lambda y: {"features": torch.zeros(len(y), 7), "scores": y}, True),
        (lambda y: y.mean(1), False),
        (lambda y: y[:, :1], False),
        (lambda y: y[:, :, None], False),
        (lambda y: None, False),
    ],
    ids=[
        "logits",
        "dict",
        "tuple",
        "among others",
        "one dimension",
        "one column",
        "three dimensions",
        "none",
    ],
)
def test_outputs_of_other_forms(wrap, classifier):
    """Scores are found by key or position; others have no accuracy, and classes by label."""
    model, old, new = Wrapped(mlp(), wrap), batches(seed=0), batches(seed=1)
    expected = by_hand(old, new, model.inner[:2], model.inner if classifier else None)
    agree(run(model, old, new), expected, "inner.2:input")


def test_labels_that_grow_where_there_is_no_classifier():
    model = Wrapped(mlp(), lambda y: y.mean(1))
    old, new = ([(x, y * 0 + i) for i, (x, y) in enumerate(batches(seed=s))] for s in (0, 1))
    agree(run(model, old, new), by_hand(old, new, model.inner[:2]), "inner.2:input")
    agree(run(model, old[::-1], new), by_hand(old, new, model.inner[:2]), "inner.2:input", 1e-9)


def test_modes_of_every_module_come_back():
    model, old, new = cnn(), batches((2, 8, 8), seed=0), batches((2, 8, 8), seed=1)
    expected = run(model, old, new)
    model.train()
    model[1].eval()
    model[4].eval()
    same = Same(model)
    agree(run(model, old, new), expected, "8:input")  # dropout off, statistics kept
    same.check()
    assert model.training
    assert not model[1].training


def test_wrapped_models_go_by_their_inner_names():
    plain, old, new = mlp(), batches(seed=0), batches(seed=1)
    expected = run(plain, old, new, layer="1")
    parallel = nn.DataParallel(plain)
    compiled = torch.compile(plain, backend="eager")
    twice = torch.compile(nn.DataParallel(plain), backend="eager")
    for model in (parallel, compiled, twice):
        model.train()
        same = Same(model)
        agree(run(model, old, new, layer="1"), expected, "1")
        agree(run(model, old, new), expected, "2:input")
        same.check()


def test_a_model_compiled_in_place_is_read_all_the_same():
    """Its compiled code would run past the hooks, and runs again afterwards."""
    model, old, new = mlp(), batches(seed=0), batches(seed=1)
    expected = run(model, old, new)
    calls = []

    def compiler(graph, _):
        calls.append(graph)
        return graph.forward

    model.compile(backend=compiler)
    model(old[0][0])
    assert len(calls) == 1
    agree(run(model, old, new), expected, "2:input")
    model(old[1][0])
    assert len(calls) == 1


def test_frozen_parameters_and_inputs_that_want_gradients():
    model, old, new = mlp(), batches(seed=0), batches(seed=1)
    expected = run(model, old, new)
    model[0].requires_grad_(False)
    same = Same(model)
    wanted = [(x.clone().requires_grad_(), y) for x, y in old]
    agree(run(model, wanted, new), expected, "2:input")
    same.check()
    assert all(x.grad is None for x, _ in wanted)
    with torch.inference_mode():
        agree(run(model, old, new), expected, "2:input")
        assert torch.is_inference_mode_enabled()
    with torch.no_grad():
        run(model, old, new)
        assert not torch.is_grad_enabled()
    model(old[0][0]).sum().backward()  # nothing of the model became an inference tensor


def test_classes_on_neither_side_are_listed():
    model, old, new = mlp(classes=6), batches(seed=0), batches(seed=1)
    found = run(model, old, new)
    agree(found, by_hand(old, new, model[:2], model, classes=6), "2:input")
    assert found.missing == (3, 4, 5)
    with pytest.raises(ValueError, match="class 2 has no new rows"):
        run(model, old, [(x, y.clamp(max=1)) for x, y in new])


def test_sizes_of_batches_do_not_matter():
    model, whole = mlp(), batches(sizes=(41,), seed=0)
    new = batches(seed=1)
    expected = run(model, whole, new)
    (x, y) = whole[0]
    cut = [(x[a:b], y[a:b]) for a, b in ((0, 0), (0, 16), (16, 16), (16, 17), (17, 41), (41, 41))]
    agree(run(model, cut, new), expected, "2:input", 1e-6)  # matrix products of other sizes round
    images = batches((2, 8, 8), sizes=(16, 0, 9), seed=0)
    assert run(cnn(), images, images).value == 0


def test_loaders_generators_and_numpy():
    model, old, new = mlp(), batches(seed=0), batches(seed=1)
    expected = run(model, old, new)
    agree(run(model, iter(old), (b for b in new)), expected, "2:input")
    agree(run(model, tuple(old), [list(b) for b in new]), expected, "2:input")
    arrays = [(x.numpy(), y.numpy().astype(np.uint8)) for x, y in old]
    agree(run(model, arrays, new), expected, "2:input")
    sets = [TensorDataset(*(torch.cat(t) for t in zip(*side, strict=True))) for side in (old, new)]
    loaders = [DataLoader(s, batch_size=16) for s in sets]  # 16, 16, 9
    agree(run(model, *loaders), expected, "2:input")


class Stream(IterableDataset):
    def __init__(self, made):
        self.made = made

    def __iter__(self):
        return iter(self.made)


def test_loader_of_a_stream_without_a_length():
    model, old, new = mlp(), batches(seed=0), batches(seed=1)
    found = run(model, DataLoader(Stream(old), batch_size=None), new)
    agree(found, run(model, old, new), "2:input")


def test_numpy_views_with_negative_strides():
    model, old, new = mlp(), batches(seed=0), batches(seed=1)
    turned = [(x.numpy()[::-1], y.numpy()[::-1]) for x, y in old]
    expected = run(model, [(x.flip(0), y.flip(0)) for x, y in old], new)
    agree(run(model, turned, new), expected, "2:input")


class Two(nn.Module):
    """Takes its inputs as keywords, or as one tuple."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, pair=None, x=None, scale=None):
        x, scale = pair if pair is not None else (x, scale)
        return self.fc(input=x * scale)


Pair = collections.namedtuple("Pair", ["x", "scale"])


@pytest.mark.parametrize(
    "make",
    [
        lambda x: {"x": x, "scale": 2},
        lambda x: {"x": x.numpy(), "scale": torch.tensor(2)},
        lambda x: (x, torch.tensor(2)),
        lambda x: [x, 2],
        lambda x: Pair(x, 2),
    ],
    ids=["dict", "dict of numpy", "tuple", "list", "namedtuple"],
)
def test_inputs_of_several_parts(make):
    model, old, new = Two(), batches(seed=0), batches(seed=1)
    sides = ([(make(x), y) for x, y in side] for side in (old, new))
    double = lambda x: 2 * x  # noqa: E731
    logits = lambda x: model.fc(2 * x)  # noqa: E731
    agree(run(model, *sides), by_hand(old, new, double, logits), "fc:input")


def test_batch_adapter():
    model, old, new = mlp(), batches(seed=0), batches(seed=1)
    expected = run(model, old, new)
    other = [[{"image": x, "one_hot": torch.eye(CLASSES)[y]} for x, y in s] for s in (old, new)]

    def adapter(batch):
        return batch["image"], batch["one_hot"].argmax(1)

    agree(run(model, *other, batch_adapter=adapter), expected, "2:input")


# Number formats


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_models_of_other_dtypes(dtype):
    model = mlp(dtype=dtype)
    old, new = batches(seed=0, dtype=dtype), batches(seed=1, dtype=dtype)
    found = run(model, old, new)
    agree(found, by_hand(old, new, model[:2], model), "2:input")
    assert all(p.dtype == dtype for p in model.parameters())


def test_autocast():
    model, old, new = mlp(), batches(seed=0), batches(seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run(model, old, new)
        expected = by_hand(old, new, model[:2], model)
        assert model[:2](old[0][0]).dtype == torch.bfloat16
    agree(found, expected, "2:input")
    assert found.value != run(model, old, new).value


# Device, progress, indices


def test_a_device_may_be_given():
    model, old, new = mlp(), batches(seed=0), batches(seed=1)
    for device in ("cpu", torch.device("cpu")):
        agree(run(model, old, new, device=device), run(model, old, new), "2:input")


def test_a_model_without_parameters_runs():
    old, new = batches(seed=0), batches(seed=1)
    model = nn.Sequential(nn.Identity(), nn.Flatten())
    found = run(model, old, new, layer="0")
    agree(found, by_hand(old, new, nn.Identity()), "0")
    agree(run(model, old, new), by_hand(old, new, nn.Identity()), "output")


def test_progress_is_silent_or_on_stderr(capfd):
    model, old = mlp(), batches()
    run(model, old, old)
    assert capfd.readouterr() == ("", "")
    score(model, old, old, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "old side" in err
    assert "new side" in err


@pytest.mark.parametrize(
    "indices", ["resque_dist", ["resque_dist"], ("resque_dist",), iter(["resque_dist"])]
)
def test_indices_by_name(indices):
    assert run(mlp(), batches(), batches(), indices=indices).value == 0
