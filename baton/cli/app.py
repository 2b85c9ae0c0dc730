"""The commands of ``baton`` and their help. What they do stands in a module of its own each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from baton.cli.bench import bench_app
from baton.cli.controller import controller
from baton.cli.deploy import deploy_app
from baton.cli.doctor_commands import doctor_app
from baton.cli.guard import clear_errors, home_folder, survivable_output
from baton.cli.key import key_app
from baton.cli.operate import drain, explain, handoffs, pairs
from baton.cli.profile_commands import profile_app
from baton.settings import ADMIN_PORT, ROUTER_PORT, SIDE_CHANNEL_PORT, WORKER_PORT

_Home = Annotated[
    Path | None,
    typer.Option(
        envvar="BATON_HOME",
        help="Folder for the demo model, logs and the cluster token.",
        show_default="~/.local/state/baton",
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Serves large language models with prefill and decode on different workers.\n\n"
    "Start here: `baton up` runs everything on this machine, with a small model that it makes "
    "itself, and says how to talk to it. `baton status`, in another terminal, shows what runs.",
)
app.add_typer(bench_app, name="bench", short_help="Measure endpoints, compare profiles.")
app.add_typer(doctor_app, name="doctor", short_help="Check this machine or a cluster.")
app.add_typer(deploy_app, name="deploy", short_help="Render what Kubernetes needs.")
app.add_typer(key_app, name="key", short_help="Make, list and revoke API keys.")
app.add_typer(profile_app, name="profile", short_help="Look at serving profiles, and switch them.")


@app.command(short_help="Serve on this machine until Ctrl-C.")
def up(
    profile: Annotated[
        str | None,
        typer.Option(
            envvar="BATON_PROFILE",
            help="Serving profile: a built-in name or a file.",
            show_default="cpu-demo; disaggregated on a machine with a GPU",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            envvar="BATON_MODEL",
            help="Folder or Hugging Face id of the model, instead of the profile's.",
        ),
    ] = None,
    served_name: Annotated[
        str | None,
        typer.Option(
            envvar="BATON_SERVED_NAME", help="Name that clients ask for, instead of the model's."
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(envvar="BATON_HOST", help="Address of the router; 0.0.0.0 opens it to all."),
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(
            envvar="BATON_PORT",
            min=1,
            max=65_535,
            help="Port of the router.",
            show_default=f"{ROUTER_PORT}, or the next free one",
        ),
    ] = None,
    admin_port: Annotated[
        int | None,
        typer.Option(
            envvar="BATON_ADMIN_PORT",
            min=1,
            max=65_535,
            help="Port of the router's admin API, on this machine only.",
            show_default=f"{ADMIN_PORT}, or the next free one",
        ),
    ] = None,
    worker_port: Annotated[
        int | None,
        typer.Option(
            envvar="BATON_WORKER_PORT",
            min=1,
            max=65_535,
            help="HTTP port of the first worker; further ones count up.",
            show_default=f"{WORKER_PORT}, or the next free one",
        ),
    ] = None,
    side_channel_port: Annotated[
        int | None,
        typer.Option(
            envvar="BATON_SIDE_CHANNEL_PORT",
            min=1,
            max=65_535,
            help="NIXL handshake port of the first worker; further ones count up.",
            show_default=f"{SIDE_CHANNEL_PORT}, or the next free one",
        ),
    ] = None,
    cpu_threads: Annotated[
        int | None,
        typer.Option(
            envvar="BATON_CPU_THREADS",
            min=1,
            help="Compute threads of each engine on a machine without a GPU.",
            show_default="the cores, shared among the workers",
        ),
    ] = None,
    home: _Home = None,
    log_level: Annotated[
        str,
        typer.Option(
            envvar="BATON_LOG_LEVEL", help="Of the log files: debug, info, warning or error."
        ),
    ] = "info",
    timeout: Annotated[
        float,
        typer.Option(
            envvar="BATON_UP_TIMEOUT", min=1, help="Seconds until all must be ready, or it fails."
        ),
    ] = 1800.0,
) -> None:
    """Serves on this machine until Ctrl-C: workers, router, and a model.

    Without options it takes the profile that fits the machine and makes a tiny demo model first
    (once, about a minute). It starts the profile's workers and a router, sends one request through
    them to prove the path, and prints an address and commands to try. Ctrl-C stops everything;
    a second Ctrl-C does not wait for requests in flight.

    Examples:

      baton up

      baton up --model meta-llama/Llama-3.1-8B-Instruct --profile disaggregated

      baton up --model ./my-model --port 9000
    """
    with clear_errors(), survivable_output():
        from baton.cli.up import UpOptions, run_up

        code = run_up(
            UpOptions(
                profile=profile,
                model=model,
                served_name=served_name,
                host=host,
                port=port,
                worker_port=worker_port,
                side_channel_port=side_channel_port,
                cpu_threads=cpu_threads,
                home=home_folder(home),
                log_level=log_level,
                timeout_s=timeout,
                admin_port=admin_port,
            )
        )
        raise typer.Exit(code)


@app.command(short_help="Show the workers, handoffs and profile of a router.")
def status(
    router: Annotated[
        str | None,
        typer.Option(
            envvar="BATON_ROUTER",
            help="URL of the router to ask.",
            show_default="the one that `baton up` started",
        ),
    ] = None,
    home: _Home = None,
    as_json: _Json = False,
) -> None:
    """Shows the workers, handoffs and profile of a running router.

    Ends with status 0 when requests can be served, 3 when the router is up but cannot serve, and 1
    when no router answers. A router on another machine needs its cluster token here, in
    BATON_CLUSTER_TOKEN or in the file that BATON_CLUSTER_TOKEN_FILE names.

    Examples:

      baton status

      baton status --router http://10.0.0.5:8000 --json
    """
    with clear_errors(), survivable_output():
        from baton.cli.status import run_status

        raise typer.Exit(run_status(router, home_folder(home), as_json=as_json))


app.command("explain", short_help="Ask what would be decided for a request, and why.")(explain)
app.command("drain", short_help="Send a worker nothing new, and wait until it is free.")(drain)
app.command("pairs", short_help="Show pairs of prefill and decode workers.")(pairs)
app.command("handoffs", short_help="Show handoffs, and KV that nobody will pull.")(handoffs)
app.command("controller", short_help="Bring a cluster's pools to what the profile says.")(
    controller
)


@app.command(short_help="Show versions.")
def version(as_json: _Json = False) -> None:
    """Shows the versions of Baton and of what it runs on.

    Nothing is imported for it, so it is quick, and works where engines are not installed.

    Example:

      baton version --json
    """
    with clear_errors(), survivable_output():
        from baton.cli.version import run_version

        run_version(as_json=as_json)
