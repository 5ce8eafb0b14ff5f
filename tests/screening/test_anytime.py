"""When screening may stop: intervals over many looks, and which pairs are placed."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from resque_ext.indices._debiased import debiased
from resque_ext.screening.stopping import (
    Estimate,
    StoppingRule,
    look_confidence,
    look_sizes,
    ranks,
)


def test_looks_grow_and_end():
    assert list(look_sizes(100, 2, 1000)) == [100, 200, 400, 800, 1000]
    assert list(look_sizes(100, 2, 100)) == [100]
    assert list(look_sizes(100, 2, 50)) == [50]
    assert list(itertools.islice(look_sizes(1, 1.1), 5)) == [1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match=r"^growth: expected a number above 1, found 1"):
        next(look_sizes(10, 1))
    with pytest.raises(ValueError, match=r"^first: "):
        next(look_sizes(0))


def test_looks_spend_the_error_rate_and_no_more():
    spent = [1 - look_confidence(k, 0.9) for k in range(1, 10_000)]
    assert spent[:2] == pytest.approx([0.1 / 2, 0.1 / 6])
    assert 0.0999 < math.fsum(spent) < 0.1
    with pytest.raises(ValueError, match=r"^look: "):
        look_confidence(0)


NOISE = 0.3  # of a row in every coordinate; its mean has length 1


def noisy_blocks(rng, mean, rows, blocks=16):
    """Sums of `rows` rows a class about `mean` [C, D]."""
    counts = np.full((len(mean), blocks), rows // blocks)
    counts[:, : rows % blocks] += 1
    noise = rng.standard_normal((*counts.shape, mean.shape[1]))
    return mean[:, None] * counts[..., None] + NOISE * np.sqrt(counts)[..., None] * noise, counts


def turned(rng, mean, angle):
    away = rng.standard_normal(mean.shape)
    away -= (away * mean).sum(1, keepdims=True) * mean
    away /= np.linalg.norm(away, axis=1, keepdims=True)
    return np.cos(np.pi * angle) * mean + np.sin(np.pi * angle) * away


class Candidates:
    """Datasets whose true index is known: class means turned by `angles` of pi, and noise.

    Reading more rows of one adds to its sums, as an accumulator would.
    """

    def __init__(self, angles, rows, classes=5, width=32, seed=0):
        self.rng = np.random.default_rng(seed)
        mean = self.rng.standard_normal((classes, width))
        mean /= np.linalg.norm(mean, axis=1, keepdims=True)
        self.old = noisy_blocks(self.rng, mean, rows)
        self.means = [turned(self.rng, mean, angle) for angle in angles]
        self.classes, self.new = classes, [None] * len(angles)

    def read(self, i, rows):
        more = noisy_blocks(self.rng, self.means[i], rows // self.classes)
        seen = self.new[i]
        self.new[i] = more if seen is None else (seen[0] + more[0], seen[1] + more[1])

    def estimate(self, i, confidence):
        (u, n), (v, m) = self.old, self.new[i]
        found = debiased(u, v, n, m, False, confidence)
        return found and Estimate(found.value, found.low, found.high, int(m.sum()))


def test_intervals_hold_at_all_looks_together():
    """Even of one who looks at every size and stops just when the interval is wrong."""
    runs, right, angle = 150, 0, 0.1
    for seed in range(runs):
        data, before, good = Candidates([angle], 3000, seed=seed), 0, True
        for look, size in enumerate(look_sizes(400, 1.5, 10_000), start=1):
            data.read(0, size - before)
            before = size
            found = data.estimate(0, look_confidence(look, 0.8))
            good &= found is None or found.low <= angle <= found.high
        right += good
    assert right >= stats.binom.ppf(0.001, runs, 0.8)


def test_top_ten_of_two_hundred_from_a_fifth_of_the_samples():
    rows, gap = 20_000, 0.002
    true = 0.02 + gap * np.random.default_rng(1).permutation(200)
    data = Candidates(true, rows)
    rule, read, still_open, before = StoppingRule(top=10), {}, set(range(200)), 0
    for look, size in enumerate(look_sizes(400, 1.5, rows), start=1):
        for i in still_open:
            data.read(i, size - before)
            estimate = data.estimate(i, look_confidence(look))
            rule.observe(i, estimate)
            read[i] = size
        decisions = rule.decide()
        still_open = {i for i in still_open if decisions[i] == "continue"}
        before = size
    share = sum(read.values()) / (200 * rows)
    assert share <= 0.2
    best = sorted(range(200), key=lambda i: rule.estimates[i].value)[:10]
    assert best == list(np.argsort(true)[:10])
    places = ranks(rule.estimates)
    assert all(places[i][0] <= place <= places[i][1] for place, i in enumerate(best, start=1))
    for i in range(200):
        data.read(i, rows - read[i])
    in_full = sorted(range(200), key=lambda i: data.estimate(i, 0.95).value)[:10]
    assert in_full == best


intervals = st.lists(
    st.one_of(
        st.none(), st.tuples(st.integers(0, 12), st.integers(0, 12)).map(lambda t: sorted(t))
    ),
    min_size=1,
    max_size=8,
)


def observed(found, **options):
    rule = StoppingRule(**options)
    for i, pair in enumerate(found):
        rule.observe(i, pair and Estimate(pair[0], *pair, samples=1))
    return rule


@given(intervals, st.one_of(st.none(), st.integers(1, 4)))
def test_separation_is_that_of_all_pairs_of_intervals(found, top):
    decisions = observed(found, top=top).decide()
    bounds = [pair or (-math.inf, math.inf) for pair in found]
    for i, (low, high) in enumerate(bounds):
        others = [b for j, b in enumerate(bounds) if j != i]
        alone = others and all(high < b[0] or b[1] < low for b in others)
        out = top is not None and sum(b[1] < low for b in others) >= top
        assert (decisions[i] == "separated") == bool(alone or out)


@given(intervals)
def test_ranks_are_those_of_all_pairs_of_intervals(found):
    rule = observed(found)
    bounds = [pair or (-math.inf, math.inf) for pair in found]
    for i, place in ranks(rule.estimates).items():
        low, high = bounds[i]
        assert place == (
            1 + sum(b[1] < low for b in bounds),
            sum(not b[0] > high for b in bounds),
        )


def test_a_pair_alone_has_nothing_to_part_from():
    rule = observed([(1, 2)])
    assert rule.decide() == {0: "continue"}
    rule.observe("other", Estimate(5, 4, 6, samples=1))
    assert rule.decide() == {0: "separated", "other": "separated"}


def test_width():
    rule = observed([(0, 3), (1, 3), (2, 2), None], width=2)
    assert rule.decide() == {0: "continue", 1: "width", 2: "width", 3: "continue"}
    rule = observed([(0, 1), (5, 9)], width=2)
    assert rule.decide() == {0: "separated", 1: "separated"}
    rule.observe(0, Estimate(6, 5, 7, samples=2))
    assert rule.decide() == {0: "width", 1: "continue"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "^width: expected a number above 0 or None, found 0"),
        ({"width": math.nan}, "^width: "),
        ({"top": 0}, "^top: "),
    ],
)
def test_bad_rules(options, message):
    with pytest.raises(ValueError, match=message):
        StoppingRule(**options)


def test_bad_estimates():
    with pytest.raises(ValueError, match=r"^estimate: .* low <= value <= high, found 2, 1, 3"):
        Estimate(1, 2, 3, samples=1)
    with pytest.raises(ValueError, match=r"^estimate: "):
        Estimate(math.nan, 0, 1, samples=1)
