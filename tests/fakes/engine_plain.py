"""What a fake engine answers without generating: models, tokens, embeddings."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tests.fakes.engine_job import Tokenize, check_model, parse_count_tokens, parse_prompt
from tests.fakes.engine_kv import generate
from tests.fakes.engine_wire import Refused

EMBEDDINGS = "/v1/embeddings"

_ids = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Side:
    """What the answers depend on besides the request."""

    model: str
    max_model_len: int
    tokenize: Tokenize


def models(model: str, max_model_len: int) -> dict[str, Any]:
    """The list of one model."""
    card = {
        "id": model,
        "object": "model",
        "created": 1_000_000,
        "owned_by": "vllm",
        "root": model,
        "max_model_len": max_model_len,
    }
    return {"object": "list", "data": [card]}


def _tokenized(body: Any, side: Side) -> dict[str, Any]:
    tokens = parse_prompt(body, side.model, side.tokenize)
    return {"count": len(tokens), "max_model_len": side.max_model_len, "tokens": tokens}


def _detokenized(body: Any, side: Side) -> dict[str, Any]:
    tokens = _field(body, side, "tokens")
    return {"prompt": bytes(tokens).decode("utf-8", "replace")}


def _counted(body: Any, side: Side) -> dict[str, Any]:
    count = parse_count_tokens(body, side.model, side.tokenize)
    return {"input_tokens": count, "context_management": {"original_input_tokens": count}}


def _embedded(body: Any, side: Side) -> dict[str, Any]:
    given = _field(body, side, "input")
    texts = given if isinstance(given, list) and not isinstance(given[0], int) else [given]
    prompts = [list(side.tokenize(t)) if isinstance(t, str) else t for t in texts]
    data = [
        {"index": i, "object": "embedding", "embedding": [t.logprob for t in generate(p, 4)]}
        for i, p in enumerate(prompts)
    ]
    read = sum(map(len, prompts))
    usage = {"prompt_tokens": read, "total_tokens": read, "completion_tokens": 0}
    return {
        "id": f"embd-{next(_ids)}",
        "object": "list",
        "created": 1_000_000,
        "model": side.model,
        "data": data,
        "usage": {**usage, "prompt_tokens_details": None},
    }


def _field(body: Any, side: Side, name: str) -> Any:
    body = body if isinstance(body, dict) else {}
    check_model(body, side.model)
    if not body.get(name):
        raise Refused(400, f"{name}: Field required", "Bad Request", f"body.{name}")
    return body[name]


PLAIN: Final[Mapping[str, Callable[[Any, Side], dict[str, Any]]]] = {
    "/tokenize": _tokenized,
    "/detokenize": _detokenized,
    "/v1/messages/count_tokens": _counted,
    EMBEDDINGS: _embedded,
}
"""By path: the answer to a body."""
