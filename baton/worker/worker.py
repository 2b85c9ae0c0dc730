"""The life of a worker: engine up, registered, watched, drained, gone.

A drain tells routers at once, lets requests in flight end, and offered handoffs be pulled or
expire. Who may ask for one, and what else a process does, is not said here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from baton.clock import Clock, SystemClock
from baton.engine import Engine
from baton.registrar import HEARTBEAT_S, Registrar, heartbeat_loop
from baton.stopping import unless_stopped
from baton.types import Limits, WorkerRecord, WorkerState
from baton.worker.health import Problem
from baton.worker.options import WorkerOptions, WorkerPlan

_SETTLE_S = 1.0
"""From telling the registry to believing that no router sends more: one refresh of a router's
snapshot, and the load must have been read after it."""

log = logging.getLogger("baton.worker")


class Worker:
    """One engine and its record in the registry.

    Args:
        options: what the process was told.
        plan: what its role makes of that.
        registrar: where to register; closed at the end.
        clock: for records.
        engine: the supervisor of the engine, or None for one that keeps engines running.
        may_start: when the engine may start, or None for at once.

    Attributes:
        drained: set when a drain is over.
    """

    def __init__(
        self,
        options: WorkerOptions,
        plan: WorkerPlan,
        registrar: Registrar,
        *,
        clock: Clock | None = None,
        engine: Engine | None = None,
        may_start: asyncio.Event | None = None,
    ) -> None:
        self.drained = asyncio.Event()
        self._options = options
        self._plan = plan
        self._registrar = registrar
        self._clock = clock or SystemClock()
        self._started_s = self._clock.wall_s()
        self._wake = asyncio.Event()
        self._draining = False
        self._may_start = may_start
        self.engine = engine or Engine(
            f"{plan.role}", plan.make_spec, on_change=self.tell, clock=self._clock
        )

    def tell(self) -> None:
        """Has the registry told of the worker as it is now."""
        self._wake.set()

    def unready(self) -> Problem | None:
        """Why this worker cannot serve; None when it can."""
        state = self.record().state
        if state is WorkerState.READY:
            return None
        return Problem(f"the worker is {state}", self.engine.health.last_error or "")

    def dead(self) -> Problem | None:
        """Why this worker will not serve again on this machine, by all that can be told; None while
        it may."""
        if not self.engine.hopeless():
            return None
        return Problem("engines fail again and again", self.engine.health.last_error or "")

    def record(self) -> WorkerRecord:
        """The worker as it is now."""
        health = self.engine.health
        return WorkerRecord(
            id=self._options.worker_id,
            role=self._plan.role,
            url=self._options.advertise_url,
            state=WorkerState.DRAINING if self._draining else health.state,
            model=self._plan.model,
            model_digest=self._plan.model_digest,
            engine_id=health.engine_id,
            geometry=self._plan.geometry,
            limits=Limits(max_model_len=health.max_model_len, slots=self._plan.slots),
            accelerator=self._plan.accelerator,
            node=self._options.node,
            profile=self._plan.profile,
            profile_version=self._plan.profile_version,
            started_s=self._started_s,
            heartbeat_s=self._clock.wall_s(),
            load=health.load,
            tokenizer_path=str(self._plan.model_folder),
            kv_events_url=health.kv_events_url,
            engine_version=health.version,
            transport=health.transport,
            lease_s=self._plan.lease_s,
        )

    async def run(
        self,
        drain: asyncio.Event,
        stop_now: asyncio.Event,
        leave: asyncio.Event | None = None,
    ) -> None:
        """Serves until ``drain`` is set and the drain is over.

        Args:
            drain: asks for the drain.
            stop_now: ends the drain.
            leave: drained, the worker stays, and registered, until this is set; None to go at
                once.

        Raises:
            NotAuthorized: the registry refuses the cluster token.
        """
        stop_engine = asyncio.Event()
        stop_heart = asyncio.Event()
        engine = asyncio.create_task(self._run_engine(stop_engine), name="engine")
        heart = asyncio.create_task(
            heartbeat_loop(
                self._registrar,
                self._make_record,
                interval_s=HEARTBEAT_S,
                stop=stop_heart,
                wake=self._wake,
            ),
            name="heartbeat",
        )
        ending = asyncio.create_task(self._until_gone(drain, stop_now, leave), name="drain")
        tasks = (engine, heart, ending)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            ending.cancel()
            stop_heart.set()
            stop_engine.set()
            await _whatever_happens(self._close(tasks))

    async def _close(self, tasks: tuple[asyncio.Task[None], ...]) -> None:
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._registrar.close()

    async def _run_engine(self, stop: asyncio.Event) -> None:
        if self._may_start is None or await unless_stopped(self._may_start.wait(), stop):
            await self.engine.run(stop)

    async def _until_gone(
        self, drain: asyncio.Event, stop_now: asyncio.Event, leave: asyncio.Event | None
    ) -> None:
        await self._until_drained(drain, stop_now)
        self.drained.set()
        if leave is not None:
            await leave.wait()

    async def _make_record(self) -> WorkerRecord:
        return self.record()

    async def _until_drained(self, drain: asyncio.Event, stop_now: asyncio.Event) -> None:
        await drain.wait()
        self._draining = True
        self._wake.set()
        if self._nothing_to_drain() or stop_now.is_set():
            return
        log.info("draining, for at most %.0f s", self._plan.drain_limit_s)
        patience = asyncio.create_task(self._until_idle())
        impatience = asyncio.create_task(stop_now.wait())
        try:
            await asyncio.wait(
                {patience, impatience},
                timeout=self._plan.drain_limit_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if not patience.done():
                log.warning("stopping with work in flight: %s", self.engine.health.load)
        finally:
            for task in (patience, impatience):
                task.cancel()
            await asyncio.gather(patience, impatience, return_exceptions=True)

    async def _until_idle(self) -> None:
        settled_s = self._clock.monotonic_s() + _SETTLE_S
        while True:
            if self._nothing_to_drain():
                return
            health = self.engine.health
            ready = health.state is WorkerState.READY
            if ready and health.load_read_s > settled_s and self._plan.drained(health.load):
                return
            await asyncio.sleep(0.1)

    def _nothing_to_drain(self) -> bool:
        """Whether no engine of ours can hold anything: none was up yet, or the last one ended.

        An engine that is silent for some seconds is called warming as well, and may hold blocks
        that somebody is about to pull.
        """
        health = self.engine.health
        if health.state is WorkerState.WARMING:
            return health.max_model_len == 0
        return health.state is not WorkerState.READY


async def _whatever_happens(work: Coroutine[Any, Any, None]) -> None:
    """Does ``work`` to its end; a cancellation that comes meanwhile is raised then."""
    task = asyncio.create_task(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise
