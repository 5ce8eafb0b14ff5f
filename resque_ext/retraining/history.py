"""What a run has seen so far, as plain values, for its record and for its checkpoints."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from resque_ext.retraining.measures import mean
from resque_ext.retraining.record import AccuracyCheck, EpochChange, GradientNorm, ParameterChange

Change = dict[str, float | None]  # by parameter


class StepFault(Exception):
    """A step that went wrong: which one, and what of it, "labels", "loss" or "gradient"."""

    def __init__(self, step: int, what: str, found: float) -> None:
        super().__init__(f"{what} of step {step}: {found}")
        self.step, self.what, self.found = step, what, found


@dataclass
class History:
    """Counters and curves of one run.

    Attributes:
        batches_per_epoch, samples_per_epoch: of one pass over the training data.
        epoch: whole epochs done; batch, samples_in_epoch, loss_sum (weighted by samples): of the
            one that runs.
        norms: of every step that was read; None for one that loss scaling skipped.
        change: of the parameters, to the start and to the previous epoch, when last computed.
        stopped: why the run is over; None while it is not.
    """

    batches_per_epoch: int
    samples_per_epoch: int
    epoch: int = 0
    batch: int = 0
    samples_in_epoch: int = 0
    loss_sum: float = 0.0
    steps: int = 0
    samples: int = 0
    skipped_steps: int = 0
    norms: list[float | None] = field(default_factory=list)
    last_of_epoch: list[float | None] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    checks: list[AccuracyCheck] = field(default_factory=list)
    changes: list[EpochChange] = field(default_factory=list)
    change: tuple[Change, Change] | None = None
    stopped: str | None = None
    resumed: int = 0

    @property
    def epochs(self) -> float:
        """Passes over the training data: whole ones, and of the running one the samples' share."""
        return self.epoch + self.samples_in_epoch / self.samples_per_epoch

    def begin_step(self, samples: int) -> None:
        """A step that is taken; what came of it is told to `read_steps`."""
        self.steps += 1
        self.batch += 1
        self.samples += samples
        self.samples_in_epoch += samples

    def read_steps(self, rows: list[list[float]], sizes: list[int], scaled: bool) -> None:
        """[loss, gradient norm, fault] of the last steps, all of the running epoch.

        Raises:
            StepFault: for the first that went wrong. It and the later ones are forgotten.
        """
        first = self.steps - len(rows) + 1
        for i, ((loss, norm, fault), size) in enumerate(zip(rows, sizes, strict=True)):
            finite = math.isfinite(norm)
            if not fault and math.isfinite(loss) and (finite or scaled):
                self.norms.append(norm if finite else None)
                self.skipped_steps += not finite
                self.loss_sum += loss * size
                continue
            self.forget(sizes[i:])
            what = "labels" if fault else "gradient" if math.isfinite(loss) else "loss"
            raise StepFault(first + i, what, norm if what == "gradient" else loss)

    def forget(self, sizes: list[int]) -> None:
        """Takes the last steps back."""
        self.steps -= len(sizes)
        self.batch -= len(sizes)
        self.samples -= sum(sizes)
        self.samples_in_epoch -= sum(sizes)

    def note_epoch(self, change: tuple[Change, Change]) -> None:
        """What the record says of an epoch, whole or broken off, when it ends."""
        self.change = change
        start, previous = (mean(entry.values()) for entry in change)
        self.changes.append(EpochChange(self.epochs, start, previous))
        self.last_of_epoch.append(self.norms[-1])
        self.losses.append(self.loss_sum / self.samples_in_epoch)

    def end_epoch(self) -> None:
        """The next one begins."""
        self.epoch += 1
        self.batch = self.samples_in_epoch = 0
        self.loss_sum = 0.0

    def add_check(self, accuracy: float) -> None:
        """The test accuracy of this moment."""
        self.checks.append(AccuracyCheck(self.epochs, self.steps, accuracy))

    def checks_without_best(self, min_improvement: float) -> int:
        """How many checks there were since the last that was better by `min_improvement`."""
        best, since = -math.inf, 0
        for check in self.checks:
            since += 1
            if check.accuracy > best + min_improvement:
                best, since = check.accuracy, 0
        return since

    def gradient_norm(self) -> GradientNorm:
        """For the record."""
        known = [norm for norm in self.norms if norm is not None]
        total = math.fsum(known) if known else None
        return GradientNorm(
            None if total is None else total / len(known),
            total,
            tuple(self.last_of_epoch),
            tuple(self.norms),
        )

    def parameter_change(self) -> ParameterChange:
        """For the record."""
        start, previous = self.change or ({}, {})
        return ParameterChange(
            mean(start.values()), start, mean(previous.values()), previous, tuple(self.changes)
        )

    def to_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> History:
        """The history that `to_dict` gave."""
        lists = {
            "checks": [AccuracyCheck(**check) for check in values["checks"]],
            "changes": [EpochChange(**change) for change in values["changes"]],
        }
        return cls(**{**values, **lists})
