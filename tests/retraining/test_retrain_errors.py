"""retrain: bad input is one clear error; what ends a run carries what was measured."""

import copy
import itertools
import math

import pytest
import torch
from helpers.training_oracle import bare, batches, fast, loader, network, task
from torch import nn

from resque_ext.energy import EnergyMeter
from resque_ext.retraining import RetrainingCost, RetrainingError, retrain
from resque_ext.retraining.measures import StepLog


def run(model=None, train=None, test=None, target=1.0, epochs=3, **options):
    model = network() if model is None else model
    train = batches() if train is None else train
    test = batches(seed=1) if test is None else test
    return retrain(model, train, test, target, epochs, **{"meter": None, **options})


def refuses(error, message, **options):
    """One line, that says which argument, what was expected and what was found."""
    with pytest.raises(error, match=message) as caught:
        run(**options)
    text = str(caught.value)
    assert "\n" not in text
    assert "expected" in text
    assert "found" in text


@pytest.mark.parametrize("target", [0, -0.1, 1.0001, 95, math.nan, math.inf])
def test_target_out_of_range(target):
    refuses(ValueError, "^target_accuracy: expected .* above 0 and at most 1", target=target)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("target", "0.9", TypeError),
        ("target", True, TypeError),
        ("epochs", 0, ValueError),
        ("epochs", -1, ValueError),
        ("epochs", math.inf, ValueError),
        ("epochs", None, TypeError),
        ("max_seconds", 0, ValueError),
        ("max_seconds", math.nan, ValueError),
        ("max_joules", -3, ValueError),
        ("patience", 0, ValueError),
        ("patience", 1.5, TypeError),
        ("min_improvement", -0.1, ValueError),
        ("checks_per_epoch", 0, ValueError),
        ("checks_per_epoch", 5, ValueError),  # more than batches
        ("checks_per_epoch", 2.0, TypeError),
        ("seed", -1, ValueError),
        ("seed", 2**32, ValueError),
        ("seed", 0.5, TypeError),
        ("seed", True, TypeError),
        ("autocast", torch.float64, ValueError),
        ("autocast", "bf16", ValueError),
        ("scheduler_interval", "batch", ValueError),
        ("optimizer", "adam", TypeError),
        ("optimizer", lambda p: p, TypeError),
        ("optimizer", lambda p: fast(network().parameters()), ValueError),
        ("scheduler", 3, TypeError),
        ("loss", "cross_entropy", TypeError),
        ("loss", lambda output, labels: 0.5, TypeError),
        ("loss", lambda output, labels: output.sum(1), TypeError),
        ("loss", lambda output, labels: torch.zeros(()), ValueError),
        ("transform", 0, TypeError),
        ("augment", "flip", TypeError),
        ("batch_adapter", 7, TypeError),
        ("meter", 3, TypeError),
        ("meter", "none", TypeError),
        ("device", "nowhere", ValueError),
        ("device", "meta", ValueError),
        ("device", "cuda:99", ValueError),
        ("checkpoint", 3, TypeError),
        ("checkpoint", "/nowhere/at/all/run", ValueError),
    ],
)
def test_arguments(name, value, error):
    shown = {"target": "target_accuracy", "epochs": "max_epochs"}.get(name, name)
    refuses(error, rf"^{shown}: ", **{name: value})


def test_a_budget_of_energy_needs_a_meter():
    refuses(ValueError, "^meter: ", max_joules=1)


def test_models():
    frozen = network()
    for parameter in frozen.parameters():
        parameter.requires_grad_(False)
    refuses(ValueError, "^model: expected trainable parameters, found 6 frozen", model=frozen)
    refuses(ValueError, "^model: expected trainable parameters, found no", model=nn.Flatten())
    refuses(TypeError, "^model: ", model=lambda x: x)
    for head in (nn.Linear(8, 1), nn.Unflatten(1, (2, 4)), nn.LSTM(8, 1)):
        model = nn.Sequential(nn.Linear(6, 8), head)
        refuses(ValueError, r"^model: expected an output \[N, C\]", model=model)
    half = nn.Sequential(
        nn.Linear(6, 8), nn.Unflatten(1, (2, 4)), nn.Flatten(0, 1), nn.Linear(4, 3)
    )
    refuses(ValueError, r"^model: expected one output a label \(16\)", model=half)


@pytest.mark.parametrize("side", ["train", "test"])
def test_batches(side):
    name = f"{side}_batches"
    x, y = task()

    def expect(error, message, data, **options):
        refuses(error, f"^{name}{message}", **{side: data}, **options)

    expect(ValueError, ": expected at least one batch, found none", [])
    empty = torch.utils.data.TensorDataset(x[:0], y[:0])
    expect(ValueError, ": expected at least one batch", torch.utils.data.DataLoader(empty, 4))
    expect(ValueError, ": expected at least one sample.* batch 1", [(x, y), (x[:0], y[:0])])
    expect(TypeError, ": expected an iterable", 5)
    expect(TypeError, ": expected .* again and again", iter(batches()))
    expect(TypeError, ": expected .* again and again", (b for b in batches()))
    expect(TypeError, r": expected batches \(inputs, labels\), found dict", [{"x": x, "y": y}])
    expect(TypeError, r": expected batches \(inputs, labels\), found tuple", [(x, y, y)])
    expect(TypeError, r": expected batches \(inputs, labels\), found shape", [x])
    expect(TypeError, " labels: expected int32 or int64", [(x, y.float())])
    expect(ValueError, r" labels: expected shape \[N\]", [(x, nn.functional.one_hot(y))])
    expect(ValueError, " labels: expected class indices from 0 to 2", [(x, y + 1)])
    expect(ValueError, " labels: expected class indices from 0 to 2", [(x, y - 1)])


@pytest.mark.parametrize("side", ["train", "test"])
@pytest.mark.parametrize("later", [1, 7])
def test_loader_that_changes_its_length(side, later):
    class Changing:
        passes = 0

        def __iter__(self):
            self.passes += 1
            return iter(batches()[: 3 if self.passes < 4 else later])

    with pytest.raises(ValueError, match=rf"^{side}_batches: .*in every pass") as caught:
        run(epochs=9, **{side: Changing()})
    assert "3 batches with 48 samples" in str(caught.value)
    assert caught.value.record.steps > 0


def test_loader_that_never_ends():
    class Endless:
        passes = 0

        def __iter__(self):
            self.passes += 1
            return iter(batches()) if self.passes < 3 else itertools.cycle(batches())

    with pytest.raises(ValueError, match=r"^train_batches: .* found more than 4 batches") as caught:
        run(train=Endless(), epochs=9)
    assert caught.value.record.steps == 8


def test_loss_that_is_not_a_number():
    model, data = network(), batches()
    expected = bare(model, data, data, 2)
    count = iter(range(100))

    def loss(output, labels):
        value = nn.functional.cross_entropy(output, labels)
        return value * math.nan if next(count) == 6 else value

    with pytest.raises(RetrainingError, match=r"^loss: expected a finite .* nan in step 7$") as e:
        run(model, loss=loss)
    assert e.value.step == 7
    record = e.value.record
    assert (record.stopped, record.reached, record.steps) == ("error", False, 6)
    assert record.epochs == 1 + 32 / 50
    assert record.gradient_norm.per_step == pytest.approx(expected.norms[:6], rel=1e-6)
    assert record.parameter_change.mean > 0
    assert RetrainingCost.from_json(record.to_json()) == record


def test_gradient_that_is_not_finite():
    class Cliff(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * math.inf

    def loss(output, labels):
        return nn.functional.cross_entropy(Cliff.apply(output), labels)

    with pytest.raises(RetrainingError, match=r"^gradient: .* in step 1$") as e:
        run(loss=loss)
    assert (e.value.record.steps, e.value.record.epochs) == (0, 0.0)
    assert e.value.record.gradient_norm.per_step == ()


def test_faults_that_are_read_later_are_told_of_their_step(monkeypatch):
    """As on CUDA, where steps are read 64 at a time and training is ahead of them."""
    original = StepLog.__init__

    def portions(self, device):
        original(self, device)
        self.capacity = 4
        self._values = torch.zeros(4, 3)

    monkeypatch.setattr(StepLog, "__init__", portions)
    count = iter(range(100))

    def loss(output, labels):
        value = nn.functional.cross_entropy(output, labels)
        return value * math.nan if next(count) == 5 else value

    with pytest.raises(RetrainingError, match=r"in step 6$") as e:
        run(loss=loss)
    record = e.value.record
    assert (record.steps, record.samples, len(record.gradient_norm.per_step)) == (5, 66, 5)
    assert record.epochs == 1 + 16 / 50
    assert record.parameter_change.mean is None  # the weights went on to NaN before it was read
    assert RetrainingCost.from_json(record.to_json()) == record


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ZeroDivisionError, SystemExit])
def test_what_ends_a_run_carries_the_record(kind):
    class Ends(nn.Module):
        calls = 0

        def forward(self, x):
            Ends.calls += self.training
            if Ends.calls == 6:
                raise kind("enough")
            return x

    model = nn.Sequential(network(), Ends())
    state = copy.deepcopy(model.state_dict())
    expected = bare(network(), batches(), batches(seed=1), 2)
    before = torch.get_rng_state()
    with pytest.raises(kind, match="enough") as caught:
        run(model)
    record = caught.value.record
    assert record.stopped == ("interrupted" if kind is KeyboardInterrupt else "error")
    assert (record.steps, record.epochs) == (5, 1 + 16 / 50)
    assert record.gradient_norm.per_step == pytest.approx(expected.norms[:5], rel=1e-6)
    assert [c.accuracy for c in record.accuracy] == expected.accuracies[:5:4]
    assert len(record.parameter_change.by_epoch) == 2
    assert RetrainingCost.from_json(record.to_json()) == record
    assert torch.equal(torch.get_rng_state(), before)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_exceptions_of_loaders_pass_unchanged():
    class Broken(torch.utils.data.Dataset):
        def __len__(self):
            return 20

        def __getitem__(self, i):
            if i == 13:
                raise OSError("disk")
            return torch.zeros(6), 0

    data = torch.utils.data.DataLoader(Broken(), 4)
    with pytest.raises(OSError, match=r"^disk$") as caught:
        run(train=data)
    assert caught.value.record.steps == 3


def test_interrupted_in_the_first_evaluation():
    class Ends(nn.Linear):
        def forward(self, x):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        run(Ends(6, 3))
    record = caught.value.record
    assert (record.steps, record.accuracy, record.start_accuracy) == (0, (), None)
    assert RetrainingCost.from_json(record.to_json()) == record


def test_meter_of_the_caller_is_left_with_no_window_of_ours():
    with EnergyMeter(gpus=(), cpu=False) as meter:
        meter.begin("mine")
        run(meter=meter, train=loader())
        with pytest.raises(ValueError, match="labels"):
            run(meter=meter, train=[(task()[0], task()[1] + 9)])
        assert list(meter._windows) == ["mine"]
        meter.end("mine")
