"""Comparing first tokens: what counts as the same KV, and what does not."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from router.care.first_token import (
    CHAT,
    COMPLETIONS,
    FirstToken,
    Likeness,
    compare,
    read_first_token,
)


def first(token: str, **logprobs: float) -> FirstToken:
    return FirstToken(token, logprobs)


@pytest.mark.parametrize(
    ("a", "b", "likeness", "difference"),
    [
        # The noise that was measured, and the smallest corruption.
        (first("x", x=-1.0, y=-2.0), first("x", x=-1.033, y=-2.0), Likeness.SAME, 0.033),
        (first("x", x=-1.0, y=-2.0), first("x", x=-1.19, y=-2.0), Likeness.DIFFERENT, 0.19),
        # A tie that flips: the same tokens are as likely as before.
        (first("x", x=-1.0, y=-1.01), first("y", x=-1.02, y=-1.0), Likeness.SAME, 0.02),
        (first("x", x=-1.0, y=-1.9), first("y", x=-1.9, y=-1.0), Likeness.DIFFERENT, 0.9),
        # Not among the other's candidates: then it is at most as likely as the last of them.
        (first("x", x=-1.0, z=-1.1), first("y", y=-0.5, w=-4.0), Likeness.DIFFERENT, 3.0),
        (first("x", x=-1.0, z=-1.05), first("y", y=-1.0, w=-1.05), Likeness.UNKNOWN, None),
    ],
)
def test_likeness(a: FirstToken, b: FirstToken, likeness: Likeness, difference: float) -> None:
    """Decided by the log probability of one and the same token, in both directions alike."""
    for one, other in ((a, b), (b, a)):
        found, by = compare(one, other)
        assert found is likeness
        assert by == (None if difference is None else pytest.approx(difference, abs=1e-9))


def answer(logprobs: Any) -> bytes:
    return msgspec.json.encode({"choices": [{"logprobs": logprobs}]})


def test_a_completion_is_read() -> None:
    """The token and its candidates."""
    body = answer({"tokens": ["t:1"], "token_logprobs": [-0.5], "top_logprobs": [{"t:2": -0.6}]})
    assert read_first_token(COMPLETIONS, body) == FirstToken("t:1", {"t:1": -0.5, "t:2": -0.6})


def test_a_chat_is_read() -> None:
    """The same from the other shape."""
    top = [{"token": "t:2", "logprob": -0.6}]
    body = answer({"content": [{"token": "t:1", "logprob": -0.5, "top_logprobs": top}]})
    assert read_first_token(CHAT, body) == FirstToken("t:1", {"t:1": -0.5, "t:2": -0.6})


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"choices": []}',
        b'{"choices": [3]}',
        answer(None),
        answer({}),
        answer({"tokens": [], "token_logprobs": [], "content": []}),
        answer({"tokens": ["t"], "token_logprobs": [None], "content": [{"token": "t"}]}),
        answer({"tokens": ["t"], "token_logprobs": ["x"], "top_logprobs": 3, "content": 3}),
        answer({"tokens": ["t"], "token_logprobs": ["nan"], "top_logprobs": [None]}),
    ],
)
def test_what_cannot_be_read(path: str, body: bytes) -> None:
    """Nothing is made of it."""
    assert read_first_token(path, body) is None
