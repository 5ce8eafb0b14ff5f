"""Recurrent and sequence-first models: right values with torch's own hooks, one sample at a time
where there is padding; the same at any size of batch, also where T == N."""

import pytest
import torch
from helpers.score_made import run as score
from torch import nn

from resque_ext import RepresentationDistance, resque_dist

CLASSES, N, T, D = 3, 24, 6, 8
LABELS = torch.arange(N) % CLASSES


def signals(seed):
    return torch.randn(N, T, 5, generator=torch.Generator().manual_seed(seed)) + seed / 3


def loader(x, size=T):
    return list(zip(x.split(size), LABELS.split(size), strict=True))


def right(function, a, b):
    with torch.no_grad():
        return resque_dist(function(a).double(), function(b).double(), LABELS, LABELS).value


class Recurrent(nn.Module):
    def __init__(self, kind, batch_first, **options):
        super().__init__()
        self.rnn = kind(5, D, batch_first=batch_first, **options)
        self.head, self.first = nn.LazyLinear(CLASSES), batch_first
        self(torch.zeros(2, T, 5))

    def forward(self, x):
        out, _ = self.rnn(x if self.first else x.transpose(0, 1))
        return self.head(out[:, -1] if self.first else out[-1])

    def states(self, x):
        return self.rnn(x if self.first else x.transpose(0, 1))[1]


@pytest.mark.parametrize("size", [2, 4, T, N])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_final_states_have_their_samples_second(kind, batch_first, size):
    model = Recurrent(kind, batch_first, num_layers=2).eval()
    a, b = signals(0), signals(1)
    lstm = kind is nn.LSTM
    for path, part in (("1.0", 0), ("1.1", 1)) if lstm else (("1", None),):

        def final(x, part=part):
            found = model.states(x)
            return (found if part is None else found[part]).mean(0)

        found = score(model, loader(a, size), loader(b, size), layer=f"rnn:{path}")
        assert found.value == pytest.approx(right(final, a, b), rel=1e-6)


@pytest.mark.parametrize("size", [4, T, N])
@pytest.mark.parametrize("batch_first", [True, False])
def test_the_output_of_attention_and_its_weights(batch_first, size):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.att = nn.MultiheadAttention(5, 1, batch_first=batch_first)
            self.head = nn.Linear(5, CLASSES)

        def parts(self, x):
            x = x if batch_first else x.transpose(0, 1)
            out, weights = self.att(x, x, x)
            return out if batch_first else out.transpose(0, 1), weights

        def forward(self, x):
            return self.head(self.parts(x)[0].mean(1))

    model, a, b = Attention().eval(), signals(0), signals(1)
    for layer, part in (("att", 0), ("att:1", 1)):
        found = score(model, loader(a, size), loader(b, size), layer=layer)
        expected = right(lambda x, part=part: model.parts(x)[part].mean(1), a, b)
        assert found.value == pytest.approx(expected, rel=1e-5)


class Stack(nn.Module):
    """torch's encoder over padded words; `batch_first` says how it reads."""

    def __init__(self, batch_first):
        super().__init__()
        layer = nn.TransformerEncoderLayer(D, 2, 12, batch_first=batch_first)
        self.emb, self.first = nn.Embedding(50, D, padding_idx=0), batch_first
        self.enc = nn.TransformerEncoder(layer, 2, nn.LayerNorm(D))
        self.head = nn.Linear(D, CLASSES)

    def forward(self, input_ids, attention_mask):
        x = self.emb(input_ids)
        x = self.enc(
            x if self.first else x.transpose(0, 1), src_key_padding_mask=attention_mask == 0
        )
        x = x if self.first else x.transpose(0, 1)
        real = attention_mask[:, : x.shape[1], None]
        return self.head((x * real).sum(1) / real.sum(1))

    def hidden(self, texts, layers):
        """One text at a time, without padding."""
        rows = []
        with torch.no_grad():
            for text in texts:
                x = self.emb(text[None])
                for layer in self.enc.layers[:layers]:
                    x = layer(x if self.first else x.transpose(0, 1))
                    x = x if self.first else x.transpose(0, 1)
                rows.append(x[0].double().mean(0))
        return torch.stack(rows)


def texts(seed):
    g = torch.Generator().manual_seed(seed)
    sizes = torch.randint(2, 7, (N,), generator=torch.Generator().manual_seed(9))
    return [torch.randint(1, 50, (int(n),), generator=g) for n in sizes]


def words(some, width, size):
    ids = torch.zeros(N, width, dtype=torch.int64)
    for row, text in zip(ids, some, strict=True):
        row[: len(text)] = text
    batches = zip(ids.split(size), LABELS.split(size), strict=True)
    return [({"input_ids": x, "attention_mask": (x > 0).long()}, y) for x, y in batches]


@pytest.mark.parametrize(("width", "size"), [(8, 8), (8, 12), (12, 12), (12, 8)])
@pytest.mark.parametrize("batch_first", [True, False])
def test_layers_of_a_torch_transformer(batch_first, width, size):
    model, a, b = Stack(batch_first).eval(), texts(0), texts(1)
    old, new = words(a, 8, size), words(b, width, size)
    found = score(model, old, new, layer="enc.layers.0")
    hidden = model.hidden(a, 1), model.hidden(b, 1)
    assert found.value == pytest.approx(resque_dist(*hidden, LABELS, LABELS).value, rel=1e-5)
    assert found.pooling == "masked mean"
    read = score(model, old, new, indices="arm")
    assert {f"enc.layers.{i}.linear{j}" for i in (0, 1) for j in (1, 2)} <= set(read.layers)
    assert set(read.skipped) == {"head"}
    assert read.value == pytest.approx(score(model, words(a, 8, N), new, indices="arm").value)


@pytest.mark.parametrize("batch_first", [True, False])
def test_p_of_a_torch_transformer_at_any_padding(batch_first):
    model = Stack(batch_first)
    found = [
        score(model, words(texts(0), 8, 8), words(texts(1), width, 8), indices=INDEX, paired=True)
        for width in (8, 11)
    ]
    assert found[0].value == pytest.approx(found[1].value, rel=1e-6)
    assert len(by_layer(found[0])) > 5


def by_layer(result):
    return {k: x[32]["jensen_shannon"] for k, x in result.distances.layers.items()}


INDEX = "representation_distance"


def test_the_fused_path_comes_back():
    before = torch.backends.mha.get_fastpath_enabled()
    score(Stack(True), words(texts(0), 8, 8), words(texts(1), 8, 8))
    assert torch.backends.mha.get_fastpath_enabled() == before


class Turned(nn.Module):
    """Its inner layer reads [T, N, D], which no module says."""

    def __init__(self):
        super().__init__()
        self.emb, self.lin, self.head = nn.Linear(5, D), nn.Linear(D, D), nn.Linear(D, CLASSES)

    def inner(self, x):
        return self.lin(self.emb(x).transpose(0, 1)).tanh()

    def forward(self, x):
        return self.head(self.inner(x).mean(0))


@pytest.mark.parametrize("size", [4, T, 8])
def test_samples_that_come_second_are_refused_at_any_size_of_batch(size):
    model, old, new = Turned(), loader(signals(0), size), loader(signals(1), size)
    with pytest.raises(KeyError, match="set batch_first = False on the module 'lin'"):
        score(model, old, new, layer="lin")
    with pytest.raises(KeyError, match="set batch_first = False on the module 'lin'"):
        score(model, old, new, indices="arm", layers=["lin"])
    read = score(model, old, new, indices=("arm", INDEX), paired=True)
    assert set(read["arm"].layers) == set(by_layer(read[INDEX])) == {"emb"}
    assert "lin" in read.skipped
    model.lin.batch_first = False
    expected = right(lambda x: model.lin(model.emb(x)).mean(1), signals(0), signals(1))
    assert score(model, old, new, layer="lin").value == pytest.approx(expected, rel=1e-5)
    assert set(score(model, old, new, indices="arm").layers) == {"emb", "lin"}


def test_as_many_positions_as_samples_where_they_come_first():
    model = nn.Sequential(nn.Linear(5, D), nn.Tanh(), nn.Flatten(), nn.Linear(T * D, CLASSES))
    a, b = signals(0), signals(1)
    for size in (T, 8):
        found = score(model, loader(a, size), loader(b, size), layer="1")
        assert found.value == pytest.approx(right(lambda x: model[:2](x).mean(1), a, b), rel=1e-6)
        assert set(score(model, loader(a, size), loader(b, size), indices="arm").layers) == {"0"}


class Packed(nn.Module):
    def __init__(self, batch_first):
        super().__init__()
        self.emb, self.first = nn.Embedding(50, D), batch_first
        self.rnn, self.head = nn.GRU(D, D, batch_first=batch_first), nn.Linear(D, CLASSES)

    def forward(self, input_ids, attention_mask):
        x = self.emb(input_ids)
        packed = nn.utils.rnn.pack_padded_sequence(
            x if self.first else x.transpose(0, 1),
            attention_mask.sum(1).cpu(),
            batch_first=self.first,
            enforce_sorted=False,
        )
        return self.head(self.rnn(packed)[1][-1])

    def tokens(self, text):
        with torch.no_grad():
            return self.rnn(self.emb(text)[:, None] if not self.first else self.emb(text)[None])[
                0
            ].squeeze(0 if self.first else 1)


@pytest.mark.parametrize("batch_first", [True, False])
def test_packed_sequences(batch_first):
    model, a, b = Packed(batch_first).eval(), texts(0), texts(1)
    old, new = words(a, 8, 8), words(b, 11, 8)
    means = [torch.stack([model.tokens(t).double().mean(0) for t in side]) for side in (a, b)]
    expected = resque_dist(*means, LABELS, LABELS).value
    for layer in ("rnn", "rnn:0"):
        found = score(model, old, new, layer=layer)
        assert found.value == pytest.approx(expected, rel=1e-6)
        assert found.pooling == "masked mean"
    # The embedding has the batch's padding, the recurrent layer its own.
    read = score(model, old, new, indices=INDEX, paired=True, layers=["emb", "rnn"])
    padded = [nn.utils.rnn.pad_sequence([model.tokens(t) for t in s], True) for s in (a, b)]
    mask = nn.utils.rnn.pad_sequence([torch.ones(len(t)) for t in a], True)
    whole = RepresentationDistance()
    whole.update({"rnn": tuple(padded)}, mask, mask)
    expected = whole.compute().layers["rnn"][32]["jensen_shannon"]
    assert by_layer(read)["rnn"] == pytest.approx(expected, rel=1e-6)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.l, self.head = nn.Linear(5, 5), nn.Linear(5, CLASSES)

    def forward(self, x):
        return self.head(self.l(self.l(x.mean(1)).relu()).relu())


def test_a_run_of_a_layer_by_its_number():
    model, old, new = Twice().eval(), loader(signals(0)), loader(signals(1))
    again = right(lambda x: model.l(model.l(x.mean(1)).relu()), signals(0), signals(1))
    read_by_it = right(lambda x: model.l(x.mean(1)).relu(), signals(0), signals(1))
    assert score(model, old, new, layer="l#2").value == pytest.approx(again, rel=1e-6)
    assert score(model, old, new, layer="l#2:input").value == pytest.approx(read_by_it, rel=1e-6)
    both = score(model, old, new, indices="arm").layers
    assert score(model, old, new, indices="arm", layers=["l#2"]).layers == {"l#2": both["l#2"]}
    with pytest.raises(KeyError, match="layer= takes 'l#1', 'l#2' and so on"):
        score(model, old, new, layer="l")
    with pytest.raises(KeyError, match="'l#3' to run in the forward pass, found it ran 2 times"):
        score(model, old, new, layer="l#3")
    with pytest.raises(KeyError, match="'l#3' to be read, but it did not run 3 times"):
        score(model, old, new, indices="arm", layers=["l#3"])


def test_a_layer_with_other_rows_than_samples():
    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix, self.head = nn.Linear(5, 5), nn.Linear(T * 5, CLASSES)

        def forward(self, x):
            return self.head(self.mix(x.reshape(-1, 2, 5)).reshape(len(x), -1))

    with pytest.raises(KeyError, match=r"'mix' to give one row a sample, 6 of them, found .*\(18"):
        score(Windows(), loader(signals(0)), loader(signals(1)), layer="mix")


def test_a_later_run_whose_samples_come_second_is_refused():
    class Again(Turned):
        def inner(self, x):
            return self.lin(self.lin(self.emb(x)).transpose(0, 1))

    model, old, new = Again(), loader(signals(0)), loader(signals(1))
    with pytest.raises(KeyError, match="has its samples second"):
        score(model, old, new, layer="lin#2")
    expected = right(lambda x: model.lin(model.emb(x)).mean(1), signals(0), signals(1))
    assert score(model, old, new, layer="lin#1").value == pytest.approx(expected, rel=1e-5)
    read = score(model, old, new, indices="arm")
    assert set(read.layers) == {"emb"}
