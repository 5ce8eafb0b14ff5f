"""The chance level of RESQUE_task and PreIndex, the start that does not leak, and the warnings.

Oracles are scikit-learn's KMeans and plain loops; the laws of noise are shown by simulation.
"""

import dataclasses
import json

import numpy as np
import pytest
import torch
from helpers.oracles_folds import FOLDS, folds_of
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from resque_ext import preindex, resque_task, score
from resque_ext.indices.chance_level import effective_dimension, permuted
from resque_ext.indices.resque_task import class_means
from resque_ext.indices.segments import Embeddings, open_source

STARTS = ("same-rows", "held-out")


def noise(n, d, k, seed=0):
    """Rows without any structure, and labels that mean nothing."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)).astype(np.float32), np.arange(n) % k


def clear(n, d, k, seed=0, apart=6.5):
    """Classes whose means are `apart` deviations from each other."""
    x, y = noise(n, d, k, seed)
    x[np.arange(n), y] += np.float32(apart / 2**0.5)
    return x, y


def clusters(x, y, start):
    return KMeans(len(start), init=start, n_init=1, max_iter=300).fit(x.astype(np.float64)).labels_


def means(x, y):
    return np.stack([x[y == c].astype(np.float64).mean(0) for c in np.unique(y)])


def plain(x, y):
    return 1 - adjusted_rand_score(y, clusters(x, y, means(x, y)))


def held_out(x, y):
    """(value, labels): all rows clustered a fold, the fold's own labels kept."""
    fold, labels = folds_of(x, y), np.full(len(y), -1)
    for f in range(FOLDS):
        own = fold == f
        if own.any():
            labels[own] = clusters(x, y, means(x[~own], y[~own]))[own]
    return 1 - adjusted_rand_score(y, labels), labels


# The noise that read as perfect


@pytest.mark.parametrize(("n", "d", "least", "most"), [(500, 2048, 0, 0), (2000, 768, 0.7, 0.8)])
def test_noise_is_never_perfect(n, d, least, most):
    torch.manual_seed(0)
    found = resque_task(torch.randn(n, d), torch.randint(10, (n,)))
    assert least <= found.value <= most  # as published
    assert abs(found.value - found.chance.mean) <= 0.055  # within what permuted labels show
    assert not found.reliable
    (warning,) = found.warnings
    assert warning.startswith("value: too small, as class means of the same rows leak the labels")
    assert "use start='held-out', or more rows" in warning
    if most == 0:
        assert found.confidence_interval[1] > 0


def test_noise_is_chance_where_nothing_leaks():
    torch.manual_seed(0)
    x, y = torch.randn(500, 2048), torch.randint(10, (500,))
    found = resque_task(x, y, start="held-out", chance=1)
    assert abs(found.value - 1) < 0.02
    assert abs(found.chance.mean - 1) < 0.02
    assert found.reliable


def test_labels_that_mean_nothing_of_many_rows_are_reliably_at_chance():
    x, y = noise(3000, 8, 4)
    found = resque_task(x, y, chance=19)
    assert abs(found.value - 1) < 0.01
    assert found.chance.p_value > 0.05
    assert found.reliable


# The formulas


@pytest.mark.parametrize(("n", "d", "k"), [(120, 6, 3), (90, 40, 4), (60, 200, 2)])
def test_chance_is_the_value_of_permuted_labels(n, d, k):
    x, y = clear(n, d, k, apart=2)
    found = resque_task(x, y, chance=4, seed=7)
    rng = np.random.default_rng(7)
    values = [plain(x, y[rng.permutation(n)]) for _ in range(4)]
    assert found.chance.mean == pytest.approx(np.mean(values), abs=1e-12)
    assert found.chance.std == pytest.approx(np.std(values, ddof=1), abs=1e-12)
    assert (found.chance.permutations, found.chance.p_value) == (4, None)
    assert resque_task(x, y, chance=4, seed=7).chance == found.chance
    assert resque_task(x, y, chance=4, seed=8).chance != found.chance
    assert resque_task(x, y, chance=0).chance is None


@pytest.mark.parametrize("init", ["k-means++", "given"])
def test_chance_of_a_start_that_needs_no_labels(init):
    """The clusters stay; their table is another one."""
    x, y = clear(90, 5, 3)
    found = resque_task(x, y, init=x[:3] if init == "given" else init, chance=3)
    rng = np.random.default_rng(0)
    values = [1 - adjusted_rand_score(y[rng.permutation(90)], found.cluster_labels) for _ in "123"]
    assert found.chance.mean == pytest.approx(np.mean(values), abs=1e-12)
    assert found.dimension is None


def test_p_value():
    """(1 + those no larger) / (1 + permutations), from 19 on."""
    order = iter([0.5, *[0.9] * 17, 0.3])
    found = permuted(0.5, 4, 19, 0, lambda _: next(order))
    assert found.p_value == (1 + 2) / 20
    assert permuted(0.5, 4, 18, 0, lambda _: 0.9).p_value is None
    assert permuted(0.5, 4, 1, 0, lambda _: 0.9).std is None
    x, y = clear(200, 5, 4)
    assert resque_task(x, y, chance=19).chance.p_value == 1 / 20


@pytest.mark.parametrize(
    ("n", "d", "k", "apart"),
    [(120, 6, 3, 3), (90, 40, 4, 5), (23, 3, 3, 3), (8, 2, 2, 1), (60, 200, 2, 0)],
)
def test_held_out_is_five_folds_in_one_table(n, d, k, apart):
    x, y = clear(n, d, k, apart=apart)
    value, labels = held_out(x, y)
    found = resque_task(x, y * 3 - 5, start="held-out", chance=1)
    assert found.value == pytest.approx(value, abs=1e-12)
    np.testing.assert_array_equal(found.cluster_labels, labels)
    assert found.centers.shape == (len(set(folds_of(x, y))), k, d)
    order = np.random.default_rng(0).permutation(n)
    assert found.chance.mean == pytest.approx(held_out(x, y[order])[0], abs=1e-12)
    parts = [x[:5], x[5:]]
    assert resque_task(parts, y * 3 - 5, start="held-out", chance=1).to_dict() == found.to_dict()


def test_held_out_and_baselines_are_the_same_in_any_order():
    x, y = clear(300, 6, 4, apart=2)
    order = np.random.default_rng(1).permutation(300)
    options = {"start": "held-out", "chance": 0, "baselines": True}
    found, other = resque_task(x, y, **options), resque_task(x[order], y[order], **options)
    assert 0.2 < found.value == pytest.approx(other.value, abs=1e-12)
    np.testing.assert_array_equal(found.cluster_labels[order], other.cluster_labels)
    assert found.linear_probe_error == other.linear_probe_error > 0
    assert found.nearest_class_mean_error == other.nearest_class_mean_error > 0


def within_dimension(x, y):
    residuals = np.concatenate([x[y == c] - x[y == c].mean(0) for c in np.unique(y)])
    s = residuals.T @ residuals
    return np.trace(s) ** 2 / np.square(s).sum()


@pytest.mark.parametrize("steep", [0, 0.5, 1])
def test_effective_dimension(steep):
    """(sum s)^2 / sum s^2 of a known spectrum, to the error of a sample of 512 rows."""
    rng = np.random.default_rng(0)
    spectrum = np.arange(1, 65.0) ** (-2 * steep)
    y = np.arange(6000) % 6
    x = rng.standard_normal((6000, 64)) * np.sqrt(spectrum) + 5 * rng.standard_normal((6, 64))[y]
    true = spectrum.sum() ** 2 / np.square(spectrum).sum()
    assert within_dimension(x, y) == pytest.approx(true, rel=0.1)
    assert resque_task(x, y, chance=0).dimension == pytest.approx(true, rel=0.15)


def test_effective_dimension_of_few_rows_has_no_bias():
    """The sample's own covariance would say 16 of 20 rows in 400 dimensions."""
    found = []
    for seed in range(5):
        x, y = noise(20, 400, 4, seed)
        data = Embeddings(open_source(x, None), "pooled", torch.device("cpu"))
        index = torch.as_tensor(y)
        found.append(effective_dimension(data, index, class_means(x, y)))
    assert 300 < np.mean(found) <= 400


# What is told


@pytest.mark.parametrize(("d", "told"), [(20, False), (30, True)])
def test_a_warning_from_half_a_row_a_cluster_and_dimension_on(d, told):
    """z = 2 D / 100: 0.4, and 0.6; of classes so far apart that their value is right."""
    x, y = clear(100, d, 2, apart=12)
    found = resque_task(x, y)
    assert found.value == 0
    assert found.reliable != told
    assert bool(found.warnings) == told


def test_what_is_told_of_small_and_single_classes():
    x, y = clear(40, 3, 2)
    y[:3] = 7
    assert (
        "a class has 3 rows, fewer than there are folds"
        in resque_task(x, y, start="held-out", chance=0).warnings[0]
    )
    alone = resque_task(x, np.zeros(40, np.int64))
    assert (alone.chance, alone.reliable) == (None, False)
    assert "a single class" in alone.warnings[0]
    each = resque_task(x, np.arange(40), chance=0)
    assert (each.value, each.reliable) == (0, False)
    lost = resque_task(*noise(100, 400, 20), start="held-out", chance=0)
    assert not lost.reliable
    assert "may be much too large" in lost.warnings[0]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"start": "x"}, ValueError, "start: expected one of 'same-rows', 'held-out'"),
        ({"chance": -1}, ValueError, "chance: expected 0 <= chance"),
        ({"chance": 2.5}, TypeError, "chance: expected an integer"),
        (
            {"start": "held-out", "init": "k-means++"},
            ValueError,
            r"start: expected 'same-rows' where init is not 'class-means'",
        ),
    ],
)
def test_refused(options, error, message):
    with pytest.raises(error, match=message):
        resque_task(*clear(40, 3, 2), **options)


def test_held_out_needs_two_rows_a_class():
    x, y = clear(40, 3, 2)
    y[0] = 9
    with pytest.raises(
        ValueError, match=r"^labels: expected at least two rows of every class .* 9$"
    ):
        resque_task(x, y, start="held-out")


# PreIndex


def layers_of(x, y):
    return {"a": torch.as_tensor(x[:, :4])}, torch.as_tensor(x), torch.as_tensor(y)


@pytest.mark.parametrize("ari", ["new", "old", "new_from_old_centers"])
def test_preindex_carries_the_chance_of_its_part(ari):
    x, y = noise(60, 200, 3)
    x2 = x + np.float32(0.5) * noise(60, 200, 3, 1)[0]
    old, new = layers_of(x, y), layers_of(x2, y)
    found = preindex(old[0], new[0], old[1], new[1], old[2], ari=ari, chance=2)
    rng = np.random.default_rng(0)
    values = []
    for _ in range(2):
        other = y[rng.permutation(60)]
        data = x if ari == "old" else x2
        start = means(x2 if ari == "new" else x, other)
        values.append(1 - adjusted_rand_score(other, clusters(data, other, start)))
    assert found.chance.mean == pytest.approx(np.mean(values), abs=1e-12)
    assert not found.reliable
    assert found.warnings[0].startswith("1 - ARI: value: too small")
    told = json.loads(json.dumps(found.to_dict()))
    assert told["chance"]["mean"] == found.chance.mean
    assert told["reliable"] is False
    assert told["warnings"] == list(found.warnings)
    assert preindex(old[0], new[0], old[1], new[1], old[2], ari=ari, chance=0).chance is None


def test_preindex_of_names_of_classes():
    x, y = noise(60, 200, 3)
    old, new = layers_of(x, y), layers_of(x + np.float32(0.1), y)
    names = np.array(["ant", "bee", "cow"])[y]
    found = [
        preindex(old[0], new[0], old[1], new[1], labels, ari="new_from_old_centers", chance=1)
        for labels in (y, names)
    ]
    assert found[0].chance == found[1].chance


def test_preindex_of_a_start_that_does_not_leak():
    x, y = noise(200, 100, 2)
    old, new = layers_of(x, y), layers_of(x + np.float32(0.1), y)
    given = (old[0], new[0], old[1], new[1], old[2])
    found = preindex(*given, start="held-out", chance=1)
    assert found.inv_ari["new"] == pytest.approx(held_out(x + np.float32(0.1), y)[0], abs=1e-12)
    assert found.inv_ari["old"] == resque_task(x, y, chance=0).value
    assert found.reliable
    with pytest.raises(ValueError, match="start: expected 'same-rows' with ari='new_from_old"):
        preindex(*given, start="held-out", ari="new_from_old_centers")


def test_through_score():
    x, y = clear(60, 8, 3)
    model = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(8, 3))
    data = [(torch.as_tensor(x), torch.as_tensor(y))]
    options = {"resque_task": {"start": "held-out", "chance": 2, "baselines": False}}
    found = score(model, None, data, indices="resque_task", options=options, progress=False)
    expected = resque_task(x, y, start="held-out", chance=2)
    of_arrays = dataclasses.replace(found, layer=None, pooling=None, labels=None)
    assert of_arrays.to_dict() == expected.to_dict()


# Laws, by simulation: z = K D / N


def mean_of(made, z, k, draws, **options):
    n = 200 if z <= 16 else 20 * k
    d = int(z * n / k)
    return np.mean(
        [resque_task(*made(n, d, k, s), chance=0, **options).value for s in range(draws)]
    )


def test_chance_level_quickly():
    assert mean_of(noise, 0.25, 2, 6) > 0.9
    assert mean_of(noise, 20, 2, 1) == 0
    x, y = noise(200, 400, 10)
    assert abs(resque_task(x, y, chance=0, start="held-out").value - 1) < 0.03


@pytest.mark.full
@pytest.mark.parametrize(("k", "levels"), [(2, (0.99, 0.85, 0.13, 0)), (10, (0.99, 0.96, 0.48, 0))])
def test_chance_level_of_the_plain_value(k, levels):
    """Means over cells z < 0.3, of 1 to 2, 4 to 8, and above 16; levels fall with z within one."""
    cells = ((0.1, 0.28), (1, 2), (4, 8), (20, 40))
    for zs, level in zip(cells, levels, strict=True):
        # 12 draws of a cell in which the level falls from 0.44 to 0.10 are within 0.15.
        assert abs(np.mean([mean_of(noise, z, k, 12) for z in zs]) - level) < 0.15


@pytest.mark.full
def test_the_held_out_start_does_not_leak():
    found = [
        resque_task(*noise(200, int(z * 200 / k), k, s), chance=0, start="held-out").value
        for k in (2, 10)
        for z in (0.25, 1, 4, 16, 40)
        for s in range(8)
    ]
    assert abs(np.mean(found) - 1) < 0.005
    assert np.std(found) < 0.02  # of 200 rows; two classes scatter most


@pytest.mark.full
def test_the_held_out_start_is_the_plain_one_where_that_is_sound():
    differences = []
    for k in (2, 5, 10):
        for apart in (2, 3, 4.5, 6.5):
            for s in range(4):
                x, y = clear(100 * k, 12, k, s, apart)  # z = 0.12
                values = [resque_task(x, y, chance=0, start=w).value for w in STARTS]
                differences.append(values[1] - values[0])
    assert np.sqrt(np.square(differences).mean()) < 0.025
    assert np.abs(differences).max() < 0.12


@pytest.mark.full
@pytest.mark.parametrize(("z", "most"), [(0.5, 0.04), (8, 0.1), (30, 0.35)])
def test_clear_classes_read_as_clear_by_the_held_out_start(z, most):
    assert mean_of(clear, z, 10, 4, start="held-out") < most


@pytest.mark.full
def test_three_permutations_give_the_mean():
    """The deviation of one is about 0.1 for two classes and less for ten, whatever leaks."""
    for k, z in ((2, 0.25), (2, 2), (10, 1), (10, 6), (10, 20)):
        x, y = noise(40 * k, int(z * 40), k)
        assert resque_task(x, y, chance=19).chance.std <= (0.13 if k == 2 else 0.075)


@pytest.mark.full
@pytest.mark.parametrize(("n", "d", "k"), [(100, 5, 4), (100, 100, 4)])
def test_the_permutation_test_keeps_its_level(n, d, k):
    """At 5%, of labels that mean nothing: 300 samples, 15 +- 4 expected."""
    found = [resque_task(*noise(n, d, k, s), chance=19, seed=s).chance.p_value for s in range(300)]
    assert np.mean(np.array(found) <= 0.05) <= 0.05 + 0.04
