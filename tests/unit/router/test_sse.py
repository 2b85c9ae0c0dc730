"""Server-sent events: whole ones only, whatever the pieces; and the first that counts."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.errors import StreamBroken
from router import sse
from router.api import Dialect
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


crlf_events = st.lists(lines.filter(bool), min_size=1, max_size=3).flatmap(
    lambda ls: st.sampled_from(["\n", "\r\n"]).map(
        lambda end: b"".join(line + end.encode() for line in [*ls, b""])
    )
)


@given(st.lists(crlf_events, max_size=6), st.data())
def test_carriage_returns(whole: list[bytes], data: st.DataObject) -> None:
    """An engine or a proxy that ends lines with CRLF is cut at the same borders, to the byte."""
    stream = b"".join(whole) + b"data: half"
    places = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    pieces = [stream[a:b] for a, b in zip([0, *places], [*places, len(stream)], strict=True)]
    buffer = EventBuffer()
    out = [buffer.feed(piece) for piece in pieces]
    assert b"".join(out) == b"".join(whole)
    assert [event for part in out for event in split_events(part)] == whole


def test_a_large_event_in_small_pieces() -> None:
    """Is put together once, not once for each piece: 4 MiB in 16,384 pieces is no work."""
    buffer = EventBuffer()
    piece = b"x" * 256
    for _ in range(16_384):
        assert buffer.feed(piece) == b""
    assert len(buffer.feed(b"\n\n")) == 256 * 16_384 + 2


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


# --- named events -------------------------------------------------------------------------------


def named(kind: str, **fields: object) -> bytes:
    """An event as vLLM writes it for responses and messages."""
    data = msgspec.json.encode({"type": kind, **fields})
    return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("response.created", EventKind.PREAMBLE),
        ("response.queued", EventKind.PREAMBLE),
        ("response.in_progress", EventKind.PREAMBLE),
        ("response.output_item.added", EventKind.PREAMBLE),
        ("response.content_part.added", EventKind.PREAMBLE),
        ("response.output_text.delta", EventKind.CONTENT),
        ("response.reasoning_text.delta", EventKind.CONTENT),
        ("response.function_call_arguments.delta", EventKind.CONTENT),
        ("response.custom_tool_call_input.delta", EventKind.CONTENT),
        ("response.function_call_arguments.done", EventKind.CONTENT),
        ("response.output_item.done", EventKind.CONTENT),
        ("response.completed", EventKind.DONE),
        ("response.incomplete", EventKind.DONE),
        ("response.failed", EventKind.ERROR),
        ("error", EventKind.ERROR),
        ("something.new", EventKind.PREAMBLE),
    ],
)
def test_responses(kind: str, expected: EventKind) -> None:
    """What a response announces is no content: vLLM writes it before the engine has begun."""
    found, error = classify_event(named(kind, delta="x"), Dialect.RESPONSES)
    assert found is expected
    assert (error is not None) is (expected is EventKind.ERROR)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("message_start", EventKind.PREAMBLE),
        ("ping", EventKind.PREAMBLE),
        ("content_block_start", EventKind.PREAMBLE),
        ("content_block_delta", EventKind.CONTENT),
        ("message_delta", EventKind.CONTENT),
        ("message_stop", EventKind.DONE),
        ("error", EventKind.ERROR),
    ],
)
def test_messages(kind: str, expected: EventKind) -> None:
    """An empty answer has no block, only what it stopped for."""
    assert classify_event(named(kind), Dialect.MESSAGES)[0] is expected


def test_errors_in_named_events() -> None:
    """The engine's words are found wherever the API has them."""
    event = named("error", error={"type": "internal_error", "message": "no blocks"})
    assert classify_event(event, Dialect.MESSAGES)[1] == {
        "type": "internal_error",
        "message": "no blocks",
    }
    event = named("response.failed", response={"error": {"code": "x", "message": "no"}})
    assert classify_event(event, Dialect.RESPONSES)[1] == {"code": "x", "message": "no"}
    event = named("error", message="top", code=None)
    assert classify_event(event, Dialect.RESPONSES)[1] == {"message": "top"}


@given(st.sampled_from(list(Dialect)), st.binary(max_size=60))
def test_no_dialect_fails(dialect: Dialect, raw: bytes) -> None:
    """Whatever an engine sends is classified, counted and searched."""
    for event in (raw, b"data: " + raw + b"\n\n", b'data: {"type":' + raw + b"}\n\n"):
        classify_event(event, dialect)
        sse.is_complete(event, dialect)
        sse.has_error(event, dialect)
        assert sse.count_events(event, dialect) >= 0


SAID = "\n\nevent: response.completed\n\nevent: message_stop\ndata: [DONE]\nevent: error\n.delta\n"


@pytest.mark.parametrize(
    ("dialect", "content", "end"),
    [
        (
            Dialect.OPENAI,
            b"data: " + msgspec.json.encode({"text": SAID}) + b"\n\n",
            sse.DONE + b"\n\n",
        ),
        (
            Dialect.RESPONSES,
            named("response.output_text.delta", delta=SAID),
            named("response.completed", response={}),
        ),
        (
            Dialect.MESSAGES,
            named("content_block_delta", delta={"type": "text_delta", "text": SAID}),
            named("message_stop"),
        ),
    ],
)
def test_ends_and_counts(dialect: Dialect, content: bytes, end: bytes) -> None:
    """Ends are events, and never texts that read so; each content event is counted once."""
    assert not is_complete(content, dialect)
    assert is_complete(end, dialect)
    assert is_complete(content + end, dialect)
    assert not sse.has_error(content + end, dialect)
    assert sse.count_events(content * 3, dialect) == 3
    assert sse.count_events(content * 3 + end, dialect) == 3
    assert sse.count_events(b"", dialect) == 0
    carriage = content.replace(b"\n", b"\r\n")
    assert sse.count_events(carriage * 2, dialect) == 2


@pytest.mark.parametrize(
    ("dialect", "event"),
    [
        (Dialect.OPENAI, b'data: {"error": {"message": "no"}}\n\n'),
        (Dialect.OPENAI, b'data: {"error":"no"}\n\n'),
        (Dialect.RESPONSES, named("error")),
        (Dialect.RESPONSES, named("response.failed")),
        (Dialect.MESSAGES, named("error")),
    ],
)
def test_an_engine_that_gives_up(dialect: Dialect, event: bytes) -> None:
    """Is seen without parsing, also behind other events."""
    assert sse.has_error(event, dialect)
    assert sse.has_error(b": comment\n\n" + event, dialect)
    assert not sse.has_error(b'data: {"error":null,"choices":[]}\n\n', dialect)
    assert is_complete(event, dialect) is (dialect is not Dialect.OPENAI)


# --- error events -------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", list(Dialect))
def test_the_error_event(dialect: Dialect) -> None:
    """Is read as an error that says what happened, and as the end of the stream."""
    error = StreamBroken("the answer broke off")
    written = sse.error_event(error, dialect)
    kind, found = classify_event(split_events(written)[0], dialect)
    assert kind is EventKind.ERROR
    assert found is not None
    assert found["message"] == "the answer broke off"
    assert is_complete(written, dialect)
    assert sse.has_error(written, dialect)


def test_the_error_event_of_a_chat() -> None:
    """An OpenAI error object, then the end."""
    error = StreamBroken("the answer broke off")
    first, last = split_events(sse.error_event(error))
    assert last == b"data: [DONE]\n\n"
    assert msgspec.json.decode(first.removeprefix(b"data: ")) == error.to_openai()


@pytest.mark.parametrize(
    ("last", "number"),
    [
        (b"", 0),
        (b'{"sequence_number":7}\n\ndata: {"sequence_number": 8,"x":1}\n\n', 9),
        (b'{"text":"\\"sequence_number\\":5"}', 0),
    ],
)
def test_the_error_event_of_a_response(last: bytes, number: int) -> None:
    """Has the fields of the API's own error event, and the number after the last one sent."""
    error = StreamBroken("the answer broke off")
    written = sse.error_event(error, Dialect.RESPONSES, last)
    data = msgspec.json.decode(written.partition(b"data: ")[2])
    assert data["type"] == "error"
    assert (data["code"], data["param"]) == ("stream_broken", None)
    assert data["sequence_number"] == number
    assert data["error"] == error.to_openai()["error"]
