"""The parent of a router's processes, put together: ``python -m router --workers N``, N above 1.

It listens on the admin port for operators, and on a port of its own on loopback for its processes.
It serves no client.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import sys
from collections.abc import Callable

import aiohttp

from baton.errors import SettingsError
from baton.stopping import unless_stopped
from baton.telemetry import hide
from router.family import Family, build_family_app
from router.processes import Processes, ask, check_port, same_command
from router.settings import RouterSettings
from router.wire import HttpServer, WireLimits

_LOOPBACK = "127.0.0.1"
_LIMITS = WireLimits(connections=256)

Say = Callable[[int, str], None]

log = logging.getLogger("baton.router")


def check_shared(settings: RouterSettings, workers: int) -> None:
    """Finds out whether several processes can share what the settings name.

    Raises:
        SettingsError: the store is one process's own memory, so each would know other workers.
    """
    if settings.store_url.startswith("memory:"):
        raise SettingsError(
            f"--workers {workers} needs --store redis://...: several processes cannot share "
            "memory://, and each would know other workers"
        )


def say_plainly(number: int, line: str) -> None:
    """A process's line of text on our own stderr, with its number."""
    sys.stderr.write(f"[{number}] {line}\n")


def say_as_is(_: int, line: str) -> None:
    """A process's line on our own stderr: JSON stays JSON."""
    sys.stderr.write(f"{line}\n")


class ParentServer:
    """The parent while it runs.

    Args:
        settings: those of the router; its processes read theirs from the same command line.
        count: how many processes.
        say: gets their lines.
    """

    def __init__(self, settings: RouterSettings, count: int, *, say: Say) -> None:
        self._settings = settings
        self._token = secrets.token_urlsafe(32)
        hide(self._token)
        self._http: aiohttp.ClientSession | None = None
        self._processes = Processes(
            count,
            token=self._token,
            argv=same_command(),
            env=os.environ,
            drain_s=settings.profile.spec.limits.drain_s,
            say=say,
            probe=self._probe,
        )

    def hurry(self) -> None:
        """Ends a stop that waits for requests."""
        self._processes.hurry()

    async def run(
        self, public: tuple[str, int], admin: tuple[str, int], stop: asyncio.Event
    ) -> None:
        """Serves until ``stop``, then ends all; leaves no process behind.

        Raises:
            OSError: a port is taken.
            NotStarted: a process did not come up.
        """
        check_port(*public)
        processes = self._processes
        async with contextlib.AsyncExitStack() as undo:
            self._http = await undo.enter_async_context(aiohttp.ClientSession())
            family = Family(self._http, processes, self._token)
            private = _server(family, processes, self._token, whose="family", announcing=True)
            undo.push_async_callback(private.kill)
            await private.start(_LOOPBACK, 0)
            if self._settings.admin_token:
                operators = _server(
                    family, processes, self._settings.admin_token, whose="admin", announcing=False
                )
                undo.push_async_callback(operators.kill)
                await operators.start(*admin)
                log.info("admin API on %s", operators.url)
            undo.push_async_callback(processes.stop)
            await unless_stopped(processes.start(private.url), stop)
            if not stop.is_set():
                log.info("serving on %s:%d with %d processes", *public, len(processes.members))
            await stop.wait()
            log.info("stopping, for at most %g s", self._settings.profile.spec.limits.drain_s)

    async def _probe(self, url: str) -> bool:
        assert self._http is not None
        reply = await ask(self._http, "GET", f"{url}/healthz", self._token)
        return reply is not None and reply.status == 200


def _server(
    family: Family, processes: Processes, token: str, *, whose: str, announcing: bool
) -> HttpServer:
    app = build_family_app(family, processes, token, whose=whose, announcing=announcing)
    return HttpServer({}, app, _LIMITS)


__all__ = ["ParentServer", "check_shared", "say_as_is", "say_plainly"]
