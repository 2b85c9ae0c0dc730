"""Looking at metrics pages over real HTTP: a fake router's, and the mock servers' behind it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec
from prometheus_client.parser import text_string_to_metric_families

from baton.types import Role
from benchmarks.engine_side import Scraper, agreements, changes, server_figures, warm_cache
from benchmarks.mock import Delay, Script
from benchmarks.mock.server import MockServer
from benchmarks.records import RequestRecord, Scrape
from benchmarks.target import Target
from tests.fakes.http_server import LoopServer
from tests.fakes.waiting import until
from tests.fakes.worker_records import worker_record
from tests.unit.benchmarks.engine_side.looks import run

TOKEN = "cluster-secret"
BIG_PAGE = "".join(
    f'vllm:request_params_max_tokens_bucket{{engine="0",le="{edge}",model_name="m"}} 1.0\n'
    for edge in range(900)
)


@dataclass
class FakeRouter:
    """Answers ``/metrics`` and ``/admin/status`` as the router does, and notes who asked how."""

    workers: list[tuple[str, Role, str]] = field(default_factory=list)
    page: str = "baton_requests_in_flight 0.0\n"
    seen: list[tuple[str, str]] = field(default_factory=list)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = {name: value.decode() for name, value in scope["headers"]}
        token = headers.get(b"authorization", "")
        self.seen.append((scope["path"], token))
        status, body = 200, b""
        if scope["path"] == "/metrics":
            body = self.page.encode()
        elif scope["path"] != "/admin/status":
            status = 404
        elif token != f"Bearer {TOKEN}":
            status = 401
        else:
            views = [
                {"record": worker_record(id=name, role=role, url=url), "legs": 0, "suspect": False}
                for name, role, url in self.workers
            ]
            body = msgspec.json.encode({"version": "1", "in_flight": 0, "workers": views})
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body})


@contextlib.asynccontextmanager
async def router(fake: FakeRouter) -> AsyncIterator[str]:
    server = LoopServer(fake)
    await server.start()
    try:
        yield server.url
    finally:
        await server.stop()


@contextlib.asynccontextmanager
async def mocks(count: int, script: Script | None = None) -> AsyncIterator[list[MockServer]]:
    servers = [
        MockServer(script or Script(ttft=Delay(0.002), itl=Delay(0.001))) for _ in range(count)
    ]
    try:
        for server in servers:
            await server.start()
        yield servers
    finally:
        for server in servers:
            await server.stop()


async def ask(url: str, prompt: str = "hello", tokens: int = 3) -> RequestRecord:
    """One whole answer, as a client records it."""
    body = {"model": "m", "prompt": prompt, "max_tokens": tokens}
    async with aiohttp.ClientSession() as http, http.post(f"{url}/v1/completions", json=body) as r:
        usage = (await r.json())["usage"]
    return RequestRecord(
        index=0,
        class_name="all",
        scheduled_s=0.0,
        sent_s=0.0,
        end_s=1.0,
        status=200,
        prompt_tokens=usage["prompt_tokens"],
        output_tokens=usage["completion_tokens"],
    )


def sources(scrapes: Sequence[Scrape]) -> dict[str, str]:
    return {scrape.source: scrape.role for scrape in scrapes}


async def test_finds_the_router_and_its_workers() -> None:
    """With the cluster token every worker's page is read under its id and role, at least at the
    start and at the end, and the token is shown to the router's admin endpoint only."""
    fake = FakeRouter()
    async with router(fake) as url, mocks(2) as (p, d):
        fake.workers = [("p1", Role.PREFILL, p.url), ("d1", Role.DECODE, d.url)]
        scraper = Scraper(interval_s=60)
        zero = time.monotonic()
        await scraper.start(zero, Target(url=f"{url}/v1", cluster_token=TOKEN))
        await ask(d.url)
        scrapes = await scraper.stop()
    assert sources(scrapes) == {"router": "router", "p1": "prefill", "d1": "decode"}
    assert [scrape.source for scrape in scrapes].count("d1") == 2
    assert all(0 <= scrape.at_s < 30 for scrape in scrapes)
    assert changes(scrapes)[1].source == "d1"
    assert changes(scrapes)[1].requests == 1
    assert scraper.problems == []
    assert {path for path, token in fake.seen if token} == {"/admin/status"}


async def test_without_the_token_only_the_target_is_looked_at() -> None:
    """Nobody is asked for workers."""
    fake = FakeRouter()
    async with router(fake) as url:
        scraper = Scraper(interval_s=60)
        await scraper.start(time.monotonic(), Target(url=url))
        scrapes = await scraper.stop()
    assert sources(scrapes) == {"router": "router"}
    assert {path for path, _ in fake.seen} == {"/metrics"}


async def test_looks_come_at_the_interval_and_find_new_workers() -> None:
    """A worker that joins in the run is found."""
    fake = FakeRouter()
    async with router(fake) as url, mocks(1) as (d,):
        scraper = Scraper(interval_s=0.02)
        await scraper.start(time.monotonic(), Target(url=url, cluster_token=TOKEN))
        fake.workers = [("late", Role.DECODE, d.url)]
        await until(lambda: sum(path == "/metrics" for path, _ in fake.seen) > 14)
        scrapes = await scraper.stop()
    assert sources(scrapes)["late"] == "decode"
    assert [scrape.at_s for scrape in scrapes] == sorted(scrape.at_s for scrape in scrapes)


async def test_a_page_that_cannot_be_read_is_noted_and_not_fatal() -> None:
    """A dead worker costs its own page only."""
    fake = FakeRouter(workers=[("dead", Role.DECODE, "http://127.0.0.1:9")])
    async with router(fake) as url:
        scraper = Scraper(interval_s=60)
        target = Target(url=url, cluster_token=TOKEN, metrics_urls=(f"{url}/nothing",))
        await scraper.start(time.monotonic(), target)
        scrapes = await scraper.stop()
    assert sources(scrapes) == {"router": "router"}
    assert [(problem.code, problem.fatal) for problem in scraper.problems] == [
        ("page_unreadable", False)
    ] * 2
    assert any("status 404" in problem.text for problem in scraper.problems)


async def test_engines_without_a_router() -> None:
    """An engine's own page, and further ones with the role that a person gave them."""
    async with mocks(2) as (one, two):
        scraper = Scraper(interval_s=60)
        target = Target(url=one.url, metrics_urls=(f"prefill={two.url}",))
        await scraper.start(time.monotonic(), target)
        scrapes = await scraper.stop()
    assert sources(scrapes) == {
        f"127.0.0.1:{one.port}": "standard",
        f"127.0.0.1:{two.port}": "prefill",
    }


async def test_the_last_look_waits_until_the_servers_are_through() -> None:
    """A server that still works counts its request later: the last look has it."""
    async with mocks(1, Script(ttft=Delay(0.4), itl=Delay(0.0))) as (server,):
        scraper = Scraper(interval_s=60)
        await scraper.start(time.monotonic(), Target(url=server.url))
        asking = asyncio.create_task(ask(server.url))
        await until(lambda: server.counters.running == 1)
        scrapes = await scraper.stop()
        await asking
    assert len(scrapes) == 2
    assert changes(scrapes)[0].requests == 1


async def test_client_and_engine_agree_and_repeated_prompts_are_noticed() -> None:
    """What the engine counted is what the client had, and a prompt that was sent before the run
    is a warm cache."""
    async with mocks(1) as (server,):
        prompts = [f"{number} " * 2000 for number in range(4)]
        await ask(server.url, prompts[0])
        scraper = Scraper(interval_s=60)
        await scraper.start(time.monotonic(), Target(url=server.url))
        records = [await ask(server.url, prompt, tokens=5) for prompt in prompts]
        scrapes = await scraper.stop()
    rows = agreements("mock", [run(records, scrapes)])
    assert [row.agrees for row in rows] == [True] * 3
    figures = next(iter(server_figures(scrapes).values()))
    assert figures["generation_tokens"] == 20
    assert 0.2 < figures["prefix_hit_share"] < 0.3
    problem = warm_cache(scrapes, planned_shared_share=0.0)
    assert problem is not None
    assert problem.fatal
    assert warm_cache(scrapes, planned_shared_share=0.25) is None


async def test_a_look_does_not_disturb() -> None:
    """Asking for three pages of a thousand lines and reading them costs less than a third of
    reading them alone with the Prometheus client: well under a hundredth of a core."""
    fake = FakeRouter(page="baton_requests_in_flight 0.0\n" + BIG_PAGE)
    async with router(fake) as url:
        scraper = Scraper(interval_s=60)
        more = (f"{url}/metrics?a", f"{url}/metrics?b")
        await scraper.start(time.monotonic(), Target(url=url, metrics_urls=more))
        costs = []
        for _ in range(10):
            begin = time.process_time()
            await scraper._look()
            costs.append(time.process_time() - begin)
        scrapes = await scraper.stop()
    assert len(scrapes) == 3 * 12
    peer = []
    scraper_pages = (url, *more)
    for _ in range(5):
        begin = time.process_time()
        for _ in scraper_pages:
            assert list(text_string_to_metric_families(BIG_PAGE))
        peer.append(time.process_time() - begin)
    # The fake router's own work is in it as well.
    assert min(costs) < min(peer) / 3
