"""The worker's own small server: probes, drain, and a group's beats.

The engine has a server too, but what a probe has to know, the supervisor knows: whether the engine
has generated, and whether all of a group is there. Probes are open, and say no more than that;
whatever changes something takes the cluster token.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType

import msgspec
from aiohttp import web

from baton.errors import SettingsError
from baton.worker.members import Answer, Beat

LIVE_PATH = "/livez"
READY_PATH = "/readyz"
DRAIN_PATH = "/drain"
BEAT_PATH = "/group/beat"

_MAX_BODY_BYTES = 16 * 1024
_CLOSE_S = 1.0
"""For requests in flight when the server ends; a drain's answer is sent by then."""

log = logging.getLogger("baton.worker.health")


@dataclass(frozen=True, slots=True)
class Vitals:
    """What the server answers from.

    Attributes:
        dead: why the process should be ended, or empty.
        unready: why it cannot serve, or empty.
        drain: starts a drain and returns when it is over.
        hear: takes a follower's beat in; returns the answer, or why it is refused. None where
            nobody follows.
    """

    dead: Callable[[], str]
    unready: Callable[[], str]
    drain: Callable[[], Awaitable[None]]
    hear: Callable[[Beat], Answer | str] | None = None


class HealthServer:
    """Serves while the context is open. With port 0 it is no server at all.

    Args:
        host: address to listen on.
        port: TCP port.
        token: the cluster token.
        vitals: what to answer.
    """

    def __init__(self, host: str, port: int, token: str, vitals: Vitals) -> None:
        self._host = host
        self._port = port
        self._expected = f"Bearer {token}".encode()
        self._vitals = vitals
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> None:
        """Listens.

        Raises:
            SettingsError: the port is taken, or the address is none of this machine's.
        """
        if self._port == 0:
            return
        app = web.Application(client_max_size=_MAX_BODY_BYTES)
        app.router.add_get(LIVE_PATH, self._live)
        app.router.add_get(READY_PATH, self._ready)
        app.router.add_post(DRAIN_PATH, self._drain)
        if self._vitals.hear is not None:
            app.router.add_post(BEAT_PATH, self._beat)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=_CLOSE_S)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port).start()
        except OSError as error:
            await self._runner.cleanup()
            raise SettingsError(
                f"the health server cannot listen on {self._host}:{self._port} "
                f"({error.strerror}); choose another port with --health-port"
            ) from error
        log.info("health on http://%s:%d", self._host, self._port)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stops listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _live(self, request: web.Request) -> web.Response:
        return _probe("alive", self._vitals.dead())

    async def _ready(self, request: web.Request) -> web.Response:
        return _probe("ready", self._vitals.unready())

    async def _drain(self, request: web.Request) -> web.Response:
        if not self._may(request):
            return _refused()
        await self._vitals.drain()
        return web.json_response({"drained": True})

    async def _beat(self, request: web.Request) -> web.Response:
        if not self._may(request):
            return _refused()
        assert self._vitals.hear is not None
        try:
            beat = msgspec.json.decode(await request.read(), type=Beat)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            return web.json_response({"error": f"not a beat: {error}"}, status=400)
        answer = self._vitals.hear(beat)
        if isinstance(answer, str):
            return web.json_response({"error": answer}, status=409)
        return web.Response(body=msgspec.json.encode(answer), content_type="application/json")

    def _may(self, request: web.Request) -> bool:
        given = request.headers.get("Authorization", "").encode("utf-8", "replace")
        return hmac.compare_digest(given, self._expected)


def _probe(name: str, problem: str) -> web.Response:
    if problem:
        return web.json_response({name: False, "reason": problem}, status=503)
    return web.json_response({name: True})


def _refused() -> web.Response:
    return web.json_response(
        {"error": "the cluster token is missing or wrong"},
        status=401,
        headers={"WWW-Authenticate": "Bearer"},
    )
