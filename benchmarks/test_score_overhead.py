"""What the indices through score cost beside the two bare forward passes that they need anyway."""

from __future__ import annotations

import statistics
import time
from typing import Any

import pytest
import torch
from conftest import DEVICES, device_name
from sizes import SMALL
from torch import nn

import resque_ext


def small_cnn() -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in ((3, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        layers += [nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


# Which indices, together: of the embedding alone, then of every layer too.
INDICES = {
    "resque_dist": ("resque_dist",),
    "arm": ("arm",),
    "preindex": ("preindex",),
    "all": ("resque_dist", "preindex", "arm"),
}
# Fewer images on the CPU, where a batch of the table's size takes half a minute.
CPU_BATCHES = {"resnet18": (32, 64, 4), "resnet50": (224, 4, 2), "vit_b_16": (224, 4, 2)}


def model_and_batches(name: str, device: torch.device) -> tuple[nn.Module, list[Any]]:
    if name == "small_cnn":
        model, size, batch, classes, count = small_cnn(), 32, 256, 10, 4
    else:
        models = pytest.importorskip("torchvision.models", exc_type=ImportError)
        # ResNet-18 as it is trained on CIFAR-10: of 1,000 classes no layer of it would be wider.
        outputs = 10 if name == "resnet18" else 1_000
        model = getattr(models, name)(weights=None, num_classes=outputs)
        classes = 10
        on_cuda = {"resnet18": (32, 1_024, 8), "resnet50": (224, 128, 8), "vit_b_16": (224, 64, 8)}
        size, batch, count = (CPU_BATCHES if device.type == "cpu" else on_cuda)[name]
        batch, count = (4, 1) if SMALL else (batch, count)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = model.to(device, dtype, memory_format=torch.channels_last).eval()
    batches = [
        (
            torch.rand(batch, 3, size, size, device=device)
            .to(dtype)
            .contiguous(memory_format=torch.channels_last),
            torch.arange(batch) % min(classes, batch),
        )
        for _ in range(count)
    ]
    return model, batches


NAMES = [(d, n) for d in DEVICES for n in ("resnet18", "resnet50", "vit_b_16")]
NAMES.insert(0, ("cpu", "small_cnn"))


@pytest.mark.parametrize("indices", INDICES)
@pytest.mark.parametrize(("device", "name"), NAMES)
def test_score_overhead(benchmark: Any, device: str, name: str, indices: str) -> None:
    place = torch.device(device)
    model, batches = model_and_batches(name, place)

    def synchronize() -> None:
        if place.type == "cuda":
            torch.cuda.synchronize()

    @torch.inference_mode()
    def bare() -> None:
        for _ in range(2):
            for inputs, _ in batches:
                model(inputs)
        synchronize()

    def scored() -> Any:
        result = resque_ext.score(
            model, batches, batches, INDICES[indices], paired=True, progress=False
        )
        synchronize()
        return result

    # The same data twice: nothing has moved, and PreIndex is its clustering alone.
    found = scored()
    found = found if len(INDICES[indices]) > 1 else {indices: found}
    for index, result in found.items():
        expected = result.inv_ari["new"] if index == "preindex" else 0.0
        assert abs(result.value - expected) < 1e-9
    bare()
    ratios, times = [], []
    for _ in range(7 if name == "small_cnn" or (device == "cuda" and not SMALL) else 3):
        begin = time.perf_counter()
        bare()
        middle = time.perf_counter()
        scored()
        end = time.perf_counter()
        times.append(middle - begin)
        ratios.append((end - middle) / (middle - begin))
    benchmark.extra_info |= {
        "device": device_name(place),
        "indices": indices,
        "bare_milliseconds": statistics.median(times) * 1e3,
        "ratio_to_bare": statistics.median(ratios),
    }
    print(
        f"\n{name} on {device}, {indices}: score takes {statistics.median(ratios):.3f} of the bare "
        f"passes ({statistics.median(times) * 1e3:.0f} ms)"
    )
    benchmark.pedantic(scored, rounds=1)
