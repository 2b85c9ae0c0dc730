"""What a fake engine understands of a request for text; it refuses what the real one would."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.fakes.byte_tokenizer import chat_text
from tests.fakes.engine_wire import Refused

DEFAULT_ANSWER_TOKENS = 16

Tokenize = Callable[[str], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Job:
    """A request for text, checked."""

    chat: bool
    prompts: tuple[tuple[int, ...], ...]
    tokens: int
    choices: int
    stream: bool
    include_usage: bool
    model: str
    computes_prompt_itself: bool
    params: dict[str, Any]

    @property
    def usage(self) -> dict[str, int]:
        prompt = sum(map(len, self.prompts))
        answer = self.tokens * self.choices * len(self.prompts)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": answer,
            "total_tokens": prompt + answer,
        }


def parse_prompt(body: Any, model: str, tokenize: Tokenize) -> tuple[int, ...]:
    """The token ids of a body for ``/tokenize``, which takes text and messages only.

    Raises:
        Refused: it is neither.
    """
    body = body if isinstance(body, dict) else {}
    _check_model(body, model)
    chat = "messages" in body
    if not chat and not isinstance(body.get("prompt"), str):
        raise Refused(400, "prompt: Input should be a valid string", "Bad Request", "prompt")
    return _prompts(body, chat, tokenize)[0]


def parse_job(path: str, body: Any, *, model: str, max_model_len: int, tokenize: Tokenize) -> Job:
    """The request that a body makes.

    Raises:
        Refused: malformed, of another model, or too long.
    """
    if not isinstance(body, dict):
        raise Refused(400, "1 validation error: json_invalid", "Bad Request", "body")
    _check_model(body, model)
    chat = path.endswith("/chat/completions")
    prompts = _prompts(body, chat, tokenize)
    asked = (body.get("max_completion_tokens") if chat else None) or body.get("max_tokens")
    tokens = int(asked or DEFAULT_ANSWER_TOKENS)
    longest = max(map(len, prompts))
    if longest + (tokens if asked else 1) > max_model_len:
        message = (
            f"This model's maximum context length is {max_model_len} tokens. However, your "
            f"request has {longest} input tokens. Please reduce the length."
        )
        raise Refused(400, message, "BadRequestError", "input_tokens")
    echo_logprobs = body.get("echo") and body.get("logprobs") is not None
    return Job(
        chat=chat,
        prompts=prompts,
        tokens=min(tokens, max_model_len - longest),
        choices=int(body.get("n") or 1),
        stream=bool(body.get("stream")),
        include_usage=bool((body.get("stream_options") or {}).get("include_usage")),
        model=model,
        computes_prompt_itself=body.get("prompt_logprobs") is not None or bool(echo_logprobs),
        params={} if body.get("use_beam_search") else body.get("kv_transfer_params") or {},
    )


def _check_model(body: dict[str, Any], ours: str) -> None:
    model = body.get("model")
    if model is not None and model != ours:
        raise Refused(404, f"The model `{model}` does not exist.", "NotFoundError", "model")


def _prompts(body: dict[str, Any], chat: bool, tokenize: Tokenize) -> tuple[tuple[int, ...], ...]:
    if chat:
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise Refused(400, "messages: Field required", "Bad Request", "messages")
        return (tuple(tokenize(chat_text(messages))),)
    prompt = body.get("prompt")
    many = isinstance(prompt, list) and prompt and not isinstance(prompt[0], int)
    found = []
    for item in prompt if many and isinstance(prompt, list) else [prompt]:
        if not item or not isinstance(item, str | list):
            raise Refused(400, "prompt: Field required", "Bad Request", "prompt")
        found.append(tuple(tokenize(item) if isinstance(item, str) else item))
    return tuple(found)
