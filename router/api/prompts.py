"""What is known of a request's prompt without a tokenizer: its bytes, its session, its certainty.

It exists for those who choose a worker (prefixes, sessions) or replay a request.
Nothing here changes what an engine is sent, and a wrong guess costs time, never an answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from router.api.endpoints import Endpoint, GenerateRequest

_encode = msgspec.json.Encoder(order="deterministic").encode

# In the order in which templates write them: tools and system text come before any message.
_HEAD: Final[Mapping[Endpoint, Sequence[str]]] = {
    Endpoint.COMPLETIONS: ("suffix", "add_special_tokens"),
    Endpoint.CHAT: (
        "chat_template",
        "chat_template_kwargs",
        "reasoning_effort",
        "tools",
        "documents",
    ),
    Endpoint.RESPONSES: ("chat_template_kwargs", "reasoning", "tools", "instructions"),
    Endpoint.MESSAGES: ("chat_template_kwargs", "thinking", "output_config", "tools", "system"),
}
_BODY: Final[Mapping[Endpoint, str]] = {
    Endpoint.COMPLETIONS: "prompt",
    Endpoint.CHAT: "messages",
    Endpoint.RESPONSES: "input",
    Endpoint.MESSAGES: "messages",
}


def prompt_bytes_of(request: GenerateRequest) -> bytes:
    """What determines the prompt, from its beginning: prompts that share one share the other.

    First the model (an adapter has a name of its own) and the cache salt, then the options that
    shape the start of the prompt, then the text in order. Keys are sorted. What only ends a prompt
    is left out. The same conversation asked for at two endpoints has two different beginnings.
    """
    body = request.body
    endpoint = request.endpoint
    head: list[Any] = [request.model, body.get("cache_salt")]
    for field in _HEAD[endpoint]:
        value = body.get(field)
        if value is not None and (field != "tools" or body.get("tool_choice") != "none"):
            head.append(field)
            head.append(value)
    text = body.get(_BODY[endpoint])
    if type(text) is str:
        return _encode(head) + text.encode()
    return _encode(head) + _encode(text)


_SESSION_FIELDS: Final[Sequence[str]] = (
    "session_id",
    "prompt_cache_key",
    "user",
    "safety_identifier",
)
"""The narrowest first: one conversation, one family of prompts, one person."""


def session_of(request: GenerateRequest) -> str | None:
    """What the client says that its requests have in common, or None."""
    body = request.body
    for field in _SESSION_FIELDS:
        value = body.get(field)
        if type(value) is str and value:
            return value
    if request.endpoint is Endpoint.MESSAGES:
        metadata = body.get("metadata")
        user = metadata.get("user_id") if type(metadata) is dict else None
        if type(user) is str and user:
            return user
    return None


def greedy(request: GenerateRequest) -> bool:
    """Whether the same prompt must give the same answer: temperature 0, and nothing drawn.

    A temperature that the request leaves open is the model's own, which is rarely 0.
    """
    body = request.body
    temperature = body.get("temperature")
    return (
        type(temperature) in (int, float)
        and temperature == 0
        and not body.get("use_beam_search")
        and body.get("n", 1) == 1
        and not body.get("watermarking")
    )
