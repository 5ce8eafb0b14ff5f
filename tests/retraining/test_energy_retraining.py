"""EnergyMeter around a retraining: what is metered, budgets of joules, runs that resume."""

import math

import pytest
from helpers.energy_made import make
from helpers.fake_nvml import FakeGpu
from helpers.training_oracle import batches, network
from torch import nn

from resque_ext.energy import EnergyWarning, once
from resque_ext.retraining import retrain
from resque_ext.retraining import run as run_module


@pytest.fixture(autouse=True)
def _own_locks(monkeypatch, tmp_path):
    monkeypatch.setattr(once, "folder", lambda: tmp_path)


class Works(nn.Module):
    """Half a second of work a step, 0.2 s an evaluated batch."""

    def __init__(self, clock):
        super().__init__()
        self.clock, self.net = clock, network()

    def forward(self, x):
        self.clock.sleep(0.5 if self.training else 0.2)
        return self.net(x)


def works(**options):
    gpu = FakeGpu(joules=lambda t: 300 * t)
    meter, _, clock = make(gpu, **options)
    return Works(clock), meter, gpu


def test_retraining_is_metered():
    model, meter, _ = works(carbon_intensity=100)
    cost = retrain(model, batches(), batches(), 1.0, 3, meter=meter, checks_per_epoch=2)
    training, total = cost.energy["training"], cost.energy["total"]
    assert training.measured.value == pytest.approx(12 * 0.5 * 300, abs=0.02)
    assert total.measured.value == pytest.approx((12 * 0.5 + 7 * 4 * 0.2) * 300, abs=0.02)
    assert training.seconds == pytest.approx(6)
    assert cost.measures()["kg_co2"] == pytest.approx(1800 / 3.6e6 * 0.1, rel=1e-4)
    assert cost.measures()["joules"] == training.measured.value
    assert type(cost).from_json(cost.to_json()) == cost


def test_a_budget_of_joules_ends_a_run(monkeypatch):
    monkeypatch.setattr(run_module, "ENERGY_LOOK_SECONDS", 0.0)
    model, meter, _ = works()
    cost = retrain(model, batches(), batches(), 1.0, 100, meter=meter, max_joules=1200)
    # 4 s: 0.8 s for the first evaluation, and of 0.5 s each 4 steps, 0.8 s, and one step more.
    assert (cost.stopped, cost.steps) == ("energy", 5)
    model, meter, gpu = works()
    gpu.fails = RuntimeError("gone")
    with pytest.warns(EnergyWarning) as caught:
        cost = retrain(model, batches(), batches(), 1.0, 1, meter=meter, max_joules=1200)
    assert cost.stopped == "epochs"
    told = [str(w.message) for w in caught]
    assert len([text for text in told if text.startswith("max_joules is not kept: ")]) == 1
    assert any("gone" in text for text in told)


def test_what_is_spent_before_and_after_a_resumption_adds_up(tmp_path):
    def go(left):
        model, meter, _ = works()
        calls = iter(range(10**6))

        def adapter(batch):
            if next(calls) == left:
                raise InterruptedError
            return batch

        options = {"meter": meter, "checkpoint": tmp_path / "run", "checkpoint_seconds": 0}
        return retrain(model, batches(), batches(), 1.0, 3, batch_adapter=adapter, **options)

    with pytest.raises(InterruptedError) as caught:
        go(14)  # 4 batches are counted on either side, 4 evaluated, then 2 steps
    before = caught.value.record.energy
    assert before["training"].measured.value == pytest.approx(2 * 150, abs=0.01)
    cost = go(math.inf)
    assert cost.energy["training"].windows == 2
    assert cost.energy["training"].measured.value == pytest.approx(12 * 150, abs=0.02)
    assert cost.energy["total"].measured.value == pytest.approx(12 * 150 + 16 * 60, abs=0.02)
