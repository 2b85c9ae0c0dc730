"""The client for workers over real sockets, on both loops: pooling, deadlines, faults, leaving."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from baton.errors import PeerFault, WorkerFailed, WorkerTimeout, WorkerUnreachable
from router.wire import Answer, Upstream
from tests.fakes.waiting import until
from tests.fakes.worker_records import worker_record
from tests.unit.router.wire.wires import (
    LONG_S,
    REQUEST_ID,
    STREAM_HEAD,
    Call,
    Worker,
    answer,
    asking,
    certified,
    chunked,
    on_both_loops,
    working,
)


async def _ask(
    upstream: Upstream, worker: Worker, body: bytes = b"{}", timeout_s: float = LONG_S
) -> Answer:
    return await upstream.ask(worker.record, "/v1", body, REQUEST_ID, timeout_s=timeout_s)


async def _serves(call: Call) -> None:
    while True:
        request = await call.request()
        await call.say(answer(request.body))


async def _hangs(call: Call) -> None:
    await call.request()
    await call.gone()


@on_both_loops
async def test_what_the_worker_sees() -> None:
    """Path, key, id, type, length, extra headers and the body, and nothing that asks for more."""
    heads: list[bytes] = []

    async def script(call: Call) -> None:
        while True:
            heads.append((await call.request()).head)
            await call.say(answer(b"[]", b"Content-Type: text/x", b"X-A: b"))

    async with working(script) as worker, asking() as upstream:
        async with upstream.open(
            worker.record,
            "/v1/a?b",
            b"{}",
            REQUEST_ID,
            timeout_s=LONG_S,
            headers=[("traceparent", "00-1")],
        ) as leg:
            assert (leg.worker, leg.status, leg.content_type) == (worker.record, 200, "text/x")
            assert (leg.header("X-A"), leg.header("x-b")) == ("b", None)
            assert await leg.whole(timeout_s=LONG_S) == Answer(200, "text/x", b"[]")
        got = await upstream.ask(
            worker.record, "/health", b"", REQUEST_ID, timeout_s=LONG_S, method="GET"
        )
        assert got.status == 200
        for headers in ([("host", "evil")], [("x-a", "b\r\nc: d")]):
            with pytest.raises(ValueError, match="header"):
                await upstream.ask(
                    worker.record, "/", b"", REQUEST_ID, timeout_s=LONG_S, headers=headers
                )
        with pytest.raises(ValueError, match="HEAD"):
            await upstream.ask(worker.record, "/", b"", REQUEST_ID, timeout_s=LONG_S, method="HEAD")
    host = worker.record.url.removeprefix("http://").encode()
    assert heads[0] == (
        b"POST /v1/a?b HTTP/1.1\r\nHost: %b\r\nAuthorization: Bearer token\r\n"
        b"Content-Type: application/json\r\nX-Request-Id: baton-1\r\nContent-Length: 2\r\n"
        b"traceparent: 00-1\r\n\r\n" % host
    )
    assert heads[1].startswith(b"GET /health HTTP/1.1\r\n")


@on_both_loops
async def test_connections_are_used_again() -> None:
    """One after the other over one connection; two at a time over two; all idle afterwards."""
    async with working(_serves) as worker, asking() as upstream:
        for _ in range(5):
            assert (await _ask(upstream, worker, b"abc")).body == b"abc"
        assert len(worker.calls) == 1
        await asyncio.gather(_ask(upstream, worker), _ask(upstream, worker))
        assert len(worker.calls) == 2
        assert upstream.idle == upstream.connections == 2


@on_both_loops
async def test_the_pool_is_bounded() -> None:
    """No more than the number given is kept idle, and none longer than the time given."""
    async with working(_serves) as worker, asking(most_idle=1, idle_s=0.05) as upstream:
        await asyncio.gather(*(_ask(upstream, worker) for _ in range(3)))
        await until(lambda: upstream.connections <= 1)
        await until(lambda: upstream.connections == 0, timeout_s=LONG_S)
        await until(lambda: worker.open_calls == 0)


@on_both_loops
async def test_bodies_of_all_kinds() -> None:
    """Known length, chunks with a trailer, up to the close, none; interim answers are skipped; a
    redirect is an answer like any other. A connection is kept only where the end was clean."""
    cases: list[tuple[bytes, bytes, int, int]] = [
        (answer(b"abc"), b"abc", 200, 1),
        (STREAM_HEAD + chunked([b"a", b"bc"]) + b"0\r\nX-T: v\r\n\r\n", b"abc", 200, 1),
        (b"HTTP/1.1 200 OK\r\n\r\nabc", b"abc", 200, 0),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nabc", b"abc", 200, 0),
        (answer(b"abc", b"Connection: close"), b"abc", 200, 0),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b"", 204, 1),
        (answer(b""), b"", 200, 1),
        (
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 H\r\nX: y\r\n\r\n" + answer(b"x"),
            b"x",
            200,
            1,
        ),
        (answer(b"go", b"Location: /elsewhere", status=b"307 R"), b"go", 307, 1),
        (answer(b"abc") + b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"abc", 200, 0),
        (answer(b"abc") + b"junk", b"abc", 200, 0),
    ]
    for said, body, status, kept in cases:
        for whole in (True, False):

            async def script(call: Call) -> None:
                await call.request()
                pieces = [said] if whole else [said[i : i + 1] for i in range(len(said))]  # noqa: B023
                await call.say(*pieces)
                if kept:  # noqa: B023
                    await call.gone()

            async with working(script) as worker, asking() as upstream:
                got = await _ask(upstream, worker)
                assert (got.status, got.body) == (status, body), said
                if whole or kept:
                    assert upstream.idle == kept, said


@on_both_loops
async def test_large_bodies_both_ways() -> None:
    """Much more than any buffer, there and back."""
    async with working(_serves) as worker, asking() as upstream:
        body = bytes(range(256)) * 40_000
        assert (await _ask(upstream, worker, body)).body == body
        assert (await _ask(upstream, worker, b"x")).body == b"x"
        assert len(worker.calls) == 1


@on_both_loops
async def test_a_connection_that_the_worker_closed() -> None:
    """It is not handed out again: the next request takes another, and is sent once."""

    async def script(call: Call) -> None:
        request = await call.request()
        await call.say(answer(request.body))

    async with working(script) as worker, asking() as upstream:
        for _ in range(3):
            await _ask(upstream, worker)
            await until(lambda: upstream.connections == upstream.idle == 0)
        assert len(worker.calls) == 3


@on_both_loops
async def test_a_connection_that_says_what_nobody_asked() -> None:
    """Such a connection is dropped."""
    go = asyncio.Event()

    async def script(call: Call) -> None:
        await call.request()
        await call.say(answer())
        await go.wait()
        await call.say(answer(b"for nobody"))
        await call.gone()

    async with working(script) as worker, asking() as upstream:
        await _ask(upstream, worker)
        assert upstream.idle == 1
        go.set()
        await until(lambda: upstream.connections == 0)


@on_both_loops
async def test_a_used_connection_that_dies() -> None:
    """When it breaks before a byte of the answer the request is not sent a second time: it may
    have been carried out."""
    requests = 0

    async def script(call: Call) -> None:
        nonlocal requests
        while True:
            await call.request()
            requests += 1
            if requests == 2:
                call.reset()
                return
            await call.say(answer())

    async with working(script) as worker, asking() as upstream:
        await _ask(upstream, worker)
        with pytest.raises(WorkerUnreachable, match="w-1 cannot be reached"):
            await _ask(upstream, worker)
        assert requests == 2
        await _ask(upstream, worker)
        assert (requests, len(worker.calls)) == (3, 2)


@on_both_loops
async def test_nobody_listens() -> None:
    """Refused connections and unknown names are unreachable workers."""
    async with working(_serves) as worker:
        pass
    async with asking() as upstream:
        for url in (worker.record.url, "http://no-such-host.invalid:1"):
            with pytest.raises(WorkerUnreachable, match="w-1 cannot be reached"):
                await upstream.ask(worker_record(url=url), "/", b"", REQUEST_ID, timeout_s=LONG_S)


@on_both_loops
async def test_no_connection_in_time() -> None:
    """Within ``connect_s`` the worker is unreachable; a deadline before that is a timeout."""

    async def never(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    loop = asyncio.get_running_loop()
    for connect_s, timeout_s, error in (
        (0.02, LONG_S, WorkerUnreachable),
        (LONG_S, 0.02, WorkerTimeout),
    ):
        async with working(_serves) as worker, asking(connect_s=connect_s) as upstream:
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(loop, "create_connection", never)
                with pytest.raises(error):
                    await _ask(upstream, worker, timeout_s=timeout_s)


@on_both_loops
async def test_silence() -> None:
    """A worker that does not answer, or stops in the middle, is late; the connection closes."""

    async def starts(call: Call) -> None:
        await call.request()
        await call.say(STREAM_HEAD + chunked([b"first"]))
        await call.gone()

    async with working(_hangs) as worker, asking() as upstream:
        with pytest.raises(WorkerTimeout, match=r"w-1 did not answer within 0[.]05 s"):
            await _ask(upstream, worker, timeout_s=0.05)
        await until(lambda: upstream.connections == worker.open_calls == 0)
    async with working(starts) as worker, asking() as upstream:
        with pytest.raises(WorkerTimeout, match=r"did not answer within 0[.]05 s"):
            await _ask(upstream, worker, timeout_s=0.05)
        async with upstream.open(worker.record, "/", b"", REQUEST_ID, timeout_s=LONG_S) as leg:
            assert await leg.read(timeout_s=LONG_S) == b"first"
            with pytest.raises(WorkerTimeout, match=r"did not send more within 0[.]05 s"):
                await leg.read(timeout_s=0.05)
        ends_s = asyncio.get_running_loop().time()
        for idle_s, more_s, match in (
            (0.05, LONG_S, r"did not send more within 0[.]05 s"),
            (LONG_S, 0.05, "did not end its answer in time"),
        ):
            async with upstream.open(worker.record, "/", b"", REQUEST_ID, timeout_s=LONG_S) as leg:
                got: list[bytes] = []
                ends_s = asyncio.get_running_loop().time() + more_s
                with pytest.raises(WorkerTimeout, match=match):
                    await leg.pump(got.append, idle_s=idle_s, ends_s=ends_s)
                assert got == [b"first"]
        await until(lambda: upstream.connections == worker.open_calls == 0)


@on_both_loops
async def test_a_pump() -> None:
    """Everything up to the end, in order, from before the call and after; then the connection is
    good for another."""

    async def script(call: Call) -> None:
        while True:
            await call.request()
            await call.say(STREAM_HEAD + chunked([b"0 "]))
            for i in range(1, 50):
                await call.say(chunked([b"%d " % i]))
                await asyncio.sleep(0)
            await call.say(b"0\r\n\r\n")

    async with working(script) as worker, asking() as upstream:
        for first in (True, False):
            got: list[bytes] = []
            async with upstream.open(worker.record, "/", b"", REQUEST_ID, timeout_s=LONG_S) as leg:
                if first:
                    got.append(await leg.read(timeout_s=LONG_S))
                await leg.pump(
                    got.append, idle_s=LONG_S, ends_s=asyncio.get_running_loop().time() + LONG_S
                )
                assert await leg.read(timeout_s=LONG_S) == b""
            assert b"".join(got) == b"".join(b"%d " % i for i in range(50))
        assert len(worker.calls) == 1


@on_both_loops
async def test_breaks_in_the_middle() -> None:
    """A stream that is reset, or ends early, gives what came and then the fault."""

    async def script(call: Call) -> None:
        request = await call.request()
        await call.say(STREAM_HEAD + chunked([b"part"]))
        if request.body == b"reset":
            await asyncio.sleep(0.01)
            call.reset()
        elif request.body == b"garbage":
            await call.say(b"xyz\r\n")
            await call.gone()

    async with working(script) as worker, asking() as upstream:
        for how, error in (
            (b"close", WorkerUnreachable),
            (b"reset", WorkerUnreachable),
            (b"garbage", WorkerFailed),
        ):
            async with upstream.open(worker.record, "/", how, REQUEST_ID, timeout_s=LONG_S) as leg:
                assert await leg.read(timeout_s=LONG_S) == b"part"
                with pytest.raises(error):
                    await leg.read(timeout_s=LONG_S)
            got: list[bytes] = []
            async with upstream.open(worker.record, "/", how, REQUEST_ID, timeout_s=LONG_S) as leg:
                with pytest.raises(error):
                    await leg.pump(
                        got.append, idle_s=LONG_S, ends_s=asyncio.get_running_loop().time() + 60
                    )
                assert got == [b"part"]
            with pytest.raises(error):
                await _ask(upstream, worker, how)
        await until(lambda: upstream.connections == 0)


@on_both_loops
async def test_a_length_that_is_not_kept() -> None:
    """An answer shorter than announced is not taken for whole; nor is one without a length whose
    connection was reset."""

    async def script(call: Call) -> None:
        if (await call.request()).body == b"short":
            await call.say(answer(b"0123456789")[:-1])
        else:
            await call.say(b"HTTP/1.1 200 OK\r\n\r\n0123456789")
            call.reset()

    async with working(script) as worker, asking() as upstream:
        for how in (b"short", b"reset"):
            with pytest.raises(WorkerUnreachable):
                await _ask(upstream, worker, how)


@on_both_loops
async def test_what_is_not_http() -> None:
    """Garbage, a switch of protocols, a head without an end: the worker failed."""
    for said in (
        b"garbage\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * 200_000,
        b"HTTP/1.1 103 H\r\nA: b\r\n\r\n" * 10_000,
        STREAM_HEAD + b"0\r\nT: " + b"x" * 200_000,
    ):

        async def script(call: Call) -> None:
            await call.request()
            await call.say(said)  # noqa: B023
            await call.gone()

        async with working(script) as worker, asking() as upstream:
            with pytest.raises(WorkerFailed):
                await _ask(upstream, worker)
            await until(lambda: upstream.connections == 0)


@on_both_loops
async def test_too_large_an_answer() -> None:
    """A whole answer is bounded."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("router.wire.leg._MAX_ANSWER_BYTES", 1000)
        async with working(_serves) as worker, asking() as upstream:
            assert (await _ask(upstream, worker, b"x" * 1000)).status == 200
            with pytest.raises(WorkerFailed, match="more than 1000 bytes"):
                await _ask(upstream, worker, b"x" * 1001)


@pytest.mark.parametrize("loop_kind", ["asyncio", "uvloop"])
@pytest.mark.parametrize("stage", ["head", "read", "whole", "pump"])
def test_cancelled(stage: str, loop_kind: str) -> None:
    """Whoever is cancelled while waiting closes the connection, so that the engine aborts."""

    @on_both_loops
    async def test() -> None:
        waiting = asyncio.Event()

        async def script(call: Call) -> None:
            await call.request()
            if stage != "head":
                await call.say(STREAM_HEAD + chunked([b"first"]))
            waiting.set()
            await call.gone()

        async def run(upstream: Upstream, worker: Worker) -> None:
            async with upstream.open(worker.record, "/", b"", REQUEST_ID, timeout_s=LONG_S) as leg:
                if stage == "whole":
                    await leg.whole(timeout_s=LONG_S)
                elif stage == "read":
                    while await leg.read(timeout_s=LONG_S):
                        pass
                else:
                    ends_s = asyncio.get_running_loop().time() + LONG_S
                    await leg.pump(lambda _: None, idle_s=LONG_S, ends_s=ends_s)

        async with working(script) as worker, asking() as upstream:
            task = asyncio.create_task(run(upstream, worker))
            await waiting.wait()
            for _ in range(5):
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: upstream.connections == worker.open_calls == 0)

    test(loop_kind)


@on_both_loops
async def test_cancelled_while_connecting() -> None:
    """At any turn of the loop: no connection is left, on either side."""
    async with working(_hangs) as worker, asking() as upstream:
        for turns in range(8):
            task = asyncio.create_task(_ask(upstream, worker))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await until(lambda: upstream.connections == worker.open_calls == 0)


@on_both_loops
async def test_leaving_early() -> None:
    """A leg that is left before its end closes its connection; so does an error inside."""

    async def script(call: Call) -> None:
        await call.request()
        await call.say(STREAM_HEAD + chunked([b"first"]))
        await call.gone()

    async with working(script) as worker, asking() as upstream:
        async with upstream.open(worker.record, "/", b"", REQUEST_ID, timeout_s=LONG_S) as leg:
            await leg.read(timeout_s=LONG_S)
        await until(lambda: upstream.connections == worker.open_calls == 0)
        with pytest.raises(ZeroDivisionError):
            async with upstream.open(worker.record, "/", b"", REQUEST_ID, timeout_s=LONG_S) as leg:
                await leg.pump(lambda _: 1 // 0, idle_s=LONG_S, ends_s=LONG_S * 1e6)  # type: ignore[arg-type]
        await until(lambda: upstream.connections == worker.open_calls == 0)


@on_both_loops
async def test_a_sink_that_fails_later() -> None:
    """What the sink raises from inside the loop's callback is raised by the pump."""
    go = asyncio.Event()

    async def script(call: Call) -> None:
        await call.request()
        await call.say(STREAM_HEAD)
        await go.wait()
        await call.say(chunked([b"late"]))
        await call.gone()

    def sink(_: bytes) -> None:
        raise LookupError("gone")

    async with working(script) as worker, asking() as upstream:
        async with upstream.open(worker.record, "/", b"", REQUEST_ID, timeout_s=LONG_S) as leg:
            go.set()
            with pytest.raises(LookupError):
                await leg.pump(sink, idle_s=LONG_S, ends_s=LONG_S * 1e6)
        await until(lambda: worker.open_calls == 0)


@on_both_loops
async def test_back_pressure() -> None:
    """A leg that is paused, or not read, makes the worker wait; then all comes, in order. While it
    is paused the worker's silence is not its fault."""
    sent = 0
    part = b"x" * 65536
    parts = 1000

    async def script(call: Call) -> None:
        nonlocal sent
        await call.request()
        await call.say(STREAM_HEAD)
        for _ in range(parts):
            await call.say(chunked([part]))
            sent += len(part)
        await call.say(b"0\r\n\r\n")
        await call.gone()

    async def settled() -> None:
        before = -1
        while before != sent:
            before = sent
            await asyncio.sleep(0.1)

    async with working(script) as worker, asking() as upstream:
        async with upstream.open(worker.record, "/", b"", REQUEST_ID, timeout_s=LONG_S) as leg:
            await settled()
            assert sent < parts * len(part) / 2
            received = len(await leg.read(timeout_s=LONG_S))
            assert received < 1 << 20

            def sink(data: bytes) -> None:
                nonlocal received
                received += len(data)

            leg.pause()
            pumping = asyncio.create_task(
                leg.pump(sink, idle_s=0.15, ends_s=asyncio.get_running_loop().time() + LONG_S)
            )
            await settled()
            assert sent < parts * len(part) / 2
            await asyncio.sleep(0.3)
            assert not pumping.done()
            leg.resume()
            try:
                await pumping
            except WorkerTimeout:
                # A machine that held everything up for idle_s; what is tested is above.
                return
            assert received == parts * len(part)
        # The leg is over: its brake does not hold the connection's next user.
        leg.pause()
        assert upstream.idle == 1


@on_both_loops
async def test_closing() -> None:
    """Legs that run when the client closes fail; new ones are refused."""
    async with working(_hangs) as worker, asking() as upstream:
        asked = asyncio.create_task(_ask(upstream, worker))
        await until(lambda: worker.open_calls == 1)
        await upstream.close()
        with pytest.raises(PeerFault):
            await asked
        with pytest.raises(WorkerUnreachable):
            await _ask(upstream, worker)
        await until(lambda: worker.open_calls == 0)


def test_tls_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker behind TLS is asked by its name if its certificate is good; else not at all."""
    certificate, context = certified(tmp_path)

    @on_both_loops
    async def test() -> None:
        async with working(_serves, host="localhost", ssl=context) as worker:
            async with asking() as upstream:
                for _ in range(2):
                    assert (await _ask(upstream, worker, b"secret")).body == b"secret"
                assert len(worker.calls) == 1
            with pytest.MonkeyPatch.context() as untrusting:
                untrusting.delenv("SSL_CERT_FILE")
                async with asking() as upstream:
                    with pytest.raises(WorkerUnreachable):
                        await _ask(upstream, worker)

    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    for loop_kind in ("asyncio", "uvloop"):
        test(loop_kind)
