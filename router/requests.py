"""What a client asked for: parsed, checked, made safe, and turned into the bodies of both legs.

It exists because an engine believes what it reads: a body that reaches it unchecked can name
another machine to pull KV from, or be understood differently by prefill and by decode. The body is
decoded once and encoded again for each leg, so the engine sees exactly what the router saw:
of duplicate keys only the last is left, and nothing survives that JSON does not allow.

It refuses what the router has to rely on and cannot (``InvalidRequest``, with the field), and
leaves the rest for the engine to judge: fields that nothing here reads pass through unchanged.
No I/O, no clock, no randomness. Field names and defaults are those of vLLM 0.32.0,
``vllm/entrypoints/openai/{completion,chat_completion}/protocol.py``.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec

from baton.errors import InvalidRequest, OurFault

MAX_DEPTH: Final = 64
"""Arrays and objects inside one another. JSON schemas and tool calls stay far below; recursion
in a decoder, a template or a validator does not start to hurt before several hundred."""

MAX_MODEL_NAME: Final = 512
"""Characters. A name goes into headers, metrics and messages."""

COMPLETION_DEFAULT_MAX_TOKENS: Final = 16
"""What the engine generates when ``/v1/completions`` says nothing. Chat has no such default."""


class Endpoint(enum.StrEnum):
    """The two endpoints that generate text; the value is the path, on the engine as well."""

    COMPLETIONS = "/v1/completions"
    CHAT = "/v1/chat/completions"


class LocalReason(enum.StrEnum):
    """Why a request must be served by one engine alone.

    For the first three a handoff gives HTTP 200 with wrong text or none at all. With prompt
    logprobs, asked for or implied by ``echo``, decode computes the whole prompt anyway. For the
    last three prefill and decode could read different prompts, and then the KV of one is wrong
    for the other: embeddings have no token ids to compare; an image or a sound behind a URL is
    fetched by each engine; and a truncated prompt depends on the engine's own context length and
    on whether the body names a token limit, which the prefill body always does.
    """

    PROMPT_LIST = "prompt_list"
    SEVERAL_CHOICES = "several_choices"
    BEAM_SEARCH = "beam_search"
    PROMPT_LOGPROBS = "prompt_logprobs"
    ECHO_LOGPROBS = "echo_logprobs"
    PROMPT_EMBEDS = "prompt_embeds"
    MEDIA = "media"
    TRUNCATION = "truncation"


@dataclass(frozen=True, slots=True, eq=False)
class GenerateRequest:
    """A request that may be dispatched.

    ``body`` is what the engine will get, without transfer parameters; nobody changes it.
    ``local_reason`` is None where a handoff is allowed. ``stripped`` says that the client tried to
    set transfer parameters. ``max_new_tokens`` is None where only the context length limits it.
    """

    endpoint: Endpoint
    model: str
    stream: bool
    body: dict[str, Any]
    local_reason: LocalReason | None
    stripped: bool
    max_new_tokens: int | None


def parse_request(endpoint: Endpoint, raw: bytes) -> GenerateRequest:
    """Checks one body and takes out what a client may not say.

    Args:
        endpoint: where the client sent it.
        raw: the whole body, already bounded in size by the caller.

    Raises:
        InvalidRequest: nothing else, whatever the bytes are.
    """
    body = _decode(raw)
    stripped = _strip_transfer_params(body)
    model = _model(body)
    _check_fields_that_prefill_changes(body)
    stream = bool(_optional(body, "stream", bool))
    if body.get("stream_options") and not stream:
        raise InvalidRequest(
            "stream_options is only allowed when stream is true", param="stream_options"
        )
    if endpoint is Endpoint.CHAT:
        shape_reason = _check_messages(body)
        max_new_tokens = _chat_limit(body)
    else:
        shape_reason = _check_prompt(body)
        max_new_tokens = _completion_limit(body)
    options_reason = _options_reason(endpoint, body)
    return GenerateRequest(
        endpoint=endpoint,
        model=model,
        stream=stream,
        body=body,
        local_reason=shape_reason or options_reason,
        stripped=stripped,
        max_new_tokens=max_new_tokens,
    )


# --- the bodies of the two legs ---------------------------------------------------------------

_OFFER: Final[Mapping[str, Any]] = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}

# Gone from the prefill body. Whatever could shape the prompt stays (tools, tool_choice,
# response_format, every template option, suffix, cache_salt), and so does what the engine would
# refuse: prefill is then the one to say 400, before any block is pinned.
_NOT_FOR_PREFILL: Final = (
    "stream_options",  # refused without stream
    "min_tokens",  # refused above max_tokens, which is 1
    "best_of",
    "echo",  # these three would send the prompt back to the router, for nothing
    "return_token_ids",
    "return_prompt_text",
)


def prefill_body(request: GenerateRequest) -> bytes:
    """The body of the first leg: one token, thrown away, and the KV kept for decode.

    Raises:
        OurFault: if the request must be served locally.
    """
    if request.local_reason is not None:
        raise OurFault(f"a local request was sent to prefill: {request.local_reason}")
    body = {key: value for key, value in request.body.items() if key not in _NOT_FOR_PREFILL}
    body["max_tokens"] = 1
    if request.endpoint is Endpoint.CHAT:
        body["max_completion_tokens"] = 1  # takes precedence over max_tokens
    body["n"] = 1
    body["stream"] = False
    body["kv_transfer_params"] = _OFFER
    return msgspec.json.encode(body)


def decode_body(request: GenerateRequest, transfer_params: Mapping[str, Any] | None) -> bytes:
    """The body of the second leg, or of the only one when ``transfer_params`` is None.

    ``transfer_params`` are those that prefill answered with; they go through unchanged.

    Raises:
        OurFault: if the request must be served locally and parameters are given.
    """
    if transfer_params is None:
        return msgspec.json.encode(request.body)
    if request.local_reason is not None:
        raise OurFault(f"a local request was handed over: {request.local_reason}")
    return msgspec.json.encode({**request.body, "kv_transfer_params": transfer_params})


# --- decoding and stripping -------------------------------------------------------------------


def _decode(raw: bytes) -> dict[str, Any]:
    try:
        body = msgspec.json.decode(raw)
    except UnicodeDecodeError as error:
        raise InvalidRequest("the body is not valid UTF-8") from error
    except (msgspec.MsgspecError, ValueError, OverflowError) as error:
        # NaN, Infinity, lone surrogates and numbers beyond a double end here as well.
        raise InvalidRequest(f"the body is not valid JSON: {error}") from error
    except RecursionError as error:
        raise InvalidRequest(f"the body is nested deeper than {MAX_DEPTH} levels") from error
    if not isinstance(body, dict):
        raise InvalidRequest(f"the body must be a JSON object, not {_kind(body)}")
    _check_depth(body)
    return body


def _check_depth(body: dict[str, Any]) -> None:
    """Level by level, so that the depth of the input is never the depth of the stack."""
    level: list[Any] = [body]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for node in level:
            values = node.values() if type(node) is dict else node
            # A prompt of 100,000 token ids is one kind of value: told at C speed.
            if {dict, list} & set(map(type, values)):
                below.extend(value for value in values if type(value) in (dict, list))
        if not below:
            return
        level = below
    raise InvalidRequest(f"the body is nested deeper than {MAX_DEPTH} levels")


def _is_engine_control(key: str) -> bool:
    return key.endswith("_transfer_params") or key == "kv_cache_report_mode"


def _strip_transfer_params(body: dict[str, Any]) -> bool:
    """Removes every way by which a body reaches the engine's transfer parameters.

    ``kv_transfer_params`` names the host, port and blocks to pull from (a request of its own to
    any machine, other requests' KV, or a dead engine), and its ``prompt_token_ids`` replaces the
    prompt behind the router's back. ``ec_transfer_params`` is the same for encoder outputs.
    ``vllm_xargs`` becomes the engine's ``extra_args``, the very dictionary from which the engine
    takes both, so its keys are as good as the fields themselves (and a string there kills the
    engine core); from it the engine also takes ``kv_cache_report_mode``, which makes a request
    announce blocks again on the KV event stream. The suffix is matched, not the two names, so that
    a third kind of transfer in a later engine is shut out too.

    What stays, and why it is harmless: ``request_id`` and ``session_id`` are labels (the engine
    adds its own random suffix to a request's id), ``priority`` is refused by an engine that does
    not schedule by it, ``cache_salt`` only separates caches. The data-parallel rank is a header,
    not a field.

    Returns:
        Whether anything that said something (not null) was removed.
    """
    removed = [body.pop(key) for key in [*body] if _is_engine_control(key)]
    extra = _optional(body, "vllm_xargs", dict)
    if extra is not None:
        removed += [extra.pop(key) for key in [*extra] if _is_engine_control(key)]
        if not extra:
            del body["vllm_xargs"]
    return any(value is not None for value in removed)


# --- checks -----------------------------------------------------------------------------------

_KINDS: Final[Mapping[type[Any], str]] = {
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "an array",
    dict: "an object",
    type(None): "null",
}


def _kind(value: object) -> str:
    return _KINDS[type(value)]


def _optional(
    body: dict[str, Any], field: str, kind: type[Any], at_least: int | None = None
) -> Any:
    """The field's value, or None. Null is taken out: it means the same as a missing field, but
    the engine refuses it in some places.

    The type has to be exact. The engine would take ``"2"`` or ``true`` for the integer that the
    router did not see, and serve ``n = 2`` over a handoff.
    """
    value: Any = body.get(field)
    if value is None:
        body.pop(field, None)
        return None
    if type(value) is not kind:
        raise InvalidRequest(f"{field} must be {_KINDS[kind]}, not {_kind(value)}", param=field)
    if at_least is not None and value < at_least:
        raise InvalidRequest(f"{field} must be at least {at_least}", param=field)
    return value


def _model(body: dict[str, Any]) -> str:
    model = _optional(body, "model", str)
    if not model:
        raise InvalidRequest("model is required", param="model")
    if len(model) > MAX_MODEL_NAME:
        raise InvalidRequest(f"model is longer than {MAX_MODEL_NAME} characters", param="model")
    return str(model)


def _check_fields_that_prefill_changes(body: dict[str, Any]) -> None:
    """What the prefill body leaves out prefill cannot refuse; decode would, with blocks pinned."""
    _optional(body, "stream_options", dict)
    _optional(body, "min_tokens", int, 0)
    _optional(body, "echo", bool)
    _optional(body, "return_token_ids", bool)
    _optional(body, "return_prompt_text", bool)


def _chat_limit(body: dict[str, Any]) -> int | None:
    old = _optional(body, "max_tokens", int, 1)
    new = _optional(body, "max_completion_tokens", int, 1)
    limit = old if new is None else new
    return None if limit is None else int(limit)


def _completion_limit(body: dict[str, Any]) -> int:
    # Zero with echo asks for the prompt alone; without it there is nothing to answer.
    limit = _optional(body, "max_tokens", int, 0 if body.get("echo") else 1)
    return COMPLETION_DEFAULT_MAX_TOKENS if limit is None else int(limit)


def _options_reason(endpoint: Endpoint, body: dict[str, Any]) -> LocalReason | None:
    choices = _optional(body, "n", int, 1) or 1
    best_of = _optional(body, "best_of", int, 1) or 1
    beam = _optional(body, "use_beam_search", bool)
    prompt_logprobs = _optional(body, "prompt_logprobs", int, -1)
    truncation = _optional(body, "truncate_prompt_tokens", int, -1)
    if endpoint is Endpoint.CHAT:
        _optional(body, "logprobs", bool)
        # The engine takes top_logprobs, 0 where missing, for prompt_logprobs: never for none.
        echo_logprobs = bool(body.get("echo"))
    else:
        logprobs = _optional(body, "logprobs", int, -1)
        echo_logprobs = bool(body.get("echo")) and logprobs is not None
    if choices > 1 or best_of > 1:
        return LocalReason.SEVERAL_CHOICES
    if beam:
        return LocalReason.BEAM_SEARCH
    if prompt_logprobs is not None:
        return LocalReason.PROMPT_LOGPROBS
    if echo_logprobs:
        return LocalReason.ECHO_LOGPROBS
    if truncation is not None:
        return LocalReason.TRUNCATION
    return None


# --- prompt and messages ----------------------------------------------------------------------

_TokenId = Annotated[int, msgspec.Meta(ge=0)]


def _check_prompt(body: dict[str, Any]) -> LocalReason | None:
    embeds = _check_prompt_embeds(body)
    prompt = body.get("prompt")
    if prompt is None:
        body.pop("prompt", None)
        if not embeds:
            raise InvalidRequest("prompt is required", param="prompt")
        return LocalReason.PROMPT_EMBEDS
    if not isinstance(prompt, str | list):
        raise InvalidRequest(
            f"prompt must be a string or an array, not {_kind(prompt)}", param="prompt"
        )
    if not prompt:
        raise InvalidRequest("prompt must not be empty", param="prompt")
    is_list = isinstance(prompt, list) and _check_prompt_list(prompt)
    if embeds:
        # The engine adds the two up: a list by another name.
        return LocalReason.PROMPT_EMBEDS
    return LocalReason.PROMPT_LIST if is_list else None


def _check_prompt_list(prompt: list[Any]) -> bool:
    """Whether it is a list of prompts; a list of token ids is one prompt. One is a list too:
    nothing is gained by telling it apart."""
    shapes: dict[type, Any] = {int: list[_TokenId], str: list[str], list: list[list[_TokenId]]}
    shape = shapes.get(type(prompt[0]))
    if shape is None:
        raise InvalidRequest(
            "prompt must hold strings, token ids, or arrays of token ids", param="prompt"
        )
    try:
        msgspec.convert(prompt, shape)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"prompt: {error}", param="prompt") from error
    return shape is not shapes[int]


def _check_prompt_embeds(body: dict[str, Any]) -> bool:
    embeds = body.get("prompt_embeds")
    if embeds is None:
        body.pop("prompt_embeds", None)
        return False
    parts = embeds if isinstance(embeds, list) else [embeds]
    if not parts or not all(isinstance(part, str) and part for part in parts):
        raise InvalidRequest(
            "prompt_embeds must be a string or an array of strings, none of them empty",
            param="prompt_embeds",
        )
    return True


def _check_messages(body: dict[str, Any]) -> LocalReason | None:
    messages = _optional(body, "messages", list)
    if not messages:
        raise InvalidRequest("messages must not be missing or empty", param="messages")
    media = False
    for index, message in enumerate(messages):
        at = f"messages[{index}]"
        if not isinstance(message, dict):
            raise InvalidRequest(f"{at} must be an object, not {_kind(message)}", param=at)
        role = message.get("role")
        if not isinstance(role, str) or not role:
            raise InvalidRequest(f"{at}.role must be a string", param=f"{at}.role")
        content = message.get("content")
        if content is None or isinstance(content, str):
            continue
        if not isinstance(content, list):
            raise InvalidRequest(
                f"{at}.content must be a string, an array or null, not {_kind(content)}",
                param=f"{at}.content",
            )
        for part_index, part in enumerate(content):
            if not isinstance(part, str | dict):
                part_at = f"{at}.content[{part_index}]"
                raise InvalidRequest(
                    f"{part_at} must be an object or a string, not {_kind(part)}", param=part_at
                )
            media = media or (isinstance(part, dict) and _is_media(part))
    return LocalReason.MEDIA if media else None


_TEXT_PARTS: Final = frozenset(
    {"text", "input_text", "output_text", "refusal", "thinking", "tool_reference"}
)
_MEDIA_KEYS: Final = frozenset(
    {
        "image_url",
        "input_image",
        "image_embeds",
        "image_pil",
        "audio_url",
        "input_audio",
        "audio_embeds",
        "video_url",
        "video_embeds",
        "prompt_embeds",
    }
)


def _is_media(part: dict[str, Any]) -> bool:
    """The engine lets a part's keys say what its ``type`` does not; what is unknown counts as
    media, since only text is known to read the same twice."""
    kind = part.get("type", "text")
    return not isinstance(kind, str) or kind not in _TEXT_PARTS or bool(_MEDIA_KEYS & part.keys())
