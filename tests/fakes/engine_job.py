"""What a fake engine understands of a request for text; it refuses what the real one would."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.fakes.byte_tokenizer import chat_text
from tests.fakes.engine_wire import Refused

DEFAULT_ANSWER_TOKENS = 16

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"
GENERATING = (COMPLETIONS, CHAT, RESPONSES, MESSAGES)

Tokenize = Callable[[str], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Job:
    """A request for text, checked.

    Attributes:
        path: where it was sent.
        logprobs: alternatives to name beside each token's logprob; None for no logprobs.
    """

    path: str
    prompts: tuple[tuple[int, ...], ...]
    tokens: int
    choices: int
    stream: bool
    include_usage: bool
    model: str
    computes_prompt_itself: bool
    params: dict[str, Any]
    logprobs: int | None = None

    @property
    def chat(self) -> bool:
        return self.path == CHAT

    @property
    def prompt_tokens(self) -> int:
        return sum(map(len, self.prompts))

    @property
    def answer_tokens(self) -> int:
        return self.tokens * self.choices * len(self.prompts)


def parse_prompt(body: Any, model: str, tokenize: Tokenize) -> tuple[int, ...]:
    """The token ids of a body for ``/tokenize``, which takes text and messages only.

    Raises:
        Refused: it is neither.
    """
    body = body if isinstance(body, dict) else {}
    check_model(body, model)
    chat = "messages" in body
    if not chat and not isinstance(body.get("prompt"), str):
        raise Refused(400, "prompt: Input should be a valid string", "Bad Request", "prompt")
    return _prompts(CHAT if chat else COMPLETIONS, body, tokenize)[0]


def parse_count_tokens(body: Any, model: str, tokenize: Tokenize) -> int:
    """The length of a body for ``/v1/messages/count_tokens``, in tokens.

    Raises:
        Refused: it has no messages.
    """
    body = body if isinstance(body, dict) else {}
    check_model(body, model)
    return len(_prompts(MESSAGES, body, tokenize)[0])


def parse_job(path: str, body: Any, *, model: str, max_model_len: int, tokenize: Tokenize) -> Job:
    """The request that a body makes.

    Raises:
        Refused: malformed, of another model, or too long.
    """
    if not isinstance(body, dict):
        raise Refused(400, "1 validation error: json_invalid", "Bad Request", "body")
    check_model(body, model)
    prompts = _prompts(path, body, tokenize)
    asked = _asked_tokens(path, body)
    tokens = int(asked or DEFAULT_ANSWER_TOKENS)
    longest = max(map(len, prompts))
    if longest + (tokens if asked else 1) > max_model_len:
        message = (
            f"This model's maximum context length is {max_model_len} tokens. However, your "
            f"request has {longest} input tokens. Please reduce the length."
        )
        raise Refused(400, message, "BadRequestError", "input_tokens")
    oldest = path in (COMPLETIONS, CHAT)
    echo_logprobs = oldest and body.get("echo") and body.get("logprobs") is not None
    return Job(
        path=path,
        prompts=prompts,
        tokens=min(tokens, max_model_len - longest),
        # The two newer endpoints know no "n".
        choices=int(body.get("n") or 1) if oldest else 1,
        stream=bool(body.get("stream")),
        include_usage=bool((body.get("stream_options") or {}).get("include_usage")),
        model=model,
        computes_prompt_itself=bool(
            oldest and (body.get("prompt_logprobs") is not None or echo_logprobs)
        ),
        params={} if body.get("use_beam_search") else body.get("kv_transfer_params") or {},
        logprobs=_logprobs(path, body),
    )


def check_model(body: dict[str, Any], ours: str) -> None:
    """Refuses another model's name."""
    model = body.get("model")
    if model is not None and model != ours:
        raise Refused(404, f"The model `{model}` does not exist.", "NotFoundError", "model")


def _asked_tokens(path: str, body: dict[str, Any]) -> int | None:
    if path == RESPONSES:
        return body.get("max_output_tokens")
    if path == MESSAGES and body.get("max_tokens") is None:
        raise Refused(400, "max_tokens: Field required", "Bad Request", "body.max_tokens")
    asked = body.get("max_completion_tokens") if path == CHAT else None
    return asked or body.get("max_tokens")


def _logprobs(path: str, body: dict[str, Any]) -> int | None:
    if path == COMPLETIONS:
        return body.get("logprobs")
    if path == CHAT:
        return int(body.get("top_logprobs") or 0) if body.get("logprobs") else None
    if path == RESPONSES and "message.output_text.logprobs" in (body.get("include") or ()):
        return int(body.get("top_logprobs") or 0)
    return None


def _prompts(path: str, body: dict[str, Any], tokenize: Tokenize) -> tuple[tuple[int, ...], ...]:
    if path != COMPLETIONS:
        return (tuple(tokenize(chat_text(_conversation(path, body)))),)
    prompt = body.get("prompt")
    many = isinstance(prompt, list) and prompt and not isinstance(prompt[0], int)
    found = []
    for item in prompt if many and isinstance(prompt, list) else [prompt]:
        if not item or not isinstance(item, str | list):
            raise Refused(400, "prompt: Field required", "Bad Request", "prompt")
        found.append(tuple(tokenize(item) if isinstance(item, str) else item))
    return tuple(found)


def _conversation(path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages that the engine makes of a body."""
    if path == RESPONSES:
        head = (
            [{"role": "system", "content": body["instructions"]}]
            if body.get("instructions")
            else []
        )
        items = body.get("input")
        if isinstance(items, str):
            return [*head, {"role": "user", "content": items}]
        if not isinstance(items, list):
            raise Refused(400, "input: Field required", "Bad Request", "body.input")
        return head + [_of_item(item) for item in items]
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Refused(400, "messages: Field required", "Bad Request", "messages")
    if path == CHAT:
        return messages
    system = body.get("system")
    texts = [system] if isinstance(system, str) else [block["text"] for block in system or ()]
    head = [{"role": "system", "content": "".join(texts)}] if any(texts) else []
    return head + [{"role": m["role"], "content": _of_blocks(m["content"])} for m in messages]


def _of_item(item: dict[str, Any]) -> dict[str, Any]:
    if item.get("type") == "function_call_output":
        return {"role": "tool", "content": item["output"]}
    if "role" not in item:
        message = f"Unsupported input item type: {item.get('type')}"
        raise Refused(400, message, "BadRequestError", "input")
    return item


def _of_blocks(content: Any) -> Any:
    if isinstance(content, str):
        return content
    return [{"type": "text", "text": str(b.get("text") or b.get("content"))} for b in content]
