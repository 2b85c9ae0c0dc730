"""The commands of ``baton profile`` and their help. What they do stands in ``profile`` (looking),
``profile_switch`` and ``profile_status``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from baton.cli.admin_flags import AdminFlag, AdminHomeFlag, JsonFlag
from baton.cli.guard import clear_errors, home_folder, survivable_output

profile_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Looks at serving profiles, and switches a running router from one to another.\n\n"
    "A profile says which workers there are and which prompts are handed over. It is named "
    "(`baton profile list` shows the built-in ones) or is a file, which has a slash in its path or "
    "ends in .yaml.",
)

_Served = Annotated[
    bool, typer.Option("--served", help="Ask a running router for the profiles that it knows.")
]
_NoWait = Annotated[
    bool, typer.Option("--no-wait", help="Begin it and come back; do not wait for its end.")
]


@profile_app.command("list", short_help="List profiles.")
def list_command(
    served: _Served = False,
    admin: AdminFlag = None,
    home: AdminHomeFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Lists the built-in profiles, with their mode and what they are for.

    With --served, those that a running router can be switched to: where each is from, and which is
    active. That ends with status 1 when no admin API answers, 2 when there is no admin token.

    Examples:

      baton profile list

      baton profile list --served
    """
    with clear_errors(), survivable_output():
        from baton.cli.profile import Where, show_list, show_served_list

        if served:
            where = Where(admin, home_folder(home))
            raise typer.Exit(show_served_list(where, as_json=as_json))
        raise typer.Exit(show_list(as_json=as_json))


@profile_app.command("show", short_help="Print a profile as YAML, defaults filled in.")
def show_command(
    name: Annotated[str, typer.Argument(help="Name or file.", metavar="NAME|FILE")],
    served: _Served = False,
    admin: AdminFlag = None,
    home: AdminHomeFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Prints a profile as YAML, with every default filled in.

    With --served, the profile that a running router knows by this name; that ends with status 1
    when no admin API answers, 2 when it knows none.

    Example, to start a profile of your own:

      baton profile show disaggregated > mine.yaml
    """
    with clear_errors(), survivable_output():
        from baton.cli.profile import Where, show_profile, show_served_profile

        if served:
            where = Where(admin, home_folder(home))
            raise typer.Exit(show_served_profile(name, where, as_json=as_json))
        raise typer.Exit(show_profile(name, as_json=as_json))


@profile_app.command("validate", short_help="Check profile files.")
def validate_command(
    files: Annotated[list[Path], typer.Argument(help="Profile files.", metavar="FILE...")],
    as_json: JsonFlag = False,
) -> None:
    """Checks profile files: one line for each problem, with file, line and field.

    Ends with status 0 when all are sound, 2 when one is not.

    Example:

      baton profile validate mine.yaml
    """
    with survivable_output():
        from baton.cli.profile import validate

        raise typer.Exit(validate(files, as_json=as_json))


@profile_app.command("schema", short_help="Print the JSON Schema of profiles.")
def schema_command() -> None:
    """Prints the JSON Schema of profiles, for editors that complete and check YAML.

    Example:

      baton profile schema > profile.schema.json
    """
    with clear_errors(), survivable_output():
        from baton.cli.profile import show_schema

        show_schema()


@profile_app.command("diff", short_help="Show what two profiles decide differently.")
def diff_command(
    a: Annotated[str, typer.Argument(help="Name or file.", metavar="A")],
    b: Annotated[str, typer.Argument(help="Name or file.", metavar="B")],
    served: _Served = False,
    admin: AdminFlag = None,
    home: AdminHomeFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Shows each field in which two profiles differ, defaults filled in.

    With --served, names are those of a running router; files stay files.

    Ends with status 0 when they decide the same (name and description decide nothing), 1 when not,
    2 when one of them cannot be had.

    Examples:

      baton profile diff disaggregated standard

      baton profile diff --served disaggregated mine.yaml
    """
    with clear_errors(), survivable_output():
        from baton.cli.profile import Where, show_difference

        where = Where(admin, home_folder(home)) if served else None
        raise typer.Exit(show_difference(a, b, where, as_json=as_json))


@profile_app.command("switch", short_help="Change the active profile while traffic flows.")
def switch_command(
    profile: Annotated[
        str, typer.Argument(help="Name that the router knows, or file.", metavar="NAME|FILE")
    ],
    canary: Annotated[
        str | None,
        typer.Option(
            help="Share of the requests that tries the profile first: 10% or 0.1; 0 for none.",
            show_default="the profile's",
        ),
    ] = None,
    hold: Annotated[
        str | None,
        typer.Option(help="How long the canary lasts at least.", show_default="the profile's"),
    ] = None,
    limit: Annotated[
        str | None,
        typer.Option(
            help="How long a canary with few requests lasts at most.", show_default="the profile's"
        ),
    ] = None,
    min_requests: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1_000_000,
            help="Requests that the canary should have served before it is judged good.",
            show_default="the profile's",
        ),
    ] = None,
    prepare: Annotated[
        str | None,
        typer.Option(
            help="How long to wait for the profile's workers.", show_default="the profile's"
        ),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            help="Phases to leave out: prepare, shadow, canary; with commas or by repeating.",
            show_default="none",
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only say whether it fits and what would change.")
    ] = False,
    no_wait: _NoWait = False,
    admin: AdminFlag = None,
    home: AdminHomeFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Has all routers change to another profile while traffic flows.

    They wait until the profile's workers are there, decide the last requests anew to see what would
    change, serve a share of the requests under it, and take it back by themselves when that goes
    worse. A file is checked here first. Durations are written 60s, 2m, 1m30s, 500ms.

    Shows how far it is until it is over. Ctrl-C leaves the switch running and ends with status 130.
    Ends with status 0 when the profile is active, 3 when it was taken back, 2 when it was refused,
    1 when no admin API answers (while waiting: for 30 s).

    Examples:

      baton profile switch standard --check

      baton profile switch standard --canary 10% --hold 60s

      baton profile switch mine.yaml --skip shadow,canary --no-wait
    """
    with clear_errors(), survivable_output():
        from baton.cli.profile_flags import SwitchFlags
        from baton.cli.profile_switch import run_switch

        flags = SwitchFlags(
            profile=profile,
            canary=canary,
            hold=hold,
            prepare=prepare,
            limit=limit,
            min_requests=min_requests,
            skip=tuple(skip or ()),
            check=check,
        )
        raise typer.Exit(
            run_switch(flags, admin, home_folder(home), wait=not no_wait, as_json=as_json)
        )


@profile_app.command("status", short_help="Show what is active, and how far a switch is.")
def status_command(
    watch: Annotated[bool, typer.Option("--watch", help="Go on showing it until Ctrl-C.")] = False,
    admin: AdminFlag = None,
    home: AdminHomeFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Shows which profile is active and since when, the switch that is on, the source of profiles
    and what is wrong there, and whether all routers serve the same.

    Ends with status 0 when all is well, 3 when the source has problems, routers disagree or their
    store is away, 1 when no admin API answers, 2 when there is no admin token.

    Examples:

      baton profile status

      baton profile status --watch
    """
    with clear_errors(), survivable_output():
        from baton.cli.profile_status import run_status

        raise typer.Exit(run_status(admin, home_folder(home), watch=watch, as_json=as_json))


@profile_app.command("history", short_help="Show how the last switches ended.")
def history_command(
    admin: AdminFlag = None, home: AdminHomeFlag = None, as_json: JsonFlag = False
) -> None:
    """Shows how the last switches ended, newest first.

    Ends with status 1 when no admin API answers, 2 when there is no admin token.

    Example:

      baton profile history
    """
    with clear_errors(), survivable_output():
        from baton.cli.profile_status import run_history

        raise typer.Exit(run_history(admin, home_folder(home), as_json=as_json))


@profile_app.command("rollback", short_help="Take a switch back.")
def rollback_command(
    no_wait: _NoWait = False,
    admin: AdminFlag = None,
    home: AdminHomeFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Takes back the switch that is on, or goes back to the profile that was active before.

    Ends with status 0 when that is done, 3 when it ended otherwise, 2 when there is nothing to go
    back to, 1 when no admin API answers.

    Example:

      baton profile rollback
    """
    with clear_errors(), survivable_output():
        from baton.cli.profile_switch import run_rollback

        raise typer.Exit(run_rollback(admin, home_folder(home), wait=not no_wait, as_json=as_json))


@profile_app.command("skip", short_help="Leave out the rest of a switch's phase.")
def skip_command(
    admin: AdminFlag = None, home: AdminHomeFlag = None, as_json: JsonFlag = False
) -> None:
    """Has the switch that is on go to its next phase now; after a canary that is the end of it.

    Ends with status 2 when no switch is on, 1 when no admin API answers.

    Example:

      baton profile skip
    """
    with clear_errors(), survivable_output():
        from baton.cli.profile_switch import run_skip

        raise typer.Exit(run_skip(admin, home_folder(home), as_json=as_json))
