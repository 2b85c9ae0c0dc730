"""One client's connection: requests out of bytes, one served at a time, the others in their order.

Reading goes on while a request is served, so that a client that leaves is noticed at once; what it
sends ahead meanwhile is bounded. What is not HTTP is answered with an error and the connection
closed, in a way that lets the client read the answer.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import socket
from typing import TYPE_CHECKING, cast

import httptools

from router.wire import heads
from router.wire.exchange import DISCARD_BYTES, DISCARD_S, ClientGone, Exchange

if TYPE_CHECKING:
    from router.wire.server import HttpServer

log = logging.getLogger("baton.router.wire")

_AHEAD_BYTES = 64 * 1024
"""What a client may send beyond what is wanted of it before reading from it stops."""
_AHEAD_REQUESTS = 32
"""Requests waiting behind the one that is served. Those beyond are not served: the connection
closes after the last of these, and the client knows by that to send them again."""


# What is being read. Not an enum: this is looked at for each header, and its members cost more
# than constants do.
_BETWEEN, _HEAD, _BODY = range(3)


class Connection(asyncio.Protocol):
    """One connection. The loop calls the protocol's methods, the parser the ``on_...`` ones.

    Args:
        server: whose limits, routes and clock these are.
    """

    def __init__(self, server: HttpServer) -> None:
        self.client: str | None = None
        self.congested = False
        self._server = server
        self._limits = server.limits
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpRequestParser | None = None
        # What is being read.
        self._phase = _BETWEEN
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_bytes = 0
        self._segment_bytes = 0
        self._framing_bytes = 0  # since the last byte of a body
        self._receiving: Exchange | None = None
        self._replaying = False
        self._deaf = False  # no further request is read from this connection
        self._refusal = b""  # to be said when all before it is answered
        # What is being served.
        self._current: Exchange | None = None
        self._queue: collections.deque[Exchange] = collections.deque()
        self._wanted = False  # the handler waits for the body
        self._ahead = 0
        self._paused = False
        # Times, on the server's clock.
        self._since_s = server.now()  # of the last answer's end, or of the head's first byte
        self._closing = False
        self._closing_s = 0.0
        self._unsent = 0
        self._unsent_s = 0.0

    @property
    def stopping(self) -> bool:
        """Whether the server takes no further requests."""
        return self._server.stopping

    @property
    def busy(self) -> bool:
        """Whether a request is being served."""
        return self._current is not None

    # The transport's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The loop's: connected."""
        # uvloop's transports are not of asyncio's class.
        self._transport = cast(asyncio.Transport, transport)
        connected = transport.get_extra_info("socket")
        if connected is not None:
            # Or each small write may wait 40 ms for an acknowledgement.
            with contextlib.suppress(OSError):
                connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer = transport.get_extra_info("peername")
        self.client = peer[0] if isinstance(peer, tuple) else None
        if not self._server.joined(self):
            self._deaf = True
            self._say(heads.FULL)
            return
        self._parser = httptools.HttpRequestParser(self)

    def connection_lost(self, _: Exception | None) -> None:
        """The loop's: closed, by whichever side."""
        self._transport = self._parser = None
        self._closing = self._deaf = True
        self._queue.clear()
        self._server.left(self)
        if self._current is not None:
            self._current.leave()

    def eof_received(self) -> bool:
        """A client that closes its side has left: whether it still reads cannot be told."""
        if self._current is not None:
            self._current.leave()
        return False

    def pause_writing(self) -> None:
        """The transport's: the client is behind."""
        self.congested = True
        if self._current is not None:
            self._current.feed_congestion(True)

    def resume_writing(self) -> None:
        """The transport's: the client has caught up."""
        self.congested = False
        if self._current is not None:
            self._current.feed_congestion(False)

    def data_received(self, data: bytes) -> None:
        """The loop's: some bytes."""
        if self._deaf:
            self._throw_away(len(data))
            return
        if self._current is not None and not self._wanted:
            self._ahead += len(data)
            if self._ahead > _AHEAD_BYTES:
                self._pause(True)
        self._segment_bytes = len(data)
        self._framing_bytes += len(data)
        if not self._feed(data):
            return
        most = self._limits.header_bytes
        if self._phase == _HEAD:
            self._head_bytes += len(data)
            if self._head_bytes > most:
                self._refuse(heads.HEAD_TOO_LARGE)
        elif self._phase == _BODY and self._framing_bytes > most:
            # Chunk extensions or trailers without an end.
            self._refuse(heads.HEAD_TOO_LARGE)

    def _feed(self, data: bytes) -> bool:
        """Has the parser read it; returns whether more is listened to."""
        assert self._parser is not None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserCallbackError:
            log.exception("reading from %s failed", self.client)
            self.abort()
        except httptools.HttpParserError:
            self._refuse(heads.NOT_HTTP)
        return not self._deaf

    def _ignore_upgrade(self, rest: bytes) -> None:
        """A client offered another protocol and gets HTTP/1.1, as the standard allows. The parser
        has skipped the body (Java's own client offers HTTP/2 with every POST), so that another one
        reads it, after a head that says nothing but how the body is framed."""
        exchange = self._receiving
        if exchange is None or self._deaf:
            return
        framing = b"".join(
            b"%b: %b\r\n" % (name, value)
            for name, value in exchange.headers
            if name in (b"content-length", b"transfer-encoding")
        )
        self._parser = httptools.HttpRequestParser(self)
        self._replaying = True
        self._feed(b"POST / HTTP/1.1\r\n" + framing + b"\r\n")
        self._replaying = False
        if rest and not self._deaf:
            self._feed(rest)

    # The parser's side.

    def on_message_begin(self) -> None:
        """The parser's: the first byte of a head."""
        if self._replaying:
            return
        self._phase = _HEAD
        self._url, self._headers, self._head_bytes = b"", [], 0
        self._since_s = self._server.now()

    def on_url(self, url: bytes) -> None:
        """The parser's: a part of the target."""
        if not self._replaying:
            self._url += url

    def on_header(self, name: bytes, value: bytes | None) -> None:
        """The parser's: a header, or a trailer; one without a value has None, says the parser."""
        if self._phase == _HEAD:
            self._headers.append((name.lower(), value or b""))

    def on_headers_complete(self) -> None:
        """The parser's: the head is whole."""
        if self._deaf or self._replaying or self._parser is None:
            return
        headers, limits = self._headers, self._limits
        if len(headers) > limits.headers or self._is_large(limits.header_bytes):
            self._refuse(heads.HEAD_TOO_LARGE)
            return
        version = self._parser.get_http_version()
        if version not in ("1.1", "1.0"):
            self._refuse(heads.VERSION)
            return
        if len(self._queue) >= _AHEAD_REQUESTS:
            self._queue[-1].keep_alive = False
            self._deaf = True
            return
        self._phase = _BODY
        self._framing_bytes = 0
        method = self._parser.get_method()
        exchange = self._server.exchange(self, method, self._url, version, headers)
        exchange.head_s = self._server.now()
        exchange.keep_alive = self._parser.should_keep_alive()
        self._receiving = exchange
        if self._current is None:
            self._begin(exchange)
        else:
            self._queue.append(exchange)

    def on_body(self, part: bytes) -> None:
        """The parser's: a part of the body."""
        self._framing_bytes = 0
        if self._receiving is not None:
            self._receiving.feed(part)

    def on_message_complete(self) -> None:
        """The parser's: the body is whole."""
        if self._deaf or self._parser is None or self._receiving is None:
            return
        if self._parser.should_upgrade():
            return
        receiving, self._receiving = self._receiving, None
        self._phase = _BETWEEN
        receiving.feed_end()

    def _is_large(self, most: int) -> bool:
        # The bytes that the head came in, with what may stand around it, are mostly few enough.
        if self._head_bytes + self._segment_bytes <= most:
            return False
        size = len(self._url) + sum(len(name) + len(value) + 4 for name, value in self._headers)
        return size > most

    # Serving.

    def _begin(self, exchange: Exchange) -> None:
        self._current = exchange
        self._ahead = 0
        self._pause(False)
        exchange.task = self._server.begin(self._serve(exchange))
        exchange.task.add_done_callback(self._served)

    async def _serve(self, exchange: Exchange) -> None:
        try:
            await exchange.handler(exchange)
        except ClientGone:
            exchange.cut()
        except Exception:
            log.exception("%s %s failed", exchange.method, exchange.path)
            exchange.fail(500, heads.FAILED)
        else:
            if not exchange.ended and not exchange.gone:
                log.error("%s %s was not answered", exchange.method, exchange.path)
                exchange.fail(500, heads.FAILED)

    def _served(self, task: asyncio.Task[None]) -> None:
        self._server.served(task)
        exchange, self._current = self._current, None
        if self._transport is None or self._closing:
            return
        if exchange is None or not exchange.ended:
            # Cancelled before it answered.
            self.abort()
        elif self._server.stopping:
            self.close()
        elif self._queue:
            self._begin(self._queue.popleft())
        elif self._refusal:
            self._say(self._refusal)
        else:
            self._since_s = self._server.now()
            self._pause(False)

    # What exchanges ask for.

    def write(self, data: bytes) -> None:
        """Into the transport, unless it is closing: then the handler hears of it in a moment."""
        transport = self._transport
        if transport is not None and not transport.is_closing():
            transport.write(data)

    def want(self, wanted: bool) -> None:
        """Whether the handler waits for the body."""
        self._wanted = wanted
        self._ahead = 0
        if wanted:
            self._pause(False)

    def answered(self, exchange: Exchange) -> None:
        """The answer is written to its end."""
        if not exchange.keep_alive or not exchange.whole:
            if exchange.whole:
                self.close()
            else:
                self._linger()

    def close(self) -> None:
        """Closes when what was written is sent."""
        self._closing = self._deaf = True
        self._closing_s = self._server.now()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Closes at once."""
        self._closing = self._deaf = True
        if self._transport is not None:
            self._transport.abort()

    def cut(self) -> None:
        """Closes at once, and ends what is served: there is nobody to answer any more."""
        if self._current is not None:
            self._current.leave()
        self.abort()

    # Refusing.

    def _refuse(self, refusal: bytes) -> None:
        """Answers what is not a request, when all before it is answered, and closes."""
        if self._deaf:
            return
        self._deaf = True
        broken, self._receiving = self._receiving, None
        current = self._current
        if broken is not None and broken is current:
            # Its body can never be whole.
            if current.sent or current.ended:
                self.abort()
                return
            current.leave()
            self._say(refusal)
            return
        if broken is not None:
            self._queue.remove(broken)
        if current is None:
            self._say(refusal)
        else:
            self._refusal = refusal

    def _say(self, refusal: bytes) -> None:
        self.write(refusal)
        self._linger()

    def _linger(self) -> None:
        """Ends our side and goes on reading for a little: closing with unread data would reset the
        connection before the client has read the answer."""
        self._closing = self._deaf = True
        self._closing_s = self._server.now()
        self._ahead = 0
        self._pause(False)
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if transport.can_write_eof():
            transport.write_eof()
        else:
            # TLS has no half-closed connections.
            transport.close()

    def _throw_away(self, count: int) -> None:
        self._ahead += count
        if self._ahead > DISCARD_BYTES:
            self.abort()

    def _pause(self, paused: bool) -> None:
        if paused is self._paused or self._transport is None or self._transport.is_closing():
            return
        self._paused = paused
        if paused:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    # The server's look at the clock.

    def look(self, now_s: float) -> None:
        """Ends what takes too long: heads, idling, closing, and clients that take nothing."""
        transport, limits = self._transport, self._limits
        if transport is None:
            return
        unsent = transport.get_write_buffer_size()
        before, self._unsent = self._unsent, unsent
        # A buffer that grows tells of the handler only, unless it is one that still has room.
        if not before or unsent < before or (unsent > before and not self.congested):
            self._unsent_s = now_s
        if unsent and now_s - self._unsent_s > limits.write_s:
            self._stalled()
        elif self._closing:
            if not unsent and now_s - self._closing_s > DISCARD_S:
                self.abort()
        elif self._current is None and not self._deaf:
            spent_s = now_s - self._since_s
            if self._phase == _HEAD:
                if spent_s > limits.head_s:
                    self._refuse(heads.HEAD_TOO_SLOW)
            elif spent_s > limits.idle_s:
                self.close()

    def _stalled(self) -> None:
        if self._current is not None:
            self._current.leave(stalled=True)
        self.abort()
