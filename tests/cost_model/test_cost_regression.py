"""The fits of a cost model, against scikit-learn, SciPy, and the loss that they are to minimise."""

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import Ridge

from resque_ext.cost_model.regression import Line, Steps, isotonic, regress, ridge


def draw(seed, rows, ties=False, bounds=0.0):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, max(2, rows // 3), rows) / 4.0 if ties else rng.random(rows)
    return x, 2 * x + rng.normal(size=rows), rng.random(rows) < bounds


def loss(fitted, y, bound):
    rest = y - fitted
    return float((np.where(bound, np.maximum(rest, 0), rest) ** 2).sum())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.booleans())
def test_isotonic_is_that_of_scikit_learn(seed, rows, ties):
    x, y, bound = draw(seed, rows, ties)
    knots, levels = isotonic(x, y, bound)
    at = np.linspace(x.min(), x.max(), 101)
    expected = IsotonicRegression(out_of_bounds="clip").fit(x, y)
    np.testing.assert_allclose(np.interp(at, knots, levels), expected.predict(at), atol=1e-12)


def imputed(x, y, bound):
    """Another way to the least loss: bounds become what the fit says above them, and again."""
    z = y.copy()
    for _ in range(3000):
        fitted = IsotonicRegression(out_of_bounds="clip").fit(x, z).predict(x)
        new = np.where(bound, np.maximum(y, fitted), y)
        if np.abs(new - z).max() < 1e-13:
            break
        z = new
    return fitted


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 15), st.booleans())
def test_isotonic_with_bounds_has_the_least_loss(seed, rows, ties):
    x, y, bound = draw(seed, rows, ties, bounds=0.4)
    bound[0] = False
    fitted = np.interp(x, *isotonic(x, y, bound))
    expected = imputed(x, y, bound)
    assert loss(fitted, y, bound) <= loss(expected, y, bound) + 1e-9
    np.testing.assert_allclose(fitted[~bound], expected[~bound], atol=1e-5)  # which are unique


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30))
def test_isotonic_rises_and_ignores_the_order_of_runs(seed, rows):
    x, y, bound = draw(seed, rows, ties=True, bounds=0.3)
    knots, levels = isotonic(x, y, bound)
    assert (np.diff(levels) >= 0).all()
    order = np.random.default_rng(seed).permutation(rows)
    again = isotonic(x[order], y[order], bound[order])
    assert (again[0] == knots).all()
    assert (again[1] == levels).all()


def test_isotonic_by_hand():
    x, y = np.array([1.0, 2.0, 3.0, 3.0]), np.array([5.0, 3.0, 1.0, 100.0])
    # The two runs at 3 are one, at their mean; those at 1 and 2 are out of order.
    knots, levels = isotonic(x, y, np.zeros(4, bool))
    assert (knots.tolist(), levels.tolist()) == ([1, 2, 3, 3], [4, 4, 50.5, 50.5])


@pytest.mark.parametrize(
    ("y", "bound", "levels"),
    [
        ([1, 6, 2], [0, 1, 0], [1, 4, 4]),  # the bound pulls the last run up
        ([1, 2, 6], [0, 1, 0], [1, 3.5, 6]),
        ([1, 6, 9], [0, 1, 0], [1, 6, 9]),  # and asks for nothing above it
        ([9, 6, 9], [0, 1, 0], [9, 9, 9]),  # as a value it would pull the fit down to 8
        ([9, 6, 6], [0, 1, 1], [9, 9, 9]),
        ([6, 7, 5], [1, 1, 1], [6, 7, 7]),
    ],
)
def test_bounds_by_hand(y, bound, levels):
    x = np.arange(3.0)
    found = np.interp(x, *isotonic(x, np.array(y, float), np.array(bound, bool)))
    assert found.tolist() == levels


@pytest.mark.parametrize("penalty", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("width", [1, 3])
def test_ridge_is_that_of_scikit_learn(penalty, width):
    rng = np.random.default_rng(3)
    x = rng.random((25, width)) * [1.0, 50.0, 1e-3][:width]
    y = rng.normal(size=25) + x[:, 0]
    spread, center = x.std(axis=0), x.mean(axis=0)
    expected = Ridge(alpha=penalty * 25).fit((x - center) / spread, y)
    found = ridge(x, y, np.zeros(25, bool), penalty)
    np.testing.assert_allclose(found.at(x), expected.predict((x - center) / spread), atol=1e-9)


@pytest.mark.parametrize("seed", range(12))
def test_ridge_with_bounds_has_the_least_loss(seed):
    rng = np.random.default_rng(seed)
    x = rng.random((30, 2))
    y = 3 * x[:, 0] + rng.normal(size=30)
    bound = rng.random(30) < 0.5
    z = (x - x.mean(0)) / x.std(0)

    def total(beta):
        return loss(beta[0] + z @ beta[1:], y, bound) + 0.3 * float(beta[1:] @ beta[1:])

    best = scipy.optimize.minimize(total, np.zeros(3), method="Nelder-Mead", tol=1e-12)
    line = ridge(x, y, bound, 0.01)
    weights = line.weights * x.std(0)
    found = np.array([line.intercept + line.weights @ x.mean(0), *weights])
    assert total(found) <= best.fun + 1e-9
    np.testing.assert_allclose(found, best.x, atol=1e-4)


def test_ridge_of_bounds_alone_and_of_a_constant_predictor():
    y = np.array([1.0, 3.0, 2.0])
    line = ridge(np.arange(3.0)[:, None], y, np.ones(3, bool), 0.01)
    assert (line.intercept, line.weights.tolist()) == (3, [0])
    line = ridge(np.ones((3, 1)), y, np.zeros(3, bool), 0.0)
    np.testing.assert_allclose(line.at(np.ones((2, 1))), 2.0)


def test_several_predictors_rise_each():
    rng = np.random.default_rng(0)
    x = rng.random((40, 3))
    y = 2 * x[:, 0] + x[:, 1] - 3 * x[:, 2] + 0.05 * rng.normal(size=40)
    fit = regress("monotone", x, y, np.zeros(40, bool), 0.01)
    assert isinstance(fit, Steps)
    assert (fit.weights[:2] > 0).all()
    assert fit.weights[2] == 0  # falls with it: left out
    assert isinstance(regress("log-linear", x, y, np.zeros(40, bool), 0.01), Line)
    at = rng.random((200, 3))
    for j in range(3):
        more = at.copy()
        more[:, j] += 0.3
        assert (fit.at(more) >= fit.at(at)).all()
    falling = regress("monotone", x[:, 2:].repeat(2, 1), y, np.zeros(40, bool), 0.01)
    np.testing.assert_allclose(falling.at(at[:, :2]), y.mean())  # nothing is left: the mean


def test_a_bound_below_its_block_holds_no_knot():
    # The bound at 2 asks for nothing, so the way up to the run at 3 begins at 1.
    x, y = np.arange(4.0), np.array([3.0, 1.0, 0.5, 5.0])
    knots, levels = isotonic(x, y, np.array([False, False, True, False]))
    assert (knots.tolist(), levels.tolist()) == ([0, 1, 3, 3], [2, 2, 5, 5])


def test_ridge_reaches_a_line_that_whole_steps_run_past():
    x = [[-6.6, -1.2], [2.1, 5.7], [0.1, -0.6], [-0.8, 0.7], [1.6, 0.3], [-1.2, -1.0], [1.6, 0.2]]
    y = np.array([-12.0, -2.0, 2.0, 0.0, -14.0, 10.0, 20.0])
    bound = np.array([True, False, True, True, True, True, True])
    line = ridge(np.array(x), y, bound, 0.0)
    assert loss(line.at(np.array(x)), y, bound) < 1e-12  # one run and six bounds: all can be met
