"""Seconds, joules and emissions of a forecast, on a GPU whose power is known."""

import pytest
import torch
from helpers.energy_made import make
from helpers.fake_nvml import FakeGpu
from helpers.training_oracle import batches, network
from torch import nn

from resque_ext.energy import EnergyMeter, Figure
from resque_ext.energy.measurement import Measurement
from resque_ext.forecasting import forecast
from resque_ext.forecasting.costs import Costs, Steps
from resque_ext.forecasting.probe import Each
from resque_ext.retraining.target import Checks

WATTS = 100.0  # of the GPU


class Takes(nn.Module):
    """Lets the clock run in every forward pass."""

    def __init__(self, clock, training, evaluation):
        super().__init__()
        self.clock, self.seconds = clock, (evaluation, training)

    def forward(self, x):
        self.clock.sleep(self.seconds[self.training])
        return x

    def __deepcopy__(self, memo):
        return Takes(self.clock, self.seconds[1], self.seconds[0])


def probed(training, evaluation, **options):
    """A forecast by 32 steps; evaluations have four batches, and so has an epoch."""
    meter, _, clock = make(FakeGpu(), carbon_intensity=250)
    model = nn.Sequential(network(), Takes(clock, training, evaluation))
    with meter:
        return forecast(
            model,
            None,
            batches(),
            batches(seed=1),
            1.0,
            40,
            meter=meter,
            width=1.0,
            max_share=1.0,
            adapt_normalization=False,
            **options,
        )


def test_energy_is_steps_and_evaluations_times_their_own():
    found = probed(0.5, 0.25)
    assert found.probe.extra_steps == 0
    for end in ("value", "low", "high"):
        steps = getattr(found.steps, end)
        if steps is None:  # open: the target may never be reached
            assert end == "high"
            assert found.joules.high is None
            continue
        joules = WATTS * (0.5 * steps + 4 * 0.25 * (1 + steps // 4))
        assert getattr(found.joules, end) == pytest.approx(joules, rel=1e-3)
        assert getattr(found.kwh, end) == pytest.approx(joules / 3.6e6, rel=1e-3)
        assert getattr(found.kg_co2, end) == pytest.approx(joules / 3.6e6 * 0.25, rel=1e-3)
    assert found.joules.basis == "prediction by R32; measured a step and an evaluation"
    # The forecast's own: 32 steps; before them, after every epoch, and passes for the linear probe.
    assert found.probe.joules > WATTS * (32 * 0.5 + 9 * 1.0)


def test_coarse_counter_gets_a_longer_window():
    """28 steps of 20 ms are less than ten updates of the counter."""
    found = probed(0.02, 0.01)
    assert found.probe.extra_steps >= 22
    assert found.probe.steps == 32
    steps = found.steps.value
    joules = WATTS * (0.02 * steps + 0.04 * (1 + steps // 4))
    assert found.joules.value == pytest.approx(joules, rel=0.02)


def test_given_intensity_wins():
    found, other = probed(0.5, 0.25), probed(0.5, 0.25, carbon_intensity=500)
    assert other.kg_co2.value == pytest.approx(2 * found.kg_co2.value)


def test_nothing_measured_is_none_with_the_reason():
    with EnergyMeter((), cpu=False) as meter:
        found = forecast(
            network(), None, batches(), batches(seed=1), 1.0, 40, meter=meter, width=1.0
        )
    assert found.joules.value is None
    assert found.joules.reason
    assert found.kwh.reason == found.kg_co2.reason == found.joules.reason
    assert found.seconds.value > 0


def each(count, seconds, joules=None, guess=None):
    if joules is None:
        figures = [Figure("cpu", None, "J", "none", reason="no counter")]
    else:
        figures = [Figure("cpu", joules, "J", "rapl")]
    if guess is not None:
        figures.append(Figure("cpu", guess, "J", "estimate"))
    unknown = Figure("all", None, "g CO2e/kWh", "none", reason="no grid")
    return Each(count, seconds, Measurement("", seconds * count, tuple(figures), unknown))


def test_guesses_stand_apart():
    """By hand: 10 steps of 3 J and 3 evaluations of 5 J."""
    grams = Figure("all", 100.0, "g CO2e/kWh", "given")
    costs = Costs(0.9, 5, grams)
    found = costs.predicted(
        Steps(10, 5, None, "by hand", "open"),
        Checks.of({5}, 5),
        each(4, 0.5, guess=12.0),
        each(2, 2.0, guess=10.0),
    )
    assert (found["epochs"].value, found["epochs"].high) == (2, None)
    assert found["seconds"].value == 10 * 0.5 + 3 * 2.0
    assert (found["joules"].value, found["joules"].reason) == (None, "cpu: no counter")
    assert found["joules_estimated"].value == 10 * 3 + 3 * 5
    assert found["joules_estimated"].low == 5 * 3 + 2 * 5
    assert found["joules_estimated"].reason == "open"
    assert found["kg_co2_estimated"].value == pytest.approx(45 / 3.6e6 * 0.1)
    unknown = Costs(0.9, 5, Figure("all", None, "g CO2e/kWh", "none", reason="no grid"))
    found = unknown.predicted(
        Steps.known(10, "by hand"), Checks.of({5}, 5), each(4, 0.5, 12.0), each(2, 2.0, 10.0)
    )
    assert found["joules"].value == 45
    assert (found["kg_co2"].value, found["kg_co2"].reason) == (None, "no grid")


def test_what_the_probe_measures_leaves_the_record_alone():
    """The run's own figures have its steps and its checks, and none of the probe's readings."""
    from resque_ext.retraining import retrain

    meter, _, clock = make(FakeGpu())
    model = nn.Sequential(network(), Takes(clock, 0.5, 0.25))
    options = {"meter": meter}
    arguments = (batches(), batches(seed=1), 1.0, 12)
    with meter:
        found = forecast(model, None, *arguments, width=1.0, max_share=1.0, **options)
        cost = retrain(model, *arguments, start=found, **options)
    assert torch.isfinite(torch.tensor(found.joules.value))
    assert cost.steps == 48
    training, total = (cost.energy[name].measured.value for name in ("training", "total"))
    assert training == pytest.approx(WATTS * 48 * 0.5, rel=0.01)
    assert total == pytest.approx(WATTS * (48 * 0.5 + 13 * 1.0), rel=0.01)
