"""Reading answers: events whatever the network cuts, and what in them is content."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.load.sse import MAX_EVENT_BYTES, BadAnswer, Events, decode, error_text, shorten


@given(
    payloads=st.lists(st.sampled_from([b'{"a": 1}', b"[DONE]", b"x" * 50]), max_size=6),
    newline=st.sampled_from([b"\n", b"\r\n", b"\r"]),
    cuts=st.lists(st.integers(0, 400), max_size=8),
)
def test_cuts_change_nothing(payloads: list[bytes], newline: bytes, cuts: list[int]) -> None:
    """However the network cuts the bytes, the same payloads come out, with every line ending."""
    # With CR alone, the very last one might be half of a CRLF: a further line settles it.
    stream = b": hello" + newline + b"".join(b"data: " + p + newline * 2 for p in payloads) + b":"
    events, found, at = Events(), [], 0
    for cut in sorted({min(c, len(stream)) for c in cuts} | {len(stream)}):
        found += events.feed(stream[at:cut])
        at = cut
    assert found == payloads


def test_fields_of_an_event() -> None:
    """Several data lines are one payload; other fields and comments are none."""
    fed = Events().feed(b"event: x\nid: 3\n: ping\ndata:a\ndata: b\n\n\n\ndata: c\n\n")
    assert fed == [b"a\nb", b"c"]


def test_endless_event() -> None:
    """An event without an end is refused before it fills the memory."""
    events = Events()
    assert events.feed(b"x" * MAX_EVENT_BYTES) == []
    with pytest.raises(BadAnswer, match="more than"):
        events.feed(b"x")


@pytest.mark.parametrize(
    ("choice", "content"),
    [
        ({"text": " a"}, True),
        ({"text": ""}, False),
        ({"delta": {"role": "assistant"}}, False),
        ({"delta": {"role": "assistant", "content": ""}}, False),
        ({"delta": {"content": "a"}}, True),
        ({"delta": {"reasoning_content": "hm"}}, True),
        ({"delta": {"tool_calls": [{"index": 0, "function": {"name": "f"}}]}}, True),
        ({"delta": {"tool_calls": []}}, False),
        ({"delta": {}, "finish_reason": "stop"}, False),
        ({"message": {"content": "whole"}}, True),
    ],
)
def test_what_is_content(choice: dict[str, object], content: bool) -> None:
    """A role alone and an empty text are no content; reasoning and tool calls are."""
    answer = decode(json.dumps({"id": "x", "choices": [choice]}).encode())
    assert answer.choices[0].has_content() is content
    assert answer.failure is None


def test_usage_and_failures() -> None:
    """Usage with its cached tokens is read; both forms of an error event are."""
    usage = decode(
        b'{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2,'
        b'"prompt_tokens_details":{"cached_tokens":5}}}'
    ).usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) == (9, 2, 5)
    assert decode(b'{"error": {"message": "gone", "code": 500}}').failure == "gone"
    assert decode(b'{"object": "error", "message": "old form"}').failure == "old form"
    assert decode(b'{"choices": [], "usage": {"prompt_tokens_details": null}}').failure is None
    with pytest.raises(BadAnswer):
        decode(b"{")
    with pytest.raises(BadAnswer):
        decode(b'{"choices": 3}')


def test_error_texts() -> None:
    """An error's words are found in its usual forms, on one line of at most 300 characters."""
    assert error_text(b'{"error": {"message": "too long"}}') == "too long"
    assert error_text(b'{"detail": "nope"}') == "nope"
    assert error_text(b"<html>\n  oops</html>") == "<html> oops</html>"
    assert len(shorten("x" * 1000)) == 300
