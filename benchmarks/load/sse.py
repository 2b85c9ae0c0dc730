"""What an OpenAI endpoint answers, read as cheaply as possible: events of a stream, whole bodies.

Decodes only what is measured: whether there is content, its text, why it ended, usage, errors.
Knows no sockets and no clock.
"""

from __future__ import annotations

from typing import Any

import msgspec

MAX_EVENT_BYTES = 8 * 1024 * 1024
DONE = b"[DONE]"
_DETAIL_CHARS = 300


class BadAnswer(Exception):
    """What came is no OpenAI answer. Never leaves the load generator: it becomes a record."""


class Events:
    """Splits the bytes of a ``text/event-stream`` into the payloads of its ``data:`` fields."""

    __slots__ = ("_data", "_rest")

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, received: bytes) -> list[bytes]:
        """The payloads that are whole with these bytes.

        Raises:
            BadAnswer: an event is over 8 MiB.
        """
        text = self._rest + received if self._rest else received
        if b"\r" in text:
            # A CR at the very end may be half of a CRLF: it waits for the next byte.
            held = text[-1:] == b"\r"
            text = (text[:-1] if held else text).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            lines = text.split(b"\n")
            self._rest = lines.pop() + (b"\r" if held else b"")
        else:
            lines = text.split(b"\n")
            self._rest = lines.pop()
        found: list[bytes] = []
        data = self._data
        for line in lines:
            if line[:5] == b"data:":
                data.append(line[6:] if line[5:6] == b" " else line[5:])
            elif not line and data:
                found.append(data[0] if len(data) == 1 else b"\n".join(data))
                data.clear()
        if len(self._rest) > MAX_EVENT_BYTES or len(data) > 10_000:
            raise BadAnswer(f"an event of more than {MAX_EVENT_BYTES} bytes")
        return found


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    """Tokens as the server counted them; None where it says nothing."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None

    @property
    def cached_tokens(self) -> int | None:
        """Prompt tokens that came from the prefix cache."""
        return (
            None if self.prompt_tokens_details is None else self.prompt_tokens_details.cached_tokens
        )


class _Message(msgspec.Struct):
    """``delta`` of a chunk, ``message`` of a whole answer."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Any] | None = None
    refusal: str | None = None

    @property
    def has_content(self) -> bool:
        return bool(
            self.content
            or self.reasoning_content
            or self.reasoning
            or self.tool_calls
            or self.refusal
        )


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Message | None = None
    message: _Message | None = None
    finish_reason: str | None = None

    def has_content(self) -> bool:
        """A role alone, or an empty text, is no content."""
        if self.text:
            return True
        message = self.delta or self.message
        return message is not None and message.has_content

    def content(self) -> str:
        """The answer's text as it goes into a conversation's next turn."""
        message = self.delta or self.message
        return (message.content if message is not None else self.text) or ""


class Answer(msgspec.Struct):
    """A chunk of a stream, or a whole answer."""

    choices: list[_Choice] = []
    usage: Usage | None = None
    error: Any = None
    object: str | None = None
    message: str | None = None

    @property
    def failure(self) -> str | None:
        """What went wrong, at most 300 characters, or None if this is no error."""
        if self.error is None and self.object != "error":
            return None
        return _words(self.message if self.error is None else self.error)


_DECODER = msgspec.json.Decoder(Answer)


def decode(payload: bytes) -> Answer:
    """A chunk or a whole answer.

    Raises:
        BadAnswer: not JSON, or not of that form.
    """
    try:
        return _DECODER.decode(payload)
    except msgspec.DecodeError as error:
        raise BadAnswer(f"{error}: {shorten(payload)}") from error


def error_text(body: bytes) -> str:
    """What an error's body says, at most 300 characters."""
    try:
        found = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return shorten(body)
    if isinstance(found, dict):
        return _words(found.get("error", found.get("detail", found.get("message", found))))
    return _words(found)


def shorten(text: bytes | str) -> str:
    """One line of at most 300 characters."""
    if isinstance(text, bytes):
        text = text[: 4 * _DETAIL_CHARS].decode("utf-8", "replace")
    return " ".join(text.split())[:_DETAIL_CHARS]


def _words(error: Any) -> str:
    if isinstance(error, dict):
        error = error.get("message", error)
    return shorten(error if isinstance(error, str) else msgspec.json.encode(error))
