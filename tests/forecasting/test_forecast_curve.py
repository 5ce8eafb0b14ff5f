"""The pure parts of a forecast against values worked out by hand or by NumPy."""

import math

import numpy as np
import pytest

from resque_ext.retraining.calibration import (
    Before,
    Calibration,
    Formula,
    estimate,
    features,
    never_probability,
    shipped,
)
from resque_ext.retraining.curve import Curve, Point
from resque_ext.retraining.target import Checks, Target

POINTS = [
    Point(0, 3.0, 0.9),
    Point(4, 2.0, 0.62),
    Point(8, 1.3, 0.41),
    Point(16, 0.9, 0.30),
    Point(32, 0.7, 0.21),
]


@pytest.mark.parametrize("length", [16, 32])
def test_lines_are_those_of_least_squares(length):
    points = [point for point in POINTS if point.step <= length]
    curve = Curve.fitted(points, 1e-3)
    part = [point for point in points if point.step >= length / 4]
    x = np.log2([point.step for point in part])
    for name in ("loss", "error"):
        slope, constant = np.polyfit(x, np.log2([getattr(point, name) for point in part]), 1)
        assert getattr(curve, f"{name}_slope") == pytest.approx(-slope, rel=1e-12)
        height = slope * math.log2(length) + constant
        assert getattr(curve, name) == pytest.approx(height, rel=1e-12)


def test_octaves_by_hand():
    """Powers of two: lines through the points, and octaves that are read off."""
    points = [Point(s, 8 / s, 4 / s) for s in (4, 8, 16)]  # at 16: loss 2^-1, error 2^-2
    curve = Curve.fitted(points, 1e-3)
    assert (curve.loss_slope, curve.error_slope) == (pytest.approx(1), pytest.approx(1))
    allowed = 2**-6
    loss = -1 - math.log2(3.3) + 6  # 3.2776
    error = -2 + 6
    assert curve.heights(allowed) == (pytest.approx(error), pytest.approx(3.2775, abs=1e-4))
    assert curve.octaves(allowed) == pytest.approx((loss + error) / 2)


def test_octaves_end_at_six_and_at_zero():
    flat = Curve.fitted([Point(s, 1.0, 0.5) for s in (4, 8, 16)], 1e-3)
    assert flat.octaves(0.01) == 6  # slope 0 counts as 0.08, which is beyond
    rising = Curve.fitted([Point(s, 0.01 * s, 0.02) for s in (4, 8, 16)], 1e-3)
    assert rising.octaves(0.5) == 0  # below the target already
    slow = Curve.fitted([Point(s, 3.3 * 0.011, 0.011) for s in (4, 8, 16)], 1e-3)
    assert slow.octaves(0.01) == pytest.approx(math.log2(1.1) / 0.08)


def test_no_error_counts_as_half_a_sample():
    target = Target(1.0, 200)
    assert target.allowed == 0.5 / 200
    curve = Curve.fitted([Point(s, 0.1, 0.0) for s in (4, 8, 16)], target.least_error)
    assert curve.error == pytest.approx(math.log2(0.5 / 200))


MADE = Calibration(
    {
        0: Formula({"constant": 5.0, "probe": 2.0, "error": 0.25}, 0.6, 0.8),
        16: Formula({"constant": 4.5, "probe": 1.5, "octaves": 0.5}, 0.3, 0.4),
    },
    Formula({"constant": 0.1, "octaves": 0.9}, 0.5, 0.0),
    Formula({"constant": 0.2, "octaves": 0.8}, 0.5, 0.5),
    {0: {"constant": -1.0, "probe": 0.5}, 16: {"constant": -2.0, "loss_now": 0.7}},
    400,
    4.0,
    {},
)


def falling(length, octaves, target):
    """A curve with slopes of 1, so that the octaves left are the heights over the target."""
    loss, error = 3.3 * target.allowed * 2**octaves, target.allowed * 2**octaves
    steps = (length // 4, length // 2, length)
    points = [Point(s, loss * length / s, error * length / s) for s in steps]
    return Curve.fitted(points, target.least_error)


def test_formulas():
    target, before = Target(0.95, 1000), Before(0.2, 0.8, 0.4)
    # log2(probe error / allowed) = log2(0.2 / 0.05) = 2, log2(0.4 / 0.05) = 3
    found = estimate(target, before, None, MADE)
    assert found.log2_steps == pytest.approx(5 + 2 * 2 + 0.25 * 3)
    assert (found.sigma, found.formula) == (pytest.approx(1.0), "R0")
    assert found.extrapolated  # 860 steps
    found = estimate(target, before, falling(16, 3.0, target), MADE)
    assert found.log2_steps == pytest.approx(4.5 + 1.5 * 2 + 0.5 * 3)
    assert (found.sigma, found.formula) == (pytest.approx(0.5), "R16")
    assert found.extrapolated  # 512 steps, five octaves from 16
    found = estimate(target, before, falling(128, 3.0, target), MADE)
    assert found.log2_steps == pytest.approx(7 + 0.1 + 0.9 * 3)
    assert (found.sigma, found.formula) == (pytest.approx(0.5), "curve of 128 steps")
    assert not found.extrapolated  # three octaves from 128


def test_features_by_hand():
    target = Target(0.95, 1000)
    found = features(target, Before(0.1, 0.8, None), falling(16, 2.0, target))
    assert found == {
        "constant": 1.0,
        "probe": pytest.approx(1),
        "start": pytest.approx(4),
        "error": pytest.approx(4),  # nothing was adapted
        "octaves": pytest.approx(2),
        "error_now": pytest.approx(2),
        "loss_now": pytest.approx(2),
        "error_slope": pytest.approx(1),
        "loss_slope": pytest.approx(1),
    }
    assert set(features(target, Before(), None)) == {"constant"}


def test_without_a_linear_probe_the_curve_alone():
    target = Target(0.95, 1000)
    assert estimate(target, Before(), None, MADE) is None
    found = estimate(target, Before(), falling(16, 2.0, target), MADE)
    assert found.log2_steps == pytest.approx(4 + 0.2 + 0.8 * 2)
    assert found.formula == "curve of 16 steps"


def test_probability_of_missing_the_target():
    target, before = Target(0.95, 1000), Before(0.2)
    assert never_probability(target, before, None, MADE) == pytest.approx(0.5)  # -1 + 0.5 * 2
    assert never_probability(target, Before(), None, MADE) is None
    found = never_probability(target, Before(), falling(32, 3.0, target), MADE)
    assert found == pytest.approx(1 / (1 + math.exp(2 - 0.7 * 3)))


def test_runs_of_ones_own_move_a_formula_as_a_random_effect():
    """Posterior mean and deviation, worked out by hand: n = 4, within 0.6, between 0.8."""
    found = Formula({"constant": 1.0}, 0.6, 0.8).refitted([1.0, 1.2, 0.8, 1.0])
    share = 4 * 0.64 / (4 * 0.64 + 0.36)
    assert found.offset == pytest.approx(share)
    assert found.sigma == pytest.approx(math.sqrt(0.36 + 0.64 * 0.36 / (4 * 0.64 + 0.36)))
    assert found.value({"constant": 1.0}) == pytest.approx(1 + share)
    assert found.refitted([]) is found


def test_a_calibration_comes_back_from_json():
    assert Calibration.from_json(MADE.to_json()) == MADE
    for text in ("[]", "{}", MADE.to_json().replace("Calibration/1", "Calibration/9")):
        with pytest.raises(ValueError, match=r"calibration: expected what Calibration\.to_json"):
            Calibration.from_json(text)


def test_the_shipped_one_has_what_the_formulas_need():
    found = shipped()
    target, before = Target(0.9, 500), Before(0.15, 0.5, 0.3)
    for length in (0, 16, 32, 64):
        curve = falling(length, 2.0, target) if length else None
        assert 0 < estimate(target, before, curve).log2_steps < 15
        assert 0 < never_probability(target, before, curve) < 1
    assert found.formulas.keys() == {0, 16, 32}
    # The longer the probe, the narrower the interval.
    sigmas = [found.formulas[n].sigma for n in (0, 16, 32)] + [found.curve.sigma]
    assert sigmas == sorted(sigmas, reverse=True)


def test_probe_error_has_a_floor():
    assert Target(0.9, 1000).probe_octaves(0.0) == pytest.approx(math.log2(0.002 / 0.1))


def test_checks_as_retrain_has_them():
    checks = Checks.of({4, 7, 10}, 10)  # three an epoch of ten batches
    times = [4, 7, 10, 14, 17, 20, 24]
    for step in range(1, 25):
        assert checks.at_or_after(step) == next(t for t in times if t >= step)
        assert checks.until(step) == 1 + sum(t <= step for t in times)
    assert checks.at_or_after(0) == 4
    assert checks.at_or_after(10.2) == 14
    assert checks.until(0) == 1
