"""What the mock says: OpenAI bodies and events as bytes, and what it reads of a request. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import msgspec

_PIECE = " la"
_CHARACTERS_PER_TOKEN = 4
BLOCK_TOKENS = 64
_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 413: "Content Too Large"}

LAST_CHUNK = b"0\r\n\r\n"
DONE = b"data: [DONE]\n\n"
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


class BadRequest(ValueError):
    """The request is not one that an OpenAI server would take."""


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False


class _Body(msgspec.Struct):
    model: str = ""
    prompt: str | list[Any] | None = None
    messages: list[dict[str, Any]] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stream: bool = False
    stream_options: _StreamOptions | None = None


_DECODER = msgspec.json.Decoder(_Body)


@dataclass(frozen=True, slots=True)
class Ask:
    """A request for text: ``blocks`` are chained hashes of the prompt's full blocks of 64 tokens,
    equal where everything up to their end is equal."""

    chat: bool
    model: str
    prompt_tokens: int
    max_tokens: int | None
    stream: bool
    usage: bool
    digest: int
    blocks: tuple[int, ...]


def read_ask(body: bytes, *, chat: bool) -> Ask:
    """Reads a request. A token is four characters, or one entry of a list of token ids.

    Raises:
        BadRequest: not JSON, or without a prompt.
    """
    try:
        asked = _DECODER.decode(body)
    except msgspec.DecodeError as error:
        raise BadRequest(str(error)) from error
    if chat and asked.messages:
        text = "\n".join(f"{m.get('role')}: {m.get('content')}" for m in asked.messages)
        tokens = -(-len(text) // _CHARACTERS_PER_TOKEN)
        raw, width = text.encode(), _CHARACTERS_PER_TOKEN
    elif not chat and isinstance(asked.prompt, str) and asked.prompt:
        tokens = -(-len(asked.prompt) // _CHARACTERS_PER_TOKEN)
        raw, width = asked.prompt.encode(), _CHARACTERS_PER_TOKEN
    elif not chat and asked.prompt and all(isinstance(token, int) for token in asked.prompt):
        tokens = len(asked.prompt)
        raw, width = b"".join(int(token).to_bytes(4, "big") for token in asked.prompt), 4
    else:
        raise BadRequest("messages are missing" if chat else "prompt is missing or of a wrong type")
    max_tokens = asked.max_completion_tokens or asked.max_tokens
    if max_tokens is not None and max_tokens < 1:
        raise BadRequest("max_tokens must be at least 1")
    blocks, before, size = [], b"", BLOCK_TOKENS * width
    for start in range(0, len(raw) - size + 1, size):
        before = hashlib.blake2b(before + raw[start : start + size], digest_size=8).digest()
        blocks.append(int.from_bytes(before, "big"))
    return Ask(
        chat=chat,
        model=asked.model,
        prompt_tokens=tokens,
        max_tokens=max_tokens,
        stream=asked.stream,
        usage=asked.stream_options is not None and asked.stream_options.include_usage,
        digest=int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "big"),
        blocks=tuple(blocks),
    )


def chunked(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def whole(status: int, body: bytes, content_type: str = "application/json") -> bytes:
    """A response with a known length."""
    reason = _REASONS.get(status, "Error")
    head = (
        f"HTTP/1.1 {status} {reason}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def error_body(status: int, message: str) -> bytes:
    """An error object."""
    return msgspec.json.encode(
        {"error": {"message": message, "type": "mock", "param": None, "code": status}}
    )


def usage_of(ask: Ask, output_tokens: int, cached_tokens: int) -> dict[str, Any]:
    """The usage object."""
    return {
        "prompt_tokens": ask.prompt_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": ask.prompt_tokens + output_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


def event(ask: Ask, name: str, tokens: int, *, last: bool) -> bytes:
    """An event with the text of ``tokens`` tokens."""
    text, finish = _PIECE * tokens, "length" if last else None
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
    choice.update({"delta": {"content": text}} if ask.chat else {"text": text})
    return _event(ask, name, {"choices": [choice]})


def role_event(ask: Ask, name: str) -> bytes:
    """The event that opens a chat's stream, without content."""
    delta = {"role": "assistant", "content": ""}
    return _event(ask, name, {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})


def usage_event(ask: Ask, name: str, usage: dict[str, Any]) -> bytes:
    """The event with the usage."""
    return _event(ask, name, {"choices": [], "usage": usage})


def _event(ask: Ask, name: str, fields: dict[str, Any]) -> bytes:
    kind = "chat.completion.chunk" if ask.chat else "text_completion"
    chunk = {"id": name, "object": kind, "created": 0, "model": ask.model, **fields}
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"


def answer_body(ask: Ask, name: str, tokens: int, usage: dict[str, Any]) -> bytes:
    """A whole answer."""
    choice: dict[str, Any] = {"index": 0, "finish_reason": "length"}
    text = _PIECE * tokens
    if ask.chat:
        choice["message"] = {"role": "assistant", "content": text}
    else:
        choice["text"] = text
    kind = "chat.completion" if ask.chat else "text_completion"
    return msgspec.json.encode(
        {
            "id": name,
            "object": kind,
            "created": 0,
            "model": ask.model,
            "choices": [choice],
            "usage": usage,
        }
    )


def models_body(model: str) -> bytes:
    """The list of models."""
    entry = {"id": model, "object": "model", "owned_by": "mock", "max_model_len": 1_000_000}
    return msgspec.json.encode({"object": "list", "data": [entry]})
