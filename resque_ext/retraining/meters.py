"""The two meters of a run, wall clock and energy, and which of its phases they count."""

from __future__ import annotations

import contextlib
import time

import torch

from resque_ext.energy.measurement import Measurement, add, nothing
from resque_ext.energy.meter import EnergyMeter

TRAINING, EVALUATION = "training", "evaluation"
WINDOWS = (TRAINING, "total")
NO_METER = "no energy meter was asked for"


class Costs:
    """Seconds of training and of evaluation, and the energy of training and of both.

    Between the phases, when something is measured or saved, neither runs.

    Args:
        device: what a phase waits for before it is over.
        meter: None measures no energy.
    """

    def __init__(self, device: torch.device, meter: EnergyMeter | None) -> None:
        self.device, self.meter = device, meter
        self.seconds = {TRAINING: 0.0, EVALUATION: 0.0}
        self.before: dict[str, Measurement] = {}  # of earlier parts of a resumed run
        self._phase: str | None = None
        self._since = 0.0
        # Names of windows that nobody else's have, as the meter may be the caller's.
        self._names = {window: f"retrain {window} {id(self)}" for window in WINDOWS}
        self._phases: dict[str, tuple[str | None, ...]] = {
            TRAINING: (TRAINING,),
            "total": (TRAINING, EVALUATION),
        }
        self._open: set[str] = set()

    def switch(self, phase: str | None) -> None:
        """Ends the phase that runs and begins another; None for neither."""
        if phase == self._phase:
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        if self._phase is not None:
            self.seconds[self._phase] += now - self._since
        self._energy(self._phase, phase)
        self._phase, self._since = phase, time.perf_counter()

    def elapsed(self) -> float:
        """Seconds of training and evaluation so far."""
        running = time.perf_counter() - self._since if self._phase else 0.0
        return sum(self.seconds.values()) + running

    def energy(self) -> dict[str, Measurement]:
        """Of training, and of training and evaluation, earlier parts included."""
        return {window: self.measured(window) for window in WINDOWS}

    def joules(self) -> tuple[float | None, str | None]:
        """Of training and evaluation: measured, or estimated where nothing is; or why not known."""
        total = self.measured("total")
        figure = total.measured if total.measured.value is not None else total.estimated
        return figure.value, figure.reason

    def add_window(self, name: str, *phases: str) -> None:
        """Also meters these phases from now on, apart from the others: see `measured`."""
        self.switch(None)
        self._names[name] = f"retrain {name} {id(self)}"
        self._phases[name] = phases

    def close(self) -> None:
        """Ends the phase and the windows; `energy` stays as it is."""
        self.switch(None)
        self.before = self.energy()
        if self.meter is not None:
            for window in self._open:
                with contextlib.suppress(ValueError):  # an interrupt may have come before it began
                    self.meter.end(self._names[window])
        self._open.clear()

    def _energy(self, old: str | None, new: str | None) -> None:
        if self.meter is None:
            return
        # Ends first and beginnings last, so that what the meter itself does is in no window.
        for window, phases in self._phases.items():
            if old in phases and new not in phases:
                self.meter.pause(self._names[window])
        for window, phases in self._phases.items():
            if new not in phases or old in phases:
                continue
            if window in self._open:
                self.meter.resume(self._names[window])
            else:
                self._open.add(window)
                self.meter.begin(self._names[window])

    def measured(self, window: str) -> Measurement:
        """The energy of one window so far, earlier parts included."""
        parts = []
        before = self.before.get(window)
        if before is not None and (before.windows or before.seconds):
            parts.append(before)
        if window in self._open:
            try:
                parts.append(self.meter.peek(self._names[window]))  # type: ignore[union-attr]
            except ValueError as error:  # likewise, or the meter was closed meanwhile
                return nothing(window, str(error), self.elapsed())
        elif self.meter is None and not parts:
            seconds = self.seconds[TRAINING] if window == TRAINING else self.elapsed()
            return nothing(window, NO_METER, seconds)
        return add(window, parts) if parts else nothing(window, "nothing was done in it")
