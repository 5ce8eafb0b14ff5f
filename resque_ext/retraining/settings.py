"""What a run was asked for: checked once, then used by the loop, and told in the record."""

from __future__ import annotations

import contextlib
import copy
import math
import numbers
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from resque_ext.data.checks import check_choice, check_count, describe
from resque_ext.errors import ArgumentError, ArgumentTypeError
from resque_ext.model.hooks import copied

INTERVALS = ("step", "epoch")
AUTOCAST = (None, torch.bfloat16, torch.float16)
PUBLISHED = {"lr": 1e-3, "weight_decay": 1e-5}  # of Adam, in the published example


def published_optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Adam as in the published example."""
    return torch.optim.Adam(parameters, **PUBLISHED)


@dataclass(frozen=True)
class Settings:
    """How to train, and when to stop. The fields are :func:`retrain`'s arguments.

    Raises:
        TypeError, ValueError: naming the argument.
    """

    target_accuracy: float
    max_epochs: float
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    scheduler: Callable[[torch.optim.Optimizer], Any] | None
    scheduler_interval: str
    loss: Callable[[Any, Any], Tensor] | None
    transform: Callable[[Any], Any] | None
    augment: Callable[[Any], Any] | None
    checks_per_epoch: int
    autocast: torch.dtype | None
    channels_last: bool
    deterministic: bool
    device: torch.device
    seed: int
    max_seconds: float | None
    max_joules: float | None
    patience: int | None
    min_improvement: float
    checkpoint_seconds: float
    progress: bool

    def __post_init__(self) -> None:
        _check_number(self.target_accuracy, "target_accuracy", 0, 1)
        _check_number(self.max_epochs, "max_epochs", 0)
        for name in ("max_seconds", "max_joules"):
            if getattr(self, name) is not None:
                _check_number(getattr(self, name), name, 0)
        for name in ("min_improvement", "checkpoint_seconds"):
            _check_number(getattr(self, name), name, 0, least=True)
        for name in ("optimizer", "scheduler", "loss", "transform", "augment"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise ArgumentTypeError(name, "a function", describe(value))
        check_choice(self.scheduler_interval, INTERVALS, "scheduler_interval")
        check_count(self.checks_per_epoch, "checks_per_epoch")
        if self.patience is not None:
            check_count(self.patience, "patience")
        if self.autocast not in AUTOCAST:
            raise ArgumentError(
                "autocast", "torch.bfloat16, torch.float16 or None", f"{self.autocast!r}"
            )
        if isinstance(self.seed, bool) or not isinstance(self.seed, numbers.Integral):
            raise ArgumentTypeError("seed", "an integer", f"{self.seed!r}")
        if not 0 <= self.seed < 2**32:
            raise ArgumentError("seed", "0 <= seed < 2^32", self.seed)

    def check_batches(self, count: int) -> frozenset[int]:
        """After which batches of an epoch of `count` the test accuracy is read.

        Raises:
            ValueError: more checks than batches.
        """
        checks = self.checks_per_epoch
        if checks > count:
            raise ArgumentError("checks_per_epoch", f"at most one check a batch ({count})", checks)
        return frozenset(-(-count * i // checks) for i in range(1, checks + 1))

    @contextlib.contextmanager
    def precision(self) -> Iterator[None]:
        """The autocast that was asked for; none else, whatever the caller had switched on."""
        enabled = self.autocast is not None
        with torch.autocast(self.device.type, self.autocast or torch.bfloat16, enabled):
            yield

    @contextlib.contextmanager
    def environment(self) -> Iterator[None]:
        """Gradients on, and cuDNN deterministic where asked for; as before on the way out."""
        cudnn = torch.backends.cudnn
        before = cudnn.deterministic, cudnn.benchmark
        try:
            if self.deterministic:
                cudnn.deterministic, cudnn.benchmark = True, False
            with torch.inference_mode(False), torch.enable_grad():
                yield
        finally:
            cudnn.deterministic, cudnn.benchmark = before

    def laid_out(self, inputs: Any) -> Any:
        """Images channels last, where asked for; everything else as it is."""
        if not self.channels_last:
            return inputs
        if isinstance(inputs, Tensor):
            is_images = inputs.dim() == 4
            return inputs.contiguous(memory_format=torch.channels_last) if is_images else inputs
        if isinstance(inputs, dict):
            return {key: self.laid_out(value) for key, value in inputs.items()}
        return inputs

    def describe(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Plain values for the record; functions by their names."""
        return {
            "optimizer": type(optimizer).__name__,
            "optimizer_groups": [_plain_group(group) for group in optimizer.param_groups],
            "scheduler": function_name(self.scheduler),
            "scheduler_interval": self.scheduler_interval,
            "loss": function_name(self.loss) or "cross_entropy",
            "transform": function_name(self.transform),
            "augment": function_name(self.augment),
            "checks_per_epoch": int(self.checks_per_epoch),
            "autocast": None if self.autocast is None else str(self.autocast),
            "channels_last": bool(self.channels_last),
            "deterministic": bool(self.deterministic),
            "max_epochs": float(self.max_epochs),
            "max_seconds": self.max_seconds,
            "max_joules": self.max_joules,
            "patience": self.patience,
            "min_improvement": float(self.min_improvement),
        }


class Transform:
    """A function of inputs, restarted with every pass where it can be."""

    def __init__(self, function: Callable[[Any], Any] | None) -> None:
        self.resets = callable(getattr(function, "reset", None))
        # A copy, so that neither the caller's sequence nor that of the other side is disturbed.
        self.function = copy.deepcopy(function) if self.resets else function

    def restart(self) -> None:
        """The beginning of a pass."""
        if self.resets:
            self.function.reset()  # type: ignore[union-attr]

    def __call__(self, inputs: Any) -> Any:
        """The inputs as they are, or what the function makes of a copy of them."""
        return inputs if self.function is None else self.function(copied(inputs))


def _check_number(
    value: Any, name: str, above: float, most: float = math.inf, least: bool = False
) -> None:
    """Raises unless above < value <= most and value is finite; `least` lets value be `above`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ArgumentTypeError(name, "a number", f"{value!r}")
    if not math.isfinite(value) or value > most or value < above or (value == above and not least):
        limit = f" and at most {most:g}" if most < math.inf else ""
        start = f"from {above:g}" if least else f"above {above:g}"
        raise ArgumentError(name, f"a finite number {start}{limit}", f"{value!r}")


def _plain_group(group: dict[str, Any]) -> dict[str, Any]:
    return {key: _plain(value) for key, value in group.items() if key not in ("params", "names")}


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, (tuple, list)):
        return [_plain(entry) for entry in value]
    known = value is None or isinstance(value, (bool, int, float, str))
    return value if known else type(value).__name__


def function_name(function: Any) -> str | None:
    """What tells one function from another, without the address at which it happens to be."""
    if function is None:
        return None
    if hasattr(function, "__qualname__"):
        return str(function.__qualname__)
    return re.sub(r" at 0x[0-9a-f]+", "", repr(function))
