"""The operators' side over HTTP: who gets in, what is told, and what a drain or a release does."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from baton.types import Load, WorkerId
from router.api import Endpoint
from tests.fakes.byte_tokenizer import write_folder
from tests.fakes.engine import KEY, MODEL, Leg, Trouble
from tests.fakes.waiting import until
from tests.integration.router_cluster import (
    ADMIN_KEY,
    COMPLETIONS,
    LONG,
    SHORT,
    Cluster,
    cluster,
    long_chat,
    right_text,
    tokens_of,
)

FAR = (
    ("connect_s: 0.5, prefill_s: 1, first_token_s: 1, idle_s: 0.5, total_s: 3",
     "connect_s: 20, prefill_s: 60, first_token_s: 60, idle_s: 60, total_s: 120"),
)  # fmt: skip
"""No deadline ends anything."""

PAGES = ("status", "workers", "handoffs", "pairs", "queue", "tenants", "profile")
ACTIONS = (
    *(("GET", f"/admin/{page}") for page in PAGES),
    ("POST", "/admin/explain"),
    ("POST", "/admin/workers/d0/drain"),
    ("GET", "/admin/workers/d0/drain"),
    ("DELETE", "/admin/workers/d0/drain"),
    ("POST", "/admin/pairs/p0/d0/release"),
)


async def get(c: Cluster, path: str) -> Any:
    answer = await c.admin("GET", f"/admin/{path}")
    assert answer.status == 200
    return answer.json


async def worker(c: Cluster, name: str) -> Any:
    """One worker as operators see it."""
    (found,) = [w for w in (await get(c, "workers"))["workers"] if w["record"]["id"] == name]
    return found


# --- who gets in --------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["", KEY, "wrong", ADMIN_KEY + "x", ADMIN_KEY[:-1]])
async def test_only_operators(token: str) -> None:
    """Workers' token opens nothing here, and neither does none; nothing happens."""
    async with cluster() as c:
        for method, path in ACTIONS:
            answer = await c.admin(method, path, token=token)
            assert answer.status == 401, (method, path)
            assert answer.error["code"] == "invalid_api_key"
            assert ADMIN_KEY not in answer.body.decode()
        assert not c.state.pool.is_cordoned(WorkerId("d0"))
        # Probes and scrapers need no token, on either port.
        for path in ("/healthz", "/readyz", "/metrics"):
            assert (await c.admin("GET", path, token=token)).status == 200


async def test_what_is_on_which_port() -> None:
    """Clients' and workers' paths are not on the admin port, nor operators' on the public one, but
    for the status, which workers may read."""
    async with cluster() as c:
        admin = {"Authorization": f"Bearer {ADMIN_KEY}"}
        for method, path in ACTIONS:
            if path != "/admin/status":
                answer = await c.call(method, path, headers=admin)
                assert answer.status == 404, (method, path)
        for token, status in ((KEY, 200), (ADMIN_KEY, 401), ("wrong", 401)):
            headers = {"Authorization": f"Bearer {token}"}
            assert (await c.call("GET", "/admin/status", headers=headers)).status == status
        for method, path in (
            *(("POST", str(endpoint)) for endpoint in Endpoint),
            ("GET", "/v1/models"),
            ("PUT", "/internal/workers/w"),
        ):
            answer = await c.admin(method, path, json={"model": MODEL, "prompt": SHORT})
            assert answer.status == 404
            assert path in answer.json["error"]["message"]


async def test_documents() -> None:
    """Both ports describe themselves: the public one with its hot endpoints, which FastAPI does not
    serve, and nothing of the admin's."""
    async with cluster() as c:
        public = (await c.call("GET", "/openapi.json")).json
        admin = (await c.admin("GET", "/openapi.json", token="")).json
        for endpoint in Endpoint:
            operation = public["paths"][str(endpoint)]["post"]
            assert operation["summary"]
            schema = operation["requestBody"]["content"]["application/json"]["schema"]
            assert "model" in schema["required"]
        assert {"/admin/explain", "/admin/workers/{worker_id}/drain"} <= set(admin["paths"])
        assert not set(public["paths"]) & set(admin["paths"]) - {
            "/healthz", "/readyz", "/metrics", "/admin/status"
        }  # fmt: skip
        for page in (await c.call("GET", "/docs"), await c.admin("GET", "/docs", token="")):
            assert page.status == 200
            assert page.headers["content-type"].startswith("text/html")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("PUT", "/admin/status", 405),
        ("GET", "/admin/explain", 405),
        ("GET", "/admin/nothing", 404),
        ("POST", "/admin/workers/nobody/drain", 404),
        ("POST", "/admin/pairs/p0/d0/release", 404),
        ("POST", "/admin/pairs/x/y/release", 404),
        ("POST", "/admin/explain?endpoint=/v1/nothing", 400),
        ("POST", "/admin/explain?endpoint=/tokenize", 400),
        ("POST", "/admin/explain", 400),
    ],
)
async def test_mistakes(method: str, path: str, status: int) -> None:
    """Error objects for operators too."""
    async with cluster() as c:
        answer = await c.admin(method, path)
        assert answer.status == status
        assert answer.error["message"]


# --- explain ------------------------------------------------------------------------------------


def body_for(endpoint: Endpoint, text: str) -> dict[str, Any]:
    body: dict[str, Any] = {"model": MODEL, "max_tokens": 8}
    if endpoint is Endpoint.COMPLETIONS:
        return body | {"prompt": text}
    if endpoint is Endpoint.RESPONSES:
        return {"model": MODEL, "input": text}
    return body | {"messages": long_chat(text)}


async def explain(c: Cluster, endpoint: Endpoint, body: dict[str, Any]) -> Any:
    answer = await c.admin("POST", f"/admin/explain?endpoint={endpoint}", json=body)
    assert answer.status == 200, answer
    return answer.json


@pytest.mark.parametrize(
    "endpoint", [Endpoint.COMPLETIONS, Endpoint.CHAT, Endpoint.RESPONSES, Endpoint.MESSAGES]
)
async def test_what_would_be_decided(endpoint: Endpoint, tmp_path: Path) -> None:
    """The same path, reason and workers as the request itself gets; and no worker is sent it."""
    async with cluster(tokenizer=write_folder(tmp_path / "model")) as c:
        for text, path in ((LONG, "disaggregated"), (SHORT, "local")):
            body = body_for(endpoint, text)
            told = await explain(c, endpoint, body)
            assert told["path"] == path
            assert told["decode"] == "d0"
            assert told["prefill"] == ("p0" if path == "disaggregated" else "")
            assert {w["worker"]: w["candidate"] for w in told["workers"]} == {
                "p0": True,
                "d0": True,
            }
            assert [s for engine in c.engines for s in engine.requests()] == []
            assert c.state.in_flight == c.state.gate.held == 0
            assert c.state.ledger.open_handoffs() == c.state.ledger.stranded_handoffs() == ()
            answer = await c.call("POST", endpoint, json=body)
            assert (answer.path, answer.reason) == (path, told["reason"])
            for engine in c.engines:
                engine.seen.clear()


async def test_why_not() -> None:
    """What stands in the way of a handoff is told: the request itself, or the workers."""
    async with cluster(decodes=2) as c:
        ask = {"model": MODEL, "prompt": LONG}
        told = await explain(c, Endpoint.COMPLETIONS, ask | {"n": 2})
        assert (told["path"], told["reason"]) == ("local", "several_choices")
        assert told["local_reason"] == "several_choices"
        told = await explain(
            c, Endpoint.COMPLETIONS, ask | {"kv_transfer_params": {"remote_host": "192.0.2.1"}}
        )
        assert told["stripped_transfer_params"] is True
        await c.admin("POST", "/admin/workers/p0/drain")
        await c.admin("POST", "/admin/workers/d1/drain")
        told = await explain(c, Endpoint.COMPLETIONS, ask)
        assert (told["path"], told["decode"]) == ("local", "d0")
        assert told["why_no_handoff"] == "no_prefill_worker"
        failed = {w["worker"]: w["failed"] for w in told["workers"]}
        assert failed["p0"][0] == failed["d1"][0] == "breaker"
        told = await explain(c, Endpoint.COMPLETIONS, ask | {"model": "nobodys"})
        assert (told["path"], told["reason"]) == ("refused", "unknown_model")


# --- the header ---------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_the_explaining_header(stream: bool) -> None:
    """On request, and only then, an answer says how it came to be."""
    async with cluster() as c:

        async def ask(prompt: str, said: str = "1") -> Any:
            body = {"model": MODEL, "prompt": prompt, "max_tokens": 4, "stream": stream}
            headers = {"x-baton-explain": said}
            answer = await c.call("POST", COMPLETIONS, json=body, headers=headers)
            assert answer.status == 200
            return answer.headers.get("x-baton-explain")

        assert await ask(LONG, "0") is None
        told = json.loads(await ask(LONG))
        assert (told["path"], told["reason"], told["decider"]) == (
            "disaggregated", "long_prompt", "threshold"
        )  # fmt: skip
        assert told["prompt_tokens"] == str(len(tokens_of(LONG)))
        assert told["uncached_tokens"] == len(tokens_of(LONG))
        assert told["workers"] == ["p0", "d0"]
        assert told["attempts"] == 1
        assert told["profile_version"] == c.state.profile.version
        assert told["kv_bytes"] > 0
        for stage in ("prefill_ms", "first_content_ms", "ttft_ms"):
            assert told[stage] > 0
        assert told["ttft_ms"] >= told["prefill_ms"] + told["first_content_ms"] - 1
        assert told["queue_ms"] >= 0
        told = json.loads(await ask(SHORT))
        assert (told["path"], told["workers"]) == ("local", ["d0"])
        assert "prefill_ms" not in told
        assert "kv_bytes" not in told
        c.p.inject(Trouble.STATUS, Leg.PREFILL)
        told = json.loads(await ask(LONG))
        assert (told["path"], told["reason"], told["attempts"]) == ("local", "prefill_failed", 2)


# --- handoffs and workers -----------------------------------------------------------------------


async def test_handoffs_and_workers_while_they_are_open() -> None:
    """Each handoff is there with its state, workers, bytes and lease, and gone when it is over;
    each worker shows what this router has on it."""
    async with cluster(replace=FAR) as c:
        for leg, engine, state in (
            (Leg.PREFILL, c.p, "prefilling"),
            (Leg.DECODE, c.d, "accepted"),
        ):
            engine.inject(Trouble.HANG, leg)
            asking = asyncio.create_task(c.complete(stream=True))
            await until(lambda e=engine, kind=leg: e.requests(kind))  # type: ignore[misc]
            (handoff,) = (await get(c, "handoffs"))["open"]
            assert handoff["state"] == state
            assert (handoff["prefill"], handoff["decode"]) == ("p0", "d0")
            assert handoff["request_id"].startswith("baton-")
            assert (handoff["kv_bytes"] > 0) == (leg is Leg.DECODE)
            assert (handoff["lease_left_s"] is not None) == (leg is Leg.DECODE)
            assert (await worker(c, "d0"))["legs"] == 1
            assert (await worker(c, "p0"))["legs"] == (leg is Leg.PREFILL)
            assert bool((await worker(c, "p0"))["prefilling_tokens"]) == (leg is Leg.PREFILL)
            assert (await get(c, "status"))["in_flight"] == 1
            asking.cancel()
            await c.settled()
            assert (await get(c, "handoffs"))["open"] == []
            assert (await worker(c, "d0"))["legs"] == 0


async def test_stranded_blocks_are_told() -> None:
    """Prefill dies between the legs: what it held is counted until its lease is over, or until it
    is back as another engine."""
    async with cluster() as c:
        c.d.inject(Trouble.DELAY, Leg.DECODE, delay_s=0.2)
        asking = asyncio.create_task(c.complete())
        await until(lambda: c.d.requests(Leg.DECODE))
        await c.p.kill()
        assert (await asking).text == right_text()
        told = await get(c, "handoffs")
        (stranded,) = told["stranded"]
        assert told["stranded_bytes"] == {"p0": stranded["kv_bytes"]}
        assert (await worker(c, "p0"))["stranded_bytes"] == stranded["kv_bytes"] > 0
        await c.p.start()
        await c.register(c.p)
        told = await get(c, "handoffs")
        assert (told["stranded"], told["stranded_bytes"]) == ([], {})


# --- drains -------------------------------------------------------------------------------------


async def test_a_decode_worker_is_drained() -> None:
    """It gets nothing new, its stream ends as if nothing were, and only then it is drained; a
    heartbeat does not lift the cordon, an operator does."""
    async with cluster(decodes=2, replace=FAR) as c:
        old, new = c.decodes
        await c.register(new, load=Load(running=9))
        old.token_s = 0.02
        running = asyncio.create_task(c.complete(SHORT, stream=True, max_tokens=60))
        await until(lambda: old.running == 1)
        answer = await c.admin("POST", "/admin/workers/d0/drain")
        assert answer.status == 202
        assert answer.json["cordoned"] is True
        assert (answer.json["drained"], answer.json["legs"]) == (False, 1)
        await c.register(old)
        for prompt in (SHORT, LONG):
            assert (await c.complete(prompt)).text == right_text(prompt)
        assert len(old.requests()) == 1
        assert len(new.requests()) == 2
        assert (await running).text == right_text(SHORT, 60)
        state = (await c.admin("GET", "/admin/workers/d0/drain")).json
        assert (state["drained"], state["legs"], state["registered"]) == (True, 0, True)
        # Its own word counts as well: another router may have something on it.
        await c.register(old, load=Load(running=1))
        assert (await c.admin("GET", "/admin/workers/d0/drain")).json["drained"] is False
        await c.register(old)
        assert (await c.admin("DELETE", "/admin/workers/d0/drain")).json["cordoned"] is False
        assert (await c.complete(SHORT)).status == 200
        assert len(old.requests()) == 2


async def test_a_prefill_worker_is_drained_when_its_blocks_are_pulled() -> None:
    """A handoff that is under way is finished first."""
    async with cluster(prefills=2, replace=FAR) as c:
        c.d.inject(Trouble.DELAY, Leg.DECODE, delay_s=0.5)
        asking = asyncio.create_task(c.complete())
        await until(lambda: c.d.requests(Leg.DECODE))
        (used,) = [p for p in c.prefills if p.requests()]
        (other,) = [p for p in c.prefills if p is not used]
        path = f"/admin/workers/{used.name}/drain"
        assert (await c.admin("POST", path)).json["drained"] is False
        assert (await c.complete()).path == "disaggregated"
        assert len(other.requests()) == 1
        answer = await asking
        assert (answer.path, answer.text) == ("disaggregated", right_text())
        assert (await c.admin("GET", path)).json["drained"] is True


# --- pairs --------------------------------------------------------------------------------------


async def test_a_quarantine_and_its_end() -> None:
    """Requests go round a quarantined pair; a person puts it back."""
    async with cluster() as c:
        c.expected_errors = ["pair p0 -> d0 is quarantined"]
        assert (await c.complete()).path == "disaggregated"
        (pair,) = (await get(c, "pairs"))["pairs"]
        assert (pair["prefill"], pair["decode"], pair["state"]) == ("p0", "d0", "ready")
        c.state.care.pairs.quarantine(WorkerId("p0"), WorkerId("d0"), "doubtful KV")
        await c.state.pool.refresh()
        answer = await c.complete()
        assert (answer.path, answer.reason) == ("local", "no_usable_pair")
        (pair,) = (await get(c, "pairs"))["pairs"]
        assert (pair["state"], pair["reason"]) == ("quarantined", "doubtful KV")
        # Heartbeats do not lift it.
        await c.register(c.p)
        assert (await c.complete()).path == "local"
        answer = await c.admin("POST", "/admin/pairs/p0/d0/release")
        assert answer.status == 200
        assert answer.json["pairs"][0]["state"] == "ready"
        assert (await c.complete()).path == "disaggregated"
        assert (await c.admin("POST", "/admin/pairs/p0/d0/release")).status == 404
