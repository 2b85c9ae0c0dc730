"""``python -m router``: one router, in one process or several."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from starlette.responses import Response

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
from profiles import ServingProfile, resolve_profile, with_overrides
from profiles.sources import open_source as open_profiles
from router import compiled
from router.garbage import calm_collector
from router.parent import ParentServer, check_shared, say_as_is, say_plainly
from router.processes import NotStarted, Parent, Place, take_place
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
            help="Where workers are registered and routers agree: memory:// (this router alone) or "
            "redis://... (also rediss://, redis+sentinel://, redis+cluster://).",
        ),
    ] = "memory://",
    profiles: Annotated[
        str | None,
        typer.Option(
            envvar="BATON_PROFILES",
            help="Where further profiles come from, and which is active: a folder (a mounted "
            "ConfigMap too), configmap:NAMESPACE/NAME (the Kubernetes API), or redis://... "
            "Changes are followed while traffic flows.",
        ),
    ] = None,
    profiles_at_start: Annotated[
        bool,
        typer.Option(
            "--profiles-at-start",
            envvar="BATON_PROFILES_AT_START",
            help="--profiles says only what to begin with where routers have agreed on nothing "
            "yet: it is read once, and proposes nothing later. For what somebody writes after "
            "switches, as `baton controller` does.",
        ),
    ] = False,
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
    workers: Annotated[
        int,
        typer.Option(
            envvar="BATON_ROUTER_WORKERS",
            min=1,
            max=64,
            help="Processes that serve the port together. More than one need --store redis://...; "
            "limits are shared out among them.",
        ),
    ] = 1,
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
        place = take_place(os.environ)
        configure_logging(log_level, log_format, access=access_log)

        def adapt(found: ServingProfile) -> ServingProfile:
            return with_overrides(found, model_source=model, served_name=served_name)

        folder = home.expanduser().resolve() if home else default_home(os.environ)
        settings = _settings(
            folder,
            RouterSettings(
                profile=adapt(resolve_profile(profile)),
                profiles=profiles,
                profiles_at_start=profiles_at_start,
                adapt=adapt,
                token=cluster_token(folder, os.environ),
                admin_token=_admin_token(folder, admin_port, place),
                store_url=store,
                tenants=tenants,
                otlp_endpoint=otlp_endpoint,
                trace_ratio=trace_ratio,
                share=1.0 if place is None else 1.0 / place.of,
            ),
        )
        if workers > 1:
            check_shared(settings, workers)
    except BatonError as error:
        log.error("%s", error.message)
        sys.exit(_BAD_SETTINGS)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        public, admin = (host, port), (admin_host, admin_port)
        if place is not None:
            sys.exit(runner.run(_serve_as_one_of_several(settings, public, place)))
        if workers > 1:
            parent = ParentServer(
                settings, workers, say=say_as_is if log_format == "json" else say_plainly
            )
            sys.exit(runner.run(_serve_with_several(parent, public, admin)))
        sys.exit(runner.run(_serve(settings, public, admin)))


def _admin_token(folder: Path, admin_port: int, place: Place | None) -> str:
    if place is not None:
        # Its admin API is for its parent only, which checks the operators' token.
        return place.token
    return admin_token(folder, os.environ) if admin_port else ""


def _settings(folder: Path, settings: RouterSettings) -> RouterSettings:
    """The settings, after what can be wrong with them was tried.

    Raises:
        SettingsError: they cannot be used; the state would find out too late.
    """
    hide(settings.token)
    if settings.admin_token:
        hide(settings.admin_token)
    open_store(settings.store_url, SystemClock())
    if settings.profiles_at_start and settings.profiles is None:
        raise SettingsError("--profiles-at-start says how --profiles is used; give both")
    if settings.profiles is not None:
        open_profiles(settings.profiles, SystemClock())
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
    with _stop_signals(server.hurry) as stop:
        try:
            await server.start(*public, admin_host=admin[0], admin_port=admin[1])
        except (OSError, BatonError) as error:
            log.error("the router cannot start: %s", error)
            return _NOT_STARTED
        calm_collector()
        _say_what_is_compiled()
        log.info("serving on %s", server.url)
        if server.admin is not None:
            log.info("admin API on %s", server.admin.url)
        await stop.wait()
        drain_s = server.state.profile.spec.limits.drain_s
        log.info("stopping, for at most %g s", drain_s)
        await server.stop(drain_s=drain_s)
    return 0


def _say_what_is_compiled() -> None:
    known = len(compiled.modules())
    log.info("hot modules: %s", f"{known} compiled" if known else "as Python (make compiled)")
    if stale := compiled.stale():
        log.warning(
            "%d compiled modules are not what their sources say; run make compiled, or make "
            "uncompiled",
            len(stale),
        )


async def _serve_as_one_of_several(
    settings: RouterSettings, public: tuple[str, int], place: Place
) -> int:
    parent = Parent(place)

    async def whole(path: str) -> Response:
        reply = await parent.fetch(path)
        return Response(reply.body, reply.status, media_type=reply.content_type)

    server = RouterServer(settings, whole=whole)
    with _stop_signals(server.hurry) as stop:
        try:
            await server.start(*public, reuse_port=True)
            assert server.admin is not None
            calm_collector()
            _say_what_is_compiled()
            await parent.announce(server.admin.url)
        except (OSError, BatonError) as error:
            # What listens already ends with the process.
            log.error("process %d cannot start: %s", place.number, error)
            return _NOT_STARTED
        await stop.wait()
        await server.stop(drain_s=server.state.profile.spec.limits.drain_s)
    return 0


async def _serve_with_several(
    parent: ParentServer, public: tuple[str, int], admin: tuple[str, int]
) -> int:
    with _stop_signals(parent.hurry) as stop:
        try:
            await parent.run(public, admin, stop)
        except (OSError, NotStarted) as error:
            log.error("the router cannot start: %s", error)
            return error.status if isinstance(error, NotStarted) else _NOT_STARTED
    return 0


@contextlib.contextmanager
def _stop_signals(hurry: Callable[[], None]) -> Iterator[asyncio.Event]:
    """An event that the first SIGTERM or SIGINT sets; a second one does not wait for requests."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            hurry()
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
