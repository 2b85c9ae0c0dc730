"""Keeps the processes of a plan alive, from the first start to the last stop.

While they come up, a process that dies ends it all, since somebody is watching who can mend it;
once they serve, it is started again. Whatever happens, ``stop`` leaves none behind. What "ready"
means and how it is proved is the caller's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baton.cli.board import Board
from baton.cli.logs import ChildLog
from baton.cli.plan import Plan, Process
from baton.process import Backoff, Child
from baton.types import WorkerState

_HURRY_S = 5.0
"""For processes to go after they were told twice."""
_ENGINE_TRIES = 3
"""Engine starts of one worker before somebody should look at its log."""
_TAIL_LINES = 15


class StartFailed(Exception):
    """The start did not succeed.

    Attributes:
        message: what happened, in one or two sentences.
        lines: what the process at fault said, telling lines first.
        log: where the rest of that is, or None.
    """

    def __init__(self, message: str, *, lines: tuple[str, ...] = (), log: Path | None = None):
        super().__init__(message)
        self.message = message
        self.lines = lines
        self.log = log


@dataclass(frozen=True, slots=True)
class Sight:
    """A worker as the router sees it: its state, and the engine's id, which each engine run
    has anew."""

    state: str
    engine_id: str


Check = Callable[[], Awaitable[Mapping[str, Sight] | None]]
"""The router's workers by id, or None while it does not answer. Never raises; bounded."""


class Member:
    """A process of the plan, over all its runs."""

    def __init__(self, process: Process, log: ChildLog) -> None:
        self.process = process
        self.log = log
        self.child: Child | None = None
        self.engines: list[str] = []

    @property
    def pid(self) -> int | None:
        """Pid of the run that is on, or None."""
        alive = self.child is not None and self.child.returncode is None
        return self.child.pid if alive and self.child else None

    async def spawn(self) -> None:
        """Starts a new run.

        Raises:
            OSError: the command cannot be run.
        """
        self.log.new_run()
        process = self.process
        child = Child(process.name, process.argv, process.env, on_line=self.log.write)
        await child.start()
        self.child = child

    def excerpt(self) -> tuple[str, ...]:
        """What it said that may explain its end."""
        tail = self.child.tail[-_TAIL_LINES:] if self.child else ()
        return (*(line for line in self.log.telling if line not in tail), *tail)


class Stack:
    """The processes of a plan.

    Args:
        plan: what to run.
        log_folder: one file for each process goes there.
        board: shows the states.
        check: looks at the workers.
        clock: monotonic seconds.
        on_change: called when a process has started or started again, and when all is ready.
        sweep: removes what killed processes could not; called when one had to be killed.
        make_backoff: delays between restarts, for one process.
        poll_s: between two looks at the workers while they come up.
        watch_s: the same once they serve.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        log_folder: Path,
        board: Board,
        check: Check,
        clock: Callable[[], float],
        on_change: Callable[[], None] = lambda: None,
        sweep: Callable[[], None] = lambda: None,
        make_backoff: Callable[[], Backoff] = Backoff,
        poll_s: float = 0.3,
        watch_s: float = 2.0,
    ) -> None:
        self.members = [
            Member(process, ChildLog(log_folder / f"{process.name}.log"))
            for process in plan.processes
        ]
        self.ready = False
        self._plan = plan
        self._board = board
        self._check = check
        self._clock = clock
        self._on_change = on_change
        self._sweep = sweep
        self._make_backoff = make_backoff
        self._poll_s = poll_s
        self._watch_s = watch_s
        self._keepers: list[asyncio.Task[None]] = []
        self._deaths: list[tuple[Member, int]] = []
        self._death = asyncio.Event()
        self._log_folder = log_folder

    async def come_up(
        self, prove: Callable[[], Coroutine[Any, Any, None]], timeout_s: float
    ) -> None:
        """Starts all, waits until all are ready, and has that proved.

        Raises:
            StartFailed: a process ended, an engine failed again and again, ``timeout_s`` seconds
                passed, or the proof failed. Nothing is stopped yet.
        """
        for member in self.members:
            self._board.set(member.process.name, "starting")
            try:
                await member.spawn()
            except OSError as error:
                raise StartFailed(f"{member.process.name} cannot be started: {error}") from error
            self._keepers.append(
                asyncio.create_task(self._keep(member), name=f"keep-{member.process.name}")
            )
        self._on_change()
        await self._or_death(self._until_ready(timeout_s))
        await self._or_death(prove())
        self.ready = True
        self._on_change()

    async def watch(self) -> None:
        """Tells of workers that stop being ready or are ready again, for ever."""
        before: dict[str, str] = {}
        while True:
            await asyncio.sleep(self._watch_s)
            sights = await self._check()
            if sights is None:
                continue
            for member in self.members:
                if member.process.role is None:
                    continue
                name = member.process.name
                sight = sights.get(name)
                state = sight.state if sight else "gone"
                was = before.get(name, WorkerState.READY)
                before[name] = state
                if state == was:
                    continue
                if state == WorkerState.READY:
                    self._board.note(f"{name} is ready again")
                elif was == WorkerState.READY:
                    self._board.note(f"{name} is not ready ({state}); its log: {member.log.path}")

    async def stop(self, hurry: asyncio.Event) -> None:
        """Stops the router, so that nothing new comes in, then the workers, all at once.

        Each is asked, waited for within its grace, then killed. ``hurry`` cuts the waiting short.
        """
        await _cancel(self._keepers)
        in_order = asyncio.create_task(self._stop_in_order(), name="stop")
        hurrying = asyncio.create_task(hurry.wait(), name="hurry")
        killed = False
        try:
            await asyncio.wait({in_order, hurrying}, return_when=asyncio.FIRST_COMPLETED)
            if not in_order.done():
                self._tell_again()
                await asyncio.wait({in_order}, timeout=_HURRY_S)
            killed = in_order.result() if in_order.done() else True
        finally:
            await _cancel([in_order, hurrying])
            for member in self.members:
                if member.child is not None and member.child.pid is not None:
                    member.child.kill_now()
                    await member.child.wait()
                member.log.close()
            if killed:
                self._sweep()

    def _tell_again(self) -> None:
        router, *workers = self.members
        if router.child is not None:
            router.child.kill_now()
        for member in workers:
            if member.pid is not None:
                # A worker that is told twice does not wait for what it has in flight.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(member.pid, signal.SIGTERM)

    async def _stop_in_order(self) -> bool:
        """Whether one had to be killed."""
        router, *workers = self.members
        codes = [await _stop_one(router, self._plan.router_grace_s)]
        codes += await asyncio.gather(
            *(_stop_one(member, self._plan.worker_grace_s) for member in workers)
        )
        return -signal.SIGKILL in codes

    async def _keep(self, member: Member) -> None:
        """Notices each end of a process; starts it again once the stack is ready."""
        backoff = self._make_backoff()
        name = member.process.name
        began_s = self._clock()
        while True:
            child = member.child
            assert child is not None
            code = await child.wait()
            if not self.ready:
                self._deaths.append((member, code))
                self._death.set()
                return
            pause_s = backoff.next_delay_s(self._clock() - began_s)
            self._board.note(
                f"{name} ended ({describe_status(code)}); starting it again in {pause_s:.1f} s; "
                f"its log: {member.log.path}"
            )
            await asyncio.sleep(pause_s)
            began_s = self._clock()
            with contextlib.suppress(OSError):
                # A start that fails leaves the dead run in place, and is tried again after a pause.
                await member.spawn()
                self._on_change()

    async def _or_death(self, work: Coroutine[Any, Any, None]) -> None:
        """``work``, unless a process dies first."""
        doing = asyncio.create_task(work)
        death = asyncio.create_task(self._death.wait())
        try:
            await asyncio.wait({doing, death}, return_when=asyncio.FIRST_COMPLETED)
            if not self._deaths:
                doing.result()
        finally:
            await _cancel([doing, death])
        # After the clean-up, so that no death falls between this and what comes next.
        if self._deaths:
            member, code = self._deaths[0]
            raise StartFailed(
                f"{member.process.name} ended during the start ({describe_status(code)})",
                lines=member.excerpt(),
                log=member.log.path,
            )

    async def _until_ready(self, timeout_s: float) -> None:
        deadline_s = self._clock() + timeout_s
        missing = [member.process.name for member in self.members]
        while True:
            sights = await self._check()
            missing = self._show(sights)
            if not missing:
                return
            if self._clock() >= deadline_s:
                raise StartFailed(
                    f"not ready after {timeout_s:g} s; missing: {', '.join(missing)}. "
                    f"The logs are in {self._log_folder}"
                )
            await asyncio.sleep(self._poll_s)

    def _show(self, sights: Mapping[str, Sight] | None) -> list[str]:
        """Shows the states; returns those that are not ready, in words.

        Raises:
            StartFailed: an engine failed too often.
        """
        missing = []
        for member in self.members:
            name = member.process.name
            if member.process.role is None:
                done, state = sights is not None, "starting" if sights is None else "ready"
            else:
                sight = (sights or {}).get(name)
                state = sight.state if sight else str(WorkerState.STARTING)
                done = state == WorkerState.READY
                if sight is not None:
                    self._note_engine(member, sight)
            self._board.set(name, state, done=done)
            if not done:
                missing.append(f"{name} ({state})")
        return missing

    def _note_engine(self, member: Member, sight: Sight) -> None:
        if not sight.engine_id or sight.engine_id in member.engines:
            return
        member.engines.append(sight.engine_id)
        runs = len(member.engines)
        name = member.process.name
        if runs > _ENGINE_TRIES:
            raise StartFailed(
                f"the engine of {name} failed {_ENGINE_TRIES} times",
                lines=member.excerpt(),
                log=member.log.path,
            )
        if runs > 1:
            self._board.note(f"{name}: its engine failed and is started again ({member.log.path})")


def describe_status(code: int) -> str:
    """An exit status in words: ``status 2`` or the signal's name."""
    if code >= 0:
        return f"status {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


async def _stop_one(member: Member, grace_s: float) -> int | None:
    return await member.child.stop(grace_s=grace_s) if member.child else None


async def _cancel(tasks: list[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
