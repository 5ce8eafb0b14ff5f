"""Checkpoints as training scripts write them: the weights by name are the oracle."""

import warnings

import pytest
import safetensors.torch
import torch
from torch import nn

from resque_ext.model.weights import load_weights


def make(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


class Holder(nn.Module):
    """Its own names begin with a known prefix."""

    def __init__(self):
        super().__init__()
        self.model = make()


class Tied(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(5, 3)
        self.body = nn.Linear(3, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight


STATE = make(7).state_dict()


def same(model, state):
    found = model.state_dict()
    return found.keys() == state.keys() and all(torch.equal(found[k], v) for k, v in state.items())


def save(path, content):
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(content, path)
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin", ".ckpt"])
@pytest.mark.parametrize(
    "prefix",
    [
        *("module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module."),
        *("model.module.", "net.", "_fsdp_wrapped_module."),
    ],
)
def test_prefixes(tmp_path, suffix, prefix):
    path = save(tmp_path / f"w{suffix}", {prefix + k: v for k, v in STATE.items()})
    model = make()
    with pytest.warns(
        UserWarning, match=rf"w\{suffix}: weights read without the prefix '{prefix}'"
    ):
        load_weights(model, path)
    assert same(model, STATE)


@pytest.mark.parametrize(
    ("way", "wrap"),
    [
        ("state_dict", lambda s: {"state_dict": s, "epoch": 3, "optimizer": {"state": {}}}),
        ("model_state_dict", lambda s: {"epoch": 1, "model_state_dict": s, "loss": 0.5}),
        ("model", lambda s: {"model": s, "args": {"lr": 0.1}}),
        ("net", lambda s: {"net": s, "acc": 93.1, "epoch": 7}),
        ("weights", lambda s: {"weights": s}),
        ("model.state_dict", lambda s: {"model": {"state_dict": s, "step": 2}}),
        ("state_dict", lambda s: {"state_dict": s, "model": "resnet"}),
    ],
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_nesting(tmp_path, way, wrap, prefix):
    path = save(tmp_path / "w.pt", wrap({prefix + k: v for k, v in STATE.items()}))
    model = make()
    message = f"weights read from '{way}'" + (", without the prefix 'module.'" if prefix else "")
    with pytest.warns(UserWarning, match=f"{message}$"):
        load_weights(model, path)
    assert same(model, STATE)


def test_the_models_own_names_are_left_alone(tmp_path):
    state = {f"model.{k}": v for k, v in STATE.items()}
    model = Holder()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_weights(model, save(tmp_path / "w.safetensors", state))
    assert same(model, state)
    with pytest.warns(UserWarning, match=r"without the prefix 'module\.'$"):
        load_weights(
            model, save(tmp_path / "w.pt", {f"module.{k}": v + 1 for k, v in state.items()})
        )
    assert same(model, {k: v + 1 for k, v in state.items()})


def test_wrapped_models_take_plain_weights_and_wrapped_ones(tmp_path):
    for model in (nn.DataParallel(make()), torch.compile(make())):
        load_weights(model, save(tmp_path / "w.pt", STATE))
        inner = model.module if isinstance(model, nn.DataParallel) else model._orig_mod
        assert same(inner, STATE)
        with pytest.warns(UserWarning, match="without the prefix"):
            load_weights(model, save(tmp_path / "v.pt", model.state_dict()))
    inside = {k.replace("0.", "0._orig_mod.", 1): v for k, v in STATE.items()}
    model = make()
    with pytest.warns(UserWarning, match=r"without '_orig_mod\.' inside names"):
        load_weights(model, save(tmp_path / "x.pt", {f"model.{k}": v for k, v in inside.items()}))
    assert same(model, STATE)


def test_wrappers_inside_of_names(tmp_path):
    inside = {
        k.replace("0.", "0._fsdp_wrapped_module._checkpoint_wrapped_module.", 1): v
        for k, v in STATE.items()
    }
    model = make()
    with pytest.warns(UserWarning, match="inside names"):
        load_weights(model, save(tmp_path / "w.pt", inside))
    assert same(model, STATE)


def test_a_whole_model_is_refused_with_what_to_do(tmp_path):
    path = tmp_path / "w.pt"
    torch.save(make(), path)
    with pytest.raises(ValueError, match=r"save model\.state_dict\(\), not the model") as caught:
        load_weights(make(), path)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("kept", ["embedding.weight", "head.weight"])
def test_tied_weights_that_are_stored_once(tmp_path, prefix, kept):
    other = Tied(5)
    state = other.state_dict()
    content = {prefix + k: v.clone() for k, v in state.items() if k == kept or k.startswith("body")}
    model = Tied()
    with pytest.warns(UserWarning, match=r"with '(head|embedding)\.weight' as tied to another"):
        load_weights(model, save(tmp_path / "w.safetensors", content))
    assert same(model, state)
    assert model.head.weight is model.embedding.weight
    safetensors.torch.save_model(other, tmp_path / "m.safetensors")
    model = Tied()
    with pytest.warns(UserWarning, match="as tied to another"):
        load_weights(model, tmp_path / "m.safetensors")
    assert same(model, state)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {f"module.{k}": v for k, v in list(STATE.items())[1:]},
            r"expected .* found others \(read without",
        ),
        ({f"trunk.{k}": v for k, v in STATE.items()}, "expected the weights of Sequential"),
        ({"model": {"a": 3}}, "expected tensors by name, .* found dict of 'a'"),
        ({"ema": STATE}, "expected tensors by name, or under one of .* found dict of 'ema'"),
        ({}, "expected tensors by name, .* found dict of nothing"),
        ([1], "expected tensors by name, .* found list"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_weights_that_are_refused(tmp_path, content, message):
    model = make()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=rf"w\.pt: {message}"):
        load_weights(model, save(tmp_path / "w.pt", content))
    if "found dict" in message:
        assert same(model, before)
