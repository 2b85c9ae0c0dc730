"""``python -m router``: one router process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator
from typing import Annotated

import typer
import uvicorn

from baton.clock import SystemClock
from baton.errors import BatonError
from baton.flags import (
    HomeFlag,
    HostFlag,
    LogLevelFlag,
    ModelFlag,
    PortFlag,
    ProfileFlag,
    ServedNameFlag,
)
from baton.process import die_with_parent
from baton.secrets import cluster_token
from baton.settings import ROUTER_PORT, default_home
from baton.store import open_store
from baton.telemetry import configure_logging
from profiles import resolve_profile, with_overrides
from router.app import build_app
from router.state import RouterSettings

app = typer.Typer(add_completion=False)


class _Server(uvicorn.Server):
    """uvicorn's server; a requested stop is a success, and a second signal does not wait."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn's own raises the signal again after an orderly end, which reads as a crash.
        loop = asyncio.get_running_loop()

        def on_signal() -> None:
            self.force_exit = self.should_exit
            self.should_exit = True

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)


@app.command()
def main(
    profile: ProfileFlag = "disaggregated",
    model: ModelFlag = None,
    served_name: ServedNameFlag = None,
    host: HostFlag = "127.0.0.1",
    port: PortFlag = ROUTER_PORT,
    store: Annotated[
        str,
        typer.Option(
            envvar="BATON_STORE",
            help="Where workers are registered: memory:// (this router alone) or redis://...",
        ),
    ] = "memory://",
    home: HomeFlag = None,
    log_level: LogLevelFlag = "info",
) -> None:
    """Starts one router: the OpenAI endpoint in front of prefill and decode workers."""
    die_with_parent(signal.SIGTERM)
    try:
        configure_logging(log_level)
        folder = home.expanduser().resolve() if home else default_home(os.environ)
        active = with_overrides(
            resolve_profile(profile), model_source=model, served_name=served_name
        )
        # Checks the URL before the server starts; the state opens its own.
        open_store(store, SystemClock())
        settings = RouterSettings(active, cluster_token(folder, os.environ), store)
    except BatonError as error:
        logging.getLogger("baton.router").error("%s", error.message)
        sys.exit(2)
    server = _Server(
        uvicorn.Config(
            build_app(settings),
            host=host,
            port=port,
            loop="uvloop",
            http="httptools",
            log_config=None,
            access_log=False,
            server_header=False,
            # A stream may last as long as a request may; then it is cut.
            timeout_graceful_shutdown=int(active.spec.limits.drain_s),
            timeout_keep_alive=75,
        )
    )
    server.run()
    if not server.started:
        sys.exit(3)


if __name__ == "__main__":
    app()
