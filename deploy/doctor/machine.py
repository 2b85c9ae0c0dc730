"""What a machine is asked, behind one seam: files of the kernel, limits, commands, packages.

Checks see a machine through ``Machine`` only, so that their judgement can be tested against
recorded machines that nobody has at hand. Nothing is judged here, and nothing is changed: what a
check may do to a machine is to read, to bind a port for a moment, and to run a bounded command.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib.metadata
import os
import platform
import resource
import shutil
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from baton.engine.host import allow_amx
from baton.process import PARENT_VARIABLE

_MAX_TEXT = 1024 * 1024
_MAX_NAMES = 10_000
_UNSYNCHRONISED = 0x40
"""``STA_UNSYNC`` of adjtimex(2)."""
_CLOCK_ERROR = 5
"""``TIME_ERROR``, what adjtimex(2) returns for a clock that nobody keeps."""


@dataclass(frozen=True, slots=True)
class Ran:
    """A command that ended. ``status`` is None where there is no such command."""

    status: int | None
    out: str = ""
    err: str = ""


@dataclass(frozen=True, slots=True)
class ClockState:
    """What the kernel knows of its clock.

    Attributes:
        synchronised: whether something keeps it.
        error_s: the most that it may be off, by the kernel's own account.
    """

    synchronised: bool
    error_s: float


class Machine(Protocol):
    """A machine that can be asked."""

    def text(self, path: str) -> str | None:
        """Content of a file; None where there is none to be read."""

    def names(self, folder: str) -> list[str]:
        """What is in a folder, sorted; empty where there is none to be read."""

    async def run(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, limit_s: float = 10.0
    ) -> Ran:
        """Runs a command to its end, ``env`` on top of our own environment.

        Raises:
            TimeoutError: it was not over after ``limit_s``.
        """

    def python(self) -> tuple[str, str]:
        """Python's version, and the operating system with its architecture."""

    def version(self, package: str) -> str | None:
        """Version of an installed package."""

    def requirements(self) -> list[str]:
        """What Baton's own package asks for, extras included."""

    def cores(self) -> int:
        """Cores that we may run on."""

    def limit(self, name: str) -> int | None:
        """Soft limit ``memlock`` (bytes) or ``nofile``; None is no limit."""

    def room(self, folder: str) -> tuple[int, int] | None:
        """Bytes in all and bytes free of the file system that a folder is on."""

    def mode(self, path: str) -> int | None:
        """Permission bits; None where there is no such file."""

    def writable(self, folder: str) -> bool:
        """Whether a folder can be written to, or made."""

    def port_free(self, port: int) -> bool:
        """Whether a TCP port on loopback can be listened on."""

    def clock(self) -> ClockState | None:
        """What the kernel knows of its clock; None where it does not say."""

    def may_use_amx(self) -> bool:
        """Whether the kernel lets this process use AMX tiles."""


class ThisMachine:
    """The one we run on."""

    def text(self, path: str) -> str | None:
        """See ``Machine``."""
        try:
            with open(path, "rb") as file:
                return file.read(_MAX_TEXT).decode("utf-8", "replace")
        except OSError:
            return None

    def names(self, folder: str) -> list[str]:
        """See ``Machine``."""
        try:
            return sorted(os.listdir(folder)[:_MAX_NAMES])
        except OSError:
            return []

    async def run(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, limit_s: float = 10.0
    ) -> Ran:
        """See ``Machine``."""
        program = shutil.which(argv[0])
        if program is None:
            return Ran(None)
        process = await asyncio.create_subprocess_exec(
            program,
            *argv[1:],
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **(env or {}), PARENT_VARIABLE: str(os.getpid())},
            # Of its own, so that all of it can be ended.
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(limit_s):
                out, err = await process.communicate()
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await asyncio.shield(process.wait())
        return Ran(
            process.returncode,
            out[-_MAX_TEXT:].decode("utf-8", "replace"),
            err[-_MAX_TEXT:].decode("utf-8", "replace"),
        )

    def python(self) -> tuple[str, str]:
        """See ``Machine``."""
        return platform.python_version(), f"{platform.system()} {platform.machine()}"

    def version(self, package: str) -> str | None:
        """See ``Machine``."""
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    def requirements(self) -> list[str]:
        """See ``Machine``."""
        try:
            return importlib.metadata.requires("baton-serving") or []
        except importlib.metadata.PackageNotFoundError:
            return []

    def cores(self) -> int:
        """See ``Machine``."""
        if hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1

    def limit(self, name: str) -> int | None:
        """See ``Machine``."""
        which = {"memlock": resource.RLIMIT_MEMLOCK, "nofile": resource.RLIMIT_NOFILE}[name]
        soft, _ = resource.getrlimit(which)
        return None if soft == resource.RLIM_INFINITY else soft

    def room(self, folder: str) -> tuple[int, int] | None:
        """See ``Machine``."""
        try:
            found = os.statvfs(folder)
        except OSError:
            return None
        return found.f_frsize * found.f_blocks, found.f_frsize * found.f_bavail

    def mode(self, path: str) -> int | None:
        """See ``Machine``."""
        try:
            return os.stat(path).st_mode & 0o7777
        except OSError:
            return None

    def writable(self, folder: str) -> bool:
        """See ``Machine``."""
        path = Path(folder)
        while not path.exists() and path != path.parent:
            path = path.parent
        return path.is_dir() and os.access(path, os.W_OK | os.X_OK)

    def port_free(self, port: int) -> bool:
        """See ``Machine``."""
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return False
            return True

    def clock(self) -> ClockState | None:
        """See ``Machine``."""
        if sys.platform != "linux" or ctypes.sizeof(ctypes.c_long) != 8:
            return None
        # struct timex: modes, then offset, freq, maxerror, esterror, status; adjtimex(2). With
        # modes 0 it only reads. The rest of the 208 bytes is of no interest here.
        state = (ctypes.c_long * 64)()
        kept = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(state))
        if kept < 0:
            return None
        status = int(state[5]) & 0xFFFFFFFF
        sound = kept != _CLOCK_ERROR and not status & _UNSYNCHRONISED
        return ClockState(sound, int(state[3]) / 1e6)

    def may_use_amx(self) -> bool:
        """See ``Machine``."""
        return allow_amx()
