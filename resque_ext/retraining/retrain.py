"""retrain: trains a copy of a model on new data until it is good enough; what that cost."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from resque_ext.data.checks import describe
from resque_ext.energy.meter import EnergyMeter
from resque_ext.errors import ArgumentTypeError
from resque_ext.retraining.calibration import Before
from resque_ext.retraining.outlook import Outlook, Watch
from resque_ext.retraining.record import RetrainingCost
from resque_ext.retraining.settings import Settings, published_optimizer
from resque_ext.retraining.setup import (
    check_model,
    choose_device,
    opened,
)
from resque_ext.retraining.target import Checks, Target


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
    on_forecast: Callable[[Outlook], Any] | None = None,
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
        meter: a :class:`resque_ext.energy.EnergyMeter`; "auto" makes one of what the
            machine has; None measures no energy.
        checkpoint: a file. The run is saved there and, if it is there already, goes on from it to
            the same result (times and energy add up). No pickle: safetensors and JSON.
        checkpoint_seconds: least time between two saves; the end is always saved.
        return_model: return ``(record, trained copy)``; the copy is in eval mode.
        progress: show a progress bar on stderr, with the time that is left.
        start: a :class:`resque_ext.Forecast`, or its `checkpoint`: the run goes on after the steps
            of the forecast's probe and ends like one that began without it. It needs the same
            model, data and arguments. If `checkpoint` is a file already, that is later and wins.
        on_forecast: called at every check of the test accuracy with an :class:`Outlook`: the steps,
            epochs and seconds that the run is still to take, predicted by its learning curve, with
            intervals. It changes nothing in the run; an exception of it ends the run.

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
    if on_forecast is not None and not callable(on_forecast):
        raise ArgumentTypeError("on_forecast", "a function", describe(on_forecast))
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
        if on_forecast is not None or progress:
            run.watch = Watch(
                Target(float(target_accuracy), run.test.samples),
                Checks.of(run.check_batches, run.train.count),
                getattr(start, "points", ()),
                getattr(start, "before", Before()),
                getattr(start, "calibration", None),
                on_forecast,
            )
        try:
            run.go()
        except BaseException as error:
            record = run.broken_off(error)
            with contextlib.suppress(AttributeError):  # an exception that takes no attributes
                error.record = record  # type: ignore[attr-defined]
            raise
        record = run.record()
        return (record, run.model.eval()) if return_model else record


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
