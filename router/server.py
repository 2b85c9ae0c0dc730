"""A router that listens: the public port and the admin port over one state."""

from __future__ import annotations

import contextlib
import logging

from baton.clock import Clock
from router.admin import build_admin_app
from router.app import AskWhole, build_app
from router.endpoint import routes
from router.registry import registry_routes
from router.serving import Serving
from router.state import RouterSettings, RouterState
from router.wire import HttpServer, WireLimits

log = logging.getLogger("baton.router")

_ADMIN_CONNECTIONS = 256


class RouterServer:
    """One router process.

    Args:
        settings: what it is told.
        clock: for durations and leases.
        whole: see ``build_app``; None for a router of one process.
    """

    def __init__(
        self,
        settings: RouterSettings,
        *,
        clock: Clock | None = None,
        whole: AskWhole | None = None,
    ) -> None:
        self.settings = settings
        self.state = RouterState(settings, clock=clock)
        serving = self.state.servings.current
        self.public = HttpServer(
            {**routes(self.state), **registry_routes(self.state)},
            build_app(self.state, whole),
            _public_limits(serving),
        )
        self.state.on_profile.append(self._follow)
        self.admin = (
            HttpServer(
                {},
                build_admin_app(self.state, settings.admin_token),
                WireLimits(connections=_ADMIN_CONNECTIONS, write_s=serving.deadlines.idle_s),
            )
            if settings.admin_token
            else None
        )

    def _follow(self, serving: Serving) -> None:
        self.public.limits = _public_limits(serving)

    @property
    def url(self) -> str:
        """Where clients come in."""
        return self.public.url

    @property
    def port(self) -> int:
        """The public port."""
        return self.public.port

    async def start(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        admin_host: str = "127.0.0.1",
        admin_port: int = 0,
        reuse_port: bool = False,
    ) -> None:
        """Listens, once the registry was read.

        Raises:
            OSError: a port is taken.
        """
        async with contextlib.AsyncExitStack() as undo:
            await self.state.start()
            undo.push_async_callback(self.state.close)
            if self.admin is not None:
                await self.admin.start(admin_host, admin_port)
                undo.push_async_callback(self.admin.kill)
            await self.public.start(host, port, reuse_port=reuse_port)
            undo.pop_all()

    async def stop(self, *, drain_s: float) -> None:
        """Takes no more requests, lets those in flight end within ``drain_s``, and closes."""
        self.state.stopping = True
        await self.public.stop(drain_s=drain_s)
        if self.admin is not None:
            await self.admin.stop(drain_s=0)
        await self.state.close()

    def hurry(self) -> None:
        """Ends a ``stop`` that is waiting for requests."""
        self.public.hurry()

    async def kill(self) -> None:
        """Cuts everything."""
        await self.public.kill()
        if self.admin is not None:
            await self.admin.kill()
        await self.state.close()


def _public_limits(serving: Serving) -> WireLimits:
    """What the public port takes on under a profile."""
    return WireLimits(
        header_bytes=serving.limits.header_bytes,
        connections=serving.limits.connections,
        write_s=serving.deadlines.idle_s,
    )
