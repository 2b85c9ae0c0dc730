"""The controller's loop: look, plan, act, tell; again when something has changed or time is up.

One process acts, the one with the Lease; the others look on. A pass that fails changes nothing that
the next one could not see, so that failing, waiting and being killed are all the same to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from baton.clock import Clock, SystemClock
from baton.errors import BatonError, OurFault
from baton.kube import KubeApi
from deploy.controller import telling
from deploy.controller.act import Actor, Stale
from deploy.controller.actions import Action
from deploy.controller.cluster import POOLS, Cluster, ClusterRefused
from deploy.controller.health import served
from deploy.controller.lease import MARGIN, Elector
from deploy.controller.metrics import Metrics
from deploy.controller.observe import Observer, Seen
from deploy.controller.plan import Plan, plan
from deploy.controller.rendering import Renderer, SiteRenderer
from deploy.controller.routers import ASK_S, RoutersApi, RoutersAway, RoutersRefused
from deploy.controller.settings import ControllerSettings
from deploy.controller.sites import SiteSource
from deploy.controller.status import Board, Happening
from deploy.lws import labels
from profiles.sources.kubernetes import KubernetesSource
from profiles.sources.waiting import Backoff

_WATCH_S = 60.0
_STUCK_S = 120.0
"""Without a beat of the loop, after which a restart may help: far above what a pass can take."""
_SETTLE_S = 0.2
"""After something has changed, for what changes with it."""

log = logging.getLogger("baton.controller")

Make = Callable[[str, str], Renderer]


class Controller:
    """One controller process.

    Args:
        settings: what it is told.
        api: the cluster; closed by whoever made it.
        clock: of the machine.
        make: makes a renderer of a site's text.
    """

    def __init__(
        self,
        settings: ControllerSettings,
        api: KubeApi,
        *,
        clock: Clock | None = None,
        make: Make = SiteRenderer,
    ) -> None:
        self.metrics = Metrics()
        self._settings = settings
        self._clock = clock or SystemClock()
        cluster = Cluster(api, settings.namespace)
        self._cluster = cluster
        # What is asked for in time must not take effect after another controller has the Lease.
        act_s = min(ASK_S, settings.lease_s / MARGIN)
        self._routers = RoutersApi(settings.admin_url, settings.admin_token, act_s=act_s)
        self._source = KubernetesSource(api, settings.namespace, settings.profiles, self._clock)
        self._observer = Observer(
            cluster,
            self._source,
            SiteSource(settings.site, cluster, make),
            self._routers,
            settings,
            self._clock,
        )
        self._elector = Elector(
            cluster, settings.lease, settings.identity, settings.lease_s, self._clock
        )
        self._actor = Actor(cluster, self._routers, settings, self._elector.is_held)
        self._board = Board(cluster, settings, self._clock)
        self._backoff = Backoff(random.Random(), least_s=0.5, most_s=15.0)  # noqa: S311 - pauses
        self._wake = asyncio.Event()
        self._beat_s = self._clock.monotonic_s()
        self._said: tuple[str, ...] = ()

    async def preview(self) -> tuple[Seen, Plan]:
        """What would be done now; changes nothing, and needs no Lease.

        Raises:
            SourceUnavailable: the Kubernetes API does not say.
        """
        return await self._look(absent_s=0.0)

    async def once(self) -> Plan | None:
        """One pass; None where another controller has the Lease.

        Raises:
            SourceUnavailable: the Kubernetes API does not say.
        """
        if not await self._elector.strive():
            return None
        try:
            return await self._pass(absent_s=0.0)
        finally:
            await self._elector.release()

    async def run(self, stop: asyncio.Event) -> None:
        """Works until ``stop`` is set, and then gives the Lease back.

        Raises:
            OSError: the port of the probes is taken.
        """
        async with contextlib.AsyncExitStack() as stack:
            port = await stack.enter_async_context(
                served(self._settings.health, self._lives, self.metrics)
            )
            if port:
                log.info("probes and metrics on port %d", port)
            stack.push_async_callback(self.close)
            stack.push_async_callback(self._elector.release)
            for name, work in (
                ("lease", self._strive),
                ("watch-pools", self._watch_pools),
                ("watch-profiles", self._watch_profiles),
                ("passes", self._work),
            ):
                await stack.enter_async_context(_going(work(), f"controller-{name}"))
            await stop.wait()
            log.info("stopping")

    async def close(self) -> None:
        """Closes what it opened itself; may be called again."""
        await self._routers.close()

    def _lives(self) -> bool:
        return self._clock.monotonic_s() - self._beat_s < _STUCK_S

    # --- the loop ---

    async def _work(self) -> None:
        while True:
            self._beat_s = self._clock.monotonic_s()
            pause_s = self._settings.busy_poll_s
            if self._elector.is_held():
                pause_s = await self._pass_or_pause()
            else:
                self.metrics.note_pass("standby", 0.0)
            await self._wait(pause_s)

    async def _pass_or_pause(self) -> float:
        """A pass, and the pause until the next one, in seconds."""
        began_s = self._clock.monotonic_s()
        result, pause_s = "failed", 0.0
        try:
            made = await self._pass(self._settings.rules.absent_s)
        except OurFault:
            raise
        except BatonError as error:
            log.warning("nothing is done: %s", error.message)
        except Exception:
            # An answer of a shape that nobody thought of must not end the controller.
            log.exception("nothing is done")
        else:
            result = "done"
            settings = self._settings
            pause_s = settings.poll_s if made.is_steady else settings.busy_poll_s
            self._backoff.reset()
        self.metrics.note_pass(result, self._clock.monotonic_s() - began_s)
        return pause_s or self._backoff.next_s()

    async def _look(self, absent_s: float) -> tuple[Seen, Plan]:
        seen = await self._observer.look()
        return seen, plan(seen.picture, replace(self._settings.rules, absent_s=absent_s))

    async def _pass(self, absent_s: float) -> Plan:
        seen, made = await self._look(absent_s)
        self._observer.note_waits(wait.key for wait in made.waits)
        self._board.uid = seen.profiles_uid
        self._say(made)
        happenings = [*telling.of_plan(seen.picture, made)]
        for action in made.actions:
            # However many there are, the loop goes on.
            self._beat_s = self._clock.monotonic_s()
            try:
                happenings += await self._do(action, seen)
            except RoutersAway as error:
                # Each further question would wait as long for nothing.
                log.warning("%s %s: %s", action.kind, action.target, error.message)
                self.metrics.note_action(action.kind, "failed")
                break
        self.metrics.show(seen.picture, made)
        if self._elector.is_held():
            await self._board.tell(seen.picture, made, happenings, self._elector.identity)
        return made

    async def _do(self, action: Action, seen: Seen) -> list[Happening]:
        """One action; what fails is planned anew, and holds nothing else up.

        Raises:
            RoutersAway: they do not answer.
        """
        try:
            done = await self._actor.do(action, seen)
        except (Stale, RoutersRefused, ClusterRefused) as error:
            if isinstance(error, ClusterRefused) and error.http_status not in (404, 409):
                return self._failed(action, error)
            log.info("%s %s: not now: %s", action.kind, action.target, error.message)
            self.metrics.note_action(action.kind, "stale")
            return []
        except RoutersAway:
            raise
        except BatonError as error:
            return self._failed(action, error)
        log.info("%s %s: %s", done.kind, done.target, done.reason)
        self.metrics.note_action(done.kind, "done")
        told = telling.of_action(done)
        return [] if told is None else [told]

    def _failed(self, action: Action, error: BatonError) -> list[Happening]:
        log.warning("%s %s: %s", action.kind, action.target, error.message)
        self.metrics.note_action(action.kind, "failed")
        return [telling.of_failure(action, error.message)]

    def _say(self, made: Plan) -> None:
        """What is waited for, where that has changed."""
        said = tuple(wait.key for wait in made.waits)
        if said != self._said:
            self._said = said
            for wait in made.waits:
                log.info("%s: waiting: %s", made.phase, wait.sentence)

    # --- beside the loop ---

    async def _wait(self, pause_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._wake.wait()
                await asyncio.sleep(_SETTLE_S)
        self._wake.clear()

    async def _strive(self) -> None:
        while True:
            held = self._elector.is_held()
            now = await self._elector.strive()
            self.metrics.leads.set(now)
            if now and not held:
                self._wake.set()
            await asyncio.sleep(self._elector.renew_s)

    async def _watch_profiles(self) -> None:
        async with aclosing(self._source.changes()) as changes:
            async for _ in changes:
                self._wake.set()

    async def _watch_pools(self) -> None:
        """Wakes the loop when a pool changes. What it misses, the next look sees."""
        path, query = self._cluster.path(POOLS), [("labelSelector", labels.POOL)]
        backoff = Backoff(random.Random(), least_s=0.5, most_s=15.0)  # noqa: S311 - pauses
        while True:
            try:
                events = self._cluster.api.watch(path, query, watch_s=_WATCH_S)
                async with aclosing(events):
                    async for kind, _ in events:
                        if kind != "ERROR":
                            self._wake.set()
                            backoff.reset()
            except BatonError as error:
                log.debug("pools are not watched: %s", error.message)
            await asyncio.sleep(backoff.next_s())


@contextlib.asynccontextmanager
async def _going(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[None]:
    """A task while open; one that ends by itself takes the process with it."""
    owner = asyncio.current_task()
    assert owner is not None

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            log.error("%s broke", name, exc_info=task.exception())
            owner.cancel()

    task = asyncio.create_task(work, name=name)
    task.add_done_callback(ended)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
