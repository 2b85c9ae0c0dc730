"""Heads of HTTP/1.1 messages as bytes, and the errors that the server answers with. Pure.

What it refuses: a header that holds CR, LF or NUL, so that no value that came from outside can add
a header or a second answer; and headers that say how the body is framed, which are the wire's.
"""

from __future__ import annotations

import http
from collections.abc import Sequence
from typing import Any

import msgspec

Headers = Sequence[tuple[str, str]]

_OF_THE_WIRE = frozenset({"content-length", "transfer-encoding", "connection"})
_STATUS_LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in http.HTTPStatus}

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


def status_line(status: int) -> bytes:
    """``HTTP/1.1 200 OK``, with its line end."""
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d Status\r\n" % status


def header_lines(headers: Headers, reserved: frozenset[str] = _OF_THE_WIRE) -> bytes:
    """The headers, each with its line end.

    Raises:
        ValueError: CR, LF, NUL or a character beyond latin-1 in one, or one of the ``reserved``.
    """
    if not headers:
        return b""
    for name, _ in headers:
        if name.lower() in reserved:
            raise ValueError(f"the header {name} is set by the wire itself")
    text = "\r\n".join([f"{name}: {value}" for name, value in headers])
    breaks = len(headers) - 1
    # Only those of the join: one pass over the text instead of one over each name and value.
    if text.count("\r") != breaks or text.count("\n") != breaks or "\0" in text:
        raise ValueError("a header with CR, LF or NUL")
    return text.encode("latin-1") + b"\r\n"


def error_body(
    message: str, *, kind: str = "invalid_request_error", code: str | None = None
) -> bytes:
    """An OpenAI error object."""
    error: dict[str, Any] = {"message": message, "type": kind, "param": None, "code": code}
    return msgspec.json.encode({"error": error})


def closing_error(
    status: int, message: str, *, kind: str = "invalid_request_error", code: str | None = None
) -> bytes:
    """A whole answer to what is not even a request; the connection ends with it."""
    body = error_body(message, kind=kind, code=code)
    retry = b"retry-after: 1\r\n" if status == 503 else b""
    return (
        b"%bcontent-type: application/json\r\n%bconnection: close\r\ncontent-length: %d\r\n\r\n%b"
        % (
            status_line(status),
            retry,
            len(body),
            body,
        )
    )


NOT_HTTP = closing_error(400, "This is not a valid HTTP/1.1 request.")
VERSION = closing_error(505, "This server speaks HTTP/1.1.", code="http_version_not_supported")
HEAD_TOO_LARGE = closing_error(
    431, "The request's headers are larger than this server takes.", code="headers_too_large"
)
HEAD_TOO_SLOW = closing_error(
    408, "The request's headers did not arrive in time.", code="request_timeout"
)
FULL = closing_error(
    503,
    "This server has as many connections as it takes; try again in a second.",
    kind="server_error",
    code="too_many_connections",
)
FAILED = error_body("The router failed; its log says why.", kind="server_error")
