"""Asks the system to let the load generator run first while it measures.

An instrument that waits for a core that a server computes on reports the server as slower than it
is. The generator takes a few per cent of a core, so that being first costs the servers nothing
that can be seen; where it needs a whole one, the run says so.

A nice value does not do it: measured beside two engines on two cores, sleeps of 10 ms came up to
386 ms late at nice -15, and at most 0.5 ms late under the round-robin scheduler, whose threads run
before all ordinary ones. Where neither is allowed (it takes CAP_SYS_NICE) nothing changes, and
what lag there is gets measured either way.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

_NICE = -15


@contextlib.contextmanager
def first_in_line() -> Iterator[bool]:
    """Raises the priority of this process, and sets it back; gives whether that was allowed.

    All threads are raised, not the event loop's alone: a thread that builds text holds the
    interpreter's lock now and then, and if it has to wait for a core the loop waits with it.
    Threads and processes started meanwhile inherit it.
    """
    undo = _round_robin() or _nicer()
    try:
        yield undo is not None
    finally:
        if undo is not None:
            undo()


def _round_robin() -> Callable[[], None] | None:
    """The lowest real-time priority; returns how to undo it, None where it is not allowed. The
    kernel keeps a twentieth of each core for ordinary threads whatever real-time ones do."""
    if sys.platform != "linux":
        return None
    before = {}
    for thread in _threads():
        with contextlib.suppress(ProcessLookupError):
            before[thread] = os.sched_getscheduler(thread), os.sched_getparam(thread)

    def undo() -> None:
        # Also of threads that were started meanwhile; those that ended are gone.
        for thread in _threads():
            policy, param = before.get(thread, (os.SCHED_OTHER, os.sched_param(0)))
            with contextlib.suppress(OSError):
                os.sched_setscheduler(thread, policy, param)

    try:
        for thread in before:
            with contextlib.suppress(ProcessLookupError):
                os.sched_setscheduler(thread, os.SCHED_RR, os.sched_param(1))
    except OSError:
        undo()
        return None
    return undo


def _nicer() -> Callable[[], None] | None:
    """The same by a nice value, of this thread alone."""
    try:
        before = os.getpriority(os.PRIO_PROCESS, 0)
        os.setpriority(os.PRIO_PROCESS, 0, min(before, _NICE))
    except OSError:
        return None

    def undo() -> None:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, before)

    return undo


def _threads() -> list[int]:
    return [int(entry.name) for entry in Path("/proc/self/task").iterdir()]
