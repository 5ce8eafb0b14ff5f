"""What score refuses: each failure with its message, the model as it was."""

import re

import numpy as np
import pytest
import torch
from helpers.score_made import CLASSES, Same, batches, cnn, mlp, run
from torch import nn

from resque_ext import score


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


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


class Several(nn.Module):
    """A layer that gives two tensors, of which neither is the main one."""

    def __init__(self):
        super().__init__()
        self.parts, self.head = Parts(), nn.Linear(6, CLASSES)

    def forward(self, x):
        return self.head(self.parts(x)["a"])


class Parts(nn.Module):
    def forward(self, x):
        return {"a": x, "b": 2 * x, "n": 3}


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
            "new: expected batches (inputs, labels), found shape (16, 6), torch.float32, cpu",
            "pass a DataLoader, or a list: [(inputs, labels)]",
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
    "layer gives several": (
        {"model": Several, "layer": "parts"},
        TypeError,
        ["layer: expected 'parts' to give a tensor", "(layer= takes 'parts:a', 'parts:b')"],
    ),
    "layer without such a part": (
        {"model": Runs, "layer": "pair:2"},
        KeyError,
        ["layer: expected 'pair:2' to have '2' in its output, found '0', '1'"],
    ),
    "no linear layer and no vectors": (
        {"model": lambda: nn.Sequential(nn.ReLU(), nn.Flatten(0))},
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


def test_hints_name_no_argument_that_score_lacks():
    old = [(torch.randn(6, 4), torch.tensor([0, 0, 1, 1, 2, 2]))]
    new = [(torch.randn(4, 4), torch.tensor([0, 0, 1, 1]))]
    with pytest.raises(ValueError, match="class 2 has no new rows") as caught:
        score(nn.Linear(4, 3), old, new, progress=False)
    assert "missing=" not in str(caught.value)
    bad = [(torch.full((6, 4), torch.nan), torch.tensor([0, 0, 1, 1, 2, 2]))]
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
