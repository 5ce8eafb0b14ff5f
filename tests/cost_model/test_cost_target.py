"""The target in cost models: what meets it costs nothing, and runs to several targets are one."""

import dataclasses
import math

import numpy as np
import pytest
from helpers.study_runs import random_runs, study_run

from resque_ext.cost_model import CostModel, leave_one_kind_out

INDEX = "resque_dist_reestimated"


@pytest.fixture
def model():
    return CostModel.fit(random_runs(np.random.default_rng(0)))


def test_a_target_that_is_met_costs_nothing(model):
    """Even where the index is high: this cost 1.6 epochs once."""
    assert model.target_accuracy == 0.9
    found = model.predict({INDEX: 0.9}, accuracy=0.9)
    assert {"epochs", "seconds", "joules", "kwh", "parameter_change"} <= set(found)
    for each in found.values():
        assert (each.value, each.low, each.high) == (0, 0, 0)
        assert each.basis == "the accuracy meets the target"
    below = model.predict({INDEX: 0.9}, accuracy=0.8999)["epochs"]
    assert below == model.predict({INDEX: 0.9})["epochs"]
    assert below.value > 0
    assert CostModel.from_json(model.to_json()).predict({INDEX: 0.9}, accuracy=0.95) == (
        model.predict({INDEX: 0.9}, accuracy=0.95)
    )


def test_models_without_a_target_go_on(model):
    """As files of before have none."""
    values = model.to_dict()
    del values["target_accuracy"], values["format"]
    old = CostModel(list(model.runs), **{k: v for k, v in values.items() if k != "runs"})
    assert old.target_accuracy is None
    assert old.predict({INDEX: 0.4}) == model.predict({INDEX: 0.4})
    with pytest.raises(ValueError, match="target_accuracy: expected one beside accuracy"):
        old.predict({INDEX: 0.4}, accuracy=0.9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accuracy": 1.2}, "accuracy: expected at most 1, found 1.2"),
        ({"accuracy": "x"}, "accuracy: expected a number, found 'x'"),
        ({"target_accuracy": 0.8}, r"target_accuracy: expected that of the runs, 0\.9, found 0\.8"),
    ],
)
def test_what_is_wrong_is_said(model, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        model.predict({INDEX: 0.4}, **options)


def runs_to(target, rng):
    """Runs that cost what the error over the allowed says."""
    found = []
    for kind in range(6):
        for level in range(3):
            error = 0.02 * 2 ** (5 * rng.random())
            epochs = 2 ** (math.log2(error / (1 - target)) + 1 + 0.05 * rng.normal())
            run = study_run(
                error,
                epochs,
                f"kind{kind}",
                level,
                predictors={
                    "linear_probe_error": error,
                    INDEX: error,
                },
            )
            found.append(
                dataclasses.replace(run, cost=dataclasses.replace(run.cost, target_accuracy=target))
            )
    return found


def test_runs_to_several_targets_are_of_one_model():
    rng = np.random.default_rng(1)
    runs = runs_to(0.9, rng) + runs_to(0.8, rng)
    with pytest.raises(ValueError, match="expected one model, target"):
        CostModel.fit(runs)
    model = CostModel.fit(runs, ("error_over_allowed",), ("epochs",), method="log-linear")
    assert model.target_accuracy is None
    # The same costs, as those of one target, with the ratio given as a predictor.
    ratios = [math.log2(run.predictors[INDEX] / (1 - run.cost.target_accuracy)) for run in runs]
    told = [
        dataclasses.replace(
            run,
            predictors={INDEX: ratio},
            cost=dataclasses.replace(run.cost, target_accuracy=0.9),
        )
        for run, ratio in zip(runs, ratios, strict=True)
    ]
    plain = CostModel.fit(told, (INDEX,), ("epochs",), method="log-linear")
    for error, target in ((0.2, 0.9), (0.2, 0.8), (0.3, 0.85)):
        found = model.predict({"linear_probe_error": error}, target_accuracy=target)["epochs"]
        ratio = math.log2(error / (1 - target))
        assert found.value == pytest.approx(plain.predict({INDEX: ratio})["epochs"].value, rel=1e-9)
        same = model.predict({"error_over_allowed": ratio})["epochs"]
        assert same.value == found.value
    met = model.predict({"linear_probe_error": 0.2}, target_accuracy=0.9, accuracy=0.93)
    assert met["epochs"].high == 0
    with pytest.raises(KeyError, match="expected 'error_over_allowed'"):
        model.predict({"linear_probe_error": 0.2})
    error = leave_one_kind_out(runs, ("error_over_allowed",))["epochs"].overall
    assert error.rank_correlation > 0.95
    # The same runs by the error alone: 0.2 is much or little, by the target.
    blind = leave_one_kind_out(runs, ("linear_probe_error",), mixed=True)["epochs"].overall
    assert blind.rank_correlation < error.rank_correlation - 0.05


def test_what_a_prediction_cannot_be_relied_on_for(model):
    found = model.predict({INDEX: 5.0}, extrapolate="flag")["epochs"]
    assert not found.reliable
    assert found.warnings[0] == "extrapolated: outside of what was measured"
    plain = found.to_dict()
    assert (plain["reliable"], plain["warnings"]) == (False, list(found.warnings))
    closed = model.predict({INDEX: 0.4}, coverage=0.7)["epochs"]
    assert (closed.high is not None, closed.reliable, closed.warnings) == (True, True, ())
    unknown = dataclasses.replace(closed, value=None, low=None, high=None, reason="no meter")
    assert (unknown.reliable, unknown.warnings) == (False, ())
