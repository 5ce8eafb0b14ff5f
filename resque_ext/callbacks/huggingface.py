"""ForecastCallback for `transformers.Trainer`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sized
from typing import Any

from resque_ext.callbacks.tracker import ForecastTracker, Report

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ModuleNotFoundError as error:
    raise ImportError(
        "callbacks: expected transformers, found none: pip install transformers"
    ) from error


class ForecastCallback(TrainerCallback):
    """Forecasts before the first step, tells at every evaluation, compares at the end.

    The Trainer needs `compute_metrics` that returns an accuracy, and evaluations on the way
    (`eval_strategy="steps"` or `"epoch"`).

    Args:
        train, test: batches as the model takes them, such as `trainer.get_train_dataloader()` and
            `trainer.get_eval_dataloader()`.
        target_accuracy: fraction of the test data, above 0 and at most 1.
        metric: where the evaluation has its accuracy.
        stop_at_target: end the training once an evaluation meets the target.
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
        metric: str = "eval_accuracy",
        stop_at_target: bool = False,
        report: Report | None = None,
        **options: Any,
    ) -> None:
        self.tracker = ForecastTracker(train, test, target_accuracy, report=report, **options)
        self.metric, self.stop_at_target = metric, stop_at_target

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        optimizer: Any = None,
        train_dataloader: Any = None,
        **_: Any,
    ) -> None:
        epoch = None
        if isinstance(train_dataloader, Sized):
            # An epoch's last batch makes a step, however few were accumulated by then.
            epoch = math.ceil(len(train_dataloader) / args.gradient_accumulation_steps)
        every = state.eval_steps if str(args.eval_strategy.value) == "steps" else None
        self.tracker.begin(
            model,
            optimizer=optimizer,
            step=state.global_step,
            steps_per_epoch=epoch,
            check_every=every or None,
        )

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Any = None,
        **_: Any,
    ) -> None:
        if self.tracker.forecast is None:  # an evaluation outside of training
            return
        found = metrics or {}
        missing = [name for name in (self.metric, "eval_loss") if name not in found]
        if missing:
            raise ValueError(
                f"metric: expected {missing[0]!r} in the evaluation, found {', '.join(found)}; "
                "return it from compute_metrics=, or name another with metric="
            )
        outlook = self.tracker.check(
            state.global_step, state.epoch or 0.0, found[self.metric], found["eval_loss"]
        )
        if self.stop_at_target and outlook.reached:
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.tracker.end(state.global_step, state.epoch or 0.0)
