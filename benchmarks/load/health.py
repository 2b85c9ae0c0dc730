"""Watches the load generator itself: late sends, a stalled event loop, CPU, garbage collection.

A figure about a server is worth no more than the client that took it, so these go into every
result, and ``validity`` judges by them.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import sys
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence

from benchmarks.records import ClientHealth, RequestRecord

TICK_S = 0.010
_MOST_TICKS = 4_000_000
_COLLECT_S = 1.0
_OLDER_EVERY = 30
_SWITCH_S = 0.0005


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest rank; 0.0 of nothing. ``values`` must be sorted."""
    if not values:
        return 0.0
    return values[max(0, math.ceil(share * len(values)) - 1)]


def lag_of(record: RequestRecord) -> float | None:
    """Seconds from schedule to send that are the client's own: opening a connection is left out,
    a server's queue of connections is not ours. A closed loop and a later turn are due when the
    answer before them has ended (and its reader has thought): what comes on top of that, such as
    making the prompt, is the client's as well. None for what was not sent."""
    if record.sent_s is None:
        return None
    return max(0.0, record.sent_s - record.scheduled_s - (record.connect_s or 0.0))


class Lags:
    """Lags as they come."""

    def __init__(self) -> None:
        self._values = array("d")

    def add(self, record: RequestRecord) -> None:
        """Counts a record, if it was sent."""
        if (lag_s := lag_of(record)) is not None:
            self._values.append(lag_s)

    def ordered(self) -> list[float]:
        """All of them, sorted."""
        return sorted(self._values)


class LoopWatch:
    """Sleeps 10 ms again and again, and notes how late it woke."""

    def __init__(self, on_tick: Callable[[float], None], now: Callable[[], float]) -> None:
        self._on_tick = on_tick
        self._now = now
        self._late = array("d")

    async def run(self) -> None:
        """Until cancelled. ``on_tick`` gets the time at each tick; must not block."""
        while True:
            due = self._now() + TICK_S
            await asyncio.sleep(TICK_S)
            now = self._now()
            if len(self._late) < _MOST_TICKS:
                self._late.append(max(0.0, now - due))
            self._on_tick(now)

    def ordered(self) -> list[float]:
        """Seconds late, sorted."""
        return sorted(self._late)


class CpuMeter:
    """CPU seconds of this process by wall seconds."""

    def __init__(self) -> None:
        self._cpu_s = time.process_time()
        self._wall_s = time.monotonic()

    def share(self) -> float:
        """Since it was made; 1.0 is a whole core."""
        wall_s = time.monotonic() - self._wall_s
        return (time.process_time() - self._cpu_s) / wall_s if wall_s > 0 else 0.0


class Quiet:
    """Garbage collection that does not disturb: what there is at the start is left alone, young
    objects are looked at once a second. Threads that build text give way sooner."""

    def __init__(self) -> None:
        self._next_s = 0.0
        self._collected = 0

    def settle(self) -> None:
        """Collects everything, which takes a while after a large plan was built: to be called
        before second zero is agreed on."""
        gc.collect()

    @contextlib.contextmanager
    def held(self) -> Iterator[Quiet]:
        """Holds while open; everything is as before afterwards."""
        enabled, switch_s = gc.isenabled(), sys.getswitchinterval()
        gc.freeze()
        gc.disable()
        sys.setswitchinterval(_SWITCH_S)
        try:
            yield self
        finally:
            sys.setswitchinterval(switch_s)
            gc.unfreeze()
            if enabled:
                gc.enable()

    def tick(self, now: float) -> None:
        """Collects young objects if it is time."""
        if now >= self._next_s:
            self._next_s = now + _COLLECT_S
            self._collected += 1
            gc.collect(0 if self._collected % _OLDER_EVERY else 1)


def health_of(lags: Sequence[float], stalls: Sequence[float], cpu_share: float) -> ClientHealth:
    """One process's health; both rows sorted."""
    return ClientHealth(
        lag_p50_s=percentile(lags, 0.5),
        lag_p99_s=percentile(lags, 0.99),
        lag_max_s=lags[-1] if lags else 0.0,
        stall_p99_s=percentile(stalls, 0.99),
        stall_max_s=stalls[-1] if stalls else 0.0,
        cpu_share=cpu_share,
    )


def worst(parts: Iterable[ClientHealth]) -> ClientHealth:
    """Several processes as one: each figure is that of the worst of them."""
    found = list(parts)
    if not found:
        return ClientHealth()
    names = [name for name in ClientHealth.__struct_fields__ if name != "processes"]
    values = {name: max(getattr(part, name) for part in found) for name in names}
    return ClientHealth(**values, processes=sum(part.processes for part in found))
