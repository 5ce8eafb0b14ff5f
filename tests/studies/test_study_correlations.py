"""Correlations of a study against scipy's, one by one, censored runs and all."""

import dataclasses
import json
import math

import numpy as np
import pytest
from helpers.study_oracle import run as small_study
from scipy import stats

from resque_ext.retraining import MEASURES, RetrainingCost, StudyRun, correlate
from resque_ext.studies import bootstrap

KINDS = ("a", "b", "c")


@pytest.fixture(scope="module")
def cost():
    return small_study(shifts=None, max_epochs=1)[0].cost


def made(cost, kind, x, epochs, reached=True, change=None):
    """A run with one predictor and these measures."""
    changed = dataclasses.replace(cost.parameter_change, mean=change)
    cost = dataclasses.replace(
        cost, epochs=epochs, reached=reached, parameter_change=changed, train_seconds=1.0
    )
    return StudyRun(kind, 0.1, "", 0, "model", {"x": x, "none": None}, {"x": None}, cost)


def drawn(cost, n=30, seed=0, ties=True, censored=0):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 9, n) / 4 if ties else rng.standard_normal(n)
    y = x + rng.integers(0, 5, n) / 2 if ties else x + rng.standard_normal(n)
    y = y - y.min()
    missed = np.argsort(y)[n - censored :]
    return [
        made(cost, KINDS[i % 3], float(x[i]), float(y[i]), i not in missed, float(y[i] ** 2))
        for i in range(n)
    ]


def columns(runs, kind=None):
    runs = [r for r in runs if kind in (None, r.kind)]
    x = np.array([r.predictors["x"] for r in runs])
    return x, np.array([r.cost.epochs for r in runs]), np.array([not r.cost.reached for r in runs])


@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_values_are_scipys(cost, seed, ties):
    runs = drawn(cost, seed=seed, ties=ties)
    table = correlate(runs, "x", ["epochs", "parameter_change"])
    for method, oracle in (("spearman", stats.spearmanr), ("pearson", stats.pearsonr)):
        row = table.get("x", "epochs", method)
        x, y, _ = columns(runs)
        assert row.across.value == pytest.approx(oracle(x, y)[0], abs=1e-12)
        assert (row.across.runs, row.across.censored, row.across.dropped) == (30, 0, 0)
        each = []
        for kind in KINDS:
            x, y, _ = columns(runs, kind)
            each.append(oracle(x, y)[0])
            assert row.kinds[kind].value == pytest.approx(each[-1], abs=1e-12)
            assert row.kinds[kind].runs == 10
        assert row.within.value == pytest.approx(np.mean(each), abs=1e-12)
        x, y, _ = columns(runs)
        change = table.get("x", "parameter_change", method).across.value
        assert change == pytest.approx(oracle(x, y**2)[0], abs=1e-12)


@pytest.mark.parametrize("ranks", [True, False])
def test_bootstrap_samples_are_scipys(ranks):
    """Each sample, drawn out and given to scipy."""
    rng = np.random.default_rng(3)
    x, y = rng.integers(0, 5, 12) * 1e-3 + 7.0, rng.standard_normal(12) * 1e9
    counts = bootstrap.draw(rng, 12, 200)
    assert (counts.sum(1) == 12).all()
    found = bootstrap.correlations(x, y, counts, ranks)
    oracle = stats.spearmanr if ranks else stats.pearsonr
    for row, value in zip(counts, found, strict=True):
        sample = np.repeat(np.arange(12), row.astype(int))
        assert value == pytest.approx(oracle(x[sample], y[sample])[0], abs=1e-9)


def test_draws_are_uniform():
    counts = bootstrap.draw(np.random.default_rng(0), 5, 40_000)
    np.testing.assert_allclose(counts.mean(0), 1.0, atol=0.02)
    np.testing.assert_allclose(counts.var(0), 0.8, atol=0.03)  # n p (1 - p)


def test_degenerate_samples_have_no_value():
    x = np.array([0.0, 1.0, 2.0, 2.0])
    counts = np.array(
        [[4, 0, 0, 0], [2, 2, 0, 0], [0, 0, 3, 1], [1, 1, 1, 1], [0, 2, 1, 1]], dtype=float
    )
    for ranks in (True, False):
        found = bootstrap.correlations(x, x, counts, ranks)
        np.testing.assert_array_equal(np.isnan(found), [True, True, True, False, False])


@pytest.mark.parametrize("method", ["spearman", "pearson"])
def test_interval_is_the_percentile_interval(cost, method):
    """Against scipy's bootstrap: other draws, so only nearly the same."""
    runs = drawn(cost, n=40, ties=False)
    x, y, _ = columns(runs)
    oracle = {"spearman": stats.spearmanr, "pearson": stats.pearsonr}[method]
    row = correlate(runs, "x", "epochs", resamples=4000, confidence=0.9).get("x", "epochs", method)
    expected = stats.bootstrap(
        (x, y),
        lambda a, b: oracle(a, b)[0],
        paired=True,
        vectorized=False,
        n_resamples=1500,
        confidence_level=0.9,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert row.across.low == pytest.approx(expected.low, abs=0.03)
    assert row.across.high == pytest.approx(expected.high, abs=0.03)
    assert row.across.low < row.across.value < row.across.high


def test_interval_covers_as_often_as_it_says(cost):
    """Of normal pairs with a known correlation, 95% of the intervals hold it, or nearly."""
    rng, rho, hits = np.random.default_rng(1), 0.6, 0
    for _ in range(200):
        a, b = rng.standard_normal((2, 50))
        y = rho * a + math.sqrt(1 - rho**2) * b
        samples = bootstrap.correlations(a, y, bootstrap.draw(rng, 50, 400), ranks=False)
        low, high = np.quantile(samples, [0.025, 0.975])
        hits += low <= rho <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_kinds_are_drawn_independently(cost):
    """The mean over three alike kinds varies less than any of them."""
    one = [r for r in drawn(cost, n=30, ties=False) if r.kind == "a"]
    runs = [dataclasses.replace(r, kind=kind) for kind in KINDS for r in one]
    row = correlate(runs, "x", "epochs", resamples=2000).get("x", "epochs")
    width = row.within.high - row.within.low
    widths = [found.high - found.low for found in row.kinds.values()]
    assert row.within.value == pytest.approx(row.kinds["a"].value, abs=1e-12)
    assert width < 0.75 * min(widths)
    assert len({found.low for found in row.kinds.values()}) > 1


def test_censored_runs_are_tied_at_the_limit(cost):
    runs = drawn(cost, censored=6)
    x, y, missed = columns(runs)
    tied = np.where(missed, y.max() + 1, y)
    table = correlate(runs, "x", ["epochs", "parameter_change"])
    row = table.get("x", "epochs")
    assert row.across.value == pytest.approx(stats.spearmanr(x, tied)[0], abs=1e-12)
    assert row.across.value != pytest.approx(stats.spearmanr(x, y)[0], abs=1e-6)
    assert (row.across.runs, row.across.censored, row.across.dropped) == (30, 6, 0)
    other = table.get("x", "parameter_change").across
    assert other.value == pytest.approx(stats.spearmanr(x, tied**2)[0], abs=1e-12)
    plain = table.get("x", "epochs", "pearson").across
    assert plain.value == pytest.approx(stats.pearsonr(x[~missed], y[~missed])[0], abs=1e-12)
    assert (plain.runs, plain.censored, plain.dropped) == (24, 0, 6)
    assert (table.runs, table.censored) == (30, 6)


def test_what_a_censored_run_had_come_to_does_not_matter(cost):
    runs = drawn(cost, censored=6)
    other = [
        r
        if r.cost.reached
        else dataclasses.replace(r, cost=dataclasses.replace(r.cost, epochs=0.0))
        for r in runs
    ]
    assert correlate(runs, "x", "epochs").to_dict() == correlate(other, "x", "epochs").to_dict()


def test_censored_runs_can_be_dropped(cost):
    runs = drawn(cost, censored=6)
    x, y, missed = columns(runs)
    table = correlate(runs, "x", "epochs", censored="drop")
    for method, oracle in (("spearman", stats.spearmanr), ("pearson", stats.pearsonr)):
        found = table.get("x", "epochs", method).across
        assert found.value == pytest.approx(oracle(x[~missed], y[~missed])[0], abs=1e-12)
        assert (found.runs, found.censored, found.dropped) == (24, 0, 6)


def test_too_few_and_constant_values_have_no_correlation(cost):
    runs = [made(cost, "a", float(i), 1.0, change=float(i)) for i in range(5)]
    runs += [made(cost, "b", float(i), 1.0, change=float(i)) for i in range(2)]
    row = correlate(runs, "x", "epochs").get("x", "epochs")
    assert row.across.value is row.across.low is row.across.high is None
    assert row.across.reason == "the measure is the same in all 7 runs"
    assert row.within.value is None
    assert row.within.reason == "no kind of shift has three runs with different values"
    row = correlate(runs, "x", "parameter_change").get("x", "parameter_change")
    assert row.across.value == pytest.approx(1.0)
    assert row.kinds["b"].value is None
    assert "too few runs with both values: 2, at least 3" in row.kinds["b"].reason
    assert (row.within.value, row.within.runs, row.within.dropped) == (pytest.approx(1.0), 5, 2)
    assert row.within.low == pytest.approx(1.0)
    constant = [made(cost, "a", 0.1, float(i)) for i in range(5)]
    found = correlate(constant, "x", "epochs").get("x", "epochs", "pearson").across
    assert (found.value, found.reason) == (None, "the predictor is the same in all 5 runs")
    missing = correlate(runs, "none", "epochs").get("none", "epochs").across
    assert (missing.value, missing.runs, missing.dropped) == (None, 0, 7)
    all_missed = [made(cost, "a", float(i), float(i), reached=False) for i in range(5)]
    found = correlate(all_missed, "x", "epochs")
    assert found.get("x", "epochs").across.reason == "the measure is the same in all 5 runs"
    assert found.get("x", "epochs", "pearson").across.runs == 0


def test_three_runs_have_a_value_but_no_interval(cost):
    runs = [made(cost, "a", float(i), float(i)) for i in range(3)]
    found = correlate(runs, "x", "epochs").get("x", "epochs").across
    assert found.value == pytest.approx(1.0)
    assert found.low is found.high is None
    assert "no interval: only" in found.reason


def test_values_that_are_not_known_are_left_out(cost):
    runs = drawn(cost, n=12, ties=False)
    runs[2] = dataclasses.replace(runs[2], predictors={"x": None})
    runs[3] = dataclasses.replace(runs[3], predictors={"x": math.nan})
    runs[4] = dataclasses.replace(runs[4], predictors={})
    found = correlate(runs, "x", "epochs").get("x", "epochs").across
    x, y, _ = columns([r for i, r in enumerate(runs) if i not in (2, 3, 4)])
    assert found.value == pytest.approx(stats.spearmanr(x, y)[0], abs=1e-12)
    assert (found.runs, found.dropped) == (9, 3)
    kinds = correlate(runs, "x", "epochs").get("x", "epochs").kinds
    # Of four runs each, those at 2, 3 and 4 are of the kinds c, a and b.
    assert [(kinds[k].runs, kinds[k].dropped) for k in KINDS] == [(3, 1)] * 3


def test_huge_and_tiny_values(cost):
    for scale in (1e300, 1e-300, 1e-9):
        runs = [made(cost, "a", v * scale, e) for e, v in enumerate((3.0, 1.0, 2.0, -4.0))]
        found = correlate(runs, "x", "epochs").get("x", "epochs", "pearson").across.value
        assert found == pytest.approx(stats.pearsonr((3, 1, 2, -4), range(4))[0], abs=1e-12)


def test_seeded(cost):
    runs = drawn(cost)
    first = correlate(runs, "x", "epochs", seed=1).to_dict()
    assert correlate(runs, "x", "epochs", seed=1).to_dict() == first
    assert correlate(runs, "x", "epochs", seed=2).to_dict()["rows"] != first["rows"]


def test_defaults_dict_and_text(cost):
    runs = drawn(cost, censored=4)
    table = correlate(iter(runs))
    # Without "none", which no run has, and the measures that are the same or unknown everywhere.
    assert {row.predictor for row in table} == {"x"}
    assert {row.measure for row in table} == {
        name for name, value in runs[0].measures.items() if value is not None
    }
    assert len(table) == 2 * len({row.measure for row in table})
    again = json.loads(json.dumps(table.to_dict(), allow_nan=False))
    assert again == table.to_dict()
    assert again["runs"] == 30
    assert again["censored"] == 4
    row = next(r for r in again["rows"] if r["measure"] == "epochs" and r["method"] == "spearman")
    assert row["across"] == vars(table.get("x", "epochs").across)
    text = str(table)
    assert text.startswith("30 runs, 4 of them censored\n")
    value = table.get("x", "epochs").across
    assert f"{value.value:.2f} [{value.low:.2f}, {value.high:.2f}]" in text
    assert "Spearman, across kinds [95% interval]" in text
    assert "Pearson, mean within kinds" in text
    assert "none" in text  # gradient norms are the same in all runs
    with pytest.raises(KeyError, match="no spearman correlation of 'y' with 'epochs'"):
        table.get("y", "epochs")
    assert isinstance(runs[0].cost, RetrainingCost)
    assert set(MEASURES) >= {row.measure for row in table}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"runs": []}, ValueError, "runs: expected at least one, found none"),
        ({"runs": 3}, TypeError, "runs: expected StudyRuns, found int"),
        ({"runs": [3]}, TypeError, "runs: expected StudyRuns, found int among them"),
        ({"predictors": ["y"]}, ValueError, r"predictors: expected names among x, none, .*\['y'\]"),
        ({"predictors": 3}, TypeError, "predictors: expected names, found int"),
        ({"predictors": []}, ValueError, "predictors: expected names among"),
        ({"measures": "cost"}, ValueError, r"measures: expected names among epochs, .*\['cost'\]"),
        ({"methods": "kendall"}, ValueError, "methods: expected names among spearman, pearson"),
        ({"censored": "keep"}, ValueError, "censored: expected one of 'limit', 'drop', found 'ke"),
        ({"resamples": 0}, ValueError, "resamples: expected 1 <= resamples"),
        ({"confidence": 1.0}, ValueError, "confidence: expected a number between 0 and 1, found 1"),
        ({"confidence": "a"}, TypeError, "confidence: expected a number, found 'a'"),
        ({"seed": -1}, ValueError, "seed: expected 0 <= seed"),
    ],
)
def test_refuses(cost, options, error, message):
    runs = options.pop("runs", None)
    runs = drawn(cost) if runs is None else runs
    with pytest.raises(error, match=f"^{message}"):
        correlate(runs, **options)
