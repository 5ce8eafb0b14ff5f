"""The constants of the forecast, fitted to the ledger, and their error on models left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ledger_cases import LATER, PROBES, Case, Row, cases, open_cases
from scipy.optimize import minimize

from resque_ext.retraining.calibration import CONSTANT, Calibration, Formula, weighted

FILE = Path(__file__).parents[1] / "resque_ext" / "retraining" / "calibration.json"
# Chosen on the development settings and kinds.
FEATURES = {0: ("probe", "error"), 16: ("probe", "octaves"), 32: ("probe", "octaves")}
NEVER = {
    0: ("probe", "error", "start"),
    16: ("probe", "error_now", "loss_now", "error_slope", "loss_slope"),
}
NEVER |= dict.fromkeys((32, 64), NEVER[16])
SHORT = (16, 32)
RIDGE = 0.5
LEVEL, NORMAL = 0.9, 1.6448536  # sigmas are made so that this share of models left out is inside

Given = Sequence[tuple[Case, dict[str, float]]]
Weights = dict[str, float]


def _columns(given: Given, names: Sequence[str]) -> np.ndarray:
    return np.array([[1.0, *(f[name] for name in names)] for _, f in given])


def _shares(given: Given) -> np.ndarray:
    """Every model counts alike, however many runs it has; the mean is 1."""
    counts: dict[str, int] = {}
    for case, _ in given:
        counts[case.setting] = counts.get(case.setting, 0) + 1
    found = np.array([1 / math.sqrt(counts[case.setting]) for case, _ in given])
    return found / found.mean()


def fit_steps(given: Given, names: Sequence[str], base: Sequence[float]) -> Weights:
    """Of runs that reached their target: heavy-tailed residuals, nonnegative weights."""
    x, shares = _columns(given, names), _shares(given)
    y = np.array([math.log2(case.steps) for case, _ in given]) - np.asarray(base)

    def loss(p: np.ndarray) -> float:
        z = (y - x @ p[:-1]) / math.exp(p[-1])
        fit = (shares * 2.5 * np.log1p(z * z / 4)).sum() + len(y) * p[-1]
        return fit + RIDGE * (p[1:-1] ** 2).sum()

    begin = np.array([y.mean(), *[0.3] * len(names), 0.0])
    bounds = [(None, None), *[(0, None)] * len(names), (-2, 2)]
    found = minimize(loss, begin, bounds=bounds, method="L-BFGS-B").x[:-1]
    return dict(zip((CONSTANT, *names), map(float, found), strict=True))


def fit_never(given: Given, names: Sequence[str]) -> Weights:
    """Logistic regression with a ridge."""
    x, shares = _columns(given, names), _shares(given)
    y = np.array([float(case.missed) for case, _ in given])

    def loss(p: np.ndarray) -> float:
        q = x @ p
        return (shares * (np.logaddexp(0, q) - y * q)).sum() + 0.2 * (p[1:] ** 2).sum()

    found = minimize(loss, np.zeros(x.shape[1]), method="L-BFGS-B").x
    return dict(zip((CONSTANT, *names), map(float, found), strict=True))


def left_out(
    given: Given, base: Sequence[float], fit: Callable[[Given, Sequence[float]], Weights]
) -> np.ndarray:
    """log2(measured / forecast) of every run, by a fit without its sort of model."""
    residuals = np.zeros(len(given))
    sorts = [case.row["sort"] for case, _ in given]
    for sort in dict.fromkeys(sorts):
        others = [i for i, each in enumerate(sorts) if each != sort]
        weights = fit([given[i] for i in others], [base[i] for i in others])
        for i, each in enumerate(sorts):
            if each == sort:
                case, known = given[i]
                residuals[i] = math.log2(case.steps) - base[i] - weighted(weights, known)
    return residuals


def formula(given: Given, names: Sequence[str], base: Sequence[float]) -> Formula:
    """The weights of all runs, and deviations of models that were left out."""
    fit = lambda part, start: fit_steps(part, names, start)  # noqa: E731
    residuals = left_out(given, base, fit)
    models = [case.setting for case, _ in given]
    parts = [residuals[[m == model for m in models]] for model in dict.fromkeys(models)]
    means = np.array([part.mean() for part in parts])
    within = math.sqrt(np.mean([part.var(ddof=1) for part in parts if len(part) > 1]))
    noise = np.mean([within**2 / len(part) for part in parts])
    between = math.sqrt(max(float((means**2).mean() - noise), 0.01))
    # Tails are heavier than a normal's: both are scaled so that intervals cover.
    needed = float(np.quantile(np.abs(residuals), LEVEL)) / NORMAL
    scale = needed / math.hypot(within, between)
    return Formula(_rounded(fit(given, base)), round(within * scale, 3), round(between * scale, 3))


def _rounded(weights: Weights) -> Weights:
    return {name: round(weight, 3) for name, weight in weights.items()}


def calibrated(rows: list[Row]) -> Calibration:
    """The calibration of some rows."""
    found = cases(rows)
    formulas, longest, farthest = {}, 0, 0.0
    for length in PROBES:
        given = [(c, f) for c, f in open_cases(found, length) if not c.missed]
        formulas[length] = formula(given, FEATURES[length], [0.0] * len(given))
        longest = max(longest, *(case.steps for case, _ in given))
        if length:
            farthest = max(farthest, *(math.log2(c.steps / length) for c, _ in given))
    curves = {}
    for name, lengths in (("curve", LATER), ("short_curve", SHORT)):
        given, base = [], []
        for length in lengths:
            part = [(c, f) for c, f in open_cases(found, length) if c.reached]
            given += part
            base += [math.log2(length)] * len(part)
        curves[name] = formula(given, ("octaves",), base)
    never = {
        length: _rounded(fit_never(open_cases(found, length), names))
        for length, names in NEVER.items()
    }
    about = {
        "retrainings": len(rows),
        "settings": len({row["setting"] for row in rows}),
        "sorts": len({row["sort"] for row in rows}),
        "recipes": sorted({row["recipe"] for row in rows}),
    }
    return Calibration(
        formulas,
        **curves,
        never=never,
        longest_steps=longest,
        farthest_octaves=round(farthest, 1),
        about=about,
    )


def fit(rows: list[Row], write: bool) -> None:
    found = calibrated(rows)
    print(found.to_json())
    for name, each in (*found.formulas.items(), ("curve", found.curve)):
        print(f"{name}: sigma {each.sigma:.2f}")
    if write:
        FILE.write_text(found.to_json(), encoding="utf-8")


def predicted(calibration: Calibration, case: Case, length: int) -> dict[str, Any]:
    """What a forecast with a probe of so many steps says: log2 of steps, interval, probability."""
    from resque_ext.retraining.calibration import estimate, never_probability
    from resque_ext.retraining.target import Checks

    curve = case.curve(length)
    found = estimate(case.target, case.before, curve, calibration)
    assert found is not None
    never = never_probability(case.target, case.before, curve, calibration)
    checks = Checks.of(case.row["check_batches"], case.row["steps_per_epoch"])
    least = checks.at_or_after(length + 1)
    around = NORMAL * found.sigma
    value = max(2**found.log2_steps, least)
    return {
        "steps": value,
        "low": checks.at_or_after(max(2 ** (found.log2_steps - around), least)),
        "high": checks.at_or_after(max(2 ** (found.log2_steps + around), value + 1)),
        "never": never,
    }
