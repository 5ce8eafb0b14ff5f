"""Every layer of a model: which are read, what is handed on, and when it has to be copied."""

import pytest
import torch
from torch import nn

from resque_ext.indices.base import SIDES, Index, IndexReads
from resque_ext.model.layout import Layouts
from resque_ext.model.reads import Reads
from resque_ext.ops import spatial_mean
from resque_ext.scoring.forward_pass import Passes


class Recorder(Index):
    """An index that keeps copies of all it is given."""

    def __init__(self, vectors=False, pooled=False, raw=False):
        kinds = {"paired": vectors, "pooled": pooled, "raw": raw}
        (layers,) = (name for name, asked in kinds.items() if asked)
        self.reads = IndexReads(layers=layers)
        self.pairs, self.means, self.outputs = [], {s: [] for s in SIDES}, {s: [] for s in SIDES}

    def update(self, batch):
        if self.reads.layers == "paired":
            self.add_vectors(batch.old, batch.new, batch.masks)
        elif self.reads.layers == "pooled":
            self.means[batch.side].append({k: v.clone() for k, v in batch.layers.items()})
        else:
            assert batch.mask is None
            ((layer, x),) = batch.layers.items()
            self.outputs[batch.side].append((layer, x.clone()))

    def compute(self, facts):
        raise AssertionError("nobody asks for a result here")

    def add_vectors(self, old, new, masks):
        assert masks == (None, None)
        self.pairs.append([{k: v.clone() for k, v in side.items()} for side in (old, new)])

    def discard(self, layers):
        self.discarded = layers


class TokensNet(nn.Module):
    """Convolution, tokens, a linear layer changed in place, one used twice, and idle ones."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 4, 4)
        self.up = nn.Linear(12, 20)
        self.down = nn.Linear(20, 12)
        self.idle = nn.Linear(12, 12)
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        tokens = self.stem(x).relu_().flatten(2).transpose(1, 2)
        tokens = tokens + self.down(self.up(tokens).relu_())
        tokens = tokens + self.down(self.up(tokens).relu())
        return self.head(tokens.mean(1))


def batches(count=3, rows=5, shape=(3, 16, 16)):
    return [(torch.rand(rows, *shape), torch.arange(rows) % 4) for _ in range(count)]


def passes(recorder, layers="auto"):
    return Passes([recorder], Reads(layers=layers), torch.device("cpu"), progress=False)


def by_hand(model, inputs):
    """Every output of every module, copied the moment it is there."""
    found = {}

    def keep(name):
        def hook(module, args, output):
            key = name
            while key in found:
                key = f"{name}#{int(key.partition('#')[2] or 1) + 1}"
            found[key] = output.clone()

        return hook

    handles = [m.register_forward_hook(keep(n)) for n, m in model.named_modules() if n]
    with torch.no_grad():
        model(inputs)
    for handle in handles:
        handle.remove()
    return found


def double(x):
    return x * 2


def test_vectors_of_pairs():
    """Pooled channels of a convolution, all tokens x features, as they were before in-place ops."""
    model, data, recorder = TokensNet().eval(), batches(), Recorder(vectors=True)
    run = passes(recorder)
    run.shifted(model, model, data, double)
    names = ("stem", "up", "down", "up#2", "down#2")
    assert run.layer_names == names
    assert run.skipped == {
        "idle": "it did not run in the forward pass",
        "head": "it is the classifier",
    }
    assert len(recorder.pairs) == len(data)
    for (inputs, _), sides in zip(data, recorder.pairs, strict=True):
        for x, side in zip((inputs, double(inputs)), sides, strict=True):
            expected = by_hand(model, x)
            assert set(side) == set(names)
            assert torch.equal(side["stem"], spatial_mean(expected["stem"]))
            for name in names[1:]:
                assert torch.equal(side[name], expected[name].flatten(1)), name


def test_only_what_changes_in_place_is_copied():
    model, recorder = TokensNet().eval(), Recorder(vectors=True)
    found, outputs = [], {"up": [], "down": []}
    # Both are kept alive, so that no copy gets an address of an output, nor an output a copy's.
    recorder.add_vectors = lambda old, new, masks: found.append(dict(new))
    for name, kept in outputs.items():
        getattr(model, name).register_forward_hook(lambda m, a, y, kept=kept: kept.append(y))
    passes(recorder).shifted(model, model, batches(), double)
    addresses = {name: {y.data_ptr() for y in kept} for name, kept in outputs.items()}
    assert all(at["down"].data_ptr() in addresses["down"] for at in found)
    assert all(at["up"].data_ptr() not in addresses["up"] for at in found)  # relu_ follows


def test_a_layer_that_is_changed_in_a_later_batch_alone():
    class Moody(TokensNet):
        def forward(self, x):
            y = self.up(self.stem(x).flatten(2).transpose(1, 2))
            y = y.relu_() if x.amax() > 5 else y.relu()
            return self.head(self.down(y).mean(1))

    data, model = batches(), Moody()
    data[1][0].mul_(10)
    run = passes(Recorder(vectors=True))
    with pytest.raises(KeyError, match="changed in place in every batch, found 'up' changed"):
        run.shifted(model, model, data, double)


@pytest.mark.parametrize("kind", ["pooled", "raw"])
def test_one_side_at_a_time(kind):
    model, data, recorder = TokensNet().eval(), batches(), Recorder(**{kind: True})
    run = passes(recorder)
    for side in SIDES:
        run.side(model, data, side)
        for i, (inputs, _) in enumerate(data):
            expected = by_hand(model, inputs)
            if kind == "pooled":
                found = recorder.means[side][i]
                assert set(found) == set(run.layer_names)
                assert all(torch.equal(v, spatial_mean(expected[k])) for k, v in found.items())
            else:
                # In the very first pass the classes, and so the width rule, are not known yet.
                known = i > 0 or side == "new"
                found, recorder.outputs[side] = (
                    recorder.outputs[side][: 6 - known],
                    recorder.outputs[side][6 - known :],
                )
                assert {name for name, _ in found} == {
                    *run.layer_names,
                    *(() if known else ["head"]),
                }
                assert all(torch.equal(x, expected[name]) for name, x in found)


def test_pairs_of_two_loaders():
    model, data, recorder = TokensNet().eval(), batches(), Recorder(vectors=True)
    new = [(double(x), y) for x, y in data]
    run = passes(recorder)
    run.paired(model, model, data, new)
    other = Recorder(vectors=True)
    passes(other).shifted(model, model, data, double)
    for a, b in zip(recorder.pairs, other.pairs, strict=True):
        for x, y in zip(a, b, strict=True):
            assert all(torch.equal(x[k], y[k]) for k in x)
    with pytest.raises(ValueError, match="found 2 new ones and more old ones"):
        passes(Recorder(vectors=True)).paired(model, model, data, new[:2])
    with pytest.raises(ValueError, match="found more new ones"):
        passes(Recorder(vectors=True)).paired(model, model, data[:2], new)
    new[1] = (new[1][0], new[1][1].flip(0))
    with pytest.raises(ValueError, match="found others in batch 1"):
        passes(Recorder(vectors=True)).paired(model, model, data, new)


def test_names_and_predicates():
    model, data = TokensNet().eval(), batches(1)
    for layers, names in (
        (["down", "head"], ("down", "down#2", "head")),
        (lambda name, m: isinstance(m, nn.Conv2d), ("stem",)),
    ):
        run = passes(Recorder(pooled=True), layers)
        run.side(model, data, "old")
        assert run.layer_names == names


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        ("stem", TypeError, "layers: expected 'auto', 'published', names of modules or a fun"),
        (5, TypeError, "layers: expected 'auto'"),
        ([], ValueError, "layers: expected at least one name, found none"),
        (["stem", "nope"], KeyError, "layers: expected the name of a module of TokensNet"),
        ([3], TypeError, "layers: expected a module's name, found 3"),
        (lambda n, m: False, ValueError, "says no to all 5"),
        (["idle"], KeyError, "expected 'idle' to be read, but it did not run"),
    ],
)
def test_layers_that_are_refused(layers, error, message):
    model = TokensNet()
    with pytest.raises(error, match=message):
        passes(Recorder(pooled=True), layers).side(model, batches(1), "old")
    assert not any(m._forward_hooks for m in model.modules())


def test_no_layer_is_left():
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 3), nn.ReLU(), nn.Linear(3, 4))
    data = batches(shape=(3, 4, 4))
    with pytest.raises(ValueError, match=r"wider than the number of classes \(4\)"):
        passes(Recorder(pooled=True), "published").side(model, data, "old")
    run = passes(Recorder(pooled=True))
    run.side(model, data, "old")
    assert run.layer_names == ("1",)
    with pytest.raises(ValueError, match="a layer beside the classifier to run, found none"):
        passes(Recorder(pooled=True)).side(
            nn.Sequential(nn.Flatten(), nn.Linear(48, 4)), data, "old"
        )
    for layers in ("auto", "published"):
        with pytest.raises(ValueError, match="found none in Sequential"):
            passes(Recorder(pooled=True), layers).side(nn.Sequential(nn.ReLU()), batches(), "old")


def test_outputs_that_are_no_features_are_skipped():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.lines, self.fc = nn.LSTM(4, 6), nn.Linear(3, 9), nn.Linear(6, 8)
            self.back = nn.LSTM(6, 6, batch_first=True)

        def forward(self, x):
            states, _ = self.lstm(x.transpose(0, 1))
            self.back(states.transpose(0, 1)[:1])
            self.lines(torch.ones(2, 3))  # not one row a sample
            return self.fc(states[0]).unflatten(1, (4, 2))

    recorder = Recorder(pooled=True)
    run = passes(recorder)
    model, x = Odd(), torch.rand(5, 3, 4)
    run.side(model, [(x, torch.arange(5) % 2)], "old")
    assert run.layer_names == ("lstm", "fc")
    assert "one row a sample: 5 samples, shape (2, 9)" in run.skipped["lines"]
    assert "one row a sample: 5 samples, shape (1, 3, 6)" in run.skipped["back"]
    with torch.no_grad():
        states = model.lstm(x.transpose(0, 1))[0]
    torch.testing.assert_close(recorder.means["old"][0]["lstm"], states.mean(0))


@pytest.mark.parametrize(
    ("module", "shape", "expected"),
    [
        (nn.Conv1d(3, 5, 1), (2, 5, 7), (2, 5, 7, 1)),
        (nn.Conv2d(3, 5, 1), (2, 5, 7, 4), (2, 5, 7, 4)),
        (nn.Conv3d(3, 5, 1), (2, 5, 7, 4, 3), (2, 5, 7, 12)),
        (nn.BatchNorm1d(5), (2, 5, 7), (2, 5, 7, 1)),
        (nn.Linear(3, 5), (2, 7, 5), (2, 7, 5)),
        (nn.Linear(3, 5), (2, 7, 4, 5), (2, 28, 5)),
        (nn.Linear(3, 5), (2, 7, 4, 3, 5), (2, 84, 5)),
        (nn.Linear(3, 5), (2, 5), (2, 5)),
        (nn.LayerNorm(5), (2, 7, 5, 5), (2, 35, 5)),
    ],
)
def test_shapes(module, shape, expected):
    x = torch.rand(shape)
    found = Layouts(nn.Sequential(module), None).features(x, "0", module, None, "layer")
    assert found.x.shape == expected
    assert found.x.data_ptr() == x.data_ptr()


def test_a_layer_that_runs_on_one_side_alone():
    class Sometimes(TokensNet):
        def forward(self, x):
            if x.amax() < 1:
                self.idle(torch.ones(len(x), 12))
            return super().forward(x)

    model = Sometimes()
    with pytest.raises(KeyError, match="found 'idle' on the old side alone"):
        passes(Recorder(vectors=True)).shifted(model, model, batches(1), lambda x: x + 1)
