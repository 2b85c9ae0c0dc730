"""One request and its answer, as a handler sees them.

The handler's writes go into the transport at once and synchronously; back-pressure is told of
(``congested``, ``drained``, ``on_congestion``), never waited for unseen. When the client leaves,
the handler's task is cancelled with ``gone`` set.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from baton.errors import BodyTooLarge
from router.wire.heads import CONTINUE, LAST_CHUNK, Headers, header_lines, status_line

if TYPE_CHECKING:
    from router.wire.connection import Connection

DISCARD_BYTES = 64 * 1024 * 1024
DISCARD_S = 5.0
"""What is taken in, and thrown away, of a body over the limit before the connection is closed:
closing it with unread data resets it, and a client that is still sending would see that instead
of the answer."""


class ClientGone(Exception):
    """The client closed its connection, or was cut for its slowness; there is nobody to answer."""


class Exchange:
    """One request and its answer. Made by the server.

    Attributes:
        method: ``POST`` and so on.
        path: as it came, without the query; nothing decoded.
        query: what follows the question mark.
        http_version: ``1.0`` or ``1.1``.
        headers: names in lower case.
        client: the peer's address.
        head_s: when the head was whole, on the server's clock.
        gone: the client left before its answer was whole.
        started: ``start`` or ``reply`` was called.
        ended: the answer is written to its end.
        keep_alive: whether the connection goes on after this; a handler may set it to False before
            it starts its answer.
    """

    __slots__ = (
        "_chunked", "_congestion", "_connection", "_drain", "_has_body", "_held", "_keeps", "_left",
        "_over", "_parts", "_room", "_size", "_waiter", "client", "ended", "gone", "handler",
        "head_s", "headers", "http_version", "keep_alive", "method", "path", "query", "sent",
        "started", "task", "whole",
    )  # fmt: skip

    def __init__(
        self,
        connection: Connection,
        handler: Handler,
        method: str,
        path: str,
        query: bytes,
        http_version: str,
        headers: list[tuple[bytes, bytes]],
    ) -> None:
        self._connection = connection
        self.handler = handler
        self.method = method
        self.path = path
        self.query = query
        self.http_version = http_version
        self.headers = headers
        self.client = connection.client
        self.head_s = 0.0
        self.keep_alive = True
        self.gone = self.started = self.sent = self.ended = False
        self.task: asyncio.Task[None] | None = None
        # The request's body.
        self.whole = False
        self._parts: list[bytes] = []
        self._size = 0
        self._room = -1  # >= 0: who waits is woken when more than this has come
        self._keeps = True  # False while a body over the limit is thrown away
        self._waiter: asyncio.Future[bool] | None = None
        # The answer.
        self._held = b""
        self._chunked = False
        self._left = -1  # bytes of the body still to be written; -1: not known beforehand
        self._has_body = True  # False where the answer has none by HTTP's rules
        self._congestion: Callable[[bool], None] | None = None
        self._drain: asyncio.Future[None] | None = None
        self._over: asyncio.Future[None] | None = None

    def header(self, name: bytes) -> bytes | None:
        """The first header of this name, which is given in lower case."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    # The request's body.

    async def body(self, limit: int, timeout_s: float) -> bytes:
        """The whole body; to be asked for once.

        Raises:
            BodyTooLarge: more than ``limit`` bytes, announced or sent. The rest was thrown away
                within bounds; where those were reached, the answer closes the connection.
            ClientGone: the client took longer than ``timeout_s``.
        """
        if not self.whole:
            await self._receive(limit, timeout_s)
        if self._size > limit:
            raise _too_large(limit)
        parts = self._parts
        self._parts = []
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _receive(self, limit: int, timeout_s: float) -> None:
        expects = self.header(b"expect") is not None and self.http_version != "1.0"
        announced = self.header(b"content-length")
        if announced is not None and announced.isdigit() and int(announced) > limit:
            # Who waits to be told to go on has sent nothing that would have to be read.
            if not expects:
                await self._discard()
            raise _too_large(limit)
        if expects and not self.started and not self._size:
            self._connection.write(CONTINUE)
        self._room = limit
        if self._size <= limit and not await self._wait(timeout_s):
            raise ClientGone
        if not self.whole:
            await self._discard()
            raise _too_large(limit)

    async def _discard(self) -> None:
        self._keeps = False
        self._parts.clear()
        self._room = self._size + DISCARD_BYTES
        await self._wait(DISCARD_S)

    async def _wait(self, timeout_s: float) -> bool:
        """Until the body is whole or has outgrown its room; False if that took too long."""
        loop = asyncio.get_running_loop()
        waiter = self._waiter = loop.create_future()
        handle = loop.call_later(timeout_s, _settle, waiter, False)
        self._connection.want(True)
        try:
            came: bool = await waiter
            return came
        finally:
            handle.cancel()
            self._waiter = None
            self._connection.want(False)

    def feed(self, part: bytes) -> None:
        """The connection's: a part of the body."""
        self._size += len(part)
        if self._keeps:
            self._parts.append(part)
        if 0 <= self._room < self._size and self._waiter is not None:
            _settle(self._waiter, True)

    def feed_end(self) -> None:
        """The connection's: the body is whole."""
        self.whole = True
        if self._waiter is not None:
            _settle(self._waiter, True)

    # The answer.

    def start(self, status: int, headers: Headers, *, length: int | None = None) -> None:
        """Status and headers; held back and sent together with the first data.

        Args:
            length: bytes of the body to come; None if that is not known.

        Raises:
            ValueError: a header with CR, LF or NUL, or one that frames the body.
            RuntimeError: the answer has been started before.
        """
        if self.started:
            raise RuntimeError("the answer has been started already")
        head = status_line(status) + header_lines(headers)
        no_body = status in (204, 304) or status < 200
        self._has_body = not no_body and self.method != "HEAD"
        if length is not None:
            self._left = length
            if not no_body:
                head += b"content-length: %d\r\n" % length
        elif self.http_version == "1.0":
            # Such a client knows no chunks: the body ends with the connection.
            self.keep_alive = self.keep_alive and not self._has_body
        elif not no_body:
            self._chunked = self._has_body
            head += b"transfer-encoding: chunked\r\n"
        if not self.keep_alive or not self.whole or self._connection.stopping:
            self.keep_alive = False
            head += b"connection: close\r\n\r\n"
        elif self.http_version == "1.0":
            head += b"connection: keep-alive\r\n\r\n"
        else:
            head += b"\r\n"
        self._held = head
        self.started = True

    def write(self, data: bytes) -> None:
        """A part of the body, into the transport at once; never blocks, see ``congested``.

        Raises:
            ClientGone: the client has left.
            ValueError: more than the length announced.
            RuntimeError: outside of start and end.
        """
        if self.gone:
            raise ClientGone
        if self.ended or not self.started:
            raise RuntimeError("the answer has not been started, or has ended")
        if not data or not self._has_body:
            return
        if self._left >= 0:
            if len(data) > self._left:
                raise ValueError("more than the length announced")
            self._left -= len(data)
        if self._held:
            if self._chunked:
                data = b"%b%x\r\n%b\r\n" % (self._held, len(data), data)
            else:
                data = self._held + data
            self._held = b""
            self.sent = True
        elif self._chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        self._connection.write(data)

    def writer(self) -> Callable[[bytes], None]:
        """What writes parts of a body of many, in fewer steps than ``write``; raises like it. To be
        asked for once the first part has been written."""
        return self._write_as_chunk if self.takes_chunks else self.write

    def _write_as_chunk(self, data: bytes) -> None:
        self.write_chunk(b"%x\r\n%b\r\n" % (len(data), data))

    @property
    def takes_chunks(self) -> bool:
        """Whether ``write_chunk`` may be used for the parts after the first."""
        return self._chunked and not self._held and not self.ended

    def write_chunk(self, chunk: bytes) -> None:
        """A part of the body that bears HTTP's framing already; otherwise like ``writer``."""
        if self.gone:
            raise ClientGone
        self._connection.write(chunk)

    def end(self, data: bytes = b"") -> None:
        """The last part of the body, and the end of the answer; raises like ``write``. An answer
        shorter than announced cuts the connection, so that the client cannot take it for whole."""
        if self.gone:
            raise ClientGone
        if self.ended or not self.started:
            raise RuntimeError("the answer has not been started, or has ended")
        if not self._has_body:
            data = b""
        elif self._left >= 0 and self._left != len(data):
            self.cut()
            raise ValueError("the answer has not the length announced")
        if self._chunked:
            size = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
            data = b"%b%b%b" % (self._held, size, LAST_CHUNK)
        elif self._held:
            data = self._held + data
        self._held = b""
        self.sent = True
        if data:
            self._connection.write(data)
        self._finish()

    def reply(self, status: int, headers: Headers, body: bytes) -> None:
        """A whole answer, in one write; raises like ``start`` and ``write``."""
        self.start(status, headers, length=len(body))
        self.end(body)

    def fail(self, status: int, body: bytes) -> None:
        """A JSON error in place of an answer of which nothing has been sent yet; else the
        connection is cut, so that the client cannot take what it has for whole."""
        if self.gone or self.ended:
            return
        if self.sent:
            self.cut()
            return
        self.started = self._chunked = False
        self._left = -1
        self.reply(status, [("content-type", "application/json")], body)

    def cut(self) -> None:
        """Closes the connection at once; what was written may be lost."""
        self._finish_quietly()
        self._connection.abort()

    def _finish(self) -> None:
        self._finish_quietly()
        self._connection.answered(self)

    def _finish_quietly(self) -> None:
        self.ended = True
        if self._over is not None:
            _settle(self._over, None)

    # Back-pressure.

    @property
    def congested(self) -> bool:
        """Whether more has been written than the client has taken lately."""
        return self._connection.congested

    async def drained(self) -> None:
        """Returns when the client has taken what was written, but for a little.

        Raises:
            ClientGone: it took nothing for the time that the limits give it.
        """
        if self.gone:
            raise ClientGone
        if not self._connection.congested:
            return
        drain = self._drain = asyncio.get_running_loop().create_future()
        try:
            await drain
        finally:
            self._drain = None

    def on_congestion(self, callback: Callable[[bool], None] | None) -> None:
        """Calls ``callback(True)`` when the client falls behind, now if it is so already, and
        ``callback(False)`` when it has caught up."""
        self._congestion = callback
        if callback is not None and self._connection.congested:
            callback(True)

    def feed_congestion(self, congested: bool) -> None:
        """The connection's: the client fell behind or caught up."""
        if self._congestion is not None:
            self._congestion(congested)
        if not congested and self._drain is not None:
            _settle(self._drain, None)

    # The client leaves.

    async def over(self) -> None:
        """Returns when the answer has ended or the client is gone."""
        if self.ended or self.gone:
            return
        if self._over is None:
            self._over = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._over)

    def leave(self, *, stalled: bool = False) -> None:
        """The connection's: the client is gone; the task hears of it, unless it has answered.

        A task that waits for a client that has ``stalled`` is told so instead of cancelled.
        """
        if self.gone or self.ended:
            return
        self.gone = True
        if self._over is not None:
            _settle(self._over, None)
        if stalled and self._drain is not None and not self._drain.done():
            self._drain.set_exception(ClientGone())
        elif self.task is not None:
            self.task.cancel()


Handler = Callable[[Exchange], Awaitable[None]]
"""Answers one request; cancelled when the client leaves."""


def _settle(waiter: asyncio.Future[Any], result: Any) -> None:
    if not waiter.done():
        waiter.set_result(result)


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body is larger than {limit} bytes, the limit of this router.")
