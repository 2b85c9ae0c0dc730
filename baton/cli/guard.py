"""What all commands share: where Baton's home is, and how one ends when something is wrong."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import typer

from baton.errors import BatonError
from baton.settings import default_home


def home_folder(given: Path | None) -> Path:
    """Baton's folder: the one given, else that of the environment. Absolute."""
    return given.expanduser().resolve() if given else default_home(os.environ)


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
