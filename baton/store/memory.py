"""The embedded store: one router, no Redis, nothing kept over a restart.

It lives in one event loop and never awaits between reading and changing, so it needs no lock.
"""

from __future__ import annotations

import math

from baton.clock import Clock
from baton.errors import StoreUnavailable, TooManyRequests
from baton.store.base import MAX_WORKERS, checked_ttl_s, registry_full
from baton.types import WorkerId, WorkerRecord


class MemoryStore:
    """A :class:`baton.store.Store` in this process's memory; expiry by the monotonic clock."""

    def __init__(self, clock: Clock, max_workers: int = MAX_WORKERS) -> None:
        self._clock = clock
        self._max_workers = max_workers
        self._entries: dict[WorkerId, tuple[WorkerRecord, float]] = {}
        self._cordoned: frozenset[WorkerId] = frozenset()
        self._sorted: tuple[WorkerRecord, ...] | None = ()
        self._closed = False
        self._looks_s = 0.0  # nothing expires before; a look at all of them is dear with a thousand

    async def put_worker(self, record: WorkerRecord, *, ttl_s: float) -> None:
        """See :meth:`baton.store.Store.put_worker`."""
        expires_s = self._clock.monotonic_s() + checked_ttl_s(ttl_s)
        self._purge()
        if record.id not in self._entries and len(self._entries) >= self._max_workers:
            raise TooManyRequests(registry_full(self._max_workers))
        self._entries[record.id] = (record, expires_s)
        self._sorted = None
        self._looks_s = min(self._looks_s, expires_s)

    async def remove_worker(self, worker_id: WorkerId) -> None:
        """See :meth:`baton.store.Store.remove_worker`."""
        self._purge()
        self._entries.pop(worker_id, None)
        self._sorted = None
        self._cordoned -= {worker_id}

    async def workers(self) -> tuple[WorkerRecord, ...]:
        """See :meth:`baton.store.Store.workers`. The same tuple as before if nothing has come."""
        self._purge()
        if self._sorted is None:
            entries = self._entries
            self._sorted = tuple(entries[worker_id][0] for worker_id in sorted(entries))
        return self._sorted

    async def cordon(self, worker_id: WorkerId) -> None:
        """See :meth:`baton.store.Store.cordon`."""
        self._purge()
        if worker_id not in self._cordoned and len(self._cordoned) >= self._max_workers:
            raise TooManyRequests(registry_full(self._max_workers))
        self._cordoned |= {worker_id}

    async def uncordon(self, worker_id: WorkerId) -> None:
        """See :meth:`baton.store.Store.uncordon`."""
        self._purge()
        self._cordoned -= {worker_id}

    async def cordoned(self) -> frozenset[WorkerId]:
        """See :meth:`baton.store.Store.cordoned`."""
        self._purge()
        return self._cordoned

    async def close(self) -> None:
        """See :meth:`baton.store.Store.close`."""
        self._closed = True
        self._entries.clear()
        self._sorted, self._cordoned = (), frozenset()

    def describe(self) -> str:
        """See :meth:`baton.store.Store.describe`."""
        return "memory of this process"

    def _purge(self) -> None:
        if self._closed:
            raise StoreUnavailable("the store is closed")
        now_s = self._clock.monotonic_s()
        if now_s < self._looks_s:
            return
        for worker_id in [i for i, (_, expires_s) in self._entries.items() if expires_s <= now_s]:
            del self._entries[worker_id]
            self._sorted = None
        self._looks_s = min((end_s for _, end_s in self._entries.values()), default=math.inf)
