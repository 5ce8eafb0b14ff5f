"""Padding never matters: against every text run by itself, where there is nothing to mask."""

import numpy as np
import pytest
import torch
from helpers.score_made import run as score
from helpers.tokens_made import CLASSES, alone, batched, make, padded, texts
from torch import nn

import resque_ext
from resque_ext import arm, ops, representation_distance, resque_dist, resque_task
from resque_ext.model import normalization
from resque_ext.model.streams import TokenMasks

OLD, NEW = texts(seed=0), texts(seed=1)
LABELS = torch.tensor([y for _, y in OLD])
PADDINGS = [(0, False), (5, False), (0, True), (9, True)]
on_paddings = pytest.mark.parametrize(
    ("extra", "left"), PADDINGS, ids=["right", "wide right", "left", "wide left"]
)


def tokens_of(model, some, name):
    """[T, D] of every text run alone."""
    found = []
    handle = model.get_submodule(name).register_forward_hook(lambda m, a, y: found.append(y[0]))
    with torch.no_grad():
        for inputs, _ in alone(some):
            model(**inputs)
    handle.remove()
    return found


def means(model, some, name):
    return torch.stack([x.mean(0) for x in tokens_of(model, some, name)])


LAYERS = ["words", "blocks.0.qkv", "blocks.0.up", "blocks.1.down"]


@on_paddings
def test_an_embedding_of_tokens_is_the_mean_of_the_real_ones(extra, left):
    model = make("encoder")
    old, new = batched(OLD, extra=extra, left=left), batched(NEW, extra=2)
    found = score(model, old, new, layer="blocks.1")
    sides = [means(model, side, "blocks.1") for side in (OLD, NEW)]
    expected = resque_dist(*sides, LABELS, LABELS, CLASSES)
    assert found.value == pytest.approx(expected.value, rel=1e-9)
    assert found.std_error == pytest.approx(expected.std_error, rel=1e-6)
    assert found.pooling == "masked mean"
    # The same texts: no shift at all.
    assert score(model, old, batched(OLD, extra=3), layer="blocks.1").value < 1e-8


@on_paddings
def test_the_default_of_an_encoder_is_the_token_that_its_head_reads(extra, left):
    model = make("encoder")
    found = score(model, batched(OLD, extra=extra, left=left), batched(NEW))
    sides = [torch.stack([x[0] for x in tokens_of(model, s, "blocks.1")]) for s in (OLD, NEW)]
    expected = resque_dist(*sides, LABELS, LABELS, CLASSES)
    assert found.value == pytest.approx(expected.value, rel=1e-9)
    assert (found.layer, found.pooling) == ("score:input", "vector")
    with torch.no_grad():
        hits = [int(model(**x)["logits"].argmax(1)) == int(y) for x, y in alone(OLD)]
    assert found.old_accuracy == np.mean(hits)


@on_paddings
@pytest.mark.parametrize("layer", [None, "score:input"])
def test_the_default_of_a_decoder_is_the_token_whose_logits_it_returns(extra, left, layer):
    model = make("decoder")
    found = score(model, batched(OLD, extra=extra, left=left), batched(NEW), layer=layer)
    sides = [torch.stack([x[-1] for x in tokens_of(model, s, "blocks.1")]) for s in (OLD, NEW)]
    expected = resque_dist(*sides, LABELS, LABELS, CLASSES)
    assert found.value == pytest.approx(expected.value, rel=1e-9)
    assert (found.layer, found.pooling) == ("score:input", "token")
    assert found.old_accuracy is not None


def test_a_token_that_cannot_be_told_is_the_masked_mean_and_says_so():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = make("decoder"), nn.Linear(8, CLASSES, dtype=torch.float64)

        def forward(self, input_ids, attention_mask):
            self.body.score = None
            return {"logits": self.head(self.hidden(input_ids, attention_mask)).amax(1)}

        def hidden(self, ids, mask):
            kind, self.body.kind = self.body.kind, "embedder"
            x = self.body(ids, mask)["last_hidden_state"]
            self.body.kind = kind
            return x

    model = Mixed()
    found = score(model, batched(OLD, extra=2), batched(NEW))
    sides = [means(model, s, "body.blocks.1") for s in (OLD, NEW)]
    assert found.value == pytest.approx(resque_dist(*sides, LABELS, LABELS).value, rel=1e-9)
    assert found.layer == "head:input"
    assert found.pooling == "masked mean (which token the model reads is not known)"
    assert found.old_accuracy is not None  # it is a classifier all the same


@on_paddings
def test_a_model_without_a_head_gives_its_sentence_embedding(extra, left):
    model = make("embedder")
    found = score(
        model, batched(OLD, extra=extra, left=left), batched(NEW), indices=("resque_dist", "arm")
    )
    sides = [means(model, s, "blocks.1") for s in (OLD, NEW)]
    expected = resque_dist(*sides, LABELS, LABELS, CLASSES)
    assert found["resque_dist"].value == pytest.approx(expected.value, rel=1e-9)
    assert (found.layer, found.pooling) == ("output:last_hidden_state", "masked mean")
    assert found.old_accuracy is None
    # Position embeddings are of no text by themselves; all others are read, the last one too.
    assert "blocks.1.down" in found.layers


@pytest.mark.parametrize(("pooling", "at"), [("first", 0), ("last", -1)])
@on_paddings
def test_first_and_last_real_token(pooling, at, extra, left):
    model = make("encoder")
    old = batched(OLD, extra=extra, left=left)
    found = score(model, old, batched(NEW), layer="blocks.0", pooling=pooling)
    sides = [torch.stack([x[at] for x in tokens_of(model, s, "blocks.0")]) for s in (OLD, NEW)]
    expected = resque_dist(*sides, LABELS, LABELS, CLASSES)
    assert found.value == pytest.approx(expected.value, rel=1e-9)
    assert found.pooling == pooling


def largest(x, mask):
    return x.masked_fill(~mask[..., None], -torch.inf).amax(1)


def test_pooling_by_a_function_with_and_without_the_mask():
    model = make("encoder")
    old, new = batched(OLD, extra=1), batched(NEW)
    found = score(model, old, new, layer="blocks.0", pooling=largest)
    sides = [torch.stack([x.amax(0) for x in tokens_of(model, s, "blocks.0")]) for s in (OLD, NEW)]
    assert found.value == pytest.approx(resque_dist(*sides, LABELS, LABELS).value, rel=1e-9)
    assert found.pooling == "largest"
    found = score(model, alone(OLD), alone(NEW), layer="blocks.0", pooling=lambda x: x.amax(1))
    assert found.value == pytest.approx(resque_dist(*sides, LABELS, LABELS).value, rel=1e-9)
    with pytest.raises(ValueError, match=r"pooling: expected the function to return floats \[N, D"):
        score(model, old, new, layer="blocks.0", pooling=lambda x: x)


@on_paddings
def test_arm_of_pooled_tokens(extra, left):
    model = make("encoder")
    old = batched(OLD, extra=extra, left=left)
    found = score(model, old, batched(NEW), indices="arm", layers=LAYERS)
    sides = [{name: means(model, s, name) for name in LAYERS} for s in (OLD, NEW)]
    expected = arm(*sides)
    for name in LAYERS:
        assert found.layer_values[name] == pytest.approx(expected.layer_values[name], rel=1e-9)
    assert found.pooling == "masked mean"


@pytest.mark.parametrize("options", [{}, {"per": "filter"}, {"exact": True}])
@on_paddings
def test_arm_of_single_tokens(extra, left, options):
    model = make("encoder")
    old = batched(OLD, extra=extra, left=left)
    found = score(
        model,
        old,
        batched(NEW),
        indices="arm",
        layers=LAYERS,
        options={"arm": {"pool": False, **options}},
    )
    sides = [{n: torch.cat(tokens_of(model, s, n)) for n in LAYERS} for s in (OLD, NEW)]
    expected = arm(*sides, **options)
    for name in LAYERS:
        assert found.layer_values[name] == pytest.approx(expected.layer_values[name], rel=1e-9)
        assert found.layers[name].counts == expected.layers[name].counts
    assert found.pooling == "none"
    if not options:  # as many samples, not as many tokens
        wide = score(
            model,
            batched(OLD, extra=3),
            batched(NEW),
            indices="arm",
            layers=LAYERS,
            options={"arm": {"pool": False}},
        )
        assert found.noise_floor == pytest.approx(wide.noise_floor, rel=1e-9)


@on_paddings
def test_p_compares_the_real_tokens_of_both_sides(extra, left):
    """Against p of every pair of texts by itself; the sides are padded to other widths."""
    model = make("encoder")
    moved = [((words + 7) % 39 + 1, y) for words, y in OLD]
    old, new = batched(OLD, extra=extra, left=left), batched(moved, extra=1)
    found = score(
        model,
        old,
        new,
        indices="representation_distance",
        layers=LAYERS,
        paired=True,
        options={"representation_distance": {"ranges": "shared"}},
    )
    for name in LAYERS:
        pairs = zip(*(tokens_of(model, s, name) for s in (OLD, moved)), strict=True)
        each = [
            representation_distance({"x": a.reshape(1, -1)}, {"x": b.reshape(1, -1)}, shared=True)
            for a, b in pairs
        ]
        for bins in (16, 32, 64):
            for table in ("p", "shared"):
                tables = [getattr(r, table) for r in each]
                tables = [t if table == "p" else t.p for t in tables]
                of_all = found.distances if table == "p" else found.distances.shared
                for distance, value in of_all.layers[name][bins].items():
                    expected = np.mean([t[bins][distance] for t in tables])
                    assert value == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert found.distances.samples == dict.fromkeys(LAYERS, len(OLD))


def test_p_of_texts_that_are_longer_on_one_side():
    """Histograms of other numbers of values: against NumPy's."""
    model = make("encoder")
    longer = [(torch.cat([words, words[:2]]), y) for words, y in OLD]
    found = score(
        model,
        batched(OLD),
        batched(longer, left=True),
        paired=True,
        indices="representation_distance",
        layers=["blocks.0"],
    )
    sides = [tokens_of(model, s, "blocks.0") for s in (OLD, longer)]

    def divergence(a, b, bins):
        p, q = (np.histogram(x.numpy(), bins)[0] / x.numel() for x in (a, b))
        m = (p + q) / 2
        return sum((h[h > 0] * np.log(h[h > 0] / m[h > 0])).sum() for h in (p, q)) / 2

    for bins in (16, 32, 64):
        expected = np.mean([divergence(a, b, bins) for a, b in zip(*sides, strict=True)])
        assert found.distances.p[bins]["jensen_shannon"] == pytest.approx(expected, rel=1e-9)
    assert found.value == found.distances.p[32]["jensen_shannon"]


INDICES = (
    "resque_dist",
    "resque_task",
    "preindex",
    "arm",
    "linear_residual",
    "representation_distance",
)


def clusters_by_text(kept, order):
    """The cluster of every text; cluster k begins at the mean of class k, so numbers are kept."""
    found = np.empty(len(order), int)
    found[list(order)] = kept["resque_task"].cluster_labels
    return found


@pytest.mark.parametrize("kind", ["encoder", "decoder", "embedder"])
@pytest.mark.parametrize(("layer", "start"), [(None, "same-rows"), ("blocks.0", "held-out")])
def test_every_index_is_the_same_at_any_padding_and_in_any_order(kind, layer, start):
    model = make(kind)
    moved = [((words + 7) % 39 + 1, y) for words, y in NEW]
    found = []
    orders = [range(24), range(24), range(23, -1, -1), torch.randperm(24).tolist()]
    ways = [(0, False, 8), (4, True, 5), (4, False, 5), (1, True, 24)]
    options = {"resque_task": {"start": start, "baselines": True}}
    for (extra, left, size), order in zip(ways, orders, strict=True):
        sides = [batched(s, size, extra, left, order) for s in (NEW, moved)]
        kept = score(model, *sides, indices=INDICES, paired=True, layer=layer, options=options)
        found.append(kept)
    for other in found[1:]:
        for index in INDICES:
            assert other[index].value == pytest.approx(found[0][index].value, abs=1e-9), index
        assert other["arm"].layer_values == pytest.approx(found[0]["arm"].layer_values)
        assert other["preindex"].inv_ari == pytest.approx(found[0]["preindex"].inv_ari)
        np.testing.assert_array_equal(
            np.sort(other["resque_task"].table, 1), np.sort(found[0]["resque_task"].table, 1)
        )
        task = other["resque_task"]
        assert task.linear_probe_error == found[0]["resque_task"].linear_probe_error
        assert task.nearest_class_mean_error == found[0]["resque_task"].nearest_class_mean_error
    clusters = [clusters_by_text(kept, order) for kept, order in zip(found, orders, strict=True)]
    for other in clusters[1:]:
        np.testing.assert_array_equal(other, clusters[0])


def test_a_flattened_embedding_is_the_real_tokens_side_by_side():
    model = make("encoder")
    options = {"resque_task": {"embedding": "flattened"}}
    longest = max(len(words) for words, _ in NEW)
    rows = torch.zeros(len(NEW), longest, 8, dtype=torch.float64)
    for row, x in zip(rows, tokens_of(model, NEW, "blocks.0"), strict=True):
        row[: len(x)] = x
    expected = resque_task(rows.flatten(1), LABELS)
    for extra, left in PADDINGS:
        data = batched(NEW, extra=extra, left=left)
        found = score(model, None, data, indices="resque_task", layer="blocks.0", options=options)
        assert found.value == expected.value
        np.testing.assert_array_equal(found.cluster_labels, expected.cluster_labels)
        assert found.pooling == "flattened"


@on_paddings
def test_matching_normalization_takes_the_real_tokens(extra, left):
    """Against moments of every text run by itself."""
    model = make("encoder")
    old, new = batched(OLD, extra=extra, left=left), batched(NEW, size=24, extra=extra, left=left)
    found = score(model, old, new, layer="blocks.0.qkv", adapt_normalization="match")
    matched = normalization.adapted(
        model,
        lambda: [x for x, _ in batched(NEW, size=24)],
        lambda: [x for x, _ in alone(OLD)],
        masks=lambda x: TokenMasks(x["attention_mask"].bool()),
    )
    sides = [means(m, s, "blocks.0.qkv") for m, s in ((model, OLD), (matched, NEW))]
    assert found.value == pytest.approx(resque_dist(*sides, LABELS, LABELS).value, rel=1e-9)
    hidden = [torch.cat(tokens_of(m, s, "words")) for m, s in ((model, OLD), (model, NEW))]
    places = [torch.cat(tokens_of(m, s, "places")) for m, s in ((model, OLD), (model, NEW))]
    before, after = (a + b for a, b in zip(hidden, places, strict=True))
    seen = []
    handle = matched.blocks[0].norm.register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    with torch.no_grad():
        for x, _ in alone(NEW):
            matched(**x)
    handle.remove()
    seen = torch.cat([x[0] for x in seen])
    torch.testing.assert_close(seen.mean(0), before.mean(0))
    assert (after.mean(0) - before.mean(0)).abs().max() > 0.01


# What says which tokens are real


def renamed(data, key):
    return [({"input_ids": x["input_ids"], key: x["attention_mask"]}, y) for x, y in data]


class Renamed(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = make("encoder")

    def forward(self, input_ids, real=None):
        return self.body(input_ids, input_ids != 0)


def test_the_mask_by_another_key_by_a_function_by_an_adapter_and_off():
    model, old, new = Renamed(), batched(OLD, extra=4), batched(NEW)
    expected = score(make("encoder"), old, new, layer="blocks.0").value
    args = {"layer": "body.blocks.0"}
    found = score(model, renamed(old, "real"), renamed(new, "real"), mask="real", **args)
    assert found.value == pytest.approx(expected, rel=1e-9)
    bare = [[(x["input_ids"], y) for x, y in side] for side in (old, new)]
    found = score(model, *bare, mask=lambda ids: ids != 0, **args)
    assert found.value == pytest.approx(expected, rel=1e-9)
    flat = [[{**x, "y": y} for x, y in side] for side in (old, new)]
    found = score(
        make("encoder"),
        *flat,
        layer="blocks.0",
        batch_adapter=lambda b: ({k: b[k] for k in ("input_ids", "attention_mask")}, b["y"]),
    )
    assert found.value == pytest.approx(expected, rel=1e-9)
    for off in ({"mask": None}, {"mask": "no_such_key"}):
        found = score(make("encoder"), old, new, layer="blocks.0", **off)
        assert abs(found.value - expected) > 1e-4
        assert found.pooling == "mean"


def test_batches_that_hold_their_labels():
    model = make("decoder")
    old, new = batched(OLD), batched(NEW)
    expected = score(model, old, new)
    own = [[{**x, "labels": y} for x, y in side] for side in (old, new)]
    found = score(model, *own)
    assert found.to_dict() == expected.to_dict()


def changed(row=None, mask=None):
    x, y = padded(OLD[:6], 8, False)
    if row is not None:
        x["attention_mask"][row] = 0
    if mask is not None:
        x["attention_mask"] = mask(x["attention_mask"])
    return [(x, y)]


@pytest.mark.parametrize(
    ("old", "options", "error", "message"),
    [
        (changed(row=4), {}, ValueError, "old: attention_mask: expected a real token .*in row 4"),
        (
            changed(mask=lambda m: m[:, None]),
            {},
            ValueError,
            r"attention_mask: expected shape \[N, T",
        ),
        (changed(mask=lambda m: (m - 1) * 1e9), {}, ValueError, "found values below 0"),
        (changed(mask=lambda m: "x"), {}, TypeError, "expected a tensor .*found str"),
        (changed(), {"mask": 3}, TypeError, "mask: expected the key"),
        (changed(), {"pooling": "max"}, ValueError, "pooling: expected 'auto', .*found 'max'"),
        (changed(), {"channels": "third"}, ValueError, "channels: expected one of 'first', 'last'"),
        (changed(), {"labels": "none"}, ValueError, "labels: expected one of 'given', 'predicted'"),
    ],
)
def test_refused(old, options, error, message):
    with pytest.raises(error, match=message):
        score(make("embedder"), old, batched(NEW), **options)


def test_nan_in_the_padding_is_not_read():
    class Spoils(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.out = make("embedder"), nn.Linear(8, 8, dtype=torch.float64)

        def forward(self, input_ids, attention_mask):
            x = self.out(self.body(input_ids, attention_mask)["last_hidden_state"])
            return {"last_hidden_state": x.masked_fill(attention_mask[..., None] == 0, torch.nan)}

    model = Spoils()
    indices = ("resque_dist", "linear_residual")
    found = score(model, batched(OLD, extra=2), batched(NEW, left=True), indices=indices)
    sides = [means(model, s, "out") for s in (OLD, NEW)]
    expected = resque_dist(*sides, LABELS, LABELS)
    assert found["resque_dist"].value == pytest.approx(expected.value, rel=1e-9)
    real = torch.tensor([[1, 1, 0], [1, 1, 1]])
    x = torch.rand(2, 3, 4)
    x[0, 2] = torch.nan
    acc = resque_ext.Arm(pool=False)
    acc.update({"x": x}, "old", real)
    acc.update({"x": x}, "new", mask=real)
    assert acc.compute().value == 0
    x[1, 2, 3] = torch.nan
    pair = resque_ext.RepresentationDistance()
    with pytest.raises(ValueError, match=r"1 NaN .* first at row 1, column 11"):
        pair.update({"x": (x, x)}, real, real)


# The accumulators and the function


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_pooled_by_hand(dtype):
    torch.manual_seed(0)
    x, mask = torch.randn(5, 6, 3).to(dtype), torch.rand(5, 6) < 0.6
    mask[:, 2] = True
    rows = [a[m].double() for a, m in zip(x, mask, strict=True)]
    found = resque_ext.pooled(x, mask=mask)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(
        found.double(), torch.stack([r.mean(0) for r in rows]), rtol=1e-6, atol=1e-7
    )
    for pooling, at in (("first", 0), ("last", -1)):
        expected = torch.stack([r[at] for r in rows])
        assert torch.equal(resque_ext.pooled(x, pooling, mask).double(), expected)
    assert torch.equal(resque_ext.pooled(x), ops.spatial_mean(x))
    maps = x[..., None].transpose(1, 3)  # [5, 1, 3, 6]
    assert torch.equal(resque_ext.pooled(maps, "last"), maps[:, :, -1, -1])
    assert torch.equal(resque_ext.pooled(maps[:, :, 0, 0]), maps[:, :, 0, 0])


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(5, 5), "features, mask: expected tokens"),
        (torch.ones(5), r"mask: expected shape \[N, T\]"),
        (torch.eye(5, 6) * 0, "found none in row 0"),
    ],
)
def test_masks_that_pooled_refuses(mask, message):
    with pytest.raises(ValueError, match=message):
        resque_ext.pooled(torch.rand(5, 6, 3), mask=mask)


def test_accumulators_take_a_mask():
    torch.manual_seed(0)
    x, y = torch.randn(8, 5, 3), torch.randn(8, 4, 3) + 0.5
    masks = [torch.rand(8, n) < 0.6 for n in (5, 4)]
    for m in masks:
        m[:, 0] = True
    acc = resque_ext.Arm()
    acc.update({"x": x, "other": x.transpose(1, 2)}, "old", masks[0])
    acc.update(
        {"x": y, "other": y.transpose(1, 2).contiguous()[:, :, [0, 1, 2, 3, 3]]}, "new", masks[1]
    )
    vectors = [resque_ext.pooled(a, mask=m) for a, m in zip((x, y), masks, strict=True)]
    found = acc.compute()
    assert found.layer_values["x"] == arm(*vectors).value
    pairs = resque_ext.RepresentationDistance()
    pairs.update({"x": (x, y)}, *masks)
    each = resque_ext.RepresentationDistance()
    for i in range(8):
        each.update({"x": (x[i : i + 1], y[i : i + 1])}, *(m[i : i + 1] for m in masks))
    assert pairs.compute().p[32] == pytest.approx(each.compute().p[32])
    with pytest.raises(ValueError, match="expected one shape"):
        pairs.update({"x": (x, y)})
