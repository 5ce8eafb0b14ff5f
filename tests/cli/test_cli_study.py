"""`resque-ext study`: many retrainings from the command line, and what `fit` makes of them."""

import numpy as np
import pytest
from helpers.cli_made import strict

from resque_ext.studies import read_runs

MODEL = """
import torch
from torch import nn

def make_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )

def fast(parameters):
    return torch.optim.Adam(parameters, lr=2e-2)
"""


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine_to_study.py").write_text(MODEL)
    rng = np.random.default_rng(0)
    means = rng.random((3, 1, 6, 6))
    for side, count in (("old", 90), ("train", 60), ("test", 45)):
        labels = np.arange(count) % 3
        images = 0.5 * means[labels] + 0.5 * rng.random((count, 1, 6, 6))
        np.savez(f"{side}.npz", inputs=images.astype(np.float32), labels=labels)
    sides = [text for side in ("old", "train", "test") for text in (f"--{side}", f"{side}.npz")]
    return (
        "study",
        "mine_to_study:make_model",
        *sides,
        "--target",
        "0.9",
        "--batch-size",
        "16",
        "--max-epochs",
        "5",
        "--index",
        "resque_dist",
        "--optimizer",
        "mine_to_study:fast",
        "--shift",
        "gaussian=0.1,0.3",
        "--shift",
        "contrast=0.5",
        "--no-meter",
        "-o",
        "runs.jsonl",
    )


@pytest.mark.filterwarnings("ignore:shifts")
def test_runs_are_kept_and_told(run, arguments):
    status, out, _ = run(*arguments, "--json")
    found = strict(out)
    assert status == 0
    kept = list(read_runs("runs.jsonl"))
    assert [(r.kind, r.level) for r in kept] == [
        ("gaussian", 0.1),
        ("gaussian", 0.3),
        ("contrast", 0.5),
    ]
    assert [each["epochs"] for each in found["runs"]] == [r.measures["epochs"] for r in kept]
    assert {"resque_dist", "linear_probe_error_reestimated"} <= set(found["spearman"])
    assert all(r.cost.options["optimizer_groups"][0]["lr"] == 2e-2 for r in kept)
    again = strict(run(*arguments, "--json")[1])  # goes on with the file: nothing is done again
    assert again == found
    status, out, _ = run(*arguments)
    assert status == 0
    for text in ("3 retrainings", "gaussian", "contrast", "resque_dist", "Spearman"):
        assert text in out


def test_a_cost_model_is_fitted_to_them(run, arguments):
    run(*arguments)
    predictor = ("--predictor", "resque_dist", "--measure", "epochs")
    status, out, err = run("fit", "runs.jsonl", "-o", "model.json", *predictor, "--json")
    assert (status, strict(out)["runs"]) == (0, 3), err


@pytest.mark.parametrize("shift", ["gaussian", "gaussian=", "gaussian=x", "=0.1"])
def test_what_is_no_shift_is_one_line(run, arguments, shift):
    status, out, err = run(*arguments, "--shift", shift)
    assert (status, out) == (2, "")
    assert "shift: expected KIND=LEVEL,LEVEL, each kind once, found" in err
    status, _, err = run(*arguments, "--shift", "contrast=0.1")
    assert (status, "each kind once, found 'contrast=0.1'" in err) == (2, True)
