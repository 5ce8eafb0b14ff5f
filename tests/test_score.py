"""score: against activations taken by hand; the model given back as it came; what is refused."""

import collections
import copy
import dataclasses
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from resque_ext import ResqueDistResult, resque_dist, score

SIDES = ("old", "new")
CLASSES = 3


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


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
        (lambda y: {"logits": y}, False),
        (lambda y: (y, None), False),
        (lambda y: y.mean(1), False),
        (lambda y: y[:, :1], False),
        (lambda y: y[:, :, None], False),
        (lambda y: None, False),
    ],
    ids=["logits", "dict", "tuple", "one dimension", "one column", "three dimensions", "none"],
)
def test_outputs_of_other_forms(wrap, classifier):
    """An object with .logits is a classifier's; others have no accuracy, and classes by label."""
    model, old, new = Wrapped(mlp(), wrap), batches(seed=0), batches(seed=1)
    expected = by_hand(old, new, model.inner[:2], model.inner if classifier else None)
    agree(run(model, old, new), expected, "inner.2:input")


def test_labels_that_grow_where_there_is_no_classifier():
    model = Wrapped(mlp(), lambda y: {"logits": y})
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
            match="adapt_normalization: expected a model with batch-norm running statistics, found "
            "none in Sequential",
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


# Failures: each with its message, the model as it was


class Mine(Exception):
    pass


class Raises(nn.Module):
    """Fails at the second call, with the hooks attached and everything in eval mode."""

    def __init__(self, error):
        super().__init__()
        self.body, self.error, self.calls = mlp(), error, 0

    def forward(self, x):
        self.calls += 1
        if self.calls == 2:
            raise self.error
        return self.body(x)


def failing(error, made, at=1):
    for i, batch in enumerate(made):
        if i == at:
            raise error
        yield batch


@pytest.mark.parametrize(
    "error", [Mine("mine"), TypeError("mine"), ValueError("mine"), KeyError("m")]
)
@pytest.mark.parametrize("where", ["model", "loader", "adapter", "shift", "adapting"])
def test_the_callers_own_exception_passes_unchanged(where, error):
    model = Raises(error if where == "model" else None).train()
    model.calls = 0 if where == "model" else 2
    model.body[1].eval()
    old, new = batches(seed=0), batches(seed=1)

    def raises(*_):
        raise error

    options = {"new": new}
    if where == "loader":
        options = {"new": failing(error, new)}
    elif where == "adapter":
        options["batch_adapter"] = raises
    elif where == "shift":
        options = {"shift": raises}
    elif where == "adapting":
        model = nn.Sequential(nn.BatchNorm1d(6), *mlp()).train()
        model[2].eval()
        options = {"shift": raises, "adapt_normalization": True}
    same = Same(model)
    with pytest.raises(type(error)) as caught:
        run(model, old, **options)
    assert caught.value is error
    same.check()


class IterRaises:
    def __iter__(self):
        raise TypeError("mine")


def test_a_type_error_of_the_callers_own_iter_passes_too():
    with pytest.raises(TypeError, match="mine"):
        run(mlp(), IterRaises(), batches())


class Runs(nn.Module):
    """Layers that run never, twice, or give no tensor."""

    def __init__(self):
        super().__init__()
        self.never = nn.Linear(6, 6)
        self.twice = nn.Linear(6, 6)
        self.pair = nn.LSTM(6, 6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x):
        x = self.twice(self.twice(x))
        return self.head(self.pair(x)[0])


class TwiceLast(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x):
        return self.fc(self.fc(x))


def one_bad_label(label):
    made = batches()
    made[1][1][4] = label
    return made


def one_nan():
    made = batches()
    made[1][0][4, 2] = float("nan")
    return made


def replaced(batch):
    return [batches()[0], batch, *batches()[1:]]


def dataset():
    x, y = batches()[0]
    return [(image, int(label)) for image, label in zip(x, y, strict=True)]


X, Y = batches()[0]
FAILURES = {
    # name: (options over the defaults, exception, parts of its message)
    "label in the second batch": (
        {"old": one_bad_label(3)},
        ValueError,
        ["old: labels: expected class indices 0..2, found 3 at position 4"],
    ),
    "label below 0": (
        {"new": one_bad_label(-1)},
        ValueError,
        ["new: labels: expected class indices 0..2, found -1 at position 4"],
    ),
    "NaN": ({"new": one_nan()}, ValueError, ["new: features: expected finite values", "row 4"]),
    "labels of another length": (
        {"old": [(X, Y[:-1])]},
        ValueError,
        ["old: features, labels: expected one label a row", "(16, 8)", "(15,)"],
    ),
    "empty old": ({"old": []}, ValueError, ["old: expected at least one batch, found none"]),
    "empty new": ({"new": iter(())}, ValueError, ["new: expected at least one batch, found none"]),
    "no rows": ({"new": [(X[:0], Y[:0])]}, ValueError, ["class 0 has no new rows"]),
    "old is a number": ({"old": 5}, TypeError, ["old: expected an iterable of batches, found int"]),
    "new is a tensor": (
        {"new": X},
        TypeError,
        [
            "new: expected batches (inputs, labels), found shape (6,), torch.float32, cpu",
            "batch_ad",
        ],
    ),
    "a tensor alone": (
        {"old": replaced(X)},
        TypeError,
        [
            "old: expected batches (inputs, labels), found shape (16, 6), torch.float32",
            "batch_adapter=",
        ],
    ),
    "a dict": (
        {"old": replaced({"image": X, "label": Y})},
        TypeError,
        ["old: expected batches", "found dict of (image: shape (16, 6)", "label: shape (16,)"],
    ),
    "three parts": (
        {"new": replaced((X, Y, "id"))},
        TypeError,
        [
            "new: expected batches",
            "found tuple of (shape (16, 6)",
            "; shape (16,), torch.int64",
            "str",
        ],
    ),
    "inputs alone": (
        {"new": replaced([X])},
        TypeError,
        ["new: expected", "list of (shape (16, 6)"],
    ),
    "items of a dataset": (
        {"old": dataset()},
        TypeError,
        ["old labels: expected a torch.Tensor or numpy.ndarray, found int"],
    ),
    "one-hot labels": (
        {"old": [(X, torch.eye(3, dtype=torch.int64)[Y])]},
        ValueError,
        ["old labels: expected shape [N], found shape (16, 3)", "one-hot", "argmax(1)"],
    ),
    "soft labels": (
        {"new": [(X, torch.eye(3)[Y])]},
        TypeError,
        ["new labels: expected int32 or int64 class indices, found shape (16, 3), torch.float32"],
    ),
    "no labels": ({"new": [(X, None)]}, TypeError, ["new labels: expected", "found NoneType"]),
    "adapter without a pair": (
        {"batch_adapter": lambda batch: batch[0]},
        TypeError,
        ["old: expected batches (inputs, labels), found shape (16, 6)"],
    ),
    "index by another name": (
        {"indices": ["resque_dist", "pre_index"]},
        ValueError,
        ["indices: expected names among", "'resque_dist'", "found ['pre_index']"],
    ),
    "an unknown index": ({"indices": "emd"}, ValueError, ["indices: expected", "found ['emd']"]),
    "no index": ({"indices": []}, ValueError, ["indices: expected names among", "found ()"]),
    "layers": ({"layers": ["0"]}, ValueError, ["layers: expected 'auto'", "found ['0']", "layer="]),
    "new and shift": (
        {"shift": torch.neg},
        ValueError,
        ["new, shift: expected one of", "found both"],
    ),
    "neither": ({"new": None}, ValueError, ["new, shift: expected one of the two, found neither"]),
    "shift is a tensor": (
        {"new": None, "shift": X},
        TypeError,
        ["shift: expected a function of a batch, found shape (16, 6)"],
    ),
    "shift loses rows": (
        {"new": None, "shift": lambda x: x[1:]},
        ValueError,
        ["new: features, labels: expected one label a row", "(15, 8)", "(16,)"],
    ),
    "model is a function": (
        {"model": torch.relu},
        TypeError,
        ["model: expected a torch.nn.Module, found builtin_function_or_method"],
    ),
    "device meta": (
        {"device": "meta"},
        ValueError,
        ["device: expected a cpu or cuda device, found 'meta'"],
    ),
    "layer unknown": (
        {"model": cnn, "layer": "11"},
        KeyError,
        ["layer: expected the name of a module of Sequential, found '11'", "nearest: 1"],
    ),
    "layer misspelt": (
        {"model": Runs, "layer": "hed"},
        KeyError,
        ["layer: expected the name of a module of Runs, found 'hed' (nearest: head"],
    ),
    "layer like none": ({"layer": "@@@@"}, KeyError, ["found '@@@@' (nearest: 0, 1, 2)"]),
    "layer is the model": ({"layer": ""}, KeyError, ["layer: expected the name", "found ''"]),
    "layer is a module": (
        {"layer": nn.ReLU()},
        TypeError,
        ["layer: expected a module's name, found R"],
    ),
    "layer never runs": (
        {"model": Runs, "layer": "never"},
        KeyError,
        ["layer: expected 'never' to run in the forward pass, found it never did"],
    ),
    "layer runs twice": (
        {"model": Runs, "layer": "twice"},
        KeyError,
        ["layer: expected 'twice' to run once in a forward pass, found more"],
    ),
    "last layer runs twice": (
        {"model": TwiceLast},
        KeyError,
        ["layer: expected 'fc:input' to run once in a forward pass, found more"],
    ),
    "layer gives a tuple": (
        {"model": Runs, "layer": "pair"},
        TypeError,
        ["layer: expected 'pair' to give a tensor, found tuple"],
    ),
    "no linear layer": (
        {"model": lambda: nn.Sequential(nn.ReLU())},
        KeyError,
        ["layer: expected a name, because Sequential has no linear layer", "found None"],
    ),
    "layer gives no features": (
        {"model": lambda: nn.Sequential(nn.Linear(6, 3), nn.Flatten(0)), "layer": "1"},
        ValueError,
        ["old: features: expected [N, D], [N, C, H, W] or [N, T, D], found shape (48,)"],
    ),
}


@pytest.mark.parametrize("case", FAILURES)
def test_failures_say_what_came_and_leave_the_model(case):
    options, error, parts = FAILURES[case]
    options = {"old": batches(seed=0), "new": batches(seed=1), **options}
    make = options.pop("model", mlp)
    if case == "model is a function":
        with pytest.raises(error, match=re.escape(parts[0])):
            run(make, **options)
        return
    model = make()
    if case == "layer unknown":
        options["old"] = options["new"] = batches((2, 8, 8))
    model.train()
    next(iter(model.children())).eval()
    same = Same(model)
    with pytest.raises(error) as caught:
        run(model, **options)
    same.check()
    message = str(caught.value)
    for part in parts:
        assert part in message
    assert "\n" not in message
    assert not message.startswith(('"', "'"))  # a KeyError that is readable


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", "cpu:x"])
def test_a_device_that_is_not_there(device):
    with pytest.raises(ValueError, match=f"device: .*{device}"):
        run(mlp(), batches(seed=0), batches(seed=1), device=device)


def test_a_device_may_be_given():
    model, old, new = mlp(), batches(seed=0), batches(seed=1)
    for device in ("cpu", torch.device("cpu")):
        agree(run(model, old, new, device=device), run(model, old, new), "2:input")


def test_a_model_without_parameters_runs():
    old, new = batches(seed=0), batches(seed=1)
    model = nn.Sequential(nn.Identity(), nn.Flatten())
    found = run(model, old, new, layer="0")
    agree(found, by_hand(old, new, nn.Identity(), model, classes=6), "0")


# Progress


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


def test_hints_name_no_argument_that_score_lacks():
    old = [(torch.randn(6, 4), torch.tensor([0, 0, 1, 1, 2, 2]))]
    new = [(torch.randn(4, 4), torch.tensor([0, 0, 1, 1]))]
    with pytest.raises(ValueError, match="class 2 has no new rows") as caught:
        score(nn.Linear(4, 3), old, new, progress=False)
    assert "missing=" not in str(caught.value)
    bad = [(torch.full((4, 4), torch.nan), torch.tensor([0, 0, 1, 1]))]
    with pytest.raises(ValueError, match="new: features: expected finite") as caught:
        score(nn.Linear(4, 3), old, bad, progress=False)
    assert "nonfinite=" not in str(caught.value)


@pytest.mark.parametrize(
    ("argument", "value"), [("batch_adapter", 5), ("layers", np.array(["auto", "x"]))]
)
def test_arguments_of_other_types_are_named(argument, value):
    data = batches(seed=0)
    with pytest.raises((TypeError, ValueError), match=f"^{argument}: expected"):
        score(mlp(), data, data, progress=False, **{argument: value})
