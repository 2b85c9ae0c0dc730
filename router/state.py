"""What one router process is made of, put together in one visible place."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass

from baton.clock import Clock, SystemClock
from baton.store import Store, open_store
from profiles import ServingProfile
from router.counting import Counting
from router.dispatch import Dispatcher
from router.ledger import Ledger
from router.metrics import RouterMetrics
from router.pool import WorkerPool
from router.upstream import Upstream

_HOUSEKEEPING_S = 1.0

log = logging.getLogger("baton.router")


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """What a router is told.

    Attributes:
        profile: the active serving profile.
        token: the cluster token.
        store_url: ``memory://`` or a Redis URL.
    """

    profile: ServingProfile
    token: str
    store_url: str = "memory://"


class RouterState:
    """The parts of a running router. Made inside the event loop; ``close`` undoes ``start``."""

    def __init__(self, settings: RouterSettings, *, clock: Clock | None = None) -> None:
        self.settings = settings
        self.profile = settings.profile
        self.clock = clock or SystemClock()
        self.metrics = RouterMetrics()
        self.store: Store = open_store(settings.store_url, self.clock)
        self.pool = WorkerPool(self.store, self.clock, self.metrics)
        self.ledger = Ledger(self.clock, self.metrics)
        self.upstream = Upstream(settings.token, self.profile.spec.deadlines)
        self.counting = Counting(self.upstream, self.pool, self.metrics, self.clock)
        self.dispatcher = Dispatcher(
            profile=self.profile,
            pool=self.pool,
            upstream=self.upstream,
            counting=self.counting,
            ledger=self.ledger,
            metrics=self.metrics,
            clock=self.clock,
            rng=random.Random(),  # noqa: S311 (breaks ties between workers)
        )
        self.in_flight = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Reads the registry once, then keeps it and the ledger up to date."""
        await self.pool.refresh()
        for work, name in (
            (self.pool.keep_fresh(), "pool"),
            (self._housekeeping(), "housekeeping"),
        ):
            self._tasks.add(asyncio.create_task(work, name=name))

    async def close(self) -> None:
        """Stops the tasks and closes connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.upstream.close()
        await self.store.close()

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Counts one request while open."""
        self.in_flight += 1
        self.metrics.in_flight.set(self.in_flight)
        try:
            yield
        finally:
            self.in_flight -= 1
            self.metrics.in_flight.set(self.in_flight)

    async def _housekeeping(self) -> None:
        while True:
            try:
                self.ledger.sweep()
                await self.counting.prepare()
            except Exception:
                # A fault here must not end the loop that frees what the ledger holds.
                log.exception("housekeeping failed")
            await asyncio.sleep(_HOUSEKEEPING_S)
