"""The leg that answers: a whole answer or a stream, from a worker to the client.

The client's 200 is sent only after the first content event, or the whole answer, is here; until
then a failure is a ``LegFault``, which may be tried again. After it a failure becomes an error
event in the stream, never silence.
"""

from __future__ import annotations

import logging

from baton.clock import Clock
from baton.errors import (
    PeerFault,
    StreamBroken,
    WorkerFailed,
    WorkerTimeout,
    WorkerUnreachable,
)
from baton.types import WorkerRecord
from profiles import ServingProfile
from router import sse
from router.call import Call, LegFault
from router.ledger import Entry
from router.policy import Reason
from router.pool import WorkerPool
from router.stall import StallGuard
from router.upstream import Answer, Leg, Upstream

log = logging.getLogger("baton.router.answer")


class Answerer:
    """Carries out answering legs, local ones and those of a handoff.

    Args:
        profile: the active profile.
        pool: told of workers that cannot be reached.
        upstream: the HTTP client for legs.
        clock: for deadlines.
    """

    def __init__(
        self, *, profile: ServingProfile, pool: WorkerPool, upstream: Upstream, clock: Clock
    ) -> None:
        self._profile = profile.name
        self._deadlines = profile.spec.deadlines
        self._pool = pool
        self._upstream = upstream
        self._clock = clock
        self._guard = StallGuard(pool)

    async def answer(
        self,
        call: Call,
        worker: WorkerRecord,
        body: bytes,
        entry: Entry | None = None,
        prefill: WorkerRecord | None = None,
    ) -> None:
        """The answering leg, local or decode, up to the end of the client's answer."""
        failure = Reason.DECODE_FAILED if prefill is None else Reason.TRANSFER_FAILED
        try:
            if call.request.stream:
                await self._stream(call, worker, body, entry, prefill)
                return
            answer = await self._guard.run(
                self._upstream.ask(
                    worker,
                    call.request.endpoint,
                    body,
                    call.request_id,
                    timeout_s=call.left_s(self._clock, self._deadlines.total_s),
                ),
                prefill,
                worker,
            )
        except WorkerUnreachable as error:
            self._pool.suspect(worker)
            raise LegFault(error, Reason.DECODE_FAILED, worker.id) from error
        except WorkerTimeout as error:
            # In a handoff it may be prefill that hangs, and decode with it.
            raise LegFault(error, failure, worker.id, certain=prefill is None) from error
        except PeerFault as error:
            blamed = worker.id if prefill is None else None
            raise LegFault(error, failure, blamed) from error
        self._check_status(answer, worker, prefill)
        if entry is not None and answer.status == 200:
            entry.first_content()
            entry.finished()
        await self._reply_whole(call, answer, entry)

    async def _reply_whole(self, call: Call, answer: Answer, entry: Entry | None) -> None:
        if entry is not None and answer.status != 200:
            entry.failed(f"decode refused the request ({answer.status})")
        call.trail.status = answer.status
        headers = [
            ("content-type", answer.content_type),
            ("content-length", str(len(answer.body))),
            *call.trail.headers(self._profile),
        ]
        await call.reply.start(answer.status, headers)
        await call.reply.send(answer.body, last=True)

    async def _stream(
        self,
        call: Call,
        worker: WorkerRecord,
        body: bytes,
        entry: Entry | None,
        prefill: WorkerRecord | None,
    ) -> None:
        began_s = self._clock.monotonic_s()
        first_s = call.left_s(self._clock, self._deadlines.first_token_s)
        async with self._upstream.open(
            worker, call.request.endpoint, body, call.request_id, timeout_s=first_s
        ) as leg:
            if leg.status != 200:
                answer = await leg.whole(timeout_s=first_s)
                self._check_status(answer, worker, prefill)
                await self._reply_whole(call, answer, entry)
                return
            events = sse.EventBuffer()
            # The headers say nothing and count as waiting for the first token.
            left_s = max(0.001, first_s - (self._clock.monotonic_s() - began_s))
            head = await self._guard.run(self._first_content(leg, events, left_s), prefill, worker)
            if entry is not None:
                entry.first_content()
            call.trail.status = 200
            call.trail.first_content_s = self._clock.monotonic_s()
            await call.reply.start(
                200,
                [
                    ("content-type", "text/event-stream; charset=utf-8"),
                    ("cache-control", "no-cache"),
                    ("x-accel-buffering", "no"),
                    *call.trail.headers(self._profile),
                ],
            )
            await self._pass_on(call, leg, events, head, entry)

    async def _first_content(self, leg: Leg, events: sse.EventBuffer, within_s: float) -> bytes:
        """Everything up to and including the bytes that hold the first content event.

        Raises:
            WorkerFailed: an error event, or the end, came first.
            WorkerTimeout: nothing came in time.
        """
        deadline_s = self._clock.monotonic_s() + within_s
        head = b""
        while True:
            left_s = max(0.001, deadline_s - self._clock.monotonic_s())
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
                kind, error_object = sse.classify_event(event)
                if kind is sse.EventKind.ERROR:
                    said = (error_object or {}).get("message", "no reason given")
                    raise WorkerFailed(f"worker {leg.worker.id} failed: {said}")
                if kind in (sse.EventKind.CONTENT, sse.EventKind.DONE):
                    return head

    async def _pass_on(
        self, call: Call, leg: Leg, events: sse.EventBuffer, head: bytes, entry: Entry | None
    ) -> None:
        """From the first content to the end. A failure becomes an error event, never silence."""
        reply, idle_s = call.reply, self._deadlines.idle_s
        done = sse.is_complete(head)
        await reply.send(head)
        try:
            while data := await leg.read(timeout_s=call.left_s(self._clock, idle_s)):
                whole = events.feed(data)
                if whole:
                    done = done or sse.is_complete(whole)
                    await reply.send(whole)
            if not done:
                raise StreamBroken(f"worker {leg.worker.id} ended the stream in the middle")
        except (PeerFault, ValueError) as error:
            # After its last event an answer is whole, however the connection ended.
            if not done:
                await self._broke_off(call, leg, error, entry)
        if entry is not None and entry.state is not None:
            entry.finished()
        await reply.send(b"", last=True)

    async def _broke_off(self, call: Call, leg: Leg, error: Exception, entry: Entry | None) -> None:
        fault = (
            error
            if isinstance(error, StreamBroken)
            else StreamBroken(f"The answer broke off: {error}")
        )
        log.warning("%s: %s", call.request_id, fault.message)
        if isinstance(error, WorkerUnreachable | StreamBroken):
            self._pool.suspect(leg.worker)
        if entry is not None:
            entry.failed(fault.message)
        await call.reply.send(sse.error_event(fault))

    def _check_status(
        self, answer: Answer, worker: WorkerRecord, prefill: WorkerRecord | None
    ) -> None:
        """Lets 2xx and the client's own faults pass.

        Raises:
            LegFault: the worker's fault: 5xx, or a key that it does not take.
        """
        if answer.status < 500 and answer.status != 401:
            return
        error = WorkerFailed(f"worker {worker.id} answered {answer.status}")
        if prefill is None:
            raise LegFault(error, Reason.DECODE_FAILED, worker.id)
        raise LegFault(error, Reason.TRANSFER_FAILED, None)
