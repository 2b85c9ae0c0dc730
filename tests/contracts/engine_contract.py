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
from router.api import (
    GENERATING,
    Dialect,
    Endpoint,
    GenerateRequest,
    as_openai_error,
    count_question,
    decode_body,
    parse_request,
    prefill_answer,
    prefill_body,
    usage_of,
)

PROMPT = "A relay is run by two runners and one baton; the hand that lets go must wait. " * 4
OTHER_PROMPT = "A" + PROMPT[1:-1].replace("two", "six") + "!"
QUESTION = [{"role": "user", "content": PROMPT + "What is a relay?"}]
TOKENS = 8
_FREE_S = 15.0
"""For an engine to free what it held; a real one does it in about 0.1 s."""
_AT_ONCE_S = 5.0
"""The same where it must not be the lease that frees it, of 10 s in the tests."""


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


def _response(engine: EngineAt, **more: Any) -> GenerateRequest:
    """The question of ``_chat``, asked as a response."""
    fields = {"model": engine.model, "input": QUESTION, "temperature": 0}
    return _request(Endpoint.RESPONSES, **{**fields, "max_output_tokens": TOKENS, **more})


def _message(engine: EngineAt, **more: Any) -> GenerateRequest:
    """The question of ``_chat``, asked as an Anthropic message."""
    fields = {"model": engine.model, "messages": QUESTION, "temperature": 0}
    return _request(Endpoint.MESSAGES, **{**fields, "max_tokens": TOKENS, **more})


_MAKERS = (_completion, _chat, _response, _message)
"""A request of each endpoint that generates; the last three have one prompt."""


async def _whole(
    engine: EngineAt, request: GenerateRequest, params: dict[str, Any] | None = None
) -> Any:
    reply = await _ask(engine, "POST", request.endpoint, decode_body(request, params))
    assert reply.status == 200, reply
    return reply.json


def _text(answer: Any) -> str:
    if "output" in answer:
        text = "".join(part["text"] for item in answer["output"] for part in item["content"])
    elif "content" in answer:
        text = "".join(block["text"] for block in answer["content"])
    else:
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


def _data(event: bytes) -> Any:
    """The JSON of an event, with or without a name before it."""
    return msgspec.json.decode(event.partition(b"data: ")[2])


def _streamed_text(events: list[bytes]) -> str:
    text = ""
    for event in events:
        if event == sse.DONE + b"\n\n":
            continue
        data = _data(event)
        delta = data.get("delta")
        if isinstance(delta, str):
            text += delta
        elif isinstance(delta, dict):
            text += delta.get("text") or ""
        for choice in data.get("choices") or ():
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
        for path in (*Endpoint, "/v1/messages/count_tokens", "/invocations"):
            assert (await _ask(engine, "POST", path, body, key=key)).status == 401, path


async def check_counts_are_those_of_generation(engine: EngineAt) -> None:
    """Where the router asks for a prompt's length it is told what usage will say: ``/tokenize``
    for completions, chats and responses as chats, ``count_tokens`` for messages."""
    for make in _MAKERS:
        request = make(engine)
        question = count_question(request)
        assert question is not None
        told = await _ask(engine, "POST", question.path, question.body)
        assert told.status == 200, told
        usage = usage_of(request.endpoint, msgspec.json.encode(await _whole(engine, request)))
        assert usage is not None
        assert told.json[question.field] == usage.prompt_tokens


async def check_detokenize(engine: EngineAt) -> None:
    """``/detokenize`` is ``/tokenize`` backwards, for text without special tokens."""
    asked = {"model": engine.model, "prompt": PROMPT, "add_special_tokens": False}
    told = await _ask(engine, "POST", "/tokenize", msgspec.json.encode(asked))
    tokens = {"model": engine.model, "tokens": told.json["tokens"]}
    back = await _ask(engine, "POST", "/detokenize", msgspec.json.encode(tokens))
    assert back.status == 200, back
    assert back.json["prompt"] == PROMPT


async def check_no_embeddings(engine: EngineAt) -> None:
    """A model that generates has no ``/v1/embeddings``: 404 with something to tell a client."""
    body = msgspec.json.encode({"model": engine.model, "input": "x"})
    reply = await _ask(engine, "POST", Endpoint.EMBEDDINGS, body)
    assert reply.status == 404
    assert msgspec.json.decode(as_openai_error(404, reply.body))["error"]["message"]


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


async def check_a_response(engine: EngineAt) -> None:
    """A response says what the chat of the same prompt says, and stops at its limit. Of the same
    prompt: the tokenizer's special tokens go before the template's, as a chat has to ask for."""
    answer = await _whole(engine, _response(engine))
    assert answer["object"] == "response"
    assert answer["model"] == engine.model
    assert answer["status"] in ("incomplete", "completed")
    assert _text(answer) == _text(await _whole(engine, _chat(engine, add_special_tokens=True)))
    assert answer["usage"]["output_tokens"] <= TOKENS
    assert isinstance(answer["usage"]["input_tokens_details"]["cached_tokens"], int)
    assert isinstance(answer["usage"]["input_tokens_details"]["cache_write_tokens"], int)
    assert answer.get("kv_transfer_params") is None


async def check_a_message(engine: EngineAt) -> None:
    """So does an Anthropic message, in its own shape."""
    answer = await _whole(engine, _message(engine))
    assert (answer["type"], answer["role"]) == ("message", "assistant")
    assert answer["model"] == engine.model
    assert answer["stop_reason"] in ("max_tokens", "end_turn")
    assert _text(answer) == _text(await _whole(engine, _chat(engine)))
    assert "kv_transfer_params" not in answer


async def check_logprobs(engine: EngineAt) -> None:
    """Logprobs of the first token are numbers where the canary looks for them, and the same for
    chats and responses."""
    answer = await _whole(engine, _completion(engine, logprobs=1))
    assert isinstance(answer["choices"][0]["logprobs"]["token_logprobs"][0], float)
    chat = _chat(engine, logprobs=True, top_logprobs=1, add_special_tokens=True)
    first = (await _whole(engine, chat))["choices"][0]["logprobs"]["content"][0]
    assert isinstance(first["token"], str)
    assert isinstance(first["top_logprobs"][0]["logprob"], float)
    include = ["message.output_text.logprobs"]
    answer = await _whole(engine, _response(engine, include=include, top_logprobs=1))
    same = answer["output"][0]["content"][0]["logprobs"][0]
    assert abs(same["logprob"] - first["logprob"]) < 0.05


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


async def check_response_stream(engine: EngineAt) -> None:
    """Named events; two that say nothing come before the engine has begun, the last holds all."""
    events = await _events(engine, _response(engine, stream=True))
    kinds = _named_kinds(events, Dialect.RESPONSES)
    names = [_data(event)["type"] for event in events]
    assert names[:2] == ["response.created", "response.in_progress"]
    assert kinds[:2] == [sse.EventKind.PREAMBLE] * 2
    assert names[-1] == "response.completed"
    assert [_data(event)["sequence_number"] for event in events] == list(range(len(events)))
    whole = await _whole(engine, _response(engine))
    assert _streamed_text(events) == _text(whole)
    usage = sse.usage_in_tail(Dialect.RESPONSES, events[-1])
    assert usage is not None
    assert usage.output_tokens == whole["usage"]["output_tokens"]


async def check_message_stream(engine: EngineAt) -> None:
    """Named events, from ``message_start`` to ``message_stop``, with usage before the end."""
    events = await _events(engine, _message(engine, stream=True))
    kinds = _named_kinds(events, Dialect.MESSAGES)
    assert [_data(event)["type"] for event in events[:2]] == [
        "message_start",
        "content_block_start",
    ]
    assert kinds[:3] == [*[sse.EventKind.PREAMBLE] * 2, sse.EventKind.CONTENT]
    assert [_data(event)["type"] for event in events[-2:]] == ["message_delta", "message_stop"]
    whole = await _whole(engine, _message(engine))
    assert _streamed_text(events) == _text(whole)
    usage = sse.usage_in_tail(Dialect.MESSAGES, b"".join(events))
    assert usage is not None
    assert usage.output_tokens == whole["usage"]["output_tokens"]


def _named_kinds(events: list[bytes], dialect: Dialect) -> list[sse.EventKind]:
    """What the events mean; their framing is what the router's search for bytes relies on."""
    kinds = []
    for event in events:
        name, _, data = event.partition(b"\ndata: ")
        assert name == b"event: " + _data(event)["type"].encode()
        assert data.endswith(b"}\n\n")
        assert event.count(b"\n") == 3
        kinds.append(sse.classify_event(event, dialect)[0])
        assert sse.is_complete(event, dialect) is (kinds[-1] is sse.EventKind.DONE)
    assert sse.EventKind.ERROR not in kinds
    assert kinds[-1] is sse.EventKind.DONE
    content = sum(1 for kind in kinds if kind is sse.EventKind.CONTENT)
    assert 1 <= sse.count_events(b"".join(events), dialect) <= content
    return kinds


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
    long = [{"role": "user", "content": "word " * (limit + 1)}]
    for stream in (False, True):
        for request in (
            _completion(engine, [7] * (limit + 1), stream=stream),
            _request(Endpoint.CHAT, model=engine.model, messages=long, stream=stream),
            _response(engine, input=long, stream=stream),
            _message(engine, messages=long, stream=stream),
        ):
            reply = await _ask(engine, "POST", request.endpoint, decode_body(request, None))
            _assert_refused(request.endpoint, reply, 400)


def _assert_refused(endpoint: Endpoint, reply: Reply, status: int) -> None:
    if endpoint is not Endpoint.MESSAGES:
        _assert_error_object(reply, status)
        return
    assert reply.status == status, reply
    assert reply.json["type"] == "error"
    assert reply.json["error"]["message"]
    assert isinstance(reply.json["error"]["type"], str)


async def check_unknown_model(engine: EngineAt) -> None:
    """Another model's name is 404 with an error object, in the shape of the endpoint's API."""
    for make in _MAKERS:
        body = {**make(engine).body, "model": "no-such-model"}
        request = _request(make(engine).endpoint, **body)
        reply = await _ask(engine, "POST", request.endpoint, decode_body(request, None))
        _assert_refused(request.endpoint, reply, 404)


async def check_malformed_body(engine: EngineAt) -> None:
    """A body that is not JSON is 400 with an OpenAI error object, at every endpoint."""
    for endpoint in GENERATING:
        _assert_error_object(await _ask(engine, "POST", endpoint, b"{"), 400)


async def check_client_gone(engine: EngineAt) -> None:
    """A client that leaves in mid-stream has its request aborted."""
    limits = {Endpoint.RESPONSES: "max_output_tokens"}
    for make in _MAKERS:
        request = make(engine, stream=True)
        limit = limits.get(request.endpoint, "max_tokens")
        body = msgspec.json.encode({**request.body, limit: 200, "ignore_eos": True})
        async with _opened(engine, "POST", request.endpoint, body) as response:
            await response.content.readany()
        await _until_idle(engine)


async def check_prefill_leg(engine: EngineAt) -> None:
    """The router's prefill body gets one token and something to pull, at every endpoint, whether
    or not the client asked for a stream."""
    for make in _MAKERS:
        for stream in (False, True):
            params = await _prefill(engine, make(engine, stream=stream))
            assert params["do_remote_prefill"] is True
            assert params["do_remote_decode"] is False
            assert isinstance(params["remote_engine_id"], str)
            assert isinstance(params["remote_request_id"], str)
            assert isinstance(params["remote_host"], str)
            assert isinstance(params["remote_port"], int)
            assert isinstance(params["remote_prefill_cached_tokens"], int)
            (blocks,) = params["remote_block_ids"]
            assert blocks
            assert all(isinstance(block, int) for block in blocks)


async def _prefill(engine: EngineAt, request: GenerateRequest) -> dict[str, Any]:
    reply = await _ask(engine, "POST", request.endpoint, prefill_body(request))
    assert reply.status == 200, reply
    answer = prefill_answer(request.endpoint, reply.body)
    assert answer is not None, reply
    assert answer.usage.output_tokens == 1
    question = count_question(request)
    assert question is not None
    told = await _ask(engine, "POST", question.path, question.body)
    assert answer.usage.prompt_tokens == told.json[question.field]
    return answer.params


# --- two engines --------------------------------------------------------------------------------


async def check_handoff(prefill: EngineAt, decode: EngineAt) -> None:
    """Through a handoff the text is the one of a single engine, in one piece and streamed."""
    for make in _MAKERS:
        alone = _text(await _whole(decode, make(decode)))
        request = make(decode)
        params = await _prefill(prefill, request)
        assert _text(await _whole(decode, request, params)) == alone
        request = make(decode, stream=True)
        params = await _prefill(prefill, request)
        events = await _events(decode, request, params)
        dialect = request.endpoint.dialect
        if dialect is Dialect.OPENAI:
            _assert_framing(events)
        else:
            _named_kinds(events, dialect)
        assert _streamed_text(events) == alone


async def check_handoff_logprobs(prefill: EngineAt, decode: EngineAt) -> None:
    """The first token's logprob is that of a single engine; what wrong KV changes by far more."""
    for make, more in (
        (_completion, {"logprobs": 1}),
        (_chat, {"logprobs": True, "top_logprobs": 1}),
    ):
        request = make(decode, **more)
        alone = _first_logprob(await _whole(decode, request))
        params = await _prefill(prefill, request)
        assert abs(_first_logprob(await _whole(decode, request, params)) - alone) < 0.1


def _first_logprob(answer: Any) -> float:
    logprobs = answer["choices"][0]["logprobs"]
    if "content" in logprobs:
        return float(logprobs["content"][0]["logprob"])
    return float(logprobs["token_logprobs"][0])


async def check_cached_tokens(prefill: EngineAt, decode: EngineAt) -> None:
    """Decode reports the cached tokens that prefill had, not those that it was sent; of the
    tokens written to the cache it reports none, which is why the router puts in prefill's."""
    text = f"{uuid.uuid4().hex} {PROMPT}"
    had = []
    for _ in range(2):
        request = _response(decode, input=text)
        reply = await _ask(prefill, "POST", request.endpoint, prefill_body(request))
        offered = prefill_answer(request.endpoint, reply.body)
        assert offered is not None
        whole = await _whole(decode, request, offered.params)
        usage = usage_of(request.endpoint, msgspec.json.encode(whole))
        assert usage is not None
        assert usage.prompt_tokens == offered.usage.prompt_tokens
        assert usage.cached_tokens == offered.usage.cached_tokens
        assert usage.created_tokens == 0
        had.append((offered.usage.cached_tokens or 0, offered.usage.created_tokens or 0))
    first, again = had
    assert first[1] > 0
    assert again[0] > first[0]


async def check_handoff_frees_everything(prefill: EngineAt, decode: EngineAt) -> None:
    """Soon after a handoff neither engine holds KV or counts a request."""
    await _until_idle(prefill)
    request = _completion(decode)
    await _whole(decode, request, await _prefill(prefill, request))
    await _until_idle(prefill)
    await _until_idle(decode)


async def check_a_refusal_gives_an_offer_back(prefill: EngineAt, decode: EngineAt) -> None:
    """A request that decode has to refuse, with parameters, frees prefill's blocks at once: how the
    router gives back what nobody will pull, long before a lease ends."""
    await _until_idle(prefill)
    request = _completion(decode)
    await _whole(decode, request, await _prefill(prefill, request))  # they know each other
    params = await _prefill(prefill, request)
    assert (await _load(prefill)).kv_usage > 0
    refused = {"model": "nobody", "prompt": [1], "max_tokens": 1, "kv_transfer_params": params}
    for _ in range(2):  # the second time there is nothing left to free, which does no harm
        reply = await _ask(decode, "POST", Endpoint.COMPLETIONS, msgspec.json.encode(refused))
        assert reply.status == 404
        async with asyncio.timeout(_AT_ONCE_S):
            while (await _load(prefill)).kv_usage > 0:  # noqa: ASYNC110 (as above)
                await asyncio.sleep(0.05)
    assert _text(await _whole(decode, request)) == _text(await _whole(decode, request))


async def check_failed_pull(prefill: EngineAt, decode: EngineAt) -> None:
    """KV that cannot be pulled is an error: status 500, and in a stream an event after the 200, or
    for responses, whose error event the engine cannot write, a stream that breaks off. Never
    content."""
    # One address for all, at the same time: the engine tries each for 5 s, one after the other.
    nowhere = {"remote_engine_id": uuid.uuid4().hex, "remote_port": 1}

    async def whole(make: Callable[..., GenerateRequest]) -> None:
        request = make(decode)
        params = {**await _prefill(prefill, request), **nowhere}
        reply = await _ask(decode, "POST", request.endpoint, decode_body(request, params))
        _assert_refused(request.endpoint, reply, 500)

    async def streamed(make: Callable[..., GenerateRequest]) -> None:
        request = make(decode, stream=True)
        params = {**await _prefill(prefill, request), **nowhere}
        dialect = request.endpoint.dialect
        events = await _events_until_broken(decode, request, params)
        kinds = [sse.classify_event(event, dialect)[0] for event in events]
        assert sse.EventKind.CONTENT not in kinds
        kinds = [kind for kind in kinds if kind is not sse.EventKind.PREAMBLE]
        if dialect is Dialect.RESPONSES:
            assert sse.EventKind.DONE not in kinds
        else:
            assert kinds[0] is sse.EventKind.ERROR

    await asyncio.gather(*(check(make) for check in (whole, streamed) for make in _MAKERS))


async def _events_until_broken(
    engine: EngineAt, request: GenerateRequest, params: dict[str, Any]
) -> list[bytes]:
    """The whole events of a stream that may break off."""
    body = decode_body(request, params)
    whole = b""
    async with _opened(engine, "POST", request.endpoint, body) as response:
        assert response.status == 200, await response.read()
        buffer = sse.EventBuffer()
        with contextlib.suppress(aiohttp.ClientError):
            async for part in response.content.iter_any():
                whole += buffer.feed(part)
    return sse.split_events(whole)


SingleCheck = Callable[[EngineAt], Coroutine[Any, Any, None]]
PairCheck = Callable[[EngineAt, EngineAt], Coroutine[Any, Any, None]]

SINGLE_CHECKS: tuple[SingleCheck, ...] = (
    check_health_needs_no_key,
    check_metrics_page_tells_the_load,
    check_models,
    check_everything_else_needs_the_key,
    check_counts_are_those_of_generation,
    check_detokenize,
    check_no_embeddings,
    check_whole_answers,
    check_a_response,
    check_a_message,
    check_logprobs,
    check_answers_depend_on_the_whole_prompt,
    check_completion_stream,
    check_chat_stream,
    check_response_stream,
    check_message_stream,
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
    check_handoff_logprobs,
    check_cached_tokens,
    check_handoff_frees_everything,
    check_a_refusal_gives_an_offer_back,
    check_failed_pull,
)
