"""The embedded store: one router, no Redis, nothing kept over a restart.

It lives in one event loop and never awaits between reading and changing, so it needs no lock.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from baton.clock import Clock
from baton.errors import StoreUnavailable, TooManyRequests
from baton.store.base import (
    MAX_ROUTERS,
    MAX_WORKERS,
    NO_DOCUMENT,
    STATE,
    Document,
    Look,
    checked_ttl_s,
    checked_value,
    registry_full,
    routers_full,
)
from baton.types import Role, RouterId, RouterRecord, WorkerId, WorkerRecord


class MemoryStore:
    """A :class:`baton.store.Store` in this process's memory; expiry by the monotonic clock."""

    def __init__(self, clock: Clock, max_workers: int = MAX_WORKERS) -> None:
        self._clock = clock
        self._max_workers = max_workers
        self._entries: dict[WorkerId, tuple[WorkerRecord, float]] = {}
        self._cordoned: frozenset[WorkerId] = frozenset()
        self._assigned: Mapping[WorkerId, Role] = {}  # replaced when it changes, never changed
        self._sorted: tuple[WorkerRecord, ...] | None = ()
        self._routers: dict[RouterId, tuple[RouterRecord, float]] = {}
        self._sorted_routers: tuple[RouterRecord, ...] | None = ()
        self._documents: dict[str, Document] = {}
        self._look = Look()
        self._closed = False
        self._looks_s = 0.0  # nothing expires before; a look at all of them is dear with a thousand

    async def put_worker(self, record: WorkerRecord, *, ttl_s: float) -> None:
        """See :meth:`baton.store.Store.put_worker`."""
        expires_s = self._clock.monotonic_s() + checked_ttl_s(ttl_s)
        self._purge()
        known = self._entries.get(record.id)
        if known is None and len(self._entries) >= self._max_workers:
            raise TooManyRequests(registry_full(self._max_workers))
        if known is not None and known[0] == record:
            record = known[0]
        else:
            self._sorted = None
        self._entries[record.id] = (record, expires_s)
        self._looks_s = min(self._looks_s, expires_s)

    async def remove_worker(self, worker_id: WorkerId) -> None:
        """See :meth:`baton.store.Store.remove_worker`."""
        self._purge()
        if self._entries.pop(worker_id, None) is not None:
            self._sorted = None
        self._lift(worker_id)
        self._assign(worker_id, None)

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
        if worker_id not in self._cordoned:
            self._cordoned |= {worker_id}

    async def uncordon(self, worker_id: WorkerId) -> None:
        """See :meth:`baton.store.Store.uncordon`."""
        self._purge()
        self._lift(worker_id)

    async def cordoned(self) -> frozenset[WorkerId]:
        """See :meth:`baton.store.Store.cordoned`."""
        self._purge()
        return self._cordoned

    async def assign(self, worker_id: WorkerId, role: Role | None) -> None:
        """See :meth:`baton.store.Store.assign`."""
        self._purge()
        new = role is not None and worker_id not in self._assigned
        if new and len(self._assigned) >= self._max_workers:
            raise TooManyRequests(registry_full(self._max_workers))
        self._assign(worker_id, role)

    async def put_router(self, record: RouterRecord, *, ttl_s: float) -> None:
        """See :meth:`baton.store.Store.put_router`."""
        expires_s = self._clock.monotonic_s() + checked_ttl_s(ttl_s)
        self._purge()
        known = self._routers.get(record.id)
        if known is None and len(self._routers) >= MAX_ROUTERS:
            raise TooManyRequests(routers_full())
        if known is not None and known[0] == record:
            record = known[0]
        else:
            self._sorted_routers = None
        self._routers[record.id] = (record, expires_s)
        self._looks_s = min(self._looks_s, expires_s)

    async def remove_router(self, router_id: RouterId) -> None:
        """See :meth:`baton.store.Store.remove_router`."""
        self._purge()
        if self._routers.pop(router_id, None) is not None:
            self._sorted_routers = None

    async def document(self, name: str) -> Document:
        """See :meth:`baton.store.Store.document`."""
        self._purge()
        return self._documents.get(name, NO_DOCUMENT)

    async def swap(self, name: str, expected: int, value: bytes) -> int | None:
        """See :meth:`baton.store.Store.swap`."""
        value = checked_value(value)
        self._purge()
        if self._documents.get(name, NO_DOCUMENT).revision != expected:
            return None
        self._documents[name] = Document(expected + 1, value)
        return expected + 1

    async def look(self) -> Look:
        """See :meth:`baton.store.Store.look`. The very same ``Look`` if nothing has changed."""
        workers = await self.workers()
        if self._sorted_routers is None:
            told = self._routers
            self._sorted_routers = tuple(told[router_id][0] for router_id in sorted(told))
        last, state = self._look, self._documents.get(STATE, NO_DOCUMENT)
        # What was changed and changed back since the last look has not changed.
        if last.workers == workers:
            workers = self._sorted = last.workers
        if last.cordoned == self._cordoned:
            self._cordoned = last.cordoned
        if last.assigned == self._assigned:
            self._assigned = last.assigned
        if last.routers == self._sorted_routers:
            self._sorted_routers = last.routers
        if (
            last.workers is not workers
            or last.cordoned is not self._cordoned
            or last.assigned is not self._assigned
            or last.routers is not self._sorted_routers
            or last.state is not state
        ):
            last = Look(workers, self._cordoned, self._assigned, self._sorted_routers, state)
            self._look = last
        return last

    async def close(self) -> None:
        """See :meth:`baton.store.Store.close`."""
        self._closed = True
        self._entries.clear()
        self._routers.clear()
        self._documents.clear()
        self._sorted, self._cordoned, self._assigned = (), frozenset(), {}
        self._sorted_routers, self._look = (), Look()

    def describe(self) -> str:
        """See :meth:`baton.store.Store.describe`."""
        return "memory of this process"

    def _purge(self) -> None:
        if self._closed:
            raise StoreUnavailable("the store is closed")
        now_s = self._clock.monotonic_s()
        if now_s < self._looks_s:
            return
        for worker_id in [i for i, (_, end_s) in self._entries.items() if end_s <= now_s]:
            del self._entries[worker_id]
            self._sorted = None
        for router_id in [i for i, (_, end_s) in self._routers.items() if end_s <= now_s]:
            del self._routers[router_id]
            self._sorted_routers = None
        self._looks_s = min(
            min((end_s for _, end_s in self._entries.values()), default=math.inf),
            min((end_s for _, end_s in self._routers.values()), default=math.inf),
        )

    def _lift(self, worker_id: WorkerId) -> None:
        if worker_id in self._cordoned:
            self._cordoned -= {worker_id}

    def _assign(self, worker_id: WorkerId, role: Role | None) -> None:
        if self._assigned.get(worker_id) is role:
            return
        assigned = {other: given for other, given in self._assigned.items() if other != worker_id}
        if role is not None:
            assigned[worker_id] = role
        self._assigned = assigned
