"""ForecastCallback for Lightning (`lightning` or `pytorch_lightning`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from resque_ext.callbacks.tracker import ForecastTracker, Report

try:
    from lightning.pytorch import Callback
except ModuleNotFoundError:
    try:
        from pytorch_lightning import Callback
    except ModuleNotFoundError as error:
        raise ImportError(
            "callbacks: expected lightning, found none: pip install lightning"
        ) from error


class ForecastCallback(Callback):
    """Forecasts before the first step, tells at every validation, compares at the end.

    The module logs an accuracy and a cross-entropy in `validation_step`.

    Args:
        train, test: batches ``(inputs, labels)`` that can be read again and again.
        target_accuracy: fraction of the test data, above 0 and at most 1.
        metric, loss: the names under which the module logs them.
        network: makes the classifier of the module; by default the module, whose `forward` then
            has to return scores.
        stop_at_target: end the training once a validation meets the target.
        report, options: as for :class:`resque_ext.callbacks.ForecastTracker`.

    Attributes:
        tracker: the ForecastTracker, with `forecast`, `outlooks` and `summary()`.
    """

    def __init__(
        self,
        train: Iterable[Any],
        test: Iterable[Any],
        target_accuracy: float,
        *,
        metric: str = "val_accuracy",
        loss: str = "val_loss",
        network: Callable[[Any], nn.Module] | None = None,
        stop_at_target: bool = False,
        report: Report | None = None,
        **options: Any,
    ) -> None:
        self.tracker = ForecastTracker(train, test, target_accuracy, report=report, **options)
        self.metric, self.loss, self.network = metric, loss, network
        self.stop_at_target = stop_at_target

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        model = pl_module if self.network is None else self.network(pl_module)
        optimizer = trainer.optimizers[0] if trainer.optimizers else None
        self.tracker.begin(
            model,
            optimizer=optimizer,
            step=trainer.global_step,
            steps_per_epoch=_steps(trainer, trainer.num_training_batches),
            check_every=_steps(trainer, trainer.val_check_batch),
        )

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.sanity_checking or self.tracker.forecast is None:
            return
        found = trainer.callback_metrics
        missing = [name for name in (self.metric, self.loss) if name not in found]
        if missing:
            raise ValueError(
                f"metric: expected {missing[0]!r} among what the module logs, found "
                f"{', '.join(found)}; log it in validation_step, or name it with metric=, loss="
            )
        outlook = self.tracker.check(
            trainer.global_step,
            self._epoch(trainer),
            float(found[self.metric]),
            float(found[self.loss]),
        )
        if self.stop_at_target and outlook.reached:
            trainer.should_stop = True

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.tracker.end(trainer.global_step, self._epoch(trainer))

    def _epoch(self, trainer: Any) -> float:
        return float(trainer.global_step / (self.tracker.steps_per_epoch or 1))


def _steps(trainer: Any, batches: float | None) -> int | None:
    """Optimizer steps of so many batches; None where their number is not known."""
    if not batches or math.isinf(batches):
        return None
    # An epoch's last batch makes a step, however few were accumulated by then.
    return math.ceil(batches / trainer.accumulate_grad_batches)
