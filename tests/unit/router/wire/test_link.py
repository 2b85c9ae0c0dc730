"""One connection to a worker over a transport in memory: any answer at all."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from baton.errors import PeerFault, WorkerTimeout
from router.wire import Upstream
from router.wire.leg import Answer
from router.wire.link import Link
from tests.fakes.virtual_loop import run_virtual
from tests.fakes.worker_records import worker_record
from tests.unit.router.wire.wires import (
    LONG_S,
    STREAM_HEAD,
    MemoryTransport,
    answer,
    chunked,
)

_PIECES = st.one_of(
    st.sampled_from(
        [
            answer(b"hello"),
            answer(b""),
            STREAM_HEAD,
            chunked([b"data: x\n\n"]),
            b"0\r\n\r\n",
            b"0\r\nT: v\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\n",
            b"HTTP/1.1 204 No Content\r\n\r\n",
            b"HTTP/1.1 101 S\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
            b"HTTP/1.1 999 ?\r\nContent-Length: -1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
            answer(b"x", b"Connection: close"),
            b"\r\n",
        ]
    ),
    st.binary(max_size=40),
)


@given(st.lists(_PIECES, max_size=6), st.integers(1, 100), st.booleans(), st.booleans())
@example([STREAM_HEAD, b"zz\r\n"], 1, True, False)
@settings(max_examples=400)
def test_any_bytes(pieces: list[bytes], step: int, pumped: bool, reset: bool) -> None:
    """Whatever a worker says, in whatever segments: an answer or a peer's fault. A connection is
    kept only if what was said is one whole answer."""
    data = b"".join(pieces)
    complaints: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(str(context)))
        lost: list[Link] = []
        link = Link(lost.append)
        transport = MemoryTransport(link)
        link.connection_made(transport)
        leg = link.ask(worker_record(), loop)
        link.send(b"POST / HTTP/1.1\r\n\r\n", b"")
        got: list[bytes] = []

        async def read() -> Answer:
            if pumped:
                await leg.pump(got.append, idle_s=LONG_S, ends_s=loop.time() + LONG_S)
                return Answer(leg.status, leg.content_type, b"".join(got))
            return await leg.whole(timeout_s=LONG_S)

        reading = asyncio.create_task(read())
        await asyncio.sleep(0)
        for start in range(0, len(data), step):
            if transport.closed:
                break
            link.data_received(data[start : start + step])
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        if not reading.done():
            assert not leg.ended
            link.connection_lost(ConnectionResetError() if reset else None)
            transport.closed = transport.aborted = True
        try:
            said = await reading
        except PeerFault:
            said = None
        if link.finish():
            assert said is not None
            assert said.status == leg.status >= 200
            assert not transport.closed
        else:
            await asyncio.sleep(0)
            assert transport.closed
            assert lost == [link]

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(main())
    assert complaints == []


async def test_reading_is_bounded() -> None:
    """What nobody reads stops the reading from the worker; reading it starts it again. Nothing of
    this concerns the connection's next user."""
    link = Link(lambda _: None)
    transport = MemoryTransport(link)
    link.connection_made(transport)
    loop = asyncio.get_running_loop()
    leg = link.ask(worker_record(), loop)
    link.data_received(STREAM_HEAD)
    part = b"x" * 100_000
    for _ in range(3):
        assert transport.reading
        link.data_received(chunked([part]))
    assert not transport.reading
    assert await leg.read(timeout_s=LONG_S) == part * 3
    assert transport.reading
    link.data_received(b"0\r\n\r\n")
    leg.pause()
    assert not transport.reading
    assert link.finish()
    assert transport.reading
    leg.pause()
    assert transport.reading


async def test_closing_connections_are_not_handed_out() -> None:
    """Neither those that are closing nor those that waited too long."""
    upstream = Upstream("token", connect_s=LONG_S, idle_s=4.0)
    origin = upstream.origin("http://127.0.0.1:1")
    links = [Link(origin.lost) for _ in range(3)]
    transports = [MemoryTransport(link) for link in links]
    for link, transport, since_s in zip(links, transports, (95.9, 99.0, 99.5), strict=True):
        link.connection_made(transport)
        link.idle_since_s = since_s
        origin.links.add(link)
        origin.idle.append(link)
    transports[2].close()
    assert upstream.take(origin, 100.0) is links[1]
    assert upstream.take(origin, 100.0) is None
    assert transports[0].closed
    await upstream.close()


def test_a_late_wait_does_not_end_the_next() -> None:
    """A deadline belongs to its own wait."""

    async def main() -> None:
        link = Link(lambda _: None)
        link.connection_made(MemoryTransport(link))
        loop = asyncio.get_running_loop()
        leg = link.ask(worker_record(), loop)
        first = asyncio.create_task(leg.wait(10.0))
        await asyncio.sleep(5)
        link.data_received(STREAM_HEAD)
        assert await first
        second = asyncio.create_task(leg.wait(20.0))
        await asyncio.sleep(10)
        assert not second.done()
        assert not await second
        assert loop.time() == 20.0
        link.abort()

    run_virtual(main())


def test_the_deadlines_of_a_pump() -> None:
    """Silence is counted from the last bytes, not while the leg is paused; the end is the end."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for ends_s, paused, late_s in ((1000.0, False, 14.0), (1000.0, True, 26.0), (20, True, 20)):
            link = Link(lambda _: None)
            link.connection_made(MemoryTransport(link))
            leg = link.ask(worker_record(), loop)
            zero_s = loop.time()
            link.data_received(STREAM_HEAD)
            pump = leg.pump(lambda _: None, idle_s=10, ends_s=zero_s + ends_s)
            pumping = asyncio.create_task(pump)
            await asyncio.sleep(4)
            link.data_received(chunked([b"x"]))
            if paused:
                await asyncio.sleep(2)
                leg.pause()
                await asyncio.sleep(10)
                leg.resume()
            with pytest.raises(WorkerTimeout):
                await pumping
            assert loop.time() - zero_s == pytest.approx(late_s, abs=0.1)
            link.abort()

    run_virtual(main())
