"""Noticing that decode waits for a prefill worker that has fallen silent.

An engine that pulls from a hung peer waits without end, and a whole answer shows no first token.
So the registry is asked: prefill no longer ready, and decode, by its own figures from after that,
with requests that are not running yet. Nothing is aborted inside an engine: a late write into
blocks that are free again would be silent corruption.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from baton.errors import WorkerTimeout
from baton.types import WorkerRecord, WorkerState
from router.pool import WorkerPool

_WATCH_S = 0.5
_BEATS_TO_JUDGE = 2
"""Heartbeats of decode, after prefill fell silent, before its figures are believed."""

T = TypeVar("T")


class StallGuard:
    """Watches the two workers of a handoff while decode has shown nothing yet."""

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool

    async def run(
        self, work: Coroutine[Any, Any, T], prefill: WorkerRecord | None, decode: WorkerRecord
    ) -> T:
        """Runs ``work``; gives it up when prefill has fallen silent and decode waits for it.

        Without a ``prefill`` there is nothing to watch.

        Raises:
            WorkerTimeout: it was given up.
        """
        if prefill is None:
            return await work
        working = asyncio.ensure_future(work)
        watching = asyncio.create_task(self._until_stalled(prefill, decode))
        try:
            await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            raise WorkerTimeout(
                f"prefill worker {prefill.id} fell silent before its blocks were pulled"
            )
        finally:
            for task in (working, watching):
                task.cancel()
            await asyncio.gather(working, watching, return_exceptions=True)

    async def _until_stalled(self, prefill: WorkerRecord, decode: WorkerRecord) -> None:
        beats: set[float] = set()
        while True:
            await asyncio.sleep(_WATCH_S)
            now = self._pool.record(prefill.id)
            if (
                now is not None
                and now.engine_id == prefill.engine_id
                and now.state in (WorkerState.READY, WorkerState.DRAINING)
            ):
                beats.clear()
                continue
            other = self._pool.record(decode.id)
            if other is None:
                continue
            beats.add(other.heartbeat_s)
            # The first is from before prefill fell silent, perhaps.
            if len(beats) > _BEATS_TO_JUDGE:
                if other.load.waiting > 0:
                    return
                beats.clear()
