"""Tenants over HTTP: who gets in, how much they get, and that no key is ever told to anybody."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from baton.types import Limits
from router.tenants import FileBook, TenantSpec, hash_key, new_key
from tests.fakes.engine import KEY, MODEL
from tests.fakes.waiting import until
from tests.integration.router_cluster import (
    ADMIN_KEY,
    CHAT,
    COMPLETIONS,
    LONG,
    SHORT,
    Answer,
    Cluster,
    cluster,
    right_chat,
    right_text,
)

A, B = new_key(), new_key()
"""The keys of the tenants ``anna`` and ``bert``."""

ONE_AT_A_TIME = (
    ("slots_factor: 10", "slots_factor: 1"),
    ("connect_s: 0.5, prefill_s: 1, first_token_s: 1, idle_s: 0.5, total_s: 3",
     "connect_s: 20, prefill_s: 60, first_token_s: 60, idle_s: 60, total_s: 120"),
    ("in_flight: 32", "in_flight: 200"),
)  # fmt: skip
"""The gate lets as many out as there are slots, and no deadline ends anything."""


async def write(path: Path, **tenants: TenantSpec) -> None:
    """Makes these the tenants of the file."""

    def edit(found: dict[str, TenantSpec]) -> None:
        found.clear()
        found.update(tenants)

    await FileBook(path).change(edit)


def spec(key: str, **more: Any) -> TenantSpec:
    return TenantSpec(key_hashes=[hash_key(key)], **more)


@contextlib.asynccontextmanager
async def tenants_of(
    folder: Path, replace: Any = (), **tenants: TenantSpec
) -> AsyncIterator[tuple[Cluster, Path]]:
    """A cluster that these tenants may use."""
    path = folder / "tenants.yaml"
    await write(path, **tenants)
    async with cluster(tenants=path, replace=replace) as c:
        yield c, path


def bearer(key: str, **more: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}", **more}


async def complete(c: Cluster, key: str, prompt: str = SHORT, **more: Any) -> Answer:
    headers = bearer(key, **more.pop("headers", {}))
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 8, **more}
    return await c.call("POST", COMPLETIONS, json=body, headers=headers)


def client_of(c: Cluster, key: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{c.url}/v1", api_key=key, max_retries=0)


# --- who gets in --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer "},
        {"Authorization": f"Bearer {new_key()}"},
        {"Authorization": f"Basic {A}"},
        {"Authorization": A},
        {"Authorization": f"Bearer {A}x"},
        {"Authorization": f"Bearer {KEY}"},
        {"Authorization": f"Bearer {ADMIN_KEY}"},
        {"Authorization": "Bearer wrong", "x-api-key": A},
        {"x-api-key": "wrong"},
    ],
)
async def test_nobody_gets_in_without_a_key(headers: dict[str, str], tmp_path: Path) -> None:
    """At no endpoint that clients use, whatever the body is; no engine hears of it."""
    async with tenants_of(tmp_path, anna=spec(A)) as (c, _):
        before = [len(engine.seen) for engine in c.engines]
        for path in (CHAT, COMPLETIONS, "/v1/responses", "/v1/embeddings", "/tokenize"):
            answer = await c.call("POST", path, data=b"{", headers=headers)
            assert answer.status == 401
            assert answer.error["code"] == "invalid_api_key"
            assert answer.error["type"] == "invalid_request_error"
        answer = await c.call("POST", "/v1/messages", data=b"{", headers=headers)
        assert answer.status == 401
        assert answer.json["type"] == "error"
        assert answer.json["error"]["type"] == "authentication_error"
        for path in ("/v1/models", f"/v1/models/{MODEL}"):
            answer = await c.call("GET", path, headers=headers)
            assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
        assert [len(engine.seen) for engine in c.engines] == before
        # What is not for clients needs none of their keys.
        assert (await c.call("GET", "/readyz", headers=headers)).status == 200


async def test_the_official_clients(tmp_path: Path) -> None:
    """Keys go in as they send them, and they raise what their users know."""
    denied = new_key()
    few = new_key()
    async with (
        tenants_of(
            tmp_path,
            anna=spec(A),
            denied=spec(denied, models=["other*"]),
            few=spec(few, requests_per_minute=1),
        ) as (c, _),
        client_of(c, A) as anna,
        client_of(c, "bt-wrong") as wrong,
        client_of(c, denied) as shut_out,
        client_of(c, few) as limited,
    ):
        messages: Any = [{"role": "user", "content": LONG}]
        said = await anna.chat.completions.create(model=MODEL, messages=messages, max_tokens=8)
        assert said.choices[0].message.content == right_chat()
        assert [model.id for model in (await anna.models.list()).data] == [MODEL]
        with pytest.raises(openai.AuthenticationError, match="Incorrect API key"):
            await wrong.chat.completions.create(model=MODEL, messages=messages)
        with pytest.raises(openai.PermissionDeniedError) as not_allowed:
            await shut_out.completions.create(model=MODEL, prompt=LONG, stream=True)
        assert not_allowed.value.param == "model"
        assert (await shut_out.models.list()).data == []
        with pytest.raises(openai.NotFoundError):
            await shut_out.models.retrieve(MODEL)
        await limited.completions.create(model=MODEL, prompt=SHORT, max_tokens=2)
        with pytest.raises(openai.RateLimitError) as too_many:
            await limited.completions.create(model=MODEL, prompt=SHORT)
        assert too_many.value.code == "rate_limit_exceeded"
        assert 1 <= int(too_many.value.response.headers["retry-after"]) <= 60
        async with anthropic.AsyncAnthropic(base_url=c.url, api_key=A, max_retries=0) as named:
            message = await named.messages.create(model=MODEL, messages=messages, max_tokens=8)
            assert message.content
        async with anthropic.AsyncAnthropic(base_url=c.url, api_key="x", max_retries=0) as nobody:
            with pytest.raises(anthropic.AuthenticationError):
                await nobody.messages.create(model=MODEL, messages=messages, max_tokens=8)


# --- how much they get --------------------------------------------------------------------------


async def test_limits_in_headers(tmp_path: Path) -> None:
    """Each answer says what is left; what a limit refuses costs no tokens."""
    async with tenants_of(
        tmp_path, anna=spec(A, requests_per_minute=3, tokens_per_minute=60_000), bert=spec(B)
    ) as (c, _):
        left = []
        for _ in range(3):
            answer = await complete(c, A)
            assert answer.status == 200
            assert answer.headers["x-ratelimit-limit-requests"] == "3"
            assert answer.headers["x-ratelimit-limit-tokens"] == "60000"
            assert answer.headers["x-ratelimit-reset-requests"]
            left.append(int(answer.headers["x-ratelimit-remaining-requests"]))
            assert 0 < int(answer.headers["x-ratelimit-remaining-tokens"]) < 60_000
        assert left == [2, 1, 0]
        for stream in (False, True):
            answer = await complete(c, A, stream=stream)
            assert answer.status == 429
            assert answer.error["type"] == "rate_limit_error"
            assert "anna" in answer.error["message"]
            assert int(answer.headers["retry-after"]) >= 1
        # Other tenants have limits of their own, or none.
        answer = await complete(c, B)
        assert answer.status == 200
        assert not any(name.startswith("x-ratelimit") for name in answer.headers)


async def test_tokens_are_settled_by_what_was_used(tmp_path: Path) -> None:
    """What was reserved for a long answer is given back where none came, and is gone where one
    did."""
    async with tenants_of(tmp_path, anna=spec(A, tokens_per_minute=2100)) as (c, _):
        # Of 2,100 there are, 1,900 are reserved each time; the engine refuses the request.
        c.d.max_model_len = 20
        for _ in range(5):
            assert (await complete(c, A, max_tokens=1900)).status == 400
        c.d.max_model_len = 2048
        assert (await complete(c, A, max_tokens=1900, stream=True)).status == 200
        answer = await complete(c, A, max_tokens=1900)
        assert answer.status == 429
        assert "2100 tokens per minute" in answer.error["message"]


async def test_requests_at_a_time(tmp_path: Path) -> None:
    """One too many is refused at once, and there is room when one has ended, or its client left."""
    async with tenants_of(tmp_path, ONE_AT_A_TIME, anna=spec(A, concurrency=2), bert=spec(B)) as (
        c,
        _,
    ):
        c.d.token_s = 0.05
        two = [asyncio.create_task(complete(c, A, max_tokens=900)) for _ in range(2)]
        await until(lambda: len(c.d.requests()) == 2)
        answer = await complete(c, A)
        assert answer.status == 429
        assert answer.headers["retry-after"] == "1"
        assert "2 requests at a time" in answer.error["message"]
        assert (await complete(c, B, max_tokens=1)).status == 200
        two[0].cancel()
        await until(lambda: c.state.limits.running() == {"anna": 1})
        assert (await complete(c, A, max_tokens=1)).status == 200
        two[1].cancel()
        await asyncio.gather(*two, return_exceptions=True)
        await until(lambda: c.state.limits.running() == {})


async def test_refused_requests_hold_nothing(tmp_path: Path) -> None:
    """However a request ends, what the tenant had reserved for it is free again."""
    async with tenants_of(tmp_path, anna=spec(A, concurrency=1)) as (c, _):
        for body in (b"{", b"{}", b'{"model": "tiny"}', b'{"model": "nope", "prompt": "x"}'):
            assert (await c.call("POST", COMPLETIONS, data=body, headers=bearer(A))).status in (
                400,
                404,
            )
        for headers in ({"x-baton-priority": "x"}, {"x-baton-timeout-s": "x"}):
            assert (await complete(c, A, headers=headers)).status == 400
        assert c.state.limits.running() == {}
        assert (await complete(c, A)).text == right_text(SHORT)


# --- whose turn it is ---------------------------------------------------------------------------


def order(c: Cluster) -> list[str]:
    """The ``user`` of each request that decode has seen, in order."""
    return [seen.body["user"] for seen in c.d.requests()]


async def few_slots(c: Cluster, slots: int) -> None:
    await c.register(c.d, limits=Limits(max_model_len=2048, slots=slots))
    c.state.gate.kick()


async def occupy(c: Cluster, key: str) -> asyncio.Task[Answer]:
    """A stream that takes the only slot until ``c.d`` is thawed."""
    c.d.token_s = 0.05
    task = asyncio.create_task(complete(c, key, user="first", stream=True, max_tokens=900))
    await until(lambda: c.d.running == 1)
    c.d.freeze()
    c.d.token_s = 0.0
    return task


async def test_a_greedy_tenant_and_a_modest_one(tmp_path: Path) -> None:
    """Sixty requests of one tenant are waiting when another comes with one at a time: each is
    among the next few that go out, as if the others were not there."""
    async with tenants_of(tmp_path, ONE_AT_A_TIME, greedy=spec(A), modest=spec(B)) as (c, _):
        await few_slots(c, 2)
        c.d.token_s = 0.002
        flood = [asyncio.create_task(complete(c, A, user="greedy")) for _ in range(60)]
        await until(lambda: sum(c.state.gate.snapshot().waiting_by_model.values()) >= 50)
        for turn in range(4):
            before = len(order(c))
            answer = await complete(c, B, user=f"modest-{turn}")
            assert answer.text == right_text(SHORT)
            assert order(c).index(f"modest-{turn}") - before <= 3
        assert not all(task.done() for task in flood), "the flood ended too soon to show anything"
        assert {a.status for a in await asyncio.gather(*flood)} == {200}


async def test_weights(tmp_path: Path) -> None:
    """Two floods share the slots by weight."""
    first_of_all = new_key()
    async with tenants_of(
        tmp_path,
        ONE_AT_A_TIME,
        anna=spec(A, weight=3.0),
        bert=spec(B),
        first=spec(first_of_all),
    ) as (c, _):
        await few_slots(c, 1)
        first = await occupy(c, first_of_all)
        flood = [
            asyncio.create_task(complete(c, key, user=user))
            for _ in range(20)
            for key, user in ((A, "anna"), (B, "bert"))
        ]
        await until(lambda: sum(c.state.gate.snapshot().waiting_by_model.values()) == 40)
        c.d.thaw()
        await asyncio.gather(first, *flood)
        assert 13 <= order(c)[1:21].count("anna") <= 17


async def test_priorities(tmp_path: Path) -> None:
    """Higher bands first; a request may ask for less than its tenant has, and not for more."""
    async with tenants_of(tmp_path, ONE_AT_A_TIME, anna=spec(A, priority=5), bert=spec(B)) as (
        c,
        _,
    ):
        await few_slots(c, 1)
        waiting = [await occupy(c, A)]
        for key, user, asked in (
            (B, "sheddable", "-1"),
            (B, "plain", None),
            (B, "presumptuous", "50"),
            (A, "anna, low", "0"),
            (A, "anna", None),
        ):
            headers = {} if asked is None else {"x-baton-priority": asked}
            task = complete(c, key, user=user, headers=headers)
            held = c.state.gate.held
            waiting.append(asyncio.create_task(task))
            await until(lambda held=held: c.state.gate.held == held + 1)  # type: ignore[misc]
        c.d.thaw()
        await asyncio.gather(*waiting)
        found = order(c)
        assert found[:2] == ["first", "anna"]
        assert found[-1] == "sheddable"
        assert found.index("plain") < found.index("presumptuous")


# --- changes, and secrets -----------------------------------------------------------------------


async def test_changes_of_the_file(tmp_path: Path) -> None:
    """New keys and revocations hold within a second or so, without a restart; a file that is broken
    changes nothing, and is told to operators."""
    async with tenants_of(tmp_path, anna=spec(A)) as (c, path):
        c.expected_errors = ["tenants cannot be read"]
        assert (await complete(c, B)).status == 401
        await write(path, anna=spec(A), bert=spec(B))
        for _ in range(400):
            if (await complete(c, B)).status == 200:
                break
            await asyncio.sleep(0.05)
        assert (await complete(c, B)).status == 200
        path.write_text("apiVersion: baton/v1\nkind: Tenants\ntenants: [")
        await c.state.directory.refresh()
        assert (await complete(c, A)).status == 200
        told = (await c.admin("GET", "/admin/tenants")).json
        assert "tenants.yaml" in told["source"]["problem"]
        path.unlink()
        await c.state.directory.refresh()
        assert (await complete(c, B)).status == 200
        # A stream that runs is not cut by the end of its key.
        c.d.token_s = 0.01
        running = asyncio.create_task(complete(c, A, stream=True, max_tokens=40))
        await until(lambda: c.d.running == 1)
        await write(path, bert=spec(B))
        await c.state.directory.refresh()
        assert (await complete(c, A)).status == 401
        assert (await running).text == right_text(SHORT, 40)
        assert (await c.admin("GET", "/admin/tenants")).json["source"]["problem"] == ""


class Everything(logging.Handler):
    """Keeps every line of every logger."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record) + repr(record.__dict__))


@contextlib.contextmanager
def listening() -> Iterator[Everything]:
    root, everything = logging.getLogger(), Everything()
    before = root.level
    root.addHandler(everything)
    root.setLevel(logging.DEBUG)
    try:
        yield everything
    finally:
        root.setLevel(before)
        root.removeHandler(everything)


async def test_no_secret_is_told(tmp_path: Path) -> None:
    """Neither keys nor tokens are in a log line at any level, in an answer of the admin API, in
    metrics, in an error, or in what workers are sent."""
    wrong = new_key()
    with listening() as log:
        async with tenants_of(tmp_path, anna=spec(A, requests_per_minute=4)) as (c, path):
            answers = [await complete(c, key) for key in (A, wrong, A)]
            answers += [await complete(c, A, LONG, stream=True), await complete(c, A, model="no")]
            answers.append(await complete(c, A))
            answers.append(
                await c.call("POST", "/v1/messages", data=b"{", headers={"x-api-key": wrong})
            )
            assert {a.status for a in answers} == {200, 401, 404, 429}
            for page in ("status", "workers", "handoffs", "pairs", "queue", "tenants", "profile"):
                answers.append(await c.admin("GET", f"/admin/{page}"))
                assert answers[-1].status == 200
                await c.admin("GET", f"/admin/{page}", token="wrong-admin-token-0123456789")
            answers.append(await c.call("GET", "/metrics"))
            await write(path, anna=spec(A), bert=spec(B))
            await c.state.directory.refresh()
            seen = [s for e in c.engines for s in e.seen]
            assert not any(k in repr((s.headers, s.body)) for k in (A, wrong) for s in seen)
    secrets = (A, wrong, KEY, ADMIN_KEY, "wrong-admin-token", hash_key(A)[7:])
    for secret in secrets:
        assert not [line for line in log.lines if secret in line]
        assert not [a for a in answers if secret in a.body.decode() or secret in repr(a.headers)]
    assert any("anna" in line for line in log.lines), "requests are logged with their tenant"
