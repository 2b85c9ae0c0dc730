"""Several processes that send one plan: each builds the whole plan from the same seed and sends its
part of it, on the machine's one monotonic clock.

A child gets its job, the key included, as its first line of stdin and never in its arguments; a
second line tells it second zero. It writes its records to a file of its own and says on stdout how
far it is. Children die with their parent; one that dies alone leaves the others at work, and a
problem in the result.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

import msgspec

from baton.errors import BatonError, OurFault, TargetError, WorkloadError
from baton.process import PARENT_VARIABLE
from benchmarks.load.endpoint import ResolvedTarget
from benchmarks.load.files import PART, merge_parts, read_records
from benchmarks.load.health import worst
from benchmarks.load.shard import Counts
from benchmarks.records import ClientHealth, Problem, RequestRecord

_START_S = 300.0
"""Importing and building a large plan and its first prompts."""
_STOP_S = 10.0
_MAX_LINE = 1 << 20
_TAIL_LINES = 20
_DRAIN_SPARE_S = 30.0


class Job(msgspec.Struct, kw_only=True):
    """All that a child needs; ``workload`` is the workload's model as plain data."""

    workload: dict[str, Any]
    target: ResolvedTarget
    seed: int
    rate_scale: float
    time_scale: float
    duration_s: float | None
    salt: str
    shard: int
    shards: int
    path: str


class Order(msgspec.Struct, omit_defaults=True):
    """Parent to child: second zero on the monotonic clock, or the wish to stop."""

    zero_s: float | None = None
    stop: bool = False


def _encode(what: Job | Order) -> bytes:
    # A path is the only thing in a job that JSON has no form for.
    return msgspec.json.encode(what, enc_hook=str)


def decode_job(line: bytes) -> Job:
    """A child's first line."""
    return msgspec.json.decode(line, type=Job, dec_hook=lambda kind, value: kind(value))


class Word(msgspec.Struct, omit_defaults=True):
    """Child to parent, one JSON line each: exactly one of them is set."""

    ready: bool = False
    counts: tuple[int, int, int] | None = None
    health: ClientHealth | None = None
    error: str | None = None
    kind: str | None = None


_ERRORS: dict[str, type[BatonError]] = {
    error.__name__: error for error in (WorkloadError, TargetError)
}


class _Member:
    """One child."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.counts = Counts()
        self.health: ClientHealth | None = None
        self.error: BatonError | None = None
        self.ready = asyncio.Event()
        self.process: asyncio.subprocess.Process | None = None
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._readers: list[asyncio.Task[None]] = []

    async def start(self, job: Job) -> None:
        env = {**os.environ, PARENT_VARIABLE: str(os.getpid())}
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.load"),
            env=env,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            limit=_MAX_LINE,
        )
        self._readers = [
            asyncio.create_task(self._listen(), name=f"load-{self.number}"),
            asyncio.create_task(self._follow_errors(), name=f"load-errors-{self.number}"),
        ]
        await self.say(job)

    async def say(self, what: Job | Order) -> None:
        """One line; a child that is gone does not hear it."""
        assert self.process is not None
        assert self.process.stdin is not None
        with contextlib.suppress(ConnectionError):
            self.process.stdin.write(_encode(what) + b"\n")
            await self.process.stdin.drain()

    async def wait(self) -> None:
        """Until it has ended and everything it said was heard."""
        assert self.process is not None
        await self.process.wait()
        await asyncio.wait(self._readers, timeout=2.0)

    async def close(self) -> None:
        """Kills its group, if it is still there."""
        if self.process is None:
            return
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            await self.process.wait()
        for task in self._readers:
            task.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        if self.process.stdin is not None:
            self.process.stdin.close()

    async def _listen(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        decoder = msgspec.json.Decoder(Word)
        try:
            while line := await self.process.stdout.readline():
                try:
                    word = decoder.decode(line)
                except msgspec.DecodeError:
                    self.tail.append(line.decode("utf-8", "replace").rstrip())
                    continue
                if word.ready:
                    self.ready.set()
                if word.counts is not None:
                    self.counts = Counts(*word.counts)
                if word.health is not None:
                    self.health = word.health
                if word.error is not None:
                    self.error = _ERRORS.get(word.kind or "", OurFault)(word.error)
        finally:
            # Whoever waits for it to be ready looks at what became of it.
            self.ready.set()

    async def _follow_errors(self) -> None:
        assert self.process is not None
        assert self.process.stderr is not None
        while line := await self.process.stderr.readline():
            self.tail.append(line.decode("utf-8", "replace").rstrip())


class ChildCrew:
    """Several children.

    Args:
        job: what to do; ``shard``, ``shards`` and ``path`` are filled in here.
        count: how many.
        folder: where records are merged into; None uses a scratch folder.
        most_s: after second zero, when all must have ended by themselves, give or take half a
            minute; whoever has not is killed. None waits.
    """

    def __init__(
        self, job: Job, count: int, folder: Path | None, *, most_s: float | None = None
    ) -> None:
        self._job = job
        self._most_s = most_s
        self._members = [_Member(number) for number in range(count)]
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        if folder is None:
            self._scratch = tempfile.TemporaryDirectory(prefix="baton-load-")
            folder = Path(self._scratch.name)
        self._folder = folder
        self._problems: list[Problem] = []

    @property
    def problems(self) -> list[Problem]:
        """Children that died."""
        return self._problems

    @property
    def pids(self) -> list[int]:
        """Of the children that were started."""
        return [member.process.pid for member in self._members if member.process is not None]

    async def prepare(self) -> None:
        """Starts the children; returns when all have built their part.

        Raises:
            WorkloadError: the plan cannot be built.
            TargetError: the tokenizer cannot be read.
            OurFault: a child did not come up; with what it said.
        """
        for member in self._members:
            job = msgspec.structs.replace(
                self._job,
                shard=member.number,
                shards=len(self._members),
                path=str(self._folder / PART.format(member.number)),
            )
            await member.start(job)
        try:
            async with asyncio.timeout(_START_S):
                for member in self._members:
                    await member.ready.wait()
        except TimeoutError as error:
            raise OurFault(f"a sending process was not ready within {_START_S:g} s") from error
        for member in self._members:
            assert member.process is not None
            if member.error is not None:
                raise member.error
            if member.process.stdout is None or member.process.stdout.at_eof():
                raise OurFault("a sending process did not start:\n" + "\n".join(member.tail))

    async def run(self, zero_s: float, stop: asyncio.Event) -> ClientHealth:
        """Tells second zero and waits for all of them; a stopped or wedged one not for ever."""
        for member in self._members:
            await member.say(Order(zero_s=zero_s))
        waiting = asyncio.gather(*(member.wait() for member in self._members))
        stopping = asyncio.create_task(self._stop_on(stop), name="stop-children")
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._patience_s(zero_s)):
                    await waiting
        finally:
            stopping.cancel()
            waiting.cancel()
            await asyncio.gather(waiting, stopping, return_exceptions=True)
        for member in self._members:
            await member.close()
            self._judge(member)
        return worst(member.health for member in self._members if member.health is not None)

    def _patience_s(self, zero_s: float) -> float | None:
        if self._most_s is None:
            return None
        return max(0.0, zero_s - time.monotonic()) + self._most_s + _DRAIN_SPARE_S

    def counts(self) -> Counts:
        """Of all."""
        parts = [member.counts for member in self._members]
        return Counts(
            sum(p.done for p in parts),
            sum(p.in_flight for p in parts),
            sum(p.errors for p in parts),
        )

    def tick(self) -> None:
        """Children write by themselves."""

    def records(self) -> list[RequestRecord]:
        """Merges the files, then reads them."""
        merge_parts(self._folder)
        return read_records(self._folder)

    async def close(self) -> None:
        """Leaves no child."""
        await asyncio.gather(*(member.close() for member in self._members))
        if self._scratch is not None:
            self._scratch.cleanup()

    async def _stop_on(self, stop: asyncio.Event) -> None:
        await stop.wait()
        for member in self._members:
            await member.say(Order(stop=True))
        await asyncio.sleep(_STOP_S)
        for member in self._members:
            await member.close()

    def _judge(self, member: _Member) -> None:
        assert member.process is not None
        if member.error is not None:
            self._problems.append(
                Problem(
                    "process_failed", f"Sending process {member.number}: {member.error.message}"
                )
            )
        elif member.health is None:
            code = member.process.returncode
            said = f" It said: {member.tail[-1][:300]}" if member.tail else ""
            self._problems.append(
                Problem(
                    "process_died",
                    f"Sending process {member.number} of {len(self._members)} died with status "
                    f"{code}; what it had not written yet is lost.{said}",
                )
            )
