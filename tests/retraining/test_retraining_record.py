"""RetrainingCost: exact through JSON, and strict about what it takes."""

import dataclasses
import json
import math
import subprocess
import sys

import pytest

from resque_ext.energy import Figure, Measurement
from resque_ext.energy.measurement import add, nothing, unknown
from resque_ext.retraining import MEASURES, RecordError, RetrainingCost
from resque_ext.retraining.record import (
    STOPS,
    AccuracyCheck,
    EpochChange,
    GradientNorm,
    ParameterChange,
)

GRAMS = Figure("all", 400.0, "g CO2e/kWh", "given")


def measurement(joules=7.2e6, seconds=100.0, **more):
    figures = (
        Figure("gpu:0", joules, "J", "nvml-counter", 30.0),
        unknown("cpu", "no RAPL"),
        Figure("cpu", 1000.0, "J", "estimate", notes=("a guess",)),
    )
    return Measurement("training", seconds, figures, GRAMS, **more)


def record(**changes):
    values = {
        "reached": True,
        "stopped": "target",
        "target_accuracy": 0.9,
        "epochs": 1 + 1 / 3,
        "steps": 4,
        "samples": 40,
        "steps_per_epoch": 3,
        "samples_per_epoch": 30,
        "skipped_steps": 1,
        "gradient_norm": GradientNorm(
            0.1, 0.30000000000000004, (0.2, 1e-30), (0.2, None, 0.1, 0.0)
        ),
        "parameter_change": ParameterChange(
            0.1, {"w": 0.1}, None, {"w": None}, (EpochChange(1.0, 0.05, 0.05),)
        ),
        "train_seconds": 1.5,
        "evaluation_seconds": 0.25,
        "energy": {"training": measurement(), "total": measurement(8e6)},
        "accuracy": (AccuracyCheck(0.0, 0, 0.5), AccuracyCheck(4 / 3, 4, 0.91)),
        "loss_of_epoch": (1.1, 0.7),
        "seed": 3,
        "device": {"device": "cpu", "name": "x", "threads": 2},
        "versions": {"torch": "2", "numpy": None},
        "options": {"optimizer": "Adam", "optimizer_groups": [{"betas": [0.9, 0.999]}]},
        "resumed": 2,
    }
    return RetrainingCost(**values | changes)


def test_round_trip_is_exact():
    one = record()
    text = one.to_json()
    assert "\n" not in text
    assert json.loads(text) == one.to_dict()
    assert RetrainingCost.from_json(text) == one
    assert RetrainingCost.from_json(text).to_json() == text


def test_norms_of_steps_can_be_left_out():
    one = record()
    again = RetrainingCost.from_json(one.to_json(per_step=False))
    assert again.gradient_norm.per_step is None
    assert dataclasses.replace(again, gradient_norm=one.gradient_norm) == one
    assert again.measures() == one.measures()


def test_dict_is_a_copy():
    one = record()
    one.to_dict()["options"]["optimizer_groups"].clear()
    assert one.options["optimizer_groups"]


def test_measures_by_hand():
    found = record().measures()
    assert set(found) == set(MEASURES)
    assert found == {
        "epochs": 4 / 3,
        "gradient_norm_mean": 0.1,
        "gradient_norm_last": 1e-30,
        "gradient_norm_sum": 0.30000000000000004,
        "parameter_change": 0.1,
        "seconds": 1.5,
        "joules": 7.2e6,
        "joules_estimated": 7.201e6,
        "kg_co2": pytest.approx(0.8),  # 2 kWh of 400 g
        "kg_co2_estimated": pytest.approx(0.8 * 7.201 / 7.2),
    }


def test_unknown_is_none():
    none = nothing("training", "no meter")
    found = record(
        energy={"training": none, "total": none}, gradient_norm=GradientNorm(None, None, (), ())
    ).measures()
    unknowns = ("joules", "joules_estimated", "kg_co2", "kg_co2_estimated", "gradient_norm_last")
    assert all(found[name] is None for name in unknowns)


def test_the_sum_over_no_steps_is_known():
    found = record(steps=0, gradient_norm=GradientNorm(None, None, (), ())).measures()
    assert (found["gradient_norm_sum"], found["gradient_norm_mean"]) == (0.0, None)


def test_accuracies_and_censoring():
    one = record()
    assert (one.censored, one.start_accuracy, one.best_accuracy) == (False, 0.5, 0.91)
    assert record(reached=False).censored
    assert record(accuracy=()).best_accuracy is None
    assert one.stopped in STOPS


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", '"x"', "{}", '{"format": "resque_ext.RetrainingCost/0"}'],
)
def test_foreign_text_is_refused(text):
    with pytest.raises(RecordError, match=r"^record: expected"):
        RetrainingCost.from_json(text)


@pytest.mark.parametrize("key", [f.name for f in dataclasses.fields(RetrainingCost)])
def test_missing_and_wrong_keys_are_refused(key):
    values = record().to_dict()
    with pytest.raises(RecordError, match=f"{key}"):
        RetrainingCost.from_dict({k: v for k, v in values.items() if k != key})
    with pytest.raises(RecordError, match="new"):
        RetrainingCost.from_dict(values | {"new": 1})
    if key in ("gradient_norm", "parameter_change", "energy", "accuracy", "loss_of_epoch"):
        with pytest.raises(RecordError, match=r"^record: expected what RetrainingCost.to_dict"):
            RetrainingCost.from_dict(values | {key: 5})


def test_no_nan_gets_into_a_file():
    with pytest.raises(ValueError, match="not JSON compliant"):
        record(train_seconds=math.nan).to_json()


def test_load(tmp_path):
    path = tmp_path / "record.json"
    path.write_text(record().to_json())
    assert RetrainingCost.load(path) == record()


def test_figures_are_numbers_or_reasons():
    with pytest.raises(ValueError, match="a number or a reason"):
        Figure("cpu", None, "J", "none")
    with pytest.raises(ValueError, match="a number or a reason"):
        Figure("cpu", 1.0, "J", "rapl", reason="why")
    with pytest.raises(ValueError, match="source"):
        Figure("cpu", 1.0, "J", "guess")
    with pytest.raises(ValueError, match="finite"):
        Figure("cpu", math.nan, "J", "rapl")
    assert Figure("cpu", 3.6e6, "J", "rapl").kwh == 1
    assert unknown("cpu", "why").kwh is None


def test_totals_keep_estimates_apart():
    m = measurement()
    assert (m.measured.value, m.measured.source) == (7.2e6, "nvml-counter")
    assert m.measured.resolution == 30
    assert "without cpu" in m.measured.notes
    assert (m.estimated.value, m.estimated.source) == (7.201e6, "estimate")
    assert m.estimated.resolution is None
    assert m.emissions.source == "nvml-counter"
    assert m.estimated_emissions.source == "estimate"
    assert m.emissions.resolution == pytest.approx(30 / 3.6e6 * 0.4)


def test_windows_add_up():
    two = add("both", [measurement(10.0, 1.0), measurement(20.0, 2.0)])
    assert (two.name, two.seconds, two.windows) == ("both", 3.0, 2)
    assert two.measured.value == 30
    assert two.measured.resolution == 60
    assert two.estimated.value == 2030
    lost = Measurement("x", 1.0, (unknown("gpu:0", "the GPU is lost"),), GRAMS)
    assert add("x", [measurement(), lost]).measured.reason.startswith("gpu:0: the GPU is lost")
    other = Measurement("x", 1.0, (Figure("ram", 1.0, "J", "estimate"),), GRAMS)
    assert add("x", [measurement(), other]).estimated.value is None
    assert "1 of 2 windows" in add("x", [measurement(), other]).estimated.reason
    mixed = Measurement("x", 1.0, (Figure("gpu:0", 1.0, "J", "nvml-power"),), GRAMS)
    alone = Measurement("x", 1.0, measurement().figures[:1], GRAMS)
    assert add("x", [alone, mixed]).measured.source == "sum"
    assert add("x", []).measured.value is None


@pytest.mark.full
def test_nothing_heavy_is_imported():
    code = (
        "import sys, torch; before = set(sys.modules); "  # torch takes pynvml where that is
        "import resque_ext; assert 'resque_ext.retraining' not in sys.modules; "
        "import resque_ext.retraining; new = set(sys.modules) - before; "
        "found = {'codecarbon', 'pynvml', 'matplotlib', 'pandas'} & new; assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
