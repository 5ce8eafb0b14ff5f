"""forecast: its stages, its probe as the beginning of the retraining, and what it refuses."""

import copy
import importlib
import json
import math

import pytest
import torch
from helpers.training_oracle import accuracy, bare, batches, fast, loader, network
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import resque_ext
from resque_ext.forecasting import Forecast, forecast
from resque_ext.forecasting.result import MAY_NEVER, UNSTABLE
from resque_ext.retraining import CheckpointError, retrain
from resque_ext.retraining.calibration import features, shipped
from resque_ext.retraining.target import Target

WIDE = {"width": 1e6, "max_share": 1.0}  # a probe of the first length alone
LONG = {"width": 1.0, "max_share": 1.0}  # one of the last


def slow(parameters):
    return torch.optim.Adam(parameters, lr=1e-3)


def make(target=0.97, epochs=12, model=None, train=None, test=None, **options):
    return forecast(
        network() if model is None else model,
        None,
        batches() if train is None else train,
        batches(seed=1) if test is None else test,
        target,
        epochs,
        **{"meter": None, "optimizer": slow, "samples": 50} | options,
    )


def test_is_public():
    assert resque_ext.forecast is forecast
    assert resque_ext.Forecast is Forecast
    module = importlib.import_module("resque_ext.forecasting.forecast")
    assert module.forecast is forecast
    assert resque_ext.forecasting.forecast is forecast  # the module does not take its place


# The probe is the beginning of the retraining


def one_cycle(optimizer):
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-2, total_steps=200)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.02, momentum=0.9)


RECIPES = {
    "list": {},
    "shuffled": {"train": loader, "checks_per_epoch": 3},
    "own generator": {"train": lambda: loader(generator=torch.Generator())},
    "sgd and schedule": {"optimizer": sgd, "scheduler": one_cycle},
    "schedule an epoch": {
        "scheduler": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 9),
        "scheduler_interval": "epoch",
    },
    "noise": {"train": loader, "augment": lambda x: x + 0.1 * torch.randn_like(x)},
    "float16": {"autocast": torch.float16},
    "plateau": {"patience": 30},
}


def goes_on(make_train=batches, epochs=9, lengths=(16, 32), **recipe):
    model, test = network(), batches(seed=1)
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    options = {"meter": None, "optimizer": slow} | recipe
    found = forecast(model, None, make_train(), test, 1.0, epochs, steps=lengths, **LONG, **options)
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(parameter.grad is None for parameter in model.parameters())
    assert found.probe.steps == lengths[-1]
    expected, trained = retrain(
        model, make_train(), test, 1.0, epochs, return_model=True, **options
    )
    assert expected.steps > lengths[-1]
    for _ in range(2):  # a second time, too: nothing of the forecast was changed
        cost, again = retrain(
            model, make_train(), test, 1.0, epochs, return_model=True, start=found, **options
        )
        assert cost.resumed == 1
        assert cost.without_times() == expected.without_times()
        for name, tensor in trained.state_dict().items():
            assert torch.equal(tensor, again.state_dict()[name]), name


@pytest.mark.parametrize("name", ["shuffled", "sgd and schedule"])
def test_retraining_goes_on_from_the_probe(name):
    recipe = dict(RECIPES[name])
    goes_on(recipe.pop("train", batches), **recipe)


@pytest.mark.full
@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("lengths", [(16,), (16, 32), (16, 32, 64)])
def test_retraining_goes_on_from_any_probe(name, lengths):
    recipe = dict(RECIPES[name])
    goes_on(recipe.pop("train", batches), 20, lengths, **recipe)


def test_goes_on_from_a_file(tmp_path):
    model = network()
    options = {"meter": None, "optimizer": slow}
    found = make(1.0, 12, model)
    path = tmp_path / "run"
    found.checkpoint.save(path)
    expected = retrain(model, batches(), batches(seed=1), 1.0, 12, **options)
    cost = retrain(model, batches(), batches(seed=1), 1.0, 12, checkpoint=path, **options)
    assert (cost.resumed, cost.without_times()) == (1, expected.without_times())
    # The file is later than the forecast and wins.
    again = retrain(
        model, batches(), batches(seed=1), 1.0, 12, checkpoint=path, start=found, **options
    )
    assert again == cost


def test_points_are_those_of_a_bare_loop():
    model = network(dropout=0.0)
    found = make(1.0, 12, model, optimizer=None, **LONG)
    truth = bare(model, batches(), batches(seed=1), 9)
    x, y = (torch.cat(part) for part in zip(*batches(seed=1), strict=True))
    assert [point.step for point in found.points] == [0, 4, 8, 16, 32]
    for point in found.points:
        assert point.error == pytest.approx(1 - truth.accuracies[point.step])
    with torch.no_grad():
        loss = nn.functional.cross_entropy(copy.deepcopy(model).eval()(x), y)
    assert found.points[0].loss == pytest.approx(float(loss), rel=1e-6)


def test_start_of_another_run_is_refused():
    found = make(1.0, 6)
    arguments = (network(), batches(), batches(seed=1), 1.0, 6)
    with pytest.raises(CheckpointError, match=r"found the forecast's with seed 0 instead of 3"):
        retrain(*arguments, optimizer=slow, meter=None, start=found, seed=3)
    with pytest.raises(CheckpointError, match="found the forecast's with optimizer"):
        retrain(*arguments, optimizer=sgd, meter=None, start=found)
    with pytest.raises(TypeError, match="start: expected a forecast with a checkpoint, found"):
        retrain(*arguments, start=3)


# Stages


def trained(model):
    cost, better = retrain(
        model,
        batches(samples=400),
        batches(seed=1),
        0.9,
        20,
        optimizer=fast,
        meter=None,
        return_model=True,
    )
    assert cost.reached
    return better


@pytest.fixture(scope="module")
def able():
    """90% of the test data."""
    return trained(network(dropout=0.0))


def test_a_target_that_is_met_costs_nothing(able):
    found = make(0.5, model=able)
    assert (found.stage, found.verdict, found.probe.steps) == ("free", None, 0)
    for cost in found.costs.values():
        assert (cost.value, cost.low, cost.high, cost.reason) == (0, 0, 0, None)
    assert found.accuracy == pytest.approx(accuracy(able, batches(seed=1)))
    cost = retrain(
        able, batches(), batches(seed=1), 0.5, 12, optimizer=slow, meter=None, start=found
    )
    assert (cost.reached, cost.steps) == (True, 0)


def scaled(data):
    """Another scale, and far from 0: what batch-norm undoes."""
    return [(x * 9 + 40, y) for x, y in data]


class Normal(nn.Sequential):
    """Batch-norm first, so that a shift of scale is undone by its statistics alone."""

    def __init__(self):
        super().__init__(nn.BatchNorm1d(6, affine=False), network(dropout=0.0))


def test_normalization_alone_may_do():
    model = trained(Normal())
    train, test = scaled(batches()), scaled(batches(seed=1))
    found = make(0.8, model=model, train=train, test=test)
    assert found.accuracy < 0.8 <= found.adapted_accuracy
    assert (found.stage, found.epochs.value, found.steps.high) == ("adapt", 0, 0)
    assert found.seconds.value > 0  # the forward pass that it takes
    assert accuracy(found.adapted_model, test) == pytest.approx(found.adapted_accuracy)
    asked = make(0.8, model=model, train=train, test=test, adapt_normalization=False, steps=())
    assert (asked.stage, asked.adapted_accuracy) == ("indices", None)


def test_without_steps_the_linear_probe_decides():
    found = make(0.6, steps=())
    assert (found.stage, found.formula, found.probe.steps) == ("indices", "R0", 0)
    assert found.verdict is None
    calibration, target = shipped(), Target(0.6, 50)
    given = features(target, found.before, None)
    expected = 2 ** sum(w * given[n] for n, w in calibration.formulas[0].weights.items())
    assert found.steps.value == pytest.approx(expected, rel=1e-9)
    around = 2 ** (calibration.formulas[0].sigma * 1.6448536)  # at the next check, every four steps
    assert found.steps.low == 4 * math.ceil(expected / around / 4)
    assert found.steps.high == 4 * math.ceil(expected * around / 4)
    assert found.epochs.value == pytest.approx(found.steps.value / 4)
    assert found.seconds.value is None
    assert "no step was taken" in found.seconds.reason
    logit = sum(w * given[n] for n, w in calibration.never[0].items())
    assert found.never_probability == pytest.approx(1 / (1 + math.exp(-logit)))


def test_linear_probe_is_that_of_the_embedding():
    model = network(dropout=0.0)
    found = make(model=model, steps=(), adapt_normalization=False)
    x, y = (torch.cat(part) for part in zip(*batches(), strict=True))
    with torch.no_grad():
        embedding = copy.deepcopy(model)[:-1].eval()(x)
    task = resque_ext.resque_task(embedding, y, max_iter=1, baselines=True)
    assert found.linear_probe_error == task.linear_probe_error


def test_probe_goes_on_while_the_interval_is_wide():
    assert make(**WIDE).probe.steps == 16
    assert make(1.0, 40, steps=(16, 32, 64), **LONG).probe.steps == 64
    short = make(steps=(16, 32, 64), width=1.0, max_share=1e-6)
    assert (short.probe.steps, short.formula) == (16, "R16")
    assert short.probe.share == pytest.approx(16 / short.steps.value)


def test_reached_at_a_check_of_the_retraining():
    found = make(0.6, optimizer=fast, checks_per_epoch=4)
    cost = retrain(
        network(),
        batches(),
        batches(seed=1),
        0.6,
        12,
        optimizer=fast,
        meter=None,
        checks_per_epoch=4,
    )
    assert 0 < cost.steps <= 32
    assert found.stage == "reached"
    assert found.steps.low == found.steps.value == found.steps.high == cost.steps
    assert found.epochs.value == cost.epochs
    again = retrain(
        network(),
        batches(),
        batches(seed=1),
        0.6,
        12,
        optimizer=fast,
        meter=None,
        checks_per_epoch=4,
        start=found,
    )
    assert again.without_times() == cost.without_times()


def test_reached_between_two_checks():
    train = batches(samples=800)  # 50 batches, one check
    found = make(0.6, train=train, optimizer=fast, **LONG)
    assert found.stage == "reached"
    assert found.points[-1].error <= 0.4
    assert (found.steps.low, found.steps.value, found.steps.high) == (50, 50, 100)


def test_limits_of_the_retraining_end_the_probe():
    found = make(1.0, epochs=2)
    assert (found.stage, found.probe.steps, found.formula) == ("indices", 8, "R0")
    assert any("own limit ended the probe: epochs" in note for note in found.notes)


def test_no_linear_probe_is_no_fault(monkeypatch):
    def refuses(*args, **options):
        raise ValueError("layer: nothing can be read")

    monkeypatch.setattr("resque_ext.forecasting.indices.score", refuses)
    found = make(1.0)
    assert (found.linear_probe_error, found.stage) == (None, "probe")
    assert found.formula == "curve of 32 steps"
    assert any(note.startswith("no linear probe: ") for note in found.notes)
    nothing = make(1.0, steps=())
    assert (nothing.stage, nothing.steps.value) == ("indices", None)
    assert nothing.steps.reason.startswith("no linear probe")


def test_matching_needs_old_data():
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))
    options = {"meter": None, "steps": ()}
    arguments = (batches(), batches(seed=1), 0.97, 9)
    assert forecast(model, None, *arguments, **options).adapted_accuracy is None
    found = forecast(model, batches(seed=2), *arguments, **options)
    assert found.adapted_accuracy is not None
    with pytest.raises(ValueError, match="expected old data and normalization to match, found no"):
        forecast(model, None, *arguments, adapt_normalization="match", **options)
    with pytest.raises(ValueError, match="expected a model with running statistics"):
        forecast(model, None, *arguments, adapt_normalization=True, **options)


def test_normalization_that_cannot_be_adapted_is_no_fault():
    """A last batch of one sample has no variance."""
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8).requires_grad_(False), nn.Linear(8, 3))
    train = batches(samples=49)  # 16, 16, 16 and 1; frozen batch-norm takes no statistics of it
    found = make(1.0, model=model, train=train, steps=())
    assert found.adapted_accuracy is None
    assert any("expected two or more values a channel" in note for note in found.notes)
    assert found.linear_probe_error is not None
    with pytest.raises(ValueError, match="expected two or more values a channel"):
        make(1.0, model=model, train=train, steps=(), adapt_normalization=True)


# Verdicts


def test_a_loss_that_rises_is_unstable(able):
    found = make(
        1.0,
        30,
        able,
        batches(seed=3),
        optimizer=lambda p: torch.optim.SGD(p, lr=3.0, momentum=0.9),
        **LONG,
    )
    assert found.points[-1].loss > found.points[0].loss
    assert found.verdict == UNSTABLE
    assert found.steps.high is None
    assert "the held-out loss rose" in found.steps.reason
    assert found.steps.low == 36  # the next check


def test_a_loss_that_is_not_finite_is_unstable():
    calls = []

    def loss(output, labels):
        calls.append(1)
        return nn.functional.cross_entropy(output, labels) * (math.nan if len(calls) > 20 else 1)

    found = make(1.0, loss=loss)
    assert (found.verdict, found.steps.high) == (UNSTABLE, None)
    assert any("found nan in step 21" in note for note in found.notes)


def noise(samples, seed):
    """Labels that inputs say nothing of."""
    rng = torch.Generator().manual_seed(seed)
    x, y = torch.randn(samples, 6, generator=rng), torch.randint(3, (samples,), generator=rng)
    return list(zip(x.split(16), y.split(16), strict=True))


def test_what_cannot_be_learned_may_never_be():
    found = make(0.95, 50, train=noise(200, 0), test=noise(200, 1))
    assert found.verdict == MAY_NEVER
    assert found.never_probability > 0.9
    assert found.steps.value is not None
    assert found.steps.high is None


# Ctrl-C


def interrupting(at):
    calls = []

    def loss(output, labels):
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        return nn.functional.cross_entropy(output, labels)

    return loss


@pytest.mark.parametrize(("at", "stage", "kept"), [(3, "indices", 0), (20, "probe", 16)])
def test_interrupt_gives_what_is_known(at, stage, kept):
    found = make(1.0, loss=interrupting(at))
    assert (found.interrupted, found.stage) == (True, stage)
    assert found.points[-1].step == kept
    assert found.steps.value is not None
    expected = retrain(
        network(),
        batches(),
        batches(seed=1),
        1.0,
        12,
        optimizer=slow,
        meter=None,
        loss=interrupting(-1),
    )
    cost = retrain(
        network(),
        batches(),
        batches(seed=1),
        1.0,
        12,
        optimizer=slow,
        meter=None,
        loss=interrupting(-1),
        start=found,
    )
    assert cost.without_times() == expected.without_times()


def test_interrupt_before_anything_is_known_passes():
    class Stops(nn.Module):
        def forward(self, x):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(model=nn.Sequential(network(), Stops()))


# What it says


def test_json_and_text():
    found = make(1.0)
    values = json.loads(found.to_json())
    assert values["format"] == "resque_ext.Forecast/1"
    assert values["costs"]["steps"]["value"] == found.steps.value
    assert values["points"][1]["step"] == 4
    assert "checkpoint" not in values
    assert "joules           unknown: all: no energy meter was asked for" in str(found)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": (16, 24)}, ValueError, "steps: expected ascending powers of two from 16"),
        ({"steps": (8, 16)}, ValueError, "steps: expected ascending powers of two from 16"),
        ({"steps": (32, 16)}, ValueError, "steps: expected ascending powers of two from 16"),
        ({"steps": 16}, TypeError, r"steps: expected numbers such as \(16, 32\), found 16"),
        ({"steps": (16.0,)}, TypeError, "steps: expected"),
        ({"max_share": 0}, ValueError, "max_share: expected a number above 0, found 0"),
        ({"max_share": 1.5}, ValueError, "max_share: expected at most 1, found 1.5"),
        ({"width": 0.5}, ValueError, "width: expected a factor of at least 1, found 0.5"),
        ({"coverage": 1}, ValueError, "coverage: expected 0.5 <= coverage < 1, found 1"),
        ({"samples": 0}, ValueError, "samples: expected"),
        ({"adapt_normalization": "yes"}, ValueError, "adapt_normalization: expected 'auto'"),
        ({"carbon_intensity": -1}, ValueError, "carbon_intensity: expected a number from 0"),
        ({"target": 1.2}, ValueError, "target_accuracy: expected a finite number above 0"),
        ({"patience": 0}, ValueError, "patience: expected"),
        ({"optimiser": slow}, TypeError, "forecast: expected arguments of retrain among optimizer"),
        ({"train": iter(batches())}, TypeError, "train: expected batches that can be read again"),
        ({"test": []}, ValueError, "test: expected at least one batch, found none"),
        ({"model": nn.ReLU()}, ValueError, "model: expected trainable parameters"),
        ({"meter": 3}, TypeError, "meter: expected an EnergyMeter, 'auto' or None"),
        ({"checks_per_epoch": 9}, ValueError, "checks_per_epoch: expected at most one check"),
    ],
)
def test_refuses(options, error, message):
    with pytest.raises(error, match=f"^{message}") as caught:
        make(**options)
    assert "\n" not in str(caught.value)


def test_reads_a_part_of_large_data():
    x, y = torch.randn(640, 6), torch.arange(640) % 3
    data = DataLoader(TensorDataset(x, y), 16, shuffle=True)
    seen = []

    class Counts(nn.Module):
        def forward(self, x):
            seen.append(len(x))
            return x

    model = nn.Sequential(Counts(), network())
    make(model=model, train=data, steps=(), samples=160, adapt_normalization=False)
    test = sum(len(labels) for _, labels in batches(seed=1))
    assert sum(seen) == test + 160
