"""on_forecast: how far a run has to go, told at every check, without a trace in the run."""

import math

import numpy as np
import pytest
import torch
from helpers.training_oracle import batches, network

from resque_ext import forecast
from resque_ext.retraining import Outlook, Span, retrain
from resque_ext.retraining.calibration import Before, Calibration, Formula
from resque_ext.retraining.outlook import UNSTABLE, Watch, shown_time
from resque_ext.retraining.target import Checks, Target


def slow(parameters):
    return torch.optim.Adam(parameters, lr=3e-3)


LINE = Formula({"constant": 0.0, "octaves": 1.0}, 0.6, 0.8)  # a sigma of 1
BARE = Calibration({}, LINE, LINE, {0: {"probe": 1.0}}, 1000, 6.0, {})
OPTIONS = {"meter": None, "optimizer": slow, "checks_per_epoch": 2}


def run(target=0.75, epochs=40, **options):
    found = []
    cost = retrain(
        network(),
        batches(samples=200),
        batches(seed=1),
        target,
        epochs,
        on_forecast=found.append,
        **OPTIONS | options,
    )
    return cost, found


def test_is_told_at_every_check_and_leaves_no_trace():
    cost, found = run()
    plain = retrain(network(), batches(samples=200), batches(seed=1), 0.75, 40, **OPTIONS)
    assert cost.without_times() == plain.without_times()
    assert cost.reached
    assert [o.step for o in found] == [check.steps for check in cost.accuracy]
    assert [o.accuracy for o in found] == [check.accuracy for check in cost.accuracy]
    assert all(isinstance(o, Outlook) for o in found)
    last = found[-1]
    assert (last.reached, last.steps, last.seconds_left) == (
        True,
        Span(cost.steps, cost.steps, cost.steps),
        Span(0, 0, 0),
    )
    assert last.epochs.value == pytest.approx(cost.epochs)


def test_before_two_checks_nothing_is_known():
    _, found = run(epochs=2)
    assert (found[0].steps, found[0].epochs, found[0].seconds_left) == (None, None, None)
    assert found[0].reason == "two checks in the last three quarters of the steps are needed"
    assert found[2].steps is not None
    assert found[2].reason is None


def test_is_the_line_through_the_last_three_quarters():
    """By NumPy, of a curve whose loss and error halve with every doubling of the steps."""
    told = []
    watch = Watch(Target(0.98, 10_000), Checks.of([10], 10), (), Before(), BARE, told.append)
    steps = np.array([10, 20, 40, 80])
    for step in steps:
        watch.look(int(step), step / 10, 1 - 3.2 / step, 3.3 * 3.2 / step, seconds(step))
    # 3.2 / steps is 0.02 at 160, one doubling behind the last check.
    assert told[-1].steps.value == pytest.approx(160, rel=1e-6)
    assert told[-1].epochs.value == pytest.approx(16, rel=1e-6)
    around = 2**1.6448536
    assert told[-1].steps.low == math.ceil(max(160 / around, 90) / 10) * 10
    assert told[-1].steps.high == math.ceil(160 * around / 10) * 10
    # A tenth of a second a step, two seconds a check.
    assert told[-1].seconds_left.value == pytest.approx(80 * 0.1 + 8 * 2.0)


def seconds(step):
    return {"training": 0.1 * step, "evaluation": 2.0 * (1 + step // 10)}


def test_a_loss_that_rises_opens_the_interval():
    watch = Watch(Target(0.98, 1000), Checks.of([10], 10), (), Before(), None, None)
    for step, loss in ((0, 0.5), (10, 0.9), (20, 1.8), (40, 2.0)):
        found = watch.look(step, step / 10, 0.6, loss, seconds(step))
    assert (found.verdict, found.steps.high, found.seconds_left.high) == (UNSTABLE, None, None)
    assert found.steps.low == 50
    assert "unstable" in str(found)


def test_goes_on_from_the_points_of_a_forecast():
    train, test = batches(samples=200), batches(seed=1)
    arguments = network(), train, test, 1.0, 12
    begun = forecast(network(), None, *arguments[1:], **OPTIONS, max_share=1.0, width=1.0)
    assert begun.probe.steps == 32
    found = []
    cost = retrain(*arguments, start=begun, on_forecast=found.append, **OPTIONS)
    assert found[0].step > 32
    assert found[0].steps is not None
    expected = retrain(*arguments, **OPTIONS)
    assert cost.without_times() == expected.without_times()


def test_stands_in_the_progress_bar(capsys):
    run(progress=True)
    err = capsys.readouterr().err
    assert "of 75.0%" in err
    assert "left (" in err


def test_what_it_raises_ends_the_run_with_its_record():
    def stop(outlook):
        if outlook.step > 20:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough") as caught:
        retrain(network(), batches(), batches(seed=1), 1.0, 40, on_forecast=stop, **OPTIONS)
    assert caught.value.record.steps > 20
    with pytest.raises(TypeError, match="on_forecast: expected a function, found int"):
        retrain(network(), batches(), batches(seed=1), 1.0, 4, on_forecast=3)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.25, "0.25 s"), (45.2, "45 s"), (200, "3:20"), (7500, "2:05:00")]
)
def test_times_for_people(seconds, text):
    assert shown_time(seconds) == text


def test_what_an_outlook_cannot_be_relied_on_for():
    _, found = run(epochs=2)
    early, later = found[0], found[2]
    assert (early.reliable, early.warnings) == (False, (early.reason,))
    assert later.to_dict()["warnings"] == list(later.warnings)
    assert later.reliable == (later.verdict is None)
