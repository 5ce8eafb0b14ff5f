"""Energy and emissions of a stretch of work, every figure with its source, or why there is none."""

from resque_ext.energy.command import run_command
from resque_ext.energy.measurement import SOURCES, Figure, Measurement
from resque_ext.energy.meter import EnergyMeter, Metered
from resque_ext.energy.nvml import EnergyError
from resque_ext.energy.sources import EnergyWarning

__all__ = [
    "SOURCES",
    "EnergyError",
    "EnergyMeter",
    "EnergyWarning",
    "Figure",
    "Measurement",
    "Metered",
    "run_command",
]
