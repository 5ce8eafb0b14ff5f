"""A GPU whose power is a known curve, a meter over such GPUs, and the figure of one part."""

import math

from helpers.fake_nvml import Clock, FakeGpu, FakeNvml
from resque_ext.energy import EnergyMeter


def wave(**options):
    """Power 100 + 50 sin t, whose integral is known."""
    return FakeGpu(
        lambda t: 100 + 50 * math.sin(t), lambda t: 100 * t + 50 * (1 - math.cos(t)), **options
    )


def make(*gpus, clock=None, **options):
    clock = clock or Clock()
    fake = FakeNvml(*gpus, clock=clock)
    return EnergyMeter(cpu=False, nvml=fake, clock=clock, **options), fake, clock


def figure(measurement, part="gpu:0"):
    (found,) = [f for f in measurement.figures if f.part == part]
    return found
