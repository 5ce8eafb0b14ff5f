"""What a meter says: figures that carry their unit, source, resolution, and the reason for a None.

Joules are the unit of energy here; 1 kWh = 3.6e6 J.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from resque_ext.errors import ArgumentError

JOULES_PER_KWH = 3.6e6

SOURCES = {
    "nvml-counter": "the GPU's own total-energy counter",
    "nvml-power": "the GPU's power, sampled and integrated over time",
    "rapl": "the processor's own energy counter",
    "estimate": "a model's guess: thermal design power, or a constant a memory module",
    "grid": "the mean carbon intensity of a country's grid, from CodeCarbon's tables",
    "given": "by the caller",
    "sum": "measured figures of several parts, added",
    "none": "not measured",
}
"""Where a figure can come from. Whatever is not measured is called an estimate, by itself and in
every sum that it enters."""


@dataclass(frozen=True)
class Figure:
    """One quantity of one part of the machine, or why there is none.

    Attributes:
        part: "cpu", "ram", "gpu:0" (NVML's index), or "all" for a sum.
        value: the amount, None if unknown; never 0 for an unknown.
        unit: "J", "kg CO2e" or "g CO2e/kWh".
        source: a key of `SOURCES`.
        resolution: amount by which `value` may be off because of how it was read, in `unit`; None
            where nothing is known of that.
        reason: why `value` is None; None where there is one.
        notes: what else to know: too short a window, a device shared with other processes.
    """

    part: str
    value: float | None
    unit: str
    source: str
    resolution: float | None = None
    reason: str | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise ArgumentError("source", f"one of {list(SOURCES)}", f"{self.source!r}")
        if (self.value is None) != (self.reason is not None):
            raise ArgumentError(
                "value, reason", "a number or a reason", f"{self.value!r} and {self.reason!r}"
            )
        if self.value is not None and not math.isfinite(self.value):
            raise ArgumentError("value", "a finite number", f"{self.value!r}")

    @property
    def kwh(self) -> float | None:
        """Kilowatt-hours of a figure in joules."""
        return None if self.value is None or self.unit != "J" else self.value / JOULES_PER_KWH

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self) | {"notes": list(self.notes)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Figure:
        """The figure that `to_dict` gave."""
        return cls(**{**values, "notes": tuple(values["notes"])})


def unknown(part: str, reason: str, unit: str = "J") -> Figure:
    """A figure that could not be had."""
    return Figure(part, None, unit, "none", reason=reason)


@dataclass(frozen=True)
class Measurement:
    """One window of a meter, or several added up.

    Attributes:
        name: of the window.
        seconds: wall time between begin and end.
        figures: energy: of every part what was measured or why not, and for some an estimate.
        carbon_intensity: of the electricity, g CO2e/kWh.
        windows: how many windows are added up here.
    """

    name: str
    seconds: float
    figures: tuple[Figure, ...]
    carbon_intensity: Figure
    windows: int = 1

    @property
    def measured(self) -> Figure:
        """Joules of all parts that were measured; None where no part was.

        Parts that were not are named in `notes`: then this is a lower bound.
        """
        return self._total({f.part: f for f in self.figures if f.source != "estimate"})

    @property
    def estimated(self) -> Figure:
        """The same with estimates of what was not measured; then its source is "estimate"."""
        best: dict[str, Figure] = {}
        for figure in self.figures:
            known = best.get(figure.part)
            if known is None or known.value is None:
                best[figure.part] = figure
        return self._total(best)

    @property
    def emissions(self) -> Figure:
        """kg CO2e of `measured`."""
        return self._emitted(self.measured)

    @property
    def estimated_emissions(self) -> Figure:
        """kg CO2e of `estimated`."""
        return self._emitted(self.estimated)

    def _total(self, parts: Mapping[str, Figure]) -> Figure:
        known = [f for f in parts.values() if f.value is not None]
        left_out = [f for f in parts.values() if f.value is None]
        if not known:
            reasons = [f"{f.part}: {f.reason}" for f in left_out]
            return unknown("all", "; ".join(reasons) or "no part was metered")
        notes = [f"{f.part}: {note}" for f in known for note in f.notes]
        if left_out:
            notes.append(f"without {', '.join(f.part for f in left_out)}")
        return Figure(
            "all",
            math.fsum(f.value for f in known),
            "J",
            _common_source(known),
            _summed_resolution(known),
            notes=tuple(notes),
        )

    def _emitted(self, energy: Figure) -> Figure:
        grams = self.carbon_intensity
        for figure in (energy, grams):
            if figure.value is None:
                return unknown("all", str(figure.reason), "kg CO2e")
        factor = grams.value / 1000 / JOULES_PER_KWH
        return Figure(
            "all",
            energy.value * factor,
            "kg CO2e",
            energy.source,
            None if energy.resolution is None else energy.resolution * factor,
            notes=(*energy.notes, f"carbon intensity: {grams.source}"),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.name,
            "seconds": self.seconds,
            "figures": [figure.to_dict() for figure in self.figures],
            "carbon_intensity": self.carbon_intensity.to_dict(),
            "windows": self.windows,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Measurement:
        """The measurement that `to_dict` gave."""
        return cls(
            name=values["name"],
            seconds=values["seconds"],
            figures=tuple(map(Figure.from_dict, values["figures"])),
            carbon_intensity=Figure.from_dict(values["carbon_intensity"]),
            windows=values["windows"],
        )


def nothing(name: str, reason: str, seconds: float = 0.0) -> Measurement:
    """A window in which nothing was metered."""
    return Measurement(
        name, seconds, (unknown("all", reason),), unknown("all", reason, "g CO2e/kWh"), windows=0
    )


def add(name: str, measurements: Iterable[Measurement]) -> Measurement:
    """Windows one after another as one. A part that is unknown in one of them is unknown."""
    windows = list(measurements)
    if not windows:
        return nothing(name, "no window was measured")
    groups: dict[tuple[str, bool], list[Figure]] = {}
    for window in windows:
        for figure in window.figures:
            groups.setdefault((figure.part, figure.source == "estimate"), []).append(figure)
    return Measurement(
        name,
        math.fsum(window.seconds for window in windows),
        tuple(_add_figures(figures, len(windows)) for figures in groups.values()),
        windows[-1].carbon_intensity,
        sum(window.windows for window in windows),
    )


def _add_figures(figures: list[Figure], windows: int) -> Figure:
    lost = next((f for f in figures if f.value is None), None)
    if lost is not None:
        return lost
    first = figures[0]
    if len(figures) < windows:
        return unknown(first.part, f"known of {len(figures)} of {windows} windows", first.unit)
    return dataclasses.replace(
        first,
        value=math.fsum(f.value for f in figures),
        source=_common_source(figures),
        resolution=_summed_resolution(figures),
        notes=tuple(dict.fromkeys(note for f in figures for note in f.notes)),
    )


def _common_source(figures: list[Figure]) -> str:
    """Of a sum: an estimate in it makes it one."""
    sources = {f.source for f in figures}
    if len(sources) == 1:
        return sources.pop()
    return "estimate" if "estimate" in sources else "sum"


def _summed_resolution(figures: list[Figure]) -> float | None:
    resolutions = [f.resolution for f in figures]
    return None if None in resolutions else math.fsum(resolutions)
