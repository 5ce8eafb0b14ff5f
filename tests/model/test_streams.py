"""Models with several streams of tokens: each is read under its own mask. Right values from one
sample at a time, without padding."""

import pytest
import torch
from helpers import optional
from helpers.score_made import run as score
from torch import nn

from resque_ext import resque_dist

CLASSES, N, D = 3, 24, 8
LABELS = torch.arange(N) % CLASSES


class Stack(nn.Module):
    """Tokens that attend to the real ones of `memory`."""

    def __init__(self):
        super().__init__()
        self.mix, self.cross_attn = nn.Linear(D, D), nn.MultiheadAttention(D, 1, batch_first=True)
        self.norm = nn.LayerNorm(D)

    def forward(self, x, memory, real):
        x = self.mix(x)
        return self.norm(x + self.cross_attn(x, memory, memory, key_padding_mask=real == 0)[0])


class Seq2Seq(nn.Module):
    def __init__(self):
        super().__init__()
        self.shared, self.encoder, self.decoder = nn.Embedding(50, D), Stack(), Stack()

    def forward(
        self, input_ids, attention_mask, decoder_input_ids=None, decoder_attention_mask=None
    ):
        x = self.shared(input_ids)
        encoded = self.encoder(x, x, attention_mask)
        mine = self.shared(input_ids if decoder_input_ids is None else decoder_input_ids)
        hidden = self.decoder(mine, encoded, attention_mask)
        return {"last_hidden_state": hidden, "encoder_last_hidden_state": encoded}


def texts(seed, lowest=2, highest=7):
    g = torch.Generator().manual_seed(seed)
    sizes = torch.randint(lowest, highest, (N,), generator=torch.Generator().manual_seed(highest))
    return [torch.randint(1, 50, (int(n),), generator=g) for n in sizes]


def padded(some, width):
    ids = torch.zeros(N, width, dtype=torch.int64)
    for row, text in zip(ids, some, strict=True):
        row[: len(text)] = text
    return ids


def batches(words, mine, width, own_width, masked=True):
    ids, own = padded(words, width), padded(mine, own_width)
    parts = {"input_ids": ids, "attention_mask": ids > 0, "decoder_input_ids": own}
    if masked:
        parts["decoder_attention_mask"] = own > 0
    split = {key: x.split(10) for key, x in parts.items()}
    return [({key: x[i] for key, x in split.items()}, y) for i, y in enumerate(LABELS.split(10))]


def right(model, olds, news, key, own_width=None):
    rows = []
    for words, mine in (olds, news):
        side = []
        for w, m in zip(words, mine, strict=True):
            if own_width is not None:  # all of a decoder's tokens are real
                m = torch.cat([m, m.new_zeros(own_width - len(m))])
            with torch.no_grad():
                found = model(w[None], torch.ones(1, len(w)), m[None])[key]
            side.append(found[0].double().mean(0))
        rows.append(torch.stack(side))
    return resque_dist(*rows, LABELS, LABELS).value


OLDS, NEWS = (texts(0), texts(1, 3, 8)), (texts(2), texts(3, 3, 8))
HIDDEN, ENCODED = "last_hidden_state", "encoder_last_hidden_state"


@pytest.mark.parametrize(
    ("layer", "key"),
    [
        (None, HIDDEN),
        ("decoder", HIDDEN),
        ("decoder.norm", HIDDEN),
        ("encoder", ENCODED),
        (f"output:{ENCODED}", ENCODED),
    ],
)
def test_a_decoder_has_its_own_mask(layer, key):
    model = Seq2Seq().eval()
    expected = right(model, OLDS, NEWS, key)
    for width, own in ((8, 8), (11, 8), (8, 11), (11, 11)):
        old, new = batches(*OLDS, 8, 8), batches(*NEWS, width, own)
        assert score(model, old, new, layer=layer).value == pytest.approx(expected, rel=1e-5)


def test_all_tokens_of_a_decoder_without_a_mask_are_real():
    model = Seq2Seq().eval()
    old, new = (batches(*side, 8, 8, masked=False) for side in (OLDS, NEWS))
    found = score(model, old, new, layer="decoder")
    assert found.value == pytest.approx(right(model, OLDS, NEWS, HIDDEN, 8), rel=1e-5)
    assert found.pooling == "mean"


def test_every_layer_and_what_is_matched_under_its_own_mask():
    for options in (
        {"indices": "arm"},
        {"indices": "arm", "layers": ["shared", "encoder", "decoder.cross_attn"]},
        {"indices": "representation_distance", "paired": True},
        {"layer": "decoder", "adapt_normalization": "match"},
    ):
        found = []
        for width, own in ((8, 8), (11, 8), (11, 11)):
            new = batches(NEWS[0], NEWS[1], width, own)
            if options.get("paired"):
                new = batches(OLDS[0], NEWS[1], width, own)
            found.append(score(seeded(), batches(*OLDS, 8, 8), new, **options).value)
        assert found[1:] == pytest.approx(found[:1] * 2, rel=1e-6)


def seeded():
    torch.manual_seed(0)
    return Seq2Seq()


def given(words, width):
    ids = padded(words, width)
    parts = zip(ids.split(10), LABELS.split(10), strict=True)
    return [({"input_ids": x, "attention_mask": x > 0}, y) for x, y in parts]


def test_tokens_that_a_decoder_is_not_given_are_the_encoders():
    model = Seq2Seq().eval()
    expected = right(model, (OLDS[0],) * 2, (NEWS[0],) * 2, HIDDEN)
    for width in (8, 11):
        found = score(model, given(OLDS[0], 8), given(NEWS[0], width), layer="decoder")
        assert found.value == pytest.approx(expected, rel=1e-5)


class TwoTowers(nn.Module):
    """As many patches as words."""

    def __init__(self):
        super().__init__()
        self.text_model, self.vision_model = nn.Embedding(50, D), nn.Linear(5, D)

    def forward(self, input_ids, attention_mask, pixel_values):
        words, patches = self.text_model(input_ids), self.vision_model(pixel_values)
        return {"text": words.mean(1), "image": patches.mean(1)}


def test_patches_do_not_get_the_mask_of_words():
    model = TwoTowers().eval()
    pixels = [torch.randn(N, 8, 5) + i for i in (0, 1)]

    def both(words, x):
        ids = padded(words, 8)
        parts = {"input_ids": ids, "attention_mask": ids > 0, "pixel_values": x}
        return [(parts, LABELS)]

    found = score(model, both(OLDS[0], pixels[0]), both(NEWS[0], pixels[1]), layer="vision_model")
    with torch.no_grad():
        means = [model.vision_model(x).double().mean(1) for x in pixels]
    assert found.value == pytest.approx(resque_dist(*means, LABELS, LABELS).value, rel=1e-6)
    assert found.pooling == "mean"


@pytest.mark.full
@pytest.mark.parametrize("layer", [None, "decoder", "encoder"])
def test_t5(layer):
    transformers = optional.module("transformers")
    config = transformers.T5Config(
        vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2
    )
    model = transformers.T5Model(config).eval()
    key = ENCODED if layer == "encoder" else HIDDEN
    expected = right(model, OLDS, NEWS, key)
    for width, own in ((8, 8), (11, 11)):
        new = batches(*NEWS, width, own)
        found = score(model, batches(*OLDS, 8, 8), new, layer=layer)
        assert found.value == pytest.approx(expected, rel=1e-6)


class Halved(nn.Module):
    """Merges pairs of tokens, as speech models do, or pads to a window, as Longformer does."""

    def __init__(self, window=None):
        super().__init__()
        self.words, self.window = nn.Embedding(50, D), window
        self.mix, self.head = nn.Linear(D, D), nn.Linear(D, CLASSES)
        if window:
            self.config = type("Config", (), {"attention_window": [window]})()

    def forward(self, input_ids, attention_mask):
        x = self.words(input_ids)
        if self.window is None:
            x = (x[:, ::2] + x[:, 1::2]) / 2
        else:
            x = nn.functional.pad(x, (0, 0, 0, -x.shape[1] % self.window), value=3.0)
        return self.head(self.mix(x)[:, 0])


def test_positions_that_the_mask_is_not_of_are_said_to_count():
    old, new = given(OLDS[0], 8), given(NEWS[0], 8)
    found = score(Halved(), old, new, layer="mix")
    assert found.pooling == "mean (the mask is of other positions: all count)"
    read = score(Halved(), old, new, indices="arm")
    assert read.pooling == "masked mean (of some layers the mask is of other positions: all count)"
    full = given([torch.randint(1, 50, (8,)) for _ in range(N)], 8)
    assert score(Halved(), full, full, layer="mix").pooling == "mean"
    for later in (new, [*full[:1], *new[1:]]):  # on one side alone, or from its second batch on
        assert score(Halved(), full, later, layer="mix").pooling == found.pooling


def test_padding_to_windows_of_attention_is_no_token():
    model = Halved(window=5).eval()
    sides = []
    for words in (OLDS[0], NEWS[0]):
        with torch.no_grad():
            sides.append(torch.stack([model.mix(model.words(w)).double().mean(0) for w in words]))
    expected = resque_dist(*sides, LABELS, LABELS).value
    for width in (8, 11):
        found = score(model, given(OLDS[0], 8), given(NEWS[0], width), layer="mix")
        assert found.pooling == "masked mean"
        assert found.value == pytest.approx(expected, rel=1e-5)
