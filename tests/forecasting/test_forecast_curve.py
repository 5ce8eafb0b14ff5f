"""The pure parts of a forecast against values worked out by hand or by NumPy."""

import math

import numpy as np
import pytest

from resque_ext.retraining.calibration import FORMULAS, estimate
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
    assert curve.loss_octaves(allowed) == pytest.approx(3.2775, abs=1e-4)
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


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        # log2(probe error / allowed) = log2(0.2 / 0.05) = 2
        (0, 5.76 + 2.02 * 2),
        (16, 4.80 + 1.42 * 2 + 0.36 * 3.0),
        (32, 5.20 + 1.26 * 2 + 0.38 * 2.5),
    ],
)
def test_formulas(length, expected):
    """Curves with a slope of 1, so that the octaves are the heights over the target."""
    target, curve = Target(0.95, 1000), None
    if length:
        octaves = 3.0 if length == 16 else 2.5
        at_end = (3.3 * 0.05 * 2**octaves, 0.05 * 2**octaves)
        points = [
            Point(s, at_end[0] * length / s, at_end[1] * length / s)
            for s in (length // 4, length // 2, length)
        ]
        curve = Curve.fitted(points, target.least_error)
    found = estimate(target, 0.2, curve)
    assert found.log2_steps == pytest.approx(expected, rel=1e-9)
    assert found.sigma == FORMULAS[length].sigma
    assert found.formula == f"R{length}"


def test_without_a_linear_probe_the_curve_alone():
    target = Target(0.95, 1000)
    assert estimate(target, None, None) is None
    points = [Point(s, 3.3 * 0.05 * 4 * 16 / s, 0.05 * 4 * 16 / s) for s in (4, 8, 16)]
    curve = Curve.fitted(points, target.least_error)
    found = estimate(target, None, curve)
    assert found.log2_steps == pytest.approx(4 + 2)
    assert found.formula == "curve of 16 steps"


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
