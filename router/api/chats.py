"""Responses and messages as the chats that an engine makes of them, for counting their tokens.

It exists because tokens can be counted of chats and texts only, here and at an engine's
``/tokenize``. The engine itself turns responses and messages into chats
(``openai/responses/utils.py``, ``anthropic/serving.py`` of vLLM 0.32); this follows it where it is
plain, and says None where it is not: a prompt of unknown length stays on one worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from router.api.endpoints import Endpoint, GenerateRequest

_encode = msgspec.json.Encoder().encode


class CountQuestion(msgspec.Struct, frozen=True):
    """How to ask a worker for the length of a prompt.

    ``body`` is to be posted to ``path``; the number is the answer's ``field``.
    """

    path: str
    body: bytes
    field: str


_NOT_FOR_TOKENIZE: Final = frozenset({"stream", "stream_options"})
_FOR_COUNT_TOKENS: Final[Sequence[str]] = (
    "model",
    "messages",
    "system",
    "tools",
    "tool_choice",
    "thinking",
    "output_config",
    "chat_template_kwargs",
)


def count_question(request: GenerateRequest) -> CountQuestion | None:
    """How to ask a worker for the prompt's length, or None where no endpoint of it can tell.

    ``/v1/messages/count_tokens`` renders as ``/v1/messages`` does. For responses there is no such
    endpoint; those with a chat of the same prompt are asked for as that chat.
    """
    if request.endpoint is Endpoint.MESSAGES:
        body = {key: request.body[key] for key in _FOR_COUNT_TOKENS if key in request.body}
        return CountQuestion("/v1/messages/count_tokens", _encode(body), "input_tokens")
    chat = as_chat(request)
    if chat is None:
        if request.endpoint is Endpoint.RESPONSES:
            return None
        chat = request
    body = {key: value for key, value in chat.body.items() if key not in _NOT_FOR_TOKENIZE}
    return CountQuestion(Endpoint.TOKENIZE, _encode(body), "count")


def as_chat(request: GenerateRequest) -> GenerateRequest | None:
    """A chat that the engine renders to the same prompt; None where that is not certain.

    For models whose chats are not written by a template (gpt-oss) it does not hold.
    """
    if request.endpoint is Endpoint.CHAT:
        return request
    body: dict[str, Any] | None = None
    if request.endpoint is Endpoint.RESPONSES:
        body = _responses_chat(request.body)
    elif request.endpoint is Endpoint.MESSAGES:
        body = _anthropic_chat(request.body)
    if body is None:
        return None
    body["model"] = request.model
    kwargs = request.body.get("chat_template_kwargs")
    if kwargs is not None:
        body["chat_template_kwargs"] = kwargs
    return GenerateRequest(
        Endpoint.CHAT,
        request.model,
        request.stream,
        body,
        request.local_reason,
        request.stripped,
        request.max_new_tokens,
    )


def _responses_chat(source: dict[str, Any]) -> dict[str, Any] | None:
    if source.get("reasoning") is not None or "previous_input_messages" in source:
        return None
    messages: list[dict[str, Any]] = []
    if source.get("instructions"):
        messages.append({"role": "system", "content": source["instructions"]})
    items = source.get("input")
    if type(items) is str:
        messages.append({"role": "user", "content": items})
    elif not all(_add_item(item, messages) for item in items or ()):
        return None
    # The engine puts the tokenizer's own special tokens before what the template wrote, which it
    # does not for chats: most models get their begin twice (build_tok_params in its protocol.py).
    body: dict[str, Any] = {"messages": messages, "add_special_tokens": True}
    if source.get("tools"):
        tools = [_chat_tool(tool) for tool in source["tools"]]
        if source.get("tool_choice") == "none" or None in tools:
            return None
        body["tools"] = tools
    return body


def _add_item(item: dict[str, Any], messages: list[dict[str, Any]]) -> bool:
    """Adds an item to the messages, or to the last of them: what an assistant thought, said and
    called is one message. Returns whether that is certain."""
    # A last item that is incomplete would be continued.
    if item.get("status", "completed") != "completed":
        return False
    kind = item.get("type", "message")
    if kind == "function_call_output":
        output = item.get("output")
        if type(output) is not str:
            return False
        call_id = item.get("call_id")
        messages.append({"role": "tool", "content": output, "tool_call_id": call_id})
        return True
    if kind == "function_call":
        return _add_call(item, messages)
    if kind != "message":
        return False
    content = item.get("content")
    if type(content) is list:
        texts = [_part_text(part) for part in content]
        if None in texts:
            return False
        if item["role"] == "assistant":
            # Of several parts the engine takes the first.
            content = texts[0] if len(texts) == 1 else None
        else:
            content = [{"type": "text", "text": text} for text in texts]
    if content is None:
        return False
    last = _last_assistant(messages) if item["role"] == "assistant" else None
    if last is not None and last.get("content") is None:
        last["content"] = content
    else:
        messages.append({"role": item["role"], "content": content})
    return True


def _add_call(item: dict[str, Any], messages: list[dict[str, Any]]) -> bool:
    name, arguments, call_id = item.get("name"), item.get("arguments"), item.get("call_id")
    if not (type(name) is type(arguments) is type(call_id) is str) or item.get("namespace"):
        return False
    function = {"name": name, "arguments": arguments}
    call = {"id": call_id, "type": "function", "function": function}
    last = _last_assistant(messages)
    if last is None:
        messages.append({"role": "assistant", "tool_calls": [call]})
    else:
        last.setdefault("tool_calls", []).append(call)
    return True


def _last_assistant(messages: list[dict[str, Any]]) -> dict[str, Any] | None:
    return messages[-1] if messages and messages[-1]["role"] == "assistant" else None


def _part_text(part: object) -> str | None:
    if type(part) is not dict or part.get("type") not in ("input_text", "output_text", "text"):
        return None
    text = part.get("text")
    return text if type(text) is str else None


def _chat_tool(tool: object) -> dict[str, Any] | None:
    if type(tool) is not dict or tool.get("type") != "function":
        return None
    return {"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}}


def _anthropic_chat(source: dict[str, Any]) -> dict[str, Any] | None:
    thinking = source.get("thinking")
    if source.get("output_config") is not None or source.get("tools"):
        return None
    if thinking is not None and thinking.get("type") not in ("enabled", "adaptive"):
        return None
    messages: list[dict[str, Any]] = []
    system = source.get("system")
    if type(system) is list:
        texts = [_block_text(block) for block in system]
        # The engine drops blocks that Claude Code marks as its own billing header.
        if None in texts or any(str(text).startswith("x-anthropic-") for text in texts):
            return None
        system = "".join(str(text) for text in texts)
    if system:
        messages.append({"role": "system", "content": system})
    for message in source["messages"]:
        role, content = message["role"], message["content"]
        # Where a system message in between goes depends on the template.
        if role not in ("user", "assistant"):
            return None
        if type(content) is list:
            texts = [_block_text(block) for block in content]
            if not texts or None in texts:
                return None
            parts = [{"type": "text", "text": text} for text in texts]
            content = texts[0] if len(texts) == 1 else parts
        messages.append({"role": role, "content": content})
    return {"messages": messages}


def _block_text(block: dict[str, Any]) -> str | None:
    """The text of a block; an empty one the engine drops, which is not followed here."""
    text = block.get("text")
    return text if block.get("type") == "text" and type(text) is str and text else None
