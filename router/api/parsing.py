"""What a client asked for: one body parsed, checked and made safe, for each endpoint.

It refuses what the router has to rely on and cannot (``InvalidRequest``, with the field), and
leaves the rest for the engine to judge: fields that nothing here reads pass through unchanged.
The body is decoded once and encoded again for each leg, so the engine sees exactly what the router
saw. No I/O, no clock, no randomness. Field names and defaults are those of vLLM 0.32.0,
``vllm/entrypoints/openai/{completion,chat_completion,responses}/protocol.py`` and
``vllm/entrypoints/anthropic/protocol.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from baton.errors import InvalidRequest, OurFault
from router.api.contents import (
    check_anthropic,
    check_messages,
    check_prompt,
    check_responses_input,
)
from router.api.decoding import ANY, Rule, check_fields, decode_object, model_of
from router.api.endpoints import (
    PASSED_THROUGH,
    Endpoint,
    GenerateRequest,
    LocalReason,
    PassthroughRequest,
)

COMPLETION_DEFAULT_MAX_TOKENS: Final = 16
"""What the engine generates when ``/v1/completions`` says nothing. Chat has no such default."""

_COMMON: Final[Mapping[str, Rule]] = {
    "model": (str, None),
    "stream": (bool, None),
    "vllm_xargs": (dict, None),
}
# Of the two oldest endpoints. Those of the second line the prefill body leaves out, so prefill
# cannot refuse them; decode would, with blocks pinned.
_OPTIONS: Final[Mapping[str, Rule]] = {
    **_COMMON,
    "stream_options": (dict, None),
    "min_tokens": (int, 0),
    "echo": (bool, None),
    "return_token_ids": (bool, None),
    "return_prompt_text": (bool, None),
    "n": (int, 1),
    "best_of": (int, 1),
    "use_beam_search": (bool, None),
    "prompt_logprobs": (int, -1),
    "truncate_prompt_tokens": (int, -1),
}
_CHAT: Final[Mapping[str, Rule]] = {
    **_OPTIONS,
    "messages": (list, None),
    "max_tokens": (int, 1),
    "max_completion_tokens": (int, 1),
    "logprobs": (bool, None),
}
_COMPLETIONS: Final[Mapping[str, Rule]] = {
    **_OPTIONS,
    "prompt": ANY,
    "prompt_embeds": ANY,
    "max_tokens": (int, 0),
    "logprobs": (int, -1),
}
_RESPONSES: Final[Mapping[str, Rule]] = {
    **_COMMON,
    "input": ANY,
    "instructions": (str, None),
    "max_output_tokens": (int, 1),
    "tools": (list, None),
    "store": (bool, None),
    "background": (bool, None),
    "previous_response_id": (str, None),
    "previous_input_messages": ANY,
}
_MESSAGES: Final[Mapping[str, Rule]] = {
    **_COMMON,
    "messages": (list, None),
    "system": ANY,
    "max_tokens": (int, 1),
    "tools": (list, None),
    "tool_choice": (dict, None),
    "thinking": (dict, None),
}


def parse_request(endpoint: Endpoint, raw: bytes) -> GenerateRequest:
    """Checks one body and takes out what a client may not say.

    Args:
        endpoint: where the client sent it; one that generates.
        raw: the whole body, already bounded in size by the caller.

    Raises:
        InvalidRequest: nothing else, whatever the bytes are.
    """
    parse = _PARSERS.get(endpoint)
    if parse is None:
        raise OurFault(f"{endpoint} does not generate")
    return parse(decode_object(raw))


def parse_passthrough(endpoint: Endpoint, raw: bytes) -> PassthroughRequest:
    """Checks the model's name and takes out what a client may not say; the engine does the rest.

    Args:
        endpoint: where the client sent it; one that is passed through.
        raw: the whole body, already bounded in size by the caller.

    Raises:
        InvalidRequest: nothing else, whatever the bytes are.
    """
    if endpoint not in PASSED_THROUGH:
        raise OurFault(f"{endpoint} is not passed through")
    body = decode_object(raw)
    stripped = check_fields(body, _COMMON)
    # Encoded again: of duplicate keys the engine must see the one that was checked.
    return PassthroughRequest(endpoint, model_of(body), msgspec.json.encode(body), stripped)


def _parse_chat(body: dict[str, Any]) -> GenerateRequest:
    stripped = check_fields(body, _CHAT)
    model = model_of(body)
    stream = _stream(body)
    reason = check_messages(body) or _options_reason(body)
    # The engine takes top_logprobs, 0 where missing, for prompt_logprobs: never for none.
    if reason is None and body.get("echo"):
        reason = LocalReason.ECHO_LOGPROBS
    limit = body.get("max_completion_tokens")
    if limit is None:
        limit = body.get("max_tokens")
    _check_min_tokens(body, limit)
    return GenerateRequest(Endpoint.CHAT, model, stream, body, reason, stripped, limit)


def _parse_completion(body: dict[str, Any]) -> GenerateRequest:
    stripped = check_fields(body, _COMPLETIONS)
    model = model_of(body)
    stream = _stream(body)
    reason = check_prompt(body) or _options_reason(body)
    echo = body.get("echo")
    if reason is None and echo and "logprobs" in body:
        reason = LocalReason.ECHO_LOGPROBS
    limit = body.get("max_tokens", COMPLETION_DEFAULT_MAX_TOKENS)
    # Zero with echo asks for the prompt alone; without it there is nothing to answer.
    if limit == 0 and not echo:
        raise InvalidRequest("max_tokens must be at least 1", param="max_tokens")
    _check_min_tokens(body, limit)
    return GenerateRequest(Endpoint.COMPLETIONS, model, stream, body, reason, stripped, limit)


def _parse_responses(body: dict[str, Any]) -> GenerateRequest:
    stripped = check_fields(body, _RESPONSES)
    model = model_of(body)
    reason = check_responses_input(body)
    # Null is not the default here: whatever is not "disabled" truncates.
    if reason is None and body.get("truncation", "disabled") != "disabled":
        reason = LocalReason.TRUNCATION
    stream = body.get("stream", False)
    limit = body.get("max_output_tokens")
    return GenerateRequest(Endpoint.RESPONSES, model, stream, body, reason, stripped, limit)


def _parse_messages(body: dict[str, Any]) -> GenerateRequest:
    stripped = check_fields(body, _MESSAGES)
    model = model_of(body)
    limit: int | None = body.get("max_tokens")
    if limit is None:
        raise InvalidRequest("max_tokens is required", param="max_tokens")
    reason = check_anthropic(body)
    thinking = body.get("thinking")
    if thinking is not None:
        _check_thinking(thinking, limit)
    choice = body.get("tool_choice")
    if reason is None and choice is not None and choice.get("type") == "tool":
        reason = LocalReason.FORCED_TOOL
    stream = body.get("stream", False)
    return GenerateRequest(Endpoint.MESSAGES, model, stream, body, reason, stripped, limit)


_PARSERS: Final[Mapping[Endpoint, Callable[[dict[str, Any]], GenerateRequest]]] = {
    Endpoint.CHAT: _parse_chat,
    Endpoint.COMPLETIONS: _parse_completion,
    Endpoint.RESPONSES: _parse_responses,
    Endpoint.MESSAGES: _parse_messages,
}


def _stream(body: dict[str, Any]) -> bool:
    stream: bool = body.get("stream", False)
    if not stream and body.get("stream_options"):
        raise InvalidRequest(
            "stream_options is only allowed when stream is true", param="stream_options"
        )
    return stream


def _options_reason(body: dict[str, Any]) -> LocalReason | None:
    if body.get("n", 1) > 1 or body.get("best_of", 1) > 1:
        return LocalReason.SEVERAL_CHOICES
    if body.get("use_beam_search"):
        return LocalReason.BEAM_SEARCH
    if "prompt_logprobs" in body:
        return LocalReason.PROMPT_LOGPROBS
    if "truncate_prompt_tokens" in body:
        return LocalReason.TRUNCATION
    return None


def _check_min_tokens(body: dict[str, Any], limit: int | None) -> None:
    """Prefill is not told of it, and decode would refuse it with blocks pinned."""
    least = body.get("min_tokens")
    if least is not None and limit is not None and least > limit:
        raise InvalidRequest(
            f"min_tokens must be at most max_tokens, which is {limit}", param="min_tokens"
        )


def _check_thinking(thinking: dict[str, Any], limit: int) -> None:
    """The engine lets prefill's leg pass whatever the budget is, and only decode's fail."""
    if thinking.get("type") != "enabled":
        return
    budget = thinking.get("budget_tokens")
    at = "thinking.budget_tokens"
    if type(budget) is not int:
        raise InvalidRequest(f"{at} must be an integer", param=at)
    if budget >= limit:
        raise InvalidRequest(f"{at} must be less than max_tokens", param=at)
