"""How a fake engine writes its answers: the fields of vLLM 0.32 that anybody reads.

Sources: ``openai/{completion,chat_completion,responses}/serving.py``,
``openai/responses/streaming_events.py`` and ``anthropic/serving.py`` of that version.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tests.fakes.engine_job import CHAT, COMPLETIONS, MESSAGES, RESPONSES, Job
from tests.fakes.engine_kv import Token
from tests.fakes.engine_wire import encode_event, encode_named

CREATED_S = 1_000_000


@dataclass(frozen=True, slots=True)
class Cached:
    """What the prefix cache had of a prompt, and what was written to it, in tokens."""

    read: int
    created: int


@dataclass(frozen=True, slots=True)
class Answer:
    """Everything that an answer says.

    Attributes:
        texts: the tokens of each choice.
        details: whether the engine was started with ``--enable-prompt-tokens-details``.
        params: transfer parameters of an offer, or None.
    """

    job: Job
    label: str
    texts: Sequence[Sequence[Token]]
    cached: Cached
    details: bool
    params: dict[str, Any] | None = None

    @property
    def id(self) -> str:
        prefix = {COMPLETIONS: "cmpl", RESPONSES: "resp"}.get(self.job.path, "chatcmpl")
        return f"{prefix}-{self.label}"


def usage_of(answer: Answer) -> dict[str, Any]:
    """The ``usage`` object of an answer."""
    job, cached = answer.job, answer.cached
    read, written = job.prompt_tokens, job.answer_tokens
    if job.path == RESPONSES:
        return {
            "input_tokens": read,
            "input_tokens_details": {
                "cache_write_tokens": cached.created,
                "cached_tokens": cached.read,
                "input_tokens_per_turn": [],
                "cached_tokens_per_turn": [],
            },
            "output_tokens": written,
            "output_tokens_details": {"reasoning_tokens": 0, "tool_output_tokens": 0},
            "total_tokens": read + written,
        }
    if job.path == MESSAGES:
        if not answer.details:
            return {"input_tokens": read, "output_tokens": written}
        return {
            "input_tokens": read - cached.read - cached.created,
            "output_tokens": written,
            "cache_creation_input_tokens": cached.created,
            "cache_read_input_tokens": cached.read,
        }
    usage: dict[str, Any] = {
        "prompt_tokens": read,
        "total_tokens": read + written,
        "completion_tokens": written,
        "prompt_tokens_details": None,
    }
    if answer.details:
        details = {"cached_tokens": cached.read}
        if job.chat:
            details["created_cache_tokens"] = cached.created
        usage["prompt_tokens_details"] = details
    return usage


# --- whole answers ------------------------------------------------------------------------------


def whole_of(answer: Answer) -> dict[str, Any]:
    """The body of an answer in one piece."""
    job = answer.job
    if job.path == RESPONSES:
        return _response(answer, _response_output(answer), "incomplete", usage_of(answer))
    if job.path == MESSAGES:
        found: dict[str, Any] = {
            "id": answer.id,
            "type": "message",
            "role": "assistant",
            "content": [{"type": "text", "text": _joined(answer.texts[0])}],
            "model": job.model,
            "stop_reason": "max_tokens",
            "usage": usage_of(answer),
        }
        # Of this API the engine leaves out what is null.
        return found if answer.params is None else {**found, "kv_transfer_params": answer.params}
    choices = []
    for index, tokens in enumerate(answer.texts):
        choice: dict[str, Any] = {"index": index}
        if job.chat:
            choice["message"] = {"role": "assistant", "content": _joined(tokens)}
        else:
            choice["text"] = _joined(tokens)
        choice["logprobs"] = _logprobs(job, tokens, 0)
        choices.append({**choice, "finish_reason": "length", "stop_reason": None})
    return {
        **_frame(answer, "chat.completion"),
        "choices": choices,
        "usage": usage_of(answer),
        "kv_transfer_params": answer.params,
    }


def _joined(tokens: Sequence[Token]) -> str:
    return "".join(token.text for token in tokens)


def _frame(answer: Answer, chat_object: str) -> dict[str, Any]:
    return {
        "id": answer.id,
        "object": chat_object if answer.job.chat else "text_completion",
        "created": CREATED_S,
        "model": answer.job.model,
    }


def _logprobs(job: Job, tokens: Sequence[Token], offset: int) -> dict[str, Any] | None:
    if job.logprobs is None:
        return None
    if job.path == CHAT:
        return {"content": [_named_logprob(token, job.logprobs) for token in tokens]}
    starts = [offset]
    for token in tokens[:-1]:
        starts.append(starts[-1] + len(token.text))
    return {
        "text_offset": starts,
        "token_logprobs": [token.logprob for token in tokens],
        "tokens": [token.text for token in tokens],
        "top_logprobs": [{token.text: token.logprob} for token in tokens],
    }


def _named_logprob(token: Token, top: int) -> dict[str, Any]:
    named = {"token": token.text, "logprob": token.logprob, "bytes": list(token.text.encode())}
    return {**named, "top_logprobs": [named] if top else []}


def _response(
    answer: Answer, output: list[Any], status: str, usage: dict[str, Any] | None
) -> dict[str, Any]:
    incomplete = {"reason": "max_output_tokens"} if status == "incomplete" else None
    return {
        "id": answer.id,
        "created_at": CREATED_S,
        "incomplete_details": incomplete,
        "instructions": None,
        "metadata": None,
        "model": answer.job.model,
        "object": "response",
        "output": output,
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "none",
        "tools": [],
        "top_p": 1.0,
        "background": False,
        "max_output_tokens": answer.job.tokens,
        "service_tier": "auto",
        "status": status,
        "truncation": "disabled",
        "usage": usage,
        "kv_transfer_params": answer.params,
    }


def _response_output(answer: Answer) -> list[dict[str, Any]]:
    text = _output_text(answer.job, answer.texts[0])
    message = {"id": f"msg_{answer.label}", "content": [text], "role": "assistant"}
    return [{**message, "status": "completed", "type": "message"}]


def _output_text(job: Job, tokens: Sequence[Token]) -> dict[str, Any]:
    logprobs = None
    if job.logprobs is not None:
        logprobs = [_named_logprob(token, job.logprobs) for token in tokens]
    text = {"annotations": [], "text": _joined(tokens), "type": "output_text"}
    return {**text, "logprobs": logprobs}


# --- streams ------------------------------------------------------------------------------------

Event = tuple[bytes, bool]
"""An event, and whether a token is in it: before those the engine takes its time."""


def announced(answer: Answer) -> Iterator[bytes]:
    """What comes before the engine has done anything: of responses alone."""
    if answer.job.path == RESPONSES:
        begun = _response(answer, [], "in_progress", None)
        for number, kind in enumerate(("response.created", "response.in_progress")):
            yield encode_named(kind, sequence_number=number, response=begun)


def streamed(answer: Answer) -> Iterator[Event]:
    """The events of an answer in pieces, but for those announced and ``[DONE]``."""
    if answer.job.path == RESPONSES:
        yield from _response_events(answer)
    elif answer.job.path == MESSAGES:
        yield from _message_events(answer)
    else:
        yield from _chunks(answer)


def _chunks(answer: Answer) -> Iterator[Event]:
    job, frame = answer.job, _frame(answer, "chat.completion.chunk")
    if job.chat:
        for index in range(len(answer.texts)):
            first = {"index": index, "delta": {"role": "assistant", "content": ""}}
            choice = {**first, "logprobs": None, "finish_reason": None}
            yield encode_event({**frame, "choices": [choice]}), False
    offsets = [0] * len(answer.texts)
    for position in range(job.tokens):
        finish = "length" if position == job.tokens - 1 else None
        for index, tokens in enumerate(answer.texts):
            token = tokens[position]
            choice = {"index": index}
            choice |= {"delta": {"content": token.text}} if job.chat else {"text": token.text}
            choice["logprobs"] = _logprobs(job, [token], offsets[index])
            choice["finish_reason"] = finish
            offsets[index] += len(token.text)
            yield encode_event({**frame, "choices": [choice]}), True
    if job.include_usage:
        yield encode_event({**frame, "choices": [], "usage": usage_of(answer)}), False


def _response_events(answer: Answer) -> Iterator[Event]:
    number = 2  # after the two that were announced
    item_id = f"msg_{answer.label}"
    place = {"output_index": 0, "item_id": item_id, "content_index": 0}
    tokens = answer.texts[0]
    empty = {"id": item_id, "content": [], "role": "assistant", "status": "in_progress"}
    part = {"annotations": [], "text": "", "type": "output_text", "logprobs": []}
    events: list[tuple[str, dict[str, Any]]] = [
        ("response.output_item.added", {"output_index": 0, "item": {**empty, "type": "message"}}),
        ("response.content_part.added", {**place, "part": part}),
    ]
    for token in tokens:
        named = []
        if answer.job.logprobs is not None:
            named = [_named_logprob(token, answer.job.logprobs)]
        delta = {**place, "delta": token.text, "logprobs": named}
        events.append(("response.output_text.delta", delta))
    (item,) = _response_output(answer)
    whole = _response(answer, [item], "incomplete", usage_of(answer))
    events += [
        ("response.output_text.done", {**place, "text": _joined(tokens), "logprobs": []}),
        ("response.content_part.done", {**place, "part": item["content"][0]}),
        ("response.output_item.done", {"output_index": 0, "item": item}),
        ("response.completed", {"response": whole}),
    ]
    for kind, fields in events:
        event = encode_named(kind, sequence_number=number, **fields)
        yield event, kind.endswith(".delta")
        number += 1


def _message_events(answer: Answer) -> Iterator[Event]:
    started: dict[str, Any] = {
        "id": answer.id,
        "type": "message",
        "role": "assistant",
        "content": [],
        "model": answer.job.model,
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": answer.job.prompt_tokens, "output_tokens": 0},
    }
    yield encode_named("message_start", message=started), False
    block = {"type": "text", "text": ""}
    yield encode_named("content_block_start", content_block=block, index=0), False
    for token in answer.texts[0]:
        delta = {"type": "text_delta", "text": token.text}
        yield encode_named("content_block_delta", delta=delta, index=0), True
    yield encode_named("content_block_stop", index=0), False
    stopped = {"stop_reason": "max_tokens", "stop_sequence": None}
    yield encode_named("message_delta", delta=stopped, usage=usage_of(answer)), False
    yield encode_named("message_stop"), False
