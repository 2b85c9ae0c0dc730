"""What clients get through a handoff is what one worker alone would have told them, to the letter:
texts, tool calls, logprobs, finish reasons, usage. Asked by the clients that people use.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from tests.e2e.stack import MODEL, THRESHOLD, Stack
from tests.e2e.test_handoff import chat, client, closest_call, complete, prompt_of

pytestmark = pytest.mark.engine

CLEAR = 0.25
"""Distance of the two likeliest tokens above which rounding never decides between them."""
NOISE = 0.1
"""By which logprobs may differ all the same; corrupt KV moves them by 0.19 and more."""
_OWN = frozenset({"id", "created", "created_at", "completed_at", "item_id", "call_id"})
"""Fields that differ from answer to answer."""

TOOL = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"enum": [1, 2, 3]}},
    "required": ["city", "days"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Case:
    """One thing that clients do: asks, and returns what it was told and the answer's headers."""

    name: str
    ask: Callable[[openai.OpenAI, str, dict[str, Any]], tuple[Any, Any]]


def _plain(answer: Any) -> Any:
    return answer.model_dump(mode="json") if hasattr(answer, "model_dump") else answer


def _chat(api: openai.OpenAI, prompt: str, own: dict[str, Any], **more: Any) -> tuple[Any, Any]:
    raw = api.chat.completions.with_raw_response.create(
        model=MODEL,
        messages=[{"role": "user", "content": prompt}],
        temperature=0,
        extra_body=own,
        **{"max_tokens": 8, **more},
    )
    return _collect(raw, _chat_chunk, stream=bool(more.get("stream")))


def _completion(
    api: openai.OpenAI, prompt: str, own: dict[str, Any], **more: Any
) -> tuple[Any, Any]:
    raw = api.completions.with_raw_response.create(
        model=MODEL, prompt=prompt, temperature=0, max_tokens=8, extra_body=own, **more
    )
    return _collect(raw, _completion_chunk, stream=bool(more.get("stream")))


def _response(api: openai.OpenAI, prompt: str, own: dict[str, Any], **more: Any) -> tuple[Any, Any]:
    raw = api.responses.with_raw_response.create(
        model=MODEL, input=prompt, temperature=0, max_output_tokens=8, extra_body=own, **more
    )
    return _collect(raw, _response_event, stream=bool(more.get("stream")))


def _collect(
    raw: Any, piece: Callable[[Any, dict[str, Any]], None], *, stream: bool
) -> tuple[Any, Any]:
    if not stream:
        return _plain(raw.parse()), raw.headers
    told: dict[str, Any] = {}
    for chunk in raw.parse():
        piece(_plain(chunk), told)
    return told, raw.headers


def _chat_chunk(chunk: Any, told: dict[str, Any]) -> None:
    """Puts a chunk to what the stream said before; how the text was cut is the engine's affair."""
    for choice in chunk["choices"]:
        delta = choice["delta"]
        told["text"] = told.get("text", "") + (delta.get("content") or "")
        for call in delta.get("tool_calls") or ():
            said = told.setdefault("calls", {}).setdefault(call["index"], {"arguments": ""})
            said["name"] = call["function"].get("name") or said.get("name")
            said["arguments"] += call["function"].get("arguments") or ""
        told["finish"] = choice.get("finish_reason") or told.get("finish")
        told.setdefault("logprobs", []).extend((choice.get("logprobs") or {}).get("content") or ())
    told["usage"] = chunk.get("usage") or told.get("usage")


def _completion_chunk(chunk: Any, told: dict[str, Any]) -> None:
    for choice in chunk["choices"]:
        told["text"] = told.get("text", "") + choice["text"]
        told["finish"] = choice.get("finish_reason") or told.get("finish")
        logprobs = (choice.get("logprobs") or {}).get("token_logprobs")
        told.setdefault("logprobs", []).extend(logprobs or ())
    told["usage"] = chunk.get("usage") or told.get("usage")


def _response_event(event: Any, told: dict[str, Any]) -> None:
    kinds = told.setdefault("kinds", [])
    if event["type"] not in kinds:
        kinds.append(event["type"])
    if event["type"] == "response.output_text.delta":
        told["text"] = told.get("text", "") + event["delta"]
    if event["type"] in ("response.completed", "response.incomplete"):
        told["response"] = event["response"]


_USAGE = {"stream": True, "stream_options": {"include_usage": True}}
_FUNCTION = {"name": "trip", "description": "Plans a trip.", "parameters": TOOL}
_TOOLS: dict[str, Any] = {
    "tools": [{"type": "function", "function": _FUNCTION}],
    "tool_choice": {"type": "function", "function": {"name": "trip"}},
    "max_tokens": 60,
}
_SCHEMA: dict[str, Any] = {
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "trip", "schema": TOOL, "strict": True},
    },
    "max_tokens": 60,
}

CASES = [
    Case("chat", lambda api, prompt, own: _chat(api, prompt, own)),
    Case("chat, streamed", lambda api, prompt, own: _chat(api, prompt, own, **_USAGE)),
    Case("tools", lambda api, prompt, own: _chat(api, prompt, own, **_TOOLS)),
    Case("tools, streamed", lambda api, prompt, own: _chat(api, prompt, own, **_TOOLS, **_USAGE)),
    Case("JSON schema", lambda api, prompt, own: _chat(api, prompt, own, **_SCHEMA)),
    Case(
        "logprobs",
        lambda api, prompt, own: _chat(api, prompt, own, logprobs=True, top_logprobs=3),
    ),
    Case(
        "logprobs, streamed",
        lambda api, prompt, own: _chat(api, prompt, own, logprobs=True, top_logprobs=3, **_USAGE),
    ),
    Case("completion", lambda api, prompt, own: _completion(api, prompt, own, logprobs=2)),
    Case(
        "completion, streamed",
        lambda api, prompt, own: _completion(api, prompt, own, logprobs=2, **_USAGE),
    ),
    Case("response", lambda api, prompt, own: _response(api, prompt, own)),
    Case("response, streamed", lambda api, prompt, own: _response(api, prompt, own, stream=True)),
    Case("a stop string", lambda api, prompt, own: _chat(api, prompt, own, stop=list("aeio"))),
]


@pytest.fixture(scope="module")
def prompt(pair: tuple[Stack, Any]) -> str:
    """A long prompt to which no endpoint's answer hangs by a hair: rounding cannot change it."""
    api = client(pair[0], pair[0].url("prefill"))
    for seed in range(5000, 5200):
        text = prompt_of(THRESHOLD + 90, seed)
        if min(closest_call(api, ask, text) for ask in (complete, chat)) > CLEAR:
            return text
    raise AssertionError("no clear prompt")


def same(one: Any, two: Any, where: str = "") -> None:
    """Equal but for ids, times, and the noise of logprobs."""
    assert type(one) is type(two), (where, one, two)
    if isinstance(one, dict):
        assert one.keys() == two.keys(), (where, one.keys() ^ two.keys())
        for key in one.keys() - _OWN:
            same(one[key], two[key], f"{where}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(two), (where, one, two)
        for index, pair in enumerate(zip(one, two, strict=True)):
            same(*pair, f"{where}[{index}]")
    elif isinstance(one, float):
        assert abs(one - two) <= NOISE, (where, one, two)
    else:
        assert one == two, where


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_openai_python(stack: Stack, prompt: str, case: Case) -> None:
    """The Python client: every kind of answer is the one that a worker gives by itself."""
    handed, headers = case.ask(client(stack), prompt, salt())
    assert headers["x-baton-path"] == "disaggregated"
    alone, _ = case.ask(client(stack, stack.url("decode")), prompt, salt())
    same(handed, alone)


def salt() -> dict[str, Any]:
    """Extra fields that keep every earlier answer's cached blocks away."""
    return {"cache_salt": uuid.uuid4().hex}


# --- usage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("ask", [_chat, _completion, _response], ids=lambda ask: ask.__name__)
def test_cached_tokens_are_those_of_one_worker(stack: Stack, ask: Any, stream: bool) -> None:
    """A prompt, and then the same with more after it: over two handoffs as many tokens are said to
    come from the cache as one worker would say."""
    base = prompt_of(600, seed=5300 + stream)
    longer = base + prompt_of(THRESHOLD + 80, seed=5310)
    more: dict[str, Any] = {"stream": True} if stream else {}
    if stream and ask is not _response:
        more = _USAGE

    def usages(api: openai.OpenAI, *, handed: bool) -> list[Any]:
        own, told = salt(), []
        for text in (base, longer):
            answer, headers = ask(api, text, own, **more)
            assert not handed or headers["x-baton-path"] == "disaggregated", dict(headers)
            told.append(answer.get("usage") or answer["response"]["usage"])
        return told

    handed = usages(client(stack), handed=True)
    # Prefill computes the prompt, so it is prefill that has something cached.
    same(handed, usages(client(stack, stack.url("prefill")), handed=False))


# --- other clients, other endpoints -------------------------------------------------------------


def test_anthropic_python(stack: Stack, prompt: str) -> None:
    """Messages, whole and streamed: content, stop reason and usage are one worker's."""
    asked: dict[str, Any] = {
        **{"model": MODEL, "max_tokens": 8},
        "messages": [{"role": "user", "content": prompt}],
    }

    def ask(base: str) -> tuple[list[Any], list[str | None]]:
        with anthropic.Anthropic(
            base_url=base, api_key=None, auth_token=stack.token, max_retries=0, timeout=60
        ) as api:
            raw = api.messages.with_raw_response.create(**asked, extra_body=greedy())
            with api.messages.stream(**asked, extra_body=greedy()) as stream:
                final = stream.get_final_message()
                paths = [answer.headers.get("x-baton-path") for answer in (raw, stream.response)]
            return [_plain(raw.parse()), _plain(final)], paths

    handed, paths = ask(stack.url("router"))
    assert paths == ["disaggregated"] * 2
    alone, _ = ask(stack.url("decode"))
    assert alone[0]["content"][0]["text"]
    same(handed, alone)


def greedy() -> dict[str, Any]:
    """What the Anthropic client has no argument for."""
    return {"temperature": 0, **salt()}


def test_what_generates_nothing(stack: Stack) -> None:
    """Tokens, text of tokens, and embeddings, which a model that generates has none of: the
    router's answers are a worker's."""
    text = "prefill, decode"
    tokens = httpx.post(
        stack.url("decode") + "/tokenize",
        json={"model": MODEL, "prompt": text},
        headers=stack.cluster_headers,
        timeout=30,
    ).json()["tokens"]
    for path, body, status in (
        ("/tokenize", {"prompt": text}, 200),
        ("/tokenize", {"messages": [{"role": "user", "content": text}]}, 200),
        ("/detokenize", {"tokens": tokens}, 200),
        ("/v1/embeddings", {"input": text}, 404),
    ):
        body = {"model": MODEL, **body}
        handed = httpx.post(stack.url("router") + path, json=body, timeout=30)
        alone = httpx.post(
            stack.url("decode") + path, json=body, headers=stack.cluster_headers, timeout=30
        )
        assert handed.status_code == alone.status_code == status, (path, handed.text, alone.text)
        if status == 200:
            assert handed.json() == alone.json()
        else:
            assert handed.json()["error"]["message"]


@pytest.mark.skipif(not (shutil.which("node") and shutil.which("npm")), reason="no node, no npm")
def test_openai_npm(stack: Stack, prompt: str, tmp_path: Path) -> None:
    """The npm client: chat, streams, tools, JSON schema, logprobs, responses and errors."""
    folder = tmp_path / "client"
    shutil.copytree(Path(__file__).parent / "openai_npm", folder)
    subprocess.run(
        ["npm", "ci", "--no-audit", "--no-fund"],
        cwd=folder,
        check=True,
        timeout=180,
        capture_output=True,
    )

    def ask(base: str) -> dict[str, Any]:
        done = subprocess.run(
            ["node", "ask.mjs", f"{base}/v1", stack.token, MODEL, prompt, uuid.uuid4().hex],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    handed, alone = ask(stack.url("router")), ask(stack.url("decode"))
    assert set(handed["paths"].values()) == {"disaggregated"}
    assert handed["told"]["parsed"]["city"] in ("Oslo", "Rome")
    assert handed["told"]["error"] == {"kind": "NotFoundError", "status": 404}
    same(handed["told"], alone["told"])
