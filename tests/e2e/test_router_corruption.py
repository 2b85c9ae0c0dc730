"""The nine ways to get HTTP 200 with wrong text out of two sound engines, tried through the router.

Where each of them is:

1. A list of prompts, 2. several choices: ``test_handoff``, served by one worker; and here, with
   the texts.
3. A prefill of more than one token: here.
4. Transfer parameters used twice: a client's own in ``test_handoff``, a retry here; a retry on
   another decode worker in ``test_router_faults``.
5. Decode's prompt differs from prefill's: here.
6. A pull after the lease: ``test_router_faults``, with a decode worker and with a router that hung.
7. Different block sizes, 8. other weights of the same name, 9. another adapter of the same name:
   here, by registering workers that say so.

The answers are held against one worker's own: the first token's logprob within 0.1, where corrupt
KV moves it by 0.19 and more.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest

from baton.types import Adapter, WorkerId, WorkerRecord
from tests.e2e.stack import MODEL, THRESHOLD, Stack, wait_until
from tests.e2e.test_handoff import (
    client,
    closest_call,
    complete,
    expect_served,
    prompt_of,
    served,
)
from tests.fakes.gate import Gate

pytestmark = pytest.mark.engine

NOISE = 0.1


def ask(stack: Stack, path: str, body: dict[str, Any], *, alone: bool = False) -> httpx.Response:
    """A request to the router, or to the decode worker itself; no answer of another is reused."""
    fields = {"model": MODEL, "temperature": 0, "cache_salt": uuid.uuid4().hex, **body}
    response = httpx.post(
        stack.url("decode" if alone else "router") + path,
        json=fields,
        headers=stack.cluster_headers if alone else {},
        timeout=60,
    )
    assert response.status_code == 200, response.text
    return response


LONG = prompt_of(THRESHOLD + 70, seed=8000)
CHAT = [{"role": "user", "content": LONG}]


def test_lists_and_choices_have_the_right_texts(stack: Stack) -> None:
    """1, 2. Each prompt of a list, and each of several greedy choices, gets its own answer."""
    prompts = [LONG, prompt_of(THRESHOLD + 33, seed=8001), "a short one"]
    body = {"max_tokens": 8, "logprobs": 1}
    listed = ask(stack, "/v1/completions", {**body, "prompt": prompts}).json()["choices"]
    # Greedy in effect: an engine refuses several greedy choices.
    several = {"n": 2, "temperature": 1.0, "top_k": 1}
    chosen = ask(stack, "/v1/completions", {**body, "prompt": LONG, **several}).json()["choices"]
    alone = [
        ask(stack, "/v1/completions", {**body, "prompt": p}, alone=True).json()["choices"][0]
        for p in prompts
    ]
    assert [choice["index"] for choice in listed] == [0, 1, 2]
    for one, other in [*zip(listed, alone, strict=True), *((c, alone[0]) for c in chosen)]:
        assert abs(first_logprob(one) - first_logprob(other)) <= NOISE


def first_logprob(choice: dict[str, Any]) -> float:
    """Of a completion's or a chat's choice."""
    logprobs = choice["logprobs"]
    if "content" in logprobs:
        return float(logprobs["content"][0]["logprob"])
    return float(logprobs["token_logprobs"][0])


MANY = 9
ENDPOINTS: dict[str, dict[str, Any]] = {
    "/v1/completions": {
        **{"prompt": LONG, "max_tokens": MANY, "min_tokens": 5, "stream": True},
        "stream_options": {"include_usage": True},
    },
    "/v1/chat/completions": {
        **{"messages": CHAT, "max_tokens": MANY, "max_completion_tokens": MANY, "n": 1},
        "min_tokens": 3,
    },
    "/v1/responses": {"input": LONG, "max_output_tokens": MANY},
    "/v1/messages": {"messages": CHAT, "max_tokens": MANY},
}


@pytest.mark.parametrize("path", ENDPOINTS)
def test_prefill_makes_one_token(stack: Stack, path: str) -> None:
    """3. Whatever a client says of the length of its answer, prefill is never asked for more than
    one token, and decode makes all that were asked for."""
    made = "vllm:generation_tokens_total"
    before = {name: stack.engine_metric(name, made) for name in ("prefill", "decode")}
    answer = ask(stack, path, {**ENDPOINTS[path], "ignore_eos": True})
    assert answer.headers["x-baton-path"] == "disaggregated"

    def grown(name: str) -> float:
        return stack.engine_metric(name, made) - before[name]

    wait_until("the engines have counted", lambda: grown("decode") >= MANY, timeout_s=10)
    assert (grown("prefill"), grown("decode")) == (1, MANY)


def test_a_retry_gets_nothing_that_was_used(stack: Stack, gate: Gate) -> None:
    """4. Decode fails after it got the parameters: what follows has others or none, and what was
    offered is given back."""

    def fail(_: dict[str, Any]) -> None:
        raise RuntimeError("the leg fails here")

    gate.before_handoff = fail
    text, logprob, headers = complete(client(stack), LONG, stream=False)
    assert headers["x-baton-reason"] == "transfer_failed"
    alone = ask(
        stack,
        "/v1/completions",
        {"prompt": LONG, "max_tokens": 12, "logprobs": 1},
        alone=True,
    ).json()["choices"][0]
    assert abs(logprob - first_logprob(alone)) <= NOISE
    if text != alone["text"]:
        assert closest_call(client(stack, stack.url("decode")), complete, LONG) < NOISE
    used = [
        body["kv_transfer_params"]["remote_request_id"]
        for body in gate.seen
        if (body.get("kv_transfer_params") or {}).get("do_remote_prefill")
        and body["model"] == MODEL
    ]
    assert len(used) == len(set(used))
    wait_until("nothing is stranded", lambda: not stranded(stack), timeout_s=5)


def stranded(stack: Stack) -> bool:
    """Whether blocks are held for nobody, by the router's books or in prefill."""
    told = stack.admin("handoffs")
    return bool(told["stranded"]) or stack.engine_metric("prefill", "vllm:kv_cache_usage_perc") > 0


_TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "token ids": ("/v1/completions", {"prompt": [3 + ord(c) % 90 for c in LONG]}),
    "no special tokens": ("/v1/completions", {"prompt": LONG, "add_special_tokens": False}),
    "a system message": (
        "/v1/chat/completions",
        {"messages": [{"role": "system", "content": "Be brief."}, *CHAT]},
    ),
    "parts": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": LONG}] * 2}]},
    ),
    "a turn that goes on": (
        "/v1/chat/completions",
        {
            "messages": [*CHAT, {"role": "assistant", "content": "the answer is"}],
            "add_generation_prompt": False,
            "continue_final_message": True,
        },
    ),
    "tools": ("/v1/chat/completions", {"messages": CHAT, "tools": _TOOLS, "tool_choice": "none"}),
    "a template of the client's": (
        "/v1/chat/completions",
        {"messages": CHAT, "chat_template_kwargs": {"enable_thinking": False}},
    ),
    "instructions": ("/v1/responses", {"input": LONG, "instructions": "Be brief."}),
    "a system prompt": ("/v1/messages", {"messages": CHAT, "system": "Be brief."}),
}


@pytest.mark.parametrize("what", SHAPES)
def test_decode_gets_prefills_prompt(stack: Stack, what: str) -> None:
    """5. Whatever shapes the prompt shapes it on both sides: as many tokens, and the same answer as
    one worker's."""
    path, body = SHAPES[what]
    limit = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    body = {**body, limit: 4}
    if path == "/v1/completions":
        body["logprobs"] = 1
    elif path == "/v1/chat/completions":
        body["logprobs"] = True
    handed = ask(stack, path, body)
    assert handed.headers["x-baton-path"] == "disaggregated"
    alone = ask(stack, path, body, alone=True)
    one, two = handed.json(), alone.json()
    if "choices" in one:
        assert one["usage"]["prompt_tokens"] == two["usage"]["prompt_tokens"]
        logprobs = first_logprob(one["choices"][0]), first_logprob(two["choices"][0])
        assert abs(logprobs[0] - logprobs[1]) <= NOISE
    else:
        assert one["usage"]["input_tokens"] == two["usage"]["input_tokens"]
        assert text_of(one)[:1] == text_of(two)[:1]


def text_of(answer: dict[str, Any]) -> str:
    """Of a response or a message."""
    if "output" in answer:
        return "".join(part["text"] for item in answer["output"] for part in item["content"])
    return "".join(block["text"] for block in answer["content"])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "x" * 5000, "truncate_prompt_tokens": -1}),
        ("/v1/responses", {"input": "x" * 5000, "truncation": "auto"}),
    ],
)
def test_a_prompt_that_is_cut_stays_on_one_worker(
    stack: Stack, path: str, body: dict[str, Any]
) -> None:
    """5. How much is cut off depends on how long the answer may be, which prefill is not told."""
    before = served(stack, "prefill")
    limit = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    answer = ask(stack, path, {**body, limit: 40})
    assert answer.headers["x-baton-path"] == "local"
    assert answer.headers["x-baton-reason"] == "truncation"
    assert served(stack, "prefill") == before


# --- workers that must not be paired ------------------------------------------------------------


def record(stack: Stack, name: str) -> WorkerRecord:
    """A worker's record, as the registry has it."""
    return msgspec.convert(stack.worker(name), WorkerRecord)


@contextlib.contextmanager
def registered(stack: Stack, *records: WorkerRecord) -> Iterator[None]:
    """More workers, for as long as the block lasts."""
    places = [f"{stack.url('router')}/internal/workers/{record.id}" for record in records]
    with httpx.Client(headers=stack.cluster_headers, timeout=10) as registry:
        try:
            for place, worker in zip(places, records, strict=True):
                sent = registry.put(
                    place, params={"ttl_s": 60}, content=msgspec.json.encode(worker)
                )
                assert sent.status_code == 204, sent.text
            yield
        finally:
            for place in places:
                registry.delete(place)


@contextlib.contextmanager
def drained(stack: Stack, name: str) -> Iterator[None]:
    """A worker that gets nothing new for as long as the block lasts."""
    token = (stack.home / "admin-token").read_text().strip()
    place = f"{stack.servers['router'].admin_url}/admin/workers/{name}/drain"
    with httpx.Client(headers={"Authorization": f"Bearer {token}"}, timeout=10) as admin:
        admin.post(place).raise_for_status()
        try:
            yield
        finally:
            admin.delete(place).raise_for_status()


def twin(worker: WorkerRecord, name: str, **changes: Any) -> WorkerRecord:
    """The same engine under another name, which says something else of itself."""
    return msgspec.structs.replace(worker, id=WorkerId(name), **changes)


def pair_row(stack: Stack, prefill: str, decode: str) -> dict[str, Any]:
    """What the router makes of two workers."""
    for row in stack.admin("pairs")["pairs"]:
        if (row["prefill"], row["decode"]) == (prefill, decode):
            found: dict[str, Any] = row
            return found
    raise AssertionError(f"no pair {prefill}, {decode}")


@pytest.mark.parametrize("what", ["block size", "weights"])
def test_unlike_workers_are_never_paired(stack: Stack, what: str) -> None:
    """7, 8. A prefill worker with another block size, or with other weights under the same path
    and name: long prompts stay on the decode worker, though nobody else is there to prefill."""
    real = record(stack, "prefill")
    changes: dict[str, Any] = (
        {"geometry": msgspec.structs.replace(real.geometry, block_size=64)}
        if what == "block size"
        else {"model_digest": "sha256:" + "0" * 64}
    )
    with registered(stack, twin(real, "unlike", **changes)), drained(stack, "prefill"):
        row = pair_row(stack, "unlike", "decode")
        assert row["state"] == "refused"
        assert what.split()[0] in row["reason"]
        before = served(stack, "prefill")
        for seed in range(3):
            prompt = prompt_of(THRESHOLD + 30, seed=8100 + seed)
            text, _, headers = complete(client(stack), prompt, stream=False)
            assert text
            assert headers["x-baton-path"] == "local"
        assert served(stack, "prefill") == before
    # The instrument itself: a twin that is alike is used.
    with registered(stack, twin(real, "alike")), drained(stack, "prefill"):
        wait_until(
            "the pair is checked",
            lambda: pair_row(stack, "alike", "decode")["state"] == "ready",
            timeout_s=30,
        )
        before = served(stack, "prefill")
        prompt = prompt_of(THRESHOLD + 30, seed=8110)
        _, _, headers = complete(client(stack), prompt, stream=False)
        assert headers["x-baton-path"] == "disaggregated"
        expect_served(stack, "prefill", before + 1)


@pytest.mark.parametrize("prefill_has", ["other content", "nothing", "the same"])
def test_an_adapter_is_its_content(stack: Stack, prefill_has: str) -> None:
    """9. The same adapter name with another content on prefill, or the bare model there: no pair
    for requests that ask for the adapter."""
    mine = Adapter("tuned", "sha256:" + "1" * 64)
    theirs = {
        "other content": (Adapter("tuned", "sha256:" + "2" * 64),),
        "nothing": (),
        "the same": (mine,),
    }[prefill_has]
    twins = (
        twin(record(stack, "prefill"), "tuned-prefill", adapters=theirs),
        twin(record(stack, "decode"), "tuned-decode", adapters=(mine,)),
    )
    with registered(stack, *twins):
        wait_until(
            "the pair is checked",
            lambda: pair_row(stack, "tuned-prefill", "tuned-decode")["state"] == "ready",
            timeout_s=30,
        )
        told = explain(stack, {"model": "tuned", "prompt": LONG, "max_tokens": 4})
    assert told["decode"] == "tuned-decode"
    if prefill_has == "the same":
        assert (told["path"], told["prefill"]) == ("disaggregated", "tuned-prefill")
    else:
        assert told["path"] == "local"
        assert told["why_no_handoff"]


def explain(stack: Stack, body: dict[str, Any]) -> dict[str, Any]:
    """What the router would do with a completion."""
    token = (stack.home / "admin-token").read_text().strip()
    response = httpx.post(
        f"{stack.servers['router'].admin_url}/admin/explain",
        params={"endpoint": "/v1/completions"},
        headers={"Authorization": f"Bearer {token}"},
        json=body,
        timeout=10,
    )
    response.raise_for_status()
    result: dict[str, Any] = response.json()
    return result
