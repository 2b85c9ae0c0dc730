"""The commands for a running router's admin API, and their help. What they do stands in ``admin``
(asking), ``drain``, ``explain`` and ``matrix``."""

from __future__ import annotations

from typing import Annotated

import typer

from baton.cli.admin_flags import AdminFlag, AdminHomeFlag, JsonFlag
from baton.cli.guard import clear_errors, home_folder, survivable_output


def explain(
    file: Annotated[
        str, typer.Argument(help="File with a request's JSON body; - for stdin.", metavar="FILE|-")
    ],
    endpoint: Annotated[
        str | None,
        typer.Option(
            help="Path that the body is meant for, such as /v1/messages.",
            show_default="the OpenAI API's for its fields",
        ),
    ] = None,
    admin: AdminFlag = None,
    home: AdminHomeFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Asks a router what it would do with a request now, and why; nothing is run.

    Shows the path and its reason, the times predicted for both ways, and every worker: the filters
    that it did not pass, its scores, what of the prompt it has cached.

    Ends with status 1 when no admin API answers, 2 when the body would be refused or there is no
    admin token.

    Examples:

      baton explain request.json

      echo '{"model": "demo", "prompt": "Hello"}' | baton explain -
    """
    with clear_errors(), survivable_output():
        from baton.cli.explain import run_explain

        raise typer.Exit(run_explain(file, endpoint, admin, home_folder(home), as_json=as_json))


def drain(
    worker: Annotated[str, typer.Argument(help="Worker's id; see `baton status`.")],
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until the worker has nothing left to do.")
    ] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Take a drain back.")] = False,
    timeout: Annotated[
        float, typer.Option(min=0, help="With --wait: seconds until giving up.")
    ] = 1800.0,
    admin: AdminFlag = None,
    home: AdminHomeFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Has all routers send a worker nothing new.

    What the worker has in flight ends, and KV that it offered is pulled or expires; then it can be
    stopped without anybody noticing. The drain stays until it is taken back or the worker leaves,
    also when --wait is interrupted.

    Ends with status 1 when no admin API answers, 2 when there is no such worker or no admin token,
    and with --wait 3 when the worker was not free in time or the drain was taken back.

    Examples:

      baton drain decode-1 --wait

      baton drain decode-1 --undo
    """
    with clear_errors(), survivable_output():
        from baton.cli.drain import run_drain

        raise typer.Exit(
            run_drain(
                worker,
                admin,
                home_folder(home),
                wait_s=timeout if wait else None,
                undo=undo,
                as_json=as_json,
            )
        )


def pairs(admin: AdminFlag = None, home: AdminHomeFlag = None, as_json: JsonFlag = False) -> None:
    """Shows each pair of a prefill and a decode worker: whether it is used, why not, how fast.

    Ends with status 1 when no admin API answers, 2 when there is no admin token.

    Example:

      baton pairs
    """
    with clear_errors(), survivable_output():
        from baton.cli.matrix import run_pairs

        raise typer.Exit(run_pairs(admin, home_folder(home), as_json=as_json))


def handoffs(
    admin: AdminFlag = None, home: AdminHomeFlag = None, as_json: JsonFlag = False
) -> None:
    """Shows handoffs in progress, and those whose KV a prefill worker may hold for nobody.

    Ends with status 1 when no admin API answers, 2 when there is no admin token.

    Example:

      baton handoffs --json
    """
    with clear_errors(), survivable_output():
        from baton.cli.matrix import run_handoffs

        raise typer.Exit(run_handoffs(admin, home_folder(home), as_json=as_json))
