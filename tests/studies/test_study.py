"""study: every predictor and cost against an independent computation, and what it refuses."""

import copy
import itertools
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.study_oracle import (
    OPTIONS,
    Add,
    Mix,
    accuracy,
    data,
    grid,
    lasting,
    reestimated,
    run,
    simple_errors,
    trained,
)
from helpers.training_oracle import batches, fast, loader, network
from torch import nn

from resque_ext import score, shifts
from resque_ext.indices import ArmResult
from resque_ext.indices.adapters.arm import ArmIndex
from resque_ext.retraining import StudyError, StudyRun, retrain, study
from resque_ext.studies.grid import make_grid

TRIVIAL = ("accuracy_drop", "nearest_class_mean_error", "linear_probe_error")
ALL = ("resque_dist", "resque_task", "preindex", "arm")


@pytest.fixture(scope="module")
def model():
    return trained()


@pytest.fixture(scope="module")
def found(model):
    return run(model, indices=ALL)


def shifted(run, side):
    make = {"add": Add, "mix": Mix}[run.kind]
    return [(make(run.level)(x), y) for x, y in side]


def joined(side):
    return tuple(torch.cat(parts) for parts in zip(*side, strict=True))


def test_has_every_case_in_order(found):
    assert [(r.kind, r.level) for r in found] == [
        (kind, level) for kind, levels in grid().items() for level in levels
    ]
    names = {*ALL, *TRIVIAL}
    for r in found:
        assert set(r.predictors) == set(r.std_errors) == names | {f"{n}_reestimated" for n in names}
        assert None not in r.predictors.values()
        assert r.reasons == {}
        assert r.index_seconds > 0
        assert r.model == "Sequential"
    assert len({r.seed for r in found}) == len(found)
    assert len({r.measures["epochs"] for r in found}) > 2  # or the rest would show little


def test_trivial_predictors_by_other_means(found, model):
    """Accuracies counted, normalization re-estimated in NumPy, classifiers by scikit-learn."""
    sides = data()
    old_accuracy = accuracy(model, *joined(sides["old"]))
    for r in found:
        side = shifted(r, sides["train"])
        for suffix, net in (("", model), ("_reestimated", reestimated(model, side))):
            inputs, labels = joined(side)
            expected = [old_accuracy - accuracy(net, inputs, labels)]
            expected += list(simple_errors(net, inputs, labels))
            values = [r.predictors[name + suffix] for name in TRIVIAL]
            np.testing.assert_allclose(values, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("adapt", [False, True])
def test_indices_are_those_of_score(found, model, adapt):
    sides, suffix = data(), "_reestimated" if adapt else ""
    options = {"adapt_normalization": adapt, "progress": False}
    for r in found[:4]:
        new = shifted(r, sides["train"])
        scores = score(model, sides["old"], new, indices=("resque_dist", "arm"), **options)
        for name, result in scores.items():
            assert r.predictors[name + suffix] == result.value
        assert r.std_errors["resque_dist" + suffix] == scores["resque_dist"].std_error
        task = score(model, sides["old"], new, indices="resque_task", **options)
        assert r.predictors["resque_task" + suffix] == task.value
        paired = score(model, sides["train"], new, indices="preindex", paired=True, **options)
        assert r.predictors["preindex" + suffix] == paired.value


def test_costs_are_those_of_retrain(found, model):
    sides, options = data(), {k: v for k, v in OPTIONS.items() if k != "target_accuracy"}
    for r in found:
        shift = grid()[r.kind][r.level]
        expected = retrain(
            model,
            sides["train"],
            sides["test"],
            OPTIONS["target_accuracy"],
            seed=r.seed,
            transform=shift,
            **options,
        )
        again = r.cost.without_times()
        expected = expected.without_times()
        again["gradient_norm"]["per_step"] = expected["gradient_norm"]["per_step"] = None
        assert again == expected


def test_same_seed_same_study(found, model):
    again = run(model, indices=ALL)
    assert [lasting(r) for r in again] == [lasting(r) for r in found]


def test_a_case_does_not_depend_on_the_others(found, model):
    alone = run(model, shifts=grid({"mix": (1.0,)}), indices=ALL)
    assert [lasting(r) for r in alone] == [lasting(r) for r in found if r.level == 1.0][1:]


def test_seed_shuffling_and_the_callers_generators(model):
    def go(seed):
        base = data(train=loader(seed=1), test=loader(seed=2))
        return run(model, base, grid({"mix": (0.5,)}), seed=seed, target_accuracy=1.0)

    torch.manual_seed(5)
    before, numpy = torch.get_rng_state(), np.random.get_state(legacy=False)  # noqa: NPY002
    first = go(0)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state(legacy=False)["state"]["pos"] == numpy["state"]["pos"]  # noqa: NPY002
    torch.manual_seed(6)
    assert [lasting(r) for r in go(0)] == [lasting(r) for r in first]
    other = go(1)
    assert other[0].seed != first[0].seed
    assert other[0].cost.loss_of_epoch != first[0].cost.loss_of_epoch


class Noise:
    """Other noise on every sample, alike in every pass of one order."""

    def __init__(self, level):
        self.level = level
        self.reset()

    def reset(self):
        self.generator = torch.Generator().manual_seed(3)

    def __call__(self, x):
        return x + self.level * torch.randn(x.shape, generator=self.generator)


def test_a_case_of_shuffled_data_does_not_depend_on_the_others(model):
    """Every pass of predictors begins with the case's seed, whatever was drawn before it."""

    def go(*levels):
        shifts = {"noise": {level: Noise(level) for level in levels}}
        return run(model, data(train=loader(seed=1)), shifts, max_epochs=1)

    assert lasting(go(0.2, 0.5)[1]) == lasting(go(0.5)[0])


def test_model_is_left_as_it_was(model):
    model = copy.deepcopy(model).train()
    before = copy.deepcopy(model.state_dict())
    run(model, shifts=grid({"add": (0.5,)}))
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_without_running_statistics():
    """There is nothing to re-estimate: None and why, not an error."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))
    (only,) = run(net, shifts=grid({"add": (0.5,)}), indices=ALL)
    for name in (*ALL, *TRIVIAL):
        assert only.predictors[name] is not None
        assert only.predictors[f"{name}_reestimated"] is None
        reason = only.reasons[f"{name}_reestimated"]
        assert "running statistics (batch-norm, instance norm), found none" in reason
    assert len(only.reasons) == len(ALL) + len(TRIVIAL)


def test_what_has_no_running_statistics_can_be_matched(tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))
    names, path = ("resque_dist", "linear_residual", "preindex"), tmp_path / "runs"
    options = {"shifts": grid({"add": (0.5,)}), "indices": names, "path": path}
    (only,) = run(net, adapt_normalization="match", **options)
    assert only.reasons == {}
    old, side = data()["old"], data()["train"]
    new = shifted(only, side)
    for name in names:
        sides = {"old": side, "paired": True} if name == "preindex" else {"old": old}
        given = {"new": new, "indices": name, "progress": False} | sides
        found = score(net, adapt_normalization="match", **given).value
        assert only.predictors[f"{name}_reestimated"] == found
        assert only.predictors[name] == score(net, **given).value != found
    with pytest.raises(
        StudyError, match=r"differs in adapt_normalization \(None, found 'match'\)$"
    ):
        run(net, **options)


class Zero:
    """Everything to 0, for an embedding without a direction."""

    def __call__(self, x):
        return x * 0


def test_an_index_that_fails_for_one_shift():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3))
    base = data()
    runs = run(net, base, {"own": {0.0: Add(0.1), 1.0: Zero()}}, ("resque_dist", "arm"))
    good, bad = runs
    assert good.predictors["resque_dist"] is not None
    assert bad.predictors["resque_dist"] is None
    assert bad.std_errors["resque_dist"] is None
    assert "zero" in bad.reasons["resque_dist"]
    assert bad.predictors["arm"] is not None
    inputs, labels = joined(base["train"])
    drop = accuracy(net, *joined(base["old"])) - accuracy(net, inputs * 0, labels)
    assert bad.predictors["accuracy_drop"] == pytest.approx(drop, abs=1e-12)
    assert bad.predictors["linear_probe_error"] is not None
    assert bad.cost.steps > 0


def test_an_index_that_is_not_finite(model, monkeypatch):
    """None and the reason, for JSON has no NaN."""
    monkeypatch.setattr(ArmResult, "value", float("nan"), raising=False)
    compute = ArmIndex.compute

    def result(self, facts):
        found = compute(self, facts)
        object.__setattr__(found, "value", float("nan"))
        return found

    monkeypatch.setattr(ArmIndex, "compute", result)
    (only,) = run(model, shifts=grid({"add": (0.5,)}))
    assert only.predictors["arm"] is None
    assert only.reasons["arm"] == "not finite: nan"
    assert StudyRun.from_json(only.to_json()) == only


def test_retraining_that_diverges_is_censored(model):
    def explode(parameters):
        return torch.optim.SGD(parameters, lr=1e30)

    with pytest.warns(UserWarning, match=r"^add (0.5|1): (loss|gradient norm).* in step \d"):
        first, second = run(
            model, shifts=grid({"add": (0.5, 1.0)}), optimizer=explode, target_accuracy=1.0
        )
    assert first.censored
    assert second.censored
    assert first.cost.stopped == "error"
    assert "expected a finite one" in first.reasons["cost"]
    assert first.predictors["resque_dist"] is not None
    assert StudyRun.from_json(first.to_json()) == first


def test_target_that_is_met_and_one_that_is_not(model):
    reached, missed = (
        run(model, shifts=grid({"mix": (1.0,)}), target_accuracy=t, max_epochs=2)[0]
        for t in (0.05, 1.0)
    )
    assert not reached.censored
    assert reached.measures["epochs"] == 0.0
    assert missed.censored
    assert missed.measures["epochs"] == 2.0


def test_options_reach_retraining_and_forward_passes(model):
    (only,) = run(
        model,
        shifts=grid({"add": (0.5,)}),
        autocast=torch.bfloat16,
        augment=lambda x: x * 1,
        patience=4,
        max_epochs=1,
        model_name="small",
        layer="0",
        index_options={"arm": {"per": "filter"}},
    )
    assert only.cost.options["autocast"] == "torch.bfloat16"
    assert only.cost.options["patience"] == 4
    assert only.model == "small"
    side = shifted(only, data()["train"])
    old = data()["old"]
    with torch.autocast("cpu", torch.bfloat16):
        scores = score(
            model,
            old,
            side,
            indices=("resque_dist", "arm"),
            layer="0",
            options={"arm": {"per": "filter"}},
            progress=False,
        )
    assert only.predictors["resque_dist"] == scores["resque_dist"].value
    assert only.predictors["arm"] == scores["arm"].value
    exact = score(model, old, side, layer="0", progress=False).value
    assert only.predictors["resque_dist"] != exact


def test_predictors_can_read_a_part_of_the_new_side(found, model):
    base = data(new=batches(seed=1)[:3])
    (only,) = run(model, base, grid({"mix": (1.0,)}))
    side = shifted(only, base["new"])
    expected = score(model, base["old"], side, progress=False).value
    assert only.predictors["resque_dist"] == expected
    assert only.predictors["resque_dist"] != found[-1].predictors["resque_dist"]
    assert only.cost.without_times() == found[-1].cost.without_times()


def test_sequence_and_repr(found):
    assert isinstance(found[1:3], type(found))
    assert found[1:3][0] is found[1]
    assert next(reversed(found)) is found[-1]
    censored = sum(not r.cost.reached for r in found)
    assert repr(found) == f"Study(6 runs of 2 kinds of shift, {censored} censored)"
    table = found.correlations(predictors=["resque_dist"], measures=["epochs"])
    assert table.runs == 6


def test_registered_shifts_have_their_unit_and_the_cases_seed():
    cases = make_grid({"gaussian": (0.1, 0.3), "none": [0]}, None, 7)
    assert [(c.kind, c.level) for c in cases] == [("gaussian", 0.1), ("gaussian", 0.3), ("none", 0)]
    for case in cases:
        assert case.unit == shifts.SHIFTS[case.kind].unit
        assert (case.shift.name, case.shift.level) == (case.kind, case.level)
        assert case.shift.seed == case.seed
        assert 0 <= case.seed < 2**32
    many = [make_grid({"gaussian": (0.1,)}, None, seed)[0].seed for seed in range(300)]
    assert len(set(many)) == 300
    (own,) = make_grid({"own": {2: Add(2)}}, {"own": "pixels"}, 0)
    assert (own.unit, own.level) == ("pixels", 2.0)


class Changing:
    """Another number of batches in every other pass."""

    def __init__(self):
        self.passes = itertools.count()

    def __iter__(self):
        return iter(batches()[: 3 + next(self.passes) % 2])


WRONG = [
    ({"target_accuracy": 1.5}, ValueError, "target_accuracy: .* at most 1, found 1.5"),
    ({"target_accuracy": "high"}, TypeError, "target_accuracy: expected a number, found 'high'"),
    ({"base": data(train=[])}, ValueError, r"base_data\['train'\]: expected at least one batch"),
    ({"base": data(old=[])}, ValueError, r"base_data\['old'\]: expected at least one batch"),
    ({"base": data(test=iter(batches()))}, TypeError, r"base_data\['test'\]: .* one-shot iterator"),
    ({"base": data(old=5)}, TypeError, r"base_data\['old'\]: expected an iterable of batches"),
    ({"base": data(old=[(torch.zeros(2, 6),)])}, TypeError, r"base_data\['old'\]: expected batche"),
    (
        {"base": {"old": 1}},
        ValueError,
        r"base_data: expected batches for 'old', 'train', 'test' \(",
    ),
    ({"base": batches()}, TypeError, "base_data: expected a mapping of 'old', .*, found list"),
    (
        {"base": data(train=Changing())},
        ValueError,
        r"base_data\['train'\]: expected 3 batches with",
    ),
    ({"shifts": {}}, ValueError, "shifts: expected at least one kind of shift, found none"),
    ({"shifts": ["gaussian"]}, TypeError, "shifts: expected a mapping of kinds to levels, found l"),
    (
        {"shifts": {"fog": (0.1,)}},
        ValueError,
        r"shifts\['fog'\]: expected one of gaussian, .*'fog'",
    ),
    ({"shifts": {"shot": ()}}, ValueError, r"shifts\['shot'\]: expected at least one level, found"),
    ({"shifts": {"shot": (2,)}}, ValueError, r"shifts\['shot'\]: level: expected a number in .* 2"),
    ({"shifts": {"shot": (0.1, 0.1)}}, ValueError, r"shifts\['shot'\]: expected every level once"),
    ({"shifts": {"shot": 0.1}}, TypeError, r"shifts\['shot'\]: expected levels, found 0.1"),
    ({"shifts": {"shot": ("a",)}}, TypeError, r"shifts\['shot'\]: expected numbers for levels"),
    ({"shifts": {"own": {0.1: 3}}}, TypeError, r"shifts\['own'\]: expected functions of a batch"),
    ({"shifts": {"own": {float("inf"): Zero()}}}, ValueError, r"shifts\['own'\]: expected finite"),
    (
        {"shifts": {"shot": {0.1: Zero()}}},
        ValueError,
        r"shifts\['shot'\]: expected levels, because",
    ),
    ({"shifts": {3: (0.1,)}}, TypeError, "shifts: expected kinds with a name, found 3"),
    ({"units": {"none": "m"}}, ValueError, r"units: expected kinds among \['add', 'mix'\] of your"),
    ({"units": {"add": 3}}, TypeError, r"units\['add'\]: expected a text, found 3"),
    ({"indices": ("arms",)}, ValueError, "indices: expected names among .* found"),
    ({"epochs": 3}, TypeError, "retraining: expected options among max_epochs, .*found 'epochs'"),
    ({"transform": Zero()}, TypeError, "retraining: expected options among .*found 'transform'"),
    ({"checks_per_epoch": 99}, ValueError, r"checks_per_epoch: .* check a batch \(4\), found 99"),
    ({"optimizer": lambda p: 3}, TypeError, "optimizer: expected a function that gives a torch"),
    ({"seed": -1}, ValueError, r"seed: expected 0 <= seed < 2\^32, found -1"),
    ({"seed": 0.5}, TypeError, "seed: expected an integer, found 0.5"),
    ({"model_name": 3}, TypeError, "model_name: expected a text, found int"),
    ({"on_run": 3}, TypeError, "on_run: expected a function of a run, found int"),
    ({"meter": "none"}, TypeError, "meter: expected an EnergyMeter, 'auto' or None, found 'none'"),
    ({"layer": "9"}, KeyError, "layer: expected the name of a module of Sequential, found '9'"),
    (
        {"adapt_normalization": False},
        ValueError,
        "adapt_normalization: expected True or 'match', f",
    ),
    ({"index_options": ["arm"]}, TypeError, "index_options: expected a mapping of .* found list"),
    ({"index_options": {"arm": {"x": 1}}}, TypeError, "options: expected for 'arm' per, .*'x'"),
    ({"device": "meta"}, ValueError, "device: expected a cpu or cuda device, found 'meta'"),
    ({"model": nn.Flatten()}, ValueError, "model: expected trainable parameters, found no param"),
    ({"model": 3}, TypeError, "model: expected a torch.nn.Module, found int"),
    ({"model": network(classes=2)}, ValueError, ".*labels.*"),
]


@pytest.mark.parametrize(("change", "error", "message"), WRONG)
def test_refuses(model, change, error, message):
    called = []
    with pytest.raises(error, match=f"^['\"]?{message}"):
        run(**{"model": model, "on_run": called.append} | change)
    assert not called


def test_errors_of_the_shift_pass_with_the_runs_so_far(model):
    class Broken:
        def __call__(self, x):
            raise RuntimeError("this shift is broken")

    with pytest.raises(RuntimeError, match="this shift is broken") as caught:
        run(model, shifts={"own": {0.0: Add(0.0), 1.0: Broken()}})
    assert [r.level for r in caught.value.study] == [0.0]


def test_one_call_is_enough():
    """Defaults: all indices, a meter of its own, a bar."""
    sides = data()
    (only,) = study(trained(), sides, {"own": {0.3: Add(0.3)}}, target_accuracy=0.1, optimizer=fast)
    assert set(ALL) <= set(only.predictors)
    assert only.cost.energy["training"].measured.source != ""


def test_documentation_runs(capsys):
    """The page's example, as it stands there."""
    page = Path(__file__).parents[2] / "docs" / "retraining_study.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 1
    with torch.random.fork_rng(devices=[]):
        exec(compile(blocks[0], str(page), "exec"), {})
    assert "Spearman, across kinds" in capsys.readouterr().out


def test_too_few_kinds_for_an_interval_are_said_before_anything_runs(model):
    """A coverage of 0.9 needs 9 kinds: G / (G + 1) >= 0.9."""

    class Unread:
        def __iter__(self):
            raise RuntimeError("read")

    def said(kinds):
        shifts = {f"own {k}": {1.0: lambda x: x} for k in range(kinds)}
        data = {"old": Unread(), "train": Unread(), "test": Unread()}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with pytest.raises(RuntimeError, match="read"):
                study(model, data, shifts, target_accuracy=0.9, progress=False)
        return [str(w.message) for w in caught]

    assert said(9) == []
    (message,) = said(8)
    assert message.startswith("shifts: 8 kinds: to predict the cost of another kind")
    assert "CostModel needs 9 at a coverage of 0.9 (4 at 0.8)" in message


class TokenNet(nn.Module):
    """A classifier of [N, T, 8] by the mean of its tokens."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.head = nn.Linear(8, 6, False), nn.Linear(6, 3, False)

    def forward(self, x):
        return self.head(self.tokens(x).mean(1))


def test_how_tokens_are_read_is_passed_on_and_recorded(tmp_path):
    model = TokenNet()
    x = torch.randn(60, 4, 8, generator=torch.Generator().manual_seed(1))
    side = list(zip(x.split(20), (torch.arange(60) % 3).split(20), strict=True))
    base = dict.fromkeys(("old", "train", "test"), side)
    path = tmp_path / "runs.jsonl"

    def again(where=path, **options):
        options = {"layer": "tokens", "target_accuracy": 1.0, "max_epochs": 1} | options
        options |= {"meter": None, "progress": False, "path": where}
        return study(model, base, {"add": {0.1: Add(0.1)}}, ("resque_dist",), **options)[0]

    def expected(**options):
        new = [(Add(0.1)(x), y) for x, y in side]
        return score(model, side, new, layer="tokens", progress=False, **options)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # too few kinds for intervals
        values = {}
        for pooling in ("auto", "first"):
            found = again(tmp_path / pooling, pooling=pooling)
            values[pooling] = found.predictors["resque_dist"]
            assert values[pooling] == expected(pooling=pooling).value
        assert values["auto"] != values["first"]
        predicted = again(None, labels="predicted").predictors
        assert predicted["resque_dist"] == expected(labels="predicted").value != values["auto"]
        drop = score(model, side, [(Add(0.1)(x), y) for x, y in side], progress=False)
        assert predicted["accuracy_drop"] == drop.old_accuracy - drop.new_accuracy
        again()
        header = path.read_text().splitlines()[0]
        assert not {"pooling", "mask", "channels", "labels"} & set(re.findall(r'"(\w+)":', header))
        for name, value in (("pooling", "first"), ("mask", None), ("labels", "predicted")):
            with pytest.raises(StudyError, match=rf"differs in {name} \('?{value}'?, found None\)"):
                again(**{name: value})
        with pytest.raises(StudyError, match=r"differs in pooling \(None, found 'first'\)"):
            again(tmp_path / "first")
        with pytest.raises(ValueError, match=r"^channels: expected"):
            again(tmp_path / "other", channels="middle")
        assert not (tmp_path / "other").exists()
