"""leave_one_kind_out: each kind predicted from the others, against the same done by hand."""

import dataclasses
import json

import numpy as np
import pytest
import scipy.stats
from helpers.study_runs import random_runs, study_run

from resque_ext.cost_model import transfer
from resque_ext.retraining import CostModel, correlate, leave_one_kind_out

INDEX = "resque_dist_reestimated"


@pytest.mark.parametrize("method", ["monotone", "log-linear"])
def test_each_kind_is_predicted_by_a_model_of_the_others(method):
    runs = random_runs(np.random.default_rng(0), kinds=6, levels=4)
    found = leave_one_kind_out(runs, measures=("epochs", "joules"), method=method, coverage=0.7)
    assert list(found) == ["epochs", "joules"]
    for measure, each in found.items():
        predicted = {}
        for kind in dict.fromkeys(run.kind for run in runs):
            others = [run for run in runs if run.kind != kind]
            model = CostModel.fit(others, measures=(measure,), method=method, coverage=0.7)
            for i, run in enumerate(runs):
                if run.kind == kind:
                    one = model.predict(run.predictors, extrapolate="clamp")
                    predicted[i] = one[measure]
        assert each.predictions == predicted
        values = np.array([predicted[i].value for i in range(len(runs))])
        costs = np.array([run.measures[measure] for run in runs])
        overall = each.overall
        assert overall.runs == len(runs) == 24
        assert overall.mean_absolute_error == pytest.approx(np.abs(values - costs).mean())
        assert overall.bias == pytest.approx((values - costs).mean())
        rho = scipy.stats.spearmanr(values, costs).statistic
        assert overall.rank_correlation == pytest.approx(rho)
        inside = sum(predicted[i].low <= c <= predicted[i].high for i, c in enumerate(costs))
        assert (overall.covered, overall.missed) == (inside, 24 - inside)
        assert overall.coverage == inside / 24
        assert overall.extrapolated == sum(p.extrapolated for p in predicted.values()) > 0
        mine = each.kinds["kind2"]
        rows = slice(8, 12)
        assert mine.mean_absolute_error == pytest.approx(np.abs(values - costs)[rows].mean())
        assert mine.runs == 4
        assert len(each.kinds) == 6


def test_kinds_that_cost_alike_carry_over_and_others_do_not():
    rng = np.random.default_rng(1)
    alike = leave_one_kind_out(random_runs(rng, 8, 4, noise=0.05))["epochs"].overall
    assert alike.rank_correlation > 0.95
    apart = leave_one_kind_out(random_runs(rng, 8, 4, noise=0.05, of_kind=1.5))["epochs"].overall
    assert apart.rank_correlation < 0.9
    assert apart.mean_absolute_error > 3 * alike.mean_absolute_error


def test_censored_runs_by_hand():
    # Kind b, predicted from a, which costs ten times the index up to 9.
    a = [study_run(x, 10 * x, "a", x) for x in np.arange(0.1, 1.0, 0.1)]
    b = [
        study_run(0.2, 2.5, "b", 1),
        study_run(0.5, 6.0, "b", 2),
        study_run(0.4, 3.0, "b", 3, censored=True),  # predicted 4: nothing to say
        study_run(0.3, 8.0, "b", 4, censored=True),  # predicted 3: too low
    ]
    found = leave_one_kind_out([*a, *b])["epochs"].kinds["b"]
    assert (found.runs, found.censored) == (4, 2)
    assert found.mean_absolute_error == pytest.approx((0.5 + 1.0) / 2)  # known costs alone
    assert found.bias == pytest.approx(-0.75)
    assert found.rank_correlation is None  # of two
    # Known to cost less: 2.5 < 6, 2.5 < 3+, 2.5 < 8+, 6 < 8+; predicted 2 < 5, 2 < 4, 2 < 3, 5 > 3.
    assert found.concordance == pytest.approx(3 / 4)
    # One kind is left: no interval has an upper end, so all are inside for certain.
    assert (found.covered, found.missed, found.undecided, found.unbounded) == (4, 0, 0, 4)


def test_what_an_interval_says_of_a_censored_run():
    a = [study_run(x, 10 * x, f"a{i}", i) for i, x in enumerate(np.linspace(0.1, 0.9, 9))]
    b = [
        study_run(0.5, 0.5, "b", 1, censored=True),  # stopped below the interval
        study_run(0.5, 9.0, "b", 2, censored=True),  # above it: missed whatever it would cost
        study_run(0.5, 5.0, "b", 3),
        study_run(0.5, 0.1, "b", 4),
    ]
    found = leave_one_kind_out([*a, *b], coverage=0.6)["epochs"].kinds["b"]
    assert found.unbounded == 0
    assert (found.covered, found.missed, found.undecided) == (1, 2, 1)
    assert found.coverage == pytest.approx(1 / 3)


def test_concordance_is_half_for_a_constant_and_none_without_a_pair():
    flat = [study_run(0.5, c, k, c) for k in ("a", "b") for c in (1.0, 2.0, 3.0)]
    found = leave_one_kind_out(flat)["epochs"]
    assert found.overall.concordance == 0.5
    assert found.overall.rank_correlation is None
    one = [study_run(0.5, c, f"k{c}", c) for c in (1.0, 2.0, 3.0)]
    assert leave_one_kind_out(one)["epochs"].kinds["k1.0"].concordance is None


def test_what_is_left_out():
    runs = [study_run(x, 10 * x, f"k{i % 3}", joules=None) for i, x in enumerate((0.1, 0.4, 0.8))]
    assert list(leave_one_kind_out(runs, measures=("epochs", "joules"))) == ["epochs"]
    # Without kind a only one run has reached its target: nothing predicts a.
    few = [
        study_run(0.1, 1.0, "a"),
        study_run(0.2, 2.0, "a"),
        study_run(0.3, 3.0, "b"),
        study_run(0.9, 6.0, "b", censored=True),
    ]
    assert list(leave_one_kind_out(few)["epochs"].kinds) == ["b"]
    lacking = study_run(0, 1.0, "fog", predictors={INDEX: None})
    with pytest.raises(ValueError, match=r"found none in that of fog"):
        leave_one_kind_out([*runs, lacking])
    skipped = leave_one_kind_out([*runs, lacking], missing="skip")
    assert skipped["epochs"].predictions == leave_one_kind_out(runs)["epochs"].predictions


def test_plain_values():
    runs = random_runs(np.random.default_rng(0), 4, 3, limit=2.0)
    values = leave_one_kind_out(runs)["epochs"].to_dict()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert values["unit"] == "epochs"
    assert set(values["kinds"]) == {"kind0", "kind1", "kind2", "kind3"}
    assert values["overall"]["kind"] == "all"
    assert 0 <= values["overall"]["coverage"] <= 1


def test_refused():
    one = [study_run(x, 10 * x) for x in (0.1, 0.2)]
    with pytest.raises(ValueError, match=r"^runs: expected at least 2 kinds of shift, found \['ga"):
        leave_one_kind_out(one)
    with pytest.raises(TypeError, match=r"^runs: expected StudyRun"):
        leave_one_kind_out([1, 2])
    two = [*one, study_run(0.3, 3.0, "blur")]
    with pytest.raises(ValueError, match=r"^method: expected one of"):
        leave_one_kind_out(two, method="forest")
    with pytest.raises(ValueError, match=r"^measures: expected some of"):
        leave_one_kind_out(two, measures=("euros",))


def prediction(value, low, high):
    unknown = CostModel.fit([study_run(x, x) for x in (0.1, 0.9)]).predict({INDEX: 0.5})["epochs"]
    return dataclasses.replace(unknown, value=value, low=low, high=high)


def test_which_side_of_an_interval_is_known():
    runs = [
        study_run(0, 1.0, censored=True),  # below an interval without an upper end: undecided
        study_run(0, 3.0, censored=True),  # inside it, and any cost above is
        study_run(0, 1.0),
        study_run(0, 9.0),
    ]
    found = transfer._errors("a", "epochs", runs, {i: prediction(4.0, 2.0, None) for i in range(4)})
    assert (found.covered, found.missed, found.undecided, found.unbounded) == (2, 1, 1, 4)


def test_a_run_stopped_at_a_cost_is_dearer_than_one_that_reached_at_it():
    runs = [study_run(0, 2.0), study_run(0, 2.0, censored=True), study_run(0, 2.0)]
    values = dict(enumerate((1.0, 3.0, 5.0)))
    found = transfer._errors(
        "a", "epochs", runs, {i: prediction(v, 0, 9) for i, v in values.items()}
    )
    assert found.concordance == 0.5  # 1 before 3 is right, 5 before 3 is not


def test_runs_without_a_step_are_compared_as_they_are_fitted():
    """They cost nothing, though their meter has no figure."""
    runs = [study_run(x, 10 * x, f"k{i % 3}") for i, x in enumerate((0.2, 0.4, 0.6, 0.8))]
    free = study_run(0.1, 0.0, "k0", steps=0, joules=None)
    unmetered = study_run(0.5, 5.0, "k1", joules=None)
    found = leave_one_kind_out([*runs, free, unmetered], measures=("joules",))["joules"]
    assert set(found.predictions) == {0, 1, 2, 3, 4}
    assert found.kinds["k0"].runs == 3


@pytest.mark.parametrize("given", [None, study_run(0.1, 1.0), "study.jsonl", [1]])
def test_runs_that_are_none(given):
    for use in (leave_one_kind_out, CostModel.fit, correlate):
        with pytest.raises(TypeError, match=r"^runs: expected StudyRuns,.* found "):
            use(given)
