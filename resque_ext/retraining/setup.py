"""What retrain, study and forecast set up before a run: settings, copies, meters, checks."""

from __future__ import annotations

import contextlib
import copy
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from resque_ext import environment
from resque_ext.data.checks import check_device, describe
from resque_ext.energy.meter import EnergyMeter
from resque_ext.errors import ArgumentError, ArgumentTypeError
from resque_ext.model.hooks import unwrap
from resque_ext.retraining.batches import Batches
from resque_ext.retraining.checkpoint import Checkpoint
from resque_ext.retraining.meters import Costs
from resque_ext.retraining.random_state import Randomness
from resque_ext.retraining.run import Run
from resque_ext.retraining.settings import Settings


@contextlib.contextmanager
def opened(
    model: nn.Module,
    train_batches: Any,
    test_batches: Any,
    settings: Settings,
    batch_adapter: Any = None,
    meter: Any = None,
    checkpoint: Any = None,
    start: Any = None,
    names: tuple[str, str] = ("train_batches", "test_batches"),
) -> Iterator[Run]:
    """A run that has not begun, with the process's generators seeded for it and restored after it.

    Args:
        names: of the arguments with batches, for messages. The others are those of `retrain`.
    """
    place = settings.device
    if batch_adapter is not None and not callable(batch_adapter):
        raise ArgumentTypeError("batch_adapter", "a function of a batch", describe(batch_adapter))
    train = Batches(train_batches, names[0], place, batch_adapter, indices=settings.loss is None)
    test = Batches(test_batches, names[1], place, batch_adapter, indices=True)
    path, begin = check_path(checkpoint), check_start(start)
    randomness = Randomness(place, (train_batches, test_batches))
    with contextlib.ExitStack() as stack:
        stack.enter_context(settings.environment())
        stack.enter_context(randomness.kept(settings.seed))
        for batches in (train, test):
            batches.measure(randomness)
        costs = Costs(place, make_meter(meter, settings, stack))
        about = {"device": describe_device(place), "versions": dict(versions())}
        trained = trainable_copy(model, place, settings.channels_last)
        yield Run(trained, train, test, settings, costs, randomness, about, path, begin)


def check_model(model: Any) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError("model", "a torch.nn.Module", describe(model))
    inner = unwrap(model)
    parameters = list(inner.parameters())
    if not any(parameter.requires_grad for parameter in parameters):
        frozen = f"{len(parameters)} frozen ones" if parameters else "no parameters at all"
        raise ArgumentError("model", "trainable parameters", frozen)
    return inner


def choose_device(model: nn.Module, device: torch.device | str | None) -> torch.device:
    return check_device(next(model.parameters()).device if device is None else device)


def trainable_copy(model: nn.Module, device: torch.device, channels_last: bool) -> nn.Module:
    fresh = copy.deepcopy(model).to(device)
    if channels_last:
        fresh = fresh.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    fresh.zero_grad(set_to_none=True)  # a copy has copies of the gradients
    return fresh


def make_meter(meter: Any, settings: Settings, stack: contextlib.ExitStack) -> EnergyMeter | None:
    """The caller's meter, or one of our own for the time of the run."""
    if meter is None:
        if settings.max_joules is not None:
            raise ArgumentError("meter", "one where max_joules is given", "None")
        return None
    if isinstance(meter, EnergyMeter):
        return meter
    if meter != "auto":
        raise ArgumentTypeError("meter", "an EnergyMeter, 'auto' or None", f"{meter!r}")
    gpus = (settings.device,) if settings.device.type == "cuda" else ()
    return stack.enter_context(EnergyMeter(gpus))


def check_start(start: Any) -> Checkpoint | None:
    """A checkpoint, or that of an object which has one."""
    found = getattr(start, "checkpoint", start)
    if start is not None and not isinstance(found, Checkpoint):
        raise ArgumentTypeError("start", "a forecast with a checkpoint", describe(start))
    return found


def check_path(checkpoint: Any) -> Path | None:
    if checkpoint is None:
        return None
    if not isinstance(checkpoint, (str, os.PathLike)):
        raise ArgumentTypeError("checkpoint", "a path", f"{checkpoint!r}")
    path = Path(checkpoint)
    if not path.parent.is_dir():
        raise ArgumentError("checkpoint", "a file in a folder", f"no folder {path.parent}")
    return path


@functools.cache  # they take as long to find out as some short runs
def versions() -> dict[str, str | None]:
    return environment.versions()


def describe_device(device: torch.device) -> dict[str, Any]:
    return next(found for found in environment.devices() if found["device"] == str(device))
