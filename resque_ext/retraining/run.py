"""The training loop behind `retrain`: steps, evaluations, stop rules, checkpoints."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from resque_ext.data.checks import describe
from resque_ext.energy.sources import warn
from resque_ext.errors import ArgumentError, ArgumentTypeError
from resque_ext.model.hooks import evaluating, forward
from resque_ext.model.outputs import score_tensors
from resque_ext.retraining import checkpoint, run_state
from resque_ext.retraining.batches import Batches, label_fault
from resque_ext.retraining.checkpoint import Checkpoint
from resque_ext.retraining.heads import training_mode
from resque_ext.retraining.history import History, StepFault
from resque_ext.retraining.measures import ParameterTrack, StepLog, gradient_norm
from resque_ext.retraining.meters import EVALUATION, TRAINING, Costs
from resque_ext.retraining.outlook import Watch
from resque_ext.retraining.random_state import Randomness
from resque_ext.retraining.record import RetrainingCost
from resque_ext.retraining.settings import Settings, Transform

ENERGY_LOOK_SECONDS = 1.0  # between two looks at the energy that a budget limits
ROUNDING = 1e-9  # of an epoch: sums of shares that should meet a limit may miss it by less


class RetrainingError(RuntimeError):
    """Training went wrong by itself: a loss or a gradient that is not finite.

    Attributes:
        step: the step that failed, counted from 1.
        record: the :class:`RetrainingCost` of the steps before it.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step
        self.record: RetrainingCost | None = None


class Run:
    """One retraining, from the first evaluation to the last.

    Args:
        model: the copy that is trained, on the device.
        train, test: batches that were measured.
        settings, costs, randomness: see there.
        about: {"device": ..., "versions": ...} for the record.
        path: of the checkpoint, or None.
        start: where another run was stopped, from which this one goes on; a file at `path` wins.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Batches,
        test: Batches,
        settings: Settings,
        costs: Costs,
        randomness: Randomness,
        about: dict[str, Any],
        path: Path | None,
        start: Checkpoint | None = None,
    ) -> None:
        self.model, self.train, self.test = model, train, test
        self.settings, self.costs, self.randomness = settings, costs, randomness
        self.about, self.path, self.device = about, path, costs.device
        self.start = start
        self.check_batches = settings.check_batches(train.count)
        shift = settings.transform
        self.train_transforms = [Transform(shift), Transform(settings.augment)]
        self.test_transform = Transform(shift)
        self.track = ParameterTrack(model)
        self.parameters = list(self.track.parameters.values())
        self.optimizer = settings.optimizer(self.parameters)
        check_optimizer(self.optimizer, self.parameters)
        self.options = settings.describe(self.optimizer)  # before a scheduler changes the rates
        self.scheduler = settings.scheduler(self.optimizer) if settings.scheduler else None
        scaled = settings.autocast == torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type) if scaled else None
        self.log = StepLog(self.device)
        self.history = History(train.count, train.samples)
        self.epoch_state: dict[str, Any] | None = None  # randomness at the start of the epoch
        self.skip = 0  # batches of the epoch that a resumed run has behind it
        self._looked = self._saved = time.perf_counter()
        self._warned = False  # that a budget of energy cannot be kept
        self._bar: Any = None
        self.watch_loss = False  # whether checks also take the mean cross-entropy of the test data
        self.test_loss: float | None = None  # at the last check
        self.watch: Watch | None = None  # tells at every check how far the run has to go

    # The loop

    def go(self) -> None:
        """Evaluates and trains until a stop rule holds."""
        if self.path is not None and self.path.exists():
            run_state.take_on(self, self.path, checkpoint.load(self.path))
        elif self.start is not None:
            run_state.take_on(self, "the forecast's", self.start.state())
        if self.history.stopped is not None:
            return
        with self._progress_bar():
            for _ in self.steps():
                pass
        self.finish()
        self._save()

    def finish(self) -> None:
        """What the record says of the end, once a stop rule holds."""
        self.costs.close()
        if self.history.samples_in_epoch:
            self.history.note_epoch(self.track.changes())
        elif self.history.change is None:
            self.history.change = self.track.changes()

    def steps(self) -> Iterator[int]:
        """The same step by step: the number of steps so far, at first and after every one.

        Between two of them the run may be read (`state`, `read_test`) or left.
        """
        training_mode(self.model)
        if not self.history.checks:
            self._evaluate()
        yield self.history.steps
        while self.history.stopped is None:
            yield from self._epoch()

    def state(self) -> Checkpoint:
        """Where the run is; one that starts there goes on as this one would."""
        self.costs.switch(None)
        self._read_log()
        return Checkpoint(run_state.of(self))

    def _epoch(self) -> Iterator[int]:
        history = self.history
        for transform in self.train_transforms:
            transform.restart()
        for inputs, labels, size in self._training_batches():
            self._step(inputs, labels, size)
            done = history.epochs >= self.settings.max_epochs - ROUNDING
            late = self._over_budget()
            if history.batch in self.check_batches or done or late:
                self._read_log()
                if history.batch == self.train.count:
                    self._end_epoch()
                self._evaluate()
                if history.stopped is None and (done or late):
                    history.stopped = late or "epochs"
            if history.stopped is None and self._save_is_due():
                self._save()
            yield history.steps
            if history.stopped is not None:
                return
            self.costs.switch(TRAINING)

    def _training_batches(self) -> Iterator[tuple[Any, Any, int]]:
        """The batches of the epoch. Of one that is resumed those before are read again and left
        out, so that whatever draws random numbers for the data goes on as it would have."""
        skip, self.skip = self.skip, 0
        now = self.randomness.state()
        if skip:
            assert self.epoch_state is not None
            self.randomness.restore(self.epoch_state)
        else:
            self.epoch_state = now
            self.costs.switch(TRAINING)
        for i, (inputs, labels, size) in enumerate(self.train, start=1):
            if i > skip:
                self.costs.switch(TRAINING)
                yield inputs, labels, size
                continue
            for transform in self.train_transforms:
                inputs = transform(inputs) if transform.resets else inputs
            if i == skip:
                self.randomness.restore(now)

    def _step(self, inputs: Any, labels: Any, size: int) -> None:
        for transform in self.train_transforms:
            inputs = transform(inputs)
        with self.settings.precision():
            output = forward(self.model, self.settings.laid_out(inputs))
            loss, fault = self._loss(output, labels)
        self.model.zero_grad(set_to_none=True)  # an optimiser may hold a part of the parameters
        if self.scaler is None:
            loss.backward()
        else:
            self.scaler.scale(loss).backward()
            self.scaler.unscale_(self.optimizer)
        self.log.add(loss, gradient_norm(self.parameters), fault, size)
        self.history.begin_step(size)
        if self.log.full:
            self._read_log()  # on the CPU before the weights take a step that is not finite
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        if self.scheduler is not None and self.settings.scheduler_interval == "step":
            self.scheduler.step()
        if self._bar is not None:
            self._bar.update()

    def _loss(self, output: Any, labels: Any) -> tuple[Tensor, Tensor | None]:
        if self.settings.loss is None:
            logits = _logits(output, len(labels))
            classes = logits.shape[1]
            fault = label_fault(labels, classes, self.train.name)
            labels = labels.to(self.device, torch.int64, non_blocking=True)
            # On a GPU a label out of range would end the process's use of it.
            within = labels if fault is None else labels.clamp(0, classes - 1)
            return nn.functional.cross_entropy(logits, within), fault
        if isinstance(labels, Tensor):
            labels = labels.to(self.device, non_blocking=True)
        loss = self.settings.loss(output, labels)
        if not isinstance(loss, Tensor) or loss.dim() != 0:
            raise ArgumentTypeError("loss", "a scalar tensor", describe(loss))
        if not loss.requires_grad:
            raise ArgumentError("loss", "one that depends on the parameters", "a constant")
        return loss, None

    def _read_log(self) -> None:
        """Takes the pending steps in; waits for the device."""
        try:
            self.history.read_steps(*self.log.take(), scaled=self.scaler is not None)
        except StepFault as fault:
            if fault.what == "labels":
                raise ValueError(_out_of_range(self.train.name)) from None
            raise RetrainingError(
                f"{fault.what}: expected a finite one, found {fault.found} in step {fault.step}",
                fault.step,
            ) from None

    def _end_epoch(self) -> None:
        self.costs.switch(None)
        if self.scheduler is not None and self.settings.scheduler_interval == "epoch":
            self.scheduler.step()
        self.history.note_epoch(self.track.changes())
        self.track.end_epoch()
        self.history.end_epoch()

    # The test data

    def read_test(
        self, costs: Costs, with_loss: bool = False, model: nn.Module | None = None
    ) -> tuple[float, float | None]:
        """The test accuracy and, where asked for, the mean cross-entropy, by default of the model
        as it is now. Leaves no trace in the training; `costs` counts it as an evaluation."""
        model = self.model if model is None else model
        costs.switch(EVALUATION)
        self.test_transform.restart()
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        wrong = torch.zeros((), dtype=torch.bool, device=self.device)
        with self.randomness.kept(self.settings.seed), evaluating(model):
            for inputs, labels, _ in self.test:
                with self.settings.precision():
                    inputs = self.settings.laid_out(self.test_transform(inputs))
                    logits = _logits(forward(model, inputs), len(labels))
                fault = label_fault(labels, logits.shape[1], self.test.name)
                labels = labels.to(self.device, torch.int64, non_blocking=True)
                correct += (logits.argmax(1) == labels).sum()
                if fault is not None:
                    wrong |= fault
                if with_loss:
                    loss += _summed_loss(logits, labels)
        accuracy = int(correct) / self.test.samples
        mean_loss = float(loss) / self.test.samples if with_loss else None
        costs.switch(None)
        if bool(wrong):
            raise ValueError(_out_of_range(self.test.name))
        return accuracy, mean_loss

    def _evaluate(self) -> None:
        """Reads the test accuracy and stops where it says so."""
        with_loss = self.watch_loss or self.watch is not None
        accuracy, self.test_loss = self.read_test(self.costs, with_loss)
        history, settings = self.history, self.settings
        history.add_check(accuracy)
        if self.watch is not None:
            assert self.test_loss is not None
            found = self.watch.look(
                history.steps, history.epochs, accuracy, self.test_loss, self.costs.seconds
            )
            if self._bar is not None:
                self._bar.set_postfix_str(str(found))
        if accuracy >= settings.target_accuracy:
            history.stopped = "target"
        elif history.checks_without_best(settings.min_improvement) >= (
            math.inf if settings.patience is None else settings.patience
        ):
            history.stopped = "plateau"

    def _over_budget(self) -> str | None:
        """The limit of time or energy that is passed, if one is."""
        settings, now = self.settings, time.perf_counter()
        if settings.max_seconds is not None and self.costs.elapsed() >= settings.max_seconds:
            return "seconds"
        if settings.max_joules is not None and now - self._looked >= ENERGY_LOOK_SECONDS:
            self._looked = now
            joules, reason = self.costs.joules()
            if joules is None and not self._warned:
                self._warned = True
                warn(f"max_joules is not kept: {reason}")
            elif joules is not None and joules >= settings.max_joules:
                return "energy"
        return None

    # The record

    def record(self) -> RetrainingCost:
        """What was measured so far."""
        history = self.history
        return RetrainingCost(
            reached=history.stopped == "target",
            stopped=history.stopped or "error",
            target_accuracy=float(self.settings.target_accuracy),
            epochs=history.epochs,
            steps=history.steps,
            samples=history.samples,
            steps_per_epoch=self.train.count,
            samples_per_epoch=self.train.samples,
            skipped_steps=history.skipped_steps,
            gradient_norm=history.gradient_norm(),
            parameter_change=history.parameter_change(),
            train_seconds=self.costs.seconds[TRAINING],
            evaluation_seconds=self.costs.seconds[EVALUATION],
            energy=self.costs.energy(),
            accuracy=tuple(history.checks),
            loss_of_epoch=tuple(history.losses),
            seed=int(self.settings.seed),
            device=self.about["device"],
            versions=self.about["versions"],
            options=self.options,
            resumed=history.resumed,
        )

    def broken_off(self, error: BaseException) -> RetrainingCost:
        """The record of a run that `error` ended."""
        history = self.history
        history.stopped = "interrupted" if isinstance(error, KeyboardInterrupt) else "error"
        try:
            self.costs.close()
            # A fault in steps that were not read yet is forgotten with them: `error` came first.
            with contextlib.suppress(RetrainingError, ValueError):
                self._read_log()
            change = self.track.changes()
            if history.samples_in_epoch:
                history.note_epoch(change)
            history.change = change
        except RuntimeError:  # of a device that answers no more: what it holds is not known
            history.forget(self.log.sizes)
            history.change = None
        return self.record()

    @contextlib.contextmanager
    def _progress_bar(self) -> Iterator[None]:
        with tqdm(
            total=math.ceil(self.settings.max_epochs * self.train.count),
            initial=self.history.steps,
            desc="retraining",
            disable=not self.settings.progress,
            leave=False,
        ) as bar:
            self._bar = None if bar.disable else bar
            yield

    # Checkpoints

    def _save_is_due(self) -> bool:
        return (
            self.path is not None
            and time.perf_counter() - self._saved >= self.settings.checkpoint_seconds
        )

    def _save(self) -> None:
        if self.path is not None:
            self.costs.switch(None)
            self._read_log()
            checkpoint.save(self.path, run_state.of(self))
            self._saved = time.perf_counter()


def _logits(output: Any, rows: int) -> Tensor:
    """[N, C] of a classifier's output: the output itself, its "logits", or its only such tensor.

    Raises:
        ValueError: it is something else, or several.
    """
    found = {path: x for path, x in score_tensors(output) if x.dim() == 2 and x.shape[1] > 1}
    if len(found) != 1 and "logits" not in found:
        what = f"several, {', '.join(map(repr, found))}" if found else describe(output)
        raise ArgumentError("model", "an output [N, C] of C >= 2 classes", what)
    logits = found.get("logits", next(iter(found.values())))
    if logits.shape[0] != rows:
        raise ArgumentError(
            "model", f"one output a label ({rows})", f"an output of {describe(logits)}"
        )
    return logits


def _summed_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy [] over the rows, float64. Labels out of range are an error told later."""
    within = labels.clamp(0, logits.shape[1] - 1)
    return nn.functional.cross_entropy(logits.double(), within, reduction="sum")


def _out_of_range(name: str) -> str:
    return (
        f"{name} labels: expected class indices from 0 to below the number of the model's outputs, "
        "found others"
    )


def check_optimizer(optimizer: Any, parameters: list[nn.Parameter]) -> None:
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ArgumentTypeError(
            "optimizer",
            "a function that gives a torch.optim.Optimizer",
            f"one that gives {describe(optimizer)}",
        )
    mine = {id(parameter) for parameter in parameters}
    theirs = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not theirs <= mine:
        raise ArgumentError(
            "optimizer",
            "an optimiser of the parameters that the function is given, "
            "which are those of a copy of the model",
            f"{len(theirs - mine)} others in it",
        )
