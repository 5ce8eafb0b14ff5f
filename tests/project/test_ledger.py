"""The ledger of retrainings: its rows, what is read of them, and the constants that are of it."""

import importlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from resque_ext.retraining.calibration import shipped

FOLDER = Path(__file__).parents[2] / "benchmarks"
NAMES = ("ledger", "ledger_board", "ledger_cases", "ledger_fit", "ledger_measure")
OTHERS = ("ledger_settings", "better_index", "shifted_settings", "real_text")


@pytest.fixture
def load(monkeypatch):
    """Imports benchmarks, which are no package, and forgets them."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module
    for name in (*NAMES, *OTHERS):
        sys.modules.pop(name, None)


@pytest.fixture
def rows(load):
    return load("ledger").read()


def row(hits, points=(), **more):
    """A run of ten steps an epoch, with two checks in each, on 100 test samples."""
    return {
        "setting": "a",
        "sort": "net",
        "role": "development",
        "kind_role": "judge",
        "recipe": "adam-1e-3",
        "targets": [0.9, 0.5],
        "hits": hits,
        "test_samples": 100,
        "check_batches": [5, 10],
        "steps_per_epoch": 10,
        "points": [list(p) for p in points],
        "linear_probe_error": 0.2,
        "start_accuracy": hits[0] / 100,
        "adapted_accuracy": None,
        "parameters": 7,
        "predictors": {"arm": 1.0, "log_me": -2.0},
    } | more


def test_costs_are_read_off_a_run(load):
    module = load("ledger_cases")
    high, low = module.cases([row([40, 45, 60, 80, 89, 90])])
    assert (high.steps, high.reached, low.steps, low.reached) == (25, True, 10, True)
    assert not high.missed
    high, low = module.cases([row([60, 70])])
    assert (high.steps, high.reached, high.missed) == (5, False, True)
    assert (low.steps, low.free) == (0, True)
    late = module.cases([row([0] * 41 + [95])])[0]
    assert (late.steps, late.reached, late.missed) == (205, True, True)  # after twenty epochs


def test_features_are_those_of_the_forecast(load):
    module = load("ledger_cases")
    points = [(0, 4.0, 0.6), (4, 2.0, 0.6), (8, 1.0, 0.55), (16, 0.5, 0.51)]
    high = module.cases([row([40] * 5 + [95], points)])[0]
    found = high.features(16)
    assert found["probe"] == pytest.approx(math.log2(0.2 / 0.1))
    assert found["start"] == found["error"] == pytest.approx(math.log2(0.6 / 0.1))
    assert found["loss_slope"] == pytest.approx(1.0)
    assert high.features(32) is None
    assert not high.met_by(16)
    assert module.open_cases([high], 16) == [(high, found)]
    assert module.cases([row([40, 95], points)])[0].met_by(16)


def test_orders_by_hand(load):
    board, module = load("ledger_board"), load("ledger_cases")
    cheap, dear, never = (
        module.cases([row(hits, predictors={"arm": arm})])[0]
        for hits, arm in (([40, 95], 1.0), ([40, 50, 95], 3.0), ([40, 50], 2.0))
    )
    spearman, within, everywhere = board.orders(board.index("arm"), [cheap, dear, never])
    assert spearman is None  # of three
    # cheap before dear: right; before never: right; dear before never: wrong. Never is at least 5.
    assert board.concordance([1.0, 3.0, 2.0], [cheap, dear, never]) == (1.0, 1)
    assert within == everywhere == 1.0
    falling = board.index("log_me")
    assert falling(module.cases([row([40])])[0]) == 2.0  # more is cheaper


def test_peers_by_other_means(load):
    """The H-score by its definition, LogME with its hyperparameters searched."""
    measure, rng = load("ledger_measure"), np.random.default_rng(0)
    x, y = rng.normal(size=(60, 4)), np.arange(60) % 3
    x += y[:, None] * np.array([1.0, 0.5, 0, 0])
    means = np.stack([x[y == k].mean(0) for k in range(3)])[y]
    expected = np.trace(np.linalg.inv(np.cov(x.T)) @ np.cov(means.T))
    assert measure.h_score(x, y) == pytest.approx(expected, rel=1e-6)
    best = []
    for k in range(3):
        t = (y == k).astype(float)

        def loss(logs, t=t):
            alpha, beta = np.exp(logs)
            a = alpha * np.eye(4) + beta * x.T @ x
            m = beta * np.linalg.solve(a, x.T @ t)
            value = 2 * math.log(alpha) + 30 * math.log(beta) - 30 * math.log(2 * math.pi)
            value -= beta / 2 * ((x @ m - t) ** 2).sum() + alpha / 2 * m @ m
            return -(value - 0.5 * np.linalg.slogdet(a)[1]) / 60

        best.append(-minimize(loss, [0.0, 0.0], method="Nelder-Mead", tol=1e-8).fun)
    assert measure.log_me(x, y) == pytest.approx(np.mean(best), abs=1e-6)


def test_the_file_has_what_is_said_of_it(rows, load):
    settings = load("ledger_settings")
    assert len(rows) == shipped().about["retrainings"]
    assert len({load("ledger").key(r) for r in rows}) == len(rows)
    assert len({r["setting"] for r in rows}) >= 12
    assert len({r["sort"] for r in rows}) >= 5
    assert len({r["kind"] for r in rows}) >= 20
    assert len({r["recipe"] for r in rows}) >= 3
    for r in rows:
        assert r["format"] == "resque_ext.LedgerRow/1"
        assert len(r["targets"]) == 2
        assert r["setting"] in settings.SETTINGS
        assert 0 <= min(r["hits"]) <= max(r["hits"]) <= r["test_samples"]
        assert r["start_accuracy"] == pytest.approx(r["hits"][0] / r["test_samples"], abs=5.1e-5)
    for case in load("ledger_cases").cases(rows):
        assert case.steps <= case.row["steps"]
    said = " ".join((FOLDER.parent / "docs" / "trust.md").read_text(encoding="utf-8").split())
    assert f"No run in the ledger has more than {max(r['steps'] for r in rows):,} steps" in said
    kept = shipped()
    assert f"beyond {kept.longest_steps} steps" in said
    assert f"beyond {2**kept.farthest_octaves:.0f} times the steps" in said
    about = f"{len(rows)} retrainings of {len({r['setting'] for r in rows})} small models, "
    assert about + f"{len({r['kind'] for r in rows})} kinds of shift" in said


@pytest.mark.full
def test_a_row_is_that_of_its_retraining(load, tmp_path):
    """Measured again: the costs are those of `retrain` to each target."""
    from resque_ext.retraining import retrain

    settings, measure = load("ledger_settings"), load("ledger_measure")
    index, cases = load("better_index"), load("ledger_cases")
    torch.set_num_threads(1)
    name = "cancer-mlp"
    shelf = measure.Shelf(name, settings.SETTINGS[name], None)
    case = ("swapped", 0.6)
    found = json.loads(json.dumps(shelf.row(case, "adam-1e-3", 0)))
    i = shelf.setting.cases.index(case)
    new, test = shelf.shifted(1, *case, 1000 + i), shelf.shifted(2, *case, 2000 + i)
    for each in cases.cases([found]):
        cost = retrain(
            shelf.model,
            index.Shuffled(new, shelf.setting.batch),
            index.batches(test),
            each.target.accuracy,
            shelf.setting.max_epochs,
            optimizer=settings.RECIPES["adam-1e-3"].optimizer,
            checks_per_epoch=shelf.setting.checks,
            meter=None,
        )
        assert (each.steps, each.reached) == (cost.steps, cost.reached)


@pytest.mark.full
def test_the_shipped_constants_are_fitted_to_it(rows, load):
    found, kept = load("ledger_fit").calibrated(rows), shipped()
    assert found.about == kept.about
    last = 0.002  # they are kept to three digits, and another BLAS ends the search elsewhere
    for length, formula in kept.formulas.items():
        assert formula.sigma == pytest.approx(found.formulas[length].sigma, abs=last)
        for name, weight in formula.weights.items():
            assert found.formulas[length].weights[name] == pytest.approx(weight, abs=last)
    for length, weights in kept.never.items():
        assert found.never[length] == pytest.approx(weights, abs=last)


@pytest.mark.full
@pytest.mark.parametrize("length", [0, 16, 32])
def test_intervals_cover_sorts_of_models_that_were_left_out(rows, load, length):
    """Constants and deviations of all other sorts; runs that reached their target."""
    fit, cases = load("ledger_fit"), load("ledger_cases")
    inside = []
    for sort in dict.fromkeys(r["sort"] for r in rows):
        others = fit.calibrated([r for r in rows if r["sort"] != sort])
        mine = cases.cases([r for r in rows if r["sort"] == sort])
        for case, _ in cases.open_cases(mine, length):
            if not case.missed:
                found = fit.predicted(others, case, length)
                inside.append(found["low"] <= case.steps <= found["high"])
    assert len(inside) > 100
    assert 0.85 <= np.mean(inside) <= 0.97, np.mean(inside)
