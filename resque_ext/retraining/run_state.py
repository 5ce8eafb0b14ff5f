"""The state of a run for a checkpoint, and back, so that it goes on as if it had never stopped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from resque_ext.energy.measurement import Measurement
from resque_ext.retraining import checkpoint
from resque_ext.retraining.history import History

if TYPE_CHECKING:
    from resque_ext.retraining.run import Run


def of(run: Run) -> dict[str, Any]:
    """Tensors and plain values for `checkpoint.save`."""
    return {
        "identity": _identity(run),
        "history": run.history.to_dict(),
        "model": _tensors(run.model),
        "start": run.track.start,
        "previous": run.track.previous,
        "optimizer": run.optimizer.state_dict(),
        "scheduler": run.scheduler.state_dict() if run.scheduler else None,
        "scaler": run.scaler.state_dict() if run.scaler else None,
        "randomness": run.randomness.state(),
        "epoch_state": run.epoch_state,
        "seconds": run.costs.seconds,
        "energy": {name: m.to_dict() for name, m in run.costs.energy().items()},
    }


def take_on(run: Run, path: Path | str, state: Mapping[str, Any]) -> None:
    """Puts a run that has not begun where the one of `state` was; `path` is for messages: a file,
    or whose state it is.

    Raises:
        CheckpointError: it is that of another run. Nothing is changed then.
    """
    checkpoint.check_complete(path, of(run), state)
    checkpoint.check_same(path, _identity(run), state["identity"])
    tensors = _tensors(run.model)
    frozen = {n: p for n, p in run.model.named_parameters() if not p.requires_grad}
    checkpoint.check_equal(path, run.track.start, state["start"])
    checkpoint.check_equal(path, frozen, state["model"])
    checkpoint.check_shapes(path, tensors, state["model"])
    with torch.no_grad():
        for target, source in ((tensors, state["model"]), (run.track.previous, state["previous"])):
            for name, tensor in target.items():
                tensor.copy_(source[name])
    run.optimizer.load_state_dict(state["optimizer"])
    if run.scheduler is not None:
        run.scheduler.load_state_dict(state["scheduler"])
    if run.scaler is not None:
        run.scaler.load_state_dict(state["scaler"])
    run.randomness.restore(state["randomness"])
    run.epoch_state = state["epoch_state"]
    run.costs.seconds = state["seconds"]
    run.costs.before = {name: Measurement.from_dict(m) for name, m in state["energy"].items()}
    run.history = History.from_dict(state["history"])
    run.skip = run.history.batch
    if run.history.stopped is None:
        run.history.resumed += 1


def _identity(run: Run) -> dict[str, Any]:
    """What has to be the same for a run to go on where another stopped."""
    return {
        "target_accuracy": float(run.settings.target_accuracy),
        "seed": int(run.settings.seed),
        "device": run.about["device"],
        "training data": [run.train.count, run.train.samples],
        "test data": [run.test.count, run.test.samples],
        "parameters": [
            [name, list(p.shape), str(p.dtype), p.requires_grad]
            for name, p in run.model.named_parameters()
        ],
        **run.options,
    }


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, those included that a state_dict leaves out."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
