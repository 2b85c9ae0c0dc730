"""Tables on a terminal as wide as it is, and elsewhere as wide as they need."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

_PIPE_COLUMNS = 200
"""Where nobody's window limits a line, one that is cut helps nobody."""


def print_table(*parts: Table | str) -> None:
    """Prints tables and lines on stdout; strings are taken as they are, without markup."""
    width = None if sys.stdout.isatty() else _PIPE_COLUMNS
    console = Console(file=sys.stdout, width=width, highlight=False)
    with console.capture() as capture:
        for part in parts:
            console.print(part, markup=False, soft_wrap=isinstance(part, str))
    # Tables pad their last column, which is noise to whatever reads lines.
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()))
