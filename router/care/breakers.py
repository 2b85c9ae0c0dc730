"""The breakers of all workers, and the probes that close them again.

Only workers in trouble are kept here: whoever is not known has a closed breaker, so that a success
on the hot path costs one look into a small dictionary.
"""

from __future__ import annotations

import asyncio
import logging
import random
import uuid
from collections.abc import Iterable
from dataclasses import dataclass

from baton.clock import Clock
from baton.errors import PeerFault
from baton.types import EngineId, RequestId, WorkerId, WorkerRecord
from router.care.breaker import Breaker, BreakerState
from router.care.probes import probe
from router.care.seams import Asker
from router.care.tasks import Tasks

PROBES_AT_A_TIME = 16
PROBE_TIMEOUT_S = 5.0
_MOST_WATCHED = 4096

log = logging.getLogger("baton.router.breakers")


@dataclass(frozen=True, slots=True)
class BreakerRow:
    """One breaker that is not spotless, for people and gauges. ``age_s`` is the time in
    ``state``."""

    worker: WorkerId
    engine: EngineId
    state: BreakerState
    reason: str
    age_s: float
    failed_probes: int


@dataclass(slots=True)
class BreakerCounts:
    """Totals since the router's start. ``absolved``: suspicions that a probe found groundless."""

    opened: int = 0
    closed_again: int = 0
    absolved: int = 0


class Breakers:
    """One breaker per worker and run of its engine.

    Args:
        asker: for probes.
        clock: for durations.
        rng: for jitter.
        probe_timeout_s: within which a probe has to pass.
    """

    def __init__(
        self,
        asker: Asker,
        clock: Clock,
        rng: random.Random,
        *,
        probe_timeout_s: float = PROBE_TIMEOUT_S,
    ) -> None:
        self.counts = BreakerCounts()
        self._asker = asker
        self._clock = clock
        self._rng = rng
        self._probe_timeout_s = probe_timeout_s
        self._breakers: dict[WorkerId, Breaker] = {}
        self._workers: dict[WorkerId, WorkerRecord] = {}
        self._blocked: frozenset[WorkerId] = frozenset()
        self._suspicious: frozenset[WorkerId] = frozenset()
        self._watches: dict[WorkerId, asyncio.Task[None]] = {}
        self._tasks = Tasks(_MOST_WATCHED)
        self._slots = asyncio.Semaphore(PROBES_AT_A_TIME)

    @property
    def blocked_ids(self) -> frozenset[WorkerId]:
        """Workers that take no traffic: their breaker is open or half open."""
        return self._blocked

    @property
    def suspicious_ids(self) -> frozenset[WorkerId]:
        """Workers that take traffic while a probe decides; others are a better bet."""
        return self._suspicious

    def state(self, worker_id: WorkerId) -> BreakerState:
        """The state of a worker's breaker; CLOSED for whoever is not known."""
        breaker = self._breakers.get(worker_id)
        return BreakerState.CLOSED if breaker is None else breaker.state

    def rows(self) -> tuple[BreakerRow, ...]:
        """All that are not spotless."""
        now_s = self._clock.monotonic_s()
        return tuple(
            BreakerRow(
                worker_id,
                breaker.engine_id,
                breaker.state,
                breaker.reason,
                now_s - breaker.since_s,
                breaker.failed_probes,
            )
            for worker_id, breaker in self._breakers.items()
        )

    def update(self, records: Iterable[WorkerRecord]) -> None:
        """Takes over what the registry says: who is gone, and whose engine is another one."""
        self._workers = {record.id: record for record in records}
        for worker_id, breaker in list(self._breakers.items()):
            record = self._workers.get(worker_id)
            if record is None or record.engine_id != breaker.engine_id:
                self._forget(worker_id)
            elif breaker.state is not BreakerState.CLOSED:
                self._watch(worker_id, breaker)  # where there was no room for it before

    def fault(self, worker: WorkerRecord, request_id: RequestId, error: PeerFault) -> None:
        """A leg on ``worker`` failed by its fault. Never for 4xx, nor for a client that left."""
        known = self._workers.get(worker.id)
        if known is None or known.engine_id != worker.engine_id:
            return  # it is gone, or another engine by now
        breaker = self._breakers.get(worker.id)
        now_s = self._clock.monotonic_s()
        if breaker is None:
            breaker = self._breakers[worker.id] = Breaker(worker.engine_id, now_s)
        before = breaker.state
        breaker.fault(error, request_id, now_s)
        self._settle(worker.id, breaker, before)

    def success(self, worker_id: WorkerId) -> None:
        """A leg on the worker succeeded."""
        breaker = self._breakers.get(worker_id)
        if breaker is not None:
            before = breaker.state
            breaker.success(self._clock.monotonic_s())
            self._settle(worker_id, breaker, before)

    async def close(self) -> None:
        """Ends all probes."""
        await self._tasks.close()

    def _settle(self, worker_id: WorkerId, breaker: Breaker, before: BreakerState) -> None:
        """Keeps the sets, the counts and the watch in step with a breaker that may have changed."""
        if breaker.spotless:
            self._forget(worker_id)
        if breaker.state is before:
            return
        self._publish()
        log.warning(
            "breaker of worker %s is %s%s",
            worker_id,
            breaker.state,
            f": {breaker.reason}" if breaker.reason else "",
        )
        if breaker.state is BreakerState.OPEN and before is not BreakerState.HALF_OPEN:
            self.counts.opened += 1
        elif breaker.state is BreakerState.CLOSED and before is BreakerState.SUSPICIOUS:
            self.counts.absolved += 1
        elif breaker.state is BreakerState.CLOSED:
            self.counts.closed_again += 1
        if breaker.state is not BreakerState.CLOSED:
            self._watch(worker_id, breaker)

    def _forget(self, worker_id: WorkerId) -> None:
        self._breakers.pop(worker_id, None)
        watch = self._watches.pop(worker_id, None)
        if watch is not None and watch is not asyncio.current_task():
            watch.cancel()
        self._publish()

    def _publish(self) -> None:
        self._blocked = frozenset(w for w, b in self._breakers.items() if not b.takes_traffic)
        self._suspicious = frozenset(
            w for w, b in self._breakers.items() if b.state is BreakerState.SUSPICIOUS
        )

    def _watch(self, worker_id: WorkerId, breaker: Breaker) -> None:
        watch = self._watches.get(worker_id)
        if watch is not None and not watch.done():
            return
        task = self._tasks.spawn(
            lambda: self._probe_until_closed(worker_id, breaker), f"breaker-{worker_id}"
        )
        if task is not None:
            self._watches[worker_id] = task

    async def _probe_until_closed(self, worker_id: WorkerId, breaker: Breaker) -> None:
        while self._breakers.get(worker_id) is breaker and (
            breaker.state is not BreakerState.CLOSED
        ):
            await asyncio.sleep(breaker.pause_s(self._rng))
            async with self._slots:
                worker = self._workers.get(worker_id)
                if worker is None or self._breakers.get(worker_id) is not breaker:
                    return
                breaker.probe_began()
                failure = await probe(
                    self._asker,
                    worker,
                    RequestId(f"probe-{uuid.UUID(int=self._rng.getrandbits(128)).hex}"),
                    timeout_s=self._probe_timeout_s,
                    clock=self._clock,
                )
            before = breaker.state
            breaker.probe_ended(failure, self._clock.monotonic_s())
            self._settle(worker_id, breaker, before)
