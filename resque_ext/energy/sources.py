"""What a meter reads: sources of joules that only ever grow, and what to do when one fails."""

from __future__ import annotations

import logging
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

Clock = Callable[[], float]

# A source is not read again before 100 times as long has passed as a reading takes, so that no
# frequency of windows can make the meter cost more than 1%. What that does to a figure is in its
# resolution. A reading that happened to hang does not count for more than STALE_SECONDS.
SHARE = 100
STALE_SECONDS = 5.0


class EnergyWarning(UserWarning):
    """Something that the energy meter could not measure; the work itself goes on."""


def warn(message: str) -> None:
    """Warns, and does not raise even where warnings are errors: metering never stops the work."""
    try:
        warnings.warn(message, EnergyWarning, stacklevel=3)
    except EnergyWarning:
        logging.getLogger("resque_ext").warning(message)


@dataclass(frozen=True)
class Reading:
    """The state of a source at one moment.

    Attributes:
        joules: since some moment in the past; None where they could not be read.
        breaks: how often it happened so far that energy got lost between two readings. Two readings
            can be subtracted if nothing broke between them.
        reason: of the last break, or why there are no joules.
    """

    joules: float | None
    breaks: int = 0
    reason: str | None = None


class Source(ABC):
    """Joules of one part of the machine, from one way of knowing them.

    A subclass gives `_joules`. Whatever it raises becomes a warning, once, and a reading without
    joules.

    Args:
        part: as in :class:`Figure`.
        kind: as in :class:`Figure`: the source.
        update_seconds: how old what is read may be: the interval at which a counter is updated.
        clock: seconds, as time.perf_counter.
        counted_once: the name under which other processes count the same joules; None where nobody
            else can.
    """

    def __init__(
        self,
        part: str,
        kind: str,
        update_seconds: float,
        clock: Clock = time.perf_counter,
        counted_once: str | None = None,
    ) -> None:
        self.part, self.kind, self.clock = part, kind, clock
        self.counted_once = counted_once
        self._update_seconds = update_seconds
        self._cost = 0.0  # seconds that a reading takes: the last, or half of a dearer one before
        self._last: Reading | None = None
        self._read_at = 0.0
        self._breaks = 0
        self._reason: str | None = None
        self._warned: set[str] = set()

    @property
    def update_seconds(self) -> float:
        """How old a reading may be, our own saving of readings included."""
        return self._update_seconds + self._rest()

    def start(self) -> None:  # noqa: B027 (most sources need none)
        """Called before the first reading of an outermost window."""

    def stop(self) -> None:  # noqa: B027 (most sources need none)
        """Called after the last one."""

    def close(self) -> None:  # noqa: B027 (most sources need none)
        """Called once, when the meter is closed."""

    def notes(self) -> tuple[str, ...]:
        """What else to know of the figures."""
        return ()

    def read(self) -> Reading:
        """The joules now, or as little earlier as `update_seconds` says. Never raises."""
        begin = self.clock()
        if self._last is not None and begin - self._read_at < self._rest():
            return self._last
        try:
            joules = self._joules()
        except Exception as error:  # whatever a driver comes up with must not stop the work
            reason = f"{type(error).__name__}: {error}"
            self._warn(reason)
            # No break: a counter has gone on, and the next reading tells all that it counted.
            self._last = Reading(None, self._breaks, reason)
        else:
            self._last = Reading(joules, self._breaks, self._reason)
        self._read_at = self.clock()
        self._cost = max(self._cost / 2, self._read_at - begin)
        return self._last

    def _rest(self) -> float:
        """Seconds between two readings."""
        return min(SHARE * self._cost, STALE_SECONDS)

    def broke(self, reason: str) -> None:
        """Notes that energy was lost, and warns."""
        self._warn(reason)
        self._breaks += 1
        self._reason = reason

    def _warn(self, reason: str) -> None:
        if reason not in self._warned:
            self._warned.add(reason)
            warn(f"energy of {self.part} ({self.kind}): {reason}")

    @abstractmethod
    def _joules(self) -> float | None:
        """Since some moment in the past; None where nothing is known, for `self._reason`."""


class Nothing(Source):
    """A part that cannot be measured, and why."""

    def __init__(self, part: str, reason: str) -> None:
        super().__init__(part, "none", 0.0)
        self._reason = reason

    def _joules(self) -> None:
        """None ever."""
