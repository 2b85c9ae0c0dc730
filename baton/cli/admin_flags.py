"""Flags that the commands for a running router's admin API have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

AdminFlag = Annotated[
    str | None,
    typer.Option(
        "--admin",
        envvar="BATON_ADMIN_URL",
        help="URL of the router's admin API.",
        show_default="of the router that `baton up` started",
    ),
]
AdminHomeFlag = Annotated[
    Path | None,
    typer.Option(
        envvar="BATON_HOME",
        help="Baton's folder, for the admin token and what `baton up` started.",
        show_default="~/.local/state/baton",
    ),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
