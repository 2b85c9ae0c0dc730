"""Server-sent events as the router needs them: whole events, and the first that counts.

After the first content event nothing is parsed any more: bytes are passed on as they came, cut at
event borders, so that an event that breaks off in the middle never reaches the client.
"""

from __future__ import annotations

import enum
from typing import Any

import msgspec

from baton.errors import BatonError

DONE = b"data: [DONE]"
_BORDER = b"\n\n"
_MAX_EVENT_BYTES = 32 * 1024 * 1024


class EventKind(enum.Enum):
    """What an event means before the router has committed itself to an answer."""

    PREAMBLE = enum.auto()
    """Says nothing about generation: the role of a chat answer, usage, a comment."""
    CONTENT = enum.auto()
    """At least one token was generated."""
    ERROR = enum.auto()
    """The engine gives up."""
    DONE = enum.auto()
    """The end of the stream."""


class EventBuffer:
    """Cuts a byte stream at event borders.

    Raises:
        ValueError: from ``feed``, when one event exceeds 32 MiB.
    """

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        """All complete events so far that were not returned yet; keeps the incomplete rest."""
        if not self._rest and data.endswith(_BORDER):
            return data
        data = self._rest + data
        border = data.rfind(_BORDER)
        if border < 0:
            if len(data) > _MAX_EVENT_BYTES:
                raise ValueError("an event of the stream is too large")
            self._rest = data
            return b""
        end = border + len(_BORDER)
        self._rest = data[end:]
        return data[:end]


def is_complete(events: bytes) -> bool:
    """Whether ``[DONE]`` is among these whole events, as an event and not as part of a text."""
    # JSON has no raw line breaks: what follows one is never content.
    return events.startswith(DONE) or b"\n" + DONE in events


def split_events(data: bytes) -> list[bytes]:
    """Complete events, each with its border."""
    return [part + _BORDER for part in data.split(_BORDER) if part]


def classify_event(event: bytes) -> tuple[EventKind, dict[str, Any] | None]:
    """What an event means, and its error object if it is an error."""
    payload = b"".join(line[5:].strip() for line in event.splitlines() if line.startswith(b"data:"))
    if not payload:
        return EventKind.PREAMBLE, None
    if payload == b"[DONE]":
        return EventKind.DONE, None
    try:
        chunk = msgspec.json.decode(payload)
    except msgspec.DecodeError:
        return EventKind.ERROR, {"message": "the engine sent an event that is not JSON"}
    if not isinstance(chunk, dict):
        return EventKind.ERROR, {"message": "the engine sent an event of an unknown shape"}
    error = chunk.get("error")
    if error is not None:
        return EventKind.ERROR, error if isinstance(error, dict) else {"message": str(error)}
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


def error_event(error: BatonError) -> bytes:
    """The end of a stream that failed after its first event."""
    return b"data: " + msgspec.json.encode(error.to_openai()) + _BORDER + DONE + _BORDER
