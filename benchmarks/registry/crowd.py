"""All the workers of a registry in one process: ``python -m benchmarks.registry.crowd URL COUNT``.

Each beats once a second, evenly spread over it. Prints ``ready`` after the first beat of all, and
goes on until it is asked to end.
"""

from __future__ import annotations

import asyncio
import sys
import time

from baton.clock import SystemClock
from baton.store import open_store
from benchmarks.load.loops import new_loop
from benchmarks.load.priority import first_in_line
from benchmarks.registry.records import READY, worker

BEAT_S = 1.0
TTL_S = 5.0

_TICKS = 50
"""Bunches per second: a timer for each of a thousand workers would cost more than the beats."""


async def beat_for_all(url: str, count: int) -> None:
    """Registers ``count`` workers and beats for them until cancelled."""
    store = open_store(url, SystemClock())

    async def beat(number: int, beats: int) -> None:
        await store.put_worker(worker(number, beats, time.time()), ttl_s=TTL_S)

    try:
        for first in range(0, count, 100):
            await asyncio.gather(*(beat(n, 0) for n in range(first, min(first + 100, count))))
        sys.stdout.write(f"{READY}\n")
        sys.stdout.flush()
        began_s, tick = time.monotonic(), 0
        while True:
            tick += 1
            await asyncio.sleep(began_s + tick * BEAT_S / _TICKS - time.monotonic())
            beats = 1 + tick // _TICKS
            mine = range(tick % _TICKS, count, _TICKS)
            await asyncio.gather(*(beat(number, beats) for number in mine))
    finally:
        await store.close()


if __name__ == "__main__":
    # A crowd that waits for a core beats late, and makes up for it in somebody else's measurement.
    with first_in_line(), asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(beat_for_all(sys.argv[1], int(sys.argv[2])))
