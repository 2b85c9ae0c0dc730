"""The JSON body of one request: a pure function of what is planned, its text and its target.

Answers are asked for at their planned length and, where the target takes engine options, greedily:
two arms of a comparison then see the same conversations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from benchmarks.load.endpoint import ResolvedTarget
from benchmarks.plan import Piece, PlannedRequest
from benchmarks.target import Api

History = tuple[tuple[str, str], ...]
"""Prompt and answer of each earlier turn of a conversation."""


class Writer(Protocol):
    """Makes the text of prompts, ``benchmarks.workloads.PromptWriter``: a pure function, called
    from threads, by one at a time."""

    def write(self, pieces: Sequence[Piece]) -> str:
        """The text that the pieces stand for."""
        ...


def path_of(api: Api) -> str:
    """Path of the endpoint, with its slash."""
    return "/v1/chat/completions" if api is Api.CHAT else "/v1/completions"


def build_body(
    target: ResolvedTarget, request: PlannedRequest, prompt: str, history: History = ()
) -> bytes:
    """The body; ``prompt`` is the new text, ``history`` stands in front of it.

    Chat turns become messages. Completions get all texts in a row, one per line, so that each
    turn's prompt begins with the whole of the one before.
    """
    body: dict[str, Any] = {"model": request.model or target.model}
    if target.api is Api.CHAT:
        messages = []
        for said, answered in history:
            messages.append({"role": "user", "content": said})
            messages.append({"role": "assistant", "content": answered})
        body["messages"] = [*messages, {"role": "user", "content": prompt}]
    else:
        earlier = "".join(f"{said}{answered}\n" for said, answered in history)
        body["prompt"] = earlier + prompt
    if request.output_tokens is not None:
        body["max_tokens"] = request.output_tokens
    if target.force_output:
        body["temperature"] = 0
        if request.output_tokens is not None:
            body["min_tokens"] = request.output_tokens
            body["ignore_eos"] = True
    body["stream"] = target.stream
    if target.stream:
        body["stream_options"] = {"include_usage": True}
    if request.tenant is not None:
        body["user"] = request.tenant
    if request.priority is not None:
        body["priority"] = request.priority
    return msgspec.json.encode(body)
