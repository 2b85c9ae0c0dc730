"""The worker's own small server: probes, drain, and a group's beats.

The engine has a server too, but what a probe has to know, the supervisor knows: whether the engine
has generated, and whether all of a group is there. Probes are open, and say no more than that;
whatever changes something takes the cluster token, and so do details. Connections that say nothing
are closed, and are the first to go when there are many: a probe always gets its answer.
"""

from __future__ import annotations

import asyncio
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
_IDLE_S = 5.0
"""Without a whole request's head for so long, a connection is closed. Beats come each second."""
_MOST_CONNECTIONS = 128
"""Two for each follower of the largest group, far from a process's usual 1024 descriptors."""

log = logging.getLogger("baton.worker.health")


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a worker.

    Attributes:
        reason: in fixed words, for everybody.
        detail: what happened, which may hold an engine's output: for callers with the token only.
    """

    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Vitals:
    """What the server answers from.

    Attributes:
        dead: why the process should be ended, or None.
        unready: why it cannot serve, or None.
        drain: starts a drain and returns when it is over; why it came to nothing, or None.
        hear: takes a follower's beat in; returns the answer, or why it is refused. None where
            nobody follows.
    """

    dead: Callable[[], Problem | None]
    unready: Callable[[], Problem | None]
    drain: Callable[[], Awaitable[Problem | None]]
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
        self._listener: asyncio.Server | None = None
        self._spoke: set[asyncio.BaseProtocol] = set()

    async def __aenter__(self) -> None:
        """Listens.

        Raises:
            SettingsError: the port is taken, or the address is none of this machine's.
        """
        if self._port == 0:
            return
        app = web.Application(client_max_size=_MAX_BODY_BYTES)
        app.on_response_prepare.append(self._let_go)
        app.router.add_get(LIVE_PATH, self._live)
        app.router.add_get(READY_PATH, self._ready)
        app.router.add_post(DRAIN_PATH, self._drain)
        if self._vitals.hear is not None:
            app.router.add_post(BEAT_PATH, self._beat)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            shutdown_timeout=_CLOSE_S,
            # Counts from the connection's beginning as well; the other from an answer's end.
            keepalive_timeout=_IDLE_S,
            lingering_time=_CLOSE_S,
        )
        await self._runner.setup()
        try:
            self._listener = await asyncio.get_running_loop().create_server(
                self._admit, self._host, self._port
            )
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
        if self._listener is not None:
            self._listener.close()
        if self._runner is not None:
            await self._runner.cleanup()

    def _admit(self) -> asyncio.BaseProtocol:
        """The protocol of a new connection."""
        assert self._runner is not None
        server = self._runner.server
        assert server is not None
        there = server.connections
        self._spoke.intersection_update(there)
        if len(there) >= _MOST_CONNECTIONS:
            mute = next((each for each in there if each not in self._spoke), None)
            if mute is None:
                return _Closed()
            mute.force_close()
        return server()

    async def _let_go(self, request: web.Request, response: web.StreamResponse) -> None:
        """Keeps the connections of those only that have the token."""
        self._spoke.add(request.protocol)
        if not self._may(request):
            response.force_close()

    async def _live(self, request: web.Request) -> web.Response:
        return self._probe("alive", self._vitals.dead(), request)

    async def _ready(self, request: web.Request) -> web.Response:
        return self._probe("ready", self._vitals.unready(), request)

    def _probe(self, name: str, problem: Problem | None, request: web.Request) -> web.Response:
        if problem is None:
            return web.json_response({name: True})
        said: dict[str, object] = {name: False, "reason": problem.reason}
        if problem.detail and self._may(request):
            said["detail"] = problem.detail
        return web.json_response(said, status=503)

    async def _drain(self, request: web.Request) -> web.Response:
        if not self._may(request):
            return _refused()
        self._spoke.add(request.protocol)
        lost = await self._vitals.drain()
        if lost is not None:
            return web.json_response({"drained": False, "reason": lost.reason}, status=503)
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


class _Closed(asyncio.Protocol):
    """For a connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ends it."""
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


def _refused() -> web.Response:
    return web.json_response(
        {"error": "the cluster token is missing or wrong"},
        status=401,
        headers={"WWW-Authenticate": "Bearer"},
    )
