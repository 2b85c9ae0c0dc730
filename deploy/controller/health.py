"""Probes and metrics of the controller: open, read-only, on a port of their own."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

from aiohttp import web

from deploy.controller.metrics import Metrics


@contextlib.asynccontextmanager
async def served(
    address: tuple[str, int] | None, lives: Callable[[], bool], metrics: Metrics
) -> AsyncIterator[int]:
    """``/livez``, ``/readyz``, ``/healthz``, ``/metrics`` while open; gives the port, 0 for none.

    A standby is ready: it is what a rollout waits for, and it may never be anything else.

    Args:
        address: host and port, 0 for any free one; None for no server.
        lives: whether the loop goes on.
        metrics: shown.

    Raises:
        OSError: the port is taken.
    """
    if address is None:
        yield 0
        return

    async def live(_: web.Request) -> web.Response:
        return web.Response(text="ok") if lives() else web.Response(text="stuck", status=503)

    async def page(_: web.Request) -> web.Response:
        return web.Response(body=metrics.page(), content_type="text/plain", charset="utf-8")

    app = web.Application(client_max_size=1024)
    for path in ("/livez", "/readyz", "/healthz"):
        app.router.add_get(path, live)
    app.router.add_get("/metrics", page)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, *address).start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()
