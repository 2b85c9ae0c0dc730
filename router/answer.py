"""The leg that answers: a whole answer or a stream, from a worker to the client.

The client's 200 is sent only after the first content event, or the whole answer, is here; until
then a failure is a ``LegFault``, which may be tried again. After it a failure becomes an error
event in the stream, never silence. From the first content on nothing is parsed: bytes go from the
worker's socket to the client's in one call, cut at event borders.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, Protocol

from baton.clock import Clock
from baton.errors import (
    BatonError,
    DeadlineExceeded,
    PeerFault,
    StreamBroken,
    WorkerFailed,
    WorkerTimeout,
    WorkerUnreachable,
)
from baton.types import RequestId, WorkerRecord
from router import sse
from router.api import Dialect, correct_whole, engine_error, usage_of
from router.call import Call, LegFault, is_fault
from router.ledger import Entry
from router.observe import ItlRecorder, RouterMetrics, Stage, WorkerHeaders
from router.observe import attributes as names
from router.policy import Reason
from router.stall import Watches
from router.wire import Answer, ChunkSink, Exchange, Leg, Upstream

log = logging.getLogger("baton.router.answer")


class Verdicts(Protocol):
    """Told how workers do (``router.care``)."""

    def worked(self, worker: WorkerRecord) -> None:
        """It gave content, or a whole answer."""
        ...

    def failed(self, worker: WorkerRecord, error: BatonError, request_id: RequestId) -> None:
        """It failed a leg; ``error`` says how."""
        ...


class Answerer:
    """Carries out answering legs, local ones and those of a handoff.

    Args:
        upstream: the HTTP client for legs.
        watches: ends waits that the registry says are in vain.
        verdicts: told which workers worked and which failed.
        metrics: told of the gaps between chunks.
        clock: for deadlines.
    """

    def __init__(
        self,
        *,
        upstream: Upstream,
        watches: Watches,
        verdicts: Verdicts,
        metrics: RouterMetrics,
        clock: Clock,
    ) -> None:
        self._upstream = upstream
        self._watches = watches
        self._verdicts = verdicts
        self._metrics = metrics
        self._clock = clock

    async def answer(
        self,
        call: Call,
        worker: WorkerRecord,
        body: bytes,
        entry: Entry | None = None,
        prefill: WorkerRecord | None = None,
        on_first: Callable[[], None] = lambda: None,
    ) -> None:
        """The answering leg, local or decode, up to the end of the client's answer.

        Args:
            entry: the handoff, if it is one.
            prefill: the worker that decode pulls from, if it does.
            on_first: called when the first content, or the whole answer, is here.

        Raises:
            LegFault: it failed, and the client has had nothing.
        """
        call.trail.answering_at_s = self._clock.monotonic_s()
        stage = call.span.stage(Stage.DECODE)
        stage.set(names.WORKER, worker.id)
        stage.set(names.ATTEMPT, call.trail.attempts)

        def first() -> None:
            stage.end()
            on_first()

        leg = self._stream if call.request.stream else self._whole
        try:
            await leg(call, worker, body, stage.headers_for_worker(), entry, prefill, first)
        except PeerFault as error:
            stage.end(error.code)
            raise self._leg_fault(call, error, worker, prefill) from error

    def _leg_fault(
        self, call: Call, error: PeerFault, worker: WorkerRecord, prefill: WorkerRecord | None
    ) -> LegFault:
        if isinstance(error, WorkerTimeout) and call.is_over(self._clock.monotonic_s()):
            # The request's own time is over, which is nobody's fault.
            return LegFault(error, Reason.DECODE_FAILED)
        self._verdicts.failed(worker, error, call.request_id)
        if isinstance(error, WorkerUnreachable):
            return LegFault(error, Reason.DECODE_FAILED, failed=[worker])
        if prefill is None:
            return LegFault(error, Reason.DECODE_FAILED, failed=[worker])
        # Either may be at fault: decode, or prefill that it could not pull from. A fresh prefill
        # elsewhere is the better bet, and another decode worker where there is one.
        self._verdicts.failed(prefill, error, call.request_id)
        return LegFault(error, Reason.TRANSFER_FAILED, failed=[prefill], doubted=[worker])

    # --- whole answers ---

    async def _whole(
        self,
        call: Call,
        worker: WorkerRecord,
        body: bytes,
        trace: WorkerHeaders,
        entry: Entry | None,
        prefill: WorkerRecord | None,
        on_first: Callable[[], None],
    ) -> None:
        timeout_s = call.left_s(self._clock.monotonic_s(), call.serving.deadlines.total_s)
        with self._watches.over(worker, prefill, call.task):
            answer = await self._upstream.ask(
                worker,
                call.request.endpoint,
                body,
                call.request_id,
                timeout_s=timeout_s,
                headers=trace,
            )
        self._take_whole(call, answer, worker, entry, on_first)

    def _take_whole(
        self,
        call: Call,
        answer: Answer,
        worker: WorkerRecord,
        entry: Entry | None,
        on_first: Callable[[], None],
    ) -> None:
        """A whole answer goes to the client, unless it is the worker's fault.

        Raises:
            WorkerFailed: 5xx, or a key that the worker does not take.
        """
        if is_fault(answer.status):
            raise WorkerFailed(f"worker {worker.id} answered {answer.status}")
        trail, endpoint = call.trail, call.request.endpoint
        trail.status = answer.status
        out = answer.body
        if answer.status == 200:
            trail.first_content_at_s = self._clock.monotonic_s()
            self._verdicts.worked(worker)
            on_first()
            if entry is not None:
                entry.first_content()
                entry.finished()
            if call.prefill_usage is not None and entry is not None:
                out = correct_whole(endpoint, out, call.prefill_usage)
            trail.usage = usage_of(endpoint, out)
        else:
            if entry is not None:
                entry.failed(f"decode refused the request ({answer.status})")
            out = engine_error(endpoint, answer.status, out)
        headers = [("content-type", answer.content_type), *self._headers(call)]
        call.reply.reply(answer.status, headers, out)

    def _headers(self, call: Call) -> list[tuple[str, str]]:
        return call.trail.headers(explain=call.explain)

    # --- streams ---

    async def _stream(
        self,
        call: Call,
        worker: WorkerRecord,
        body: bytes,
        trace: WorkerHeaders,
        entry: Entry | None,
        prefill: WorkerRecord | None,
        on_first: Callable[[], None],
    ) -> None:
        began_s = self._clock.monotonic_s()
        first_s = call.left_s(began_s, call.serving.deadlines.first_token_s)
        request = call.request
        with self._watches.over(worker, prefill, call.task) as watch:
            async with self._upstream.open(
                worker,
                request.endpoint,
                body,
                call.request_id,
                timeout_s=first_s,
                headers=trace,
            ) as leg:
                if leg.status != 200:
                    answer = await leg.whole(timeout_s=first_s)
                    self._take_whole(call, answer, worker, entry, on_first)
                    return
                events = sse.EventBuffer()
                # The headers say nothing and count as waiting for the first token.
                head = await self._first_content(call, leg, events, began_s + first_s, first_s)
                watch.over()
                call.trail.first_content_at_s = self._clock.monotonic_s()
                self._verdicts.worked(worker)
                on_first()
                if entry is not None:
                    entry.first_content()
                with call.span.stage(Stage.STREAM):
                    await self._pass_on(call, leg, events, head, entry)

    async def _first_content(
        self, call: Call, leg: Leg, events: sse.EventBuffer, ends_s: float, within_s: float
    ) -> bytes:
        """Everything up to and including the bytes that hold the first content event.

        Raises:
            WorkerFailed: an error event, or the end, came first.
            WorkerTimeout: nothing came in time.
        """
        head = b""
        dialect = call.request.endpoint.dialect
        while True:
            left_s = max(0.001, ends_s - self._clock.monotonic_s())
            try:
                data = await leg.read(timeout_s=left_s)
                whole = events.feed(data)
            except WorkerTimeout as error:
                raise WorkerTimeout(
                    f"worker {leg.worker.id} gave no first token within {within_s:g} s"
                ) from error
            except ValueError as error:
                raise WorkerFailed(f"worker {leg.worker.id}: {error}") from error
            if not data:
                raise WorkerFailed(f"worker {leg.worker.id} ended the stream without an answer")
            head += whole
            for event in sse.split_events(whole):
                kind, error_object = sse.classify_event(event, dialect)
                if kind is sse.EventKind.ERROR:
                    said = (error_object or {}).get("message", "no reason given")
                    raise WorkerFailed(f"worker {leg.worker.id} failed: {said}")
                if kind in (sse.EventKind.CONTENT, sse.EventKind.DONE):
                    return head

    async def _pass_on(
        self, call: Call, leg: Leg, events: sse.EventBuffer, head: bytes, entry: Entry | None
    ) -> None:
        """From the first content to the end. A failure becomes an error event, never silence."""
        trail, reply = call.trail, call.reply
        trail.status = 200
        reply.start(
            200,
            [
                ("content-type", "text/event-stream; charset=utf-8"),
                ("cache-control", "no-cache"),
                ("x-accel-buffering", "no"),
                *self._headers(call),
            ],
        )
        passing = _Passing(call, events, self._clock, corrects=entry is not None)
        reply.on_congestion(lambda full: leg.pause() if full else leg.resume())
        try:
            passing.take(head)
            passing.hurry()
            await leg.pump(
                passing.feed,
                idle_s=call.serving.deadlines.idle_s,
                ends_s=call.ends_s,
                chunk_sink=passing,
            )
            if not passing.complete:
                raise StreamBroken(f"worker {leg.worker.id} ended the stream in the middle")
        except (PeerFault, ValueError) as error:
            # After its last event an answer is whole, however the connection ended.
            if not passing.complete:
                self._broke_off(call, leg, error, passing.last)
        finally:
            reply.on_congestion(None)
            passing.account(self._metrics)
        if entry is not None:
            if trail.error:
                entry.failed(trail.error)
            else:
                entry.finished()
        reply.end()

    def _broke_off(self, call: Call, leg: Leg, error: Exception, last: bytes) -> None:
        fault: BatonError
        if call.limited_by_client and call.is_over(self._clock.monotonic_s()):
            fault = DeadlineExceeded("The deadline given with the request has passed.")
        elif isinstance(error, StreamBroken):
            fault = error
        else:
            fault = StreamBroken(f"The answer broke off: {error}")
        call.trail.error = fault.message
        call.trail.own_limit = isinstance(fault, DeadlineExceeded)
        log.warning("%s: %s", call.request_id, fault.message)
        if not isinstance(fault, DeadlineExceeded):
            broken = fault if not isinstance(error, PeerFault) else error
            self._verdicts.failed(leg.worker, broken, call.request_id)
        call.reply.write(sse.error_event(fault, call.request.endpoint.dialect, last))


class _Passing(ChunkSink):
    """What happens to each chunk of a stream after its first content: as little as can be."""

    __slots__ = ("_before", "_call", "_chunks", "_corrects", "_dialect", "_events", "_itl",
                 "_now_s", "_write", "borders", "last")  # fmt: skip

    def __init__(
        self, call: Call, events: sse.EventBuffer, clock: Clock, *, corrects: bool
    ) -> None:
        usage = call.prefill_usage if corrects else None
        self._call = call
        self._events = events
        self._dialect = call.request.endpoint.dialect
        self._itl = ItlRecorder()
        self._now_s = clock.monotonic_s
        self._write: Callable[[bytes], None] = call.reply.write
        self._chunks: Exchange | None = None
        told = usage is not None and (usage.cached_tokens, usage.created_tokens) != (None, None)
        self._corrects = usage if told else None
        self._before = b""
        self.last = b""
        self.borders = 0

    def hurry(self) -> None:
        """The first piece is written: the others go the shortest way."""
        reply = self._call.reply
        self._write, self._chunks = reply.writer(), reply.chunk_writer()

    def feed(self, data: bytes) -> None:
        """Bytes of the worker."""
        whole = self._events.feed(data)
        if whole:
            self.take(whole)

    def feed_chunk(self, chunk: bytes) -> bool:
        """A chunk of the worker's as it came, framing and all; False if it cannot stay so.

        The framing is left on what is kept, too: its lines are none that is looked for.
        """
        exchange = self._chunks
        if exchange is None or not chunk.endswith(_CHUNK_OF_EVENTS) or self._events.holding:
            return False
        if len(chunk) < _LEAST_CHUNK:
            # Of a lone line break; the other is the framing's.
            return False
        if self._corrects is not None and sse.may_have_usage(chunk):
            return False
        self._note(chunk)
        exchange.write_chunk(chunk)
        return True

    def take(self, whole: bytes) -> None:
        """Whole events go to the client; the last two pieces are kept for the end's sake."""
        if self._corrects is not None:
            whole = sse.correct_events(self._dialect, whole, self._corrects)
        self._note(whole)
        self._write(whole)

    def _note(self, whole: bytes) -> None:
        self._itl.tick(self._now_s())
        self.borders += whole.count(b"\n\n")
        self._before = self.last
        self.last = whole

    @property
    def complete(self) -> bool:
        """Whether the stream's last event is here."""
        dialect = self._dialect
        return sse.is_complete(self.last, dialect) or sse.is_complete(self._before, dialect)

    def account(self, metrics: RouterMetrics) -> None:
        """Writes down what the stream was."""
        trail, tail = self._call.trail, self._before + self.last
        trail.usage = sse.usage_in_tail(self._dialect, tail)
        # Without usage, the events stand for tokens: all but those that are none, roughly.
        trail.events = max(1, self.borders - _NOT_TOKENS[self._dialect])
        if not trail.error and sse.has_error(tail, self._dialect):
            trail.error = "the engine gave up in the middle"
        metrics.stream_done(trail.path, trail.serving.version, self._itl, trail.output_tokens)


_CHUNK_OF_EVENTS: Final = b"\n\n\r\n"
"""How a chunk ends whose last event is whole."""
_LEAST_CHUNK: Final = len(b"2\r\n\n\n\r\n")

_NOT_TOKENS: Final = {Dialect.OPENAI: 1, Dialect.RESPONSES: 8, Dialect.MESSAGES: 5}
"""Events of a stream that stand for no token: its frame, as each API draws it."""
