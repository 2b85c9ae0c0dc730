"""Prompts, messages and input items: their shapes, and what in them a handoff cannot carry.

It exists apart from the options because contents nest, and each API nests them in its own way.
It looks only as deep as it must to tell text from what is not, and refuses only what cannot be
looked at; whether a role or a part is allowed is for the engine to say.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec

from baton.errors import InvalidRequest
from router.api.decoding import kind_of
from router.api.endpoints import LocalReason

# --- /v1/completions --------------------------------------------------------------------------

_TokenId = Annotated[int, msgspec.Meta(ge=0)]


def check_prompt(body: dict[str, Any]) -> LocalReason | None:
    """``prompt`` and ``prompt_embeds`` of a completion.

    Raises:
        InvalidRequest: neither, or of another shape than the engine's.
    """
    prompt = body.get("prompt")
    if type(prompt) is str and prompt and "prompt_embeds" not in body:
        return None
    embeds = "prompt_embeds" in body and _check_prompt_embeds(body["prompt_embeds"])
    if prompt is None:
        if not embeds:
            raise InvalidRequest("prompt is required", param="prompt")
        return LocalReason.PROMPT_EMBEDS
    if not isinstance(prompt, str | list):
        raise InvalidRequest(
            f"prompt must be a string or an array, not {kind_of(prompt)}", param="prompt"
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


def _check_prompt_embeds(embeds: object) -> bool:
    parts = embeds if isinstance(embeds, list) else [embeds]
    if not parts or not all(isinstance(part, str) and part for part in parts):
        raise InvalidRequest(
            "prompt_embeds must be a string or an array of strings, none of them empty",
            param="prompt_embeds",
        )
    return True


# --- parts ------------------------------------------------------------------------------------

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
    return type(kind) is not str or kind not in _TEXT_PARTS or not _MEDIA_KEYS.isdisjoint(part)


def _parts_have_media(content: object, at: str) -> bool:
    """Whether a list of parts holds anything but text.

    Raises:
        InvalidRequest: it is neither a list nor a string nor null, or holds what is no part.
    """
    if content is None or type(content) is str:
        return False
    if type(content) is not list:
        raise InvalidRequest(
            f"{at} must be a string, an array or null, not {kind_of(content)}", param=at
        )
    media = False
    for index, part in enumerate(content):
        if type(part) is dict:
            media = media or _is_media(part)
        elif type(part) is not str:
            part_at = f"{at}[{index}]"
            raise InvalidRequest(
                f"{part_at} must be an object or a string, not {kind_of(part)}", param=part_at
            )
    return media


# --- /v1/chat/completions ---------------------------------------------------------------------


def _messages(body: dict[str, Any]) -> list[Any]:
    messages: list[Any] | None = body.get("messages")
    if not messages:
        raise InvalidRequest("messages must not be missing or empty", param="messages")
    return messages


def _check_role(message: object, at: str) -> None:
    if type(message) is not dict:
        raise InvalidRequest(f"{at} must be an object, not {kind_of(message)}", param=at)
    role = message.get("role")
    if type(role) is not str or not role:
        raise InvalidRequest(f"{at}.role must be a string", param=f"{at}.role")


def check_messages(body: dict[str, Any]) -> LocalReason | None:
    """``messages`` of a chat.

    Raises:
        InvalidRequest: none, or one that is no message.
    """
    media = False
    for index, message in enumerate(_messages(body)):
        # The common case first: a role, and text.
        if type(message) is dict and type(message.get("content")) is str:
            role = message.get("role")
            if type(role) is str and role:
                continue
        _check_role(message, f"messages[{index}]")
        media = _parts_have_media(message.get("content"), f"messages[{index}].content") or media
    return LocalReason.MEDIA if media else None


# --- /v1/responses ----------------------------------------------------------------------------

_CLIENT_TOOLS: Final = frozenset({"function", "custom", "namespace"})
"""Tools that the client runs. All others the engine may run itself (``web_search_preview``,
``code_interpreter``, ``container``, ``mcp``), or does not know."""

_SILENT_ITEMS: Final = frozenset({"function_call", "custom_tool_call", "reasoning"})
"""Input items that are text whatever is in them."""

_OUTPUT_ITEMS: Final = frozenset({"function_call_output", "custom_tool_call_output"})


def check_responses_input(body: dict[str, Any]) -> LocalReason | None:
    """``input`` of a response, and the fields that say where else its prompt comes from.

    Raises:
        InvalidRequest: no input, or an item that is no object.
    """
    items = body.get("input")
    if items is None:
        raise InvalidRequest("input is required", param="input")
    reason = None
    if type(items) is list:
        for index, item in enumerate(items):
            reason = _item_reason(item, f"input[{index}]") or reason
    elif type(items) is not str:
        raise InvalidRequest(
            f"input must be a string or an array, not {kind_of(items)}", param="input"
        )
    if (
        "previous_response_id" in body
        or "previous_input_messages" in body
        or body.get("background")
    ):
        return LocalReason.RESPONSE_STATE
    for tool in body.get("tools", ()):
        kind = tool.get("type") if type(tool) is dict else None
        if type(kind) is not str or kind not in _CLIENT_TOOLS:
            return LocalReason.ENGINE_TOOLS
    return reason


def _item_reason(item: object, at: str) -> LocalReason | None:
    if type(item) is not dict:
        raise InvalidRequest(f"{at} must be an object, not {kind_of(item)}", param=at)
    kind = item.get("type", "message")
    if kind == "message":
        _check_role(item, at)
        media = _parts_have_media(item.get("content"), f"{at}.content")
        return LocalReason.MEDIA if media else None
    if type(kind) is not str:
        return LocalReason.RESPONSE_STATE
    if kind in _SILENT_ITEMS:
        return None
    if kind in _OUTPUT_ITEMS:
        media = _parts_have_media(item.get("output"), f"{at}.output")
        return LocalReason.MEDIA if media else None
    return LocalReason.RESPONSE_STATE


# --- /v1/messages -----------------------------------------------------------------------------

_TEXT_BLOCKS: Final = frozenset(
    {
        "text",
        "thinking",
        "redacted_thinking",
        "tool_reference",
        "tool_addition",
        "tool_removal",
    }
)


def check_anthropic(body: dict[str, Any]) -> LocalReason | None:
    """``system`` and ``messages`` in Anthropic's shape.

    Raises:
        InvalidRequest: no message, or one that is none.
    """
    reason = _blocks_reason(body["system"], "system") if "system" in body else None
    for index, message in enumerate(_messages(body)):
        at = f"messages[{index}]"
        _check_role(message, at)
        content = message.get("content")
        if type(content) is str:
            continue
        reason = _blocks_reason(content, f"{at}.content") or reason
    return reason


def _blocks_reason(content: object, at: str) -> LocalReason | None:
    if type(content) is str:
        return None
    if type(content) is not list:
        raise InvalidRequest(f"{at} must be a string or an array, not {kind_of(content)}", param=at)
    reason = None
    for index, block in enumerate(content):
        if type(block) is not dict:
            block_at = f"{at}[{index}]"
            raise InvalidRequest(
                f"{block_at} must be an object, not {kind_of(block)}", param=block_at
            )
        reason = _block_reason(block) or reason
    return reason


def _block_reason(block: dict[str, Any]) -> LocalReason | None:
    kind = block.get("type")
    if type(kind) is not str:
        return LocalReason.MEDIA
    if kind in _TEXT_BLOCKS:
        return None
    if kind == "tool_use":
        return None if block.get("id") else LocalReason.UNSTABLE_PROMPT
    if kind == "tool_result":
        content = block.get("content")
        parts = content if type(content) is list else ()
        text = all(
            type(part) is dict and part.get("type") in ("text", "tool_reference") for part in parts
        )
        return None if text else LocalReason.MEDIA
    return LocalReason.MEDIA
