"""Joules of a GPU: its own counter, or its power, sampled.

A counter is that of the whole device. Whatever runs on it while a window is open is in the figure,
other processes too; `notes` says when there are such, and the meter sees to it that of several
metering processes one alone counts the device.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from typing import Any

from resque_ext.energy.nvml import (
    EnergyError,
    Gpu,
    Nvml,
    NvmlError,
    NvmlNotFound,
    NvmlNotSupported,
)
from resque_ext.energy.sources import Clock, Nothing, Source

COUNTER_SECONDS = 0.1  # drivers update the counter every 20 to 100 ms
SAMPLE_SECONDS = 0.1
GAP_SECONDS = 2.0  # between two samples of power beyond which what was in between is not known
LOOK_SECONDS = 1.0  # between two counts of the processes on a GPU
NO_LIMIT_WATTS = 2000.0  # a power limit for a GPU that does not tell its own


class GpuSource(Source):
    """What both ways of metering a GPU have in common."""

    def __init__(self, gpu: Gpu, kind: str, update_seconds: float, clock: Clock) -> None:
        part = f"gpu:{gpu.index}"
        super().__init__(part, kind, update_seconds, clock, counted_once=gpu.uuid())
        self.gpu = gpu
        self._processes, self._looked = 0, -math.inf

    def notes(self) -> tuple[str, ...]:
        if self.clock() - self._looked >= LOOK_SECONDS:
            self._looked = self.clock()
            try:
                self._processes = self.gpu.processes()
            except NvmlError:
                return ("whether other processes used it too is not known",)
        if self._processes > 1:
            return (f"of {self._processes} processes that ran on it together",)
        return ()


class CounterSource(GpuSource):
    """The GPU's total-energy counter."""

    def __init__(self, gpu: Gpu, clock: Clock = time.perf_counter) -> None:
        super().__init__(gpu, "nvml-counter", COUNTER_SECONDS, clock)
        self._counted: int | None = None  # mJ that the counter stood at
        self._counted_at = 0.0
        self._total = 0  # mJ
        try:
            self._limit = gpu.power_limit()
        except NvmlError:
            self._limit = NO_LIMIT_WATTS

    def _joules(self) -> float:
        counted, now = self.gpu.millijoules(), self.clock()
        if self._counted is not None:
            self._total += self._since(self._counted, counted, now - self._counted_at)
        self._counted, self._counted_at = counted, now
        return self._total / 1000

    def _since(self, before: int, after: int, seconds: float) -> int:
        """mJ between two readings, as integers: a full counter has more digits than a float.

        The counter runs backwards when it is full (2^32 or 2^64 mJ), and when the driver is loaded
        anew and begins at 0. A turn is believed if it needs no more power than the GPU may draw,
        twice that to be safe; otherwise what was counted before the driver went is lost.
        """
        if after >= before:
            return after - before
        most = 2000 * self._limit * (seconds + COUNTER_SECONDS)
        for bits in (32, 64):
            turned = after + 2**bits - before
            if 0 <= turned <= most:
                return turned
        self.broke(
            f"the counter went back from {before / 1000:.6g} J to {after / 1000:.6g} J: the driver "
            "was loaded anew, what it had counted is lost"
        )
        return after


class PowerSource(GpuSource):
    """The GPU's power, sampled by a thread and integrated by the trapezoidal rule."""

    def __init__(
        self, gpu: Gpu, clock: Clock = time.perf_counter, interval: float | None = SAMPLE_SECONDS
    ) -> None:
        super().__init__(gpu, "nvml-power", interval or SAMPLE_SECONDS, clock)
        self.interval = interval  # None: no thread, samples are taken by readings alone
        self._lock = threading.Lock()
        self._total = 0.0
        self._sampled: tuple[float, float] | None = None  # when, watts
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._sampled = None
        self._done.clear()
        if self.interval is not None:
            self._thread = threading.Thread(
                target=self._run, name=f"power of {self.part}", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join(timeout=GAP_SECONDS)
            self._thread = None

    def _run(self) -> None:
        while not self._done.wait(self.interval):
            try:
                self._sample()
            except EnergyError:
                continue  # the trapezoid spans it; a gap that lasts shows in the next sample

    def _sample(self) -> None:
        watts = self.gpu.power()
        with self._lock:
            now = self.clock()
            if self._sampled is not None:
                before, watts_before = self._sampled
                if self.interval is not None and now - before > GAP_SECONDS:
                    self.broke(f"no sample of the power for {now - before:.3g} s")
                self._total += (now - before) * (watts + watts_before) / 2
            self._sampled = (now, watts)

    def _joules(self) -> float:
        self._sample()
        return self._total

    def notes(self) -> tuple[str, ...]:
        return (*super().notes(), "this GPU has no energy counter")


def gpu_sources(nvml: Nvml, gpus: Sequence[Any], clock: Clock) -> list[Source]:
    """A source for each GPU, given by NVML's index or a UUID; one that cannot be read says why."""
    return [_gpu_source(nvml, gpu, clock) for gpu in gpus]


SPLIT = "it is split by MIG, and its counter is that of all the instances together"


def _gpu_source(nvml: Nvml, which: int | str, clock: Clock) -> Source:
    if str(which).startswith("MIG-"):
        return Nothing(f"gpu:{which}", SPLIT)
    try:
        gpu = nvml.gpu(which) if isinstance(which, int) else nvml.gpu_by_uuid(which)
        if gpu.is_split():
            return Nothing(f"gpu:{gpu.index}", SPLIT)
        try:
            gpu.millijoules()
        except NvmlNotSupported:
            gpu.power()
            return PowerSource(gpu, clock)
        return CounterSource(gpu, clock)
    except NvmlNotFound as error:
        # torch calls an instance of a split GPU by a UUID of its own, without saying what it is.
        return Nothing(f"gpu:{which}", f"{error} (it may be an instance that MIG split off)")
    except NvmlError as error:
        return Nothing(f"gpu:{which}", str(error))
