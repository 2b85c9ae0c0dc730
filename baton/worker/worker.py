"""The life of a worker process: engine up, registered, watched, drained, gone.

A first SIGTERM or SIGINT drains: routers are told at once, requests in flight end, offered
handoffs are pulled or expire, then the engine stops. A second one stops without waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal

from baton.clock import Clock, SystemClock
from baton.engine import Engine
from baton.registrar import HEARTBEAT_S, Registrar, heartbeat_loop, open_registrar
from baton.types import Limits, WorkerRecord, WorkerState
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
    """

    def __init__(
        self,
        options: WorkerOptions,
        plan: WorkerPlan,
        registrar: Registrar,
        *,
        clock: Clock | None = None,
    ) -> None:
        self._options = options
        self._plan = plan
        self._registrar = registrar
        self._clock = clock or SystemClock()
        self._started_s = self._clock.wall_s()
        self._wake = asyncio.Event()
        self._draining = False
        self.engine = Engine(
            f"{plan.role}", plan.make_spec, on_change=self._wake.set, clock=self._clock
        )

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

    async def run(self, drain: asyncio.Event, stop_now: asyncio.Event) -> None:
        """Serves until ``drain`` is set and the drain is over, or ``stop_now`` is set.

        Raises:
            NotAuthorized: the registry refuses the cluster token.
        """
        stop_engine = asyncio.Event()
        stop_heart = asyncio.Event()
        engine = asyncio.create_task(self.engine.run(stop_engine), name="engine")
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
        ending = asyncio.create_task(self._until_drained(drain, stop_now), name="drain")
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
            await asyncio.shield(asyncio.gather(*tasks, return_exceptions=True))
            await self._registrar.close()

    async def _make_record(self) -> WorkerRecord:
        return self.record()

    async def _until_drained(self, drain: asyncio.Event, stop_now: asyncio.Event) -> None:
        await drain.wait()
        self._draining = True
        self._wake.set()
        if self._nothing_to_drain():
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


async def run_worker(options: WorkerOptions, plan: WorkerPlan) -> None:
    """Runs a worker as this process: signals included."""
    drain, stop_now = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        if drain.is_set():
            stop_now.set()
        drain.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    registrar = open_registrar(options.registry, options.token)
    try:
        await Worker(options, plan, registrar).run(drain, stop_now)
    finally:
        with contextlib.suppress(NotImplementedError):
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
