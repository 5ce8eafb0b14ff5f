"""What the harness adds to a bare training loop that does the same work, energy meter included."""

from __future__ import annotations

import copy
import statistics
import time
from typing import Any

import pytest
import torch
from conftest import DEVICES, device_name
from sizes import SMALL
from torch import Tensor, nn

from resque_ext.energy import EnergyMeter
from resque_ext.retraining import retrain

EPOCHS = 2
REPEATS = 3 if SMALL else 24


class Block(nn.Module):
    """Two 3x3 convolutions with batch-norm around a shortcut, as in a ResNet."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(self.body(x) + self.shortcut(x))


def small_resnet(width: int) -> nn.Module:
    blocks = [Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2)]
    stem = nn.Conv2d(3, width, 3, padding=1)
    return nn.Sequential(
        stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10)
    )


def accuracy(model: nn.Module, data: list[Any]) -> float:
    model.eval()
    with torch.inference_mode():
        right = sum((model(x).argmax(1) == y).sum() for x, y in data)
    model.train()
    return int(right) / sum(len(y) for _, y in data)


def bare(model: nn.Module, train: list[Any], test: list[Any]) -> list[float]:
    """A copy of the model trained and evaluated, and nothing measured."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-5)
    found = [accuracy(model, test)]
    for _ in range(EPOCHS):
        for inputs, labels in train:
            loss = nn.functional.cross_entropy(model(inputs), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        found.append(accuracy(model, test))
    return found


@pytest.mark.parametrize("device", DEVICES)
def test_retraining_overhead(benchmark: Any, device: str) -> None:
    place = torch.device(device)
    width, steps, batch = (16, 4, 64) if device == "cpu" or SMALL else (64, 100, 256)
    model = small_resnet(width).to(place)
    train, test = (
        [
            (torch.rand(batch, 3, 32, 32, device=place), torch.randint(10, (batch,), device=place))
            for _ in range(count)
        ]
        for count in (steps, 2)
    )

    def timed(call: Any) -> tuple[float, Any]:
        if place.type == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        result = call()
        if place.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin, result

    with EnergyMeter((place,) if place.type == "cuda" else ()) as meter:

        def harness(meter: EnergyMeter | None) -> list[float]:
            cost = retrain(model, train, test, 1.0, EPOCHS, meter=meter, deterministic=False)
            return [check.accuracy for check in cost.accuracy]

        calls = {
            "bare": lambda: bare(model, train, test),
            "bare again": lambda: bare(model, train, test),  # says how far two equal ones differ
            "harness": lambda: harness(None),
            "with meter": lambda: harness(meter),
        }
        expected = bare(model, train, test)
        if place.type == "cpu":  # the same work, then, to the last sample
            assert harness(None) == harness(meter) == expected
        times: dict[str, list[float]] = {name: [] for name in calls}
        names = list(calls)
        for i in range(REPEATS):  # in turn, each first as often, as a machine's speed changes
            for name in names[i % len(names) :] + names[: i % len(names)]:
                times[name].append(timed(calls[name])[0])
        benchmark.pedantic(calls["with meter"], rounds=1)
    # The lower quartile: what else a machine does only ever adds.
    seconds = {name: statistics.quantiles(values)[0] for name, values in times.items()}
    step = seconds["bare"] / EPOCHS / steps * 1e3
    ratios = {name: seconds[name] / seconds["bare"] for name in names[1:]}
    benchmark.extra_info |= {
        "device": device_name(place),
        "bare_milliseconds_a_step": step,
        "ratio_to_bare": ratios["harness"],
        "ratio_to_bare_with_meter": ratios["with meter"],
        "ratio_of_bare_to_bare": ratios["bare again"],
    }
    print(
        f"\nsmall ResNet on {device}, {step:.1f} ms a step: the harness takes "
        f"{ratios['harness']:.3f} of the bare loop, {ratios['with meter']:.3f} with the energy "
        f"meter, and the bare loop {ratios['bare again']:.3f} of itself"
    )
