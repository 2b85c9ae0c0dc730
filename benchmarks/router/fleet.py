"""The mock workers of one run: a child process, its URLs, and its book."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from baton.errors import TargetError
from baton.process import Child
from benchmarks.router.book import Counts
from benchmarks.router.worker import BOOK_PATH, LISTENING

_START_S = 30.0
_STOP_S = 3.0
_ASK_S = 20.0


@dataclass(frozen=True, slots=True)
class Fleet:
    """Where the workers listen.

    Attributes:
        prefill, decode, standard: URLs.
        tokenizer: folder with the model's tokenizer.
        pid: of the process that is all of them.
    """

    prefill: tuple[str, ...]
    decode: tuple[str, ...]
    standard: tuple[str, ...]
    tokenizer: Path
    pid: int

    async def counts(self) -> Counts:
        """What the workers saw so far.

        Raises:
            TargetError: they do not answer.
        """
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_ASK_S)) as http,
                http.get(self.standard[0] + BOOK_PATH) as answer,
            ):
                return msgspec.json.decode(await answer.read(), type=Counts)
        except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError) as error:
            raise TargetError(f"the mock workers do not answer: {error}") from error


@contextlib.asynccontextmanager
async def open_fleet(each: int, *, gap_s: float, tokenizer: Path) -> AsyncIterator[Fleet]:
    """Starts the workers, ``each`` of every role, and ends them with the block.

    Args:
        each: workers per role.
        gap_s: seconds between the tokens of a stream.
        tokenizer: folder with the model's tokenizer.

    Raises:
        TargetError: they did not start.
    """
    listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def on_line(line: str) -> None:
        if line.startswith(LISTENING) and not listening.done():
            listening.set_result(line.removeprefix(LISTENING))

    roles = [role for role in ("prefill", "decode", "standard") for _ in range(each)]
    argv = [sys.executable, "-m", "benchmarks.router.worker", "--gap", str(gap_s), *roles]
    child = Child("mock-workers", argv, os.environ, on_line=on_line)
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
            raise TargetError("the mock workers did not start:\n" + "\n".join(child.tail))
        urls = listening.result().split()
        assert child.pid is not None
        yield Fleet(
            prefill=tuple(urls[:each]),
            decode=tuple(urls[each : 2 * each]),
            standard=tuple(urls[2 * each :]),
            tokenizer=tokenizer,
            pid=child.pid,
        )
    finally:
        await child.stop(grace_s=_STOP_S)
