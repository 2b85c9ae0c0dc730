"""One connection to a worker over a transport in memory: any answer at all."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from baton.errors import PeerFault, WorkerTimeout
from router.wire import Upstream
from router.wire.leg import Answer, ChunkSink
from router.wire.link import Link, is_chunk
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


_PARTS = st.lists(
    st.one_of(
        st.sampled_from(
            [
                b"data: x\n\n",
                b"\r\n",
                b"0\r\n\r\n",
                b"5\r\nabcd",
                b"data: " + b"y" * 5000 + b"\n\n",
            ]
        ),
        st.binary(min_size=1, max_size=300),
    ),
    min_size=1,
    max_size=8,
)
_FRAMINGS = [b"%x\r\n%b\r\n", b"%X\r\n%b\r\n", b"0%x\r\n%b\r\n", b"%x;a=b\r\n%b\r\n"]


@given(
    _PARTS,
    st.lists(st.sampled_from(_FRAMINGS[:1] * 5 + _FRAMINGS), min_size=8, max_size=8),
    st.lists(st.integers(1, 40), max_size=6),
    st.lists(st.booleans(), min_size=1),
)
@settings(max_examples=400)
def test_chunks_as_they_came(
    parts: list[bytes], framings: list[bytes], cuts: list[int], wanted: list[bool]
) -> None:
    """However a body is chunked and cut into segments, and whichever of its chunks are taken as
    they came: what is taken is whole chunks, and all parts arrive once and in their order."""
    pieces = [
        framing % (len(part), part) for part, framing in zip(parts, framings, strict=False)
    ] + [b"0\r\n\r\n"]
    # Chunk by chunk, but for a few cuts, and a few that come together.
    segments = [STREAM_HEAD, *pieces]
    for at, cut in enumerate(cuts):
        where = cut % len(segments)
        if at % 2 and where + 1 < len(segments):
            segments[where : where + 2] = [segments[where] + segments[where + 1]]
        elif len(segments[where]) > 1:
            middle = 1 + cut % (len(segments[where]) - 1)
            segments[where : where + 1] = [segments[where][:middle], segments[where][middle:]]
    got: list[bytes] = []
    answers = itertools.cycle(wanted)

    class Taking(ChunkSink):
        def feed_chunk(self, chunk: bytes) -> bool:
            taken = next(answers)
            if taken:
                line, _, rest = chunk.partition(b"\r\n")
                assert int(line, 16) == len(rest) - 2
                assert rest.endswith(b"\r\n")
                got.append(rest[:-2])
            return taken

    async def main() -> None:
        loop = asyncio.get_running_loop()
        link = Link(lambda _: None)
        link.connection_made(MemoryTransport(link))
        leg = link.ask(worker_record(), loop)
        pump = leg.pump(got.append, idle_s=LONG_S, ends_s=loop.time() + LONG_S, chunk_sink=Taking())
        pumping = asyncio.create_task(pump)
        await asyncio.sleep(0)
        for segment in segments:
            link.data_received(segment)
        await pumping
        assert leg.ended
        assert link.finish()

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(main())
    assert b"".join(got) == b"".join(parts)


def test_what_a_chunk_is() -> None:
    """Its size must be right, its framing plain, and nothing else there."""
    for size in (1, 15, 16, 17, 255, 256, 4000, 4095, 4096, 5000, 70_000):
        part = b"x" * size
        whole = b"%x\r\n%b\r\n" % (size, part)
        assert is_chunk(whole)
        assert not is_chunk(b"%x\r\n%b\r\n" % (size + 1, part))
        assert not is_chunk(whole[:-1])
        assert not is_chunk(whole + b"\n")
        assert not is_chunk(whole + whole)
        assert not is_chunk(b"0" + whole)
        assert not is_chunk(b"%x;e\r\n%b\r\n" % (size, part))
    for other in (b"", b"\r\n", b"0\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"A\r\n0123456789\r\n"):
        assert not is_chunk(other)


def test_a_chunk_sink_that_fails() -> None:
    """It ends the pump, as a sink does; what comes meanwhile goes nowhere."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        link = Link(lambda _: None)
        link.connection_made(MemoryTransport(link))
        leg = link.ask(worker_record(), loop)
        link.data_received(STREAM_HEAD)
        got: list[bytes] = []

        class Failing(ChunkSink):
            def feed_chunk(self, chunk: bytes) -> bool:
                raise ValueError("no")

        pump = leg.pump(got.append, idle_s=9, ends_s=loop.time() + 9, chunk_sink=Failing())
        pumping = asyncio.create_task(pump)
        await asyncio.sleep(0)
        link.data_received(chunked([b"one"]))
        link.data_received(chunked([b"two"]))
        link.data_received(chunked([b"three"]))
        with pytest.raises(ValueError, match="no"):
            await pumping
        assert got == [b"one"]
        assert not link.finish()

    run_virtual(main())


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
