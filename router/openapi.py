"""The hot endpoints in the router's OpenAPI document. They are not FastAPI routes, and what their
bodies may hold is the engine's business: here stands what the router itself relies on.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from baton.registrar import TTL_S, WORKERS_PATH
from router.api import Endpoint

_TEXT: dict[str, Any] = {"type": "string"}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 1}
_MESSAGES: dict[str, Any] = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["role", "content"],
        "properties": {"role": _TEXT, "content": {"type": ["string", "array"]}},
    },
}
_STREAM: dict[str, Any] = {"type": "boolean", "default": False}

_BODIES: dict[Endpoint, tuple[str, list[str], dict[str, Any]]] = {
    Endpoint.CHAT: (
        "Chat completion",
        ["model", "messages"],
        {"messages": _MESSAGES, "max_tokens": _COUNT, "stream": _STREAM},
    ),
    Endpoint.COMPLETIONS: (
        "Completion",
        ["model", "prompt"],
        {"prompt": {"type": ["string", "array"]}, "max_tokens": _COUNT, "stream": _STREAM},
    ),
    Endpoint.RESPONSES: (
        "Response",
        ["model", "input"],
        {"input": {"type": ["string", "array"]}, "max_output_tokens": _COUNT, "stream": _STREAM},
    ),
    Endpoint.MESSAGES: (
        "Message, in the form of the Anthropic API",
        ["model", "messages", "max_tokens"],
        {"messages": _MESSAGES, "max_tokens": _COUNT, "stream": _STREAM},
    ),
    Endpoint.EMBEDDINGS: (
        "Embeddings, where a worker has them",
        ["model", "input"],
        {"input": {"type": ["string", "array"]}},
    ),
    Endpoint.TOKENIZE: (
        "Token ids of a prompt or of messages",
        ["model"],
        {"prompt": _TEXT, "messages": _MESSAGES},
    ),
    Endpoint.DETOKENIZE: (
        "Text of token ids",
        ["model", "tokens"],
        {"tokens": {"type": "array", "items": {"type": "integer"}}},
    ),
}

_ERROR: dict[str, Any] = {
    "description": "An error object, as in the OpenAI API.",
    "content": {
        "application/json": {"schema": {"type": "object", "required": ["error"]}},
    },
}


_WORKER_PATH = f"{WORKERS_PATH}/{{worker_id}}"
_HEARTBEAT: dict[str, Any] = {
    "tags": ["cluster"],
    "summary": "A worker's heartbeat",
    "description": "Needs the cluster token. The record is forgotten after its time to live.",
    "parameters": [
        {"name": "worker_id", "in": "path", "required": True, "schema": _TEXT},
        {
            "name": "ttl_s",
            "in": "query",
            "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": 60, "default": TTL_S},
        },
    ],
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"type": "object"}}},
    },
    "responses": {
        "204": {"description": "It is known."},
        **{status: _ERROR for status in ("400", "401", "429", "503")},
    },
}


def describe_hot_endpoints(app: FastAPI) -> None:
    """Adds them to what ``app`` says at ``/openapi.json`` and ``/docs``."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        document = made()
        for endpoint, (summary, required, properties) in _BODIES.items():
            document["paths"][str(endpoint)] = {"post": _operation(summary, required, properties)}
        document["paths"][_WORKER_PATH] = {
            **document["paths"].get(_WORKER_PATH, {}),
            "put": _HEARTBEAT,
        }
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _operation(summary: str, required: list[str], properties: dict[str, Any]) -> dict[str, Any]:
    schema = {
        "type": "object",
        "required": required,
        "properties": {"model": _TEXT, **properties},
        "additionalProperties": True,
    }
    return {
        "tags": ["generation"],
        "summary": summary,
        "description": "Every option of the engine's API passes through unchanged.",
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {
            "200": {"description": "The answer, or a stream of server-sent events."},
            **{status: _ERROR for status in ("400", "401", "404", "413", "429", "503", "504")},
        },
    }
