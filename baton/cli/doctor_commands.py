"""The commands of ``baton doctor`` and their help. What they do stands in ``doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from baton.cli.guard import clear_errors, home_folder, survivable_output

_Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
_Only = Annotated[
    list[str] | None, typer.Option("--only", help="Run this check and no other; may be repeated.")
]
_Skip = Annotated[
    list[str] | None, typer.Option("--skip", help="Do not run this check; may be repeated.")
]
_Verbose = Annotated[
    bool, typer.Option("-v", "--verbose", help="Show what each check looks at, and its trouble.")
]
_Profile = Annotated[
    str | None,
    typer.Option(
        "--profile",
        envvar="BATON_PROFILE",
        help="Serving profile that is to run: a built-in name or a file.",
        show_default="none; what every profile needs is checked",
    ),
]
_Home = Annotated[
    Path | None,
    typer.Option(
        envvar="BATON_HOME",
        help="Baton's folder, with the cluster token.",
        show_default="~/.local/state/baton",
    ),
]

doctor_app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Checks this machine or a cluster, and says what to do.\n\n"
    "Without a command it checks this machine. Levels: ok; note: worth knowing, nothing is wrong; "
    "warning: works, and may disappoint; problem: something will not work. Ends with status 1 if "
    "there is a problem, 2 if it was asked wrongly, else 0. Nothing is changed.",
)


@doctor_app.callback(invoke_without_command=True)
def doctor(
    context: typer.Context,
    profile: _Profile = None,
    only: _Only = None,
    skip: _Skip = None,
    home: _Home = None,
    verbose: _Verbose = False,
    as_json: _Json = False,
) -> None:
    """Checks this machine, where no command says otherwise."""
    if context.invoked_subcommand is None:
        _machine(profile, None, only, skip, home, verbose=verbose, as_json=as_json)
    elif only or skip or verbose or as_json:
        raise typer.BadParameter(f"options belong after {context.invoked_subcommand!r}")


@doctor_app.command(short_help="Check this machine.")
def machine(
    profile: _Profile = None,
    peer: Annotated[
        str | None,
        typer.Option(
            help="HOST:PORT of a `baton doctor serve` on another machine, to measure the way "
            "between the two."
        ),
    ] = None,
    only: _Only = None,
    skip: _Skip = None,
    home: _Home = None,
    verbose: _Verbose = False,
    as_json: _Json = False,
) -> None:
    """Checks this machine: packages, GPUs, memory and limits, RDMA, UCX, NIXL, clock, ports.

    Two processes hand 64 MiB to each other over NIXL, with the transports that Baton sets, for some
    seconds. On a node of a cluster run it inside a worker's pod: that is what engines see.

    Examples:

      baton doctor machine

      baton doctor machine --profile disaggregated --peer 10.0.0.7:5690
    """
    _machine(profile, peer, only, skip, home, verbose=verbose, as_json=as_json)


def _machine(
    profile: str | None,
    peer: str | None,
    only: list[str] | None,
    skip: list[str] | None,
    home: Path | None,
    *,
    verbose: bool,
    as_json: bool,
) -> None:
    with clear_errors(), survivable_output():
        from baton.cli.doctor import Wanted, run_machine

        wanted = Wanted(tuple(only or ()), tuple(skip or ()), verbose, as_json)
        raise typer.Exit(run_machine(wanted, profile, peer, home_folder(home)))


@doctor_app.command(short_help="Check a cluster.")
def cluster(
    namespace: Annotated[
        str | None,
        typer.Option(
            "-n", "--namespace", help="Of Baton's objects.", show_default="the site's, or kubectl's"
        ),
    ] = None,
    site: Annotated[
        str | None,
        typer.Option(
            envvar="BATON_SITE",
            help="What the cluster should be like: a built-in site or a file.",
            show_default="the one that is deployed",
        ),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            help="Serving profile that is to run: a built-in name or a file.",
            show_default="the one that is active",
        ),
    ] = None,
    admin_url: Annotated[
        str | None,
        typer.Option(
            "--admin-url", envvar="BATON_ADMIN_URL", help="URL of a router's admin API, to ask too."
        ),
    ] = None,
    only: _Only = None,
    skip: _Skip = None,
    home: _Home = None,
    verbose: _Verbose = False,
    as_json: _Json = False,
) -> None:
    """Checks a cluster: kinds, controller, rights, nodes, plug-ins, clocks, and what is deployed.

    The cluster is kubectl's (KUBECONFIG), or the one that this pod runs in. Before the first
    deployment, say what is planned with --site and --profile.

    Examples:

      baton doctor cluster --site gke --profile disaggregated

      baton doctor cluster -n baton --admin-url http://127.0.0.1:8001
    """
    with clear_errors(), survivable_output():
        from baton.cli.doctor import Plan, Wanted, run_cluster

        wanted = Wanted(tuple(only or ()), tuple(skip or ()), verbose, as_json)
        plan = Plan(namespace, site, profile, admin_url)
        raise typer.Exit(run_cluster(wanted, plan, home_folder(home)))


@doctor_app.command(short_help="Let other machines measure the way to this one.")
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "0.0.0.0",
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Port to listen on.")] = 5690,
    profile: _Profile = None,
    limit: Annotated[float, typer.Option(min=1, help="Seconds after which it ends.")] = 3600.0,
    home: _Home = None,
) -> None:
    """Offers 64 MiB of random bytes to `baton doctor machine --peer`, until Ctrl-C.

    Both machines need the same cluster token; nobody else gets anything. UCX moves the bytes over
    ports of its own.

    Example:

      baton doctor serve --port 5690
    """
    with clear_errors(), survivable_output():
        from baton.cli.doctor import run_serve

        raise typer.Exit(run_serve(host, port, profile, limit, home_folder(home)))
