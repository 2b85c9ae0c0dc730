"""A stream from a worker's socket to a client: the short way and the long one are the same."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from baton.clock import VirtualClock
from baton.types import RequestId
from router import sse
from router.answer import _Passing
from router.api import Endpoint, Usage, parse_request
from router.call import Call, Trail
from router.observe import RouterMetrics
from router.wire.link import Link
from tests.fakes.worker_records import worker_record
from tests.unit.router.serving_profiles import serving
from tests.unit.router.wire.wires import LONG_S, STREAM_HEAD, MemoryTransport

SERVING = serving()
_USAGE = b'"usage":{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12}'
_EVENTS = [
    b'data: {"choices":[{"text":"a"}]}\n\n',
    b'data: {"choices":[{"text":"1\\r\\n0\\r\\n"}]}\n\n',
    b'data: {"choices":[{"text":"crlf"}]}\r\n\r\n',
    b": ping\n\n",
    b"\n\n",
    b'data: {"choices":[],' + _USAGE + b"}\n\n",
    b'data: {"error":{"message":"no"}}\n\n',
    b"data: " + b"x" * 5000 + b"\n\n",
]
_ENDINGS = [b"data: [DONE]\n\n", b'data: {"choices":[],' + _USAGE + b"}\n\ndata: [DONE]\n\n", b""]


class _Client:
    """Both a reply and the exchange behind it: what the client has, without framing."""

    def __init__(self, *, framed: bool) -> None:
        self.got = b""
        self.framed_chunks = 0
        self._framed = framed

    def write(self, data: bytes) -> None:
        self.got += data

    def write_chunk(self, chunk: bytes) -> None:
        found = re.fullmatch(rb"([0-9a-f]+)\r\n(.*)\r\n", chunk, re.DOTALL)
        assert found is not None
        assert int(found[1], 16) == len(found[2]) > 0
        self.got += found[2]
        self.framed_chunks += 1

    def writer(self) -> Callable[[bytes], None]:
        return self.write

    def chunk_writer(self) -> _Client | None:
        return self if self._framed else None


def _passing(client: _Client, *, corrects: bool) -> tuple[_Passing, Call]:
    request = parse_request(Endpoint.COMPLETIONS, b'{"model":"m","prompt":"p","stream":true}')
    call = Call(request, RequestId("r"), cast(Any, client), Trail(0.0, SERVING), LONG_S)
    call.prefill_usage = Usage(prompt_tokens=9, output_tokens=1, cached_tokens=4)
    passing = _Passing(call, sse.EventBuffer(), VirtualClock(), corrects=corrects)
    passing.take(b'data: {"choices":[{"text":"first"}]}\n\n')
    passing.hurry()
    return passing, call


@given(
    st.lists(st.sampled_from(_EVENTS[:1] * 4 + _EVENTS), max_size=12),
    st.sampled_from(_ENDINGS),
    st.lists(st.integers(1, 4000), max_size=6),
    st.lists(st.booleans(), min_size=1, max_size=9),
    st.booleans(),
)
@settings(max_examples=400, deadline=None)
def test_both_ways_give_the_same(
    events: list[bytes], ending: bytes, cuts: list[int], joined: list[bool], corrects: bool
) -> None:
    """However events are cut into chunks, and chunks joined in segments: the client has the same
    bytes as over the long way, and the router knows the same of the stream."""
    # An event a chunk, mostly; some cut in the middle, some with their neighbours.
    parts = [part for part in [*events, *re.findall(rb".*?\n\n", ending, re.DOTALL)] if part]
    for cut in cuts:
        if parts and len(parts[cut % len(parts)]) > 1:
            at = cut % len(parts)
            middle = 1 + cut % (len(parts[at]) - 1)
            parts[at : at + 1] = [parts[at][:middle], parts[at][middle:]]
    segments: list[bytes] = []
    for number, part in enumerate(parts):
        chunk = b"%x\r\n%b\r\n" % (len(part), part)
        if segments and joined[number % len(joined)]:
            segments[-1] += chunk
        else:
            segments.append(chunk)
    seen = []
    for framed in (True, False):
        client = _Client(framed=framed)
        passing, call = _passing(client, corrects=corrects)

        async def main(passing: _Passing = passing) -> None:
            loop = asyncio.get_running_loop()
            link = Link(lambda _: None)
            link.connection_made(MemoryTransport(link))
            leg = link.ask(worker_record(), loop)
            pump = leg.pump(
                passing.feed, idle_s=LONG_S, ends_s=loop.time() + LONG_S, chunk_sink=passing
            )
            pumping = asyncio.create_task(pump)
            await asyncio.sleep(0)
            for segment in [STREAM_HEAD, *segments, b"0\r\n\r\n"]:
                link.data_received(segment)
            await pumping

        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            runner.run(main())
        complete = passing.complete
        passing.account(RouterMetrics(process=False))
        trail = call.trail
        seen.append((client.got, complete, trail.usage, trail.events, trail.error))
    assert seen[0] == seen[1]


def test_which_chunks_go_the_short_way() -> None:
    """Those that end with an event and need no correction, while no event is open."""
    client = _Client(framed=True)
    passing, _ = _passing(client, corrects=True)
    event, usage, crlf = _EVENTS[0], _EVENTS[5], _EVENTS[2]
    for content, taken in (
        (event, True),
        (event * 3, True),
        (usage, False),
        (crlf, False),
        (event[:-1], False),
        (b"\n", False),
    ):
        assert passing.feed_chunk(b"%x\r\n%b\r\n" % (len(content), content)) is taken
    assert client.framed_chunks == 2
    assert passing.borders == 5
    passing.feed(event[:9])
    assert not passing.feed_chunk(b"%x\r\n%b\r\n" % (len(event), event))
