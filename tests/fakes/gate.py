"""A gate in front of a real engine: forwards everything, and lets a test act in between.

It stands where the network between router and engine is: the only place at which a test can be
sure that the first leg is over and the second has not begun.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable
from typing import Any

import aiohttp
from aiohttp import web

Hook = Callable[[dict[str, Any]], None]


class Gate:
    """An HTTP proxy on a free loopback port, in a thread of its own.

    Args:
        target: base URL of the engine.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self.url = ""
        self.seen: list[dict[str, Any]] = []
        self.before_handoff: Hook | None = None
        """Called once, with the body, before a request that pulls KV is forwarded."""
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gate", daemon=True)

    def __enter__(self) -> Gate:
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        async with aiohttp.ClientSession(auto_decompress=False) as self._http:
            app = web.Application(client_max_size=64 * 1024 * 1024)
            app.router.add_route("*", "/{path:.*}", self._forward)
            runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1.0)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            assert site._server is not None
            port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
            self.url = f"http://127.0.0.1:{port}"
            self._started.set()
            await self._stop.wait()
            await runner.cleanup()

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        await self._look(body)
        headers = {
            name: value
            for name, value in request.headers.items()
            if name.lower() in ("authorization", "content-type", "x-request-id")
        }
        try:
            async with self._http.request(
                request.method, self.target + request.path_qs, data=body, headers=headers
            ) as answer:
                reply = web.StreamResponse(status=answer.status)
                reply.headers["Content-Type"] = answer.headers.get("Content-Type", "text/plain")
                await reply.prepare(request)
                async for chunk in answer.content.iter_any():
                    await reply.write(chunk)
                await reply.write_eof()
                return reply
        except aiohttp.ClientError:
            # As the engine behind it: the connection just ends.
            assert request.transport is not None
            request.transport.abort()
            raise

    async def _look(self, body: bytes) -> None:
        with contextlib.suppress(ValueError):
            parsed = json.loads(body)
            if isinstance(parsed, dict):
                self.seen = [*self.seen[-200:], parsed]
                hook = self.before_handoff
                if hook is not None and (parsed.get("kv_transfer_params") or {}).get(
                    "do_remote_prefill"
                ):
                    self.before_handoff = None
                    await asyncio.to_thread(hook, parsed)
