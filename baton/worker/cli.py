"""The command line of a worker process, the same for ``python -m prefill`` and ``-m decode``."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Annotated

import typer

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
from baton.settings import (
    KV_EVENTS_PORT,
    SIDE_CHANNEL_PORT,
    WORKER_PORT,
    default_home,
    node_name,
)
from baton.telemetry import configure_logging
from baton.types import WorkerId
from baton.worker.group import GROUP_PORT, HEALTH_PORT, group_place
from baton.worker.options import WorkerOptions, WorkerPlan
from baton.worker.run import run_worker

MakePlan = Callable[[WorkerOptions], WorkerPlan]

log = logging.getLogger("baton.worker")


def end_on_signals() -> None:
    """Has SIGTERM and SIGINT end the process at once until ``Stops`` takes them over: while it
    makes its plan, which may hash or fetch a model for minutes, there is nothing to drain. Said,
    because a container's first process ignores a signal that it has no handler for.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    log.warning("leaving: %s before the worker started", signal.Signals(number).name)
    # Not by an exception: threads that fetch a model would be waited for.
    os._exit(128 + number)


def worker_app(name: str, help_text: str, make_plan: MakePlan) -> typer.Typer:
    """The Typer application of a role.

    Args:
        name: the role, used for the default worker id.
        help_text: first paragraph of ``--help``.
        make_plan: called with the options; its BatonErrors become one clear line and status 2.
    """
    app = typer.Typer(add_completion=False)

    @app.command(help=help_text)
    def main(
        profile: ProfileFlag = "disaggregated",
        model: ModelFlag = None,
        served_name: ServedNameFlag = None,
        host: HostFlag = "127.0.0.1",
        port: PortFlag = WORKER_PORT,
        side_channel_port: Annotated[
            int,
            typer.Option(
                envvar="BATON_SIDE_CHANNEL_PORT", min=1, max=65535, help="NIXL handshake port."
            ),
        ] = SIDE_CHANNEL_PORT,
        kv_events_port: Annotated[
            int,
            typer.Option(
                envvar="BATON_KV_EVENTS_PORT",
                min=1,
                max=65534,
                help="KV events, where the profile asks for them; the port above is used too. Not "
                "used on loopback.",
            ),
        ] = KV_EVENTS_PORT,
        advertise_url: Annotated[
            str | None,
            typer.Option(
                envvar="BATON_ADVERTISE_URL",
                help="Where routers reach the engine; default http://HOST:PORT.",
            ),
        ] = None,
        registry: Annotated[
            str,
            typer.Option(
                envvar="BATON_REGISTRY",
                help="Where to register: a router (http://...) or Redis (redis://...).",
            ),
        ] = "http://127.0.0.1:8000",
        worker_id: Annotated[
            str | None,
            typer.Option(envvar="BATON_WORKER_ID", help="Id; default ROLE-NODE-PORT."),
        ] = None,
        cpu_threads: Annotated[
            int,
            typer.Option(
                envvar="BATON_CPU_THREADS", min=1, help="Compute threads of a CPU engine."
            ),
        ] = 1,
        health_port: Annotated[
            int,
            typer.Option(
                envvar="BATON_HEALTH_PORT",
                min=0,
                max=65535,
                help="Where the worker itself answers probes (/livez, /readyz) and POST /drain; 0 "
                f"for nowhere, and for {HEALTH_PORT} in a group.",
            ),
        ] = 0,
        leader_health_port: Annotated[
            int,
            typer.Option(
                envvar="BATON_LEADER_HEALTH_PORT",
                min=0,
                max=65535,
                help="In a group, the leader's health port; 0 for the same as this one's.",
            ),
        ] = 0,
        group_port: Annotated[
            int,
            typer.Option(
                envvar="BATON_GROUP_PORT",
                min=1,
                max=65535,
                help="In a group, where the ranks meet, on the leader's node.",
            ),
        ] = GROUP_PORT,
        home: HomeFlag = None,
        log_level: LogLevelFlag = "info",
    ) -> None:
        end_on_signals()
        die_with_parent(signal.SIGTERM)
        try:
            configure_logging(log_level)
            folder = home.expanduser().resolve() if home else default_home(os.environ)
            node = node_name(os.environ)
            group = group_place(
                os.environ,
                leader_health_port=leader_health_port or health_port or HEALTH_PORT,
                rendezvous_port=group_port,
            )
            options = WorkerOptions(
                profile=profile,
                model=model,
                served_name=served_name,
                host=host,
                port=port,
                advertise_url=advertise_url or f"http://{host}:{port}",
                side_channel_port=side_channel_port,
                registry=registry,
                token=cluster_token(folder, os.environ),
                home=folder,
                worker_id=WorkerId(worker_id or f"{name}-{node}-{port}"),
                node=node,
                cpu_threads=cpu_threads,
                kv_events_port=kv_events_port,
                health_port=health_port or (HEALTH_PORT if group is not None else 0),
                group=group,
            )
            plan = make_plan(options)
            status = asyncio.run(run_worker(options, plan))
        except BatonError as error:
            log.error("%s", error.message)
            status = 2
        sys.exit(status)

    return app
