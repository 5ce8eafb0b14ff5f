"""Runs of several models, targets or trainings: refused, chosen among, or taken as one."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from helpers.study_runs import random_runs, study_run
from torch import nn

from resque_ext import cli
from resque_ext.retraining import CostModel, leave_one_kind_out, study

INDEX = "resque_dist_reestimated"
EPOCHS = {"measures": ("epochs",)}
ADAM = {"optimizer": "Adam", "optimizer_groups": [{"lr": 0.001, "betas": [0.9, 0.999]}]}


def of(runs, model=None, **cost):
    """The runs with another model's name, or with other fields of their costs."""
    model = {} if model is None else {"model": model}
    return [
        dataclasses.replace(run, **model, cost=dataclasses.replace(run.cost, **cost))
        for run in runs
    ]


@pytest.fixture(scope="module")
def runs():
    return of(random_runs(np.random.default_rng(0), kinds=4, levels=3), options=ADAM)


SGD = {"optimizer": "SGD", "optimizer_groups": [{"lr": 0.1}]}
SLOWER = {**ADAM, "optimizer_groups": [{"lr": 0.0003, "betas": [0.9, 0.999]}]}
TWO_GROUPS = {**ADAM, "optimizer_groups": [{"lr": 0.001}, {"lr": 0.1}]}


@pytest.mark.parametrize(
    ("change", "found", "only"),
    [
        ({"model": "vit"}, "model net, vit: choose", {"model": "vit"}),
        ({"target_accuracy": 0.8}, "target_accuracy 0.9, 0.8: choose", {"target_accuracy": 0.8}),
        ({"options": SGD}, "optimizer Adam, SGD; optimizer.lr 0.001, 0.1; o", {"optimizer": "SGD"}),
        ({"options": SLOWER}, "optimizer.lr 0.001, 0.0003: choose", {"optimizer.lr": 3e-4}),
        ({"options": TWO_GROUPS}, "optimizer.lr 0.001, null; ", {"optimizer.1.lr": 0.1}),
        ({"options": {**ADAM, "augment": "f"}}, "augment null, f: choose", {"augment": "f"}),
        ({"steps_per_epoch": 20}, "steps_per_epoch 10, 20: choose", {"steps_per_epoch": 20}),
    ],
)
def test_what_differs_is_refused_chosen_or_taken(runs, change, found, only):
    other = of(random_runs(np.random.default_rng(1), kinds=3, levels=4), **{"options": ADAM})
    other = of(other, **change)
    both = [*runs, *other]
    for function in (CostModel.fit, leave_one_kind_out):
        with pytest.raises(
            ValueError, match=r"^runs: expected one model, target and way of tr"
        ) as e:
            function(both, **EPOCHS)
        assert f"found {found}" in str(e.value)
    alone = CostModel.fit(other, **EPOCHS)
    assert CostModel.fit(both, **EPOCHS, only=only).to_json() == alone.to_json()
    texts = {name: str(value) for name, value in only.items()}
    assert CostModel.fit(both, **EPOCHS, only=texts).to_json() == alone.to_json()
    transfer = leave_one_kind_out(both, **EPOCHS, only=only)["epochs"]
    assert transfer.overall == leave_one_kind_out(other, **EPOCHS)["epochs"].overall
    assert set(transfer.predictions) == set(range(len(runs), len(both)))  # places in all runs
    mixed = CostModel.fit(both, **EPOCHS, mixed=True)
    assert len(mixed.runs) == len(both)
    assert leave_one_kind_out(both, **EPOCHS, mixed=True)["epochs"].overall.runs == len(both)


def test_several_names_choose_together(runs):
    parts = {
        (model, target): of(runs, model, target_accuracy=target)
        for model in ("a", "b")
        for target in (0.8, 0.9)
    }
    every = [run for part in parts.values() for run in part]
    with pytest.raises(
        ValueError, match=r"found model a, b; target_accuracy 0\.8, 0\.9: .*model=a"
    ):
        CostModel.fit(every)
    with pytest.raises(ValueError, match=r"found target_accuracy 0\.8, 0\.9: "):
        CostModel.fit(every, only={"model": "b"})
    found = CostModel.fit(every, only={"model": "b", "target_accuracy": 0.8})
    assert len(found.runs) == len(runs)


def test_a_long_list_is_cut(runs):
    many = [run for i in range(9) for run in of(runs, f"m{i}")]
    with pytest.raises(ValueError, match=r"found model m0, m1, m2, m3 and 5 more: choose"):
        CostModel.fit(many)


@pytest.mark.parametrize(
    "options",
    [
        {"max_epochs": 3.0},
        {"max_seconds": 60.0},
        {"max_joules": 5.0},
        {"patience": 2},
        {"min_improvement": 0.1},
        {"deterministic": True},
        {"transform": "Shift('blur')"},
    ],
)
def test_what_a_case_or_a_limit_changes_is_no_other_training(runs, options):
    both = [*runs, *of(runs, options={**ADAM, **options})]
    assert len(CostModel.fit(both).runs) == len(both)


def test_a_whole_number_is_one_value_however_it_is_written(runs):
    own = of(runs, options={**ADAM, "x": 1})
    assert len(CostModel.fit([*own, *of(runs, options={**ADAM, "x": 1.0})], **EPOCHS).runs)
    with pytest.raises(ValueError, match="found x 1, 2: choose"):
        CostModel.fit([*own, *of(runs, options={**ADAM, "x": 2.0})], **EPOCHS)


def test_other_sizes_of_data_may_have_other_numbers_of_steps(runs):
    larger = of(runs, steps_per_epoch=20, samples_per_epoch=2000)
    assert len(CostModel.fit([*runs, *larger], **EPOCHS).runs) == 2 * len(runs)
    with pytest.raises(ValueError, match=r"found steps_per_epoch 20, 40: choose"):
        CostModel.fit([*runs, *larger, *of(larger, steps_per_epoch=40)], **EPOCHS)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"only": "model"}, TypeError, r"only: expected a mapping such as .*, found 'model'"),
        ({"only": {"modell": "a"}}, ValueError, "only: expected names among model, target_acc"),
        ({"only": {"model": "a"}}, ValueError, "only: expected model among net, found 'a'"),
        ({"only": {"target_accuracy": 0.91}}, ValueError, r"only: expected .* among 0\.9, found 0"),
        (
            {"only": {"target_accuracy": "x"}},
            ValueError,
            r"only: expected .* among 0\.9, found 'x'",
        ),
        ({"mixed": "yes"}, TypeError, "mixed: expected True or False, found 'yes'"),
    ],
)
def test_choices_that_are_none(runs, arguments, error, message):
    for function in (CostModel.fit, leave_one_kind_out):
        with pytest.raises(error, match=f"^{message}"):
            function(runs, **arguments)


def test_values_that_no_run_has_together(runs):
    both = [*of(runs, "a", target_accuracy=0.8), *of(runs, "b")]
    with pytest.raises(ValueError, match=r"^only: expected values that some run has, found none"):
        CostModel.fit(both, only={"model": "a", "target_accuracy": 0.9})


def test_runs_of_one_study_are_of_one_training():
    """With a schedule, which changes the optimiser's rate, and a seed of each case."""
    torch.manual_seed(0)
    x, y = torch.rand(40, 4), torch.arange(40) % 2
    data = list(zip((x + y[:, None]).split(10), y.split(10), strict=True))
    runs = study(
        nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)).eval(),
        {"old": data, "train": data, "test": data},
        {
            "moved": {0.1: lambda t: t + 0.1, 0.3: lambda t: t - 0.3},
            "scaled": {2.0: lambda t: t * 2, 0.5: lambda t: t / 2},
        },
        ("resque_dist",),
        target_accuracy=0.6,
        max_epochs=30,
        optimizer=lambda p: torch.optim.Adam(p, 0.01),
        scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.9),
        meter=None,
        progress=False,
    )
    assert sum(not run.censored for run in runs) >= 2
    assert len(CostModel.fit(runs, ("resque_dist",), ("epochs",)).runs) == 4


# resque-ext fit


@pytest.fixture
def file(tmp_path, runs):
    path = tmp_path / "both.jsonl"
    path.write_text("".join(f"{r.to_json()}\n" for r in [*of(runs, "a"), *of(runs[:6], "b")]))
    return path


def test_the_command_line_refuses_and_chooses(file, runs, tmp_path, capsys):
    out = tmp_path / "m.json"
    arguments = ["fit", str(file), "-o", str(out), "--json"]
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("resque-ext: error: runs: expected one model, target and way of train")
    assert "found model a, b: choose with 'only', such as model=a, or" in error
    assert error.count("\n") == 1
    assert not out.exists()
    assert cli.main([*arguments, "--only", "model=b", "--only", "optimizer.lr=1e-3"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["runs"] == 6
    assert CostModel.load(out).to_json() == CostModel.fit(runs[:6]).to_json()
    overall = leave_one_kind_out(runs[:6])["epochs"].overall
    assert found["left_out"]["epochs"]["overall"] == overall.to_dict()
    assert cli.main([*arguments, "--mixed"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"] == len(runs) + 6


@pytest.mark.parametrize("only", [("model",), ("=a",), ("model=a", "model=b")])
def test_the_command_line_refuses_what_chooses_nothing(file, tmp_path, capsys, only):
    given = [part for text in only for part in ("--only", text)]
    assert cli.main(["fit", str(file), "-o", str(tmp_path / "m.json"), *given]) == 2
    error = capsys.readouterr().err
    assert "only: expected NAME=VALUE, each name once, found" in error


def test_a_run_made_by_hand_needs_no_options():
    assert len(CostModel.fit([study_run(x, x) for x in (0.1, 0.2)]).runs) == 2
