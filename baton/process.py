"""Child processes that cannot be left behind, and whose output becomes our log.

Every process that Baton starts leads its own process group, asks the kernel to be told when its
parent dies, and is stopped in two steps: SIGTERM, a bounded wait, SIGKILL to the whole group.
This module knows nothing of engines or workers.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import ctypes
import os
import signal
from collections.abc import Callable, Mapping, Sequence

PARENT_VARIABLE = "BATON_PARENT_PID"
"""Set for children that must not outlive us: the pid that they were started by."""

_PR_SET_PDEATHSIG = 1
_MAX_LINE_BYTES = 16 * 1024
_TAIL_LINES = 60
_LAST_MOMENT_S = 0.3

LineSink = Callable[[str], None]


def die_with_parent(death_signal: signal.Signals) -> None:
    """Asks the kernel to send ``death_signal`` to this process when its parent ends (Linux).

    Does nothing unless the parent said through ``BATON_PARENT_PID`` that it wants this, so that a
    worker started from a shell or as a container's first process keeps its own life. To be called
    from the main thread, early: a parent that died in between is noticed by comparing the pid.
    """
    expected = os.environ.get(PARENT_VARIABLE)
    if not expected:
        return
    set_parent_death_signal(death_signal)
    if str(os.getppid()) != expected:
        os.kill(os.getpid(), death_signal)


def set_parent_death_signal(death_signal: signal.Signals) -> None:
    """Sets the signal without asking whether the parent wants it. Does nothing outside Linux."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(death_signal))


class Child:
    """One run of one child process.

    Args:
        name: how it is called in logs and errors.
        argv: the command.
        env: the whole environment; ``BATON_PARENT_PID`` is added.
        on_line: gets each line of its stdout and stderr, without the newline, as it comes;
            lines over 16 KiB are cut.
    """

    def __init__(
        self, name: str, argv: Sequence[str], env: Mapping[str, str], *, on_line: LineSink
    ) -> None:
        self.name = name
        self._argv = tuple(argv)
        self._env = {**env, PARENT_VARIABLE: str(os.getpid())}
        self._on_line = on_line
        self._process: asyncio.subprocess.Process | None = None
        self._pump: asyncio.Task[None] | None = None
        self._group_ended = False
        self._tail: collections.deque[str] = collections.deque(maxlen=_TAIL_LINES)

    @property
    def pid(self) -> int | None:
        """Its pid, which is its group's id as well; None before the start."""
        return self._process.pid if self._process else None

    @property
    def returncode(self) -> int | None:
        """None while it runs; negative when a signal ended it."""
        return self._process.returncode if self._process else None

    @property
    def tail(self) -> tuple[str, ...]:
        """The last lines it printed, for error messages."""
        return tuple(self._tail)

    async def start(self) -> None:
        """Starts the process.

        Raises:
            OSError: the command cannot be run.
        """
        # A pipe of our own: with asyncio's, waiting for the process would also wait for whoever
        # else holds the pipe, and a grandchild that outlives the child would hide its death.
        ours, theirs = os.pipe()
        try:
            reader = asyncio.StreamReader()
            transport, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(ours, "rb", buffering=0)
            )
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *self._argv,
                    env=self._env,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=theirs,
                    stderr=theirs,
                    start_new_session=True,
                )
            except BaseException:
                transport.close()
                raise
        finally:
            os.close(theirs)
        self._pump = asyncio.create_task(self._follow(reader, transport), name=f"log-{self.name}")

    async def wait(self) -> int:
        """Waits for its end, and for its last lines (a grandchild that keeps the pipe open is
        given one second). Leaves no process of its group behind."""
        assert self._process is not None
        assert self._pump is not None
        code = await self._process.wait()
        await self._until_group_ended(_LAST_MOMENT_S)
        self._signal_group(signal.SIGKILL)
        # From here on the number may become another process's.
        self._group_ended = True
        await asyncio.wait({self._pump}, timeout=1.0)
        self._pump.cancel()
        await asyncio.gather(self._pump, return_exceptions=True)
        return code

    async def stop(self, *, grace_s: float) -> int | None:
        """SIGTERM, up to ``grace_s`` seconds of waiting, then SIGKILL to its group.

        Returns its exit status, or None if it was never started. Safe to call twice. When the
        caller is cancelled in the middle the group is killed at once.
        """
        if self._process is None:
            return None
        try:
            if self._process.returncode is None:
                # Not by the process object: its send_signal may reap the child behind asyncio's
                # back, and the exit status would be lost.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._process.pid, signal.SIGTERM)
                    # A stopped process (SIGSTOP) sees no signal until it goes on.
                    os.kill(self._process.pid, signal.SIGCONT)
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._process.wait(), grace_s)
        finally:
            if self._process.returncode is None:
                self._signal_group(signal.SIGKILL)
        return await self.wait()

    async def _until_group_ended(self, most_s: float) -> None:
        """Gives the rest of the group a moment: a process that died suddenly leaves others that
        clean up after it, such as Python's resource tracker, which removes its semaphores."""
        assert self._process is not None
        for _ in range(round(most_s / 0.02)):
            if self._group_ended:
                return
            try:
                os.killpg(self._process.pid, 0)
            except (ProcessLookupError, PermissionError):
                return
            await asyncio.sleep(0.02)

    def kill_now(self) -> None:
        """SIGKILL to the whole group, without waiting."""
        self._signal_group(signal.SIGKILL)

    def _signal_group(self, number: signal.Signals) -> None:
        if self._process is not None and not self._group_ended:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    async def _follow(self, reader: asyncio.StreamReader, transport: asyncio.ReadTransport) -> None:
        rest = b""
        try:
            while chunk := await reader.read(8192):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._emit(line)
                if len(rest) > _MAX_LINE_BYTES:
                    self._emit(rest)
                    rest = b""
            if rest:
                self._emit(rest)
        finally:
            transport.close()

    def _emit(self, raw: bytes) -> None:
        line = raw[:_MAX_LINE_BYTES].decode("utf-8", "replace").rstrip("\r ")
        if line:
            self._tail.append(line)
            self._on_line(line)


class Backoff:
    """Exponential delays between restarts: doubles per failure, forgets after a healthy stretch."""

    def __init__(
        self, *, first_s: float = 0.5, most_s: float = 30.0, healthy_after_s: float = 60.0
    ) -> None:
        self._first_s = first_s
        self._most_s = most_s
        self._healthy_after_s = healthy_after_s
        self._failures = 0

    def next_delay_s(self, ran_s: float) -> float:
        """The pause before the next start, given how long the run before it lasted (seconds)."""
        if ran_s >= self._healthy_after_s:
            self._failures = 0
        delay = min(self._most_s, self._first_s * 2.0**self._failures)
        self._failures = min(self._failures + 1, 16)
        return delay
