"""Time as a dependency, so that policies, ledgers and stores run under virtual time in tests.

Nothing here sleeps: waiting belongs to asyncio and to the process supervisor.
"""

from __future__ import annotations

import math
import os
import time
from typing import Protocol

_PHASE_S = (os.getpid() % 16) / 64


def next_beat(now_s: float, every_s: float, phase_s: float = _PHASE_S) -> float:
    """When something that is done every ``every_s`` is due next: at a multiple of it plus
    ``phase_s``, and half an ``every_s`` away at least.

    All that is periodic in a process then falls on the same moments. Waking up is what such work
    costs most: caches are cold each time, and ten small tasks in one go cost little more than one.
    Processes have phases of their own, or all would be busy at the same moment.
    """
    return (math.floor((now_s - phase_s) / every_s + 0.5) + 1) * every_s + phase_s


def until_beat_s(now_s: float, every_s: float) -> float:
    """Seconds until ``next_beat``."""
    return next_beat(now_s, every_s) - now_s


class Clock(Protocol):
    """Two clocks in one: intervals are measured on the monotonic one only."""

    def monotonic_s(self) -> float:
        """Seconds from an arbitrary start; never goes back."""
        ...

    def wall_s(self) -> float:
        """Seconds since the Unix epoch; for records that leave the process."""
        ...


class SystemClock:
    """The clock of the machine."""

    # The functions themselves: a router looks at the clock two dozen times a request.
    monotonic_s = staticmethod(time.monotonic)
    wall_s = staticmethod(time.time)


class VirtualClock:
    """A clock that only moves when told to."""

    def __init__(self, start_s: float = 1_000_000.0) -> None:
        self._now_s = start_s

    def monotonic_s(self) -> float:
        """Where the clock was left."""
        return self._now_s

    def wall_s(self) -> float:
        """The same number: virtual time has one clock."""
        return self._now_s

    def advance(self, seconds: float) -> None:
        """Moves both clocks forward.

        Raises:
            ValueError: if ``seconds`` is negative.
        """
        if seconds < 0:
            raise ValueError(f"time does not go back: {seconds}")
        self._now_s += seconds
