"""Through a real handoff an OpenAI client sees what one engine alone would have told it."""

from __future__ import annotations

import concurrent.futures
import math
import random
import uuid
from typing import Any

import httpx
import openai
import pytest

from baton.models import read_model_config
from kvtransfer import geometry_from_config, kv_bytes
from tests.e2e.stack import BLOCK, MODEL, THRESHOLD, Stack, wait_until

pytestmark = pytest.mark.engine

NIXL_BYTES = "vllm:nixl_bytes_transferred_sum"
SERVED = "vllm:request_success_total"


def client(stack: Stack, base: str | None = None) -> openai.OpenAI:
    """The official client, on the router or on an engine."""
    return openai.OpenAI(
        base_url=f"{base or stack.url('router')}/v1",
        api_key=stack.token,
        max_retries=0,
        timeout=90,
    )


def prompt_of(length: int, seed: int) -> str:
    """Random letters that are ``length`` tokens: the test model has one for each, and its begin."""
    rng = random.Random(seed)
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz ") for _ in range(length - 1))


def served(stack: Stack, name: str) -> int:
    """Requests that an engine has completed."""
    return int(stack.engine_metric(name, SERVED))


def expect_served(stack: Stack, name: str, count: int) -> None:
    """The engine's counter comes to ``count``, and stays there."""
    wait_until(f"{name} served {count}", lambda: served(stack, name) >= count, timeout_s=5)
    assert served(stack, name) == count


def complete(
    api: openai.OpenAI, prompt: str, *, stream: bool, **extra: Any
) -> tuple[str, float, dict[str, str]]:
    """Text, first logprob and headers of a greedy completion."""
    arguments: dict[str, Any] = {
        "model": MODEL,
        "prompt": prompt,
        "max_tokens": 12,
        "temperature": 0,
        "logprobs": 1,
        "stream": stream,
        **extra,
    }
    raw = api.completions.with_raw_response.create(**arguments)
    answer: Any = raw.parse()
    if not stream:
        choice = answer.choices[0]
        return choice.text, choice.logprobs.token_logprobs[0], dict(raw.headers)
    text, first = "", None
    for chunk in answer:
        choice = chunk.choices[0]
        text += choice.text
        if first is None and choice.logprobs is not None:
            first = choice.logprobs.token_logprobs[0]
    assert first is not None
    return text, first, dict(raw.headers)


def chat(
    api: openai.OpenAI, prompt: str, *, stream: bool, **extra: Any
) -> tuple[str, float, dict[str, str]]:
    """The same for a chat."""
    arguments: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": 12,
        "temperature": 0,
        "logprobs": True,
        "stream": stream,
        **extra,
    }
    raw = api.chat.completions.with_raw_response.create(**arguments)
    answer: Any = raw.parse()
    if not stream:
        choice = answer.choices[0]
        return choice.message.content, choice.logprobs.content[0].logprob, dict(raw.headers)
    text, first = "", None
    for chunk in answer:
        choice = chunk.choices[0]
        text += choice.delta.content or ""
        if first is None and choice.logprobs is not None and choice.logprobs.content:
            first = choice.logprobs.content[0].logprob
    assert first is not None
    return text, first, dict(raw.headers)


def closest_call(api: openai.OpenAI, ask: Any, prompt: str) -> float:
    """The smallest distance of the two likeliest tokens' logprobs within the answer."""
    own = {"extra_body": {"cache_salt": uuid.uuid4().hex}}
    common: dict[str, Any] = {"model": MODEL, "max_tokens": 12, "temperature": 0, **own}
    if ask is complete:
        answer: Any = api.completions.create(prompt=prompt, logprobs=2, **common)
        tops = [list(top.values()) for top in answer.choices[0].logprobs.top_logprobs]
    else:
        common["messages"] = [{"role": "user", "content": prompt}]
        answer = api.chat.completions.create(logprobs=True, top_logprobs=2, **common)
        tops = [
            [top.logprob for top in token.top_logprobs]
            for token in answer.choices[0].logprobs.content
        ]
    ordered = [sorted(top, reverse=True) for top in tops]
    return float(min(top[0] - top[1] for top in ordered if len(top) > 1))


def test_twenty_long_prompts_answer_as_one_worker_alone(stack: Stack) -> None:
    """First logprob within 0.1 and the same text, streamed and not, chat and completions; decode
    received exactly the bytes that the KV geometry predicts."""
    geometry = geometry_from_config(
        read_model_config(stack.model), block_size=BLOCK, kv_dtype="bfloat16"
    )
    through, alone = client(stack), client(stack, stack.url("prefill"))
    before = stack.engine_metric("decode", NIXL_BYTES)
    expected_bytes, distances, texts = 0, [], set()
    differing: list[str] = []
    for number in range(20):
        ask = chat if number % 2 else complete
        stream = number % 4 >= 2
        prompt = prompt_of(THRESHOLD + 37 * number, seed=number)
        text, logprob, headers = ask(through, prompt, stream=stream)
        assert headers["x-baton-path"] == "disaggregated"
        assert headers["x-baton-reason"] == "long_prompt"
        assert headers["x-baton-profile"] == "e2e"
        expected_bytes += kv_bytes(geometry, int(headers["x-baton-prompt-tokens"]))
        # A salt of its own, or prefill's own cache would answer.
        own = {"cache_salt": uuid.uuid4().hex}
        text_alone, logprob_alone, _ = ask(alone, prompt, stream=False, extra_body=own)
        if text != text_alone:
            differing.append(prompt)
            # Sound KV rounds otherwise too; that changes the text only where two tokens are
            # nearly as likely, and rarely.
            assert closest_call(alone, ask, prompt) < 0.1, (text, text_alone)
        distances.append(abs(logprob - logprob_alone))
        texts.add(text)
    assert max(distances) <= 0.1
    assert len(differing) <= 2
    # A model that says the same to every prompt would pass all of the above on corrupt KV.
    assert len(texts) >= 18
    wait_until(
        f"decode received {expected_bytes} bytes",
        lambda: stack.engine_metric("decode", NIXL_BYTES) - before >= expected_bytes,
        timeout_s=5,
    )
    assert stack.engine_metric("decode", NIXL_BYTES) - before == expected_bytes


def test_the_model_notices_a_changed_prompt(stack: Stack) -> None:
    """The instrument itself: one early character moves the first logprob far beyond the limit."""
    alone = client(stack, stack.url("prefill"))
    prompt = prompt_of(300, seed=1)
    moved = []
    for position in (2, 20, 60):
        other = prompt[:position] + "Q" + prompt[position + 1 :]
        _, one, _ = complete(alone, prompt, stream=False)
        _, two, _ = complete(alone, other, stream=False)
        moved.append(abs(one - two))
    assert max(moved) > 0.15


def test_the_threshold_is_exact_for_fifty_lengths(stack: Stack) -> None:
    """One token below the threshold never touches prefill; at the threshold it always does."""
    api = client(stack)
    lengths = range(THRESHOLD - 25, THRESHOLD + 25)
    before = served(stack, "prefill")
    for length in (n for n in lengths if n < THRESHOLD):
        _, _, headers = complete(api, prompt_of(length, seed=length), stream=False, max_tokens=1)
        assert (headers["x-baton-path"], headers["x-baton-reason"]) == ("local", "short_prompt")
    assert served(stack, "prefill") == before
    long = [n for n in lengths if n >= THRESHOLD]
    for length in long:
        _, _, headers = complete(api, prompt_of(length, seed=length), stream=False, max_tokens=1)
        assert headers["x-baton-path"] == "disaggregated"
        assert headers["x-baton-prompt-tokens"] == str(length)
    expect_served(stack, "prefill", before + len(long))


def test_the_threshold_is_exact_for_chats(stack: Stack) -> None:
    """A chat's tokens include what its template adds."""
    api = client(stack)
    empty = chat(api, "x" * THRESHOLD, stream=False)[2]
    overhead = int(empty["x-baton-prompt-tokens"]) - THRESHOLD
    assert overhead > 0
    for length, path in (
        (THRESHOLD - overhead - 1, "local"),
        (THRESHOLD - overhead, "disaggregated"),
    ):
        headers = chat(api, "y" * length, stream=False)[2]
        assert headers["x-baton-path"] == path


def test_what_a_handoff_cannot_carry_is_served_locally(stack: Stack) -> None:
    """Lists of prompts, several choices, prompt logprobs and beam search: never over prefill."""
    before = served(stack, "prefill")
    long = prompt_of(THRESHOLD + 50, seed=77)
    cases: dict[str, dict[str, Any]] = {
        "prompt_list": {"prompt": [long, prompt_of(THRESHOLD + 20, seed=78)]},
        "several_choices": {"prompt": long, "n": 2, "temperature": 0.5},
        "prompt_logprobs": {"prompt": long, "prompt_logprobs": 1},
        "beam_search": {"prompt": long, "use_beam_search": True, "n": 1},
    }
    for reason, fields in cases.items():
        answer = httpx.post(
            stack.url("router") + "/v1/completions",
            json={"model": MODEL, "max_tokens": 4, "temperature": 0, **fields},
            timeout=60,
        )
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-baton-path"] == "local"
        assert answer.headers["x-baton-reason"] == reason
    assert served(stack, "prefill") == before


def test_a_clients_transfer_parameters_never_reach_an_engine(stack: Stack, gate: Any) -> None:
    """Sent along with a short and a long prompt, they change nothing."""
    for length in (20, THRESHOLD + 9):
        answer = httpx.post(
            stack.url("router") + "/v1/completions",
            json={
                "model": MODEL,
                "prompt": prompt_of(length, seed=5),
                "max_tokens": 3,
                "kv_transfer_params": {
                    "do_remote_prefill": True,
                    "remote_host": "192.0.2.1",
                    "remote_port": 9,
                    "remote_block_ids": [[1]],
                    "remote_engine_id": "evil",
                },
            },
            timeout=60,
        )
        assert answer.status_code == 200, answer.text
        params = gate.seen[-1].get("kv_transfer_params") or {}
        assert params.get("remote_host") in (None, "127.0.0.1")


def test_sixteen_at_once_leave_nothing_behind(stack: Stack) -> None:
    """Mixed lengths and kinds, all answered; afterwards no handoff is open and both KV caches
    are free again."""
    api = client(stack)

    def one(number: int) -> str:
        length = THRESHOLD + 60 * number if number % 2 else 30 + number
        ask = chat if number % 3 else complete
        return ask(api, prompt_of(length, seed=900 + number), stream=number % 4 < 2)[0]

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(one, range(16)))
    assert all(answers)

    def quiet() -> bool:
        status = stack.status()
        return (
            not status["handoffs"]["open"]
            and not status["handoffs"]["stranded"]
            and status["in_flight"] == 0
            and all(
                w["legs"] == 0 and w["record"]["load"]["kv_usage"] == 0 for w in status["workers"]
            )
        )

    wait_until("no handoff open, no KV held", quiet, timeout_s=10)
    for name in ("prefill", "decode"):
        assert math.isclose(stack.engine_metric(name, "vllm:kv_cache_usage_perc"), 0)


BAD = [
    ("malformed JSON", b"{not json", 400),
    ("not an object", b"[1, 2]", 400),
    ("no model", b'{"prompt": "x"}', 400),
    ("model of a wrong type", b'{"model": 3, "prompt": "x"}', 400),
    ("unknown model", b'{"model": "nobody", "prompt": "x"}', 404),
    ("empty prompt", b'{"model": "test-llama", "prompt": ""}', 400),
    ("prompt of a wrong type", b'{"model": "test-llama", "prompt": {"a": 1}}', 400),
    ("stream of a wrong type", b'{"model": "test-llama", "prompt": "x", "stream": "maybe"}', 400),
    ("n of zero", b'{"model": "test-llama", "prompt": "x", "n": 0}', 400),
    (
        "temperature of a wrong type",
        b'{"model": "test-llama", "prompt": "x", "temperature": []}',
        400,
    ),
    ("not UTF-8", b'{"model": "test-llama", "prompt": "\xff\xfe"}', 400),
    (
        "deep nesting",
        b'{"model": "test-llama", "prompt": "x", "y": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        400,
    ),
    ("over the context", b'{"model": "test-llama", "prompt": "' + b"a" * 5000 + b'"}', 400),
    ("10 MB body", b'{"model": "test-llama", "prompt": "' + b"a" * 10_000_000 + b'"}', 413),
]


@pytest.mark.parametrize(("what", "body", "status"), BAD, ids=[case[0] for case in BAD])
def test_bad_input_gets_an_openai_error(stack: Stack, what: str, body: bytes, status: int) -> None:
    """4xx with an OpenAI error object, no traceback in any log, and the next request works."""
    before = {name: len(server.text()) for name, server in stack.servers.items()}
    answer = httpx.post(
        stack.url("router") + "/v1/completions",
        content=body,
        headers={"Content-Type": "application/json"},
        timeout=30,
    )
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["message"]
    assert {"message", "type", "param", "code"} <= error.keys()
    text, _, _ = complete(client(stack), "still here?", stream=False)
    assert text
    for name, server in stack.servers.items():
        assert "Traceback" not in server.text()[before[name] :], what


def test_the_openai_client_sees_errors_as_its_own(stack: Stack) -> None:
    """Status codes map to the client's exception classes."""
    with pytest.raises(openai.NotFoundError):
        client(stack).completions.create(model="nobody", prompt="x")
    with pytest.raises(openai.BadRequestError):
        client(stack).completions.create(model=MODEL, prompt="a" * 5000)


@pytest.mark.parametrize("path", ["/invocations", "/tokenize", "/v1/completions", "/v1/models"])
def test_an_engine_takes_nothing_without_the_cluster_token(stack: Stack, path: str) -> None:
    """Not even where vLLM itself asks for no key; a wrong one does not help."""
    body = {"model": MODEL, "prompt": "x", "max_tokens": 1}
    for headers in ({}, {"Authorization": "Bearer nonsense"}):
        answer = httpx.post(stack.url("decode") + path, json=body, headers=headers, timeout=10)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
    assert httpx.get(stack.url("decode") + "/health", timeout=10).status_code == 200


def test_models_and_metrics(stack: Stack) -> None:
    """The model is listed with its context length; the metrics page counts both paths."""
    (listed,) = client(stack).models.list().data
    assert listed.id == MODEL
    assert client(stack).models.retrieve(MODEL).id == MODEL
    page = httpx.get(stack.url("router") + "/metrics").text
    assert 'baton_handoffs_total{state="done"}' in page
    assert 'path="local"' in page
