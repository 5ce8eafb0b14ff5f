"""retrain: trains a copy of a model on new data until it is good enough; what that cost."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resque_ext import doctor
from resque_ext._inputs import DEVICES, describe
from resque_ext.observe import unwrap
from resque_ext.retraining._run import Run
from resque_ext.retraining.checkpoint import Checkpoint
from resque_ext.retraining.costs import Costs
from resque_ext.retraining.data import Batches
from resque_ext.retraining.energy.meter import EnergyMeter
from resque_ext.retraining.random_state import Randomness
from resque_ext.retraining.record import RetrainingCost
from resque_ext.retraining.settings import Settings, published_optimizer


def retrain(
    model: nn.Module,
    train_batches: Iterable[Any],
    test_batches: Iterable[Any],
    target_accuracy: float,
    max_epochs: float = 200,
    *,
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
    scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
    scheduler_interval: str = "step",
    loss: Callable[[Any, Any], Tensor] | None = None,
    transform: Callable[[Any], Any] | None = None,
    augment: Callable[[Any], Any] | None = None,
    batch_adapter: Callable[[Any], tuple[Any, Any]] | None = None,
    checks_per_epoch: int = 1,
    autocast: torch.dtype | None = None,
    channels_last: bool = False,
    deterministic: bool = True,
    device: torch.device | str | None = None,
    seed: int = 0,
    max_seconds: float | None = None,
    max_joules: float | None = None,
    patience: int | None = None,
    min_improvement: float = 0.0,
    meter: EnergyMeter | str | None = "auto",
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_seconds: float = 60.0,
    return_model: bool = False,
    progress: bool = False,
    start: Any = None,
) -> RetrainingCost | tuple[RetrainingCost, nn.Module]:
    """Trains a copy of `model` on new data until the test accuracy reaches the target.

    Args:
        model: any classifier whose output (or the one such tensor in it) is [N, C]. It stays as it
            is, buffers included: a copy is trained.
        train_batches, test_batches: batches ``(inputs, labels)`` that can be read again and again
            (a list, a DataLoader); labels are class indices [N]. Every pass has to have the same
            number of batches and samples.
        target_accuracy: fraction of the test data, above 0 and at most 1.
        max_epochs: stop rule: passes over the training data, a fraction allowed.
        optimizer: makes an optimiser of the list of trainable parameters; by default Adam with
            learning rate 1e-3 and weight decay 1e-5, as published.
        scheduler: makes a learning rate scheduler of the optimiser; by default none.
        scheduler_interval: "step" or "epoch": when its `step()` is called.
        loss: of (output, labels), a scalar; by default cross-entropy. With a loss of your own the
            training labels may be anything that has a length.
        transform: of a batch's inputs on the device, in training and evaluation alike: a shift. One
            with `reset()` and a seed, as :func:`resque_ext.shifts.make` gives, is copied; it starts
            anew with every epoch and every evaluation.
        augment: likewise, in training only, after `transform`.
        batch_adapter: makes ``(inputs, labels)`` of any other batch.
        checks_per_epoch: how often the test accuracy is read in an epoch, at equal distances. It
            does not change how the training goes.
        autocast: torch.bfloat16 or torch.float16 (with loss scaling) for forward passes; None: the
            model's own dtype.
        channels_last: run in that memory format.
        deterministic: have cuDNN use deterministic algorithms alone. What torch itself documents as
            nondeterministic on CUDA stays so.
        device: by default where the model is.
        seed: of everything random in the run, 0 to 2^32 - 1; all generators of the process (torch,
            NumPy, Python) and of the loaders are seeded and, at the end, put back.
        max_seconds: stop rule: wall seconds of training and evaluation.
        max_joules: stop rule: measured energy of training and evaluation, or, where nothing is
            measured, estimated.
        patience: stop rule: that many checks in a row without a new best accuracy.
        min_improvement: by how much a new best has to be better.
        meter: a :class:`resque_ext.retraining.energy.EnergyMeter`; "auto" makes one of what the
            machine has; None measures no energy.
        checkpoint: a file. The run is saved there and, if it is there already, goes on from it to
            the same result (times and energy add up). No pickle: safetensors and JSON.
        checkpoint_seconds: least time between two saves; the end is always saved.
        return_model: return ``(record, trained copy)``; the copy is in eval mode.
        progress: show a progress bar on stderr.
        start: a :class:`resque_ext.Forecast`, or its `checkpoint`: the run goes on after the steps
            of the forecast's probe and ends like one that began without it. It needs the same
            model, data and arguments. If `checkpoint` is a file already, that is later and wins.

    Returns:
        What it cost; `reached` says whether the target was reached.

    Raises:
        RetrainingError: the loss or the gradient is not finite; has `step` and `record`.
        CheckpointError: `checkpoint` or `start` is that of another run.
        ValueError, TypeError: an argument or a batch is wrong.
        Any other exception of the model, the loader or the like, and KeyboardInterrupt, pass
        unchanged, with what was measured so far as their attribute `record`.
    """
    inner, place = check_model(model), choose_device(model, device)
    settings = Settings(
        target_accuracy=target_accuracy,
        max_epochs=max_epochs,
        optimizer=published_optimizer if optimizer is None else optimizer,
        scheduler=scheduler,
        scheduler_interval=scheduler_interval,
        loss=loss,
        transform=transform,
        augment=augment,
        checks_per_epoch=checks_per_epoch,
        autocast=autocast,
        channels_last=channels_last,
        deterministic=deterministic,
        device=place,
        seed=seed,
        max_seconds=max_seconds,
        max_joules=max_joules,
        patience=patience,
        min_improvement=min_improvement,
        checkpoint_seconds=checkpoint_seconds,
        progress=progress,
    )
    with opened(
        inner, train_batches, test_batches, settings, batch_adapter, meter, checkpoint, start
    ) as run:
        try:
            run.go()
        except BaseException as error:
            record = run.broken_off(error)
            with contextlib.suppress(AttributeError):  # an exception that takes no attributes
                error.record = record  # type: ignore[attr-defined]
            raise
        record = run.record()
        return (record, run.model.eval()) if return_model else record


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
    """A run that has not begun, with the process's generators seeded for it and put back after it.

    Args:
        names: of the arguments with batches, for messages. The others are those of `retrain`.
    """
    place = settings.device
    if batch_adapter is not None and not callable(batch_adapter):
        raise TypeError(
            f"batch_adapter: expected a function of a batch, found {describe(batch_adapter)}"
        )
    train = Batches(train_batches, names[0], place, batch_adapter, indices=settings.loss is None)
    test = Batches(test_batches, names[1], place, batch_adapter, indices=True)
    path, begin = _check_path(checkpoint), _check_start(start)
    randomness = Randomness(place, (train_batches, test_batches))
    with contextlib.ExitStack() as stack:
        stack.enter_context(settings.environment())
        stack.enter_context(randomness.kept(settings.seed))
        for batches in (train, test):
            batches.measure(randomness)
        costs = Costs(place, make_meter(meter, settings, stack))
        about = {"device": _about(place), "versions": dict(_versions())}
        trained = trainable_copy(model, place, settings.channels_last)
        yield Run(trained, train, test, settings, costs, randomness, about, path, begin)


def make_settings(device: torch.device, given: Mapping[str, Any], **own: Any) -> Settings:
    """Settings of the arguments `given` and `own`, the others as `retrain` has them by default.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    defaults = inspect.signature(retrain).parameters
    known = [f.name for f in dataclasses.fields(Settings) if f.name in defaults]
    options = {name: defaults[name].default for name in known} | dict(given) | own
    options["optimizer"] = options["optimizer"] or published_optimizer
    return Settings(**{**options, "device": device})


def check_model(model: Any) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, found {describe(model)}")
    inner = unwrap(model)
    parameters = list(inner.parameters())
    if not any(parameter.requires_grad for parameter in parameters):
        frozen = f"{len(parameters)} frozen ones" if parameters else "no parameters at all"
        raise ValueError(f"model: expected trainable parameters, found {frozen}")
    return inner


def choose_device(model: nn.Module, device: torch.device | str | None) -> torch.device:
    if device is None:
        place = next(model.parameters()).device
    else:
        try:
            place = torch.device(device)
        except (RuntimeError, TypeError):
            raise ValueError(f"device: expected a cpu or cuda device, found {device!r}") from None
    if place.type not in DEVICES:
        raise ValueError(f"device: expected a cpu or cuda device, found {str(place)!r}")
    if place.type == "cpu":
        return torch.device("cpu")
    index = place.index if place.index is not None else _current_cuda()
    if index >= torch.cuda.device_count():
        raise ValueError(
            f"device: expected one of this machine's {torch.cuda.device_count()} CUDA devices, "
            f"found {str(place)!r}"
        )
    return torch.device("cuda", index)


def _current_cuda() -> int:
    return torch.cuda.current_device() if torch.cuda.is_available() else 0


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
            raise ValueError("meter: expected one where max_joules is given, found None")
        return None
    if isinstance(meter, EnergyMeter):
        return meter
    if meter != "auto":
        raise TypeError(f"meter: expected an EnergyMeter, 'auto' or None, found {meter!r}")
    gpus = (settings.device,) if settings.device.type == "cuda" else ()
    return stack.enter_context(EnergyMeter(gpus))


def _check_start(start: Any) -> Checkpoint | None:
    """A checkpoint, or that of an object which has one."""
    found = getattr(start, "checkpoint", start)
    if start is not None and not isinstance(found, Checkpoint):
        raise TypeError(f"start: expected a forecast with a checkpoint, found {describe(start)}")
    return found


def _check_path(checkpoint: Any) -> Path | None:
    if checkpoint is None:
        return None
    if not isinstance(checkpoint, (str, os.PathLike)):
        raise TypeError(f"checkpoint: expected a path, found {checkpoint!r}")
    path = Path(checkpoint)
    if not path.parent.is_dir():
        raise ValueError(f"checkpoint: expected a file in a folder, found no folder {path.parent}")
    return path


@functools.cache  # they take as long to find out as some short runs
def _versions() -> dict[str, str | None]:
    return doctor.versions()


def _about(device: torch.device) -> dict[str, Any]:
    return next(found for found in doctor.devices() if found["device"] == str(device))
