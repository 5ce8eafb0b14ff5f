"""The debiased RESQUE_dist: against plain sums over pairs of blocks, and against known angles."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from resque_ext import ResqueDist
from resque_ext.indices import _debiased


def directions(rng, classes, width, angles):
    """[C, D] unit vectors, and others turned away from them by `angles` of pi."""
    first = rng.standard_normal((classes, width))
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    away = rng.standard_normal((classes, width))
    away -= (away * first).sum(1, keepdims=True) * first
    away /= np.linalg.norm(away, axis=1, keepdims=True)
    turn = np.pi * np.broadcast_to(angles, classes)[:, None]
    return first, np.cos(turn) * first + np.sin(turn) * away


def blocks(rng, means, rows, spread, blocks=16):
    """Sums [C, B, D] of `rows` rows a class about `means`, and the rows of each block."""
    counts = np.full((len(means), blocks), rows // blocks)
    counts[:, : rows % blocks] += 1
    noise = rng.standard_normal((*counts.shape, means.shape[1]))
    return means[:, None] * counts[..., None] + spread * np.sqrt(counts)[..., None] * noise, counts


def plain_delta(u, v, n, m, paired):
    """Of one class [B, D], by loops over pairs of blocks."""

    def mean_product(x, y, i, j, distinct):
        pairs = [(a, b) for a in range(len(x)) for b in range(len(y)) if a != b or not distinct]
        products = math.fsum(float(x[a] @ y[b]) for a, b in pairs)
        return products / sum(int(i[a] * j[b]) for a, b in pairs)

    p, q = mean_product(u, u, n, n, True), mean_product(v, v, m, m, True)
    return 2 - 2 * mean_product(u, v, n, m, paired) / math.sqrt(p * q)


def plain_variance(u, v, n, m, paired):
    """Delete-m jackknife (Busing et al. 1999) of the class's delta, a block left out at a time."""
    whole = plain_delta(u, v, n, m, paired)

    def one(counts, without):
        h = counts.sum() / counts
        pseudo = h * whole - (h - 1) * without
        centre = len(counts) * whole - ((1 - 1 / h) * without).sum()
        return ((pseudo - centre) ** 2 / (h - 1)).mean()

    keep = [np.arange(len(n)) != b for b in range(len(n))]
    if paired:
        return one(n, np.array([plain_delta(u[k], v[k], n[k], m[k], True) for k in keep]))
    return one(n, np.array([plain_delta(u[k], v, n[k], m, False) for k in keep])) + one(
        m, np.array([plain_delta(u, v[k], n, m[k], False) for k in keep])
    )


@pytest.mark.parametrize("paired", [False, True])
def test_delta_and_its_variance_are_those_of_plain_loops(paired):
    rng = np.random.default_rng(3)
    means = directions(rng, 4, 6, 0.1)
    u, n = blocks(rng, means[0], 53, 0.3, blocks=5)
    v, m = blocks(rng, means[1], 53 if paired else 37, 0.3, blocks=5)
    delta, variance = _debiased._deltas(u, v, n, m, paired)
    for c in range(4):
        of_class = u[c], v[c], n[c], m[c], paired
        assert delta[c] == pytest.approx(plain_delta(*of_class), rel=1e-11)
        assert variance[c] == pytest.approx(plain_variance(*of_class), rel=1e-9)


@pytest.mark.parametrize("angle", [0.05, 0.1, 0.2, 0.3])
def test_unbiased_where_the_plain_index_is_not(angle):
    rng = np.random.default_rng(5)
    plain, found = [], []
    for _ in range(60):
        means = directions(rng, 10, 40, angle)
        u, n = blocks(rng, means[0], 400, 0.4)
        v, m = blocks(rng, means[1], 50, 0.4)
        acc_angle = _debiased.debiased(u, v, n, m, False, 0.95)
        found.append(acc_angle.value - angle)
        plain.append(_angles(u.sum(1), v.sum(1)).mean() - angle)
    error = np.std(found) / math.sqrt(len(found))
    assert abs(np.mean(found)) < abs(np.mean(plain)) / 5
    if angle > 0.1:  # below, an angle is hardly more than its noise, of which a root is taken
        assert abs(np.mean(found)) < 4 * error + 0.02 * abs(np.mean(plain))


def _angles(u, v):
    cosines = (u * v).sum(1) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1)
    return np.arccos(cosines) / np.pi


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("classes", [1, 10])
@pytest.mark.parametrize("angle", [0.0, 0.01, 0.03, 0.1, 0.5])
def test_intervals_cover(angle, classes, paired):
    rng = np.random.default_rng(7)
    hits, runs = 0, 150
    for _ in range(runs):
        means = directions(rng, classes, 24, angle)
        u, n = blocks(rng, means[0], 160, 0.2)
        v, m = blocks(rng, means[1], 160, 0.2)
        if paired:  # the same noise on both sides, and a little of their own
            v += 0.9 * (u - means[0][:, None] * n[..., None])
        found = _debiased.debiased(u, v, n, m, paired, 0.9)
        assert 0 <= found.low <= found.value <= found.high <= 1
        hits += found.low <= angle <= found.high
    assert hits >= stats.binom.ppf(0.001, runs, 0.9)


def test_interval_narrows_as_rows_do_and_depends_on_confidence():
    rng = np.random.default_rng(9)
    means = directions(rng, 10, 24, 0.2)
    u, n = blocks(rng, means[0], 10_000, 0.2)
    widths = []
    for rows in (100, 400, 1_600):
        v, m = blocks(rng, means[1], rows, 0.2)
        found = _debiased.debiased(u, v, n, m, False, 0.95)
        widths.append(found.high - found.low)
        wider = _debiased.debiased(u, v, n, m, False, 0.999)
        assert (wider.value, wider.low < found.low, wider.high > found.high) == (
            found.value,
            True,
            True,
        )
    assert widths[0] > 1.5 * widths[1] > 2 * widths[2]


@pytest.mark.parametrize("freedom", [5, 12, 40, 1000])
@pytest.mark.parametrize("share", [0.9, 0.975, 0.999, 0.9999])
def test_quantiles_of_student(share, freedom):
    expected = stats.t.ppf(share, freedom)
    # Coarse for few degrees of freedom far out, and then still within 4 %.
    assert _debiased._t_quantile(share, freedom) == pytest.approx(expected, rel=0.04)
    assert _debiased._t_quantile(share, math.inf) == pytest.approx(stats.norm.ppf(share))


def test_chunks_of_classes_change_nothing(monkeypatch):
    rng = np.random.default_rng(11)
    means = directions(rng, 7, 5, 0.1)
    data = [blocks(rng, mean, 40, 0.1) for mean in means]
    arguments = data[0][0], data[1][0], data[0][1], data[1][1], False, 0.95
    whole = _debiased.debiased(*arguments)
    monkeypatch.setattr("resque_ext.indices._angles._CHUNK_BYTES", 8 * 2 * 16 * 5 * 2)
    assert _debiased.debiased(*arguments) == whole


def accumulator(device, rng, rows=120, classes=3, angle=0.2, **options):
    means = directions(rng, classes, 8, angle)
    acc = ResqueDist(classes, **options)
    for side, mean in zip(("old", "new"), means, strict=True):
        labels = np.arange(rows) % classes
        x = mean[labels] + 0.1 * rng.standard_normal((rows, 8))
        acc.update(torch.tensor(x, device=device), torch.tensor(labels, device=device), side)
    return acc


def test_accumulator(place):
    acc = accumulator(place.device, np.random.default_rng(13))
    found = acc.debiased()
    assert found.low < 0.2 < found.high < found.low + 0.05
    assert float(found) == found.value < acc.compute().value
    assert (found.confidence, acc.debiased(0.5).confidence) == (0.95, 0.5)


def test_classes_without_an_angle_are_left_out():
    rng = np.random.default_rng(15)
    acc = accumulator("cpu", rng)
    expected = acc.debiased()
    acc.grow(5)  # two more classes without rows
    assert acc.debiased() == expected
    assert ResqueDist(4).num_classes == 4


def test_too_few_samples_are_no_estimate():
    rng = np.random.default_rng(17)
    assert accumulator("cpu", rng, rows=6).debiased() is None  # two blocks a class
    lost = ResqueDist(1)
    for side in ("old", "new"):  # pure noise: a mean's squared length comes out below zero
        x = torch.tensor([1.0, -1.0] * 8)[:, None].repeat(1, 4)
        lost.update(x + 1e-3, torch.zeros(16, dtype=torch.long), side)
    assert lost.debiased() is None
    only_old = ResqueDist(1)
    only_old.update(torch.ones(20, 2), torch.zeros(20, dtype=torch.long), "old")
    assert only_old.debiased() is None


def test_exact_data_has_a_sharp_interval():
    acc = ResqueDist(1)
    for side, row in (("old", [1.0, 0.0]), ("new", [0.0, 1.0])):
        acc.update(torch.tensor([row] * 32), torch.zeros(32, dtype=torch.long), side)
    found = acc.debiased()
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5), abs=1e-7)


@pytest.mark.parametrize("confidence", [0, 1, -1, 2, float("nan")])
def test_confidence_out_of_range(confidence):
    acc = accumulator("cpu", np.random.default_rng(19))
    with pytest.raises(ValueError, match=r"^confidence: expected a number between 0 and 1"):
        acc.debiased(confidence)
    with pytest.raises(ValueError, match=r"^update: expected at least one batch"):
        ResqueDist(2).debiased()
