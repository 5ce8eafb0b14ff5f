"""EnergyMeter: windows of time, nested at will, and the energy that was used in each."""

from __future__ import annotations

import contextlib
import copy
import math
import os
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from resque_ext.data.checks import check_choice
from resque_ext.energy import once
from resque_ext.energy.codecarbon_source import CodeCarbon, grid_intensity
from resque_ext.energy.gpu import gpu_sources
from resque_ext.energy.measurement import Figure, Measurement, unknown
from resque_ext.energy.nvml import EnergyError, Nvml, NvmlError
from resque_ext.energy.sources import Clock, Nothing, Reading, Source, warn
from resque_ext.errors import ArgumentError, ArgumentTypeError

# A window shorter than this many updates of a source is measured, but says that it is short.
FEW_UPDATES = 10


@dataclass
class _Window:
    """An open window: what was used in the stretches that are behind, and where this one began."""

    seconds: float = 0.0
    stretches: int = 0
    joules: dict[int, float] = field(default_factory=dict)  # by source
    lost: dict[int, str] = field(default_factory=dict)
    began: float | None = None  # None: paused
    readings: dict[int, Reading] = field(default_factory=dict)


@dataclass
class Metered:
    """Of a block that was metered: the `measurement`, None while it runs."""

    measurement: Measurement | None = None


class EnergyMeter:
    """Meters energy in windows, each with a name, that may lie in or across one another.

        with EnergyMeter(country="FRA") as meter:
            meter.begin("all")
            with meter.window("step") as step:
                work()
            print(step.measurement.measured, meter.end("all").emissions)

    What is there is measured: NVIDIA GPUs by their own energy counter, or where they lack it by
    sampling their power; the processor by RAPL and the memory by an estimate, both by CodeCarbon.
    What is not there or fails is None in the result, with the reason. Once made, a meter raises for
    nothing but windows misnamed: faults become warnings (:class:`EnergyWarning`), and a source is
    not read more often than 1% of the time allows.

    A GPU's counter and RAPL are those of the whole device, whoever uses it. Of several processes
    that meter a device at the same time the first counts it; the others' figures are None and say
    so, so that a sum over processes counts every joule once. The first one's figure holds what the
    others used. A command under `resque-ext energy` is such another process.

    Args:
        gpus: NVML's indices, UUIDs or torch devices; None for all that CUDA_VISIBLE_DEVICES leaves;
            () for none.
        cpu: meter processor and memory.
        country: ISO 3166 code of three letters, for the mean carbon intensity of its grid.
        region: of some countries, see CodeCarbon.
        carbon_intensity: g CO2e/kWh, instead of a country.
        tracking: "machine", or "process" for estimates of this process and its children alone.
        count_once: see above; False counts whatever others do.
        synchronize: called before every reading, to have work that was only queued done; by default
            torch.cuda.synchronize of those `gpus` that were given as torch devices.
        nvml: in place of the module pynvml, for tests.
        clock: in place of time.perf_counter.

    Raises:
        ValueError, TypeError: an argument is wrong.
    """

    def __init__(
        self,
        gpus: Sequence[int | str | torch.device] | None = None,
        cpu: bool = True,
        country: str | None = None,
        region: str | None = None,
        carbon_intensity: float | None = None,
        *,
        tracking: str = "machine",
        count_once: bool = True,
        synchronize: Callable[[], Any] | None = None,
        nvml: Any = None,
        clock: Clock = time.perf_counter,
    ) -> None:
        check_choice(tracking, ("machine", "process"), "tracking")
        self.carbon_intensity = _intensity(country, region, carbon_intensity)
        self.clock, self.count_once = clock, bool(count_once)
        devices = [g for g in gpus or () if isinstance(g, torch.device)]
        self._synchronize = synchronize or (lambda: [torch.cuda.synchronize(d) for d in devices])
        self._nvml: Nvml | None = None
        self._sources = self._gpu_sources(gpus, nvml)
        if cpu:
            self._sources += _cpu_sources(tracking, clock)
        self._windows: dict[str, _Window] = {}
        self._not_counted: dict[int, str] = {}
        self._release = weakref.finalize(self, _release, self._sources, self._nvml)

    def _gpu_sources(self, gpus: Any, module: Any) -> list[Source]:
        try:
            names = None if gpus is None else [_gpu_name(gpu) for gpu in gpus]
        except (AttributeError, RuntimeError) as error:  # a torch without UUIDs, a broken driver
            return [Nothing("gpu", f"torch does not tell which GPU it is: {error}")]
        if names == []:
            return []
        try:
            self._nvml = Nvml(module)
            if names is None:
                names = _visible(self._nvml.count())
            return gpu_sources(self._nvml, names, self.clock)
        except NvmlError as error:
            return [Nothing("gpu", str(error))]

    def begin(self, name: str) -> None:
        """Opens a window.

        Raises:
            ValueError: it is open already, or the meter is closed.
        """
        if not isinstance(name, str):
            raise ArgumentTypeError("name", "a string", f"{name!r}")
        if name in self._windows:
            raise ArgumentError("name", "a window that is not open yet", f"{name!r}")
        if not self._release.alive:
            raise ArgumentError("begin", "a meter that is not closed", f"{name!r} after it")
        if not self._windows:
            self._start()
        self._windows[name] = _Window()
        self.resume(name)

    def end(self, name: str) -> Measurement:
        """Closes a window and says what was used in it, while it was not paused.

        Raises:
            ValueError: no such window is open.
        """
        result = self.peek(name)
        del self._windows[name]
        if not self._windows:
            self._stop()
        return result

    def pause(self, name: str) -> None:
        """Leaves what comes next out of a window, until `resume`."""
        window = self._window(name)
        if window.began is None:
            return
        now, readings = self._read()
        self._settle(window, now, readings)
        window.began = None

    def resume(self, name: str) -> None:
        """Goes on with a window that was paused."""
        window = self._window(name)
        if window.began is None:
            window.stretches += 1
            now, window.readings = self._read()
            window.began = now

    def peek(self, name: str) -> Measurement:
        """What `end` would say now; the window stays open."""
        # A copy: a reading that fails here is no loss, as long as one at the end succeeds.
        window = copy.deepcopy(self._window(name))
        if window.began is not None:
            self._settle(window, *self._read())
        return Measurement(
            name,
            window.seconds,
            tuple(self._figure(i, source, window) for i, source in enumerate(self._sources)),
            self.carbon_intensity,
        )

    def shortest_window(self) -> float:
        """Seconds that a window should last for what is measured in it not to be called short.

        0 where nothing is measured; estimates need no time.
        """
        measured = (s for s in self._sources if s.kind not in ("estimate", "none"))
        return FEW_UPDATES * max((source.update_seconds for source in measured), default=0.0)

    @contextlib.contextmanager
    def window(self, name: str) -> Iterator[Metered]:
        """A block as a window; what it gives has the `measurement` when the block is left."""
        metered = Metered()
        self.begin(name)
        try:
            yield metered
        finally:
            if name in self._windows:  # not if the meter was closed in the block
                metered.measurement = self.end(name)

    def close(self) -> None:
        """Ends all windows and lets go of threads, locks and NVML; so does the meter's own end."""
        if self._windows:
            self._windows.clear()
            self._stop()
        self._release()

    def __enter__(self) -> EnergyMeter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _window(self, name: str) -> _Window:
        if name not in self._windows:
            raise ArgumentError(
                "name",
                f"an open window ({', '.join(self._windows) or 'there is none'})",
                f"{name!r}",
            )
        return self._windows[name]

    def _start(self) -> None:
        self._not_counted = {}
        for i, source in enumerate(self._sources):
            if self.count_once and source.counted_once is not None:
                reason = once.take(source.counted_once)
                if reason is not None:
                    self._not_counted[i] = reason
                    continue
            _guarded(source.start, source.part)

    def _stop(self) -> None:
        for i, source in enumerate(self._sources):
            if i in self._not_counted:
                continue
            _guarded(source.stop, source.part)
            if self.count_once and source.counted_once is not None:
                once.give_back(source.counted_once)

    def _read(self) -> tuple[float, dict[int, Reading]]:
        _guarded(self._synchronize, "gpu")
        readings = {
            i: source.read() for i, source in enumerate(self._sources) if i not in self._not_counted
        }
        return self.clock(), readings

    def _settle(self, window: _Window, now: float, readings: dict[int, Reading]) -> None:
        """Adds the stretch that ends now to what is behind."""
        window.seconds += now - window.began
        for i, after in readings.items():
            before = window.readings[i]
            if before.joules is None or after.joules is None:
                window.lost[i] = str((before if before.joules is None else after).reason)
            elif before.breaks != after.breaks:
                window.lost[i] = str(after.reason)
            else:
                window.joules[i] = window.joules.get(i, 0.0) + after.joules - before.joules

    def _figure(self, i: int, source: Source, window: _Window) -> Figure:
        part, seconds = source.part, window.seconds
        if i in self._not_counted:
            return unknown(part, self._not_counted[i])
        if i in window.lost:
            return unknown(part, window.lost[i])
        if i not in window.joules:
            return unknown(part, "the window is empty")
        # What is read is up to one update old at either end of a stretch: on the average equally
        # old, so that such errors add up as independent ones do, by the root of their number.
        grain = source.update_seconds * math.sqrt(window.stretches)
        if seconds < grain:
            return unknown(
                part,
                f"a window of {seconds:.3g} s is too short for a source that is up to {grain:.3g} "
                "s behind",
            )
        joules = window.joules[i]
        resolution = joules / seconds * grain
        notes = source.notes()
        if seconds < FEW_UPDATES * grain:
            notes = (
                f"short window: {seconds:.3g} s, {grain / seconds:.0%} of which may be missed",
                *notes,
            )
        if source.kind == "estimate":
            resolution = None
        return Figure(part, joules, "J", source.kind, resolution, notes=notes)


def _guarded(call: Callable[[], Any], part: str) -> None:
    try:
        call()
    except Exception as error:  # whatever a driver comes up with must not stop the work
        warn(f"energy of {part}: {type(error).__name__}: {error}")


def _release(sources: list[Source], nvml: Nvml | None) -> None:
    for source in sources:
        _guarded(source.close, source.part)
    if nvml is not None:
        _guarded(nvml.close, "gpu")


def _intensity(country: Any, region: Any, grams: Any) -> Figure:
    unit = "g CO2e/kWh"
    for name, value in (("country", country), ("region", region)):
        if value is not None and not isinstance(value, str):
            raise ArgumentTypeError(name, "a string", f"{value!r}")
    if region is not None and country is None:
        raise ArgumentError("region", "a country as well", f"{region!r} without one")
    if grams is not None:
        if country is not None:
            raise ArgumentError(
                "country, carbon_intensity", "one of the two", f"{country!r} and {grams!r}"
            )
        if isinstance(grams, bool) or not isinstance(grams, (int, float)):
            raise ArgumentTypeError("carbon_intensity", "a number", f"{grams!r}")
        if not 0 <= grams < math.inf:
            raise ArgumentError("carbon_intensity", "g CO2e/kWh from 0", f"{grams!r}")
        return Figure("all", float(grams), unit, "given")
    if country is None:
        return unknown("all", "no country and no carbon intensity was given", unit)
    return grid_intensity(country, region)


def _cpu_sources(tracking: str, clock: Clock) -> list[Source]:
    try:
        return CodeCarbon(tracking, clock).sources()
    except Exception as error:  # of its many dependencies, too
        reason = str(error) if isinstance(error, EnergyError) else f"CodeCarbon: {error}"
        return [Nothing("cpu", reason), Nothing("ram", reason)]


def _gpu_name(gpu: Any) -> int | str:
    """NVML's index, or a UUID, which torch and NVML agree on whatever CUDA_VISIBLE_DEVICES says."""
    if isinstance(gpu, torch.device):
        if gpu.type != "cuda":
            raise ArgumentError("gpus", "CUDA devices", gpu)
        uuid = str(torch.cuda.get_device_properties(gpu).uuid)
        return uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
    if isinstance(gpu, bool) or not isinstance(gpu, (int, str)):
        raise ArgumentTypeError("gpus", "indices, UUIDs or torch devices", f"{gpu!r}")
    return gpu


def _visible(count: int) -> list[int | str]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves, of `count`."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return list(range(count))
    names = [name.strip() for name in listed.split(",")]
    return [int(name) if name.isdigit() else name for name in names if name and name != "-1"]
