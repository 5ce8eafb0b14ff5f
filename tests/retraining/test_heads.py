"""New heads for new tasks, and freezing: what changes, what stays, what is refused."""

import copy

import pytest
import torch
from helpers import optional
from torch import nn

from resque_ext.retraining import freeze, replace_head, retrain
from resque_ext.retraining.heads import training_mode


class Net(nn.Module):
    """A body, and a head under the name that a family of models gives it."""

    def __init__(self, name, head):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU())
        self.name = name
        setattr(self, name, head)

    def forward(self, x):
        return getattr(self, self.name)(self.body(x))


def heads_of_vit():
    heads = nn.Sequential()
    heads.add_module("pre", nn.Linear(6, 6))
    heads.add_module("head", nn.Linear(6, 4))
    return heads


HEADS = {  # how torchvision's and timm's families name it: the head, and where the last layer is
    "resnet": ("fc", lambda: nn.Linear(6, 4), "fc"),
    "densenet": ("classifier", lambda: nn.Linear(6, 4), "classifier"),
    "vgg": (
        "classifier",
        lambda: nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Dropout(), nn.Linear(7, 4)),
        "classifier.3",
    ),
    "vit": ("heads", heads_of_vit, "heads.head"),
    "swin": ("head", lambda: nn.Linear(6, 4, bias=False), "head"),
}


@pytest.fixture(params=HEADS)
def net(request):
    torch.manual_seed(0)
    name, head, place = HEADS[request.param]
    return Net(name, head()), place


def test_last_layer_alone_is_new(net):
    model, place = net
    model.double()
    state = copy.deepcopy(model.state_dict())
    fresh = replace_head(model, 9)
    old, new = model.get_submodule(place), fresh.get_submodule(place)
    assert (new.in_features, new.out_features) == (old.in_features, 9)
    assert (new.bias is None) == (old.bias is None)
    assert new.weight.dtype == torch.float64
    assert new.weight.requires_grad
    assert fresh.eval()(torch.rand(3, 5).double()).shape == (3, 9)
    for name, tensor in fresh.state_dict().items():
        if not name.startswith(place):
            assert torch.equal(tensor, state[name])
            assert tensor.data_ptr() != model.state_dict()[name].data_ptr()
    for name, tensor in model.state_dict().items():  # the caller's own is as it was
        assert torch.equal(tensor, state[name])


def test_seed_of_the_initialisation(net):
    model, place = net
    before = torch.get_rng_state()
    weights = [replace_head(model, 9, seed=s).get_submodule(place).weight for s in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    torch.manual_seed(5)
    first = replace_head(model, 9).get_submodule(place).weight
    assert not torch.equal(first, replace_head(model, 9).get_submodule(place).weight)


def test_by_name_and_by_function():
    model = Net("top", nn.Sequential(nn.Linear(6, 4), nn.Identity()))
    for name in ("top", "top.0"):
        assert replace_head(model, 2, name).top[0].out_features == 2

    def in_place(fresh, classes):
        fresh.top = nn.Linear(6, classes)

    assert replace_head(model, 3, in_place).top.out_features == 3
    assert isinstance(model.top, nn.Sequential)
    given = replace_head(model, 3, lambda fresh, c: nn.Sequential(fresh, nn.Linear(4, c)))
    assert given(torch.rand(2, 5)).shape == (2, 3)


def test_wrapped_models_and_modes(net):
    model, place = net
    model.eval()
    fresh = replace_head(nn.DataParallel(model), 3)
    assert isinstance(fresh, Net)
    assert not fresh.get_submodule(place).training
    assert not any(module.training for module in fresh.modules())


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "vit_b_16"])
def test_torchvision(name):
    models = optional.module("torchvision.models")
    with torch.device("meta"):  # no weights are needed to see which layer is which
        model = getattr(models, name)(weights=None)
    if name == "squeezenet1_1":  # its last layer is a convolution
        with pytest.raises(ValueError, match="a linear layer in 'classifier', found Sequential"):
            replace_head(model, 3)
        return
    fresh = replace_head(model, 3)
    changed = {n for n, p in fresh.named_parameters() if p.shape != model.get_parameter(n).shape}
    place = {"resnet18": "fc", "vit_b_16": "heads.head"}[name]
    assert changed == {f"{place}.weight", f"{place}.bias"}


def test_freezing_by_pattern(net):
    model, place = net
    names = [n for n, _ in model.named_parameters()]
    inside = [n for n in names if n.startswith("body.")]
    assert freeze(model, "body.*") == inside
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == inside
    assert freeze(model, "*", unfreeze=f"{place}.*") == [n for n in names if place not in n]
    model.requires_grad_(True)
    ends = ("body.0.weight", "body.1.weight")
    assert freeze(model, ["body.[01].weight"]) == list(ends)


def test_frozen_norm_layers_stay_in_eval_mode():
    model = Net("fc", nn.Linear(6, 4))
    model.body.append(nn.BatchNorm1d(6, affine=False))
    freeze(model, "body.1.*")
    training_mode(model)
    assert not model.body[1].training
    assert model.body[3].training  # it has nothing that could be frozen
    assert model.body[0].training
    freeze(model, "body.1.weight", unfreeze="body.1.bias")
    training_mode(model)
    assert model.body[1].training


def test_new_task_from_a_frozen_body():
    torch.manual_seed(0)
    old = Net("fc", nn.Linear(6, 4))
    x, y = torch.randn(40, 5), torch.arange(40) % 2
    model = replace_head(old, 2, seed=0)
    freeze(model, "body.*")
    data = [(x + 3 * y[:, None], y)]
    cost, trained = retrain(
        model,
        data,
        data,
        0.9,
        50,
        optimizer=lambda p: torch.optim.Adam(p, 0.1),
        meter=None,
        return_model=True,
    )
    assert cost.reached
    assert list(cost.parameter_change.per_tensor) == ["fc.weight", "fc.bias"]
    for name, tensor in trained.body.state_dict().items():
        assert torch.equal(tensor, old.body.state_dict()[name])


def test_bad_input():
    model = Net("top", nn.Identity())
    for error, message, arguments in (
        (TypeError, "^model: ", (torch.zeros(1), 3)),
        (ValueError, "^num_classes: ", (model, 0)),
        (TypeError, "^num_classes: ", (model, 2.0)),
        (
            ValueError,
            "^head: expected a model with one of 'fc', .* found Net with 'body'",
            (model, 3),
        ),
        (ValueError, "^head: expected a linear layer in 'top', found Identity", (model, 3, "top")),
        (KeyError, "^head: expected the name of a module of Net, found 'tap'", (model, 3, "tap")),
        (TypeError, "^head: expected it to give a model", (model, 3, lambda m, c: 7)),
        (TypeError, "^head: ", (model, 3, 5)),
    ):
        with pytest.raises(error, match=message):
            replace_head(*arguments)
    with pytest.raises(ValueError, match=r"^patterns: .* found 'layer9\.\*'"):
        freeze(model, ["body.*", "layer9.*"])
    with pytest.raises(ValueError, match=r"^unfreeze: "):
        freeze(model, "*", "nothing")
    with pytest.raises(TypeError, match=r"^patterns: "):
        freeze(model, [3])
    with pytest.raises(TypeError, match=r"^model: "):
        freeze(None, "*")
    assert all(p.requires_grad for p in model.parameters())  # nothing was changed
