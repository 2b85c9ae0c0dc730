"""``python -m router`` as a process of its own: it serves, it drains, it says what is wrong."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from baton.registrar import HttpRegistrar
from baton.settings import free_port
from baton.types import Role
from tests.fakes.engine import KEY, MODEL, FakeEngine, Fleet, Leg, expected_text
from tests.fakes.waiting import until
from tests.integration.router_cluster import COMPLETIONS, PROFILE

LONG = "a prompt well over the threshold of the profile " * 4


@dataclass
class Running:
    """A router process."""

    process: asyncio.subprocess.Process
    url: str

    async def end(self) -> tuple[int, str]:
        """Its exit status and everything it said."""
        async with asyncio.timeout(15):
            said, _ = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, said.decode()


async def start(home: Path, *args: str, profile: str = PROFILE) -> Running:
    port = free_port("127.0.0.1", 18_000)
    (home / "profile.yaml").write_text(profile)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "router", "--profile", str(home / "profile.yaml")),
        *("--port", str(port), "--admin-port", "0", "--home", str(home), *args),
        env={**os.environ, "BATON_CLUSTER_TOKEN": KEY},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    return Running(process, f"http://127.0.0.1:{port}")


@pytest.fixture
async def router(tmp_path: Path) -> AsyncIterator[Running]:
    running = await start(tmp_path)
    yield running
    with contextlib.suppress(ProcessLookupError):
        running.process.kill()
    await running.process.wait()


@pytest.fixture
async def engines() -> AsyncIterator[tuple[FakeEngine, FakeEngine]]:
    fleet = Fleet()
    pair = FakeEngine(fleet, "p", Role.PREFILL), FakeEngine(fleet, "d", Role.DECODE)
    for engine in pair:
        await engine.start()
    yield pair
    await asyncio.gather(*(engine.kill() for engine in pair))


async def answers(http: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with http.get(url) as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False


async def test_serves_and_drains(router: Running, engines: tuple[FakeEngine, FakeEngine]) -> None:
    """A long prompt goes both ways; SIGTERM lets the stream end, and the status is 0."""
    prefill, decode = engines
    async with aiohttp.ClientSession() as http:
        async with asyncio.timeout(20):
            while not await answers(http, f"{router.url}/healthz"):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        registrar = HttpRegistrar(router.url, KEY)
        for engine in engines:
            await registrar.heartbeat(engine.record())
        await registrar.close()
        decode.token_s = 0.05
        body = {"model": MODEL, "prompt": LONG, "max_tokens": 8, "stream": True}
        async with http.post(router.url + COMPLETIONS, json=body) as response:
            assert response.headers["x-baton-path"] == "disaggregated"
            router.process.send_signal(signal.SIGTERM)
            text = (await response.read()).decode()
        assert text.count('"finish_reason":') == 8
        assert expected_text(LONG, 1) in text
        assert text.endswith("data: [DONE]\n\n")
    status, said = await router.end()
    assert status == 0, said
    assert "Traceback" not in said
    assert KEY not in said
    assert [s.leg for s in prefill.requests()] == [Leg.PREFILL]
    await until(lambda: decode.requests()[0].finished)


@pytest.mark.parametrize(
    ("profile", "args", "says"),
    [
        (PROFILE.replace("mode: disaggregated", "mode: magic"), [], "mode"),
        (PROFILE, ["--store", "ftp://x"], "ftp"),
        (PROFILE, ["--log-level", "loud"], "loud"),
    ],
)
async def test_wrong_settings(tmp_path: Path, profile: str, args: list[str], says: str) -> None:
    """One clear message and status 2, not a traceback."""
    running = await start(tmp_path, *args, profile=profile)
    status, said = await running.end()
    assert status == 2, said
    assert says in said
    assert "Traceback" not in said
