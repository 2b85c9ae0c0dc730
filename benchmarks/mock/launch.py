"""The mock as a child process, so that it does not share an event loop with what it tests."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from baton.errors import TargetError
from baton.process import Child
from benchmarks.mock.script import Script

LISTENING = "mock server on "
_START_S = 30.0
_STOP_S = 5.0


class MockProcess:
    """A running mock; ``url`` is its base URL, ``pid`` its process."""

    def __init__(self, child: Child, url: str) -> None:
        self._child = child
        self.url = url

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._child.pid is not None
        return self._child.pid

    async def stop(self) -> None:
        """Ends it; its truth log is whole then. Safe to call twice."""
        await self._child.stop(grace_s=_STOP_S)


@contextlib.asynccontextmanager
async def mock_process(script: Script, *, truth: Path | None = None) -> AsyncIterator[MockProcess]:
    """Starts a mock on a free loopback port and ends it with the block.

    Raises:
        TargetError: it did not start; the message has what it printed.
    """
    listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def on_line(line: str) -> None:
        if line.startswith(LISTENING) and not listening.done():
            listening.set_result(line.removeprefix(LISTENING))

    argv = [sys.executable, "-m", "benchmarks.mock", "--script", _text(script)]
    if truth is not None:
        argv += ["--truth", str(truth)]
    child = Child("mock", argv, os.environ, on_line=on_line)
    await child.start()
    try:
        ended = asyncio.create_task(child.wait(), name="mock-ended")
        try:
            either: list[asyncio.Future[Any]] = [listening, ended]
            await asyncio.wait(either, timeout=_START_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
            await asyncio.gather(ended, return_exceptions=True)
        if not listening.done():
            raise TargetError("the mock server did not start:\n" + "\n".join(child.tail))
        yield MockProcess(child, listening.result())
    finally:
        await child.stop(grace_s=_STOP_S)


def _text(script: Script) -> str:
    return msgspec.json.encode(script).decode()
