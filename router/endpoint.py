"""The two endpoints that generate text, as plain ASGI: body in, answer out, disconnects noticed.

FastAPI's request and response classes are passed by here, because streams are forwarded in bytes
and a client that leaves must be noticed at once. Everything else of the router uses FastAPI.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import MutableMapping
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

from baton.errors import BatonError, BodyTooLarge, TooManyRequests
from baton.types import RequestId
from router.call import Headers, Trail
from router.requests import Endpoint, parse_request
from router.state import RouterState

log = logging.getLogger("baton.router.requests")

_RETRY_AFTER_S = "1"
_BODY_S = 60.0
"""For a client to send its body; a slow one must not hold a place for ever."""
_DISCARD_BYTES = 64 * 1024 * 1024
_DISCARD_S = 5.0
"""What is taken in, and thrown away, of a body over the limit before the connection is closed."""


class ClientGone(Exception):
    """The client closed its connection; there is nobody to answer."""


class GenerateEndpoint:
    """ASGI application of one endpoint.

    Args:
        endpoint: which of the two.
        state: the running router; taken from the application at each request, since it is made
            when the server starts.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request; never raises but when cancelled."""
        state: RouterState = scope["app"].state.router
        request_id = RequestId(f"baton-{uuid.uuid4().hex}")
        trail = Trail()
        began_s = state.clock.monotonic_s()
        reply = AsgiReply(
            send, request_id, _header(scope, b"x-request-id"), state.profile.spec.deadlines.idle_s
        )
        with state.counted():
            try:
                body = await _read_body(scope, receive, state.profile.spec.limits.body_bytes)
                began_s = state.clock.monotonic_s()
                await self._serve(state, body, request_id, receive, reply, trail)
            except ClientGone:
                trail.status = 499
            except BatonError as error:
                await self._fail(state, error, reply, trail)
            except Exception:
                log.exception("%s failed", request_id)
                await self._fail(
                    state, BatonError("The router failed; its log says why."), reply, trail
                )
        self._account(state, trail, began_s)

    async def _serve(
        self,
        state: RouterState,
        body: bytes,
        request_id: RequestId,
        receive: Receive,
        reply: AsgiReply,
        trail: Trail,
    ) -> None:
        limit = state.profile.spec.limits.in_flight
        if state.in_flight > limit:
            raise TooManyRequests(
                f"This router is serving {limit} requests, its limit; try again in a second."
            )
        request = parse_request(self._endpoint, body)
        if request.stripped:
            log.warning("%s: transfer parameters of the client's were dropped", request_id)
        serving = asyncio.create_task(
            state.dispatcher.serve(request, request_id, reply, trail), name=request_id
        )
        leaving = asyncio.create_task(_until_gone(receive), name=f"{request_id}-client")
        try:
            await asyncio.wait({serving, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not serving.done():
                raise ClientGone
            serving.result()
        finally:
            for task in (serving, leaving):
                task.cancel()
            await asyncio.gather(serving, leaving, return_exceptions=True)

    async def _fail(
        self, state: RouterState, error: BatonError, reply: AsgiReply, trail: Trail
    ) -> None:
        if reply.started:
            # The dispatcher ends its streams itself; this is the last resort.
            trail.status = trail.status or error.status
            return
        trail.status = error.status
        headers = [
            ("content-type", "application/json"),
            *trail.headers(state.profile.metadata.name),
        ]
        if error.status in (429, 503):
            headers.append(("retry-after", _RETRY_AFTER_S))
        if isinstance(error, BodyTooLarge):
            # The rest of the body may not have been read: the connection cannot be used again.
            headers.append(("connection", "close"))
        with contextlib.suppress(ClientGone):
            await reply.start(error.status, headers)
            await reply.send(msgspec.json.encode(error.to_openai()), last=True)

    def _account(self, state: RouterState, trail: Trail, began_s: float) -> None:
        metrics = state.metrics
        metrics.requests.labels(self._endpoint, trail.path, trail.reason, str(trail.status)).inc()
        metrics.duration.labels(trail.path).observe(state.clock.monotonic_s() - began_s)
        if trail.first_content_s is not None:
            metrics.ttft.labels(trail.path).observe(trail.first_content_s - began_s)


class AsgiReply:
    """The way back to the client, over ASGI.

    Args:
        send: the server's.
        request_id: ours.
        client_id: the client's own request id, sent back as it came, or None.
        write_s: a client that takes nothing for so long is treated as gone.
    """

    def __init__(
        self, send: Send, request_id: RequestId, client_id: bytes | None, write_s: float
    ) -> None:
        self.started = False
        self._send = send
        self._id = client_id or request_id.encode()
        self._write_s = write_s

    async def start(self, status: int, headers: Headers) -> None:
        """Sends status and headers."""
        self.started = True
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        await self._put(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [*raw, (b"x-request-id", self._id)],
            }
        )

    async def send(self, data: bytes, *, last: bool = False) -> None:
        """Sends a part of the body; an empty part only if it is the last."""
        if data or last:
            await self._put({"type": "http.response.body", "body": data, "more_body": not last})

    async def _put(self, message: MutableMapping[str, Any]) -> None:
        try:
            async with asyncio.timeout(self._write_s):
                await self._send(message)
        except (TimeoutError, OSError) as error:
            raise ClientGone from error


async def _read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole body.

    Raises:
        BodyTooLarge: more than ``limit`` bytes, announced or sent.
        ClientGone: it broke off, or took too long.
    """
    too_large = BodyTooLarge(f"The body is larger than {limit} bytes, the limit of this router.")
    announced = _header(scope, b"content-length")
    if announced is not None and announced.isdigit() and int(announced) > limit:
        if _header(scope, b"expect") is None:
            await _discard(receive)
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                body += message.get("body", b"")
                if len(body) > limit:
                    break
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError as error:
        raise ClientGone from error
    if message.get("more_body", False):
        await _discard(receive)
    raise too_large


async def _discard(receive: Receive) -> None:
    """Takes in the rest of a body, within bounds. Closing a connection with unread data resets
    it, and a client that is still sending would see that instead of the answer."""
    left = _DISCARD_BYTES
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_S):
            while left > 0:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                if not message.get("more_body", False):
                    return
                left -= len(message.get("body", b""))


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _header(scope: Scope, name: bytes) -> bytes | None:
    """The header's value if it is there, sound and at most 200 bytes long."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value) if len(value) <= 200 and value.isascii() else None
    return None
