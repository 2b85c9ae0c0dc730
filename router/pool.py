"""The router's picture of the workers: the registry's records, its own legs, its own doubts.

Decisions are made on snapshots of it; it makes none itself. When the store is away the last
picture is used on, since engines serve without a store.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Iterator

from baton.clock import Clock
from baton.errors import StoreUnavailable
from baton.store import Store
from baton.types import EngineId, WorkerId, WorkerRecord
from router.metrics import RouterMetrics
from router.policy import WorkerView

_REFRESH_S = 0.5
_SUSPECT_S = 2.0
"""How long a worker that refused a connection is left alone; two heartbeats show if it lives."""

log = logging.getLogger("baton.router.pool")


class WorkerPool:
    """Workers as one router sees them."""

    def __init__(self, store: Store, clock: Clock, metrics: RouterMetrics) -> None:
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._records: dict[WorkerId, WorkerRecord] = {}
        self._legs: Counter[WorkerId] = Counter()
        self._suspects: dict[WorkerId, tuple[EngineId, float]] = {}
        self._store_lost = False

    def views(self) -> tuple[WorkerView, ...]:
        """All registered workers, now."""
        return tuple(
            WorkerView(record, self._legs[record.id], self._is_suspect(record))
            for record in self._records.values()
        )

    def record(self, worker_id: WorkerId) -> WorkerRecord | None:
        """What the worker said last, or None if it is not registered."""
        return self._records.get(worker_id)

    @contextlib.contextmanager
    def leg(self, worker_id: WorkerId) -> Iterator[None]:
        """Counts one leg on the worker while open, whatever ends it."""
        self._legs[worker_id] += 1
        try:
            yield
        finally:
            self._legs[worker_id] -= 1
            if self._legs[worker_id] <= 0:
                del self._legs[worker_id]

    def suspect(self, worker: WorkerRecord) -> None:
        """Leaves the worker out for a moment, or until its engine is another one."""
        self._suspects[worker.id] = (
            worker.engine_id,
            self._clock.monotonic_s() + _SUSPECT_S,
        )

    def _is_suspect(self, record: WorkerRecord) -> bool:
        entry = self._suspects.get(record.id)
        if entry is None:
            return False
        engine_id, until_s = entry
        if record.engine_id != engine_id or self._clock.monotonic_s() >= until_s:
            del self._suspects[record.id]
            return False
        return True

    async def refresh(self) -> None:
        """Reads the registry once. A store that is away leaves the picture as it was."""
        try:
            records = await self._store.workers()
        except StoreUnavailable as error:
            if not self._store_lost:
                log.warning(
                    "the registry is away, going on with %d workers known: %s",
                    len(self._records),
                    error.message,
                )
            self._store_lost = True
            return
        if self._store_lost:
            log.info("the registry is back")
            self._store_lost = False
        self._note_changes(records)
        self._records = {record.id: record for record in records}
        for gone in self._suspects.keys() - self._records.keys():
            del self._suspects[gone]
        self._metrics.workers.clear()
        for record in records:
            self._metrics.workers.labels(record.role, record.state).inc()

    def _note_changes(self, records: tuple[WorkerRecord, ...]) -> None:
        for record in records:
            before = self._records.get(record.id)
            if before is None or before.state is not record.state:
                log.info("worker %s (%s) is %s", record.id, record.role, record.state)
        for gone in self._records.keys() - {record.id for record in records}:
            log.info("worker %s is gone", gone)

    async def keep_fresh(self) -> None:
        """Refreshes for ever; to be run as a task and cancelled."""
        while True:
            try:
                await self.refresh()
            except Exception:
                # An old picture is better than a router that never looks again.
                log.exception("the registry could not be read")
            await asyncio.sleep(_REFRESH_S)
