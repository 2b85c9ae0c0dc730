"""The worker's health server over real HTTP: what is open, what takes the cluster token."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import msgspec
import pytest

from baton.errors import SettingsError
from baton.worker import health as health_module
from baton.worker.health import HealthServer, Problem, Vitals
from baton.worker.members import Answer, Beat, Phase
from tests.fakes.waiting import until
from tests.integration.test_worker_group import AUTH, TOKEN, port

BEAT = Beat(index=1, size=2, member="m", setup="s", group="g")
ANSWER = Answer(
    run="run-1", phase=Phase.RUNNING, ready=True, master_address="127.0.0.1", master_port=29500
)


class Health:
    """A health server and the worker's state that it answers from."""

    def __init__(self, *, leads: bool = True) -> None:
        self.dead: Problem | None = None
        self.unready: Problem | None = None
        self.drained = asyncio.Event()
        self.drains = 0
        self.heard: list[Beat] = []
        self.answer: Answer | str = ANSWER
        self.port = port()
        vitals = Vitals(
            dead=lambda: self.dead,
            unready=lambda: self.unready,
            drain=self._drain,
            hear=self._hear if leads else None,
        )
        self.server = HealthServer("127.0.0.1", self.port, TOKEN, vitals)

    async def _drain(self) -> Problem | None:
        self.drains += 1
        await self.drained.wait()
        return self.dead

    def _hear(self, beat: Beat) -> Answer | str:
        self.heard.append(beat)
        return self.answer

    async def ask(
        self, method: str, path: str, headers: dict[str, str] | None = None, body: bytes = b""
    ) -> tuple[int, Any]:
        async with aiohttp.ClientSession() as http:
            url = f"http://127.0.0.1:{self.port}{path}"
            async with http.request(method, url, headers=headers, data=body) as response:
                body_is_json = response.content_type == "application/json"
                said = await (response.json() if body_is_json else response.text())
                return response.status, said


@pytest.mark.parametrize(("path", "word"), [("/livez", "alive"), ("/readyz", "ready")])
async def test_probes(path: str, word: str) -> None:
    """Open to everybody; 503 comes with the reason. What happened may be an engine's output, and
    is for those with the token."""
    health = Health()
    async with health.server:
        assert await health.ask("GET", path) == (200, {word: True})
        health.dead = health.unready = Problem("the group is lost", "last line of an engine")
        expected = {word: False, "reason": "the group is lost"}
        assert await health.ask("GET", path) == (503, expected)
        assert await health.ask("GET", path, {"Authorization": "Bearer x"}) == (503, expected)
        told = await health.ask("GET", path, AUTH)
        assert told == (503, {**expected, "detail": "last line of an engine"})


async def test_many_who_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many connections are open without a whole request, a probe is answered, and what
    is asked with the token stays."""
    monkeypatch.setattr(health_module, "_MOST_CONNECTIONS", 8)
    health = Health()
    async with health.server:
        drain = asyncio.create_task(health.ask("POST", "/drain", AUTH))
        await until(lambda: health.drains == 1)
        mute = [await asyncio.open_connection("127.0.0.1", health.port) for _ in range(20)]
        for _, writer in mute:
            writer.write(b"GET /livez HT")
        assert await health.ask("GET", "/livez") == (200, {"alive": True})
        ended = await asyncio.gather(*(reader.read() for reader, _ in mute[:12]))
        assert ended == [b""] * 12
        health.drained.set()
        assert await drain == (200, {"drained": True})
        for _, writer in mute:
            writer.close()


async def test_who_says_nothing_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first moment, and with half a request as well."""
    monkeypatch.setattr(health_module, "_IDLE_S", 0.05)
    health = Health()
    async with health.server:
        for said in (b"", b"GET /livez HTTP/1.1\r\nHost: x\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", health.port)
            writer.write(said)
            assert await asyncio.wait_for(reader.read(), 5) == b""
            writer.close()


async def test_a_drain_that_ends_with_the_group() -> None:
    """The group was lost meanwhile: nothing has drained."""
    health = Health()
    async with health.server:
        asked = asyncio.create_task(health.ask("POST", "/drain", AUTH))
        await until(lambda: health.drains == 1)
        health.dead = Problem("the group is lost", "secret")
        health.drained.set()
        assert await asked == (503, {"drained": False, "reason": "the group is lost"})


@pytest.mark.parametrize("path", ["/drain", "/group/beat"])
@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "Bearer nonsense"}, {"Authorization": TOKEN}, {"X-Token": TOKEN}],
)
async def test_what_changes_something_takes_the_token(path: str, headers: dict[str, str]) -> None:
    """Without it nothing happens."""
    health = Health()
    async with health.server:
        status, body = await health.ask("POST", path, headers, msgspec.json.encode(BEAT))
    assert status == 401
    assert TOKEN not in str(body)
    assert (health.drains, health.heard) == (0, [])


async def test_drain_answers_when_it_is_over() -> None:
    """Two who ask wait for the same drain."""
    health = Health()
    async with health.server:
        asked = [asyncio.create_task(health.ask("POST", "/drain", AUTH)) for _ in range(2)]
        await until(lambda: health.drains == 2)
        assert not any(each.done() for each in asked)
        health.drained.set()
        assert await asyncio.gather(*asked) == [(200, {"drained": True})] * 2


async def test_beats() -> None:
    """Taken in as they are; the answer, or why there is none."""
    health = Health()
    async with health.server:
        status, body = await health.ask("POST", "/group/beat", AUTH, msgspec.json.encode(BEAT))
        assert (status, msgspec.convert(body, Answer)) == (200, ANSWER)
        assert health.heard == [BEAT]
        health.answer = "not of this group"
        refused = await health.ask("POST", "/group/beat", AUTH, msgspec.json.encode(BEAT))
        assert refused == (409, {"error": "not of this group"})


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"index": "one"}', b"\xff", b"x" * 20_000])
async def test_what_is_no_beat(body: bytes) -> None:
    """Refused, whatever it is."""
    health = Health()
    async with health.server:
        status, _ = await health.ask("POST", "/group/beat", AUTH, body)
        assert status in (400, 413)
        assert (await health.ask("GET", "/livez"))[0] == 200
    assert health.heard == []


async def test_only_leaders_hear_beats() -> None:
    """Elsewhere there is no such path."""
    health = Health(leads=False)
    async with health.server:
        status, _ = await health.ask("POST", "/group/beat", AUTH, msgspec.json.encode(BEAT))
        assert status == 404


async def test_a_port_that_is_taken() -> None:
    """Said with the flag to change."""
    first, second = Health(), Health()
    second.server = HealthServer("127.0.0.1", first.port, TOKEN, first.server._vitals)
    async with first.server:
        with pytest.raises(SettingsError, match="--health-port"):
            async with second.server:
                pass


async def test_no_port_no_server() -> None:
    """As workers outside clusters have it."""
    health = Health()
    async with HealthServer("127.0.0.1", 0, TOKEN, health.server._vitals):
        with pytest.raises(aiohttp.ClientConnectionError):
            await health.ask("GET", "/livez")
