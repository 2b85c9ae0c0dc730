"""An ASGI application on a free loopback port, in the running event loop.

It exists so that fake engines and the router under test are reached over real HTTP, and can be
killed as processes are: connections reset, the port closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn

_START_S = 10.0


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.exiting = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # Signals belong to pytest.
        yield

    async def main_loop(self) -> None:
        # The original looks every 0.1 s whether it is to stop; a test run has hundreds of servers.
        await self.exiting.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if not self.force_exit:
            await super().shutdown(sockets)
            return
        # The connections are gone already; what is left to do is to hear of it.
        for server in self.servers:
            server.close()
        for listener in sockets or ():
            listener.close()
        await asyncio.gather(*self.server_state.tasks, return_exceptions=True)
        await self.lifespan.shutdown()


class LoopServer:
    """One server; can be started again, on the same port, after it was stopped.

    Args:
        app: the ASGI application.
        lifespan: whether the application has start-up and shut-down of its own.
    """

    def __init__(self, app: Any, *, lifespan: bool = False) -> None:
        self._app = app
        self._lifespan = lifespan
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """``http://127.0.0.1:PORT``; known from the first start on."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listens, and waits until requests are answered."""
        # With the protocol named, or asyncio leaves Nagle's algorithm on: 40 ms for each answer.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        self._server = _Server(
            uvicorn.Config(
                self._app,
                http="httptools",
                lifespan="on" if self._lifespan else "off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                timeout_keep_alive=30,
                timeout_graceful_shutdown=2,
            )
        )
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]), name="server")
        async with asyncio.timeout(_START_S):
            while not self._server.started:
                assert not self._task.done(), "the server did not start"
                await asyncio.sleep(0.002)

    async def stop(self) -> None:
        """Ends gracefully: running requests have two seconds."""
        if self._server is not None and self._task is not None:
            self._server.should_exit = True
            self._server.exiting.set()
            await self._task
            self._server = self._task = None

    async def kill(self) -> None:
        """Ends as a killed process does: every connection is reset, the port refuses."""
        if self._server is not None:
            for protocol in list(self._server.server_state.connections):
                self._abort(protocol)
            self._server.force_exit = True
            await self.stop()

    def cut(self, scope: Any) -> None:
        """Resets the connection that a request came over, given its ASGI scope."""
        assert self._server is not None
        for protocol in list(self._server.server_state.connections):
            if getattr(protocol, "scope", None) is scope:
                self._abort(protocol)

    @staticmethod
    def _abort(protocol: Any) -> None:
        if protocol.transport is not None:
            protocol.transport.abort()
