"""ForecastTracker in a plain loop: what it tells and sums up, and what it leaves alone."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import resque_ext
from resque_ext.callbacks import ForecastTracker
from resque_ext.callbacks.tracker import like


def batches(seed, count):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(20) % 4
    means = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    return [
        (means[labels] + 0.7 * torch.randn(20, 8, generator=generator), labels)
        for _ in range(count)
    ]


TRAIN, TEST = batches(1, 10), batches(2, 5)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def evaluated(model):
    with torch.no_grad():
        scores = torch.cat([model(x) for x, _ in TEST])
    labels = torch.cat([y for _, y in TEST])
    accuracy = (scores.argmax(1) == labels).float().mean().item()
    return accuracy, nn.functional.cross_entropy(scores, labels).item()


def trained(tracker=None, epochs=8):
    """The weights after training, and the step at which each evaluation met 0.9 first."""
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    if tracker is not None:
        tracker.begin(model, optimizer=optimizer)
    step, first = 0, None
    for epoch in range(epochs):
        for i in torch.randperm(len(TRAIN)).tolist():  # torch's own generator
            x, y = TRAIN[i]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            step += 1
        accuracy, loss = evaluated(model)
        if first is None and accuracy >= 0.9:
            first = step
        if tracker is not None:
            tracker.check(step, epoch + 1.0, accuracy, loss)
    if tracker is not None:
        tracker.end(step, float(epochs))
    return model, first


@pytest.mark.full
def test_it_compares_the_forecast_with_what_the_training_took():
    told = []
    tracker = ForecastTracker(TRAIN, TEST, 0.9, report=lambda n, step: told.append((step, n)))
    torch.manual_seed(3)
    model, first = trained(tracker)
    torch.manual_seed(3)
    alone, _ = trained()
    assert all(map(torch.equal, model.parameters(), alone.parameters()))  # nothing was disturbed
    found = tracker.summary()
    assert (found["steps"], found["reached"]) == (first, True)
    assert first is not None
    assert found["forecast_steps"] == tracker.forecast.steps.value
    assert found["ratio"] == pytest.approx(tracker.forecast.steps.value / first)
    low, high = found["forecast_steps_low"], found["forecast_steps_high"]
    assert found["inside"] is (low <= first and (high is None or first <= high))
    assert [each.step for each in tracker.outlooks] == [10 * i for i in range(1, 9)]
    assert [step for step, _ in told] == [0, *range(10, 81, 10), 80]
    assert all(isinstance(v, float) for _, numbers in told for v in numbers.values())
    assert told[0][1]["forecast/steps"] == found["forecast_steps"]
    assert told[-1][1]["forecast/steps"] == first


@pytest.mark.full
def test_the_forecast_is_that_of_the_function():
    tracker = ForecastTracker(TRAIN, TEST, 0.9, steps=(16,))
    found = tracker.begin(net(), optimizer=torch.optim.SGD(net().parameters(), 0.01, 0.9))
    alone = resque_ext.forecast(
        net(),
        None,
        TRAIN,
        TEST,
        0.9,
        steps=(16,),
        optimizer=lambda parameters: torch.optim.SGD(parameters, 0.01, 0.9),
        meter=None,
    )
    assert found.points == alone.points
    assert found.steps.value == alone.steps.value


def test_a_resumed_training_is_timed_from_where_it_was_resumed(monkeypatch):
    """Two seconds a step, whatever was taken before."""
    now = SimpleNamespace(seconds=0.0)
    clock = SimpleNamespace(perf_counter=lambda: now.seconds)
    monkeypatch.setattr("resque_ext.callbacks.tracker.time", clock)
    tracker = ForecastTracker(TRAIN, TEST, 0.99, steps=(16,))
    forecast = tracker.begin(net(), step=100)
    for step, accuracy in ((110, 0.5), (120, 0.6), (130, 0.7)):
        now.seconds = 2.0 * (step - 100)
        found = tracker.check(step, step / 10, accuracy, 1.0)
        assert found.seconds_left.value == pytest.approx(2 * (found.steps.value - step))
    # The forecast is of the steps from there on, and so is what it is compared with.
    tracker.check(140, 14.0, 0.99, 0.1)
    taken = tracker.summary()
    assert taken["steps"] == 40
    assert taken["ratio"] == pytest.approx(forecast.steps.value / 40)


@pytest.mark.full
def test_an_optimizer_alike():
    given = torch.optim.AdamW(net().parameters(), 0.02, weight_decay=0.3)
    made = like(given)(list(net().parameters()))
    assert type(made) is torch.optim.AdamW
    assert (made.defaults["lr"], made.defaults["weight_decay"]) == (0.02, 0.3)


def test_order_and_arguments_are_checked():
    with pytest.raises(RuntimeError, match=r"check: expected begin\(\) first, found no forecast"):
        ForecastTracker(TRAIN, TEST, 0.9).check(1, 0.1, 0.5, 1.0)
    with pytest.raises(RuntimeError, match=r"summary: expected begin\(\) first"):
        ForecastTracker(TRAIN, TEST, 0.9).summary()
    with pytest.raises(TypeError, match="report: expected a function"):
        ForecastTracker(TRAIN, TEST, 0.9, report=3)
