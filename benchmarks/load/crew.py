"""Those who send: this process, or several children; to the run they look the same."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Protocol

from benchmarks.load.bodies import Writer
from benchmarks.load.client import open_client
from benchmarks.load.endpoint import ResolvedTarget
from benchmarks.load.files import REQUESTS, RecordFile, ordered
from benchmarks.load.health import Quiet
from benchmarks.load.shard import Counts, Shard
from benchmarks.plan import Plan
from benchmarks.records import ClientHealth, Problem, RequestRecord


class Crew(Protocol):
    """Sends a plan. ``prepare``, then ``run``, then ``records``; ``close`` in any case."""

    async def prepare(self) -> None:
        """Everything that can be done before second zero."""
        ...

    async def run(self, zero_s: float, stop: asyncio.Event) -> ClientHealth:
        """Sends; returns when all is over. ``zero_s`` is on the monotonic clock."""
        ...

    def counts(self) -> Counts:
        """How far it is."""
        ...

    def tick(self) -> None:
        """Called several times a second: what was recorded goes to the disk."""
        ...

    def records(self) -> list[RequestRecord]:
        """What was recorded, ordered."""
        ...

    @property
    def problems(self) -> list[Problem]:
        """What went wrong with the crew itself."""
        ...

    async def close(self) -> None:
        """Leaves nothing behind; safe to call twice."""
        ...


class LocalCrew:
    """This process alone.

    Args:
        plan: what is sent.
        target: whereto.
        writer: makes prompts.
        path: where records are written as they come; None keeps them in memory alone.
        keep: whether records are kept in memory for ``records``.
        process: number of this process.
    """

    def __init__(
        self,
        plan: Plan,
        target: ResolvedTarget,
        writer: Writer,
        *,
        path: Path | None = None,
        keep: bool = True,
        process: int = 0,
    ) -> None:
        self._target = target
        self._zero_s = float("inf")
        self._kept: list[RequestRecord] | None = [] if keep else None
        self._file = RecordFile(path) if path is not None else None
        self._shard = Shard(
            plan, target, writer, self._take, now=self._now, process=process, quiet=Quiet()
        )

    @property
    def problems(self) -> list[Problem]:
        """None: it shares the run's fate."""
        return []

    async def prepare(self) -> None:
        """Builds requests."""
        await self._shard.prepare()

    async def run(self, zero_s: float, stop: asyncio.Event) -> ClientHealth:
        """Sends.

        Raises:
            Exception: a bug, or what the writer raised; the first of several.
        """
        self._zero_s = zero_s
        async with open_client(self._target, zero_s=lambda: self._zero_s) as client:
            try:
                return await self._shard.run(client, stop)
            except BaseExceptionGroup as group:
                raise first_error(group) from group

    def counts(self) -> Counts:
        """Live."""
        return self._shard.counts

    def tick(self) -> None:
        """Flushes."""
        if self._file is not None:
            self._file.tick(time.monotonic())

    def records(self) -> list[RequestRecord]:
        """Ordered."""
        return ordered(self._kept or [])

    async def close(self) -> None:
        """Ends threads, closes the file."""
        self._shard.close()
        if self._file is not None:
            self._file.close()

    def _now(self) -> float:
        return time.monotonic() - self._zero_s

    def _take(self, record: RequestRecord) -> None:
        if self._kept is not None:
            self._kept.append(record)
        if self._file is not None:
            self._file.add(record)


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error of a group of groups."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def requests_path(folder: Path | None) -> Path | None:
    """Where one process writes."""
    return None if folder is None else folder / REQUESTS
