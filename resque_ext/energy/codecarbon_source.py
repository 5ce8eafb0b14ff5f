"""CPU, memory and the grid's carbon intensity from CodeCarbon: offline, without files, quiet.

CodeCarbon opens no connection and writes nothing: it gets an output object of ours, no endpoint and
no token. Every option that a configuration file or an environment variable could change is passed
explicitly. Its reports arrive in :meth:`_Tracker.out`, in kWh since its start.

Where the processor's energy counter (RAPL) can be read, CodeCarbon reads it, and that is a
measurement. Where it cannot (most containers and virtual machines) CodeCarbon multiplies thermal
design power by load, and for memory it always takes a constant a module: estimates.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from resque_ext.energy.measurement import JOULES_PER_KWH, Figure, unknown
from resque_ext.energy.nvml import EnergyError
from resque_ext.energy.sources import Clock, Nothing, Source
from resque_ext.errors import ArgumentError

# CodeCarbon does not read again within 50 ms; load is known in steps of 10 ms of processor time.
UPDATE_SECONDS = 0.1
MISSING = "CodeCarbon is not installed: pip install 'resque-ext[energy]'"
POWERCAP = Path("/sys/class/powercap")


class _Silence(logging.Filter):
    """Keeps what CodeCarbon logs from being shown, and remembers the last complaint."""

    def __init__(self) -> None:
        super().__init__()
        self.complaint, self._users = "", 0

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            cause = record.exc_info[1] if record.exc_info else None
            self.complaint = f"{type(cause).__name__}: {cause}" if cause else record.getMessage()
        return False

    def begin(self) -> None:
        if self._users == 0:
            logging.getLogger("codecarbon").addFilter(self)
        self._users += 1

    def end(self) -> None:
        self._users -= 1
        if self._users == 0:
            logging.getLogger("codecarbon").removeFilter(self)


_silence = _Silence()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    _silence.begin()
    try:
        yield
    finally:
        _silence.end()


class _Tracker:
    """One run of CodeCarbon's tracker, and what it last reported.

    Raises:
        EnergyError: it cannot be imported or does not start.
    """

    def __init__(self, tracking: str) -> None:
        self.report: Any = None
        logger = logging.getLogger("codecarbon")
        with _quiet():
            try:
                from codecarbon import OfflineEmissionsTracker
            except ImportError as error:
                raise EnergyError(MISSING) from error
            handlers, level = logger.handlers[:], logger.level
            self.tracker = OfflineEmissionsTracker(
                # Emissions are computed from our own figures; a country is asked for nevertheless.
                country_iso_code="USA",
                output_methods=[],
                output_handlers=[self],
                emissions_endpoint=None,
                electricitymaps_api_token="",  # None would have it look for an older option
                api_call_interval=-1,
                allow_multiple_runs=True,  # no lock file, no signal handlers
                tracking_mode=tracking,
                log_level=level,
                gpu_ids=[],
                pue=1.0,
                wue=0,
                measure_power_secs=15,
                output_dir=".",
                force_cpu_power=None,
                force_ram_power=None,
                force_mode_cpu_load=False,
                rapl_include_dram=False,
                rapl_prefer_psys=False,
                force_carbon_intensity_g_co2e_kwh=None,
                metadata=None,
                logger_preamble="",
                cloud_provider=None,
                cloud_region=None,
                country_2letter_iso_code=None,
                region=None,
            )
            logger.handlers = handlers  # it puts a new stream handler there
        _silence.begin()  # its timers' threads log, too
        try:
            self.tracker.start()
            # Without this every reading would ask every GPU of the machine for everything it knows.
            hardware = getattr(self.tracker, "_hardware", [])
            hardware[:] = [part for part in hardware if type(part).__name__ != "GPU"]
            self.read()
        except BaseException:
            self.stop()
            raise

    def out(self, total: Any, delta: Any) -> None:
        """CodeCarbon hands its report over here."""
        self.report = total

    def live_out(self, total: Any, delta: Any) -> None:
        """As `out`, by a timer; not used."""

    def task_out(self, data: Any, experiment_name: str) -> None:
        """For an interface that is not used."""

    def exit(self) -> None:
        """CodeCarbon says that it is done."""

    def read(self) -> Any:
        """The report of this moment."""
        self.report = None
        self.tracker.flush()  # swallows its own exceptions
        if self.report is None:
            raise EnergyError(f"CodeCarbon gave no report: {_silence.complaint or 'it is silent'}")
        return self.report

    def cpu_mode(self) -> tuple[str, float | None]:
        """How it knows the CPU's power ("intel_rapl", "cpu_load", ...), and the design power."""
        for part in getattr(self.tracker, "_hardware", []):
            if type(part).__name__ == "CPU":
                return str(getattr(part, "_mode", "unknown")), getattr(part, "_tdp", None)
        return "unknown", None

    def stop(self) -> None:
        self.tracker.stop()
        _silence.end()


class CodeCarbon:
    """CodeCarbon's tracker, which CPU and memory share.

    Making one takes seconds the first time in a process, as CodeCarbon looks at the processor and
    loads its tables, and milliseconds afterwards. It runs, with a timer that wakes once a second,
    until `close`: starting it with every window would cost more than short windows last.

    Args:
        tracking: "machine", or "process": this process and its children (estimates only; RAPL is
            that of the machine).

    Raises:
        EnergyError: CodeCarbon is not there or does not work.
    """

    def __init__(self, tracking: str = "machine", clock: Clock = time.perf_counter) -> None:
        self.tracking, self.clock = tracking, clock
        self._tracker: _Tracker | None = _Tracker(tracking)
        self.mode, self.design_power = self._tracker.cpu_mode()
        self._report: Any = None
        self._read_at = 0.0

    def sources(self) -> list[Source]:
        """CPU, measured and estimated, and memory."""
        scope = "the whole machine" if self.tracking == "machine" else "this process and children"
        once = "machine" if self.tracking == "machine" else None
        ram: list[Source] = [
            Nothing("ram", "no counter of the memory's energy is read"),
            _Part(self, "ram", "estimate", f"a constant a memory module, of {scope}", once),
        ]
        if self.mode == "intel_rapl":
            return [_Part(self, "cpu", "rapl", "of the whole machine", "machine"), *ram]
        design = f"{self.design_power:g} W" if self.design_power else "unknown"
        guess = f"from load and thermal design power ({design}), of {scope}"
        return [Nothing("cpu", _no_rapl()), _Part(self, "cpu", "estimate", guess, once), *ram]

    def close(self) -> None:
        """Ends the tracker; again is no harm."""
        tracker, self._tracker = self._tracker, None
        if tracker is not None:
            tracker.stop()

    def read(self) -> Any:
        """A report; CPU and memory, read one after the other, get the same."""
        if self._tracker is None:
            raise EnergyError("CodeCarbon's tracker was ended")
        if self._report is None or self.clock() - self._read_at > UPDATE_SECONDS / 2:
            self._report, self._read_at = self._tracker.read(), self.clock()
        return self._report


class _Part(Source):
    """The CPU or the memory, out of CodeCarbon's reports."""

    def __init__(
        self, owner: CodeCarbon, part: str, kind: str, note: str, counted_once: str | None
    ) -> None:
        super().__init__(part, kind, UPDATE_SECONDS, owner.clock, counted_once)
        self.owner, self._note = owner, note

    def close(self) -> None:
        self.owner.close()

    def notes(self) -> tuple[str, ...]:
        return (self._note,)

    def _joules(self) -> float:
        report = self.owner.read()
        return float(getattr(report, f"{self.part}_energy")) * JOULES_PER_KWH


def _no_rapl() -> str:
    if not POWERCAP.is_dir():
        return f"no energy counter of the processor (RAPL): {POWERCAP} is not there"
    return f"no energy counter of the processor (RAPL) is readable in {POWERCAP}"


def grid_intensity(country: str, region: str | None = None) -> Figure:
    """The mean carbon intensity of a country's or region's electricity, g CO2e/kWh.

    Args:
        country: ISO 3166 code of three letters, "FRA".
        region: for the USA, Canada, China and the Nordic countries, as CodeCarbon names them.

    Raises:
        ValueError: a country or region that CodeCarbon's tables do not have.
    """
    unit = "g CO2e/kWh"
    with _quiet():
        try:
            from codecarbon.core.emissions import Emissions
            from codecarbon.core.units import Energy
            from codecarbon.external.geography import GeoMetadata
            from codecarbon.input import DataSource
        except ImportError:
            return unknown("all", MISSING, unit)
        tables = DataSource()
        code = country.upper()
        if code not in tables.get_global_energy_mix_data():
            raise ArgumentError(
                "country", "an ISO 3166 code of three letters, as 'FRA'", f"{country!r}"
            )
        place = GeoMetadata(country_iso_code=code, region=region)
        emissions, kwh = Emissions(tables, electricitymaps_api_token=""), Energy.from_energy(kWh=1)
        if region is None:
            kilograms = emissions.get_country_emissions(kwh, place)
        else:
            try:
                kilograms = emissions.get_region_emissions(kwh, place)
            except Exception as error:  # its tables raise KeyError, ValueError and their own
                raise ArgumentError(
                    "region", f"one of {code} that CodeCarbon knows", f"{region!r}"
                ) from error
    note = code if region is None else f"{code}, {region}"
    return Figure("all", kilograms * 1000, unit, "grid", notes=(f"mean of {note}",))
