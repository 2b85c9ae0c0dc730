"""How late the event loop is: the one number that says that the router itself is the bottleneck.

A timer that should fire every quarter of a second tells by how much it was late. The gauge shows
the worst of the last 15 to 30 seconds, so that a scrape every 15 seconds misses nothing and two
scrapers do not take values from each other.
"""

from __future__ import annotations

import asyncio

from baton.clock import next_beat

TICK_S = 0.25
WINDOW_S = 15.0


class LoopLag:
    """Measures one event loop; at most one timer at a time.

    Args:
        loop: the loop to watch; its clock is the one that counts.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = 0.0
        self._window_ends_s = 0.0
        self._worst_s = 0.0
        self._worst_before_s = 0.0
        self._last_s = self._before_last_s = loop.time()

    def start(self) -> None:
        """Begins to measure; a second call changes nothing."""
        if self._timer is None:
            self._last_s = self._before_last_s = self._loop.time()
            self._window_ends_s = self._last_s + WINDOW_S
            self._arm()

    def stop(self) -> None:
        """Ends it; may be called at any time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def worst_s(self) -> float:
        """The worst of this window and the one before."""
        return max(self._worst_s, self._worst_before_s)

    def unseen_s(self) -> float:
        """For how long, at most, what is read now may have lain in its socket.

        Since the tick before the last: after a standstill the late tick comes first, and then what
        came meanwhile. Half a second or less, as long as there was none.
        """
        return self._loop.time() - self._before_last_s

    def _arm(self) -> None:
        self._due_s = next_beat(self._loop.time(), TICK_S)
        self._timer = self._loop.call_at(self._due_s, self._tick)

    def _tick(self) -> None:
        now_s = self._loop.time()
        if now_s >= self._window_ends_s:
            self._worst_before_s, self._worst_s = self._worst_s, 0.0
            self._window_ends_s = now_s + WINDOW_S
        self._worst_s = max(self._worst_s, now_s - self._due_s)
        self._before_last_s, self._last_s = self._last_s, now_s
        self._arm()
