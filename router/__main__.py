"""``python -m router``: one router, in one process or several."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from baton.clock import SystemClock
from baton.errors import BatonError, SettingsError
from baton.flags import (
    HomeFlag,
    HostFlag,
    LogFormatFlag,
    LogLevelFlag,
    ModelFlag,
    PortFlag,
    ProfileFlag,
    ServedNameFlag,
)
from baton.process import die_with_parent
from baton.secrets import admin_token, cluster_token
from baton.settings import ADMIN_PORT, ROUTER_PORT, default_home
from baton.store import open_store
from baton.telemetry import configure_logging, hide
from profiles import resolve_profile, with_overrides
from router.server import RouterServer
from router.settings import RouterSettings
from router.tenants import open_source

_BAD_SETTINGS = 2
_NOT_STARTED = 3

app = typer.Typer(add_completion=False)
log = logging.getLogger("baton.router")


@app.command()
def main(
    profile: ProfileFlag = "disaggregated",
    model: ModelFlag = None,
    served_name: ServedNameFlag = None,
    host: HostFlag = "127.0.0.1",
    port: PortFlag = ROUTER_PORT,
    admin_host: Annotated[
        str,
        typer.Option(envvar="BATON_ADMIN_HOST", help="Address of the admin API."),
    ] = "127.0.0.1",
    admin_port: Annotated[
        int,
        typer.Option(
            envvar="BATON_ADMIN_PORT", min=0, max=65535, help="Port of the admin API; 0: none."
        ),
    ] = ADMIN_PORT,
    store: Annotated[
        str,
        typer.Option(
            envvar="BATON_STORE",
            help="Where workers are registered: memory:// (this router alone) or redis://...",
        ),
    ] = "memory://",
    tenants: Annotated[
        str | None,
        typer.Option(
            envvar="BATON_TENANTS",
            help="Who may ask: a tenants file, or redis://... (see `baton key`). Without it the "
            "router is open to everybody who reaches it.",
        ),
    ] = None,
    otlp_endpoint: Annotated[
        str | None,
        typer.Option(
            envvar="OTEL_EXPORTER_OTLP_ENDPOINT",
            help="Where traces go, as OTLP over HTTP, such as http://collector:4318. Without it "
            "there are none; trace contexts of clients are passed on all the same.",
        ),
    ] = None,
    trace_ratio: Annotated[
        float,
        typer.Option(
            envvar="BATON_TRACE_RATIO",
            min=0,
            max=1,
            help="Share of requests that are traced where the client does not say.",
        ),
    ] = 0.01,
    access_log: Annotated[
        bool,
        typer.Option(
            "--access-log",
            envvar="BATON_ACCESS_LOG",
            help="One log line per request, at the price of a small request.",
        ),
    ] = False,
    home: HomeFlag = None,
    log_level: LogLevelFlag = "info",
    log_format: LogFormatFlag = "text",
) -> None:
    """Starts one router: the OpenAI endpoint in front of prefill and decode workers."""
    die_with_parent(signal.SIGTERM)
    try:
        configure_logging(log_level, log_format, access=access_log)
        folder = home.expanduser().resolve() if home else default_home(os.environ)
        settings = _settings(
            folder,
            RouterSettings(
                profile=with_overrides(
                    resolve_profile(profile), model_source=model, served_name=served_name
                ),
                token=cluster_token(folder, os.environ),
                admin_token=admin_token(folder, os.environ) if admin_port else "",
                store_url=store,
                tenants=tenants,
                otlp_endpoint=otlp_endpoint,
                trace_ratio=trace_ratio,
            ),
        )
    except BatonError as error:
        log.error("%s", error.message)
        sys.exit(_BAD_SETTINGS)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(runner.run(_serve(settings, (host, port), (admin_host, admin_port))))


def _settings(folder: Path, settings: RouterSettings) -> RouterSettings:
    """The settings, after what can be wrong with them was tried.

    Raises:
        SettingsError: they cannot be used; the state would find out too late.
    """
    hide(settings.token)
    if settings.admin_token:
        hide(settings.admin_token)
    open_store(settings.store_url, SystemClock())
    if settings.tenants is not None:
        open_source(settings.tenants, SystemClock())
    if settings.admin_token and settings.admin_token == settings.token:
        raise SettingsError(
            "the admin token is the cluster token: who serves could operate. Set another "
            "BATON_ADMIN_TOKEN"
        )
    return settings


async def _serve(settings: RouterSettings, public: tuple[str, int], admin: tuple[str, int]) -> int:
    server = RouterServer(settings)
    with _stop_signals(server) as stop:
        try:
            await server.start(*public, admin_host=admin[0], admin_port=admin[1])
        except (OSError, BatonError) as error:
            log.error("the router cannot start: %s", error)
            return _NOT_STARTED
        log.info("serving on %s", server.url)
        if server.admin is not None:
            log.info("admin API on %s", server.admin.url)
        await stop.wait()
        log.info("stopping, for at most %g s", settings.profile.spec.limits.drain_s)
        await server.stop(drain_s=settings.profile.spec.limits.drain_s)
    return 0


@contextlib.contextmanager
def _stop_signals(server: RouterServer) -> Iterator[asyncio.Event]:
    """An event that the first SIGTERM or SIGINT sets; a second one does not wait for requests."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            server.hurry()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    try:
        yield stop
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


if __name__ == "__main__":
    app()
