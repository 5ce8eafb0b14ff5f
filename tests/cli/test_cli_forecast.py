"""`resque-ext forecast`: what the function says, as tables and as JSON."""

import numpy as np
import pytest
from helpers.cli_made import strict
from helpers.training_oracle import task

from resque_ext.retraining import checkpoint as files

MODEL = """
import torch
from helpers.training_oracle import network

def make_model():
    return network()

def fast(parameters):
    return torch.optim.Adam(parameters, lr=2e-2)
"""


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    """The command's, with arrays and a model that lie in the current folder."""
    monkeypatch.chdir(tmp_path)
    name = "mine_to_forecast"
    (tmp_path / f"{name}.py").write_text(MODEL)
    for side, seed in (("train", 0), ("test", 1)):
        x, y = task(seed=seed)
        np.savez(tmp_path / f"{side}.npz", inputs=x.numpy(), labels=y.numpy())
    sides = ("--train", "train.npz", "--test", "test.npz", "--batch-size", "16")
    return "forecast", f"{name}:make_model", *sides


def test_json_is_the_forecast(run, arguments, tmp_path):
    more = ("--target", "1.0", "--max-epochs", "12", "--checkpoint", "probe", "--json")
    status, out, _ = run(*arguments, *more)
    found = strict(out)
    assert (status, found["stage"], found["formula"]) == (0, "probe", "R32")
    assert found["model"] == arguments[1]
    assert found["costs"]["steps"]["low"] <= found["costs"]["steps"]["value"]
    state = files.load(tmp_path / "probe")
    assert state["history"]["steps"] == found["probe"]["steps"]


def test_table_and_a_target_that_is_met(run, arguments):
    status, out, _ = run(*arguments, "--target", "0.05")
    assert status == 0
    assert "stage: free (the held-out accuracy meets the target)" in out


def test_without_steps(run, arguments):
    found = strict(run(*arguments, "--target", "0.9", "--steps", "0", "--json")[1])
    assert (found["stage"], found["probe"]["steps"]) == ("indices", 0)


def test_an_optimizer_of_ones_own(run, arguments):
    name = arguments[1].replace("make_model", "fast")
    more = (*arguments, "--target", "1.0", "--json")
    found, usual = (strict(run(*more, *own)[1]) for own in (("--optimizer", name), ()))
    assert found["points"][0] == usual["points"][0]
    assert found["points"][-1]["loss"] < usual["points"][-1]["loss"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--target", "2"), "target_accuracy: expected a finite number above 0 and at most 1"),
        (("--target", "0.9", "--steps", "5"), "steps: expected ascending powers of two"),
        (("--target", "0.9", "--test", "no.npz"), "no.npz"),
        (("--target", "0.9", "--optimizer", "mine"), "optimizer: expected module:callable"),
        ((), "--target"),
    ],
)
def test_refuses(refused, arguments, more, words):
    assert words in refused(*arguments, *more)
