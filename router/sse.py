"""Server-sent events as the router needs them: whole events, the first that counts, the end.

After the first content event nothing is parsed any more: bytes are passed on as they came, cut at
event borders, so that an event that breaks off in the middle never reaches the client. What is
looked for in them (the end, an error, a count) is found by their bytes alone, which is exact: JSON
has no raw line breaks, so what follows one is never content.

Streams are those of vLLM 0.32: ``openai/{completion,chat_completion}/serving.py``,
``openai/responses/api_router.py``, ``anthropic/serving.py``. Only the first two end with
``[DONE]``.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from baton.errors import BatonError
from router.api import Dialect, Usage, correct_json, error_object, usage_of_event

DONE = b"data: [DONE]"
_BORDER = b"\n\n"
_CRLF_BORDER = b"\n\r\n"
_ANY_BORDER = re.compile(rb"\n\r?\n")
_MAX_EVENT_BYTES = 32 * 1024 * 1024


class EventKind(enum.Enum):
    """What an event means before the router has committed itself to an answer."""

    PREAMBLE = enum.auto()
    """Says nothing about generation: the role of a chat answer, usage, a comment, a ping."""
    CONTENT = enum.auto()
    """At least one token was generated."""
    ERROR = enum.auto()
    """The engine gives up."""
    DONE = enum.auto()
    """The end of the stream."""


class EventBuffer:
    """Cuts a byte stream at event borders, whether its lines end with LF or CRLF.

    Raises:
        ValueError: from ``feed``, when one event exceeds 32 MiB.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        # The last two bytes kept: a border may lie across pieces.
        self._seam = b""

    @property
    def holding(self) -> bool:
        """Whether a part of an event is kept."""
        return bool(self._parts)

    def feed(self, data: bytes) -> bytes:
        """All complete events so far that were not returned yet; keeps the incomplete rest."""
        if not self._parts and data.endswith(_BORDER):
            return data
        # Only what is new is searched: an event in a thousand pieces is not read a thousand times.
        searched = self._seam + data
        end = _after_last_border(searched)
        if end is None:
            if data:
                self._keep(data, searched)
            return b""
        cut = end - len(self._seam)
        self._parts.append(data[:cut])
        whole = b"".join(self._parts)
        rest = data[cut:]
        self._parts, self._size, self._seam = [], 0, b""
        if rest:
            self._keep(rest, rest)
        return whole

    def _keep(self, data: bytes, searched: bytes) -> None:
        self._size += len(data)
        if self._size > _MAX_EVENT_BYTES:
            raise ValueError("an event of the stream is too large")
        self._parts.append(data)
        self._seam = searched[-2:]


def _after_last_border(data: bytes) -> int | None:
    plain = data.rfind(_BORDER)
    end = plain + len(_BORDER) if plain >= 0 else None
    if b"\r" in data:
        crlf = data.rfind(_CRLF_BORDER)
        if crlf >= 0:
            return max(end or 0, crlf + len(_CRLF_BORDER))
    return end


def split_events(data: bytes) -> list[bytes]:
    """Complete events, each with its border."""
    return list(_events(data))


def _events(data: bytes) -> Iterator[bytes]:
    start = 0
    for border in _ANY_BORDER.finditer(data):
        if border.start() > start:
            yield data[start : border.end()]
        start = border.end()


# --- without JSON: the end, errors, counts ----------------------------------------------------

_Line = tuple[bytes, bytes]
"""How a line begins, at the start of the bytes and after another line."""


def _lines(*beginnings: bytes) -> tuple[_Line, ...]:
    return tuple((line, b"\n" + line) for line in beginnings)


# An event of the engine's own that says "error" is the last as well.
_ENDS: Final[Mapping[Dialect, tuple[_Line, ...]]] = {
    Dialect.OPENAI: _lines(DONE),
    Dialect.RESPONSES: _lines(
        b"event: response.completed",
        b"event: response.incomplete",
        b"event: response.failed",
        b"event: response.cancelled",
        b"event: error",
    ),
    Dialect.MESSAGES: _lines(b"event: message_stop", b"event: error"),
}
_ERRORS: Final[Mapping[Dialect, tuple[_Line, ...]]] = {
    Dialect.OPENAI: _lines(*(b'data: {"error":' + more for more in (b" {", b"{", b' "', b'"'))),
    Dialect.RESPONSES: _lines(b"event: response.failed", b"event: error"),
    Dialect.MESSAGES: _lines(b"event: error"),
}


def _has_line(events: bytes, lines: tuple[_Line, ...]) -> bool:
    return any(events.startswith(first) or later in events for first, later in lines)


def is_complete(events: bytes, dialect: Dialect = Dialect.OPENAI) -> bool:
    """Whether these whole events hold the end of their stream, as an event and not as a text.

    An error event of the engine's is an end as well where no other follows it (responses,
    messages): the client knows then how its stream ended.
    """
    return _has_line(events, _ENDS[dialect])


def has_error(events: bytes, dialect: Dialect) -> bool:
    """Whether the engine gave up in these whole events, by vLLM's way of writing it."""
    return _has_line(events, _ERRORS[dialect])


def count_events(events: bytes, dialect: Dialect) -> int:
    """Content events among these whole ones: tokens, as far as each has an event of its own.

    Of the OpenAI dialect all events count but ``[DONE]``; that is one too many for the role of a
    chat, and one for usage.
    """
    carriage = b"\r" in events
    if dialect is Dialect.MESSAGES:
        return events.count(b"event: content_block_delta")
    if dialect is Dialect.RESPONSES:
        # No line of data ends like this: it ends with a brace.
        return events.count(b".delta\n") + (events.count(b".delta\r\n") if carriage else 0)
    count = events.count(_BORDER) + (events.count(_CRLF_BORDER) if carriage else 0)
    return count - 1 if count and is_complete(events) else count


# --- with JSON: what an event means -----------------------------------------------------------


def classify_event(
    event: bytes, dialect: Dialect = Dialect.OPENAI
) -> tuple[EventKind, dict[str, Any] | None]:
    """What an event means, and its error object if it is an error."""
    payload = _payload(event)
    if not payload:
        return EventKind.PREAMBLE, None
    if payload == b"[DONE]":
        return EventKind.DONE, None
    try:
        chunk = msgspec.json.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return EventKind.ERROR, {"message": "the engine sent an event that is not JSON"}
    if not isinstance(chunk, dict):
        return EventKind.ERROR, {"message": "the engine sent an event of an unknown shape"}
    error = chunk.get("error")
    if error is not None:
        return EventKind.ERROR, error if isinstance(error, dict) else {"message": str(error)}
    if dialect is Dialect.OPENAI:
        return _classify_chunk(chunk)
    kind = chunk.get("type")
    if not isinstance(kind, str):
        return EventKind.ERROR, {"message": "the engine sent an event of an unknown shape"}
    return _classify_named(kind, chunk)


def _payload(event: bytes) -> bytes:
    return b"".join(line[5:].strip() for line in event.splitlines() if line.startswith(b"data:"))


def _classify_chunk(chunk: dict[str, Any]) -> tuple[EventKind, dict[str, Any] | None]:
    choices = chunk.get("choices") or []
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        return EventKind.ERROR, {"message": "the engine sent an event of an unknown shape"}
    for choice in choices:
        delta = choice.get("delta")
        # A chat answer begins with an event that only names the role.
        if not isinstance(delta, dict) or "role" not in delta:
            return EventKind.CONTENT, None
        if choice.get("finish_reason") is not None:
            return EventKind.CONTENT, None
        if any(value for key, value in delta.items() if key != "role"):
            return EventKind.CONTENT, None
    return EventKind.PREAMBLE, None


_NAMED: Final[Mapping[str, EventKind]] = {
    "error": EventKind.ERROR,
    "response.failed": EventKind.ERROR,
    "response.completed": EventKind.DONE,
    "response.incomplete": EventKind.DONE,
    "response.cancelled": EventKind.DONE,
    "message_stop": EventKind.DONE,
    "content_block_delta": EventKind.CONTENT,
    "message_delta": EventKind.CONTENT,
}


def _classify_named(kind: str, event: dict[str, Any]) -> tuple[EventKind, dict[str, Any] | None]:
    found = _NAMED.get(kind)
    if found is None:
        # Of a response, deltas and what is done were generated; what is added, created or in
        # progress is announced before, some of it before the engine has done anything.
        content = kind.startswith("response.") and kind.endswith((".delta", ".done"))
        return (EventKind.CONTENT if content else EventKind.PREAMBLE), None
    if found is not EventKind.ERROR:
        return found, None
    response = event.get("response")
    error = response.get("error") if isinstance(response, dict) else None
    if isinstance(error, dict):
        return found, error
    return found, {"message": str(event.get("message") or "the engine gave no reason")}


# --- the end that the router writes -----------------------------------------------------------

_SEQUENCE = re.compile(rb'"sequence_number": ?(\d{1,15})\b')


def error_event(error: BatonError, dialect: Dialect = Dialect.OPENAI, last: bytes = b"") -> bytes:
    """The end of a stream that failed after its first event, so that client libraries raise.

    They do for an ``error`` object in the data (OpenAI's) or an event of that name (Anthropic's).

    Args:
        error: what happened.
        dialect: of the stream.
        last: the last bytes that were sent; for the number that an event of a response bears.
    """
    found = error_object(dialect, error)
    if dialect is Dialect.OPENAI:
        return b"data: " + msgspec.json.encode(found) + _BORDER + DONE + _BORDER
    if dialect is Dialect.RESPONSES:
        # The API's own error event has these at the top; the libraries look under "error".
        numbers = _SEQUENCE.findall(last)
        found = {
            "type": "error",
            "code": error.code,
            "message": error.message,
            "param": error.param,
            "sequence_number": int(numbers[-1]) + 1 if numbers else 0,
            **found,
        }
    return b"event: error\ndata: " + msgspec.json.encode(found) + _BORDER


# --- usage ------------------------------------------------------------------------------------


def usage_in_tail(dialect: Dialect, events: bytes) -> Usage | None:
    """The last usage among these whole events, or None. At most their last few are parsed.

    A quote inside a text is escaped, so the key that is looked for is never a text.
    """
    end = len(events)
    while (at := events.rfind(b'"usage":', 0, end)) >= 0:
        start = _event_start(events, at)
        usage = usage_of_event(dialect, _payload(_first_event(events, start)))
        if usage is not None:
            return usage
        end = start
    return None


def may_have_usage(events: bytes) -> bool:
    """Whether these whole events may bear usage; False for most."""
    return b'"usage":' in events


def correct_events(dialect: Dialect, events: bytes, prefill: Usage) -> bytes:
    """These whole events of decode with the cache's figures that prefill gave, where they bear
    any; ``events`` itself if there is nothing to correct.

    To be called for each piece of a stream over a handoff: without ``"usage":`` it costs a search.
    """
    if not may_have_usage(events):
        return events
    if prefill.cached_tokens is None and prefill.created_tokens is None:
        return events
    out: list[bytes] = []
    changed = False
    for event in split_events(events):
        corrected = _correct_event(dialect, event, prefill)
        changed = changed or corrected is not event
        out.append(corrected)
    return b"".join(out) if changed else events


def _correct_event(dialect: Dialect, event: bytes, prefill: Usage) -> bytes:
    if b'"usage":' not in event:
        return event
    payload = _payload(event)
    corrected = correct_json(
        dialect, payload, prefill, inside_response=dialect is Dialect.RESPONSES
    )
    if corrected is payload:
        return event
    return event.replace(payload, corrected)


def _event_start(events: bytes, at: int) -> int:
    start = events.rfind(_BORDER, 0, at)
    crlf = events.rfind(_CRLF_BORDER, 0, at)
    return max(start + len(_BORDER) if start >= 0 else 0, crlf + 3 if crlf >= 0 else 0)


def _first_event(events: bytes, start: int) -> bytes:
    border = _ANY_BORDER.search(events, start)
    return events[start : border.end() if border else len(events)]
