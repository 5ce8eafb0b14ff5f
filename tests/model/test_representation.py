"""What a layer's output is: which layers are read, parts of outputs, heads, and where a map has its
channels; right values by computations that share no code with the package."""

import collections
import dataclasses

import pytest
import torch
from helpers.score_made import run as score
from torch import nn

from resque_ext import arm, resque_dist
from resque_ext.model.head import HeadFinder
from resque_ext.model.hooks import find_layer

CLASSES = 3


def batches(seed, shape=(3, 8, 8), sizes=(12, 9)):
    g = torch.Generator().manual_seed(seed)
    return [
        (torch.rand(n, *shape, generator=g) + seed / 3, torch.arange(n) % CLASSES) for n in sizes
    ]


def of_sides(function, old, new):
    """RESQUE_dist of what a function makes of the inputs."""
    with torch.no_grad():
        x = [torch.cat([function(x) for x, _ in side]) for side in (old, new)]
    y = [torch.cat([y for _, y in side]) for side in (old, new)]
    return resque_dist(*x, *y, CLASSES).value


# Which layers


class Backbone(nn.Module):
    """Residual, with a norm after every layer; its head has any width, or there is none."""

    def __init__(self, classes):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.mix = nn.Conv2d(6, 6, 1)
        self.act = nn.PReLU(6)
        self.fc = nn.Linear(6, classes) if classes else nn.Identity()

    def forward(self, x):
        x = self.norm(self.stem(x))
        x = self.act(x + self.mix(x))
        return self.fc(x.mean((2, 3)))


def backbone(classes):
    torch.manual_seed(1)
    return Backbone(classes).eval()


@pytest.mark.parametrize("classes", [3, 40, 0])
def test_auto_does_not_depend_on_the_head(classes):
    old, new = batches(0), batches(1)
    model = backbone(classes)
    found = score(model, old, new, indices="arm")
    assert set(found.layers) == {"stem", "mix"}  # norms and scalings make no features
    with torch.no_grad():
        stem = [torch.cat([model.stem(x) for x, _ in side]) for side in (old, new)]
        mix = [model.mix(model.norm(x)) for x in stem]
    for name, sides in (("stem", stem), ("mix", mix)):
        expected = arm(*(x.mean((2, 3)) for x in sides)).value
        assert found.layer_values[name] == pytest.approx(expected, rel=1e-5)
    assert found.skipped == ({"fc": "it is the classifier"} if classes else {})
    assert (found.old_accuracy is None) == (classes == 0)


def test_published_goes_by_the_width():
    old, new = batches(0), batches(1)
    narrow = score(backbone(3), old, new, indices="arm", layers="published")
    assert set(narrow.layers) == {"stem", "mix"}
    assert narrow.skipped == {"fc": "its width 3 is not above the 3 classes"}
    with pytest.raises(ValueError, match=r"wider than the number of classes \(40\)"):
        score(backbone(40), old, new, indices="arm", layers="published")
    assert score(backbone(3), old, new, layers="published").value > 0  # it reads one layer


def test_a_backbone_gives_its_output():
    old, new, model = batches(0), batches(1), backbone(0)
    found = score(model, old, new)
    assert found.value == pytest.approx(of_sides(model, old, new), rel=1e-9)
    assert (found.layer, found.pooling) == ("output", "vector")
    assert found.old_accuracy is found.new_accuracy is None


class LayersOfAllKinds(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(9, 4)
        self.lstm = nn.LSTM(4, 5, batch_first=True)
        self.attention = nn.MultiheadAttention(5, 1, batch_first=True)
        self.own = Own()
        self.norm, self.slope = nn.LayerNorm(5), nn.PReLU()
        self.plain = nn.utils.parametrizations.weight_norm(nn.Linear(5, 5))
        self.head = nn.Linear(5, CLASSES)

    def forward(self, ids):
        x = self.lstm(self.words(ids))[0]
        x = self.attention(x, x, x)[0]
        return self.head(self.plain(self.slope(self.norm(self.own(x)))).mean(1))


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(5, 5))

    def forward(self, x):
        return x @ self.matrix


def test_every_kind_of_layer_is_read_once():
    g = torch.Generator().manual_seed(0)
    data = [(torch.randint(9, (8, 6), generator=g), torch.arange(8) % CLASSES)]
    found = score(LayersOfAllKinds(), data, data, indices="arm")
    assert set(found.layers) == {"words", "lstm", "attention", "own", "plain"}
    assert found.skipped == {"head": "it is the classifier"}


# Heads


class Scored(nn.Module):
    def __init__(self, end, width=CLASSES):
        super().__init__()
        self.body, self.head, self.end = nn.Linear(6, 5), nn.Linear(5, width), end

    def forward(self, x):
        return self.end(self.head(self.body(x).tanh()))


ENDS = {
    "logits": nn.Identity(),
    "softmax": nn.Softmax(1),
    "log-softmax": nn.LogSoftmax(1),
    "sigmoid": nn.Sigmoid(),
    "temperature": lambda x: x / 0.3 + 1,
    "named tuple": lambda x: collections.namedtuple("Output", "loss scores")(None, x),
}


@pytest.mark.parametrize("end", ENDS)
def test_heads_whose_scores_are_returned(end):
    old, new = batches(0, (6,)), batches(1, (6,))
    model = Scored(ENDS[end])
    found = score(model, old, new, indices=("resque_dist", "arm"))
    assert found.layer == "head:input"
    assert found.layers == ("body",)
    with torch.no_grad():
        hits = sum(int((model.head(model.body(x).tanh()).argmax(1) == y).sum()) for x, y in old)
    assert found.old_accuracy == hits / 21


@pytest.mark.parametrize(
    "end",
    [
        nn.Tanh(),
        nn.LayerNorm(6),
        nn.functional.normalize,
        lambda x: x.flip(1),
        lambda x: x.square(),
        lambda x: x + 1e-3 * x.square(),
    ],
    ids=["tanh", "norm", "unit length", "order", "square", "nearly linear"],
)
def test_outputs_that_are_no_scores_of_the_last_layer(end):
    old, new = batches(0, (6,)), batches(1, (6,))
    model = Scored(end, width=6)
    found = score(model, old, new, indices=("resque_dist", "arm"))
    assert found.old_accuracy is None
    assert found.layer == "output"
    assert set(found.layers) == {"body", "head"}


def test_scores_of_a_convolution_and_of_pixels():
    conv = nn.Sequential(
        nn.Conv2d(3, 7, 3),
        nn.ReLU(),
        nn.Conv2d(7, CLASSES, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    old, new = batches(0), batches(1)
    found = score(conv, old, new, indices=("resque_dist", "arm"))
    read = lambda x: conv[1](conv[0](x)).mean((2, 3))  # noqa: E731
    assert found["resque_dist"].value == pytest.approx(of_sides(read, old, new), rel=1e-5)
    assert (found.layer, found.pooling, found.layers) == ("2:input", "mean", ("0",))
    assert found.old_accuracy is not None

    class Pixels(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = conv[:3]

        def forward(self, x):
            return {"out": nn.functional.interpolate(self.body(x), x.shape[2:])}

    found = score(Pixels(), old, new, indices=("resque_dist", "arm"))
    assert found["resque_dist"].value == pytest.approx(of_sides(read, old, new), rel=1e-5)
    assert (found.layer, found.layers) == ("body.2:input", ("body.0",))
    assert found.old_accuracy is None


def test_the_mean_of_two_heads():
    class Distilled(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(6, 5)
            self.first, self.second = nn.Linear(5, CLASSES), nn.Linear(5, CLASSES)

        def forward(self, x):
            x = self.body(x)
            return (self.first(x.tanh()) + self.second(x.sin())) / 2

    model, old, new = Distilled(), batches(0, (6,)), batches(1, (6,))
    found = score(model, old, new, indices=("resque_dist", "arm"))
    read = lambda x: model.body(x).tanh()  # noqa: E731
    assert found["resque_dist"].value == pytest.approx(of_sides(read, old, new), rel=1e-6)
    assert (found.layer, found.layers) == ("first:input", ("body",))
    assert found.old_accuracy is not None


def test_half_precision_heads_are_found():
    for dtype in (torch.float16, torch.bfloat16):
        model = Scored(nn.Softmax(1)).to(dtype)
        old, new = ([(x.to(dtype), y) for x, y in batches(s, (6,))] for s in (0, 1))
        found = score(model, old, new)
        assert found.layer == "head:input"
        assert found.old_accuracy is not None


def test_finding_the_head_leaves_no_hook():
    model = Scored(nn.Identity())
    finder = HeadFinder(model)
    handles = finder.attach()
    for handle in handles:
        handle.remove()
    score(model, batches(0, (6,)), batches(1, (6,)))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# Parts of outputs


@dataclasses.dataclass
class Output:
    hidden: torch.Tensor
    scores: torch.Tensor


class Parts(nn.Module):
    """A layer with an output of any form: hidden [N, 5] and, in a tuple of its own, 2 * hidden."""

    def __init__(self, form):
        super().__init__()
        self.body, self.form = nn.Linear(6, 5), form

    def forward(self, x):
        x = self.body(x)
        return self.form(x)


class Whole(nn.Module):
    def __init__(self, form, take):
        super().__init__()
        self.parts, self.take, self.head = Parts(form), take, nn.Linear(5, CLASSES)

    def forward(self, x):
        return self.head(self.take(self.parts(x)))


FORMS = {
    "tensor": (lambda x: x, lambda y: y, ["parts"], []),
    "tuple": (lambda x: (x, (None, x * x)), lambda y: y[0], ["parts", "parts:0"], ["parts:1.1"]),
    "list": (lambda x: [x, x * x], lambda y: y[0], ["parts", "parts:0"], ["parts:1"]),
    "dict": (
        lambda x: {"a": x, "b": x * x},
        lambda y: y["a"],
        ["parts:a", "parts:0"],
        ["parts:b", "parts:1"],
    ),
    "hidden": (
        lambda x: {"n": x * x, "last_hidden_state": x},
        lambda y: y["last_hidden_state"],
        ["parts", "parts:last_hidden_state"],
        ["parts:n"],
    ),
    "only": (lambda x: {"a": x, "n": 3}, lambda y: y["a"], ["parts", "parts:a"], []),
    "object": (lambda x: Output(x, x * x), lambda y: y.hidden, ["parts:hidden"], ["parts:scores"]),
}


@pytest.mark.parametrize("form", FORMS)
def test_parts_of_a_layers_output(form):
    make, take, plain, squared = FORMS[form]
    model, old, new = Whole(make, take), batches(0, (6,)), batches(1, (6,))
    for names, read in (
        (plain, model.parts.body),
        (squared, lambda x: model.parts.body(x).square()),
    ):
        for name in names:
            found = score(model, old, new, layer=name)
            assert found.value == pytest.approx(of_sides(read, old, new), rel=1e-6), name
            assert found.layer == name
            layers = score(model, old, new, indices="arm", layers=[name])
            with torch.no_grad():
                sides = [torch.cat([read(x) for x, _ in side]) for side in (old, new)]
            assert layers.layer_values == pytest.approx({name: arm(*sides).value}, rel=1e-5)


def test_the_models_own_output_and_what_layers_read():
    model, old, new = Whole(*FORMS["dict"][:2]), batches(0, (6,)), batches(1, (6,))
    for name, read in (
        ("output", model),
        ("parts:input", nn.Identity()),
        ("head:input", model.parts.body),
    ):
        assert score(model, old, new, layer=name).value == pytest.approx(
            of_sides(read, old, new), rel=1e-6
        )
        layers = score(model, old, new, indices="arm", layers=[name])
        with torch.no_grad():
            sides = [torch.cat([read(x) for x, _ in side]) for side in (old, new)]
        assert layers.layer_values == pytest.approx({name: arm(*sides).value}, rel=1e-5)
    with pytest.raises(KeyError, match="'parts:c' to have 'c' in its output, found 'a', 'b'"):
        score(model, old, new, layer="parts:c")
    with pytest.raises(TypeError, match="layers: expected 'parts' to give a tensor, found dict"):
        score(model, old, new, indices="arm", layers=["parts"])


def test_a_module_that_is_called_output_is_that_module():
    model = nn.Sequential(collections.OrderedDict(output=nn.Linear(6, 5), head=nn.Linear(5, 3)))
    old, new = batches(0, (6,)), batches(1, (6,))
    found = score(model, old, new, layer="output")
    assert found.value == pytest.approx(of_sides(model.output, old, new), rel=1e-9)


# Where a map has its channels


class ToLast(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1)


class Permute(nn.Module):
    """As torchvision's."""

    def __init__(self, dims):
        super().__init__()
        self.dims = dims

    def forward(self, x):
        return x.permute(self.dims)


class Windows(nn.Module):
    """A block of a windowed transformer: [N, H, W, C] in and out."""

    def __init__(self, width):
        super().__init__()
        self.norm, self.up, self.down = (
            nn.LayerNorm(width),
            nn.Linear(width, 20),
            nn.Linear(20, width),
        )

    def forward(self, x):
        return x + self.down(self.up(self.norm(x)).relu())


class Next(nn.Module):
    """A ConvNeXt block: [N, C, H, W] in and out, linear layers in between."""

    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm, self.up, self.down = (
            nn.LayerNorm(width),
            nn.Linear(width, 20),
            nn.Linear(20, width),
        )

    def forward(self, x):
        y = self.norm(self.conv(x).permute(0, 2, 3, 1))
        return x + self.down(self.up(y).relu()).permute(0, 3, 1, 2)


class Formatted(nn.Module):
    """As timm's layers say it."""

    def __init__(self, output_fmt):
        super().__init__()
        self.conv, self.output_fmt = nn.Conv2d(3, 8, 1), output_fmt

    def forward(self, x):
        x = self.conv(x)
        return x if self.output_fmt == "NCHW" else x.permute(0, 2, 3, 1)


class Over(nn.Module):
    """Its layer, and a head over the channels where they are."""

    def __init__(self, layer, last, width=8):
        super().__init__()
        self.layer, self.last, self.head = layer, last, nn.Linear(width, CLASSES)

    def forward(self, x):
        return self.head(self.layer(x).mean((1, 2) if self.last else (2, 3)))


STEM = nn.Conv2d(3, 8, 1)
MAPS = {
    # name: (layer, channels are last, pixels): 8 channels, so that 8 pixels would fool a shape
    "convolution": (nn.Conv2d(3, 8, 3, padding=1), False),
    "norm of channels": (nn.Sequential(STEM, nn.BatchNorm2d(8)), False),
    "group norm": (nn.Sequential(STEM, nn.GroupNorm(2, 8)), False),
    "activation": (nn.Sequential(STEM, nn.ReLU()), False),
    "pooling": (nn.Sequential(STEM, nn.MaxPool2d(3, 1, 1)), False),
    "windows": (nn.Sequential(STEM, Permute([0, 2, 3, 1]), nn.LayerNorm(8), Windows(8)), True),
    "linear": (nn.Sequential(STEM, ToLast(), nn.Linear(8, 8)), True),
    "permuted": (nn.Sequential(STEM, Permute([0, 2, 3, 1])), True),
    "and back": (
        nn.Sequential(STEM, Permute([0, 2, 3, 1]), nn.Linear(8, 8), Permute([0, 3, 1, 2])),
        False,
    ),
    "timm, last": (Formatted("NHWC"), True),
    "timm, first": (Formatted("NCHW"), False),
}


@pytest.mark.parametrize("pixels", [8, 6])
@pytest.mark.parametrize("name", MAPS)
def test_channels_are_where_the_module_says(name, pixels):
    layer, last = MAPS[name]
    model = Over(layer, last).eval()
    old, new = (batches(seed, (3, pixels, pixels)) for seed in (0, 1))
    read = lambda x: layer(x).mean((1, 2) if last else (2, 3))  # noqa: E731
    expected = of_sides(read, old, new)
    assert score(model, old, new, layer="layer").value == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("layer", "last"),
    [(nn.Sequential(STEM, Next(8)), False), (nn.Sequential(STEM, ToLast()), True)],
)
def test_what_stays_ambiguous_names_the_argument(layer, last):
    """A block of convolutions and linear layers, and a permutation that no module shows."""
    model = Over(layer, last)
    wide, square = [[batches(s, (3, p, p)) for s in (0, 1)] for p in (6, 8)]
    read = lambda x: layer(x).mean((1, 2) if last else (2, 3))  # noqa: E731
    if not last:  # other widths decide
        old, new = wide
        expected = of_sides(read, old, new)
        assert score(model, old, new, layer="layer").value == pytest.approx(expected, rel=1e-5)
    old, new = square
    with pytest.raises(KeyError, match=r"channels: expected 'first' .* 'layer' of layer= has"):
        score(model, old, new, layer="layer")
    with pytest.raises(KeyError, match=r"channels: expected .* where 'layer' of layers= has"):
        score(model, old, new, indices="arm", layers=["layer"])
    channels = "last" if last else "first"
    found = score(model, old, new, layer="layer", channels=channels)
    assert found.value == pytest.approx(of_sides(read, old, new), rel=1e-5)
    other = score(model, old, new, layer="layer", channels="first" if last else "last")
    assert abs(other.value - found.value) > 1e-4


def test_activations_by_themselves_go_by_the_rest_of_the_model():
    cnn = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 16, CLASSES))
    old, new = batches(0, (3, 6, 6)), batches(1, (3, 6, 6))
    read = lambda x: cnn[:2](x).mean((2, 3))  # noqa: E731
    found = score(cnn, old, new, layer="1")
    assert found.value == pytest.approx(of_sides(read, old, new), rel=1e-5)
    lines = nn.Sequential(
        nn.Conv1d(3, 5, 3), nn.BatchNorm1d(5), nn.ReLU(), nn.Flatten(), nn.Linear(30, 3)
    )
    old, new = batches(0, (3, 8)), batches(1, (3, 8))
    for i in (0, 1, 2):
        read = lambda x, i=i: lines.eval()[: i + 1](x).mean(2)  # noqa: E731
        found = score(lines, old, new, layer=str(i))
        assert found.value == pytest.approx(of_sides(read, old, new), rel=1e-5)


def test_first_and_last_position_of_a_map():
    model = Over(*MAPS["convolution"])
    old, new = batches(0), batches(1)
    for pooling, at in (("first", 0), ("last", -1)):
        read = lambda x, at=at: model.layer(x)[:, :, at, at]  # noqa: E731
        found = score(model, old, new, layer="layer", pooling=pooling)
        assert found.value == pytest.approx(of_sides(read, old, new), rel=1e-6)
        with torch.no_grad():
            sides = [torch.cat([read(x) for x, _ in side]) for side in (old, new)]
        found = score(model, old, new, indices="arm", layers=["layer"], pooling=pooling)
        assert found.value == pytest.approx(arm(*sides).value, rel=1e-6)
        assert found.pooling == pooling


def test_a_layer_of_a_recurrence_with_the_batch_second():
    class Lines(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(4, 5), nn.Linear(5, CLASSES)

        def forward(self, x):
            return self.head(self.lstm(x.transpose(0, 1))[0][-1])

    model, old, new = Lines(), batches(0, (6, 4)), batches(1, (6, 4))
    read = lambda x: model.lstm(x.transpose(0, 1))[0].mean(0)  # noqa: E731
    found = score(model, old, new, layer="lstm")
    assert found.value == pytest.approx(of_sides(read, old, new), rel=1e-5)


def test_find_layer_is_still_what_names_are_looked_up_by():
    assert isinstance(find_layer(backbone(3), "stem"), nn.Conv2d)
