"""Predictions carried over to other data set sizes, devices and grids, by hand."""

import math

import pytest
from helpers.study_runs import study_run

from resque_ext.retraining import CostModel

INDEX = "resque_dist_reestimated"
VALUES = {INDEX: 0.5}
# At 0.5: 5 epochs of 1,000 samples, 10 s, 500 J, 400 g CO2e a kWh.
EPOCHS, SECONDS, JOULES = 5.0, 10.0, 500.0
KG = JOULES / 3.6e6 * 0.4


def runs(joules="auto", **more):
    return [
        study_run(x, 10 * x, f"k{i}", joules=joules, **more)
        for i, x in enumerate((0.1, 0.3, 0.5, 0.7, 0.9))
    ]


@pytest.fixture
def model():
    return CostModel.fit(runs(), coverage=0.6)


def values(found):
    return {name: each.value for name, each in found.items()}


def test_as_in_the_runs(model):
    found = model.predict(VALUES)
    assert values(found) == pytest.approx(
        {
            "epochs": EPOCHS,
            "gradient_norm_sum": 50.0,
            "parameter_change": 0.05,
            "seconds": SECONDS,
            "joules": JOULES,
            "joules_estimated": JOULES,
            "kg_co2": KG,
            "kg_co2_estimated": KG,
            "kwh": JOULES / 3.6e6,
            "kwh_estimated": JOULES / 3.6e6,
        }
    )
    assert all(each.notes == () for each in found.values())
    same = model.predict(VALUES, samples_per_epoch=1000, device="H100")
    assert same == found


def test_to_another_number_of_samples(model):
    plain = model.predict(VALUES)
    found = model.predict(VALUES, samples_per_epoch=3000)
    assert found["epochs"] == plain["epochs"]
    for name in ("seconds", "joules", "joules_estimated", "kg_co2", "kwh", "kwh_estimated"):
        for part in ("value", "low", "high"):
            expected = 3 * getattr(plain[name], part)
            assert getattr(found[name], part) == pytest.approx(expected, rel=1e-12)
        assert found[name].notes == ("times 3000/1000 samples an epoch, epochs unchanged",)
    for name in ("gradient_norm_sum", "parameter_change"):
        assert found[name].value is None
        assert found[name].reason == "no rule carries it from 1000 to 3000 samples an epoch"


def test_to_another_device(model):
    with pytest.raises(ValueError, match=r"device: expected 'H100', .* 'A100': .* energy_factor="):
        model.predict(VALUES, device="A100")
    found = model.predict(VALUES, device="A100", energy_factor=1.5)
    assert found["epochs"].value == pytest.approx(EPOCHS)
    assert found["parameter_change"].value == pytest.approx(0.05)
    assert found["joules"].value == pytest.approx(1.5 * JOULES)
    assert found["joules"].notes == ("times energy_factor 1.5",)
    assert found["kwh"].value == pytest.approx(1.5 * JOULES / 3.6e6)
    assert found["seconds"].value is None
    assert found["seconds"].reason == "not known of 'A100' without seconds_factor"
    assert found["kg_co2"].value is None
    assert found["kg_co2"].reason == "not known of another device without carbon_intensity"
    found = model.predict(VALUES, device="A100", seconds_factor=2.0)
    assert found["seconds"].value == pytest.approx(2 * SECONDS)
    for name in ("joules", "kwh", "kg_co2", "joules_estimated"):
        assert found[name].value is None
        assert found[name].low is None
    assert found["joules"].reason == "not known of 'A100' without energy_factor"


def test_everything_at_once(model):
    found = model.predict(
        VALUES,
        samples_per_epoch=2000,
        device="A100",
        energy_factor=1.5,
        seconds_factor=0.5,
        carbon_intensity=50.0,
    )
    assert found["seconds"].value == pytest.approx(SECONDS * 2 * 0.5)
    assert found["joules"].value == pytest.approx(JOULES * 2 * 1.5)
    assert found["kg_co2"].value == pytest.approx(JOULES * 3 / 3.6e6 * 0.050)


def test_by_joules_per_sample(model):
    found = model.predict(VALUES, device="A100", joules_per_sample=0.2)
    assert found["joules"].value == pytest.approx(EPOCHS * 1000 * 0.2)
    assert found["joules"].high == pytest.approx(model.predict(VALUES)["epochs"].high * 200)
    assert found["joules"].notes == ("epochs times 1000 samples of 0.2 J",)
    assert found["joules"].unit == "J"
    assert found["joules_estimated"].value is None
    assert found["kg_co2"].value is None
    here = model.predict(VALUES, joules_per_sample=0.2)
    # The measured emissions were of other joules than these; the estimated ones are as they were.
    assert here["kg_co2"].value is None
    assert here["kg_co2_estimated"].value == pytest.approx(KG)
    larger = model.predict(VALUES, samples_per_epoch=4000, joules_per_sample=0.2)
    assert larger["joules"].value == pytest.approx(EPOCHS * 4000 * 0.2)
    assert larger["joules_estimated"].value == pytest.approx(4 * JOULES)


def test_by_joules_per_sample_where_the_runs_were_not_metered():
    model = CostModel.fit(runs(joules=None))
    assert model.predict(VALUES)["joules"].value is None
    found = model.predict(VALUES, joules_per_sample=0.2, carbon_intensity=100.0)
    assert found["joules"].value == pytest.approx(1000)
    assert found["kg_co2"].value == pytest.approx(1000 / 3.6e6 * 0.1)
    assert found["kg_co2"].unit == "kg CO2e"
    assert found["joules_estimated"].value is None
    scaled = model.predict(VALUES, samples_per_epoch=7, device="A100", energy_factor=2.0)
    assert scaled["kwh"].reason == "not known of the runs: gpu:0: no counter"
    assert scaled["kwh"].notes == ()


def test_to_another_grid(model):
    found = model.predict(VALUES, carbon_intensity=100.0)
    assert found["kg_co2"].value == pytest.approx(KG / 4)
    assert found["kg_co2"].notes == ("at 100 g CO2e a kWh",)
    assert model.predict(VALUES, carbon_intensity=0)["kg_co2"].value == 0
    bare = CostModel.fit(runs(), measures=("kg_co2",)).predict(VALUES, carbon_intensity=100.0)
    assert bare["kg_co2"].value is None
    assert bare["kg_co2"].reason == "carbon_intensity needs a model of joules"


def test_epochs_alone_need_no_rule():
    model = CostModel.fit(runs(), measures=("epochs",))
    found = model.predict(VALUES, samples_per_epoch=50, device="A100")
    assert found["epochs"].value == pytest.approx(EPOCHS)
    assert set(found) == {"epochs"}


def test_runs_of_several_sizes_have_no_rule():
    mixed = [*runs(), study_run(0.6, 6.0, samples_per_epoch=10)]
    model = CostModel.fit(mixed, measures=("epochs",))
    with pytest.raises(ValueError, match=r"^samples_per_epoch: expected none"):
        model.predict(VALUES, samples_per_epoch=20)
    with pytest.raises(ValueError, match=r"^joules_per_sample: expected a model of epochs"):
        CostModel.fit(runs(), measures=("joules",)).predict(VALUES, joules_per_sample=0.1)


def test_an_unbounded_end_stays_one(model):
    found = model.predict(VALUES, coverage=0.9, samples_per_epoch=2000, carbon_intensity=1.0)
    for name in ("epochs", "joules", "kwh", "kg_co2"):
        assert found[name].high is None
        assert found[name].reason.startswith("a coverage of 0.9 needs 9 kinds")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"samples_per_epoch": 0}, ValueError, "samples_per_epoch: expected an integer above 0"),
        ({"samples_per_epoch": 2.5}, ValueError, "samples_per_epoch: expected an integer"),
        ({"samples_per_epoch": True}, ValueError, "samples_per_epoch: expected an integer"),
        ({"device": 3}, ValueError, "device: expected a name"),
        ({"device": ""}, ValueError, "device: expected a name"),
        ({"energy_factor": 0.0}, ValueError, "energy_factor: expected a number above 0"),
        ({"energy_factor": math.inf}, ValueError, "energy_factor: expected a number above 0"),
        ({"energy_factor": "2"}, TypeError, "energy_factor: expected a number"),
        ({"seconds_factor": -1}, ValueError, "seconds_factor: expected a number above 0"),
        ({"joules_per_sample": math.nan}, ValueError, "joules_per_sample: expected a number above"),
        ({"carbon_intensity": -1.0}, ValueError, "carbon_intensity: expected a number from 0"),
        (
            {"energy_factor": 1.0, "joules_per_sample": 1.0},
            ValueError,
            "energy_factor, joules_per_sample: expected one of the two",
        ),
    ],
)
def test_refused(model, arguments, error, message):
    with pytest.raises(error, match=f"^{message}"):
        model.predict(VALUES, **arguments)


def test_gradient_norms_have_no_rule_for_another_number_of_samples():
    model = CostModel.fit(runs(), measures=("epochs", "gradient_norm_mean"))
    assert model.predict(VALUES)["gradient_norm_mean"].value == pytest.approx(1)
    found = model.predict(VALUES, samples_per_epoch=10)["gradient_norm_mean"]
    assert (found.value, found.low, found.high) == (None, None, None)
    assert found.reason == "no rule carries it from 1000 to 10 samples an epoch"
