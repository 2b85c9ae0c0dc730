"""One connection over a transport in memory: its clocks, its bounds, and any bytes at all."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from router.wire import ClientGone, Exchange, Handler, HttpServer, WireLimits
from router.wire.connection import Connection
from router.wire.exchange import DISCARD_S
from tests.unit.router.wire.wires import LONG_S, MemoryTransport, Seen, echo, post, watched


class _Wire:
    """A connection, the network of which the test plays, and the clock that it reads."""

    def __init__(self, handler: Handler = echo, limits: WireLimits | None = None) -> None:
        self.now_s = 1000.0
        self.server = HttpServer({("POST", "/"): handler}, None, limits, now=lambda: self.now_s)
        self.connection = Connection(self.server)
        self.transport = MemoryTransport(self.connection)
        self.connection.connection_made(self.transport)

    @property
    def written(self) -> bytes:
        return bytes(self.transport.written)

    async def send(self, data: bytes) -> None:
        self.connection.data_received(data)
        await _turns()

    async def pass_time(self, seconds: float) -> None:
        """Second by second, as the server's timer looks."""
        while seconds > 0:
            self.now_s += min(seconds, 1.0)
            seconds -= 1.0
            self.server.look()
        await _turns()

    async def end(self) -> None:
        """The client leaves, and everything with it."""
        self.transport.unsent = 0
        self.transport.abort()
        await _turns()
        assert self.server.open_requests == self.server.open_connections == 0


async def _turns(count: int = 8) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_slow_head() -> None:
    """A head must be whole in time, counted from its first byte however the rest trickles."""
    wire = _Wire(limits=WireLimits(head_s=10, idle_s=75))
    await wire.pass_time(50)
    assert not wire.transport.closed
    for byte in post()[:9]:
        await wire.send(bytes([byte]))
        await wire.pass_time(1)
    assert wire.written == b""
    await wire.pass_time(2)
    assert wire.written.startswith(b"HTTP/1.1 408 ")
    assert wire.transport.ended
    await wire.end()


async def test_a_slow_second_head() -> None:
    """The clock of a head starts anew with each request, and not before its first byte."""
    wire = _Wire(limits=WireLimits(head_s=10))
    await wire.send(post(b"one"))
    await wire.pass_time(20)
    await wire.send(post()[:5])
    await wire.pass_time(9)
    assert wire.written.count(b"HTTP/1.1") == 1
    await wire.send(post()[5:])
    await wire.pass_time(9)
    assert wire.written.count(b"HTTP/1.1 200 OK") == 2
    await wire.end()


async def test_a_head_behind_a_request() -> None:
    """While a request is served, a head that comes ahead has time: its reading may be paused."""
    go = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        await go.wait()
        exchange.reply(200, [], b"")

    wire = _Wire(slow, WireLimits(head_s=10))
    await wire.send(post() + post()[:9])
    await wire.pass_time(30)
    assert wire.written == b""
    go.set()
    await _turns()
    await wire.pass_time(9)
    assert wire.written.startswith(b"HTTP/1.1 200 ")
    assert b"408" not in wire.written
    await wire.pass_time(2)
    assert b"HTTP/1.1 408 " in wire.written
    await wire.end()


async def test_idling() -> None:
    """A connection on which nothing is asked closes; one that is served does not."""
    seen = Seen()

    async def never(_: Exchange) -> None:
        await asyncio.Event().wait()

    idle = _Wire(limits=WireLimits(idle_s=75))
    busy = _Wire(watched(seen, never), WireLimits(idle_s=75))
    await busy.send(post())
    for wire in (idle, busy):
        await wire.pass_time(74)
        assert not wire.transport.closed
        await wire.pass_time(2)
    assert idle.transport.closed
    assert not busy.transport.closed
    await busy.end()
    assert seen.cancelled.is_set()
    await idle.end()


async def test_blank_lines_are_no_request() -> None:
    """They do not keep a connection open."""
    wire = _Wire(limits=WireLimits(idle_s=75))
    for _ in range(80):
        await wire.send(b"\r\n")
        await wire.pass_time(1)
    assert wire.transport.closed
    await wire.end()


@pytest.mark.parametrize("waits_in", ["drained", "elsewhere", "answered"])
async def test_a_client_that_takes_nothing(waits_in: str) -> None:
    """It is cut after its time; a handler that waits for it is told, any other is cancelled."""
    told: list[str] = []

    async def handler(exchange: Exchange) -> None:
        if waits_in == "answered":
            exchange.reply(200, [], b"x")
            return
        exchange.start(200, [])
        exchange.write(b"x")
        try:
            await (exchange.drained() if waits_in == "drained" else asyncio.Event().wait())
        except ClientGone:
            told.append("gone")
            raise
        except asyncio.CancelledError:
            told.append("cancelled")
            assert exchange.gone
            raise

    wire = _Wire(handler, WireLimits(write_s=60))
    wire.transport.unsent = 100_000
    wire.connection.pause_writing()
    await wire.send(post())
    await wire.pass_time(30)
    # What is still written does not count as taken.
    wire.transport.unsent += 1000
    await wire.pass_time(29)
    assert not wire.transport.aborted
    await wire.pass_time(3)
    assert wire.transport.aborted
    assert told == {"drained": ["gone"], "elsewhere": ["cancelled"], "answered": []}[waits_in]
    await wire.end()


async def test_a_client_that_takes_little() -> None:
    """Slow is not gone: a byte now and then is enough."""

    async def handler(exchange: Exchange) -> None:
        exchange.start(200, [])
        exchange.write(b"x")
        await exchange.drained()
        exchange.end(b"y")

    wire = _Wire(handler, WireLimits(write_s=60))
    wire.transport.unsent = 100_000
    wire.connection.pause_writing()
    await wire.send(post())
    for _ in range(10):
        await wire.pass_time(50)
        wire.transport.unsent -= 1
    assert not wire.transport.closed
    wire.transport.unsent = 0
    wire.connection.resume_writing()
    await _turns()
    assert wire.written.endswith(b"y\r\n0\r\n\r\n")
    await wire.end()


async def test_lingering_ends() -> None:
    """After a refusal the client has a little time to read it, and no more."""
    wire = _Wire()
    await wire.send(b"garbage\r\n\r\n")
    assert wire.written.startswith(b"HTTP/1.1 400 ")
    assert wire.transport.ended
    await wire.send(b"more garbage")
    assert not wire.transport.closed
    await wire.pass_time(DISCARD_S + 2)
    assert wire.transport.aborted
    await wire.end()


async def test_refused_connections_do_not_stay() -> None:
    """Nor do those that are told that there are too many."""
    wire = _Wire(limits=WireLimits(connections=1))
    over = Connection(wire.server)
    transport = MemoryTransport(over)
    over.connection_made(transport)
    assert transport.written.startswith(b"HTTP/1.1 503 ")
    await wire.pass_time(DISCARD_S + 2)
    assert transport.aborted
    await wire.end()


async def test_reading_ahead_is_bounded() -> None:
    """What nobody asks for stops the reading; it goes on with the next request."""
    go = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        await go.wait()
        exchange.reply(200, [], b"%d" % len(await exchange.body(1 << 20, LONG_S)))

    wire = _Wire(slow)
    await wire.send(post() + post(b"x" * 200_000)[:-1])
    assert wire.transport.reading
    await wire.send(b"x" * 1)
    await wire.send(post(b"y" * 70_000))
    assert not wire.transport.reading
    go.set()
    await _turns(30)
    assert wire.transport.reading
    assert [wire.written.count(size) for size in (b"\r\n\r\n0", b"\r\n\r\n200000", b"70000")] == [
        1,
        1,
        1,
    ]
    await wire.end()


async def test_blank_lines_ahead() -> None:
    """What came ahead and was no request does not stop the reading for good."""
    go = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        await go.wait()
        exchange.reply(200, [], b"")

    wire = _Wire(slow)
    await wire.send(post())
    await wire.send(b"\r\n" * 40_000)
    assert not wire.transport.reading
    go.set()
    await _turns()
    assert wire.transport.reading
    await wire.end()


async def test_a_body_over_the_limit_is_not_kept() -> None:
    """It is thrown away as it comes."""
    seen: list[Exchange] = []

    async def limited(exchange: Exchange) -> None:
        seen.append(exchange)
        await exchange.body(1000, LONG_S)

    wire = _Wire(limited)
    await wire.send(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(50):
        await wire.send(b"%x\r\n%b\r\n" % (50_000, b"x" * 50_000))
    # Nothing outside can see what is kept.
    assert sum(len(part) for part in seen[0]._parts) < 100_000
    await wire.end()


async def test_one_write_each() -> None:
    """An answer is one write, the head of a stream goes with its first part, a part is one."""
    writes: list[bytes] = []

    async def handler(exchange: Exchange) -> None:
        if await exchange.body(10, LONG_S) == b"whole":
            exchange.reply(200, [("a", "b")], b"body")
            return
        exchange.start(200, [("a", "b")])
        exchange.write(b"one")
        exchange.write(b"")
        exchange.write(b"three")
        exchange.end()

    wire = _Wire(handler)
    wire.transport.write = writes.append  # type: ignore[method-assign, assignment]
    await wire.send(post(b"whole"))
    await wire.send(post(b"stream"))
    assert writes == [
        b"HTTP/1.1 200 OK\r\na: b\r\ncontent-length: 4\r\n\r\nbody",
        b"HTTP/1.1 200 OK\r\na: b\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n",
        b"5\r\nthree\r\n",
        b"0\r\n\r\n",
    ]
    await wire.end()


async def test_misuse() -> None:
    """An answer is started once, written in between, and ends once; a length is kept."""

    def start_twice(exchange: Exchange) -> None:
        exchange.start(200, [], length=3)
        exchange.start(200, [])

    calls: list[Callable[[Exchange], None]] = [
        lambda exchange: exchange.write(b"x"),
        lambda exchange: exchange.end(),
        start_twice,
        lambda exchange: exchange.write(b"four"),
    ]
    errors: list[type[Exception]] = []

    async def handler(exchange: Exchange) -> None:
        for call in calls:
            try:
                call(exchange)
            except (RuntimeError, ValueError) as error:
                errors.append(type(error))
        exchange.end(b"abc")
        with pytest.raises(RuntimeError):
            exchange.end()

    wire = _Wire(handler)
    await wire.send(post())
    assert errors == [RuntimeError, RuntimeError, RuntimeError, ValueError]
    assert wire.written.endswith(b"\r\n\r\nabc")
    await wire.end()


async def test_congestion_is_told() -> None:
    """When the client falls behind and when it has caught up; at once if it is behind already."""
    told: list[bool] = []
    listening = asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        exchange.on_congestion(told.append)
        listening.set()
        await asyncio.Event().wait()

    wire = _Wire(handler)
    wire.connection.pause_writing()
    await wire.send(post())
    assert listening.is_set()
    wire.connection.resume_writing()
    wire.connection.pause_writing()
    assert told == [True, False, True]
    await wire.end()


async def test_cancelled_before_it_began() -> None:
    """A client that is gone before its handler's first step leaves nothing behind."""
    ran: list[Exchange] = []

    async def handler(exchange: Exchange) -> None:
        ran.append(exchange)

    wire = _Wire(handler)
    wire.connection.data_received(post())
    wire.connection.eof_received()
    wire.transport.close()
    await _turns()
    assert ran == []
    await wire.end()


_PIECES = st.one_of(
    st.sampled_from(
        [
            post(b"hello"),
            post(b""),
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"5\r\nhello\r\n",
            b"0\r\n\r\n",
            b"0\r\nT: v\r\n\r\n",
            b"HEAD / HTTP/1.0\r\n\r\n",
            b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
            post(b"x", b"Connection: Upgrade", b"Upgrade: h2c"),
            post(b"x", b"Connection: close"),
            post(b"x", b"Expect: 100-continue"),
            b"\r\n",
            b"X: " + b"y" * 400,
            b"GET http:// HTTP/1.1\r\n\r\n",
            b"GET http://[::1/ HTTP/1.1\r\n\r\n",
            b"Content-Length: 99999999999999999999\r\n",
        ]
    ),
    st.binary(max_size=40),
)


@given(st.lists(_PIECES, max_size=8), st.integers(1, 200), st.booleans())
@example([b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"zz\r\n"], 1, False)
@settings(max_examples=400)
def test_any_bytes(pieces: list[bytes], step: int, eof: bool) -> None:
    """Whatever comes, in whatever segments: answers, a refusal or nothing, never a fault of ours;
    and nothing is left when the client has gone."""
    complaints: list[str] = []

    class Listening(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            complaints.append(record.getMessage())

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(str(context)))
        wire = _Wire(limits=WireLimits(header_bytes=600, headers=10))
        data = b"".join(pieces)
        for start in range(0, len(data), step):
            if wire.transport.closed:
                break
            await wire.send(data[start : start + step])
        if eof and not wire.transport.closed:
            wire.connection.eof_received()
            wire.transport.close()
            await _turns()
        written = wire.written.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")
        assert not written or written.startswith(b"HTTP/1.1 ")
        assert b"HTTP/1.1 500" not in written
        if wire.transport.ended or wire.transport.closed:
            # What was refused or closed stays so.
            before = wire.written
            if not wire.transport.closed:
                await wire.send(post(b"again"))
            assert wire.written == before
        await wire.pass_time(100)
        await wire.end()

    listening = Listening()
    logging.getLogger("baton.router.wire").addHandler(listening)
    try:
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            runner.run(main())
    finally:
        logging.getLogger("baton.router.wire").removeHandler(listening)
    assert complaints == []
