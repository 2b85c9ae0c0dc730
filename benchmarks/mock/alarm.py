"""Calls at exact times. Event loops wake to the millisecond; a timer of the kernel's does better.

uvloop rounds its timers to milliseconds and epoll rounds up, which would put an error of up to two
of them into every delay that the mock claims to have made. A timerfd wakes the loop by an
interrupt, some tens of microseconds late, without a busy wait. Where there is none (not Linux)
the loop's own timers are used.
"""

from __future__ import annotations

import asyncio
import ctypes
import heapq
import itertools
import os
import time
from collections.abc import Callable

_CLOCK_MONOTONIC = 1
_TFD_NONBLOCK = os.O_NONBLOCK
_TFD_CLOEXEC = getattr(os, "O_CLOEXEC", 0)
_TFD_TIMER_ABSTIME = 1


class _Timespec(ctypes.Structure):
    _fields_ = [("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long)]


class _Itimerspec(ctypes.Structure):
    _fields_ = [("it_interval", _Timespec), ("it_value", _Timespec)]


class Alarm:
    """A heap of calls on one kernel timer.

    ``at`` takes seconds of ``time.monotonic``; calls of the past are made in the next turn of the
    loop. A call must not raise.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._ids = itertools.count()
        self._set_s = float("inf")
        self._timer: asyncio.TimerHandle | None = None
        self._fd = -1
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            self._settime = libc.timerfd_settime
            self._fd = libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_NONBLOCK | _TFD_CLOEXEC)
        except (AttributeError, OSError):
            pass
        if self._fd >= 0:
            loop.add_reader(self._fd, self._fired)

    @property
    def exact(self) -> bool:
        """Whether the kernel's timer is used."""
        return self._fd >= 0

    def at(self, when_s: float, call: Callable[[], None]) -> None:
        """Makes ``call`` at ``when_s``, in the order of times and then of asking."""
        heapq.heappush(self._heap, (when_s, next(self._ids), call))
        if when_s < self._set_s:
            self._set(when_s)

    def close(self) -> None:
        """Forgets every call."""
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _set(self, when_s: float) -> None:
        self._set_s = when_s
        if self._fd >= 0:
            # Zero would switch the timer off.
            nanoseconds = max(1, int(when_s * 1e9))
            spec = _Itimerspec(
                _Timespec(0, 0), _Timespec(nanoseconds // 10**9, nanoseconds % 10**9)
            )
            self._settime(self._fd, _TFD_TIMER_ABSTIME, ctypes.byref(spec), None)
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(when_s - time.monotonic(), self._due)

    def _fired(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return
        self._due()

    def _due(self) -> None:
        self._set_s = float("inf")
        heap = self._heap
        while heap and heap[0][0] <= time.monotonic():
            heapq.heappop(heap)[2]()
        if heap and heap[0][0] < self._set_s:
            self._set(heap[0][0])
