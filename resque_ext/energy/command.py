"""Any command, metered: what `resque-ext energy -- COMMAND` does."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from resque_ext.energy.meter import EnergyMeter
from resque_ext.errors import ArgumentError, ArgumentTypeError

STOPPED = 128  # plus the signal's number: what a shell says of a command that a signal ended


@contextlib.contextmanager
def _left_to_command() -> Iterator[None]:
    """The terminal sends Ctrl-C to the command as well, which decides what becomes of it."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python hands signals to the main thread alone
        return
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def run_command(command: Sequence[str], **options: Any) -> dict[str, Any]:
    """Runs a command to its end and meters it; its input and output are those of this process.

    Ctrl-C reaches the command as it would without the meter; what was used until it ended is in the
    result all the same.

    Args:
        command: a program and its arguments; no shell is involved.
        options: of :class:`EnergyMeter`: gpus, country, region, carbon_intensity ...

    Returns:
        Plain values for JSON: "command", "exit_status" (128 + the signal's number for a command
        that a signal ended), "seconds", "joules" and "kg_co2" (of what was measured),
        "joules_estimated" and "kg_co2_estimated" (with estimates of the rest), each a figure with
        its source, and "measurement" with every single one.

    Raises:
        ValueError: there is no command, or no such program; an option is wrong.
    """
    if isinstance(command, str) or not all(isinstance(word, str) for word in command):
        raise ArgumentTypeError("command", "a list of words", f"{command!r}")
    if not command:
        raise ArgumentError("command", "a program and its arguments", "nothing")
    if shutil.which(command[0]) is None:
        raise ArgumentError("command", "a program on the PATH", f"{command[0]!r}")
    with (
        EnergyMeter(**options) as meter,
        _left_to_command(),
        meter.window("command") as metered,
        subprocess.Popen(list(command)) as process,
    ):
        status = process.wait()
    measurement = metered.measurement
    assert measurement is not None  # the block was left
    return {
        "command": list(command),
        "exit_status": status if status >= 0 else STOPPED - status,
        "seconds": measurement.seconds,
        "joules": measurement.measured.to_dict(),
        "kg_co2": measurement.emissions.to_dict(),
        "joules_estimated": measurement.estimated.to_dict(),
        "kg_co2_estimated": measurement.estimated_emissions.to_dict(),
        "measurement": measurement.to_dict(),
    }
