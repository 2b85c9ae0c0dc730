"""``baton controller``: its flags and help. What it does stands in ``controller_run``."""

from __future__ import annotations

from typing import Annotated

import typer

from baton.cli.guard import clear_errors, home_folder, survivable_output
from baton.flags import HomeFlag, LogFormatFlag, LogLevelFlag
from baton.telemetry import configure_logging


def controller(
    admin: Annotated[
        str,
        typer.Option(
            "--admin",
            "--admin-url",
            envvar="BATON_ADMIN_URL",
            help="URL of the routers' admin API.",
        ),
    ] = "http://baton-router-admin:8001",
    namespace: Annotated[
        str | None,
        typer.Option(
            envvar="BATON_NAMESPACE",
            help="Namespace of everything.",
            show_default="the pod's own, or the kubeconfig's",
        ),
    ] = None,
    profiles: Annotated[
        str,
        typer.Option(
            envvar="BATON_CONTROLLER_PROFILES",
            help="ConfigMap of profiles, with the key `active`.",
        ),
    ] = "baton-profiles",
    site: Annotated[
        str,
        typer.Option(
            envvar="BATON_SITE",
            help="What the cluster is like: configmap:NAME (key site.yaml), a built-in site or a "
            "file.",
        ),
    ] = "configmap:baton-site",
    active: Annotated[
        str,
        typer.Option(
            envvar="BATON_CONTROLLER_ACTIVE",
            help="ConfigMap that is written with what serves, for routers that start from nothing.",
        ),
    ] = "baton-active",
    lease_name: Annotated[
        str,
        typer.Option(envvar="BATON_LEASE_NAME", help="Lease that decides which controller acts."),
    ] = "baton-controller",
    lease: Annotated[
        str,
        typer.Option(
            "--lease",
            envvar="BATON_LEASE_TIME",
            help="How long the lease outlives its holder; whole seconds.",
        ),
    ] = "15s",
    identity: Annotated[
        str | None,
        typer.Option(
            envvar="BATON_CONTROLLER_ID",
            help="Of this process among those that want the lease; the pod's name.",
            show_default="the host's name and a random part",
        ),
    ] = None,
    retire: Annotated[
        str,
        typer.Option(
            "--retire",
            envvar="BATON_RETIRE",
            help="How long the pools of the profile before are kept after a switch.",
        ),
    ] = "5m",
    settle: Annotated[
        str,
        typer.Option(
            "--settle",
            envvar="BATON_SETTLE",
            help="How long a drained worker must have been seen free before it goes, and a pool to "
            "be missing before it is made.",
        ),
    ] = "3s",
    min_ready: Annotated[
        float,
        typer.Option(
            envvar="BATON_MIN_READY",
            min=0,
            max=1,
            help="Share of a pool's groups that must be ready before the routers switch.",
        ),
    ] = 1.0,
    poll: Annotated[
        str,
        typer.Option("--poll", envvar="BATON_POLL", help="Between two looks while all is steady."),
    ] = "10s",
    busy_poll: Annotated[
        str,
        typer.Option(
            "--busy-poll",
            envvar="BATON_BUSY_POLL",
            help="Between two looks while something goes on.",
        ),
    ] = "1s",
    health_host: Annotated[
        str, typer.Option(envvar="BATON_HEALTH_HOST", help="Address of probes and metrics.")
    ] = "0.0.0.0",
    health_port: Annotated[
        int,
        typer.Option(
            envvar="BATON_HEALTH_PORT",
            min=0,
            max=65535,
            help="Port of /livez, /readyz and /metrics; 0: none.",
        ),
    ] = 8002,
    once: Annotated[
        bool, typer.Option("--once", help="Look and act once, and end; 3 if another one acts.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be done and why; change nothing.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --dry-run: print JSON, for programs.")
    ] = False,
    home: HomeFlag = None,
    log_level: LogLevelFlag = "info",
    log_format: LogFormatFlag = "text",
) -> None:
    """Brings a cluster's pools to what the active profile says, without a break.

    It makes the pools that a new profile needs, has the routers switch once they are ready, and
    drains and removes the old ones. Several may run; one acts. The routers' admin token comes from
    BATON_ADMIN_TOKEN, BATON_ADMIN_TOKEN_FILE or Baton's folder.

    Examples:

      baton controller --namespace serving --dry-run --admin http://localhost:8001

      baton controller --retire 15m --log-format json
    """
    with clear_errors(), survivable_output():
        from baton.cli.controller_run import Flags, run_controller

        flags = Flags(
            admin=admin,
            namespace=namespace,
            profiles=profiles,
            site=site,
            active=active,
            lease_name=lease_name,
            lease=lease,
            identity=identity,
            retire=retire,
            settle=settle,
            min_ready=min_ready,
            poll=poll,
            busy_poll=busy_poll,
            health=(health_host, health_port) if health_port else None,
            home=home_folder(home),
        )
        configure_logging(log_level, log_format)
        raise typer.Exit(run_controller(flags, once=once, dry_run=dry_run, as_json=as_json))
