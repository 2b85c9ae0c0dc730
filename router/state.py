"""What one router process is made of, put together in one visible place."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import random
import secrets
import socket
from collections.abc import Callable
from typing import Any

from baton.clock import Clock, SystemClock, until_beat_s
from baton.store import Look, Store, open_store
from baton.telemetry import process_context
from baton.types import EngineId, RequestId, Role, RouterId, WorkerId
from profiles import PrefixKnowledge, ServingProfile
from router.aftercare import Aftercare
from router.answer import Answerer
from router.api import GenerateRequest, prompt_bytes_of
from router.care import Care
from router.counting import Counting
from router.dispatch import Dispatcher
from router.flow import Gate
from router.gauges import connect_gauges
from router.ledger import Ledger
from router.observe import LoopLag, RouterMetrics, make_tracer, tracing_settings
from router.policy import Counts, PrefixIndex
from router.pool import WorkerPool
from router.prefix import Chain, PrefixRouting, open_feed
from router.serving import Serving, Servings
from router.settings import RouterSettings
from router.stall import Watches
from router.switching import Conductor
from router.tenants import Directory, Limits, open_source
from router.wire import Upstream

_HOUSEKEEPING_S = 1.0
_LONGEST_SILENCE_S = 10.0
"""An answering worker that says for so long that its engine is not ready is given up, sooner where
the profile gives tokens less time."""
_PULLING_SILENCE = 1 / 3
"""Of a lease: the same of one that is to pull."""

log = logging.getLogger("baton.router")


class RouterState:
    """The parts of a running router. Made inside the event loop; ``close`` undoes ``start``."""

    def __init__(self, settings: RouterSettings, *, clock: Clock | None = None) -> None:
        self.settings = settings
        profile = settings.profile
        self.clock = clock or SystemClock()
        self.stopping = False
        self.router_id = RouterId(f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}")
        spec = profile.spec
        rng = random.Random()  # noqa: S311 (lots between workers, samples, jitter)
        self.metrics = RouterMetrics()
        self.tracer = make_tracer(
            tracing_settings({}, settings.otlp_endpoint, settings.trace_ratio)
        )
        self.lag: LoopLag | None = None
        self.store: Store = open_store(settings.store_url, self.clock)
        self.limits = Limits()
        source = None if settings.tenants is None else open_source(settings.tenants, self.clock)
        self.directory = Directory(
            source,
            self.clock,
            on_change=lambda tenants: self.limits.configure(tenants, self.clock.monotonic_s()),
        )
        self.counts = Counts()
        self.servings = Servings(Serving(profile, settings.share, self.counts))
        self.upstream = Upstream(settings.token, connect_s=spec.deadlines.connect_s)
        self.ledger = Ledger(self.clock, self.metrics)
        self.care = Care(
            self.upstream,
            self.servings.current.care,
            self.clock,
            rng,
            on_view=lambda prefill, decode, view: self.pool.pairs.put(prefill, decode, view),
        )
        self.pool = WorkerPool(
            self.store,
            self.clock,
            self.servings,
            self.counts,
            router_id=self.router_id,
            make_prefix=self._make_prefix,
            max_prefix_blocks=spec.routing.prefix_blocks,
            blocked=lambda: self.care.breakers.blocked_ids,
            stranded=self.ledger.stranded_bytes,
        )
        self.gate = Gate(
            self.servings.current.flow,
            self.pool.capacity,
            self.clock,
            share=settings.share,
        )
        self.watches = Watches(self.pool, self.clock, **_silences(profile))
        self.aftercare = Aftercare(self.care, self.ledger, self.gate.kick)
        self.counting = Counting(self.upstream, self.pool, self.metrics, self.clock)
        self.dispatcher = Dispatcher(
            pool=self.pool,
            upstream=self.upstream,
            answerer=Answerer(
                upstream=self.upstream,
                watches=self.watches,
                verdicts=self.aftercare,
                metrics=self.metrics,
                clock=self.clock,
            ),
            counting=self.counting,
            ledger=self.ledger,
            aftercare=self.aftercare,
            watches=self.watches,
            metrics=self.metrics,
            clock=self.clock,
            rng=rng,
            unseen_s=lambda: 0.0 if self.lag is None else self.lag.unseen_s(),
        )
        self.rng = rng
        self._id_prefix = f"baton-{secrets.token_hex(6)}-"
        self._ids = itertools.count(1)
        self._engines: dict[WorkerId, EngineId] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.on_profile: list[Callable[[Serving], None]] = []
        self.pool.listen(self._note_workers)
        self.conductor = Conductor(self)
        self.pool.listen(self.conductor.hear)
        connect_gauges(self)
        process_context["profile_version"] = self.servings.current.version

    @property
    def profile(self) -> ServingProfile:
        """The active one."""
        return self.servings.current.profile

    def _make_prefix(self, index: PrefixIndex) -> PrefixRouting:
        routing = self.profile.spec.routing
        exact = routing.prefix is PrefixKnowledge.EXACT
        return PrefixRouting(
            index,
            routing.prefix,
            prompt_bytes=prompt_bytes_of,
            block_size=self.profile.spec.transfer.block_size,
            feed=open_feed(index) if exact else None,
        )

    def arrange(self, current: Serving, candidate: Serving | None) -> None:
        """From now on requests that come in are served by these. Those in flight end under the
        profile that they came in under. Nothing is awaited here: no request sees half of it."""
        before = self.servings.current
        self.servings.arrange(current, candidate)
        self.pool.rearrange()
        handing_over = current if current.classify is not None else candidate
        if handing_over is not None and handing_over.classify is not None:
            # While another profile is active the pairs stay as they were checked for this one.
            self.care.follow(handing_over.care)
        self.care.update(self.pool.records(), self.pool.pairing())
        if current is before:
            return
        process_context["profile_version"] = current.version
        self.gate.follow(current.flow)
        self.watches.follow(**_silences(current.profile))
        self.upstream.connect_s = current.deadlines.connect_s
        for listener in self.on_profile:
            listener(current)

    async def follow_prefix(self) -> None:
        """Has the prefix knowledge be what the active profile says."""
        old, spec = self.pool.prefix, self.profile.spec
        new = (spec.routing.prefix, spec.transfer.block_size)
        if (old.knowledge, old.block_size) == new:
            return
        self.pool.prefix = self._make_prefix(self.pool.index)
        self.pool.rearrange()
        await old.close()

    async def start(self) -> None:
        """Reads the registry once, then keeps it and the ledger up to date."""
        await self.directory.start()
        await self.pool.refresh()
        await self.conductor.start()
        self.care.start()
        self.lag = LoopLag(asyncio.get_running_loop())
        self.lag.start()
        for work, name in (
            (self.pool.keep_fresh(), "pool"),
            (self.directory.keep_fresh(), "tenants"),
            (self._housekeeping(), "housekeeping"),
            (self.conductor.run(), "conductor"),
        ):
            self._tasks.add(asyncio.create_task(work, name=name))

    async def close(self) -> None:
        """Stops the tasks and closes connections."""
        process_context.pop("profile_version", None)
        self.gate.close()
        await self.care.drain(_HOUSEKEEPING_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.lag is not None:
            self.lag.stop()
        await self.conductor.close()
        await self.care.close()
        await self.pool.prefix.close()
        await self.upstream.close()
        await self.directory.close()
        await self.tracer.aclose()
        await self.store.close()

    def new_request_id(self) -> RequestId:
        """An id that no other request of any router has."""
        return RequestId(f"{self._id_prefix}{next(self._ids):x}")

    @property
    def in_flight(self) -> int:
        """Requests being served, those that wait included."""
        return self.metrics.in_flight

    def chain_of(self, request: GenerateRequest, base: str, adapter: str) -> Chain:
        """Hashes of the prompt's prefix; empty where nobody wants to know."""
        prefix = self.pool.prefix
        ids = self.counting.token_ids(request) if prefix.needs_token_ids else None
        return prefix.chain_for(request, model=base, adapter=adapter, token_ids=ids)

    # --- for operators ---

    def ready_workers(self) -> dict[str, int]:
        """Usable workers by role, with a zero for each role that the profile has."""
        ready = {str(role): 0 for role in self.profile.spec.pools.by_role}
        return ready | dict(self.pool.ready_by_role())

    def is_serving(self) -> bool:
        """Whether a worker could answer now."""
        ready = self.pool.ready_by_role()
        return ready[Role.DECODE] + ready[Role.STANDARD] > 0

    def is_drained(self, worker_id: WorkerId) -> bool:
        """Whether this router has nothing on the worker any more, and nothing offered by it."""
        if self.pool.legs(worker_id) or self.ledger.stranded_bytes().get(worker_id, 0):
            return False
        if any(worker_id in (h.prefill, h.decode) for h in self.ledger.open_handoffs()):
            return False
        record = self.pool.record(worker_id)
        load = None if record is None else record.load
        if load is None:
            return True
        # What other routers have on it shows in its own figures; offered blocks too.
        if load.running + load.waiting or load.kv_usage > 0:
            return False
        return not any(
            other.prefilling.get(worker_id)
            or other.answering.get(worker_id)
            or other.stranded_bytes.get(worker_id)
            for other in self.pool.others
        )

    def tenants_report(self) -> dict[str, Any]:
        """Where tenants come from, and how many requests each has at a time now."""
        return {"source": self.directory.status(), "running": self.limits.running()}

    # --- what goes on beside requests ---

    def _note_workers(self, look: Look) -> None:
        for record in look.workers:
            before = self._engines.get(record.id)
            if before is not None and before != record.engine_id:
                self.ledger.restarted(record.id)
        self._engines = {record.id: record.engine_id for record in look.workers}
        self.limits.hear(self.pool.others, self.clock.monotonic_s())
        self.care.update(look.workers, self.pool.pairing())
        self.gate.kick()
        self.watches.look()

    async def _housekeeping(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                self.ledger.sweep()
                self.servings.sweep()
                if self.pool.is_lost:
                    self.limits.hear(self.pool.others, self.clock.monotonic_s())
                await self.counting.prepare()
            except Exception:
                # A fault here must not end the loop that frees what the ledger holds.
                log.exception("housekeeping failed")
            await asyncio.sleep(until_beat_s(loop.time(), _HOUSEKEEPING_S))


def _silences(profile: ServingProfile) -> dict[str, float]:
    """How long a silent engine is waited for; see ``Watches``."""
    silent_s = min(_LONGEST_SILENCE_S, profile.spec.deadlines.idle_s)
    pulling_s = min(silent_s, profile.spec.transfer.lease_s * _PULLING_SILENCE)
    return {"silent_s": silent_s, "pulling_silent_s": pulling_s}


__all__ = ["RouterSettings", "RouterState"]
