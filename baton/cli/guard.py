"""How every command ends when something is wrong: one clear line, and a status."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

import typer

from baton.errors import BatonError


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
    """Turns what a person has to mend into one message and status 2."""
    try:
        yield
    except BatonError as error:
        sys.stderr.write(f"baton: {error.message}\n")
        raise typer.Exit(2) from error


@contextlib.contextmanager
def survivable_output() -> Iterator[None]:
    """Ends quietly when nobody reads our output any more, as behind ``| head``."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # Python would complain at its end about what it cannot write.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
