"""How a fake engine speaks: ASGI messages, JSON, events, error objects, cut connections."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

_BEFORE_A_CUT_S = 0.03

INTERNAL_ERROR = {
    "message": "Internal server error",
    "type": "InternalServerError",
    "param": None,
    "code": 500,
}


class Refused(Exception):
    """Becomes an answer with an error object."""

    def __init__(self, status: int, message: str, kind: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.error = {"message": message, "type": kind, "param": param, "code": status}

    def body(self, path: str) -> dict[str, Any]:
        """The answer's body at ``path``. What fails before the endpoint's own code runs, such as
        validation, has OpenAI's shape everywhere."""
        if path != "/v1/messages" or self.error["type"] in ("Bad Request", "Unauthorized"):
            return {"error": self.error}
        kept = {key: self.error[key] for key in ("type", "message")}
        return {"type": "error", "error": kept}


class Reply:
    """The way back to the client."""

    def __init__(self, send: Any, cut: Callable[[], None]) -> None:
        self._send = send
        self._cut = cut
        self.cut_by_us = False
        self.complete = False

    async def start(self, status: int, content_type: str) -> None:
        headers = [(b"content-type", content_type.encode())]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def send(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        self.complete = True
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def body(self, status: int, content_type: str, data: bytes) -> None:
        await self.start(status, content_type)
        await self.send(data)
        await self.end()

    async def json(self, status: int, value: Any) -> None:
        await self.body(status, "application/json", encode(value))

    async def cut(self) -> None:
        """Resets the connection; does not return."""
        # A reset drops what the peer has not read yet; what was sent before is to arrive.
        await asyncio.sleep(_BEFORE_A_CUT_S)
        self.cut_by_us = True
        self._cut()
        await asyncio.Event().wait()


def encode(value: Any) -> bytes:
    """JSON as the engine writes it, without spaces."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def encode_event(value: Any) -> bytes:
    """A server-sent event."""
    return b"data: " + encode(value) + b"\n\n"


def encode_named(kind: str, **fields: Any) -> bytes:
    """A server-sent event with a name, as responses and messages have them."""
    return b"event: " + kind.encode() + b"\ndata: " + encode({"type": kind, **fields}) + b"\n\n"


async def read_body(receive: Any) -> bytes:
    """A request's whole body, or what came of it."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return bytes(body)


async def until_gone(receive: Any) -> None:
    """Returns when the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
