"""Errors: the shape that each API's clients know, in the words of whoever refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.errors import BatonError, InvalidRequest, NoWorker, TooManyRequests, WorkerTimeout
from router.api import Endpoint, as_openai_error, engine_error, error_body

VLLM = {"error": {"message": "too long", "type": "BadRequestError", "param": None, "code": 400}}
ANTHROPIC = {"type": "error", "error": {"type": "BadRequestError", "message": "too long"}}


def encoded(value: Any) -> bytes:
    return msgspec.json.encode(value)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidRequest("no"), "invalid_request_error"),
        (TooManyRequests("no"), "rate_limit_error"),
        (NoWorker("no"), "overloaded_error"),
        (WorkerTimeout("no"), "timeout_error"),
        (BatonError("no"), "api_error"),
    ],
)
def test_ours(error: BatonError, kind: str) -> None:
    """OpenAI's object everywhere but at ``/v1/messages``, which has Anthropic's."""
    for endpoint in Endpoint:
        body = msgspec.json.decode(error_body(endpoint, error))
        if endpoint is Endpoint.MESSAGES:
            assert body == {"type": "error", "error": {"type": kind, "message": "no"}}
        else:
            assert body == error.to_openai()


@pytest.mark.parametrize("endpoint", [e for e in Endpoint if e is not Endpoint.MESSAGES])
def test_an_engines_error_object_stays(endpoint: Endpoint) -> None:
    """To the byte: a client of one worker would have seen it."""
    assert engine_error(endpoint, 400, encoded(VLLM)) == encoded(VLLM)


def test_messages_have_a_shape_of_their_own() -> None:
    """The engine's Anthropic errors stay; its validation errors, which have OpenAI's shape at
    every endpoint, are put into Anthropic's."""
    assert engine_error(Endpoint.MESSAGES, 400, encoded(ANTHROPIC)) == encoded(ANTHROPIC)
    translated = msgspec.json.decode(engine_error(Endpoint.MESSAGES, 400, encoded(VLLM)))
    assert translated == {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": "too long"},
    }


@pytest.mark.parametrize(
    ("status", "body", "message", "kind", "param"),
    [
        (404, b'{"detail":"Not Found"}', "Not Found", "invalid_request_error", None),
        (401, b'{"error":"Unauthorized"}', "Unauthorized", "invalid_request_error", None),
        (
            422,
            encoded({"detail": [{"loc": ["body", "n", 0], "msg": "bad"}, {"msg": "worse"}]}),
            "bad; worse",
            "invalid_request_error",
            "n.0",
        ),
        (429, b"slow down", "slow down", "rate_limit_error", None),
        (503, b"", "Service Unavailable", "server_error", None),
        (500, b"\xff\x00", "\ufffd\x00", "server_error", None),
        (499, b"{}", "status 499", "invalid_request_error", None),
        (400, b'{"message":"plain"}', "plain", "invalid_request_error", None),
    ],
)
def test_other_shapes(status: int, body: bytes, message: str, kind: str, param: str | None) -> None:
    """FastAPI's details, strings, pages and nothing at all become error objects."""
    assert msgspec.json.decode(as_openai_error(status, body)) == {
        "error": {"message": message, "type": kind, "param": param, "code": None}
    }


VALUES = st.recursive(
    st.none() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "detail", "message", "type", "loc", "msg"]), inner
        )
    ),
)


@given(
    st.sampled_from(list(Endpoint)),
    st.integers(400, 599),
    st.binary(max_size=40) | VALUES.map(encoded),
)
def test_any_body_becomes_an_error_object(endpoint: Endpoint, status: int, body: bytes) -> None:
    """Whatever an engine answers, its client finds a message where it looks for one."""
    found = msgspec.json.decode(engine_error(endpoint, status, body))
    assert isinstance(found["error"]["message"], str)
    if endpoint is Endpoint.MESSAGES:
        assert found["type"] == "error"
