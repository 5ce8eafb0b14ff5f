"""`resque-ext fit` and `resque-ext predict`: what they say, write and refuse."""

import json
import re

import numpy as np
import pytest
from helpers.study_runs import random_runs, study_run

from resque_ext import cli
from resque_ext.retraining import CostModel, leave_one_kind_out

INDEX = "resque_dist_reestimated"


@pytest.fixture(scope="module")
def runs():
    return random_runs(np.random.default_rng(0), kinds=10, levels=3, limit=3.0)


@pytest.fixture
def study(tmp_path, runs):
    path = tmp_path / "study.jsonl"
    path.write_text("".join(f"{run.to_json()}\n" for run in runs))
    return path


@pytest.fixture
def model(tmp_path, runs):
    path = tmp_path / "model.json"
    CostModel.fit(runs).save(path)
    return path


def test_fit_is_the_function(run, study, runs, tmp_path):
    out_path = tmp_path / "out.json"
    options = ("--method", "log-linear", "--coverage", "0.8", "--measure", "epochs", "--json")
    status, out, err = run("fit", study, "-o", out_path, *options)
    assert (status, err) == (0, "")
    expected = CostModel.fit(runs, measures=("epochs",), method="log-linear", coverage=0.8)
    assert CostModel.load(out_path).to_json() == expected.to_json()
    found = json.loads(out)
    left_out = leave_one_kind_out(runs, method="log-linear", coverage=0.8)["epochs"]
    assert found["left_out"] == {"epochs": left_out.to_dict()}
    assert found["runs"] == 30
    assert found["censored"] == sum(r.censored for r in runs) > 0
    assert found["ranges"] == {INDEX: list(expected.ranges[INDEX])}


def test_fit_prints_a_table(run, study, tmp_path):
    status, out, err = run("fit", study, "-o", tmp_path / "out.json")
    assert (status, err) == (0, "")
    overall = json.loads(run("fit", study, "-o", tmp_path / "b.json", "--json")[1])["left_out"]
    epochs = overall["epochs"]["overall"]
    assert f"{epochs['rank_correlation']:.2f}" in out
    assert f"{epochs['covered']} of {epochs['covered'] + epochs['missed']}" in out
    assert "count as lower bounds" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= cli.PLAIN_WIDTH


def test_fit_says_which_intervals_are_open(run, tmp_path):
    """Of an interval without an upper end "inside" says nothing."""
    runs = random_runs(np.random.default_rng(0), kinds=6, levels=3, limit=30.0)
    path = tmp_path / "few.jsonl"
    path.write_text("".join(f"{r.to_json()}\n" for r in runs))
    options = ("fit", path, "-o", tmp_path / "out.json", "--measure", "epochs")
    left_out = leave_one_kind_out(runs)["epochs"].overall
    assert left_out.unbounded == left_out.covered == 18
    out = run(*options)[1]
    assert "all open" in out
    assert "18 of 18" not in out
    assert "open: an interval without an upper end" in out
    some = leave_one_kind_out(runs, coverage=0.8)["epochs"].overall  # for which 4 kinds are enough
    assert (some.covered, some.missed, some.unbounded) == (17, 1, 0)
    out = run(*options, "--coverage", "0.8")[1]
    assert "17 of 18" in out
    assert not re.search(r"\bopen\b", out)


def test_fit_of_one_kind_and_of_missing_predictors(run, tmp_path):
    lines = [study_run(x, 10 * x).to_json() for x in (0.1, 0.2, 0.3)]
    path, out_path = tmp_path / "one.jsonl", tmp_path / "out.json"
    path.write_text("\n".join(lines))
    status, out, _ = run("fit", path, "-o", out_path)
    assert status == 0
    assert "1 kinds" in out
    lacking = study_run(0, 1.0, predictors={INDEX: None}).to_json()
    path.write_text("\n".join([*lines, lacking]))
    assert run("fit", path, "-o", out_path)[0] == 2
    assert run("fit", path, "-o", out_path, "--skip-missing")[0] == 0


def test_fit_refuses_and_writes_nothing(refused, study, tmp_path):
    out_path = tmp_path / "out.json"
    broken = tmp_path / "broken.jsonl"
    broken.write_text(study.read_text() + '{"format": 1}\n')
    for arguments, words in (
        ((tmp_path / "no.jsonl", "-o", out_path), "no.jsonl: expected the runs of a study, fo"),
        ((broken, "-o", out_path), "broken.jsonl, line 31: "),
        ((study, "-o", out_path, "--predictor", "arm"), "runs: expected 'arm' in every run"),
        ((study, "-o", out_path, "--method", "forest"), "method: expected one of"),
        ((study, "-o", out_path, "--coverage", "2"), "coverage: expected 0.5"),
        ((study, "-o", out_path, "--measure", "euros"), "measures: expected some of"),
        ((study, "-o", tmp_path), "output: expected a file, found the directory"),
        ((study, "-o", tmp_path / "no" / "m.json"), "No such file"),
        ((study,), "output"),
    ):
        assert words in refused("fit", *arguments)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken.jsonl", "study.jsonl"]


def test_predict_is_the_function(run, model):
    options = (
        *("--kind", "kind1", "--coverage", "0.8", "--samples", "2000", "--device", "A100"),
        *("--energy-factor", "2", "--seconds-factor", "3", "--carbon-intensity", "50"),
    )
    status, out, err = run("predict", model, f"{INDEX}=0.4", *options, "--json")
    assert (status, err) == (0, "")
    expected = CostModel.load(model).predict(
        {INDEX: 0.4},
        kind="kind1",
        coverage=0.8,
        samples_per_epoch=2000,
        device="A100",
        energy_factor=2.0,
        seconds_factor=3.0,
        carbon_intensity=50.0,
    )
    assert json.loads(out)["costs"] == {name: each.to_dict() for name, each in expected.items()}


def test_predict_prints_a_table(run, model):
    status, out, err = run("predict", model, f"{INDEX}=0.3")
    assert (status, err) == (0, "")
    epochs = json.loads(run("predict", model, f"{INDEX}=0.3", "--json")[1])["costs"]["epochs"]
    for key in ("value", "low", "high"):
        assert f"{epochs[key]:.3g}" in out
    assert "a new kind of shift" in out
    assert "kWh" in out
    assert max(map(len, out.splitlines())) <= cli.PLAIN_WIDTH
    out = run("predict", model, f"{INDEX}=0.3", "--kind", "kind1")[1]
    assert "a new level of a known kind" in out


def test_predict_says_what_is_not_known(run, model):
    out = run("predict", model, f"{INDEX}=7", "--extrapolate", "clamp", "--samples", "9")[1]
    words = " ".join(out.split())
    for part in ("at least 3 ", "unbounded", "Extrapolated:", "stopped short", "no rule carries"):
        assert part in words
    assert "times 9/1000 samples an epoch" in words


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "Missing argument"),
        ((f"{INDEX}=7",), "as in the runs, found 7"),
        ((f"{INDEX}=x",), f"{INDEX}: expected a number, found 'x'"),
        ((f"{INDEX}=nan",), f"{INDEX}: expected a finite number"),
        ((INDEX,), f"values: expected {INDEX}, each once, found '{INDEX}'"),
        (("arm=1",), f"values: expected {INDEX}, each once, found 'arm=1'"),
        ((f"{INDEX}=0.1", f"{INDEX}=0.2"), "each once"),
        ((f"{INDEX}=0.3", "--device", "A100"), "device: expected 'H100'"),
        ((f"{INDEX}=0.3", "--samples", "0"), "samples_per_epoch: expected"),
        ((f"{INDEX}=0.3", "--carbon-intensity", "-1"), "carbon_intensity: expected"),
        ((f"{INDEX}=0.3", "--extrapolate", "x"), "extrapolate: expected one of"),
        ((f"{INDEX}=0.3", "--coverage", "1"), "coverage: expected"),
    ],
)
def test_predict_refuses(refused, model, arguments, words):
    assert words in refused("predict", model, *arguments)


def test_predict_refuses_files(refused, study, tmp_path):
    assert "no.json" in refused("predict", tmp_path / "no.json", "a=1")
    assert "study.jsonl: model: expected" in refused("predict", study, "a=1")


def test_predict_says_where_a_kind_is_new_to_a_measure(run, tmp_path):
    short = [study_run(x, x, "short", joules=None) for x in (0.2, 0.4)]
    metered = [study_run(x, 10 * x, f"k{x}") for x in (0.1, 0.3, 0.5, 0.9)]
    path = tmp_path / "model.json"
    CostModel.fit([*short, *metered], measures=("epochs", "joules")).save(path)
    status, out, _ = run("predict", path, f"{INDEX}=0.3", "--kind", "short", "--coverage", "0.6")
    assert status == 0
    assert "Cost of a new level of a known kind" in out
    assert "joules, kwh: interval for a new kind of shift" in out
