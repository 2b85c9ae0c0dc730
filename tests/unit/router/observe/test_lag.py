"""How late the event loop is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from router.observe.lag import TICK_S, WINDOW_S, LoopLag


class HandLoop:
    """A loop whose time and timers are moved by hand."""

    def __init__(self) -> None:
        self.now_s = 50.0
        self.timers: list[HandTimer] = []

    def time(self) -> float:
        return self.now_s

    def call_at(self, when: float, call: Callable[[], None]) -> HandTimer:
        timer = HandTimer(when, call)
        self.timers.append(timer)
        return timer

    def fire(self, late_s: float = 0.0) -> None:
        """Runs the one timer that is set, ``late_s`` after it was due."""
        (timer,) = [timer for timer in self.timers if not timer.cancelled]
        self.timers = []
        self.now_s = timer.when + late_s
        timer.call()


class HandTimer:
    def __init__(self, when: float, call: Callable[[], None]) -> None:
        self.when = when
        self.call = call
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


def watched() -> tuple[HandLoop, LoopLag]:
    loop = HandLoop()
    lag = LoopLag(cast(asyncio.AbstractEventLoop, loop))
    lag.start()
    return loop, lag


def test_the_worst_delay_is_kept() -> None:
    """One slow callback among many quick ones shows."""
    loop, lag = watched()
    for late_s in (0.0, 0.25, 0.125, 0.0):
        loop.fire(late_s)
    assert lag.worst_s() == 0.25


def test_a_delay_is_forgotten_after_two_windows_at_the_latest() -> None:
    """It shows for 15 seconds at least, so that every scrape sees it, and for 30 at most."""
    loop, lag = watched()
    loop.fire(0.5)
    began_s = loop.now_s
    shown_s = 0.0
    while lag.worst_s() > 0:
        shown_s = loop.now_s - began_s
        loop.fire()
    assert WINDOW_S - TICK_S <= shown_s <= 2 * WINDOW_S + 2 * TICK_S


def test_it_stops_and_starts_once() -> None:
    """No timer is left after a stop, and never are there two."""
    loop, lag = watched()
    lag.start()
    assert len(loop.timers) == 1
    lag.stop()
    lag.stop()
    assert [timer.cancelled for timer in loop.timers] == [True]


def test_what_is_read_after_a_standstill_may_be_as_old() -> None:
    """The late tick comes before what came meanwhile; a tick later all is as always."""
    loop, lag = watched()
    loop.fire()
    loop.fire()
    assert lag.unseen_s() == TICK_S
    loop.fire(late_s=20.0)
    assert lag.unseen_s() == 20.0 + TICK_S
    loop.fire()
    assert lag.unseen_s() == TICK_S
