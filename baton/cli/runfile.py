"""``HOME/run/up.json``: how other commands find a running ``baton up``, and the lock beside it.

The lock belongs to the process and goes with it, however it ends; the file is only a note that a
killed process leaves behind, so nothing here takes it as proof that something runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from baton.errors import SettingsError

_MAX_BYTES = 1024 * 1024


class WorkerNote(msgspec.Struct, frozen=True):
    """One worker process: its name, which is its worker id, role, engine URL, pid and log file."""

    name: str
    role: str
    url: str
    pid: int | None
    log: str


class RunNote(msgspec.Struct, frozen=True):
    """What is written: ``router`` and ``admin`` are the URLs of the router and of its admin API for
    callers on this machine, ``started_s`` is wall clock seconds, ``state`` is ``starting`` or
    ``ready``."""

    router: str
    pid: int
    router_pid: int | None
    profile: str
    profile_version: str
    model: str
    started_s: float
    state: str
    workers: tuple[WorkerNote, ...]
    admin: str = ""


def run_file(home: Path) -> Path:
    """Where the note of a home stands."""
    return home / "run" / "up.json"


def write_note(home: Path, note: RunNote) -> None:
    """Writes the note whole or not at all, readable by its owner only.

    Raises:
        OSError: the folder cannot be written to.
    """
    path = run_file(home)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(note), indent=2) + b"\n")
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def read_note(home: Path) -> RunNote | None:
    """The note, or None if there is none that can be read."""
    try:
        with run_file(home).open("rb") as file:
            return msgspec.json.decode(file.read(_MAX_BYTES), type=RunNote)
    except (OSError, msgspec.DecodeError, msgspec.ValidationError):
        return None


def remove_note(home: Path) -> None:
    """Removes the note. Never raises."""
    with contextlib.suppress(OSError):
        run_file(home).unlink(missing_ok=True)


@contextlib.contextmanager
def sole_owner(home: Path) -> Iterator[None]:
    """Holds the home for this process: two of them would write the same logs and the same note.

    Raises:
        SettingsError: another ``baton up`` has it, or the folder cannot be written to.
    """
    path = home / "run" / "up.lock"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise SettingsError(
            f"cannot write to {path.parent} ({error.strerror}); make it writable or name another "
            "folder with --home (BATON_HOME)"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            note = read_note(home)
            where = f" at {note.router} (pid {note.pid})" if note else ""
            raise SettingsError(
                f"baton is up already in {home}{where}: stop it with Ctrl-C there, or give this "
                "one a home of its own with --home (BATON_HOME)"
            ) from error
        yield
    finally:
        os.close(descriptor)
