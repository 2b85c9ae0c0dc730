"""The HTTP registrar against a server on loopback that plays the router."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from baton.errors import BatonError, NotAuthorized, StoreUnavailable, TooManyRequests
from baton.registrar import HttpRegistrar, heartbeat_loop
from baton.types import WorkerId, WorkerRecord
from tests.fakes.worker_records import worker_record

TOKEN = "s3cret-cluster-token"


@dataclass
class FakeRouter:
    """Answers ``status`` to everything, after ``takes_s``, and keeps what it was sent."""

    status: int = 204
    text: str = ""
    takes_s: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    seen: list[tuple[str, str, str | None, bytes]] = field(default_factory=list)
    url: str = ""
    answered: asyncio.Queue[int] = field(default_factory=asyncio.Queue)

    async def see(self, count: int) -> None:
        """Waits for that many more requests."""
        async with asyncio.timeout(5):
            for _ in range(count):
                await self.answered.get()

    async def answer(self, request: web.Request) -> web.Response:
        authorization = request.headers.get("Authorization")
        body = await request.read()
        self.seen.append((request.method, request.raw_path, authorization, body))
        await asyncio.sleep(self.takes_s)
        self.answered.put_nowait(self.status)
        return web.Response(status=self.status, text=self.text, headers=self.headers)


@pytest.fixture
async def router() -> AsyncIterator[FakeRouter]:
    router = FakeRouter()
    application = web.Application()
    application.router.add_route("*", "/{anything:.*}", router.answer)
    async with TestServer(application) as server:
        router.url = str(server.make_url("")).rstrip("/")
        yield router


@pytest.fixture
async def registrar(router: FakeRouter) -> AsyncIterator[HttpRegistrar]:
    registrar = HttpRegistrar(router.url, TOKEN, ttl_s=5.0, timeout_s=0.3)
    yield registrar
    await registrar.close()


async def test_a_heartbeat(router: FakeRouter, registrar: HttpRegistrar) -> None:
    """PUT with the record as JSON, the TTL in the query and the token in the header."""
    record = worker_record("w-1")
    await registrar.heartbeat(record)
    ((method, path, authorization, body),) = router.seen
    assert (method, path) == ("PUT", "/internal/workers/w-1?ttl_s=5.0")
    assert authorization == f"Bearer {TOKEN}"
    assert msgspec.json.decode(body, type=WorkerRecord) == record


async def test_a_withdrawal(router: FakeRouter, registrar: HttpRegistrar) -> None:
    """DELETE on the same path, with the token."""
    await registrar.withdraw(WorkerId("w-1"))
    assert router.seen == [("DELETE", "/internal/workers/w-1", f"Bearer {TOKEN}", b"")]


async def test_ids_are_one_segment(router: FakeRouter, registrar: HttpRegistrar) -> None:
    """An id with a slash or a question mark stays an id."""
    await registrar.withdraw(WorkerId("a/b?c#d %"))
    assert router.seen[0][1] == "/internal/workers/a%2Fb%3Fc%23d%20%25"


async def test_a_router_below_a_path(router: FakeRouter) -> None:
    """The URL may have a path, with or without a slash at its end."""
    for base in (f"{router.url}/base", f"{router.url}/base/"):
        registrar = HttpRegistrar(base, TOKEN)
        await registrar.withdraw(WorkerId("w"))
        await registrar.close()
    assert [path for _, path, _, _ in router.seen] == ["/base/internal/workers/w"] * 2


@pytest.mark.parametrize(
    ("status", "kind", "says"),
    [
        (401, NotAuthorized, "BATON_CLUSTER_TOKEN"),
        (403, NotAuthorized, "BATON_CLUSTER_TOKEN"),
        (429, TooManyRequests, "no more workers"),
        (404, StoreUnavailable, "is it a Baton router"),
        (400, StoreUnavailable, "answered 400 to PUT: 'because'"),
        (500, StoreUnavailable, "answered 500"),
        (503, StoreUnavailable, "answered 503"),
    ],
)
async def test_refusals(
    router: FakeRouter,
    registrar: HttpRegistrar,
    status: int,
    kind: type[BatonError],
    says: str,
) -> None:
    """Each status is the error that says whether trying again can help."""
    router.status, router.text = status, "because"
    with pytest.raises(kind, match=says) as caught:
        await registrar.heartbeat(worker_record())
    assert TOKEN not in str(caught.value)


async def test_a_redirect_is_not_followed(router: FakeRouter, registrar: HttpRegistrar) -> None:
    """The token goes to the router that was named and nowhere else."""
    router.status, router.headers = 307, {"Location": f"{router.url}/elsewhere"}
    with pytest.raises(StoreUnavailable, match="answered 307"):
        await registrar.heartbeat(worker_record())
    assert len(router.seen) == 1


async def test_a_long_answer_is_cut(router: FakeRouter, registrar: HttpRegistrar) -> None:
    """A page of error text does not end up in the log."""
    router.status, router.text = 502, "x" * 1_000_000
    with pytest.raises(StoreUnavailable) as caught:
        await registrar.heartbeat(worker_record())
    assert len(str(caught.value)) < 1000


async def test_a_hung_router(router: FakeRouter, registrar: HttpRegistrar) -> None:
    """No answer within the timeout is a registry that is away."""
    router.takes_s = 30.0
    with pytest.raises(StoreUnavailable, match=r"within 0\.3 s"):
        await registrar.heartbeat(worker_record())


async def test_no_router() -> None:
    """A refused connection too, with its cause."""
    registrar = HttpRegistrar("http://127.0.0.1:1", TOKEN)
    with pytest.raises(StoreUnavailable, match="cannot be reached") as caught:
        await registrar.heartbeat(worker_record())
    assert isinstance(caught.value.__cause__, OSError)
    await registrar.close()


async def test_a_closed_registrar(registrar: HttpRegistrar) -> None:
    """Closing twice is fine; it cannot be used afterwards."""
    await registrar.withdraw(WorkerId("w"))
    await registrar.close()
    await registrar.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        await registrar.withdraw(WorkerId("w"))


async def test_the_loop_over_http(
    router: FakeRouter, registrar: HttpRegistrar, caplog: pytest.LogCaptureFixture
) -> None:
    """Heartbeats, a router that fails and recovers, withdrawal; the token is never logged."""
    caplog.set_level(logging.DEBUG)
    stop, wake = asyncio.Event(), asyncio.Event()

    async def make_record() -> WorkerRecord:
        return worker_record("w-1")

    loop = asyncio.create_task(
        heartbeat_loop(registrar, make_record, interval_s=0.01, stop=stop, wake=wake)
    )
    await router.see(2)
    router.status = 503
    await router.see(3)
    router.status = 204
    await router.see(3)
    stop.set()
    await loop
    assert [method for method, _, _, _ in router.seen].count("DELETE") == 1
    assert router.seen[-1][0] == "DELETE"
    messages = [record.getMessage() for record in caplog.records if "registry" in record.message]
    assert len(messages) == 2
    assert TOKEN not in caplog.text
