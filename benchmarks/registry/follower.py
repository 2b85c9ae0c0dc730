"""A router's part in the registry: ``python -m benchmarks.registry.follower URL NUMBER WORKERS``.

Twice a second it looks, tells of itself, and arranges the fleet, as ``router.pool`` does. Prints
``ready`` after its first beat and a line about every later one, until it is asked to end.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time

import msgspec

from baton.clock import SystemClock
from baton.store import open_store
from benchmarks.load.loops import new_loop
from benchmarks.registry.records import BEAT, READY, Beat, router
from router.policy import RoutingRules, Slots, compile_fleet

BEAT_S = 0.5
TTL_S = 3.0


async def follow(url: str, number: int, workers: int) -> None:
    """Beats until cancelled."""
    store = open_store(url, SystemClock())
    rules, slots, fleet, seen = RoutingRules(threshold_tokens=512), Slots(), None, None
    encoder = msgspec.json.Encoder()
    try:
        began_s, beat = time.monotonic(), 0
        while True:
            asked_s, before_s = time.perf_counter(), time.process_time()
            look = await store.look()
            took_s, looked_s = time.perf_counter() - asked_s, time.process_time()
            if look.workers is not seen:
                fleet, seen = compile_fleet(look.workers, rules, slots, fleet), look.workers
            compiled_s = time.process_time()
            await store.put_router(router(number, workers, beat), ttl_s=TTL_S)
            told = Beat(
                workers=len(look.workers),
                look_ms=(looked_s - before_s) * 1e3,
                compile_ms=(compiled_s - looked_s) * 1e3,
                took_ms=took_s * 1e3,
            )
            sys.stdout.write(f"{BEAT}{encoder.encode(told).decode()}\n" if beat else f"{READY}\n")
            sys.stdout.flush()
            if not beat:
                # As in the router: what lives long is not looked at again.
                gc.freeze()
            beat += 1
            await asyncio.sleep(began_s + beat * BEAT_S - time.monotonic())
    finally:
        await store.close()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(follow(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
