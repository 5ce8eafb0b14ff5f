"""CostModel: fit, predict, what is refused, and what its file keeps."""

import dataclasses
import json
import math

import numpy as np
import pytest
from helpers.study_runs import random_runs, study_run
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from resque_ext.cost_model import model as module
from resque_ext.cost_model.model import NEW_KIND, NEW_LEVEL, PREDICTED, ModelRun
from resque_ext.retraining import CostModel, Prediction, RecordError
from resque_ext.screening.results import PredictedCost

INDEX = "resque_dist_reestimated"
UNMETERED = "not known of the runs: gpu:0: no counter"


@pytest.fixture(scope="module")
def runs():
    return random_runs(np.random.default_rng(0), kinds=10, levels=3)


@pytest.fixture(scope="module")
def model(runs):
    return CostModel.fit(runs)


def at(value):
    return {INDEX: value}


# Values


def test_monotone_is_isotonic_regression_of_log_costs(runs, model):
    x = [run.predictors[INDEX] for run in runs]
    y = np.array([run.measures["epochs"] for run in runs])
    scale = np.median(y)
    expected = IsotonicRegression().fit(x, np.log1p(y / scale))
    for value in np.linspace(min(x), max(x), 30):
        found = model.predict(at(value))["epochs"].value
        assert found == pytest.approx(scale * np.expm1(expected.predict([value])[0]), rel=1e-9)


def test_log_linear_is_a_line_in_log_costs(runs):
    x = np.array([run.predictors[INDEX] for run in runs])
    y = np.array([run.measures["epochs"] for run in runs])
    line = np.polyfit(x, np.log1p(y / np.median(y)), 1)
    model = CostModel.fit(runs, measures=("epochs",), method="log-linear", penalty=0.0)
    for value in (0.2, 0.5, 0.8):
        expected = np.median(y) * np.expm1(np.polyval(line, value))
        assert model.predict(at(value))["epochs"].value == pytest.approx(expected, rel=1e-9)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([np.inf, 2.0]))
def test_monotone_and_inside_its_interval(seed, limit):
    rng = np.random.default_rng(seed)
    model = CostModel.fit(random_runs(rng, 5, 3, limit=limit), measures=("epochs",), coverage=0.8)
    low, high = model.ranges[INDEX]
    found = [model.predict(at(v))["epochs"] for v in np.linspace(low, high, 12)]
    values = [each.value for each in found]
    assert values == sorted(values)
    for each in found:
        assert 0 <= each.low <= each.value <= (math.inf if each.high is None else each.high)


def test_the_unit_of_a_cost_makes_no_difference(model):
    found = model.predict(at(0.6))
    for measure, factor in (("seconds", 2.0), ("joules", 100.0), ("parameter_change", 0.01)):
        for name in ("value", "low", "high"):
            expected = factor * getattr(found["epochs"], name)
            assert getattr(found[measure], name) == pytest.approx(expected, rel=1e-9)
    assert {name: each.unit for name, each in found.items()} == {
        "epochs": "epochs",
        "gradient_norm_sum": "",
        "parameter_change": "",
        "seconds": "s",
        "joules": "J",
        "joules_estimated": "J",
        "kg_co2": "kg CO2e",
        "kg_co2_estimated": "kg CO2e",
        "kwh": "kWh",
        "kwh_estimated": "kWh",
    }


def test_what_an_interval_is_for(model):
    known, new = model.predict(at(0.5), kind="kind3"), model.predict(at(0.5))
    other = model.predict(at(0.5), kind="fog")
    assert other == new
    assert known["epochs"].basis == NEW_LEVEL
    assert new["epochs"].basis == NEW_KIND
    assert known["epochs"].value == new["epochs"].value
    assert (known["epochs"].low, known["epochs"].high) != (new["epochs"].low, new["epochs"].high)
    assert (new["epochs"].coverage, new["epochs"].guarantee) == (0.9, pytest.approx(0.8))
    wide, narrow = (model.predict(at(0.5), coverage=c)["epochs"] for c in (0.9, 0.5))
    assert narrow.high < wide.high
    assert (narrow.coverage, narrow.guarantee) == (0.5, 0.0)


def test_too_few_kinds_give_no_upper_end(runs):
    model = CostModel.fit([run for run in runs if run.kind in ("kind0", "kind1", "kind2")])
    new = model.predict(at(0.5))["epochs"]
    assert (new.low, new.high) == (0, None)
    assert new.reason == "a coverage of 0.9 needs 9 kinds of shift, found 3"
    assert model.predict(at(0.5), kind="kind0")["epochs"].high is not None
    one = CostModel.fit(runs[:2]).predict(runs[0].predictors, kind="kind0")["epochs"]
    assert one.reason == "a coverage of 0.9 needs 9 runs, found 2"
    assert one.high is None


def test_a_prediction_fills_what_a_screening_keeps(model):
    found = model.predict(at(0.5))["epochs"]
    names = [field.name for field in dataclasses.fields(PredictedCost)]
    assert {name for name in names if not hasattr(found, name)} == set()
    assert PredictedCost(**{name: getattr(found, name) for name in names}).high == found.high
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["value"] == found.value


# Censored runs


def test_a_censored_run_is_a_bound_and_no_value():
    known = [study_run(x, 10 * x, f"k{i}") for i, x in enumerate(np.linspace(0.1, 1, 10))]
    low = study_run(0.95, 2.0, "k1", censored=True)
    expected = CostModel.fit(known).predict(at(0.95))["epochs"].value
    assert CostModel.fit([*known, low]).predict(at(0.95))["epochs"].value == expected
    taken = CostModel.fit([*known, dataclasses.replace(low, cost=study_run(0.95, 2.0).cost)])
    assert taken.predict(at(0.95))["epochs"].value < expected - 2
    above = study_run(0.95, 40.0, "k1", censored=True)
    assert CostModel.fit([*known, above]).predict(at(0.95))["epochs"].value > expected + 2


@pytest.mark.parametrize("method", ["monotone", "log-linear"])
def test_where_runs_were_stopped_there_is_no_upper_end(method):
    rng = np.random.default_rng(3)
    runs = random_runs(rng, 12, 3, noise=0.1, limit=3.0)
    assert 3 < sum(run.censored for run in runs) < 15
    model = CostModel.fit(runs, method=method)
    low, high = model.predict(at(0.3))["epochs"], model.predict(at(model.ranges[INDEX][1]))
    assert low.high < 3
    assert not low.at_least
    assert low.reason is None
    assert high["epochs"].at_least
    for name in ("epochs", "joules", "kwh", "kg_co2"):
        assert high[name].high is None
        assert "stopped short" in high[name].reason
        assert high[name].low > 0


# What is not known


def test_an_unmetered_study_predicts_no_joules():
    runs = [study_run(x, 10 * x, f"k{i}", joules=None) for i, x in enumerate((0.1, 0.5, 0.9))]
    found = CostModel.fit(runs).predict(at(0.5))
    for name in ("joules", "kwh", "joules_estimated", "kg_co2"):
        each = found[name]
        assert (each.value, each.low, each.high) == (None, None, None)
        assert each.reason == UNMETERED
    assert found["epochs"].value == pytest.approx(5)
    assert found["kg_co2"].unit == "kg CO2e"


def test_runs_without_a_step_cost_nothing_unless_nothing_was_metered():
    def free(x):
        return study_run(x, 0.0, steps=0, joules=None)

    metered = [study_run(x, 10 * x, f"k{x}") for x in (0.3, 0.5, 0.9)]
    model = CostModel.fit([free(0.1), free(0.2), *metered])
    found = model.predict(at(0.1))
    for name in ("epochs", "joules", "gradient_norm_sum", "seconds"):
        assert found[name].value == 0
    # Zeros alone do not show that there is a meter.
    bare = [study_run(x, 10 * x, joules=None) for x in (0.3, 0.9)]
    found = CostModel.fit([free(0.1), free(0.2), *bare]).predict(at(0.1))
    assert (found["joules"].value, found["joules"].reason) == (None, UNMETERED)
    nothing = study_run(0.15, 0.0, steps=0, joules=0.0)  # the figure of a window of no length
    assert CostModel.fit([nothing, *bare]).predict(at(0.3))["joules"].reason == UNMETERED
    # And a gradient norm per step is of no step.
    found = CostModel.fit([free(0.1), *metered[:1]], measures=("epochs", "gradient_norm_mean"))
    reason = found.predict(at(0.1))["gradient_norm_mean"].reason
    assert reason == "known of 1 runs that reached their target, which is too few"


# Outside the range


@pytest.mark.parametrize("method", ["monotone", "log-linear"])
def test_extrapolation_is_refused_or_said(runs, method):
    model = CostModel.fit(runs, method=method)
    (low, high), beyond = model.ranges[INDEX], {}
    with pytest.raises(ValueError, match=rf"{INDEX}: expected .* as in the runs, found 1.5"):
        model.predict(at(1.5))
    with pytest.raises(ValueError, match="as in the runs"):
        model.predict(at(np.nextafter(low, -1)))
    for how in ("clamp", "flag"):
        found = model.predict(at(1.5), extrapolate=how)
        assert all(each.extrapolated and each.guarantee is None for each in found.values())
        beyond[how] = found["epochs"].value
        inside = model.predict(at(high), extrapolate=how)["epochs"]
        assert not inside.extrapolated
    assert beyond["clamp"] == inside.value
    assert (beyond["flag"] > inside.value) is (method == "log-linear")


def test_every_predictor_has_its_range():
    rng = np.random.default_rng(0)
    runs = [
        study_run(0, 5 * a + b, f"k{i % 3}", predictors={"a": a, "b": b, "c": 0.0})
        for i, (a, b) in enumerate(rng.random((20, 2)))
    ]
    for method in ("monotone", "log-linear"):
        model = CostModel.fit(runs, ("a", "b"), ("epochs",), method)
        found = [model.predict({"a": a, "b": 0.5})["epochs"].value for a in (0.2, 0.5, 0.8)]
        assert found[0] < found[1] < found[2]
        with pytest.raises(ValueError, match=r"^b: expected"):
            model.predict({"a": 0.5, "b": 7.0})


# Files


@pytest.mark.parametrize("method", ["monotone", "log-linear"])
def test_a_file_predicts_the_same_to_the_bit(tmp_path, method):
    rng = np.random.default_rng(5)
    runs = random_runs(rng, 10, 3, limit=3.0)
    model = CostModel.fit(runs, method=method, coverage=0.85, penalty=0.02)
    path = tmp_path / "model.json"
    model.save(path)
    loaded = CostModel.load(path)
    assert loaded.to_json() == model.to_json() == CostModel.from_json(model.to_json()).to_json()
    for value in np.linspace(*model.ranges[INDEX], 7):
        for kind in (None, "kind1"):
            assert loaded.predict(at(value), kind=kind) == model.predict(at(value), kind=kind)
    assert [p.name for p in tmp_path.iterdir()] == ["model.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path, model, monkeypatch):
    path = tmp_path / "model.json"
    path.write_text("old")

    def full(_):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        model.save(path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["model.json"]


def test_a_reader_has_the_old_file_or_the_new_one(tmp_path, model):
    path = tmp_path / "model.json"
    path.write_text("old")
    with path.open() as reader:
        model.save(path)
        assert reader.read() == "old"
    assert CostModel.load(path).to_json() == model.to_json()


def test_unknown_measures_survive_the_file():
    runs = [study_run(x, 10 * x, f"k{i}", joules=None) for i, x in enumerate((0.1, 0.5, 0.9))]
    again = CostModel.from_json(CostModel.fit(runs).to_json())
    assert again.predict(at(0.5))["joules"].reason == UNMETERED


def damaged(values, how):
    """The model's JSON, broken in one way."""
    run = values["runs"][0]
    changes = {
        "format": lambda: values.update(format="resque_ext.CostModel/2"),
        "no key": lambda: values.pop("method"),
        "new key": lambda: values.update(more=1),
        "method": lambda: values.update(method="forest"),
        "coverage": lambda: values.update(coverage=1.5),
        "penalty": lambda: values.update(penalty=-1),
        "predictors": lambda: values.update(predictors=[]),
        "predictor name": lambda: values.update(predictors=[3]),
        "measures": lambda: values.update(measures=["epochs"]),
        "unknown": lambda: values.update(unknown=["epochs"]),
        "unknown name": lambda: values.update(unknown={"cost": "no"}),
        "device": lambda: values.update(device=3),
        "samples": lambda: values.update(samples_per_epoch=0),
        "runs": lambda: values.update(runs={"a": 1}),
        "no runs": lambda: values.update(runs=[]),
        "run": lambda: values["runs"].append(7),
        "run key": lambda: run.pop("kind"),
        "run kind": lambda: run.update(kind=None),
        "run level": lambda: run.update(level="x"),
        "run censored": lambda: run.update(censored=1),
        "run predictors": lambda: run.update(predictors=[0.1, 0.2]),
        "run predictor": lambda: run.update(predictors=[float("nan")]),
        "text predictor": lambda: run.update(predictors=["0.3"]),
        "huge predictor": lambda: run.update(predictors=[10**400]),
        "run costs": lambda: run["costs"].pop("epochs"),
        "run cost": lambda: run["costs"].update(epochs=-1),
        "list cost": lambda: run["costs"].update(epochs=[1]),
        "infinite cost": lambda: run["costs"].update(epochs=float("inf")),
        "all unknown": lambda: [r["costs"].update(joules=None) for r in values["runs"]],
        "all censored": lambda: [r.update(censored=True) for r in values["runs"]],
    }
    if how is None:
        return list(changes)
    changes[how]()
    return json.dumps(values)


@pytest.mark.parametrize("how", damaged({"runs": [{}]}, None))
def test_a_damaged_model_is_one_clear_error(tmp_path, model, how):
    path = tmp_path / "model.json"
    path.write_text(damaged(json.loads(model.to_json()), how))
    with pytest.raises(RecordError) as caught:
        CostModel.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: model: expected ")
    assert "found" in message or "differs" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1]", b"null", b"\x80\x04.", b"\xff\xfe", b"PK\x03\x04", b"[" * 100_000],
)
def test_a_foreign_file_is_one_clear_error(tmp_path, content):
    path = tmp_path / "model.json"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=r"model\.json: .*(expected|decode)"):
        CostModel.load(path)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_cut_file_is_never_a_model(data):
    runs = [study_run(x, 10 * x, f"k{i}") for i, x in enumerate((0.1, 0.5, 0.9))]
    text = CostModel.fit(runs).to_json()
    cut = data.draw(st.integers(0, len(text) - 1))
    with pytest.raises(RecordError):
        CostModel.from_json(text[:cut])


def test_no_file_is_an_os_error(tmp_path, model):
    with pytest.raises(ValueError, match="expected a cost model in a file, found a directory"):
        CostModel.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no\.json: expected a cost model, found no such"):
        CostModel.load(tmp_path / "no.json")
    with pytest.raises(OSError, match="No such file"):
        model.save(tmp_path / "no" / "model.json")


# Bad input


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"predictors": ()}, ValueError, "predictors: expected at least one"),
        ({"predictors": INDEX}, TypeError, "predictors: expected a sequence of names"),
        ({"predictors": (INDEX, INDEX)}, ValueError, "predictors: expected at least one, each"),
        ({"predictors": ("arm",)}, ValueError, "runs: expected 'arm' in every run, found none"),
        ({"measures": ("euros",)}, ValueError, "measures: expected some of"),
        ({"measures": ()}, ValueError, "measures: expected at least one"),
        ({"measures": "epochs"}, TypeError, "measures: expected a sequence"),
        ({"method": "forest"}, ValueError, "method: expected one of"),
        ({"coverage": 1.0}, ValueError, "coverage: expected 0.5 <= coverage < 1, found 1.0"),
        ({"coverage": 0.4}, ValueError, "coverage: expected 0.5"),
        ({"coverage": math.nan}, ValueError, "coverage: expected a finite number"),
        ({"coverage": "0.9"}, TypeError, "coverage: expected a number"),
        ({"penalty": -1.0}, ValueError, "penalty: expected a number from 0"),
        ({"missing": "drop"}, ValueError, "missing: expected one of"),
    ],
)
def test_fit_refuses(runs, arguments, error, message):
    with pytest.raises(error, match=f"^{message}"):
        CostModel.fit(runs, **arguments)


def test_fit_refuses_runs(runs):
    with pytest.raises(TypeError, match=r"^runs: expected StudyRuns, found dict among them"):
        CostModel.fit([{}])
    with pytest.raises(ValueError, match=r"^runs: expected at least 2 .* found 0 of 0"):
        CostModel.fit([])
    censored = [study_run(0.1, 1.0), study_run(0.2, 6.0, censored=True)]
    with pytest.raises(ValueError, match=r"^runs: expected at least 2 .* found 1 of 2"):
        CostModel.fit(censored)
    nan = study_run(math.nan, 1.0, "blur", 2.0)
    with pytest.raises(ValueError, match=rf"^runs: blur 2: {INDEX}: expected a finite number"):
        CostModel.fit([*runs, nan])
    for more in ({"samples_per_epoch": 7}, {"device": "CPU"}):
        with pytest.raises(ValueError, match=r"^runs: expected one .*: fit a model of each"):
            CostModel.fit([*runs, study_run(0.5, 1.0, **more)])
        mixed = CostModel.fit([*runs, study_run(0.5, 1.0, **more)], measures=("epochs",))
        assert mixed.predict(at(0.5))["epochs"].value > 0


def test_a_missing_predictor_is_refused_or_skipped(runs):
    lacking = study_run(0, 1.0, "fog", 3.0, predictors={INDEX: None}, reasons={INDEX: "no class"})
    with pytest.raises(ValueError, match=r"found none in that of fog 3 \(no class\)$"):
        CostModel.fit([*runs, lacking])
    skipped = CostModel.fit([*runs, lacking], missing="skip")
    assert skipped.to_json() == CostModel.fit(runs).to_json()


@pytest.mark.parametrize(
    ("values", "arguments", "error", "message"),
    [
        ({}, {}, KeyError, "values: expected 'resque_dist_reestimated'"),
        ({"arm": 1.0}, {}, KeyError, "values: expected"),
        (0.5, {}, TypeError, "values: expected a dict of predictors"),
        (at(None), {}, TypeError, f"{INDEX}: expected a number, found None"),
        (at("0.5"), {}, TypeError, f"{INDEX}: expected a number"),
        (at(True), {}, TypeError, f"{INDEX}: expected a number"),
        (at(math.nan), {}, ValueError, f"{INDEX}: expected a finite number, found nan"),
        (at(math.nan), {"extrapolate": "clamp"}, ValueError, f"{INDEX}: expected a finite"),
        (at(math.inf), {"extrapolate": "flag"}, ValueError, f"{INDEX}: expected a finite"),
        (at(0.5), {"extrapolate": "yes"}, ValueError, "extrapolate: expected one of"),
        (at(0.5), {"coverage": 2}, ValueError, "coverage: expected 0.5"),
        (at(0.5), {"kind": 3}, TypeError, "kind: expected a name or None"),
    ],
)
def test_predict_refuses(model, values, arguments, error, message):
    with pytest.raises(error) as caught:
        model.predict(values, **arguments)
    assert str(caught.value.args[0]).startswith(message)


def test_one_measure_alone(model):
    for how in ({}, {"kind": "kind3", "coverage": 0.7}):
        expected = model.predict(at(0.4), **how)["seconds"]
        assert model.predict_one("seconds", at(0.4), **how) == expected
    with pytest.raises(ValueError, match=r"^measure: expected one of .* found 'kwh'"):
        model.predict_one("kwh", at(0.4))


def test_a_model_of_costs_measured_elsewhere(model):
    assert CostModel(model.runs, [INDEX], PREDICTED).predict(at(0.5)) == model.predict(at(0.5))
    with pytest.raises(TypeError, match=r"^runs: expected ModelRun, found tuple"):
        CostModel([()], [INDEX], ["epochs"])
    rows = [ModelRun("a", np.int64(1), (np.float32(x),), {"epochs": x}, False) for x in (0.25, 1)]
    assert CostModel.from_json(CostModel(rows, ["b"], ["epochs"]).to_json()).runs[1].level == 1


def test_predict_takes_numpy_numbers_and_other_names(model):
    expected = model.predict(at(0.5))
    assert model.predict(at(np.float64(0.5)) | {"other": None}) == expected
    assert isinstance(expected["epochs"], Prediction)
    assert set(expected) == {*PREDICTED, "kwh", "kwh_estimated"}
    assert repr(model) == f"CostModel(monotone, {INDEX}; 30 runs of 10 kinds)"


def test_runs_that_all_began_at_their_target_cost_nothing():
    free = [study_run(x, 0.0, f"k{x}", steps=0, joules=None) for x in (0.1, 0.2, 0.3)]
    found = CostModel.fit(free).predict(at(0.2))
    for name in ("epochs", "seconds", "parameter_change", "gradient_norm_sum"):
        assert (found[name].value, found[name].low) == (0, 0)
    reason = "not known of the runs: none took a step, so nothing was metered"
    assert (found["joules"].value, found["joules"].reason) == (None, reason)


def test_a_kind_without_a_measure_is_a_new_one_to_it():
    short = [study_run(x, x, "short", joules=None) for x in (0.2, 0.4)]
    metered = [study_run(x, 10 * x, f"k{x}") for x in (0.1, 0.3, 0.5, 0.9)]
    found = CostModel.fit([*short, *metered]).predict(at(0.3), kind="short", coverage=0.6)
    assert found["epochs"].basis == "a new level of a known kind"
    assert found["joules"].basis == "a new kind of shift"
    again = CostModel.fit([*short, *metered]).predict(at(0.3), coverage=0.6)
    assert found["joules"] == again["joules"]


def test_costs_of_censored_runs_alone_make_no_measure():
    runs = [study_run(x, 10 * x, joules=None) for x in (0.1, 0.3)]
    runs += [study_run(0.5, 5.0), study_run(0.7, 6.0, censored=True)]
    found = CostModel.fit(runs).predict(at(0.3))
    assert found["epochs"].value == pytest.approx(3)
    reason = "known of 1 runs that reached their target, which is too few"
    assert (found["joules"].value, found["joules"].reason) == (None, reason)


def test_an_end_on_the_wrong_side_of_the_value_is_moved_to_it(monkeypatch):
    # Three costs that no line meets: the fits without one of them are both above that of all.
    points = ((0.9, 2.5), (1.0, 1.5), (0.5, 8.5))
    runs = [study_run(x, y, f"k{x}") for x, y in points]
    model = CostModel.fit(runs, measures=("epochs",), method="log-linear", coverage=0.5)
    plain = model._curves_of("epochs").interval(np.array([0.9]), 0.5, known=False)
    found = model.predict(at(0.9))["epochs"]
    assert plain.low > found.value * 1.01
    assert (found.low, found.high) == (found.value, plain.high)
    below = module.Interval(0.5, found.value / 2, None)
    monkeypatch.setattr(module, "interval", lambda *_: below)
    found = model.predict(at(0.9))["epochs"]
    assert (found.low, found.high) == (0.5, found.value)
