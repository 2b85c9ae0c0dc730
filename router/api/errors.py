"""Errors as each API's clients expect them: ours, and those that an engine answered with.

It exists because a client library finds the message, and decides about a retry, by the shape of
the body. An engine's own words are kept, and so is a body that has the right shape already: a
client of one worker would have seen it.
"""

from __future__ import annotations

import http
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from baton.errors import BatonError
from router.api.endpoints import Dialect, Endpoint

_MAX_WORDS: Final = 2000
"""Characters taken over from a body that is no error object."""

# https://docs.anthropic.com/en/api/errors
_ANTHROPIC_TYPES: Final[Mapping[int, str]] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
# https://platform.openai.com/docs/guides/error-codes
_OPENAI_TYPES: Final[Mapping[int, str]] = {429: "rate_limit_error"}


def error_object(dialect: Dialect, error: BatonError) -> dict[str, Any]:
    """The error as the object that the dialect's clients know."""
    if dialect is Dialect.MESSAGES:
        return _anthropic(error.status, error.message)
    return error.to_openai()


def error_body(endpoint: Endpoint, error: BatonError) -> bytes:
    """The body of an answer that is an error of ours."""
    return msgspec.json.encode(error_object(endpoint.dialect, error))


def engine_error(endpoint: Endpoint, status: int, body: bytes) -> bytes:
    """The body of an answer that an engine refused: as it is if the endpoint's clients know its
    shape, else in that shape and in the engine's words.

    Args:
        endpoint: where the client sent the request.
        status: of the engine's answer, 400 or more.
        body: of the engine's answer.
    """
    if endpoint.dialect is not Dialect.MESSAGES:
        return as_openai_error(status, body)
    found = _object(body)
    if found.get("type") == "error" and _message(found.get("error")) is not None:
        return body
    # vLLM's validation errors have OpenAI's shape at every endpoint.
    return msgspec.json.encode(_anthropic(status, _words(status, body, found)[0]))


def as_openai_error(status: int, body: bytes) -> bytes:
    """The OpenAI error object that a body is, or that can be made of it.

    FastAPI's ``{"detail": ...}``, a plain string under ``error``, and text that is no JSON (a
    proxy's page) become objects with the same words.
    """
    found = _object(body)
    if _message(found.get("error")) is not None:
        return body
    message, param = _words(status, body, found)
    default = "invalid_request_error" if status < 500 else "server_error"
    return msgspec.json.encode(
        {
            "error": {
                "message": message,
                "type": _OPENAI_TYPES.get(status, default),
                "param": param,
                "code": None,
            }
        }
    )


def _anthropic(status: int, message: str) -> dict[str, Any]:
    kind = _ANTHROPIC_TYPES.get(status)
    if kind is None:
        kind = "invalid_request_error" if status < 500 else "api_error"
    return {"type": "error", "error": {"type": kind, "message": message}}


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _message(error: object) -> str | None:
    message = error.get("message") if isinstance(error, dict) else None
    return message if isinstance(message, str) else None


def _words(status: int, body: bytes, found: dict[str, Any]) -> tuple[str, str | None]:
    """What an answer says, and about which field."""
    error, detail = found.get("error"), found.get("detail")
    for said in (_message(error), error, detail, found.get("message")):
        if isinstance(said, str) and said:
            return said[:_MAX_WORDS], None
    if isinstance(detail, list) and detail and isinstance(detail[0], dict):
        where = detail[0].get("loc")
        path = [str(step) for step in where if step != "body"] if isinstance(where, list) else []
        said = "; ".join(str(item.get("msg")) for item in detail[:10] if isinstance(item, dict))
        return said[:_MAX_WORDS], ".".join(path) or None
    text = body[:_MAX_WORDS].decode("utf-8", "replace").strip()
    return (_phrase(status) if text[:1] in ("", "{", "[") else text), None


def _phrase(status: int) -> str:
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return f"status {status}"
