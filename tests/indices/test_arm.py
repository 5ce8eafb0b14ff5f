"""Arm and arm: values against SciPy, noise floors against simulation, what a result says."""

import dataclasses
import json
import math

import numpy as np
import pytest
import scipy.stats
import torch

from resque_ext import Arm, ArmResult, arm, backend
from resque_ext.indices import _arm_state

SIDES = ("old", "new")
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
on_backends = pytest.mark.parametrize("name_of_backend", ["native", "torch"])
per_both = pytest.mark.parametrize("per", ["layer", "filter"])


def layers(rows, seed=0, dtype=torch.float32, shift=0.0):
    """Maps, vectors and tokens; filters have locations of their own."""
    rng = np.random.default_rng(seed)

    def drawn(*shape, axis):
        place = np.random.default_rng(9).normal(size=shape[axis])
        sizes = [1] * len(shape)
        sizes[axis] = shape[axis]
        x = rng.normal(size=shape) * (1 + shift) + place.reshape(sizes) + shift
        return torch.tensor(x).to(dtype)

    return {
        "conv.1": drawn(rows, 5, 4, 4, axis=1),
        "": drawn(rows, 7, axis=1),
        "blocks.0/attention": drawn(rows, 6, 3, axis=2),
    }


def values_of(x, pool, per):
    """float64 [n, groups], as the definition takes them; means rounded as they are kept."""
    wide = x.double()
    if pool and x.dim() > 2:
        wide = wide.mean((2, 3) if x.dim() == 4 else 1)
        wide = wide if x.dtype == torch.float64 else wide.float().double()
    elif x.dim() == 4:
        wide = wide.permute(0, 2, 3, 1).flatten(0, 2)
    elif x.dim() == 3:
        wide = wide.flatten(0, 1)
    return (wide if per == "filter" else wide.reshape(-1, 1)).numpy()


def truth(old, new, pool=True, per="layer"):
    """W1 of every filter, or of all values: [groups]."""
    old, new = values_of(old, pool, per), values_of(new, pool, per)
    pairs = zip(old.T, new.T, strict=True)
    return np.array([scipy.stats.wasserstein_distance(a, b) for a, b in pairs])


def filled(**options):
    acc = Arm(**options)
    for k, side in enumerate(SIDES):
        for seed in range(3):
            acc.update(layers(20 + 7 * seed, seed + 5 * k, shift=0.2 * k), side)
    return acc


def same(a, b):
    """Two results agree in everything, bit for bit."""
    assert a.to_dict() == b.to_dict()
    assert list(a.layers) == list(b.layers)


# Values


@on_backends
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@per_both
def test_value_is_the_definition(per, dtype, pool, exact, name_of_backend):
    old, new = layers(40, 1, dtype), layers(29, 2, dtype, shift=0.3)
    with backend(name_of_backend):
        result = arm(old, new, per=per, pool=pool, exact=exact)
    assert list(result.layers) == list(old)
    for layer, found in result.layers.items():
        expected = truth(old[layer], new[layer], pool, per)
        averaged = pool and old[layer].dim() > 2
        if exact or (dtype.itemsize == 2 and not averaged):
            assert abs(found - expected.mean()) <= 1e-9 * expected.mean()
            assert found.bound == 0
        else:
            assert abs(found - expected.mean()) <= 1e-2 * expected.mean()
            assert found.lower <= expected.mean() <= found.upper
            assert (
                0
                < found.bound
                <= 2**-8
                * sum(np.abs(values_of(x[layer], pool, per)).mean() for x in (old, new))
                * (1 + 2**-8)
            )
        assert found.counts == {
            side: values_of(x[layer], pool, per).size
            for side, x in zip(SIDES, (old, new), strict=True)
        }
        if per == "layer":
            assert found.per_filter is None
        else:
            allowed = 1e-9 if found.bound == 0 else 3e-2
            np.testing.assert_allclose(found.per_filter, expected, rtol=allowed)
            assert found == found.per_filter.mean()
        exact_std = values_of(old[layer], pool, per).std()
        assert abs(found.old_std - exact_std) <= (1e-12 if found.bound == 0 else 1e-2) * exact_std
    assert result.value == np.mean([float(d) for d in result.layers.values()])
    assert result.bound == np.mean([d.bound for d in result.layers.values()])
    assert float(result) == result.value
    assert (result.per, result.scale, result.std_error) == (per, None, None)
    assert result.nonfinite_values == {"old": 0, "new": 0}


def test_with_shared_bins_the_filters_average_is_the_layers(place):
    """Both readings of P meet: the average of the filters' distributions is that of all values."""
    old, new = layers(40, 1), layers(29, 2, shift=0.3)
    result = arm(
        {k: x.to(place.device) for k, x in old.items()},
        {k: x.to(place.device) for k, x in new.items()},
    )
    for layer, found in result.layers.items():
        expected = truth(old[layer], new[layer])[0]
        assert found.lower <= expected <= found.upper
    a, b = (values_of(x["conv.1"], True, "filter") for x in (old, new))
    places = np.unique(np.concatenate([a, b]))
    functions = [
        np.mean([np.searchsorted(np.sort(f), places, "right") / len(f) for f in x.T], axis=0)
        for x in (a, b)
    ]
    integral = (np.abs(functions[0] - functions[1])[:-1] * np.diff(places)).sum()
    assert abs(integral - truth(old["conv.1"], new["conv.1"])[0]) < 1e-12


@per_both
@pytest.mark.parametrize("exact", [False, True])
def test_places(place, per, exact):
    old, new = layers(30, 1), layers(22, 2, shift=0.3)
    there = [{k: x.to(place.device) for k, x in side.items()} for side in (old, new)]
    result = arm(*there, per=per, exact=exact)
    for layer, found in result.layers.items():
        expected = truth(old[layer], new[layer], per=per).mean()
        assert abs(found - expected) <= found.bound + 1e-9
    maps = there[0]["conv.1"].to(memory_format=torch.channels_last)
    unpooled = arm(maps, there[1]["conv.1"], per=per, pool=False)
    expected = truth(old["conv.1"], new["conv.1"], False, per).mean()
    assert abs(unpooled.value - expected) <= unpooled.bound


def test_identical_sides_are_0_and_a_shift_is_its_size():
    x = layers(30, dtype=torch.float64)
    for per in ("layer", "filter"):
        assert arm(x, x, per=per).value == 0
        assert arm(x, {k: v.flip(0) for k, v in x.items()}, per=per).value == 0
        shifted = arm(x, {k: v + 0.75 for k, v in x.items()}, per=per, exact=True)
        for found in shifted.layers.values():
            assert abs(found - 0.75) < 1e-12
        turned = arm({k: v + 0.75 for k, v in x.items()}, x, per=per, exact=True)
        assert turned.value == pytest.approx(shifted.value, rel=1e-14)


def test_filters_that_trade_places_show_per_filter_alone():
    x = torch.randn(500, 2) + torch.tensor([0.0, 5.0])
    assert arm(x, x.flip(1)).value == 0
    assert arm(x, x.flip(1), per="filter").value == pytest.approx(5, abs=0.3)


@per_both
@pytest.mark.parametrize("exact", [False, True])
def test_scale_divides_by_the_old_deviation(per, exact):
    old, new = layers(60, 1), layers(50, 2, shift=0.2)
    plain, scaled = (arm(old, new, per=per, exact=exact, scale=s) for s in (None, "old-std"))
    for layer, found in scaled.layers.items():
        unscaled = plain.layers[layer]
        std = values_of(old[layer], True, "layer").std()
        expected = truth(old[layer], new[layer], per=per).mean() / std
        assert found.lower - 1e-12 <= expected <= found.upper + 1e-12
        assert float(found) == pytest.approx(unscaled / unscaled.old_std, rel=1e-14)
        assert found.noise_floor == pytest.approx(unscaled.noise_floor / unscaled.old_std)
        if per == "filter":
            np.testing.assert_allclose(found.per_filter, unscaled.per_filter / found.old_std)
        if exact:
            assert found.bound == 0
        else:
            assert found.bound >= unscaled.bound / unscaled.old_std
    assert scaled.scale == "old-std"
    larger = {k: 8 * v for k, v in old.items()}, {k: 8 * v for k, v in new.items()}
    assert arm(*larger, per=per, exact=exact, scale="old-std").value == scaled.value
    with pytest.raises(ValueError, match=r"activations\['a'\]: .*vary.* deviation of 0 \(exact="):
        arm({"a": torch.ones(9, 3)}, {"a": torch.ones(9, 3)}, per=per, exact=exact, scale="old-std")


@pytest.mark.parametrize("others", [0, 1])
def test_a_deviation_that_the_bins_hardly_tell(others):
    """Both sides of an edge: the bins' deviation is half a bin or more, the true one less."""
    width = 2.0**-7
    near = torch.tensor([1 + width - 1e-6, 1 + width + 1e-6]).repeat(20)
    old = torch.cat([near, torch.full((others,), 1 + 2 * width + 1e-6)])[:, None]
    found = arm(old, old + 0.5, scale="old-std").layers[""]
    expected = truth(old, old + 0.5)[0] / old.double().numpy().std()
    assert found.lower <= expected <= found.upper
    assert expected > 3 * found
    assert (found.to_dict()["bound"] is None) == (others == 0)


# Noise floor


@pytest.mark.parametrize("per", ["layer", "filter"])
@pytest.mark.parametrize("rows", [(400, 400), (300, 1_200)])
def test_noise_floor_is_what_no_shift_shows(per, rows):
    """Filters of one sample depend on each other, as they do in a network."""
    rng = np.random.default_rng(3)
    places, mix = rng.normal(size=12) * 2, rng.normal(size=(3, 12))

    def sample(n):
        x = rng.normal(size=(n, 3)) @ mix + 0.3 * rng.normal(size=(n, 12)) + places
        return torch.tensor(x).float()

    values, floors = [], []
    for _ in range(40):
        result = arm(sample(rows[0]), sample(rows[1]), per=per)
        values.append(result.value)
        floors.append(result.noise_floor)
    assert np.mean(floors) == pytest.approx(np.mean(values), rel=0.15)
    shifted = arm(sample(rows[0]), sample(rows[1]) + 1, per=per)
    assert shifted.value > 5 * shifted.noise_floor


def test_batches_are_dealt_to_two_halves():
    x = torch.randn(90, 4, dtype=torch.float64)
    acc = Arm(exact=True)
    for part in x.split([10, 20, 30, 30]):
        acc.update({"a": part}, "old")
    acc.update({"a": torch.randn(50, 4)}, "new")
    halves = torch.cat([x[:10], x[30:60]]), torch.cat([x[10:30], x[60:]])
    distance = scipy.stats.wasserstein_distance(*(h.flatten().numpy() for h in halves))
    expected = distance * math.sqrt((1 / 90 + 1 / 50) / (1 / 40 + 1 / 50))
    assert acc.compute().noise_floor == pytest.approx(expected, rel=1e-12)


def test_where_there_is_no_noise_floor():
    x = layers(30)
    acc = Arm()
    for side in SIDES:
        acc.update(x, side)
    assert acc.compute().noise_floor is None  # one batch makes no halves
    acc.update({"conv.1": layers(30, 1)["conv.1"]}, "old")
    result = acc.compute()
    assert result.layers["conv.1"].noise_floor > 0
    assert result.layers[""].noise_floor is None
    assert result.noise_floor is None
    assert arm(x[""][:1], x[""]).noise_floor is None
    unpooled = arm(x, x, per="filter", pool=False)
    assert unpooled.layers[""].noise_floor > 0  # one value a row
    assert unpooled.layers["conv.1"].noise_floor is None
    assert arm(x, x, pool=False).noise_floor > 0


# NaN and infinity


@per_both
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("pool", [True, False])
def test_nonfinite_values_are_refused_or_left_out(place, per, exact, pool):
    old, new = ({k: x.to(place.device) for k, x in layers(20, seed).items()} for seed in (1, 2))
    bad = {k: x.clone() for k, x in old.items()}
    bad[""][13, 4], bad[""][6, 2], bad[""][8, 2] = math.nan, math.inf, -math.inf
    options = {"per": per, "exact": exact, "pool": pool}
    message = r"old\[''\]: .*found 3 NaN or infinite, the first at \[6, 2\] \(nonfinite="
    with pytest.raises(ValueError, match=message):
        arm(bad, new, **options)
    result = arm(bad, new, nonfinite="skip", **options)
    assert result.nonfinite_values == {"old": 3, "new": 0}
    assert result.layers[""].counts == {"old": 20 * 7 - 3, "new": 20 * 7}
    clean = [c[np.isfinite(c)] for c in bad[""].double().cpu().numpy().T]
    there = new[""].double().cpu().numpy().T
    if per == "layer":
        clean, there = [np.concatenate(clean)], [there.ravel()]
    expected = np.mean(
        [scipy.stats.wasserstein_distance(a, b) for a, b in zip(clean, there, strict=True)]
    )
    found = result.layers[""]
    assert abs(found - expected) <= found.bound + 1e-12


def test_a_filter_without_values_has_no_distance():
    x = torch.randn(9, 3)
    x[:, 1] = math.nan
    for exact in (False, True):
        with pytest.raises(ValueError, match=r"''\]: expected values of filter 1 .* the new side"):
            arm(torch.randn(9, 3), x, per="filter", nonfinite="skip", exact=exact)
        with pytest.raises(ValueError, match=r"''\]: expected values on both .* the old side"):
            arm(torch.full((3, 3), math.nan), x, nonfinite="skip", exact=exact)
        with pytest.raises(ValueError, match=r"''\]: expected values on both .* the old side"):
            arm(torch.zeros(0, 3), x, nonfinite="skip", exact=exact)


def test_float64_beyond_float32_has_the_exact_mode():
    x = torch.tensor([[1e300], [2e300], [1e-300], [-1e300]], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"old\[''\]: .*found 3 .*\(or beyond float32\).*\[0, 0\]"):
        arm(x, -x)
    assert arm(x, -x, exact=True).value == pytest.approx(truth(x, -x)[0], rel=1e-12)


# What a result says, and what arm() refuses


@per_both
def test_results_are_plain_values(per):
    result = filled(per=per, scale="old-std").compute()
    assert {f.name for f in dataclasses.fields(ArmResult)} == set(result.to_dict())
    plain = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert plain == result.to_dict()
    assert plain["value"] == float(result)
    assert plain["layers"]["conv.1"]["value"] == result.layers["conv.1"]
    assert (plain["layers"][""]["per_filter"] is None) == (per == "layer")
    assert result.layers["conv.1"] + 0.5 == float(result.layers["conv.1"]) + 0.5


def test_one_array_is_a_layer_without_a_name():
    old, new = np.random.default_rng(0).normal(size=(2, 50, 4)).astype(np.float32)
    result = arm(old, new)
    assert list(result.layers) == [""]
    same(result, arm({"": old}, {"": torch.tensor(new)}))
    assert result.value == pytest.approx(truth(torch.tensor(old), torch.tensor(new))[0], rel=1e-2)


X = torch.randn(12, 3)
BAD = {
    "a set": ({1.0}, TypeError, r"old: expected a mapping of activations by layer, found set"),
    "a set in it": ({"a": {1.0}}, TypeError, r"old\['a'\]: expected a torch.Tensor .* set"),
    "a number for a name": ({3: X}, TypeError, r"old: expected names of layers, found 3"),
    "rank 1": ({"a": X[0]}, ValueError, r"old\['a'\]: expected \[N, D\], .* \(3,\)"),
    "rank 5": ({"a": X[..., None, None, None]}, ValueError, r"old\['a'\]: expected \[N, D\]"),
    "bools": ({"a": X > 0}, TypeError, r"old\['a'\]: expected float32, .*bool"),
    "sparse": ({"a": X.to_sparse()}, TypeError, r"old\['a'\]: expected a dense"),
    "meta": ({"a": X.to("meta")}, TypeError, r"old\['a'\]: .*on cpu or cuda"),
    "no columns": ({"a": X[:, :0]}, ValueError, r"old\['a'\]: expected at least one column"),
    "no positions": ({"a": X[:, :0, None]}, ValueError, r"old\['a'\]: .*one position"),
    "other layers": ({"b": X}, ValueError, r"old, new: .*same layers, found \['b'\] and \['a'\]"),
    "none": ({}, ValueError, r"old, new: .*same layers, found \[\] and \['a'\]"),
    "another width": ({"a": X[:, :2]}, ValueError, r"new\['a'\]: expected width 2 .*\(12, 3\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_refused_arrays(case):
    old, error, message = BAD[case]
    with pytest.raises(error, match=message):
        arm(old, {"a": X})


def test_no_layers_at_all():
    with pytest.raises(ValueError, match="update: expected at least one batch"):
        arm({}, {})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"per": "channel"}, ValueError, "per: expected one of 'layer', 'filter', found 'channel'"),
        ({"scale": "std"}, ValueError, "scale: expected one of 'old-std', found 'std'"),
        ({"nonfinite": None}, ValueError, "nonfinite: expected one of 'error', 'skip', found None"),
        ({"pool": 1}, TypeError, "pool: expected True or False, found 1"),
        ({"exact": "yes"}, TypeError, "exact: expected True or False, found 'yes'"),
        ({"max_bytes": 0}, ValueError, "max_bytes: expected at least 1, found 0"),
        ({"max_bytes": 1e9}, TypeError, "max_bytes: expected an integer, found 1000000000.0"),
        ({"max_bytes": True}, TypeError, "max_bytes: expected an integer, found True"),
    ],
)
def test_options_are_checked(options, error, message):
    for call in (lambda: Arm(**options), lambda: arm(X, X, **options)):
        with pytest.raises(error, match=message):
            call()


def test_chunks_of_filters_do_not_show(monkeypatch):
    old, new = layers(40, 1), layers(29, 2, shift=0.3)
    for exact in (False, True):
        whole = arm(old, new, per="filter", exact=exact, scale="old-std")
        monkeypatch.setitem(_arm_state.CHANNELS, "cpu", 2)
        monkeypatch.setattr("resque_ext.indices._arm_distance._CHANNELS", 3)
        parts = arm(old, new, per="filter", exact=exact, scale="old-std")
        monkeypatch.undo()
        assert parts.value == pytest.approx(whole.value, rel=1e-13)
        for layer, found in parts.layers.items():
            np.testing.assert_allclose(found.per_filter, whole.layers[layer].per_filter, rtol=1e-13)


def test_thread_count_does_not_show():
    x, y = torch.randn(2**21 + 9, 1), torch.randn(300, 7, 70, 70)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(arm({"a": x, "b": y}, {"a": x * 2, "b": y + 1}, pool=False))
    finally:
        torch.set_num_threads(before)
    same(results[0], results[1])
    same(results[0], results[2])
    assert _arm_state.BITS == 16
