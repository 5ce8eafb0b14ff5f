"""refit: constants that runs of one's own refine."""

import dataclasses
import math

import numpy as np
import pytest
from helpers.training_oracle import batches, network

import resque_ext
from resque_ext import forecast
from resque_ext.forecasting import refit
from resque_ext.retraining import retrain
from resque_ext.retraining.calibration import Calibration, Formula, shipped

OPTIONS = {"meter": None, "checks_per_epoch": 2}


@pytest.fixture(scope="module")
def pair():
    """A forecast of 16 steps, and what it then cost."""
    arguments = network(), batches(samples=200), batches(seed=1), 0.7, 60
    found = forecast(arguments[0], None, *arguments[1:], steps=(16,), max_share=1.0, **OPTIONS)
    assert found.stage == "probe"
    cost = retrain(*arguments, start=found, **OPTIONS)
    assert cost.reached
    return found, cost


def test_is_found_where_one_looks():
    assert resque_ext.forecast.refit is refit


def test_moves_the_forecast_towards_what_was_measured(pair):
    found, cost = pair
    base = shipped()
    fitted = refit([pair] * 5)
    formula, before = fitted.formulas[16], base.formulas[16]
    residual = math.log2(cost.steps / found.steps.value)
    share = 5 * before.between**2 / (5 * before.between**2 + before.within**2)
    assert formula.offset == pytest.approx(share * residual, rel=1e-9)
    assert formula.sigma < before.sigma
    assert formula.runs == 5
    assert fitted.formulas[0].runs == 5  # a shorter probe is known too
    assert fitted.short_curve.runs == 5
    assert (fitted.formulas[32], fitted.curve) == (base.formulas[32], base.curve)
    arguments = network(), None, batches(samples=200), batches(seed=1), 0.7, 60
    again = forecast(*arguments, steps=(16,), max_share=1.0, calibration=fitted, **OPTIONS)
    off = [abs(math.log2(each.steps.value / cost.steps)) for each in (again, found)]
    assert off[0] <= off[1]
    assert again.calibration is fitted


def test_is_the_same_from_where_it_begins(pair):
    """An earlier offset is replaced, not added to."""
    once = refit([pair] * 5)
    assert refit([pair] * 5, once) == once


def test_runs_that_missed_their_target(pair):
    found, cost = pair
    long = dataclasses.replace(cost, reached=False, stopped="epochs", steps=100_000)
    assert refit([(found, long)]).formulas[16].offset > 0
    short = dataclasses.replace(cost, reached=False, stopped="epochs", steps=17)
    with pytest.raises(ValueError, match="expected at least one that took steps beyond"):
        refit([(found, short)])


@pytest.mark.parametrize("runs", ["x", 3, [3], [(1, 2)]])
def test_what_is_no_run_is_refused(runs):
    with pytest.raises(TypeError, match="runs: expected pairs"):
        refit(runs)


def test_another_calibration_is_refused():
    with pytest.raises(TypeError, match="calibration: expected a Calibration, which refit makes"):
        forecast(network(), None, batches(), batches(seed=1), 0.9, calibration=3, **OPTIONS)


@pytest.mark.full
def test_intervals_after_a_refit_cover():
    """Simulated: models differ by 0.8 octaves, runs of one by 0.6; 90% intervals, 0 to 20 runs."""
    rng, formula = np.random.default_rng(0), Formula({"constant": 5.0}, 0.6, 0.8)
    for runs in (0, 1, 3, 20):
        inside = []
        for _ in range(4000):
            shift = rng.normal(0, 0.8)
            fitted = formula.refitted(list(shift + rng.normal(0, 0.6, runs)))
            new = 5.0 + shift + rng.normal(0, 0.6)
            off = abs(new - fitted.value({"constant": 1.0}))
            inside.append(off <= 1.6448536 * fitted.sigma)
        # Four standard errors of 4,000 draws.
        assert np.mean(inside) == pytest.approx(0.9, abs=4 * math.sqrt(0.9 * 0.1 / 4000)), runs
    assert isinstance(shipped(), Calibration)
