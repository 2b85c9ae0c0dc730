"""The mock's HTTP server: one connection class over asyncio, one job per request.

It is as small as it can be, so that what it adds to the delays it is told to make stays in the
microseconds: no framework, writes go straight into the socket, and every time is computed from
the request's arrival, so that a late wake-up is made good by the next chunk.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import time
from pathlib import Path
from typing import Any, cast

import httptools

from benchmarks.mock import wire
from benchmarks.mock.alarm import Alarm
from benchmarks.mock.counters import Counters, PrefixCache
from benchmarks.mock.script import Course, Outcome, Script, course, wall_time, working_time
from benchmarks.mock.truth import Truth, TruthLog

_MAX_BODY_BYTES = 64 * 1024 * 1024
_BACKLOG = 4096
_PATHS = {b"/v1/completions": False, b"/v1/chat/completions": True}


class MockServer:
    """Listens on one port of the running loop.

    Args:
        script: what to do.
        model: the name of its only model; any name is answered.
        truth: where to write what happened; None writes nothing.
    """

    def __init__(
        self, script: Script | None = None, *, model: str = "mock", truth: Path | None = None
    ) -> None:
        self.script = script or Script()
        self.model = model
        self.counters = Counters(model)
        self.port = 0
        self._log = TruthLog(truth)
        self._cache = PrefixCache()
        self._zero_s: float | None = None
        self._asked = 0
        self._running = 0
        self._queue: collections.deque[_Job] = collections.deque()
        self._connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None
        self._alarm: Alarm | None = None

    @property
    def url(self) -> str:
        """``http://127.0.0.1:PORT``."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listens; port 0 takes a free one."""
        loop = asyncio.get_running_loop()
        self._alarm = Alarm(loop)
        self._server = await loop.create_server(
            lambda: _Connection(self), host, port, backlog=_BACKLOG
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Resets every connection and writes the rest of the truth."""
        if self._server is not None:
            self._server.close()
            for connection in list(self._connections):
                connection.abort()
            await asyncio.sleep(0)
            await self._server.wait_closed()
        if self._alarm is not None:
            self._alarm.close()
        self._log.close()

    def joined(self, connection: _Connection) -> None:
        """A client connected."""
        self._connections.add(connection)

    def left(self, connection: _Connection) -> None:
        """A client is gone; what it asked for is given up."""
        self._connections.discard(connection)
        job = connection.job
        if job is not None:
            self._end(job, "client_gone")

    def asked(self, connection: _Connection, path: bytes, body: bytes, request_id: str) -> None:
        """A whole request came in."""
        now_s = time.monotonic()
        if path not in _PATHS:
            self._at(self._awake_s(now_s), lambda: self._other(connection, path))
            return
        try:
            ask = wire.read_ask(body, chat=_PATHS[path])
        except wire.BadRequest as error:
            connection.put(wire.whole(400, wire.error_body(400, str(error))))
            return
        if self._zero_s is None:
            self._zero_s = now_s
        job = self._job(connection, ask, request_id, now_s)
        connection.job = job
        wait_s = self.script.accept_s if connection.fresh else 0.0
        connection.fresh = False
        job.at_s = working_time(now_s - self._zero_s, self.script.stalls) + wait_s
        self._at(self._when(job.at_s), lambda: self._enter(job))

    def _job(self, connection: _Connection, ask: wire.Ask, request_id: str, now_s: float) -> _Job:
        number, self._asked = self._asked, self._asked + 1
        cached = self._cache.take(ask.blocks) * wire.BLOCK_TOKENS
        # As engines do: the last token is always computed.
        cached = min(cached, ask.prompt_tokens - 1)
        plan = course(
            self.script,
            ask.digest if self.script.by_prompt else number,
            output_tokens=ask.max_tokens or self.script.output_tokens,
            new_prompt_tokens=ask.prompt_tokens - cached,
        )
        self.counters.counts["prefix_cache_queries"] += ask.prompt_tokens
        self.counters.counts["prefix_cache_hits"] += cached
        truth = Truth(
            number=number,
            request_id=request_id,
            received_s=now_s,
            prompt_tokens=ask.prompt_tokens,
            cached_tokens=cached,
        )
        return _Job(connection, ask, plan, truth)

    def _other(self, connection: _Connection, path: bytes) -> None:
        if path == b"/v1/models":
            answer = wire.whole(200, wire.models_body(self.model))
        elif path == b"/metrics":
            page = self.counters.page().encode()
            answer = wire.whole(200, page, "text/plain; version=0.0.4; charset=utf-8")
        elif path in (b"/health", b"/healthz"):
            answer = wire.whole(200, b"{}")
        else:
            answer = wire.whole(404, wire.error_body(404, f"no {path.decode('latin-1')} here"))
        connection.put(answer)

    def _awake_s(self, now_s: float) -> float:
        """``now_s``, or the end of the stall that is on."""
        if self._zero_s is None or not self.script.stalls:
            return now_s
        return self._when(working_time(now_s - self._zero_s, self.script.stalls))

    def _when(self, working_s: float) -> float:
        assert self._zero_s is not None
        return self._zero_s + wall_time(working_s, self.script.stalls)

    def _at(self, when_s: float, call: Any) -> None:
        assert self._alarm is not None
        if when_s <= time.monotonic():
            call()
        else:
            self._alarm.at(when_s, call)

    def _enter(self, job: _Job) -> None:
        """The server takes notice of a request: headers, and a place or the queue."""
        if job.over:
            return
        if job.ask.stream and job.course.outcome is not Outcome.ERROR:
            head = wire.STREAM_HEAD
            if job.ask.chat and self.script.early_role:
                head += wire.chunked(wire.role_event(job.ask, job.name))
            job.connection.put(head)
        if self.script.slots and self._running >= self.script.slots:
            self._queue.append(job)
            self.counters.waiting += 1
        else:
            self._work(job, job.at_s)

    def _work(self, job: _Job, at_s: float) -> None:
        self._running += 1
        self.counters.running += 1
        job.working, job.at_s = True, at_s
        job.truth.started_s = self._when(at_s)
        assert self._alarm is not None
        if job.ask.stream or job.course.outcome is not Outcome.WHOLE:
            self._next(job)
        else:
            job.due_s = self._when(at_s + job.course.chunks[-1][0])
            self._alarm.at(job.due_s, lambda: self._whole(job))

    def _next(self, job: _Job) -> None:
        job.due_s = self._when(job.at_s + job.course.chunks[job.sent][0])
        assert self._alarm is not None
        self._alarm.at(job.due_s, lambda: self._chunk(job))

    def _chunk(self, job: _Job) -> None:
        if job.over:
            return
        outcome, ask = job.course.outcome, job.ask
        if outcome is Outcome.ERROR or not ask.stream:
            self._fail(job)
            return
        tokens = job.course.chunks[job.sent][1]
        job.sent += 1
        ends = job.sent == len(job.course.chunks)
        last = ends and outcome is Outcome.WHOLE
        data = wire.chunked(wire.event(ask, job.name, tokens, last=last))
        if last:
            tail = wire.DONE
            if ask.usage:
                tail = wire.usage_event(ask, job.name, self._usage(job)) + tail
            data += wire.chunked(tail) + wire.LAST_CHUNK
        elif ends and outcome is Outcome.ERROR_EVENT:
            event = b"data: " + wire.error_body(500, "the script wants an error") + b"\n\n"
            data += wire.chunked(event + wire.DONE) + wire.LAST_CHUNK
        job.connection.put(data)
        self._stamp(job, tokens)
        if not ends:
            self._next(job)
            return
        if outcome is Outcome.CUT:
            self._end(job, outcome)
            job.connection.abort()
        else:
            self._end(job, outcome)

    def _whole(self, job: _Job) -> None:
        if job.over:
            return
        tokens = sum(count for _, count in job.course.chunks)
        body = wire.answer_body(job.ask, job.name, tokens, self._usage(job))
        job.connection.put(wire.whole(200, body))
        self._stamp(job, tokens)
        self._end(job, Outcome.WHOLE)

    def _fail(self, job: _Job) -> None:
        if job.course.outcome is Outcome.CUT:
            self._end(job, Outcome.CUT)
            job.connection.abort()
            return
        status = self.script.error_status
        body = wire.error_body(status, "the script wants an error")
        job.connection.put(wire.whole(status, body))
        job.truth.status = status
        self._end(job, Outcome.ERROR)

    def _usage(self, job: _Job) -> dict[str, Any]:
        tokens = sum(count for _, count in job.course.chunks)
        return wire.usage_of(job.ask, tokens, job.truth.cached_tokens)

    def _stamp(self, job: _Job, tokens: int) -> None:
        """Notes that a chunk was just written."""
        now_s, truth, counters = time.monotonic(), job.truth, self.counters
        if truth.chunks_s:
            counters.observe("inter_token_latency_seconds", now_s - truth.chunks_s[-1])
        else:
            counters.counts["prompt_tokens"] += truth.prompt_tokens
            counters.observe("time_to_first_token_seconds", now_s - truth.received_s)
        counters.counts["generation_tokens"] += tokens
        truth.chunks_s.append(now_s)
        truth.chunk_tokens.append(tokens)
        truth.late_s = max(truth.late_s, now_s - job.due_s)

    def _end(self, job: _Job, outcome: str) -> None:
        if job.over:
            return
        job.over = True
        if job.connection.job is job:
            job.connection.job = None
        truth, counters = job.truth, self.counters
        truth.end_s, truth.outcome = time.monotonic(), outcome
        reason = {"whole": "length", "client_gone": "abort"}.get(outcome, "error")
        counters.finished[reason] += 1
        if truth.chunks_s:
            first_s, last_s = truth.chunks_s[0], truth.chunks_s[-1]
            counters.observe("request_queue_time_seconds", truth.started_s - truth.received_s)
            counters.observe("request_prefill_time_seconds", first_s - truth.started_s)
            counters.observe("request_decode_time_seconds", last_s - first_s)
            counters.observe("e2e_request_latency_seconds", last_s - truth.received_s)
        self._log.add(truth)
        if job.working:
            self._running -= 1
            counters.running -= 1
            self._advance(job)
        elif job in self._queue:
            self._queue.remove(job)
            counters.waiting -= 1

    def _advance(self, ended: _Job) -> None:
        """The place that ``ended`` had goes to who waits longest, from when it became free."""
        if self._queue:
            job = self._queue.popleft()
            self.counters.waiting -= 1
            assert self._zero_s is not None
            gone = ended.truth.outcome == "client_gone"
            free_s = time.monotonic() if gone else ended.due_s
            self._work(job, working_time(free_s - self._zero_s, self.script.stalls))


class _Job:
    """One request under way. ``at_s`` is when work on it began, in working time; ``due_s`` when
    its next chunk is due, on the monotonic clock."""

    __slots__ = (
        "ask", "at_s", "connection", "course", "due_s", "name", "over", "sent", "truth", "working",
    )  # fmt: skip

    def __init__(self, connection: _Connection, ask: wire.Ask, plan: Course, truth: Truth) -> None:
        self.connection, self.ask, self.course, self.truth = connection, ask, plan, truth
        self.name = f"mock-{truth.number}"
        self.at_s = self.due_s = 0.0
        self.sent = 0
        self.over = self.working = False


class _Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, server: MockServer) -> None:
        self.job: _Job | None = None
        self.fresh = True
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._fd = -1
        self._parser: Any = None
        self._path = b""
        self._request_id = ""
        self._body = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not of asyncio's class.
        self._transport = cast(asyncio.Transport, transport)
        self._fd = transport.get_extra_info("socket").fileno()
        self._parser = httptools.HttpRequestParser(self)
        self._server.joined(self)

    def connection_lost(self, _: Exception | None) -> None:
        self._transport, self._parser, self._fd = None, None, -1
        self._server.left(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError:
            # A fault of ours; the loop prints it.
            self.abort()
            raise
        except httptools.HttpParserError:
            self.abort()

    def on_url(self, url: bytes) -> None:
        """The parser's: a part of the target."""
        self._path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """The parser's: a header."""
        if name.lower() == b"x-request-id":
            self._request_id = value[:200].decode("latin-1")

    def on_body(self, part: bytes) -> None:
        """The parser's: a part of the body."""
        self._body += part
        if len(self._body) > _MAX_BODY_BYTES:
            self.abort()

    def on_message_complete(self) -> None:
        """The parser's: the request is whole."""
        path, body, request_id = self._path, bytes(self._body), self._request_id
        self._path, self._request_id = b"", ""
        self._body.clear()
        if self.job is not None:
            # One at a time: a client that pipelines is not what is measured with this.
            self.abort()
            return
        self._server.asked(self, path.partition(b"?")[0], body, request_id)

    def put(self, data: bytes) -> None:
        """Sends now. The event loop would collect writes until the end of its turn, and the
        first of them would be later than its stamp."""
        if self._transport is None:
            return
        if self._transport.get_write_buffer_size() == 0:
            with contextlib.suppress(BlockingIOError):
                try:
                    data = data[os.write(self._fd, data) :]
                except OSError as error:
                    if isinstance(error, BlockingIOError):
                        raise
                    self.abort()
                    return
        if data:
            self._transport.write(data)

    def abort(self) -> None:
        """Resets the connection."""
        if self._transport is not None:
            self._transport.abort()
