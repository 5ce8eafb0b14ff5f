"""retrain: every measure against a bare loop and NumPy, stopping to the step, and determinism."""

import copy
import itertools
import random

import numpy as np
import pytest
import torch
from helpers.training_oracle import bare, batches, change, fast, loader, network, task
from torch import nn

from resque_ext import shifts
from resque_ext.retraining import retrain
from resque_ext.retraining.batches import Batches
from resque_ext.retraining.measures import StepLog
from resque_ext.retraining.random_state import Randomness

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
STEPS = 4  # of an epoch of `batches()`: 16, 16, 16 and 2 samples


def run(model=None, train=None, test=None, target=1.0, epochs=3, **options):
    model = network() if model is None else model
    train = batches() if train is None else train
    test = batches(seed=1) if test is None else test
    return retrain(model, train, test, target, epochs, **{"meter": None, **options})


def test_measures_are_those_of_a_bare_loop():
    model, train, test = network(), batches(), batches(seed=1)
    expected = bare(model, train, test, 3)
    cost, trained = run(model, train, test, return_model=True)
    assert (cost.stopped, cost.reached, cost.censored) == ("epochs", False, True)
    assert (cost.epochs, cost.steps, cost.samples) == (3.0, 12, 150)
    assert (cost.steps_per_epoch, cost.samples_per_epoch) == (4, 50)
    np.testing.assert_allclose(cost.gradient_norm.per_step, expected.norms, rtol=1e-6)
    np.testing.assert_allclose(cost.gradient_norm.mean, np.mean(expected.norms), rtol=1e-6)
    np.testing.assert_allclose(cost.gradient_norm.sum, np.sum(expected.norms), rtol=1e-6)
    np.testing.assert_allclose(cost.gradient_norm.last_of_epoch, expected.norms[3::4], rtol=1e-6)
    assert [c.accuracy for c in cost.accuracy] == expected.accuracies[::4]
    assert [(c.epochs, c.steps) for c in cost.accuracy] == [(0, 0), (1, 4), (2, 8), (3, 12)]
    sizes, losses = np.array(expected.sizes), np.array(expected.losses)
    by_epoch = [(losses * sizes)[i : i + 4].sum() / 50 for i in (0, 4, 8)]
    np.testing.assert_allclose(cost.loss_of_epoch, by_epoch, rtol=1e-6)

    ends = expected.weights[::4]
    found = cost.parameter_change
    for name, value in change(ends[3], ends[0]).items():
        assert found.per_tensor[name] == pytest.approx(value, rel=1e-12)
    for name, value in change(ends[3], ends[2]).items():
        assert found.previous_per_tensor[name] == pytest.approx(value, rel=1e-12)
    assert found.mean == pytest.approx(np.mean(list(change(ends[3], ends[0]).values())), rel=1e-12)
    for entry, (before, after) in zip(found.by_epoch, itertools.pairwise(ends), strict=True):
        assert entry.from_start == pytest.approx(np.mean(list(change(after, ends[0]).values())))
        assert entry.from_previous == pytest.approx(np.mean(list(change(after, before).values())))

    assert trained is not model
    assert not trained.training
    for name, tensor in expected.model.state_dict().items():
        assert torch.equal(trained.state_dict()[name], tensor), name


def test_every_part_of_the_recipe_is_an_argument():
    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)

    def decay(optimizer):
        return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)

    model, train, test = network(), loader(), loader(shuffle=False)
    expected = bare(model, train, test, 2, sgd, seed=5, scheduler=decay)
    calls = []

    def loss(output, labels):
        calls.append(len(labels))
        return nn.functional.cross_entropy(output, labels)

    cost, trained = run(
        model,
        train,
        test,
        epochs=2,
        optimizer=sgd,
        scheduler=decay,
        loss=loss,
        seed=5,
        return_model=True,
    )
    np.testing.assert_allclose(cost.gradient_norm.per_step, expected.norms, rtol=1e-6)
    assert calls == expected.sizes
    assert torch.equal(trained[0].weight, expected.model[0].weight)
    assert cost.options["optimizer"] == "SGD"
    assert cost.options["optimizer_groups"][0]["momentum"] == 0.9
    assert cost.options["scheduler"].endswith("decay")
    assert run(epochs=1).options["optimizer_groups"][0]["weight_decay"] == 1e-5


def test_norm_is_over_all_parameters_whatever_the_optimiser_holds():
    model = network()
    model(batches()[0][0]).sum().backward()  # old gradients of the caller's do not enter
    head = lambda p: torch.optim.SGD(p[-2:], lr=0.1)  # noqa: E731
    cost = run(model, epochs=2, optimizer=head)
    model.zero_grad()
    expected = bare(model, batches(), batches(seed=1), 2, head)
    assert not all(change(expected.weights[-1], expected.weights[0]).values())
    np.testing.assert_allclose(cost.gradient_norm.per_step, expected.norms, rtol=1e-6)


def test_epoch_schedule_steps_once_an_epoch():
    rates = []

    class Spy(torch.optim.Adam):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    run(
        epochs=3,
        optimizer=lambda p: Spy(p, lr=1.0),
        scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5),
        scheduler_interval="epoch",
    )
    assert rates == [1.0] * STEPS + [0.5] * STEPS + [0.25] * STEPS


@pytest.mark.parametrize("checks", [1, 2, 3, 4])
def test_stops_at_the_first_check_that_reaches_the_target(checks):
    model, train, test = network(), batches(), batches(seed=1)
    expected = bare(model, train, test, 12, fast)
    places = [0] + [
        4 * epoch + -(-4 * i // checks) for epoch in range(12) for i in range(1, checks + 1)
    ]
    for target in (0.45, 0.55, 0.65):
        stop = next(step for step in places if expected.accuracies[step] >= target)
        cost = run(model, train, test, target, 12, optimizer=fast, checks_per_epoch=checks)
        assert cost.reached
        assert cost.stopped == "target"
        assert cost.steps == stop
        assert cost.epochs == stop // 4 + 16 * (stop % 4) / 50
        assert cost.samples == sum(expected.sizes[:stop])
        assert cost.accuracy[-1].accuracy >= target > max(c.accuracy for c in cost.accuracy[:-1])
        assert [c.steps for c in cost.accuracy] == [p for p in places if p <= stop]
        norms = expected.norms[:stop]
        np.testing.assert_allclose(cost.gradient_norm.per_step, norms, rtol=1e-6)
        lasts = [*norms[3::4], *norms[-1:]] if stop % 4 else norms[3::4]
        np.testing.assert_allclose(cost.gradient_norm.last_of_epoch, lasts, rtol=1e-6)
        # The last, broken-off epoch is measured against the end of the one before.
        before = expected.weights[(stop - 1) // 4 * 4]
        for name, value in change(expected.weights[stop], before).items():
            assert cost.parameter_change.previous_per_tensor[name] == pytest.approx(
                value, rel=1e-12
            )


def test_a_model_that_is_good_already_costs_nothing():
    cost = run(target=0.01)
    assert (cost.reached, cost.epochs, cost.steps, len(cost.accuracy)) == (True, 0.0, 0, 1)
    assert (cost.gradient_norm.mean, cost.gradient_norm.sum, cost.gradient_norm.last) == (None,) * 3
    assert cost.gradient_norm.last_of_epoch == ()
    assert cost.parameter_change.mean == 0
    assert cost.train_seconds == 0
    assert cost.measures()["joules"] is None


@pytest.mark.parametrize(
    ("limit", "steps", "epochs"),
    [(0.1, 1, 16 / 50), (0.32, 1, 16 / 50), (0.65, 3, 48 / 50), (1, 4, 1.0), (1.5, 6, 1 + 32 / 50)],
)
def test_fraction_of_an_epoch_as_a_limit(limit, steps, epochs):
    cost = run(epochs=limit)
    assert (cost.stopped, cost.steps, cost.epochs) == ("epochs", steps, epochs)
    assert cost.accuracy[-1].steps == steps  # what the accuracy was in the end is known


def test_plateau():
    still = lambda p: torch.optim.SGD(p, lr=0.0)  # noqa: E731
    frozen_norm = nn.Sequential(nn.Linear(6, 3))
    cost = run(frozen_norm, epochs=50, optimizer=still, patience=3)
    assert (cost.stopped, cost.epochs, len(cost.accuracy)) == ("plateau", 3.0, 4)
    model, train, test = network(), batches(), batches(seed=1)
    accuracies = bare(model, train, test, 30, fast).accuracies[::4]
    best, since, epoch = accuracies[0], 0, 0
    while since < 2:
        epoch += 1
        better = accuracies[epoch] > best + 0.02
        best, since = (accuracies[epoch], 0) if better else (best, since + 1)
    cost = run(model, train, test, 1.0, 30, optimizer=fast, patience=2, min_improvement=0.02)
    assert (cost.stopped, cost.epochs) == ("plateau", epoch)


def test_wall_seconds_as_a_limit(monkeypatch):
    from resque_ext.retraining import meters

    now = itertools.count()
    monkeypatch.setattr(meters.time, "perf_counter", lambda: float(next(now)))
    cost = run(epochs=100, max_seconds=60)
    assert cost.stopped == "seconds"
    assert 0 < cost.steps < 60
    assert cost.train_seconds + cost.evaluation_seconds >= 60


def test_seconds_are_those_of_the_phases():
    import time

    class Slow(nn.Linear):
        def forward(self, x):
            time.sleep(0.02 if self.training else 0.01)
            return super().forward(x)

    cost = run(nn.Sequential(Slow(6, 3)), epochs=2)
    assert 8 * 0.02 <= cost.train_seconds < 8 * 0.02 + 0.5
    assert 12 * 0.01 <= cost.evaluation_seconds < 12 * 0.01 + 0.5


@pytest.mark.parametrize("device", DEVICES)
def test_same_seed_same_record(device):
    model = network().to(device)
    options = {"optimizer": fast, "checks_per_epoch": 2, "epochs": 2}
    first = run(model, loader(), seed=7, **options)
    torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
    again = run(model, loader(), seed=7, **options)
    assert first.without_times() == again.without_times()
    other = run(model, loader(), seed=8, **options)
    assert first.gradient_norm.per_step != other.gradient_norm.per_step


def test_number_of_checks_does_not_change_the_training():
    test = loader(seed=1)  # shuffled, so that evaluations draw random numbers
    noise = lambda x: x + 0.1 * torch.randn_like(x)  # noqa: E731
    costs = [run(train=loader(), test=test, transform=noise, checks_per_epoch=c) for c in (1, 4)]
    assert costs[0].gradient_norm == costs[1].gradient_norm
    assert costs[0].accuracy == costs[1].accuracy[::4]


def test_random_states_and_loaders_generators_come_back():
    np.random.seed(123)  # noqa: NPY002
    random.seed(123)
    rng = torch.Generator().manual_seed(3)
    train = loader(generator=rng)
    own, mine = rng.get_state(), torch.get_rng_state()
    numpy, python = np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    first = run(train=train)
    assert torch.equal(rng.get_state(), own)
    assert torch.equal(torch.get_rng_state(), mine)
    assert np.array_equal(np.random.get_state()[1], numpy)  # noqa: NPY002
    assert random.getstate() == python
    torch.rand(1, generator=rng)  # the run's order does not come from where the caller's stands
    assert run(train=train).without_times() == first.without_times()


def test_deterministic_over_numbers_of_workers():
    costs = [run(train=loader(num_workers=n), epochs=1).without_times() for n in (0, 1)]
    assert costs[0] == costs[1]


def test_shift_as_transform_acts_on_both_sides_and_augment_on_one():
    x = torch.rand(24, 1, 4, 4)
    y = torch.arange(24) % 3
    data = list(zip(x.split(8), y.split(8), strict=True))
    seen = {True: [], False: []}

    class Look(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(16, 3)

        def forward(self, x):
            seen[self.training].append(x.clone())
            return self.head(x.flatten(1))

    shift = shifts.make("gaussian", 0.3, seed=4)
    shift(x)  # a sequence that has begun elsewhere, and goes on there
    before = copy.deepcopy(shift)
    run(Look(), data, data, epochs=2, transform=shift, augment=lambda x: x.mul_(2))
    fresh = shifts.make("gaussian", 0.3, seed=4)
    expected = [fresh(images) for images, _ in data]
    for passes, factor in ((seen[False], 1), (seen[True], 2)):
        assert len(passes) == (9 if factor == 1 else 6)
        for i, images in enumerate(passes):
            assert torch.equal(images, factor * expected[i % 3])
    assert torch.equal(shift(x), before(x))
    assert torch.equal(torch.cat([images for images, _ in data]), x)  # nothing was changed in place


def test_dict_inputs_adapters_and_outputs_with_logits():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, values, scale):
            return type("Output", (), {"logits": self.inner(values) * scale})()

    data = [{"pixels": x, "label": y} for x, y in batches()]
    adapter = lambda b: ({"values": b["pixels"], "scale": torch.ones(1)}, b["label"])  # noqa: E731
    cost = run(Named(), data, data, batch_adapter=adapter)
    plain = run(network(), batches(), batches())
    assert cost.gradient_norm.per_step == plain.gradient_norm.per_step
    assert cost.accuracy == plain.accuracy


def test_a_loss_of_ones_own_takes_any_labels():
    soft = [(x, nn.functional.one_hot(y, 3).float()) for x, y in batches()]
    cost = run(train=soft, test=batches(), loss=nn.functional.cross_entropy, epochs=1)
    assert cost.gradient_norm.per_step == pytest.approx(run(epochs=1).gradient_norm.per_step)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    seen = []

    class Look(nn.Module):
        def forward(self, x):
            seen.append(x.dtype)
            return x

    model = nn.Sequential(nn.Linear(6, 8), Look(), nn.Linear(8, 3))
    with torch.autocast("cpu", torch.bfloat16):  # the caller's own does not count
        cost = run(model, epochs=1, autocast=dtype)
        assert set(seen) == {dtype}
        seen.clear()
        run(model, epochs=1)
        assert set(seen) == {torch.float32}
    exact = run(model, epochs=1).gradient_norm.per_step
    np.testing.assert_allclose(cost.gradient_norm.per_step, exact, rtol=0.05)
    assert cost.skipped_steps == 0
    assert cost.options["autocast"] == str(dtype)


def test_float16_steps_that_overflow_are_skipped_and_counted():
    model = nn.Sequential(nn.Linear(6, 3))
    huge = [(x * 1e3 if i == 1 else x, y) for i, (x, y) in enumerate(batches())]
    before = model[0].weight.detach().clone()
    cost, trained = run(model, huge, epochs=1, autocast=torch.float16, return_model=True)
    assert cost.skipped_steps == 1
    assert [norm is None for norm in cost.gradient_norm.per_step] == [False, True, False, False]
    known = [norm for norm in cost.gradient_norm.per_step if norm is not None]
    assert cost.gradient_norm.mean == pytest.approx(np.mean(known))
    assert not torch.equal(trained[0].weight, before)
    assert trained[0].weight.isfinite().all()


def test_channels_last():
    seen = []

    class Look(nn.Conv2d):
        def forward(self, x):
            seen.append(x.is_contiguous(memory_format=torch.channels_last))
            seen.append(self.weight.is_contiguous(memory_format=torch.channels_last))
            return super().forward(x)

    model = nn.Sequential(Look(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    data = [(torch.rand(8, 3, 6, 6), torch.arange(8) % 3)]
    run(model, data, data, epochs=1, channels_last=True)
    assert all(seen)
    assert not model[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_caller_s_model_is_bitwise_unchanged():
    model = network()
    model[1].running_mean.uniform_(-1, 1)
    model(batches()[0][0]).sum().backward()  # gradients of the caller's own
    model.eval()
    model[0].train()
    state = copy.deepcopy(model.state_dict())
    grads = [p.grad.clone() for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    cost = run(model, return_model=True)[0]
    assert cost.parameter_change.mean > 0
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
    assert [m.training for m in model.modules()] == modes


def test_runs_inside_no_grad_and_inference_mode():
    expected = run().without_times()
    with torch.no_grad():
        assert run().without_times() == expected
    with torch.inference_mode():
        model = network()
        assert run(model).without_times() == expected


def test_wrapped_models():
    expected = run().without_times()
    assert run(nn.DataParallel(network())).without_times() == expected
    assert run(torch.compile(network())).without_times() == expected


def test_frozen_parts_stay_and_are_not_tracked():
    model = network()
    for parameter in [*model[0].parameters(), *model[1].parameters()]:
        parameter.requires_grad_(False)
    cost, trained = run(model, return_model=True)
    assert list(cost.parameter_change.per_tensor) == ["4.weight", "4.bias"]
    for i in (0, 1):  # running statistics included
        for name, tensor in trained[i].state_dict().items():
            assert torch.equal(tensor, model[i].state_dict()[name]), name


def test_reading_in_portions_finds_the_same(monkeypatch):
    """As on CUDA, where steps are read 64 at a time."""
    expected = run(epochs=3)
    original = StepLog.__init__

    def portions(self, device):
        original(self, device)
        self.capacity = 3
        self._values = torch.zeros(3, 3)

    monkeypatch.setattr(StepLog, "__init__", portions)
    assert run(epochs=3).without_times() == expected.without_times()


@pytest.mark.parametrize("drop_last", [False, True])
def test_passes_are_counted_without_reading_where_a_loader_tells(drop_last):
    data = loader(drop_last=drop_last)
    counted = Batches(data, "data", torch.device("cpu"), None, indices=True)
    counted.measure(Randomness(torch.device("cpu"), (data,)))
    assert (counted.count, counted.samples) == ((3, 48) if drop_last else (4, 50))
    assert (counted.count, counted.samples) == (len(data), sum(len(y) for _, y in data))


def test_loader_without_a_length():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return zip(*task(), strict=True)

    stream = torch.utils.data.DataLoader(Stream(), 16)
    known = run(train=loader(shuffle=False), checks_per_epoch=4)
    assert run(train=stream, checks_per_epoch=4).without_times() == known.without_times()


@pytest.mark.parametrize(
    "form", [lambda y: {"logits": y, "other": y}, lambda y: (y, y.sum()), lambda y: {"scores": y}]
)
def test_scores_by_key_or_position(form):
    class Formed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, x):
            return form(self.inner(x))

    cost = run(Formed(), batches(), batches(), epochs=1)
    assert cost.gradient_norm.per_step == run(epochs=1).gradient_norm.per_step
