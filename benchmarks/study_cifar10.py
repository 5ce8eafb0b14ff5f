"""Does an index order what retraining costs? CIFAR-10, 36 shifts of 11 kinds, one GPU.

    python benchmarks/study_cifar10.py --data cifar10_jpeg.npz [--model resnet18] [--out JSON]

The base model is trained on 35,000 clean images: 30 epochs, one cycle of the learning rate. The new
side is 25,000 images, 10,000 of which the model has seen, shifted; predictors read 5,000 of either
side. A copy is retrained with Adam (2e-4, weight decay 1e-5, batch 128, crop and flip) until it is
within 7.6 points of the clean test accuracy on the equally shifted test images, or for 6 epochs,
the accuracy read 16 times an epoch. Runs that do not reach the target are censored: reported as
such, tied above all others in the rank correlations, in no other figure.

What to expect on one H100-class GPU (an estimate from step counts, not a measurement): 4,100 steps
of 256 images for the base model, 1 minute; about 80 epochs of retraining, which are 16,000 steps of
128 images, 2 to 3 minutes; 1,300 readings of 10,000 test images, 2 minutes; forward passes for the
predictors, below 1 minute. Together under 8 minutes.

`--smoke` goes the same way on the CPU in about a minute: few images, a small model, one level of
every kind, and the clean accuracy itself for a target, so that there is something to retrain. Its
figures say nothing.

The data: `train_jpeg` and `test_jpeg` are JPEG files one after another (uint8), `*_offsets` where
they begin and end, `*_labels` the classes.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.io import decode_jpeg
from torchvision.models import VisionTransformer, resnet18
from torchvision.models.resnet import BasicBlock, ResNet

from resque_ext.environment import environment as environment_of
from resque_ext.retraining import Study, study

LEVELS = {
    "gaussian": (0.05, 0.1, 0.2),
    "shot": (0.02, 0.1, 0.3),
    "impulse": (0.02, 0.1, 0.3),
    "salt_and_pepper": (0.02, 0.1, 0.3),
    "gaussian_blur": (0.5, 1.0, 2.0),
    "contrast": (0.4, 0.7, 0.9),
    "brightness": (-0.3, 0.2, 0.4),
    "frost": (0.2, 0.4, 0.6),
}
OWN_LEVELS = {
    "rotation": (15.0, 30.0, 60.0, 90.0),
    "occlusion": (8.0, 12.0, 16.0, 20.0),
    "colour": (0.25, 0.5, 0.75, 1.0),
}
UNITS = {
    "rotation": "degrees",
    "occlusion": "pixels of the side of a grey square in the middle",
    "colour": "share of every channel that its neighbour gives",
}
TOLERANCE = 0.076  # of the clean test accuracy, that the target lies below
MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)  # of CIFAR-10's channels
MODELS = ("resnet18", "resnet18-groupnorm", "vit")


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    old: int  # the first images of the training split
    new: slice
    test: int
    read: int  # images of either side that predictors read
    epochs: int  # of the base model
    most_epochs: float  # of a retraining
    checks: int  # of the accuracy, an epoch
    levels: slice
    tolerance: float = TOLERANCE
    small: bool = False


FULL = Size(35_000, slice(25_000, 50_000), 10_000, 5_000, 30, 6, 16, slice(None))
SMOKE = Size(1_000, slice(700, 1_300), 300, 300, 4, 1, 2, slice(-1, None), 0, small=True)


# The shifts that resque_ext.shifts does not have: functions of images [N, 3, H, W] in [0, 1]


def rotation(images: Tensor, degrees: float) -> Tensor:
    """About the middle, black where nothing was."""
    angle = torch.tensor(degrees).deg2rad()
    rows = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2)
    turn = torch.cat([rows, torch.zeros(2, 1)], 1).to(images)
    grid = functional.affine_grid(
        turn.expand(len(images), 2, 3), list(images.shape), align_corners=False
    )
    return functional.grid_sample(images, grid, align_corners=False).clamp_(0, 1)


def occlusion(images: Tensor, side: float) -> Tensor:
    """A grey square."""
    covered, first = images.clone(), (images.shape[-1] - int(side)) // 2
    covered[..., first : first + int(side), first : first + int(side)] = 0.5
    return covered


def colour(images: Tensor, share: float) -> Tensor:
    """Red, green and blue wander on."""
    return torch.lerp(images, images.roll(1, dims=1), share)


def own_shifts(levels: slice) -> dict[str, dict[float, Callable[[Tensor], Tensor]]]:
    """{kind: {level: function of images}}."""
    functions = {
        "rotation": lambda level: functools.partial(rotation, degrees=level),
        "occlusion": lambda level: functools.partial(occlusion, side=level),
        "colour": lambda level: functools.partial(colour, share=level),
    }
    return {
        kind: {level: functions[kind](level) for level in given[levels]}
        for kind, given in OWN_LEVELS.items()
    }


# Data


def load(path: Path, split: str, count: int) -> tuple[Tensor, Tensor]:
    """The first images [N, 3, 32, 32] float32 in [0, 1] of a split, and labels [N]."""
    with np.load(path, allow_pickle=False) as archive:
        stream = torch.from_numpy(archive[f"{split}_jpeg"])
        offsets = archive[f"{split}_offsets"].tolist()
        labels = torch.from_numpy(archive[f"{split}_labels"].astype(np.int64))
    count = min(count, len(labels))
    images = [decode_jpeg(stream[a:b]) for a, b in itertools.pairwise(offsets[: count + 1])]
    return torch.stack(images).float().div_(255), labels[:count]


class Shuffled:
    """Batches in another order in every pass, cut out on the images' device."""

    def __init__(self, images: Tensor, labels: Tensor, batch: int) -> None:
        self.images, self.labels, self.batch = images, labels, batch

    def __len__(self) -> int:
        return -(-len(self.labels) // self.batch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.labels)).to(self.labels.device)
        for rows in order.split(self.batch):
            yield self.images[rows], self.labels[rows]


def in_order(images: Tensor, labels: Tensor, batch: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(images.split(batch), labels.split(batch), strict=True))


def crop_and_flip(images: Tensor) -> Tensor:
    """Moved by up to 4 pixels either way, every second one mirrored; another draw an image."""
    n, channels, height, width = images.shape
    place = images.device
    top, left = torch.randint(9, (2, n, 1, 1, 1), device=place)
    columns = torch.arange(width, device=place)
    mirrored = torch.rand(n, 1, 1, 1, device=place) < 0.5
    columns = torch.where(mirrored, columns.flip(0), columns) + left
    rows = torch.arange(height, device=place).view(1, 1, -1, 1) + top
    every = torch.arange(n, device=place).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=place).view(1, -1, 1, 1)
    return functional.pad(images, (4, 4, 4, 4))[every, channel, rows, columns]


# The model


class Classifier(nn.Module):
    """A network behind the normalization of its inputs, so that shifts see values in [0, 1]."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer("deviation", torch.tensor(DEVIATION).view(3, 1, 1))
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        return self.net((images - self.mean) / self.deviation)


def make_model(name: str, small: bool) -> tuple[nn.Module, str | None]:
    """The model, and the layer that RESQUE_dist reads; None: what the last linear layer reads."""
    if name == "vit":
        depth, width = (2, 48) if small else (6, 256)
        return Classifier(
            VisionTransformer(32, 4, depth, 4, width, 2 * width, num_classes=10)
        ), None
    norm = functools.partial(nn.GroupNorm, 32) if name == "resnet18-groupnorm" else None
    if small:
        return Classifier(ResNet(BasicBlock, [1, 1, 1, 1], 10, norm_layer=norm)), None
    net = resnet18(num_classes=10, norm_layer=norm)
    net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return Classifier(net), "net.layer4.1.conv2"


def train(model: nn.Module, data: Shuffled, epochs: int, attention: bool) -> None:
    """In place, on the device where both are: one cycle of the learning rate, bfloat16 on a GPU."""
    gpu = data.images.is_cuda
    if attention:
        optimizer: Any = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
        peak = 1e-3
    else:
        optimizer = torch.optim.SGD(
            model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
        )
        peak = 0.2 if gpu else 0.05
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=epochs * len(data))
    model.train()
    for _ in range(epochs):
        for images, labels in data:
            images = crop_and_flip(images)
            if gpu:
                images = images.contiguous(memory_format=torch.channels_last)
            with torch.autocast("cuda", torch.bfloat16, enabled=gpu):
                loss = functional.cross_entropy(model(images), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


def accuracy(model: nn.Module, data: list[tuple[Tensor, Tensor]]) -> float:
    gpu = data[0][0].is_cuda
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=gpu):
        right = sum((model(images).argmax(1) == labels).sum() for images, labels in data)
    return int(right) / sum(len(labels) for _, labels in data)


# The study


def run(path: Path, name: str, size: Size, device: torch.device, seed: int) -> dict[str, Any]:
    """Everything; plain values for JSON. The table is printed on the way."""
    begin = time.perf_counter()
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    most = max(size.old, size.new.stop)
    images, labels = (part.to(device) for part in load(path, "train", most))
    test = in_order(*(part.to(device) for part in load(path, "test", size.test)), 2_000)
    loaded = time.perf_counter()

    model, layer = make_model(name, size.small)
    model = model.to(device, memory_format=torch.channels_last)
    old = images[: size.old], labels[: size.old]
    train(model, Shuffled(*old, 256 if device.type == "cuda" else 64), size.epochs, name == "vit")
    clean = accuracy(model, test)
    target = clean - size.tolerance
    trained = time.perf_counter()
    print(f"{name}: {clean:.1%} of the clean test images in {trained - loaded:.0f} s", flush=True)

    new = images[size.new], labels[size.new]
    levels = {kind: given[size.levels] for kind, given in LEVELS.items()}
    runs = study(
        model,
        {
            "old": in_order(*(part[: size.read] for part in old), 1_000),
            # From the end: images that the model has not seen.
            "new": in_order(*(part[-size.read :] for part in new), 1_000),
            "train": Shuffled(*new, 128),
            "test": test,
        },
        levels | own_shifts(size.levels),
        units=UNITS,
        target_accuracy=target,
        model_name=name,
        layer=layer,
        # Batch-norm is re-estimated all the same; the others have nothing else to adapt.
        adapt_normalization="match",
        max_epochs=size.most_epochs,
        checks_per_epoch=size.checks,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=2e-4, weight_decay=1e-5),
        augment=crop_and_flip,
        autocast=torch.bfloat16 if device.type == "cuda" else None,
        channels_last=True,
        deterministic=False,
        seed=seed,
    )
    end = time.perf_counter()
    result = {
        "environment": environment_of() | {"device": str(device)},
        "model": name,
        "smoke": size.small,
        "seed": seed,
        "clean_accuracy": clean,
        "target_accuracy": target,
        "seconds": {
            "loading": loaded - begin,
            "training": trained - loaded,
            "study": end - trained,
            "total": end - begin,
        },
        "runs": [json.loads(each.to_json()) for each in runs],
    }
    return result | {"correlations": report(runs)}


def report(runs: Study) -> dict[str, Any]:
    """Prints every run and the correlations; plain values of the latter."""
    for each in runs:
        epochs = each.measures["epochs"]
        cost = f"more than {epochs:g} (censored)" if each.censored else f"{epochs:.2f}"
        accuracies = f"{each.cost.start_accuracy:.1%}, at best {each.cost.best_accuracy:.1%}"
        print(f"{each.kind} {each.level:g}: {cost} epochs, from {accuracies}")
    wanted = ("epochs", "gradient_norm_sum", "parameter_change", "seconds", "joules")
    known = [name for name in wanted if any(each.measures[name] is not None for each in runs)]
    table = runs.correlations(measures=known)
    print(f"\n{table}")
    return table.to_dict()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", type=Path, required=True, help="cifar10_jpeg.npz")
    parser.add_argument("--model", choices=MODELS, default="resnet18")
    parser.add_argument("--out", type=Path, help="where the results go, as JSON")
    parser.add_argument("--smoke", action="store_true", help="a little of everything, on the CPU")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    if not given.data.is_file():
        parser.error(f"--data: expected a file, found none at {given.data}")
    if given.out is not None and not given.out.parent.is_dir():
        parser.error(f"--out: expected a file in a folder, found no folder {given.out.parent}")
    if not given.smoke and not torch.cuda.is_available():
        parser.error("expected a CUDA device, found none; --smoke runs on the CPU")
    device = torch.device("cpu" if given.smoke else "cuda")
    size = SMOKE if given.smoke else FULL
    result = run(given.data, given.model, size, device, given.seed)
    seconds = ", ".join(f"{what} {s:.0f} s" for what, s in result["seconds"].items())
    print(f"\n{seconds}")
    if given.out is not None:
        given.out.write_text(json.dumps(result, allow_nan=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
