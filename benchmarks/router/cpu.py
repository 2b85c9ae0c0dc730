"""CPU time of a process and all its descendants, exact enough for blocks of two seconds.

``/proc/PID/stat`` counts in hundredths of a second: a tenth of what a router spends on 16 streams
in a second. The kernel keeps a clock per process in nanoseconds that counts its threads, those
that ended included (``clock_getcpuclockid``); that one is read where it exists (Linux), psutil's
figures elsewhere. It refuses to guess: a process that ends takes what it spent with it, and one
that begins was not warm, so a tree that changes between two readings is an error.

The tree is walked when it is made and when it is checked; a reading is a system call per process,
so that it delays nobody who measures meanwhile.
"""

from __future__ import annotations

import sys
import time

import psutil

_CPUCLOCK_SCHED = 2
"""Of the kernel's three clocks per process the exact one (linux/posix-timers.h)."""


class TreeChanged(Exception):
    """A process of the tree ended, or another began, while it was measured."""


class ProcessTree:
    """A process and its descendants as they are now.

    Args:
        pid: the root.

    Raises:
        TreeChanged: there is no such process.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._members = _members(pid)

    def read_s(self) -> float:
        """CPU seconds, user and system, of all of them so far.

        Raises:
            TreeChanged: one of them has ended.
        """
        return sum(_cpu_s(member) for member in self._members)

    def check(self) -> None:
        """Looks whether the tree is still the same.

        Raises:
            TreeChanged: it is not.
        """
        # psutil's processes are equal if pid and time of birth are.
        before, after = set(self._members), set(_members(self._pid))
        if before != after:
            gone = sorted(str(process.pid) for process in before - after)
            new = sorted(str(process.pid) for process in after - before)
            raise TreeChanged(
                f"processes changed while they were measured: ended {', '.join(gone) or 'none'}, "
                f"began {', '.join(new) or 'none'}"
            )


def _members(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess as error:
        raise TreeChanged(f"process {pid} has ended") from error


def _cpu_s(process: psutil.Process) -> float:
    try:
        if sys.platform == "linux":
            return time.clock_gettime((~process.pid << 3) | _CPUCLOCK_SCHED)
        times = process.cpu_times()
        return float(times.user + times.system)
    except (psutil.NoSuchProcess, OSError) as error:
        raise TreeChanged(f"process {process.pid} has ended") from error
