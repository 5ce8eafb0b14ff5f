"""Models, data and kinds of shift on which an index of retraining cost is chosen and judged."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from resque_ext import shifts

Part = tuple[Tensor, Tensor]
Levels = dict[str, tuple[float, ...]]


def _affine(x: Tensor, *rows: tuple[float, float, float]) -> Tensor:
    theta = torch.tensor(rows, dtype=x.dtype).expand(len(x), 2, 3)
    grid = functional.affine_grid(theta, list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, align_corners=False, padding_mode="zeros")


def rotation(x: Tensor, level: float, _: Any) -> Tensor:
    cos, sin = math.cos(math.radians(level)), math.sin(math.radians(level))
    return _affine(x, (cos, -sin, 0), (sin, cos, 0))


def occlusion(x: Tensor, level: float, generator: torch.Generator) -> Tensor:
    """A grey square at a place of its own in every image."""
    n, _, height, width = x.shape
    side = max(1, round(level * height))
    top = torch.randint(0, height - side + 1, (n, 1), generator=generator)
    left = torch.randint(0, width - side + 1, (n, 1), generator=generator)
    place = torch.arange(height)
    rows = (place >= top) & (place < top + side)
    columns = (place >= left) & (place < left + side)
    return x.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.5)


def pixelate(x: Tensor, level: float, _: Any) -> Tensor:
    size = x.shape[2]
    small = functional.interpolate(x, size=max(1, round(size * level)), mode="area")
    return functional.interpolate(small, size=size, mode="nearest")


def permutation(x: Tensor, level: float, _: Any) -> Tensor:
    """A share of the pixels change places, in every image alike."""
    flat, generator = x.flatten(2), torch.Generator().manual_seed(7)
    places = torch.randperm(flat.shape[2], generator=generator)[: int(level * flat.shape[2])]
    moved = flat.clone()
    moved[:, :, places.roll(1)] = flat[:, :, places]
    return moved.view_as(x)


def dead_pixels(x: Tensor, level: float, _: Any) -> Tensor:
    generator = torch.Generator().manual_seed(8)
    return x.masked_fill(torch.rand(x.shape[2:], generator=generator) < level, 0.0)


def stripes(x: Tensor, level: float, _: Any) -> Tensor:
    wave = 0.5 + 0.5 * torch.cos(math.pi * torch.arange(x.shape[3]) / 2)
    return (1 - level) * x + level * wave


def colour(x: Tensor, level: float, _: Any) -> Tensor:
    """Channels mixed with their neighbours; grey images are dimmed."""
    return x * (1 - level) if x.shape[1] == 1 else (1 - level) * x + level * x.roll(1, 1)


SHIFTS: dict[str, Callable[[Tensor, float, Any], Tensor]] = {
    "rotation": rotation,
    "occlusion": occlusion,
    "gamma": lambda x, level, _: x**level,
    "row_swap": lambda x, level, _: x.roll(max(1, int(level * x.shape[2])), 2),
    "translation": lambda x, level, _: _affine(x, (1, 0, 2 * level), (0, 1, level)),
    "shear": lambda x, level, _: _affine(x, (1, level, 0), (0, 1, 0)),
    "zoom": lambda x, level, _: _affine(x, (level, 0, 0), (0, level, 0)),
    "invert": lambda x, level, _: (1 - level) * x + level * (1 - x),
    "pixelate": pixelate,
    "permutation": permutation,
    "dead_pixels": dead_pixels,
    "stripes": stripes,
    "ramp": lambda x, level, _: x * (1 + level * torch.linspace(-1, 1, x.shape[3])),
    "colour": colour,
}


def shifted(part: Part, kind: str, level: float, seed: int) -> Part:
    """The images shifted, with their labels."""
    generator = torch.Generator().manual_seed(seed)
    if kind in SHIFTS:
        return SHIFTS[kind](part[0], level, generator).clamp(0, 1), part[1]
    return shifts.SHIFTS[kind].function(part[0], level, generator), part[1]


DIGITS_DEVELOPMENT: Levels = {
    "gaussian": (0.1, 0.15, 0.2, 0.3),
    "shot": (0.1, 0.2, 0.4),
    "impulse": (0.03, 0.08, 0.15),
    "gaussian_blur": (0.5, 0.75, 1.0),
    "contrast": (0.4, 0.8, 0.9),
    "brightness": (0.1, 0.4, -0.4),
    "rotation": (10, 25, 45, 90),
    "occlusion": (0.25, 0.4, 0.5),
    "gamma": (0.4, 3.0, 5.0),
    "row_swap": (0.2, 0.3, 0.5),
}
DIGITS_JUDGE: Levels = {
    "frost": (0.1, 0.2, 0.3, 0.4),
    "translation": (0.1, 0.2, 0.3),
    "invert": (0.2, 0.4, 0.8, 1.0),
    "shear": (0.2, 0.5, 1.0),
    "pixelate": (0.75, 0.5, 0.4),
    "permutation": (0.1, 0.3, 1.0),
    "dead_pixels": (0.1, 0.25, 0.5),
    "stripes": (0.2, 0.5, 0.8),
    "zoom": (0.7, 1.4, 2.0),
    "ramp": (0.5, 1.0),
    "colour": (0.5, 0.8),
}
CIFAR_DEVELOPMENT: Levels = {
    "gaussian": (0.05, 0.15, 0.3),
    "shot": (0.05, 0.3),
    "impulse": (0.05, 0.2),
    "gaussian_blur": (0.75, 1.5, 3.0),
    "contrast": (0.5, 0.8, 0.95),
    "brightness": (0.2, -0.4),
    "rotation": (15, 45, 90),
    "occlusion": (0.4, 0.6),
    "gamma": (0.4, 3.0),
    "row_swap": (0.25, 0.5),
}
CIFAR_JUDGE: Levels = {
    "frost": (0.2, 0.4, 0.6),
    "translation": (0.1, 0.25),
    "invert": (0.3, 0.7, 1.0),
    "shear": (0.3, 0.8),
    "pixelate": (0.5, 0.25),
    "permutation": (0.1, 0.3),
    "dead_pixels": (0.1, 0.4),
    "stripes": (0.3, 0.6),
    "zoom": (0.6, 1.6),
    "ramp": (0.5, 1.0),
    "colour": (0.5, 1.0),
}


def norm_layer(norm: str, channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(8, channels)


def digits_cnn(norm: str) -> nn.Module:
    layers: list[nn.Module] = []
    for before, after, stride in ((1, 16, 1), (16, 32, 2), (32, 64, 1)):
        convolution = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        layers += [convolution, norm_layer(norm, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class DigitsViT(nn.Module):
    """A transformer of two blocks over 4 x 4 patches of 2 x 2 pixels."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, width, 2, 2)
        self.place = nn.Parameter(0.02 * torch.randn(1, 16, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(2)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.place
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, before: int, after: int, stride: int, norm: str) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.n1 = norm_layer(norm, after)
        self.c2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.n2 = norm_layer(norm, after)
        self.short = nn.Sequential()
        if (before, 1) != (after, stride):
            convolution = nn.Conv2d(before, after, 1, stride, bias=False)
            self.short = nn.Sequential(convolution, norm_layer(norm, after))

    def forward(self, x: Tensor) -> Tensor:
        y = self.n2(self.c2(functional.relu(self.n1(self.c1(x)))))
        return functional.relu(y + self.short(x))


def small_resnet(norm: str, width: int = 24) -> nn.Module:
    stem = [nn.Conv2d(3, width, 3, 2, 1, bias=False), norm_layer(norm, width), nn.ReLU()]
    blocks = [(width, width, 1), (width, 2 * width, 2), (2 * width, 4 * width, 2)]
    body = [Block(*sizes, norm) for sizes in blocks]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10)]
    return nn.Sequential(*stem, *body, *head)


def load_digits(seed: int) -> tuple[Part, Part, Part]:
    """800 images to train on, 600 new ones, 397 to test with."""
    from sklearn import datasets

    digits = datasets.load_digits()
    x = torch.from_numpy(digits.images).float().div_(16)[:, None]
    y = torch.from_numpy(digits.target).long()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    x, y = x[order], y[order]
    return (x[:800], y[:800]), (x[800:1400], y[800:1400]), (x[1400:], y[1400:])


def load_cifar(path: Path) -> tuple[Part, Part, Part]:
    """8,000 images to train on, 2,500 new ones, 600 to test with, of an .npz of JPEG files."""
    from PIL import Image

    data = np.load(path, allow_pickle=False)

    def part(split: str, first: int, end: int) -> Part:
        offsets, files = data[f"{split}_offsets"], data[f"{split}_jpeg"]
        images = [
            np.asarray(Image.open(io.BytesIO(files[offsets[i] : offsets[i + 1]].tobytes())))
            for i in range(first, end)
        ]
        x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().div_(255)
        labels = data[f"{split}_labels"][first:end].astype(np.int64)
        return x.contiguous(), torch.from_numpy(labels)

    return part("train", 0, 8000), part("train", 8000, 10500), part("test", 0, 600)


@dataclass(frozen=True)
class Setting:
    """A model, its data, its shifts, and how it is trained and retrained."""

    role: str  # "development" or "judge"
    data: str  # "digits" or "cifar"
    seed: int
    make: Callable[[], nn.Module]
    kinds: Levels
    epochs: int
    learning_rate: float
    seeds: int  # of the retraining
    below: float = 0.06  # the clean accuracy by this is the target
    max_epochs: float = 20
    checks: int = 6
    batch: int = 32
    retraining_rate: float = 1e-3

    @property
    def cases(self) -> list[tuple[str, float]]:
        return [(kind, level) for kind in self.kinds for level in self.kinds[kind]]


def _digits(role: str, seed: int, make: Callable[[], nn.Module], *training: Any) -> Setting:
    kinds = DIGITS_DEVELOPMENT if role == "development" else DIGITS_JUDGE
    return Setting(role, "digits", seed, make, kinds, *training, seeds=3)


def _cifar(seed: int, norm: str) -> Setting:
    kinds = CIFAR_DEVELOPMENT | CIFAR_JUDGE
    make = lambda: small_resnet(norm)  # noqa: E731
    return Setting("judge", "cifar", seed, make, kinds, 15, 5e-3, 1, 0.05, 4, 8, 64, 3e-4)


SETTINGS = {
    "digits-batchnorm-dev": _digits("development", 0, lambda: digits_cnn("batch"), 30, 5e-3),
    "digits-groupnorm-dev": _digits("development", 1, lambda: digits_cnn("group"), 30, 5e-3),
    "digits-vit-dev": _digits("development", 2, DigitsViT, 50, 3e-3),
    "digits-batchnorm-judge": _digits("judge", 10, lambda: digits_cnn("batch"), 30, 5e-3),
    "digits-groupnorm-judge": _digits("judge", 11, lambda: digits_cnn("group"), 30, 5e-3),
    "digits-vit-judge": _digits("judge", 12, DigitsViT, 50, 3e-3),
    "cifar-batchnorm": _cifar(20, "batch"),
    "cifar-groupnorm": _cifar(21, "group"),
}


def load(setting: Setting, path: Path | None) -> tuple[Part, Part, Part]:
    """The old side, the new side and the test images, none of them shifted."""
    return load_digits(setting.seed) if setting.data == "digits" else load_cifar(path)


def fit(setting: Setting, old: Part) -> nn.Module:
    """The model, trained on the old side: Adam, one cycle of the learning rate."""
    torch.manual_seed(setting.seed)
    model, generator = setting.make(), torch.Generator().manual_seed(setting.seed)
    rate, (x, y) = setting.learning_rate, old
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=rate, total_steps=setting.epochs * -(-len(y) // 64)
    )
    model.train()
    for _ in range(setting.epochs):
        for rows in torch.randperm(len(y), generator=generator).split(64):
            images = x[rows] if setting.data == "digits" else _augment(x[rows], generator)
            loss = functional.cross_entropy(model(images), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def _augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """One flip and one crop for the whole batch."""
    if torch.rand((), generator=generator) < 0.5:
        x = x.flip(3)
    down, right = torch.randint(0, 7, (2,), generator=generator).tolist()
    wide = functional.pad(x, (3, 3, 3, 3), mode="reflect")
    return wide[:, :, down : down + x.shape[2], right : right + x.shape[3]]
