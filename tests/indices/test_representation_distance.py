"""RepresentationDistance: against SciPy and NumPy row by row, streamed, merged, saved, refused."""

import numpy as np
import pytest
import scipy.stats
import torch
from scipy.spatial.distance import jensenshannon

import resque_ext
from resque_ext import RepresentationDistance, representation_distance

BINS = (16, 32, 64)


def activations(seed=0, rows=40, width=30):
    """Layers of three shapes: vectors, convolution outputs, tokens."""
    g = torch.Generator().manual_seed(seed)
    return {
        "vectors": torch.randn(rows, width, generator=g),
        "maps": torch.rand(rows, width, 4, 5, generator=g),
        "tokens": torch.randn(rows, 6, 8, generator=g).relu(),
    }


def rows_of(x):
    """What is binned of a layer, by NumPy alone."""
    x = x.double().numpy()
    if x.ndim == 4:
        return x.mean((2, 3)).astype(np.float32)
    return x.reshape(len(x), -1).astype(np.float32)


def by_hand(old, new, bins, shared=False):
    """Mean over samples of each distance, by NumPy's and SciPy's own functions."""
    found = []
    for a, b in zip(rows_of(old), rows_of(new), strict=True):
        both = (min(a.min(), b.min()), max(a.max(), b.max()))
        ranges = [both, both] if shared else [(a.min(), a.max()), (b.min(), b.max())]
        h, k = (np.histogram(x, bins, r)[0] / len(x) for x, r in zip((a, b), ranges, strict=True))
        positive = (h > 0) & (k > 0)
        js = jensenshannon(h, k) ** 2
        kl = scipy.stats.entropy(h[positive], k[positive])  # which normalizes; undone here
        kl = (h[positive] * np.log(h[positive] / k[positive])).sum() if positive.any() else kl * 0
        first = np.abs(np.sort(h) - np.sort(k)).mean()
        if shared:
            first = np.abs((h - k).cumsum()).sum() * (float(both[1]) - float(both[0])) / bins
        found.append([first, js, 1 - np.sqrt(h * k).sum(), kl])
    return np.nan_to_num(np.array(found)).mean(0)


@pytest.mark.parametrize("shared", [False, True])
def test_every_layer_and_their_mean(place, shared):
    old, new = activations(0), activations(1)
    sides = [{k: v.to(place.device) for k, v in side.items()} for side in (old, new)]
    r = representation_distance(*sides, shared=shared)
    table = r.shared if shared else r
    for bins in BINS:
        expected = {k: by_hand(old[k], new[k], bins, shared) for k in old}
        for name in old:
            found = list(table.layers[name][bins].values())
            np.testing.assert_allclose(found, expected[name], rtol=1e-5, atol=1e-9)
        mean = np.mean(list(expected.values()), 0)
        np.testing.assert_allclose(list(table.p[bins].values()), mean, rtol=1e-5, atol=1e-9)
    first = "wasserstein" if shared else "wasserstein_heights"
    assert list(table.p[16]) == [first, "jensen_shannon", "bhattacharyya", "kl"]
    assert r.samples == dict.fromkeys(old, 40)
    assert (r.shared is None) == (not shared)


def test_batches_merge_to_the_whole(place):
    old, new = activations(0), activations(1)
    pairs = {k: (old[k].to(place.device), new[k].to(place.device)) for k in old}
    whole, parts = RepresentationDistance(shared=True), []
    whole.update(pairs)
    for start, end in ((0, 7), (7, 8), (8, 33), (33, 40)):
        parts.append(RepresentationDistance(shared=True))
        parts[-1].update({k: (a[start:end], b[start:end]) for k, (a, b) in pairs.items()})
    merged = parts[0]
    for part in parts[1:]:
        merged.merge(part)
    batched = RepresentationDistance(shared=True)
    for start in range(0, 40, 9):
        batched.update(
            {k: (a[start : start + 9], b[start : start + 9]) for k, (a, b) in pairs.items()}
        )
    expected = whole.compute()
    for found in (merged.compute(), batched.compute()):
        for table, truth in ((found, expected), (found.shared, expected.shared)):
            for bins in BINS:
                for name, value in truth.p[bins].items():
                    assert table.p[bins][name] == pytest.approx(value, rel=1e-12)
                    # Dealing went on in turn, so the blocks are the same too.
                    assert table.std_error[bins][name] == pytest.approx(
                        truth.std_error[bins][name], rel=1e-9
                    )
        assert found.samples == expected.samples


def test_state_dict_and_reset():
    pairs = {k: (v, v + torch.rand_like(v)) for k, v in activations().items()}
    acc = RepresentationDistance()
    acc.update(pairs)
    other = RepresentationDistance()
    other.load_state_dict(acc.state_dict())
    assert other.compute() == acc.compute()
    acc.update(pairs)
    other.update(pairs)
    assert other.compute() == acc.compute()
    acc.reset()
    with pytest.raises(ValueError, match="update: expected at least one batch"):
        acc.compute()


def test_standard_error_is_that_of_the_mean_of_dependent_layers():
    """Both layers hold the same rows, so the mean over layers varies as one of them does."""
    errors = {}
    for twice in (False, True):
        old, new = torch.randn(400, 50), torch.randn(400, 50)
        layers = {"a": (old, new)} | ({"b": (old.clone(), new.clone())} if twice else {})
        acc = RepresentationDistance(32)
        acc.update(layers)
        r = acc.compute()
        each = resque_ext.ops.row_distances(old, new, bins=32, rows=True).rows[:, 0, 1]
        naive = float(each.std() / 400**0.5)
        errors[twice] = r.std_error[32]["jensen_shannon"] / naive
    assert 0.5 < errors[False] < 1.6
    assert 0.5 < errors[True] < 1.6


def test_standard_error_over_many_draws():
    generator = torch.Generator().manual_seed(0)
    values, errors = [], []
    for _ in range(60):
        a, b = (torch.randn(64, 40, generator=generator) for _ in "ab")
        acc = RepresentationDistance(16)
        acc.update({"a": (a, b)})
        r = acc.compute()
        values.append(r.p[16]["jensen_shannon"])
        errors.append(r.std_error[16]["jensen_shannon"])
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.35)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_few_samples(rows):
    old, new = torch.randn(rows, 9), torch.randn(rows, 9)
    acc = RepresentationDistance(16)
    acc.update({"a": (old, new)})
    error = acc.compute().std_error[16]["kl"]
    assert (error is None) == (rows == 1)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite(place, value):
    old, new = activations(0)["vectors"], activations(1)["vectors"]
    broken = new.clone()
    broken[5, 3] = broken[7, 0] = value
    sides = [x.to(place.device) for x in (old, new, broken)]
    acc = RepresentationDistance()
    acc.update({"a": (sides[0], sides[1])})
    before = acc.compute()

    def update_and_compute():
        acc.update({"b": (sides[0], sides[1]), "a": (sides[0], sides[2])})
        acc.compute()

    message = r"layers\['a'\] \(new\): expected finite.*row 5, column 3"
    with pytest.raises(ValueError, match=message):
        update_and_compute()
    if place.name != "cuda":
        assert acc.compute() == before  # nothing was added, of either layer
    skipping = RepresentationDistance(nonfinite="skip")
    skipping.update({"a": (sides[0], sides[2])})
    keep = [i for i in range(40) if i not in (5, 7)]
    expected = representation_distance({"a": old[keep]}, {"a": new[keep]})
    found = skipping.compute()
    assert found.p[32] == pytest.approx(expected.p[32], rel=1e-12)
    assert found.nonfinite_pairs == {"a": 2}
    assert found.samples == {"a": 38}


def test_layers_that_count():
    acc = RepresentationDistance(16)
    acc.update({k: (v, v.roll(1, 0)) for k, v in activations().items()})
    found, alone = acc.compute(["maps"]), acc.compute().layers["maps"]
    assert found.p == alone
    with pytest.raises(KeyError, match="found 'x'"):
        acc.compute(["x"])


def test_published_distances_miss_what_shared_ranges_see():
    """A shift of all activations by t moves them by t, and own ranges do not show it."""
    x = torch.randn(50, 64, dtype=torch.float64)
    found = {t: representation_distance({"a": x}, {"a": x + t}, shared=True) for t in (1.0, 2.0)}
    for t, r in found.items():
        assert all(abs(v) < 1e-3 for v in r.p[32].values())
        # Bins of the joint range resolve the shift to about their own width.
        assert r.shared.p[64]["wasserstein"] == pytest.approx(t, rel=0.05)


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        ([1], TypeError, "layers: expected a mapping of"),
        ({1: (torch.ones(2, 2),) * 2}, TypeError, "layers: expected names of layers, found 1"),
        ({"a": torch.ones(2, 2)}, TypeError, r"layers\['a'\]: expected a pair \(old, new\)"),
        (
            {"a": (torch.ones(2, 3), torch.ones(3, 3))},
            ValueError,
            r"layers\['a'\] \(old\), layers\['a'\] \(new\): expected one shape",
        ),
        (
            {"a": (torch.ones(2, 3), torch.ones(2, 3).double())},
            ValueError,
            "expected one dtype",
        ),
        ({"a": (torch.ones(2, 0), torch.ones(2, 0))}, ValueError, "at least one value a row"),
        (
            {"a": (torch.ones(2, 2).bool(),) * 2},
            TypeError,
            r"layers\['a'\] \(old\): expected float32",
        ),
    ],
)
def test_refused(layers, error, message):
    acc = RepresentationDistance()
    with pytest.raises(error, match=message):
        acc.update(layers)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"bins": 1}, ValueError, "bins: expected 2 to 256"),
        ({"bins": (16, 16)}, ValueError, "different numbers"),
        ({"shared": 1}, TypeError, "shared: expected True or False"),
        ({"nonfinite": "x"}, ValueError, "nonfinite: expected one of"),
        ({"blocks": 1}, ValueError, "blocks: expected 2 <="),
    ],
)
def test_refused_options(options, error, message):
    with pytest.raises(error, match=message):
        RepresentationDistance(**options)


def test_refused_states_and_merges():
    acc = RepresentationDistance(16)
    acc.update({"a": (torch.randn(9, 5), torch.randn(9, 5))})
    before, state = acc.compute(), acc.state_dict()
    for broken, error, message in (
        ({k: v for k, v in state.items() if k != "config"}, KeyError, "'config'"),
        ({k: v for k, v in state.items() if k != "seen.a"}, KeyError, "expected seen, sums"),
        ({**state, "seen.a": torch.tensor(3)}, ValueError, r"state\['seen.a'\]"),
        (
            {**state, "sums.a": state["sums.a"][1:]},
            ValueError,
            r"state\['sums.a'\]: expected shape",
        ),
        ({**state, "config": torch.tensor([1, 16, 16])}, ValueError, "state.*config"),
        (5, TypeError, "state: expected a mapping"),
    ):
        with pytest.raises(error, match=message):
            acc.load_state_dict(broken)
        assert acc.compute() == before
    with pytest.raises(ValueError, match=r"other: expected \(bins, shared, blocks\)"):
        acc.merge(RepresentationDistance(32))
    with pytest.raises(TypeError, match="other: expected a RepresentationDistance, found int"):
        acc.merge(5)
    with pytest.raises(ValueError, match="old, new: expected the same layers"):
        representation_distance({"a": torch.ones(1, 2)}, {"b": torch.ones(1, 2)})
