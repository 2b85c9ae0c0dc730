"""Tables on a terminal as wide as it is, and elsewhere as wide as they need."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

_PIPE_COLUMNS = 200
"""Where nobody's window limits a line, one that is cut helps nobody."""


def show_bytes(count: object) -> str:
    """A number of bytes for people: ``512 B``, ``1.5 MiB``; empty for what is none."""
    if not isinstance(count, int | float):
        return ""
    size = float(count)
    if abs(size) < 1024:
        return f"{size:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if abs(size) < 1024:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:.1f} TiB"


def show_s(seconds: object) -> str:
    """Seconds for people: ``1.25 s``, or ``12 ms`` below a tenth; empty for what is none."""
    if not isinstance(seconds, int | float):
        return ""
    return f"{1000 * seconds:.1f} ms" if seconds < 0.1 else f"{seconds:.2f} s"


def print_table(*parts: Table | str) -> None:
    """Prints tables and lines on stdout; strings are taken as they are, without markup."""
    width = None if sys.stdout.isatty() else _PIPE_COLUMNS
    console = Console(file=sys.stdout, width=width, highlight=False)
    with console.capture() as capture:
        for part in parts:
            console.print(part, markup=False, soft_wrap=isinstance(part, str))
    # Tables pad their last column, which is noise to whatever reads lines.
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()))
