"""Flags that several of Baton's processes have, said once: name, variable, help.

Not for logic: what a flag's value means is checked where it is used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ProfileFlag = Annotated[
    str, typer.Option(envvar="BATON_PROFILE", help="Serving profile: a built-in name or a file.")
]
ModelFlag = Annotated[
    str | None,
    typer.Option(envvar="BATON_MODEL", help="Folder or hub id instead of the profile's."),
]
ServedNameFlag = Annotated[
    str | None, typer.Option(envvar="BATON_SERVED_NAME", help="Name that clients ask for.")
]
HostFlag = Annotated[str, typer.Option(envvar="BATON_HOST", help="Address to listen on.")]
PortFlag = Annotated[
    int, typer.Option(envvar="BATON_PORT", min=1, max=65535, help="HTTP port to listen on.")
]
HomeFlag = Annotated[
    Path | None,
    typer.Option(envvar="BATON_HOME", help="Folder of the cluster token and other state."),
]
LogLevelFlag = Annotated[
    str, typer.Option(envvar="BATON_LOG_LEVEL", help="debug, info, warning or error.")
]
LogFormatFlag = Annotated[
    str, typer.Option(envvar="BATON_LOG_FORMAT", help="text, or json: one object a line.")
]
