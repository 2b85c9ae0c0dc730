"""What the mock worker answers: the bytes of a vLLM server, made with as little work as possible.

Ordinary answers are one interpolation into bytes that stand ready; a mock that was slower than the
routers would be what is measured. Lists of prompts, several choices and logprobs are built one by
one: only a router's own probes ask for them here. A logprob depends on the prompt alone, so that a
router that asks twice sees the same. Pure.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import msgspec

from benchmarks.router.text import MODEL, TokenCounter

_PIECE = " la"
_CREATED = 1_764_000_000
_DEFAULT_TOKENS = 16
_MOST_TOKENS = 1 << 20


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False


class _Message(msgspec.Struct):
    role: str
    content: str | list[dict[str, Any]] | None = None


class _Body(msgspec.Struct):
    messages: list[_Message] | None = None
    prompt: str | list[Any] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stream: bool = False
    stream_options: _StreamOptions | None = None
    logprobs: bool | int | None = None
    top_logprobs: int | None = None
    n: int | None = None
    kv_transfer_params: msgspec.Raw = msgspec.Raw()


_BODY = msgspec.json.Decoder(_Body)


class BadRequest(ValueError):
    """The request is not one that an engine would take."""


@dataclass(slots=True)
class Asked:
    """A request for text.

    Attributes:
        chat: whether it is a chat; else a completion.
        prompt_tokens: of all its prompts.
        tokens: how many each choice has.
        choices: how many choices.
        stream: as events.
        usage: whether a stream ends with the usage.
        top: logprobs of how many tokens are asked for beside the one chosen; None for none.
        seed: depends on the prompt alone.
        transfer: ``kv_transfer_params`` as JSON, or empty.
    """

    chat: bool
    prompt_tokens: int
    tokens: int
    choices: int
    stream: bool
    usage: bool
    top: int | None
    seed: int
    transfer: bytes


def read_request(body: bytes, chat: bool, counter: TokenCounter) -> Asked:
    """Reads a request for text.

    Raises:
        BadRequest: not JSON, or without a prompt.
    """
    try:
        asked = _BODY.decode(body)
    except msgspec.DecodeError as error:
        raise BadRequest(str(error)) from error
    top: int | None = None
    if chat:
        if not asked.messages:
            raise BadRequest("messages are missing")
        prompt_tokens = counter.chat([(m.role, _content(m.content)) for m in asked.messages])
        prompts = 1
        if asked.logprobs:
            top = asked.top_logprobs or 0
    else:
        if not asked.prompt:
            raise BadRequest("prompt is missing")
        prompt_tokens, prompts = _prompts(asked.prompt, counter)
        if asked.logprobs is not None and asked.logprobs is not False:
            top = int(asked.logprobs)
    tokens = asked.max_completion_tokens or asked.max_tokens or _DEFAULT_TOKENS
    return Asked(
        chat=chat,
        prompt_tokens=prompt_tokens,
        tokens=max(1, min(tokens, _MOST_TOKENS)),
        choices=prompts * (asked.n or 1),
        stream=asked.stream,
        usage=asked.stream_options is not None and asked.stream_options.include_usage,
        top=top,
        seed=0 if top is None else zlib.crc32(repr((asked.messages, asked.prompt)).encode()),
        transfer=bytes(asked.kv_transfer_params),
    )


def _content(content: str | list[dict[str, Any]] | None) -> str:
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content)
    return content or ""


def _prompts(prompt: str | list[Any], counter: TokenCounter) -> tuple[int, int]:
    """Tokens of all prompts, and how many prompts."""
    if isinstance(prompt, str):
        return counter.text(prompt), 1
    if isinstance(prompt[0], int):
        return len(prompt), 1
    each = [counter.text(p) if isinstance(p, str) else len(p) for p in prompt]
    return sum(each), len(each)


# --- whole answers ----------------------------------------------------------------------------

_CHAT = (
    b'{"id":"%b","object":"chat.completion","created":%d,"model":"' + MODEL.encode() + b'",'
    b'"choices":[{"index":0,"message":{"role":"assistant","content":"%b","refusal":null,'
    b'"annotations":null,"audio":null,"function_call":null,"tool_calls":[],"reasoning":null},'
    b'"logprobs":null,"finish_reason":"length","stop_reason":null,"token_ids":null}],'
    b'"service_tier":null,"system_fingerprint":null,"usage":{"prompt_tokens":%d,'
    b'"total_tokens":%d,"completion_tokens":%d,"prompt_tokens_details":null},'
    b'"prompt_logprobs":null,"prompt_token_ids":null,"kv_transfer_params":%b}'
)
_COMPLETION = (
    b'{"id":"%b","object":"text_completion","created":%d,"model":"' + MODEL.encode() + b'",'
    b'"choices":[{"index":0,"text":"%b","logprobs":null,"finish_reason":"length",'
    b'"stop_reason":null,"token_ids":null,"prompt_logprobs":null,"prompt_token_ids":null}],'
    b'"service_tier":null,"system_fingerprint":null,"usage":{"prompt_tokens":%d,'
    b'"total_tokens":%d,"completion_tokens":%d,"prompt_tokens_details":null},'
    b'"kv_transfer_params":%b}'
)


def whole_answer(asked: Asked, name: bytes, transfer: bytes) -> bytes:
    """The body of an answer that is not streamed.

    Args:
        asked: the request.
        name: the answer's id.
        transfer: ``kv_transfer_params`` as JSON.
    """
    tokens = asked.tokens
    if asked.choices == 1 and asked.top is None:
        return (_CHAT if asked.chat else _COMPLETION) % (
            name,
            _CREATED,
            _PIECE.encode() * tokens,
            asked.prompt_tokens,
            asked.prompt_tokens + tokens,
            tokens,
            transfer,
        )
    key = "message" if asked.chat else "text"
    text = _PIECE * tokens
    says: Any = {"role": "assistant", "content": text, "tool_calls": []} if asked.chat else text
    return msgspec.json.encode(
        {
            "id": name.decode(),
            "object": "chat.completion" if asked.chat else "text_completion",
            "created": _CREATED,
            "model": MODEL,
            "choices": [
                {
                    "index": index,
                    key: says,
                    "logprobs": _logprobs(asked, 0, tokens),
                    "finish_reason": "length",
                    "stop_reason": None,
                }
                for index in range(asked.choices)
            ],
            "usage": _usage(asked),
            "kv_transfer_params": msgspec.Raw(transfer),
        }
    )


def _usage(asked: Asked) -> dict[str, int]:
    made = asked.tokens * asked.choices
    return {
        "prompt_tokens": asked.prompt_tokens,
        "total_tokens": asked.prompt_tokens + made,
        "completion_tokens": made,
    }


def _logprobs(asked: Asked, first: int, tokens: int) -> Any:
    """Of the tokens from ``first`` on; the chosen one is the likeliest of ``top``."""
    if asked.top is None:
        return None
    values = [-((asked.seed + 7919 * i) % 1000) / 1000 for i in range(first, first + tokens)]
    others = [(_PIECE if i == 0 else f" o{i}", float(i)) for i in range(max(asked.top, 1))]
    if not asked.chat:
        return {
            "text_offset": [len(_PIECE) * i for i in range(first, first + tokens)],
            "token_logprobs": values,
            "tokens": [_PIECE] * tokens,
            "top_logprobs": [{text: value - less for text, less in others} for value in values],
        }
    return {
        "content": [
            {
                **_token(_PIECE, value),
                "top_logprobs": [_token(text, value - less) for text, less in others[: asked.top]],
            }
            for value in values
        ]
    }


def _token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


# --- streams ----------------------------------------------------------------------------------

DONE = b"data: [DONE]\n\n"


def first_event(asked: Asked, name: bytes) -> bytes:
    """What opens a chat's stream: the role, without content. Completions have none."""
    if not asked.chat:
        return b""
    return b"".join(
        _event(asked, name, index, {"role": "assistant", "content": ""}, None, None)
        for index in range(asked.choices)
    )


def token_event(asked: Asked, name: bytes, at: int) -> bytes:
    """The event of token ``at`` of each choice; the last has the reason for the end."""
    finish = "length" if at == asked.tokens - 1 else None
    logprobs = _logprobs(asked, at, 1)
    return b"".join(
        _event(asked, name, index, {"content": _PIECE}, logprobs, finish)
        for index in range(asked.choices)
    )


def usage_event(asked: Asked, name: bytes) -> bytes:
    """The event with the usage, or nothing if it was not asked for."""
    if not asked.usage:
        return b""
    return _data(asked, name, {"choices": [], "usage": _usage(asked)})


def _event(
    asked: Asked, name: bytes, index: int, delta: dict[str, str], logprobs: Any, finish: str | None
) -> bytes:
    choice: dict[str, Any] = {"index": index}
    choice.update({"delta": delta} if asked.chat else {"text": delta["content"]})
    choice.update(logprobs=logprobs, finish_reason=finish, token_ids=None)
    return _data(asked, name, {"choices": [choice]})


def _data(asked: Asked, name: bytes, fields: dict[str, Any]) -> bytes:
    kind = "chat.completion.chunk" if asked.chat else "text_completion"
    chunk = {"id": name.decode(), "object": kind, "created": _CREATED, "model": MODEL, **fields}
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"


# --- everything else that a router may ask a worker for ---------------------------------------

_METRICS = b"".join(
    b'# TYPE vllm:%b gauge\nvllm:%b{engine="0",model_name="' % (name, name)
    + MODEL.encode()
    + b'"} 0.0\n'
    for name in (b"num_requests_running", b"num_requests_waiting", b"kv_cache_usage_perc")
)
_MODEL_INFO = {
    "model_path": MODEL,
    "served_model_name": MODEL,
    "is_generation": True,
    "max_model_len": 131_072,
    "max_total_num_tokens": 1_000_000,
    "version": "0.32.0",
}
_MODELS = {
    "object": "list",
    "data": [
        {
            "id": MODEL,
            "object": "model",
            "created": _CREATED,
            "owned_by": "vllm",
            "root": MODEL,
            "parent": None,
            "max_model_len": 131_072,
        }
    ],
}

PAGES: dict[bytes, tuple[str, bytes]] = {
    b"/health": ("text/plain", b""),
    b"/ping": ("text/plain", b""),
    b"/version": ("application/json", b'{"version":"0.32.0"}'),
    b"/metrics": ("text/plain; version=0.0.4; charset=utf-8", _METRICS),
    b"/load": ("application/json", b'{"server_load":0}'),
    b"/v1/models": ("application/json", msgspec.json.encode(_MODELS)),
    b"/get_model_info": ("application/json", msgspec.json.encode(_MODEL_INFO)),
    b"/model_info": ("application/json", msgspec.json.encode(_MODEL_INFO)),
    b"/get_server_info": ("application/json", msgspec.json.encode(_MODEL_INFO)),
    b"/server_info": ("application/json", msgspec.json.encode(_MODEL_INFO)),
}
"""Content type and body by path."""


def tokenize_answer(body: bytes, counter: TokenCounter) -> bytes:
    """The body of an answer of ``/tokenize``.

    Raises:
        BadRequest: no text to tokenize.
    """
    try:
        asked = _BODY.decode(body)
    except msgspec.DecodeError as error:
        raise BadRequest(str(error)) from error
    if asked.messages:
        messages = [(m.role, _content(m.content)) for m in asked.messages]
        text = "".join(f"<{role}>{content}\n" for role, content in messages) + "<assistant>"
    elif isinstance(asked.prompt, str):
        text = asked.prompt
    else:
        raise BadRequest("neither messages nor a prompt")
    ids = counter.ids(text)
    return msgspec.json.encode({"count": len(ids), "max_model_len": 131_072, "tokens": ids})
