"""What Baton relies on in an engine, as checks that run against the fake and against real vLLM.

Each check is a coroutine function over one engine (``SINGLE_CHECKS``) or over a prefill and a
decode engine (``PAIR_CHECKS``), reached by URL and key; it passes or raises AssertionError. A fake
that passes says the same as the real one in everything that the router and the workers read.

Nothing here knows what an engine answers: only that an answer depends on its prompt, and that it
is the same through a handoff. Run against a real one they need greedy decoding to be repeatable,
a chat template, and no other traffic.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from baton.engine.server import parse_load
from baton.types import Load
from router import sse
from router.requests import Endpoint, GenerateRequest, decode_body, parse_request, prefill_body

PROMPT = "A relay is run by two runners and one baton; the hand that lets go must wait. " * 4
OTHER_PROMPT = "A" + PROMPT[1:-1].replace("two", "six") + "!"
QUESTION = [{"role": "user", "content": PROMPT + "What is a relay?"}]
TOKENS = 8
_FREE_S = 15.0
"""For an engine to free what it held; a real one does it in about 0.1 s."""


@dataclass(frozen=True, slots=True)
class EngineAt:
    """An engine under test."""

    url: str
    key: str
    model: str


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer."""

    status: int
    content_type: str
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


# --- talking to an engine -----------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _opened(
    engine: EngineAt, method: str, path: str, body: bytes | None = None, key: str | None = None
) -> AsyncIterator[aiohttp.ClientResponse]:
    headers = {"Authorization": f"Bearer {engine.key if key is None else key}"}
    if key == "":
        headers = {}
    if body is not None:
        headers["Content-Type"] = "application/json"
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as http,
        http.request(method, engine.url + path, data=body, headers=headers) as response,
    ):
        yield response


async def _ask(
    engine: EngineAt, method: str, path: str, body: bytes | None = None, key: str | None = None
) -> Reply:
    async with _opened(engine, method, path, body, key) as response:
        return Reply(response.status, response.content_type, await response.read())


def _request(endpoint: Endpoint, **fields: Any) -> GenerateRequest:
    return parse_request(endpoint, msgspec.json.encode(fields))


def _completion(engine: EngineAt, prompt: Any = PROMPT, **more: Any) -> GenerateRequest:
    fields = {"model": engine.model, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0}
    return _request(Endpoint.COMPLETIONS, **fields, **more)


def _chat(engine: EngineAt, **more: Any) -> GenerateRequest:
    fields = {"model": engine.model, "messages": QUESTION, "max_tokens": TOKENS, "temperature": 0}
    return _request(Endpoint.CHAT, **fields, **more)


async def _whole(
    engine: EngineAt, request: GenerateRequest, params: dict[str, Any] | None = None
) -> Any:
    reply = await _ask(engine, "POST", request.endpoint, decode_body(request, params))
    assert reply.status == 200, reply
    return reply.json


def _text(answer: Any) -> str:
    choice = answer["choices"][0]
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    assert isinstance(text, str)
    return text


async def _events(
    engine: EngineAt, request: GenerateRequest, params: dict[str, Any] | None = None
) -> list[bytes]:
    body = decode_body(request, params)
    async with _opened(engine, "POST", request.endpoint, body) as response:
        assert response.status == 200, await response.read()
        assert response.content_type == "text/event-stream"
        buffer = sse.EventBuffer()
        whole = b""
        async for part in response.content.iter_any():
            whole += buffer.feed(part)
    return sse.split_events(whole)


def _streamed_text(events: list[bytes]) -> str:
    text = ""
    for event in events[:-1]:
        for choice in msgspec.json.decode(event.removeprefix(b"data: "))["choices"]:
            text += choice["delta"].get("content") or "" if "delta" in choice else choice["text"]
    return text


async def _load(engine: EngineAt) -> Load:
    reply = await _ask(engine, "GET", "/metrics", key="")
    assert reply.status == 200
    return parse_load(reply.body.decode())


async def _until_idle(engine: EngineAt) -> None:
    async with asyncio.timeout(_FREE_S):
        while await _load(engine) != Load():  # noqa: ASYNC110 (a page is all there is)
            await asyncio.sleep(0.1)


def _assert_error_object(reply: Reply, status: int) -> None:
    assert reply.status == status, reply
    error = reply.json["error"]
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    assert error["code"] == status


# --- one engine ---------------------------------------------------------------------------------


async def check_health_needs_no_key(engine: EngineAt) -> None:
    """``/health`` is 200 for anybody: the supervisor's probe."""
    assert (await _ask(engine, "GET", "/health", key="")).status == 200


async def check_metrics_page_tells_the_load(engine: EngineAt) -> None:
    """``/metrics`` needs no key and has the three gauges; an idle engine's are zero."""
    page = (await _ask(engine, "GET", "/metrics", key="")).body.decode()
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
        assert f"\nvllm:{name}{{" in page, name
    await _until_idle(engine)


async def check_models(engine: EngineAt) -> None:
    """``/v1/models`` names the model and the longest prompt plus answer."""
    (model,) = (await _ask(engine, "GET", "/v1/models")).json["data"]
    assert model["id"] == engine.model
    assert isinstance(model["max_model_len"], int)
    assert model["max_model_len"] > 0


async def check_everything_else_needs_the_key(engine: EngineAt) -> None:
    """Without the key, or with a wrong one, all that can be asked of a model is 401."""
    body = decode_body(_completion(engine), None)
    for key in ("", "wrong", engine.key + "x"):
        assert (await _ask(engine, "GET", "/v1/models", key=key)).status == 401
        for path in (*Endpoint, "/tokenize", "/invocations"):
            assert (await _ask(engine, "POST", path, body, key=key)).status == 401, path


async def check_tokenize_counts_as_generation_does(engine: EngineAt) -> None:
    """``/tokenize`` takes the body of a request for text and counts what its usage will say."""
    for request in (_completion(engine), _chat(engine)):
        told = await _ask(engine, "POST", "/tokenize", msgspec.json.encode(request.body))
        assert told.status == 200, told
        usage = (await _whole(engine, request))["usage"]
        assert told.json["count"] == usage["prompt_tokens"]


async def check_whole_answers(engine: EngineAt) -> None:
    """Fields of answers that come in one piece."""
    for request, kind in (
        (_completion(engine), "text_completion"),
        (_chat(engine), "chat.completion"),
    ):
        reply = await _ask(engine, "POST", request.endpoint, decode_body(request, None))
        assert reply.status == 200
        assert reply.content_type == "application/json"
        answer = reply.json
        assert answer["object"] == kind
        assert answer["model"] == engine.model
        assert len(answer["choices"]) == 1
        assert answer["choices"][0]["finish_reason"] in ("length", "stop")
        assert 1 <= answer["usage"]["completion_tokens"] <= TOKENS
        assert _text(answer) != ""
        assert answer.get("kv_transfer_params") is None


async def check_answers_depend_on_the_whole_prompt(engine: EngineAt) -> None:
    """The same prompt gives the same text, another one another text: else no test sees wrong KV."""
    first = _text(await _whole(engine, _completion(engine)))
    assert first == _text(await _whole(engine, _completion(engine)))
    assert first != _text(await _whole(engine, _completion(engine, OTHER_PROMPT)))


async def check_completion_stream(engine: EngineAt) -> None:
    """Each event is one ``data:`` line and a blank one, the first is content, the last ``[DONE]``;
    together they say what the whole answer says."""
    events = await _events(engine, _completion(engine, stream=True))
    assert sse.classify_event(events[0])[0] is sse.EventKind.CONTENT
    _assert_framing(events)
    assert _streamed_text(events) == _text(await _whole(engine, _completion(engine)))


async def check_chat_stream(engine: EngineAt) -> None:
    """As for completions, after an event that only names the role."""
    events = await _events(engine, _chat(engine, stream=True))
    kinds = [sse.classify_event(event)[0] for event in events]
    assert kinds[:2] == [sse.EventKind.PREAMBLE, sse.EventKind.CONTENT]
    _assert_framing(events)
    assert _streamed_text(events) == _text(await _whole(engine, _chat(engine)))


def _assert_framing(events: list[bytes]) -> None:
    assert events[-1] == b"data: [DONE]\n\n"
    for event in events:
        assert event.startswith(b"data: ")
        assert event.endswith(b"\n\n")
        assert event.count(b"\n") == 2
    assert sse.EventKind.ERROR not in {sse.classify_event(event)[0] for event in events}


async def check_usage_event(engine: EngineAt) -> None:
    """``include_usage`` adds an event without choices before the end; it is no content."""
    options = {"stream": True, "stream_options": {"include_usage": True}}
    events = await _events(engine, _completion(engine, **options))
    usage = msgspec.json.decode(events[-2].removeprefix(b"data: "))
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] >= 1
    assert sse.classify_event(events[-2])[0] is sse.EventKind.PREAMBLE


async def check_several_choices_and_prompts(engine: EngineAt) -> None:
    """Lists of prompts and ``n`` give as many choices, in order."""
    prompts = [PROMPT, OTHER_PROMPT]
    answer = await _whole(engine, _completion(engine, prompts))
    texts = [choice["text"] for choice in answer["choices"]]
    assert texts == [_text(await _whole(engine, _completion(engine, p))) for p in prompts]
    # Greedy decoding allows one choice only.
    sampled = {"model": engine.model, "prompt": PROMPT, "n": 2, "temperature": 1}
    several = await _whole(engine, _request(Endpoint.COMPLETIONS, **sampled))
    assert [choice["index"] for choice in several["choices"]] == [0, 1]


async def check_too_long_prompt(engine: EngineAt) -> None:
    """A prompt over the limit is 400 with an error object, streamed or not."""
    limit = (await _ask(engine, "GET", "/v1/models")).json["data"][0]["max_model_len"]
    for stream in (False, True):
        request = _completion(engine, [7] * (limit + 1), stream=stream)
        reply = await _ask(engine, "POST", request.endpoint, decode_body(request, None))
        _assert_error_object(reply, 400)


async def check_unknown_model(engine: EngineAt) -> None:
    """Another model's name is 404 with an error object."""
    request = _request(Endpoint.COMPLETIONS, model="no-such-model", prompt="x")
    reply = await _ask(engine, "POST", request.endpoint, decode_body(request, None))
    _assert_error_object(reply, 404)


async def check_malformed_body(engine: EngineAt) -> None:
    """A body that is not JSON is 400 with an error object."""
    _assert_error_object(await _ask(engine, "POST", Endpoint.COMPLETIONS, b"{"), 400)


async def check_client_gone(engine: EngineAt) -> None:
    """A client that leaves in mid-stream has its request aborted."""
    request = _completion(engine, stream=True)
    body = {**request.body, "max_tokens": 200, "ignore_eos": True}
    async with _opened(engine, "POST", request.endpoint, msgspec.json.encode(body)) as response:
        await response.content.readany()
    await _until_idle(engine)


async def check_prefill_leg(engine: EngineAt) -> None:
    """The router's prefill body gets one token and something to pull."""
    for request in (_completion(engine), _chat(engine, stream=True)):
        params = await _prefill(engine, request)
        assert params["do_remote_prefill"] is True
        assert params["do_remote_decode"] is False
        assert isinstance(params["remote_engine_id"], str)
        assert isinstance(params["remote_request_id"], str)
        assert isinstance(params["remote_host"], str)
        assert isinstance(params["remote_port"], int)
        (blocks,) = params["remote_block_ids"]
        assert blocks
        assert all(isinstance(block, int) for block in blocks)


async def _prefill(engine: EngineAt, request: GenerateRequest) -> dict[str, Any]:
    reply = await _ask(engine, "POST", request.endpoint, prefill_body(request))
    assert reply.status == 200, reply
    answer = reply.json
    assert answer["usage"]["completion_tokens"] == 1
    told = await _ask(engine, "POST", "/tokenize", msgspec.json.encode(request.body))
    assert answer["usage"]["prompt_tokens"] == told.json["count"]
    params: dict[str, Any] = answer["kv_transfer_params"]
    return params


# --- two engines --------------------------------------------------------------------------------


async def check_handoff(prefill: EngineAt, decode: EngineAt) -> None:
    """Through a handoff the text is the one of a single engine, in one piece and streamed."""
    for make in (_completion, _chat):
        alone = _text(await _whole(decode, make(decode)))
        request = make(decode)
        params = await _prefill(prefill, request)
        assert _text(await _whole(decode, request, params)) == alone
        request = make(decode, stream=True)
        params = await _prefill(prefill, request)
        events = await _events(decode, request, params)
        _assert_framing(events)
        assert _streamed_text(events) == alone


async def check_handoff_frees_everything(prefill: EngineAt, decode: EngineAt) -> None:
    """Soon after a handoff neither engine holds KV or counts a request."""
    await _until_idle(prefill)
    request = _completion(decode)
    await _whole(decode, request, await _prefill(prefill, request))
    await _until_idle(prefill)
    await _until_idle(decode)


async def check_failed_pull(prefill: EngineAt, decode: EngineAt) -> None:
    """KV that cannot be pulled is an error: status 500, and in a stream an event after the 200."""
    request = _completion(decode, stream=True)
    nowhere = {"remote_engine_id": uuid.uuid4().hex, "remote_port": 1}
    params = {**await _prefill(prefill, request), **nowhere}
    events = await _events(decode, request, params)
    assert sse.classify_event(events[0])[0] is sse.EventKind.ERROR
    request = _completion(decode)
    reply = await _ask(decode, "POST", request.endpoint, decode_body(request, params))
    _assert_error_object(reply, 500)


SingleCheck = Callable[[EngineAt], Coroutine[Any, Any, None]]
PairCheck = Callable[[EngineAt, EngineAt], Coroutine[Any, Any, None]]

SINGLE_CHECKS: tuple[SingleCheck, ...] = (
    check_health_needs_no_key,
    check_metrics_page_tells_the_load,
    check_models,
    check_everything_else_needs_the_key,
    check_tokenize_counts_as_generation_does,
    check_whole_answers,
    check_answers_depend_on_the_whole_prompt,
    check_completion_stream,
    check_chat_stream,
    check_usage_event,
    check_several_choices_and_prompts,
    check_too_long_prompt,
    check_unknown_model,
    check_malformed_body,
    check_client_gone,
    check_prefill_leg,
)

PAIR_CHECKS: tuple[PairCheck, ...] = (
    check_handoff,
    check_handoff_frees_everything,
    check_failed_pull,
)
