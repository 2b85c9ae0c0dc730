"""One connection to a worker.

One that ends anywhere but after a whole answer is a failure of the worker, and is never used again;
neither is one over which came what nobody asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Final, cast

import httptools

from baton.errors import WorkerFailed
from baton.types import WorkerRecord
from router.wire.leg import Leg

_HEAD_BYTES = 64 * 1024
"""The most that an answer's head may have, with 1xx answers before it; or its trailers."""
_SMALL_BYTES = 64 * 1024
"""Bodies up to here are joined with their head; copying larger ones costs more than it saves."""


def _size_line(length: int) -> bytes | None:
    """How a chunk of so many bytes begins, its framing counted; None if there is no such chunk."""
    for digits in range(1, 9):
        size = length - digits - 4
        if size > 0 and len(b"%x" % size) == digits:
            return b"%x\r\n" % size
    return None


_TABLED_BYTES: Final = 4096
_SIZE_LINES: Final = [_size_line(length) for length in range(_TABLED_BYTES)]


class Link(asyncio.Protocol):
    """One connection. The loop calls the protocol's methods, the parser the ``on_...`` ones.

    Args:
        lost: told when it is closed, by whichever side.

    Attributes:
        leg: the answer that is being read, if any.
        idle_since_s: since when it waits in the pool, on the loop's clock.
    """

    def __init__(self, lost: Callable[[Link], None]) -> None:
        self.idle_since_s = 0.0
        self._lost = lost
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self.leg: Leg | None = None
        self._paused = False
        self._framing_bytes = 0  # since the last byte of a body
        self._chunk_over = False  # what the parser saw last is the end of a chunk
        self._between_chunks = False  # and nothing came after it
        self._interim = False
        self._measured = False  # the head says where the body ends
        self._reusable = False  # both sides keep the connection after this answer
        self._dirty = False  # more came than was asked for

    @property
    def usable(self) -> bool:
        """Whether a request can be sent over it."""
        transport = self._transport
        return transport is not None and not transport.is_closing() and not self._dirty

    def ask(self, worker: WorkerRecord, loop: asyncio.AbstractEventLoop) -> Leg:
        """Begins a request; ``send`` follows."""
        self._framing_bytes = 0
        self._chunk_over = self._between_chunks = False
        leg = self.leg = Leg(self, worker, loop)
        return leg

    def send(self, head: bytes, body: bytes) -> None:
        """Writes the request in one go."""
        assert self._transport is not None
        if len(body) <= _SMALL_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))

    def finish(self) -> bool:
        """The leg is over; True if the connection can serve another, else it is closed now."""
        leg, self.leg = self.leg, None
        transport = self._transport
        if (
            leg is not None
            and leg.ended
            and self.usable
            and self._reusable
            and transport is not None
            and transport.get_write_buffer_size() == 0
        ):
            self.pause(False)
            return True
        self.abort()
        return False

    def pause(self, paused: bool) -> None:
        """Stops and starts reading."""
        transport = self._transport
        if paused is self._paused or transport is None or transport.is_closing():
            return
        self._paused = paused
        if paused:
            transport.pause_reading()
        else:
            transport.resume_reading()

    def abort(self) -> None:
        """Closes at once: the worker sees a client that left, and stops working for it."""
        if self._transport is not None:
            self._transport.abort()

    # The transport's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The loop's: connected."""
        # uvloop's transports are not of asyncio's class.
        self._transport = cast(asyncio.Transport, transport)
        connected = transport.get_extra_info("socket")
        if connected is not None:
            with contextlib.suppress(OSError):
                connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._parser = httptools.HttpResponseParser(self)

    def connection_lost(self, error: Exception | None) -> None:
        """The loop's: closed, by whichever side."""
        self._transport = None
        leg = self.leg
        if leg is not None and not leg.ended:
            if error is None and leg.status and not self._measured:
                # A body without a length lasts as long as the connection.
                leg.ended = True
                leg.deliver()
            else:
                leg.lost("ConnectionClosed" if error is None else type(error).__name__)
        self._parser = None
        self._lost(self)

    def data_received(self, data: bytes) -> None:
        """The loop's: some bytes."""
        leg, parser = self.leg, self._parser
        if self._between_chunks:
            # Nearly all of a stream comes like this; the parser need not know, and stays where it
            # is: between two chunks.
            if leg is not None and is_chunk(data) and leg.pass_chunk(data):
                return
            self._between_chunks = False
        if leg is None or leg.ended or parser is None:
            # Nobody asked for this.
            self._dirty = True
            self.abort()
            return
        failure: Exception | None = None
        self._framing_bytes += len(data)
        try:
            parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            # A fault of ours, for who waits to raise.
            failure = error
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            failure = WorkerFailed(f"worker {leg.worker.id} sent what is not HTTP")
        if self._framing_bytes > _HEAD_BYTES and not leg.ended:
            failure = WorkerFailed(f"worker {leg.worker.id} sent too large a head")
        leg.deliver()
        if leg.takes_chunks:
            # What follows a chunk and ends a line would be the next one's beginning.
            self._between_chunks = self._chunk_over and data.endswith(b"\r\n")
        if failure is not None:
            self._dirty = True
            leg.fail(failure)
            self.abort()

    # The parser's side.

    def on_message_begin(self) -> None:
        """The parser's: the first byte of a head."""
        leg = self.leg
        if leg is not None and leg.ended:
            self._dirty = True
            return
        self._measured = self._interim = self._reusable = False
        if leg is not None:
            leg.headers = []

    def on_header(self, name: bytes, value: bytes | None) -> None:
        """The parser's: a header, or a trailer; one without a value has None, says the parser."""
        leg = self.leg
        if leg is None or leg.status or self._dirty:
            return
        name, value = name.lower(), value or b""
        leg.headers.append((name, value))
        if name == b"content-type":
            leg.content_type = value.decode("latin-1")
        elif name == b"content-length":
            self._measured = True
        elif name == b"transfer-encoding":
            self._measured = value.lower().endswith(b"chunked")

    def on_headers_complete(self) -> None:
        """The parser's: the head is whole."""
        leg, parser = self.leg, self._parser
        if leg is None or parser is None or self._dirty:
            return
        status = parser.get_status_code()
        if status < 200:
            self._interim = True
            return
        if status in (204, 304):
            self._measured = True
        leg.status = status

    def on_body(self, part: bytes) -> None:
        """The parser's: a part of the body."""
        self._framing_bytes = 0
        if self.leg is not None and not self._dirty:
            self.leg.feed(part)

    def on_chunk_header(self) -> None:
        """The parser's: the size of a chunk, the last one's too."""
        self._chunk_over = False

    def on_chunk_complete(self) -> None:
        """The parser's: a chunk is whole, with the end of its line."""
        self._chunk_over = True

    def on_message_complete(self) -> None:
        """The parser's: the body is whole."""
        self._chunk_over = False
        if self._interim:
            self._interim = False
        elif self.leg is not None and self._parser is not None and not self._dirty:
            self.leg.ended = True
            # Known only now: the parser forgets it with the message.
            self._reusable = self._measured and self._parser.should_keep_alive()


def is_chunk(data: bytes) -> bool:
    """Whether these bytes are one whole chunk of a body and nothing else.

    Only as servers write it: without extensions, leading zeros and capital digits. The others are
    left to the parser.
    """
    length = len(data)
    line = _SIZE_LINES[length] if length < _TABLED_BYTES else _size_line(length)
    return line is not None and data.startswith(line) and data.endswith(b"\r\n")
