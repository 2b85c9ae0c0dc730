"""Server-sent events: whole ones only, whatever the pieces; and the first that counts."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.errors import StreamBroken
from router import sse
from router.sse import EventBuffer, EventKind, classify_event, is_complete, split_events

lines = st.binary(max_size=12).map(lambda raw: raw.replace(b"\n", b"").replace(b"\r", b""))
events = st.lists(lines.filter(bool), min_size=1, max_size=3).map(
    lambda ls: b"\n".join(ls) + b"\n\n"
)


@st.composite
def cut_streams(draw: st.DrawFn) -> tuple[list[bytes], bytes, list[bytes]]:
    """Some events, an incomplete rest, and all of it cut at arbitrary places."""
    whole = draw(st.lists(events, max_size=6))
    rest = draw(st.one_of(st.just(b""), events.map(lambda event: event[:-1]), lines))
    stream = b"".join(whole) + rest
    places = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    pieces = [stream[a:b] for a, b in zip([0, *places], [*places, len(stream)], strict=True)]
    return whole, rest, pieces


@given(cut_streams())
def test_any_cut_gives_the_same_events(stream: tuple[list[bytes], bytes, list[bytes]]) -> None:
    """However a stream is cut, its whole events come out once and in order; what comes out ends at
    a border each time; the incomplete rest never comes out."""
    whole, _, pieces = stream
    buffer = EventBuffer()
    out = [buffer.feed(piece) for piece in pieces]
    out.append(buffer.feed(b""))
    assert all(part == b"" or part.endswith(b"\n\n") for part in out)
    assert b"".join(out) == b"".join(whole)


@given(st.lists(events, max_size=6))
def test_split_and_join(whole: list[bytes]) -> None:
    """Splitting whole events gives each with its border."""
    assert split_events(b"".join(whole)) == whole


def test_an_event_without_end() -> None:
    """Is refused once it is larger than any sound one."""
    buffer = EventBuffer()
    piece = b"x" * (8 * 1024 * 1024)
    for _ in range(4):
        assert buffer.feed(piece) == b""
    with pytest.raises(ValueError, match="too large"):
        buffer.feed(piece)


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        ('{"choices": [{"index": 0, "text": " a", "finish_reason": null}]}', EventKind.CONTENT),
        ('{"choices": [{"index": 0, "text": "", "finish_reason": "length"}]}', EventKind.CONTENT),
        ('{"choices": [{"index": 0, "text": ""}]}', EventKind.CONTENT),
        ('{"choices": [{"delta": {"content": "a"}}]}', EventKind.CONTENT),
        ('{"choices": [{"delta": {"content": ""}}]}', EventKind.CONTENT),
        ('{"choices": [{"delta": {}, "finish_reason": "stop"}]}', EventKind.CONTENT),
        ('{"choices": [{"delta": {"role": "assistant", "content": ""}}]}', EventKind.PREAMBLE),
        ('{"choices": [{"delta": {"role": "assistant"}}]}', EventKind.PREAMBLE),
        ('{"choices": [{"delta": {"role": "assistant", "content": "a"}}]}', EventKind.CONTENT),
        (
            '{"choices": [{"delta": {"role": "assistant", "tool_calls": [{"index": 0}]}}]}',
            EventKind.CONTENT,
        ),
        (
            '{"choices": [{"delta": {"role": "assistant"}, "finish_reason": "stop"}]}',
            EventKind.CONTENT,
        ),
        (
            '{"choices": [{"delta": {"role": "assistant"}}, {"delta": {"content": "a"}}]}',
            EventKind.CONTENT,
        ),
        ('{"choices": [], "usage": {"prompt_tokens": 1}}', EventKind.PREAMBLE),
        ('{"id": "x"}', EventKind.PREAMBLE),
        ('{"error": {"message": "no"}}', EventKind.ERROR),
        ('{"error": "no"}', EventKind.ERROR),
        ('{"error": null, "choices": [{"text": "a"}]}', EventKind.CONTENT),
        ('{"choices": [{"text": ', EventKind.ERROR),
        ("[1, 2]", EventKind.ERROR),
        ('"text"', EventKind.ERROR),
        ('{"choices": {"a": 1}}', EventKind.ERROR),
        ('{"choices": ["a"]}', EventKind.ERROR),
        ('{"choices": [{"delta": "a"}]}', EventKind.CONTENT),
        ("[DONE]", EventKind.DONE),
    ],
)
def test_what_an_event_means(payload: str, kind: EventKind) -> None:
    """Only generated tokens are content; a role, usage or nothing is not; what is no chunk at all
    is an error."""
    found, error = classify_event(f"data: {payload}\n\n".encode())
    assert found is kind
    assert (error is not None) is (kind is EventKind.ERROR)


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        (b": comment\n\n", EventKind.PREAMBLE),
        (b"event: ping\n\n", EventKind.PREAMBLE),
        (b'data:{"choices": [{"text": "a"}]}\n\n', EventKind.CONTENT),
        (b'id: 7\ndata: {"choices":\ndata:  [{"text": "a"}]}\n\n', EventKind.CONTENT),
        (b"data: \xff\n\n", EventKind.ERROR),
    ],
)
def test_other_lines(event: bytes, kind: EventKind) -> None:
    """Comments and other fields say nothing; data may take several lines."""
    assert classify_event(event)[0] is kind


@given(st.binary(max_size=60))
def test_classification_never_fails(raw: bytes) -> None:
    """Whatever an engine sends is classified."""
    classify_event(b"data: " + raw + b"\n\n")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"data: [DONE]\n\n", True),
        (b'data: {"a": 1}\n\ndata: [DONE]\n\n', True),
        (b": x\ndata: [DONE]\n\n", True),
        (b'data: {"text": "data: [DONE]"}\n\n', False),
        (b'data: {"text": "\\n\\ndata: [DONE]\\n\\n"}\n\n', False),
        (b"", False),
    ],
)
def test_the_end_of_a_stream(data: bytes, expected: bool) -> None:
    """``[DONE]`` as an event, not as a text that reads so."""
    assert is_complete(data) is expected


def test_the_error_event() -> None:
    """An OpenAI error object, then the end."""
    error = StreamBroken("the answer broke off")
    first, last = split_events(sse.error_event(error))
    assert last == b"data: [DONE]\n\n"
    kind, found = classify_event(first)
    assert kind is EventKind.ERROR
    assert found == error.to_openai()["error"]
    assert msgspec.json.decode(first.removeprefix(b"data: ")) == error.to_openai()
