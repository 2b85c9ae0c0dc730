"""Tokens that an engine says it read and wrote, from each API's ``usage``, and their correction.

Over a handoff the figures have to be those of one worker, and the one that computed the prompt is
prefill. vLLM 0.32 sees to the cached tokens itself: prefill puts ``remote_prefill_cached_tokens``
into the transfer parameters, and decode reports that figure in place of its own
(``v1/engine/output_processor.py``). It does not for the tokens written to the cache: decode, which
was sent them, reports 0. So the figures that prefill answered with are put into decode's answer.

Bodies are read by decoders that skip what they do not need, and rewritten without touching any
byte outside ``usage``.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from router.api.endpoints import Dialect, Endpoint
from router.api.shapes import Details, Event, Prefill, RawUsage, Whole


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one answer.

    ``cached_tokens`` and ``created_tokens`` are those of the prompt that came from the prefix
    cache and that were written to it; None where the engine does not say.
    """

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int | None = None
    created_tokens: int | None = None


class PrefillAnswer(msgspec.Struct, frozen=True):
    """What the first leg brought: parameters for decode, and what computing the prompt took."""

    params: dict[str, Any]
    usage: Usage


_whole = msgspec.json.Decoder(Whole)
_prefill = msgspec.json.Decoder(Prefill)
_event = msgspec.json.Decoder(Event)

_UNREADABLE: Final = (msgspec.MsgspecError, ValueError, RecursionError)


def usage_of(endpoint: Endpoint, body: bytes) -> Usage | None:
    """The usage in a whole answer, or None if it has none that can be read."""
    try:
        return _usage(endpoint.dialect, _whole.decode(body).usage)
    except _UNREADABLE:
        return None


def prefill_answer(endpoint: Endpoint, body: bytes) -> PrefillAnswer | None:
    """The offer in the answer to a prefill body; None if there is nothing that decode could pull,
    or no sound count of the prompt."""
    try:
        found = _prefill.decode(body)
    except _UNREADABLE:
        return None
    usage = _usage(endpoint.dialect, found.usage)
    if usage is None or usage.prompt_tokens < 1:
        return None
    if not found.kv_transfer_params.get("remote_block_ids"):
        return None
    return PrefillAnswer(found.kv_transfer_params, usage)


def usage_of_event(dialect: Dialect, payload: bytes) -> Usage | None:
    """The usage in the data of one event of a stream, or None."""
    try:
        event = _event.decode(payload)
    except _UNREADABLE:
        return None
    if dialect is Dialect.RESPONSES:
        return _usage(dialect, event.response.usage if event.response else None)
    return _usage(dialect, event.usage)


def _usage(dialect: Dialect, raw: RawUsage | None) -> Usage | None:
    if raw is None:
        return None
    if dialect is Dialect.MESSAGES:
        if raw.input_tokens is None:
            return None
        read, created = raw.cache_read_input_tokens, raw.cache_creation_input_tokens
        # Anthropic counts what the cache had, or got, apart from the rest of the prompt.
        prompt = raw.input_tokens + (read or 0) + (created or 0)
        return Usage(prompt, raw.output_tokens or 0, read, created)
    if dialect is Dialect.RESPONSES:
        details = raw.input_tokens_details or Details()
        if raw.input_tokens is None:
            return None
        return Usage(
            raw.input_tokens,
            raw.output_tokens or 0,
            details.cached_tokens,
            details.cache_write_tokens,
        )
    details = raw.prompt_tokens_details or Details()
    if raw.prompt_tokens is None:
        return None
    return Usage(
        raw.prompt_tokens,
        raw.completion_tokens or 0,
        details.cached_tokens,
        details.created_cache_tokens,
    )


# --- correction -------------------------------------------------------------------------------

_Fields = dict[str, msgspec.Raw]
_fields = msgspec.json.Decoder(_Fields)


def correct_whole(endpoint: Endpoint, body: bytes, prefill: Usage) -> bytes:
    """A whole answer of decode with the cache's figures that prefill gave; ``body`` itself if they
    are the same already or not told.

    Args:
        endpoint: where the client sent the request.
        body: decode's answer, status 200.
        prefill: the usage in prefill's answer to the same request.
    """
    return correct_json(endpoint.dialect, body, prefill, inside_response=False)


def correct_json(dialect: Dialect, data: bytes, prefill: Usage, *, inside_response: bool) -> bytes:
    """``correct_whole`` for any JSON object with ``usage``, or with ``response.usage``."""
    if prefill.cached_tokens is None and prefill.created_tokens is None:
        return data
    try:
        outer = _fields.decode(data)
        holder = _fields.decode(outer["response"]) if inside_response else outer
        usage = msgspec.json.decode(holder["usage"])
    except (*_UNREADABLE, KeyError):
        return data
    if not isinstance(usage, dict) or not _correct(dialect, usage, prefill):
        return data
    holder["usage"] = msgspec.Raw(msgspec.json.encode(usage))
    if inside_response:
        outer["response"] = msgspec.Raw(msgspec.json.encode(holder))
    return msgspec.json.encode(outer)


_NAMES: Final = {
    Dialect.OPENAI: ("prompt_tokens_details", "cached_tokens", "created_cache_tokens"),
    Dialect.RESPONSES: ("input_tokens_details", "cached_tokens", "cache_write_tokens"),
    Dialect.MESSAGES: (None, "cache_read_input_tokens", "cache_creation_input_tokens"),
}


def _correct(dialect: Dialect, usage: dict[str, Any], prefill: Usage) -> bool:
    """Changes ``usage``; only figures that it has. Returns whether anything changed."""
    details_name, cached, created = _NAMES[dialect]
    details = usage if details_name is None else usage.get(details_name)
    if not isinstance(details, dict):
        return False
    changed = False
    for name, ours in ((cached, prefill.cached_tokens), (created, prefill.created_tokens)):
        told = details.get(name)
        if ours is None or type(told) is not int or told == ours:
            continue
        details[name] = ours
        changed = True
        if dialect is Dialect.MESSAGES and type(usage.get("input_tokens")) is int:
            # What the cache did not have and did not get; the three add up to the prompt.
            usage["input_tokens"] = max(0, usage["input_tokens"] + told - ours)
    return changed
