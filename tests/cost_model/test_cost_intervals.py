"""Intervals cover at the rate that they state, for new runs and for new kinds of shift."""

import math

import numpy as np
import pytest
import scipy.stats

from resque_ext.cost_model.intervals import (
    Curve,
    LeftOut,
    groups_needed,
    interval,
    leave_out,
)
from resque_ext.cost_model.regression import Line

DRAWS = 300


def draw(rng, groups, each, of_group, limit):
    """Costs with noise of their own and of their group; the last run is the new one."""
    group = np.repeat(np.arange(groups), each)
    x = rng.random(len(group))
    shared = of_group * rng.normal(size=groups)[group]
    y = 4 * x * np.exp(0.4 * rng.normal(size=len(group)) + shared) + 0.01
    return x[:, None], y, group, y > limit


def coverage(method, groups, each, stated, of_group=0.0, limit=np.inf, draws=DRAWS):
    """Draws whose new run is inside the interval, and those without an upper end."""
    rng = np.random.default_rng(0)
    inside = unbounded = 0
    for _ in range(draws):
        x, y, group, censored = draw(rng, groups + 1, each, of_group, limit)
        kept = group != groups
        seen = np.minimum(y, limit)
        left_out = leave_out(method, x[kept], seen[kept], censored[kept], group[kept], 0.01)
        found = interval(left_out, x[-1], stated, "groups")
        inside += found.low <= y[-1] <= found.high
        unbounded += math.isinf(found.high)
    return inside, unbounded


def assert_rate(inside, draws, least, most):
    """A rate between the two is not refuted at 1 in 1,000 on either side."""
    assert scipy.stats.binom.sf(inside - 1, draws, most) > 1e-3, f"{inside} of {draws}: too many"
    assert scipy.stats.binom.cdf(inside, draws, least) > 1e-3, f"{inside} of {draws}: too few"


@pytest.mark.parametrize("method", ["monotone", "log-linear"])
@pytest.mark.parametrize(("runs", "stated"), [(19, 0.9), (9, 0.7)])
def test_exchangeable_runs(method, runs, stated):
    # (runs + 1) * stated is whole, so nothing is lost in rounding up.
    inside, unbounded = coverage(method, runs, 1, stated)
    assert unbounded == 0
    assert_rate(inside, DRAWS, stated, stated)


@pytest.mark.full
@pytest.mark.parametrize("method", ["monotone", "log-linear"])
def test_exchangeable_kinds(method):
    # The new kind's own weight, of which only one run is looked at, is held to be above all: that
    # may cost one part in the number of kinds.
    inside, unbounded = coverage(method, 9, 3, 0.8, of_group=0.5)
    assert unbounded == 0
    assert_rate(inside, DRAWS, 0.8, 0.8 + 1 / 10)


@pytest.mark.full
def test_runs_are_not_exchangeable_where_kinds_differ():
    # What the grouped form is for: by single runs the interval of a new kind would be too short.
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(150):
        x, y, group, censored = draw(rng, 3, 8, 2.0, np.inf)
        kept = group != 2
        runs = np.arange(kept.sum())
        left_out = leave_out("log-linear", x[kept], y[kept], censored[kept], runs, 0.01)
        found = interval(left_out, x[-1], 0.8, "runs")
        inside += found.low <= y[-1] <= found.high
    assert scipy.stats.binom.cdf(inside, 150, 0.8) < 1e-3


@pytest.mark.full
@pytest.mark.parametrize("method", ["monotone", "log-linear"])
@pytest.mark.parametrize(("groups", "each", "stated"), [(19, 1, 0.9), (9, 3, 0.8)])
def test_censored_runs_keep_the_rate(method, groups, each, stated):
    # Three in ten costs are above the limit: true costs are covered all the same, and low ones by
    # intervals that have an upper end.
    inside, unbounded = coverage(method, groups, each, stated, 0.4 * (each > 1), limit=2.5)
    assert 0.3 * DRAWS < unbounded < 0.9 * DRAWS
    assert_rate(inside, DRAWS, stated, stated + 1 / (groups + 1))


@pytest.mark.full
def test_limits_that_differ_keep_the_rate():
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(DRAWS):
        x, y, group, _ = draw(rng, 20, 1, 0.0, np.inf)
        limit = rng.uniform(1.5, 4, len(y))
        kept = group != 19
        seen, censored = np.minimum(y, limit)[kept], (y > limit)[kept]
        left_out = leave_out("log-linear", x[kept], seen, censored, group[kept], 0.01)
        found = interval(left_out, x[-1], 0.9, "runs")
        inside += found.low <= y[-1] <= found.high
    assert_rate(inside, DRAWS, 0.9, 0.97)


def flat(level, limit=math.inf):
    """A curve that says `level` of everything; at scale 1 costs are exp(level) - 1."""
    return Curve(1.0, limit, Line(level, np.zeros(1)))


def test_interval_by_hand():
    # Four groups at coverage 0.8: the mass is 0.8 * 5 = 4, all of them: the widest.
    left_out = [LeftOut(flat(2.0), np.array([score])) for score in (0.1, 0.5, 0.2, 0.3)]
    found = interval(left_out, np.zeros(1), 0.8, "runs")
    assert found.low == pytest.approx(np.expm1(1.5))
    assert found.high == pytest.approx(np.expm1(2.5))
    # At 0.6 the mass is 3: the third of four from either side.
    found = interval(left_out, np.zeros(1), 0.6, "runs")
    assert (found.low, found.high) == pytest.approx((np.expm1(1.7), np.expm1(2.3)))


def test_runs_of_a_kind_share_its_weight():
    # The mass is 0.75 * 4 = 3: every run of every kind. At 0.5 it is 2: two kinds, or one and two
    # halves.
    left_out = [
        LeftOut(flat(2.0), np.array([0.1])),
        LeftOut(flat(2.0), np.array([0.2, 0.6])),
        LeftOut(flat(2.0), np.array([0.3, 0.9])),
    ]
    assert interval(left_out, np.zeros(1), 0.75, "").high == pytest.approx(np.expm1(2.9))
    assert interval(left_out, np.zeros(1), 0.5, "").high == pytest.approx(np.expm1(2.3))


def test_too_few_groups_have_no_upper_end():
    left_out = [LeftOut(flat(1.0), np.array([0.1]))] * 8
    found = interval(left_out, np.zeros(1), 0.9, "kinds of shift")
    assert (found.low, found.high) == (0, math.inf)
    assert found.reason == "a coverage of 0.9 needs 9 kinds of shift, found 8"
    nine = interval([*left_out, left_out[0]], np.zeros(1), 0.9, "")
    assert math.isfinite(nine.high)
    assert nine.reason is None
    assert [groups_needed(c) for c in (0.5, 0.8, 0.9, 0.95, 0.99)] == [1, 4, 9, 19, 99]


def test_an_end_at_the_limit_is_open():
    # Fits of 1 and scores of 0.5 end at exp(1.5) - 1 = 3.48.
    for limit, bounded in ((3.4, False), (3.6, True)):
        left_out = [LeftOut(flat(1.0, limit), np.array([0.5]))] * 4
        found = interval(left_out, np.zeros(1), 0.8, "runs")
        assert math.isfinite(found.high) is bounded
        assert (found.reason is None) is bounded
        assert found.low == pytest.approx(np.expm1(0.5))


def test_scores_by_hand():
    curve = flat(1.0, limit=math.exp(2) - 1)  # in transformed costs, fitted 1, limit 2
    y = np.expm1([0.2, 1.5, 3.0, 0.5, 1.2, 3.0])
    censored = np.array([False, False, False, True, True, True])
    scores = curve.scores(np.zeros((6, 1)), y, censored)
    # Known: the distance, up to the limit. Stopped short: the worst from there to the limit.
    np.testing.assert_allclose(scores, [0.8, 0.5, 1.0, 1.0, 1.0, 1.0])
    assert flat(1.0).scores(np.zeros((1, 1)), y[:1], np.array([True]))[0] == math.inf


def test_scores_of_fits_far_off_by_hand():
    y, censored = np.expm1([0.2, 0.5, 1.2]), np.array([False, True, True])
    # Fitted above the limit of 2 is the limit; fitted near it, the least is the worst.
    for level, scores in ((3.0, [1.8, 1.5, 0.8]), (1.8, [1.6, 1.3, 0.6]), (-1.0, [0.2, 2.0, 2.0])):
        curve = flat(level, limit=math.exp(2) - 1)
        np.testing.assert_allclose(curve.scores(np.zeros((3, 1)), y, censored), scores)


def test_scale_and_limit_by_hand():
    y = np.array([0.0, 1.0, 4.0, 9.0, 2.0, 3.0, 50.0])
    censored = np.array([False, False, False, False, True, True, True])
    curve = Curve.of("monotone", np.arange(7.0)[:, None], y, censored, 0.01)
    assert (curve.scale, curve.limit) == (4, 3)  # medians of 1, 4, 9 and of 2, 3, 50
    free = Curve.of("monotone", np.arange(2.0)[:, None], np.zeros(2), censored[:2], 0.01)
    assert (free.scale, free.limit) == (1, math.inf)
    assert free.costs(np.array([[0.5]])).tolist() == [0]


@pytest.mark.parametrize("each", [3, 7, 10, 49])
def test_weights_of_a_kind_add_up_to_one(each):
    """A coverage that needs every run of every kind: sums of 1 / each may end below a whole."""
    scores = np.arange(1.0, each + 1)
    left_out = [LeftOut(flat(100.0), scores + i / 10) for i in range(9)]
    found = interval(left_out, np.zeros(1), 0.9, "kinds")
    assert found.high == pytest.approx(np.expm1(100 + each + 0.8))
    assert found.low == pytest.approx(np.expm1(100 - each - 0.8))
