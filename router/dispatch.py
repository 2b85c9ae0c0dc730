"""The life of a request: count, plan, prefill, hand over, stream, account.

Decisions come from ``router.policy``; this module carries them out. Its promises:

- The client's 200 is sent only after the first content event (or the whole answer) is here.
- Until then a failed leg is tried once more, locally, with a fresh prefill; transfer parameters
  are never used twice.
- Every leg has a deadline, and whatever ends a request, its legs are closed, its handoff has
  ended, and no worker stays counted busy.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol, TypeVar

import msgspec

from baton.clock import Clock
from baton.errors import (
    BatonError,
    HandoffUnusable,
    ModelNotFound,
    NoWorker,
    PeerFault,
    StreamBroken,
    WorkerFailed,
    WorkerTimeout,
    WorkerUnreachable,
)
from baton.types import RequestId, WorkerId, WorkerRecord, WorkerState
from kvtransfer import kv_bytes
from profiles import ServingProfile
from router import sse
from router.counting import Counting
from router.ledger import Entry, Ledger
from router.metrics import RouterMetrics
from router.policy import (
    Ask,
    Handoff,
    Local,
    Plan,
    Reason,
    Refusal,
    Refuse,
    Snapshot,
    TokenBounds,
    plan,
    plan_local,
)
from router.pool import WorkerPool
from router.requests import GenerateRequest, decode_body, prefill_body
from router.upstream import Answer, Leg, Upstream

log = logging.getLogger("baton.router.dispatch")

_WATCH_S = 0.5
_BEATS_TO_JUDGE = 2
"""Heartbeats of decode, after prefill fell silent, before its figures are believed."""

Headers = list[tuple[str, str]]
T = TypeVar("T")


class Reply(Protocol):
    """The way back to the client."""

    async def start(self, status: int, headers: Headers) -> None:
        """Sends status and headers; once."""
        ...

    async def send(self, data: bytes, *, last: bool = False) -> None:
        """Sends a part of the body."""
        ...


@dataclass(slots=True)
class Trail:
    """What is known of a request's way, for headers, metrics and logs.

    ``path`` is ``disaggregated`` or ``local``, or ``none`` before a plan stands.
    """

    path: str = "none"
    reason: str = "none"
    prompt_tokens: TokenBounds | None = None
    status: int = 0
    first_content_s: float | None = None

    def headers(self, profile: str) -> Headers:
        """The ``x-baton-*`` headers."""
        headers = [("x-baton-profile", profile)]
        if self.path != "none":
            headers += [("x-baton-path", self.path), ("x-baton-reason", self.reason)]
        if self.prompt_tokens is not None:
            headers.append(("x-baton-prompt-tokens", str(self.prompt_tokens)))
        return headers


@dataclass(frozen=True, slots=True)
class _Call:
    """One request while it is served; ``ends_s`` is its last moment, on the monotonic clock."""

    request: GenerateRequest
    request_id: RequestId
    reply: Reply
    trail: Trail
    ends_s: float


class _LegFault(Exception):
    """A leg failed before the client had anything.

    Attributes:
        error: what happened.
        reason: what a retry is put down to.
        blamed: the worker that should not get the retry, if one is at fault.
        certain: whether it is sure to be at fault; if not, it is still better than nobody.
    """

    def __init__(
        self, error: BatonError, reason: Reason, blamed: WorkerId | None, *, certain: bool = True
    ) -> None:
        super().__init__(error.message)
        self.error = error
        self.reason = reason
        self.blamed = blamed
        self.certain = certain


class Dispatcher:
    """Serves parsed requests.

    Args:
        profile: the active profile.
        pool: the workers.
        upstream: the HTTP client for legs.
        counting: prompt lengths.
        ledger: the book of handoffs.
        metrics: counters and timers.
        clock: for durations.
        rng: breaks ties between workers.
    """

    def __init__(
        self,
        *,
        profile: ServingProfile,
        pool: WorkerPool,
        upstream: Upstream,
        counting: Counting,
        ledger: Ledger,
        metrics: RouterMetrics,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._profile = profile
        self._deadlines = profile.spec.deadlines
        self._pool = pool
        self._upstream = upstream
        self._counting = counting
        self._ledger = ledger
        self._metrics = metrics
        self._clock = clock
        self._rng = rng

    async def serve(
        self, request: GenerateRequest, request_id: RequestId, reply: Reply, trail: Trail
    ) -> None:
        """Answers one request, errors of a started stream included.

        Raises:
            BatonError: nothing was sent yet; the caller answers with the error object.
        """
        call = _Call(
            request, request_id, reply, trail, self._clock.monotonic_s() + self._deadlines.total_s
        )
        ask = await self._ask(request)
        trail.prompt_tokens = ask.prompt_tokens
        decision = plan(ask, self._snapshot(), self._rng)
        try:
            await self._attempt(decision, call)
        except _LegFault as fault:
            self._metrics.leg_failures.labels(fault.reason, fault.error.code or "other").inc()
            log.warning("%s: %s; trying locally", request_id, fault.error.message)
            again = self._plan_again(ask, fault)
            if isinstance(again, Refuse):
                raise fault.error from fault
            try:
                await self._attempt(again, call)
            except _LegFault as second:
                self._metrics.leg_failures.labels(second.reason, second.error.code or "other").inc()
                raise second.error from second

    def _plan_again(self, ask: Ask, fault: _LegFault) -> Plan:
        avoid = () if fault.blamed is None else (fault.blamed,)
        again = plan_local(ask, self._snapshot(), self._rng, reason=fault.reason, avoid=avoid)
        if isinstance(again, Refuse) and not fault.certain:
            again = plan_local(ask, self._snapshot(), self._rng, reason=fault.reason)
        return again

    async def _ask(self, request: GenerateRequest) -> Ask:
        spec = self._profile.spec
        threshold = spec.classify.threshold_tokens if spec.classify else None
        local = request.local_reason
        bounds = None
        if threshold is not None and local is None:
            bounds = await self._counting.bounds(request, threshold)
        return Ask(
            model=request.model,
            prompt_tokens=bounds,
            answer_tokens=max(1, request.max_new_tokens or 1),
            local_reason=None if local is None else str(local),
        )

    def _snapshot(self) -> Snapshot:
        classify = self._profile.spec.classify
        return Snapshot(self._pool.views(), classify.threshold_tokens if classify else None)

    async def _attempt(self, decision: Plan, call: _Call) -> None:
        if isinstance(decision, Refuse):
            self._refuse(decision, call.request)
        call.trail.reason = decision.reason
        if isinstance(decision, Local):
            call.trail.path = "local"
            body = decode_body(call.request, None)
            with self._pool.leg(decision.worker.id):
                await self._answer(call, decision.worker, body)
            return
        call.trail.path = "disaggregated"
        await self._hand_over(decision, call)

    def _left_s(self, call: _Call, most_s: float) -> float:
        """Seconds that a wait may take: ``most_s``, or less near the end of the request."""
        return max(0.001, min(most_s, call.ends_s - self._clock.monotonic_s()))

    def _refuse(self, decision: Refuse, request: GenerateRequest) -> NoReturn:
        ours = request.model == self._profile.served_name
        if decision.refusal is Refusal.UNKNOWN_MODEL and not ours:
            raise ModelNotFound(
                f"The model {request.model!r} does not exist here; GET /v1/models lists those "
                "that do.",
                param="model",
            )
        raise NoWorker(
            f"No worker is ready to serve {request.model!r}; try again in a few seconds."
        )

    async def _hand_over(self, pair: Handoff, call: _Call) -> None:
        entry = self._ledger.plan(call.request_id, pair.prefill.id, pair.decode.id)
        try:
            params = await self._prefill(pair, call, entry)
            body = decode_body(call.request, params)
            if not entry.fresh():
                raise _LegFault(
                    HandoffUnusable("the lease of the prefilled blocks is over"),
                    Reason.TRANSFER_FAILED,
                    None,
                )
            entry.decode_sent()
            with self._pool.leg(pair.decode.id):
                await self._answer(call, pair.decode, body, entry, pair.prefill)
        except (_LegFault, BatonError) as fault:
            entry.failed(str(fault))
            raise
        finally:
            # Whatever else ends it is the client's leaving, or our own stop.
            entry.client_gone()

    async def _prefill(self, pair: Handoff, call: _Call, entry: Entry) -> dict[str, Any]:
        """The first leg. Returns the transfer parameters for decode, as they came."""
        prefill, request, trail = pair.prefill, call.request, call.trail
        began_s = self._clock.monotonic_s()
        entry.prefill_sent()
        try:
            with self._pool.leg(prefill.id):
                answer = await self._upstream.ask(
                    prefill,
                    request.endpoint,
                    prefill_body(request),
                    call.request_id,
                    timeout_s=self._left_s(call, self._deadlines.prefill_s),
                )
        except PeerFault as error:
            self._doubt(prefill, error)
            raise _LegFault(error, Reason.PREFILL_FAILED, prefill.id) from error
        self._metrics.prefill_leg.observe(self._clock.monotonic_s() - began_s)
        if 400 <= answer.status < 500 and answer.status != 401:
            # Decode will refuse the original body in the words that a single server would use.
            raise _LegFault(
                HandoffUnusable(f"prefill refused the request ({answer.status})"),
                Reason.PREFILL_REFUSED,
                None,
            )
        if answer.status != 200:
            raise _LegFault(
                WorkerFailed(f"prefill worker {prefill.id} answered {answer.status}"),
                Reason.PREFILL_FAILED,
                prefill.id,
            )
        params, prompt_tokens = _read_offer(answer, prefill)
        self._counting.compare(request, trail.prompt_tokens, prompt_tokens)
        trail.prompt_tokens = TokenBounds(prompt_tokens, prompt_tokens)
        entry.prefill_answered(
            prompt_tokens=prompt_tokens,
            kv_bytes=kv_bytes(prefill.geometry, prompt_tokens),
            lease_s=self._profile.spec.transfer.lease_s,
        )
        return params

    async def _answer(
        self,
        call: _Call,
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
            answer = await self._guarded(
                self._upstream.ask(
                    worker,
                    call.request.endpoint,
                    body,
                    call.request_id,
                    timeout_s=self._left_s(call, self._deadlines.total_s),
                ),
                prefill,
                worker,
            )
        except WorkerUnreachable as error:
            self._doubt(worker, error)
            raise _LegFault(error, Reason.DECODE_FAILED, worker.id) from error
        except WorkerTimeout as error:
            # In a handoff it may be prefill that hangs, and decode with it.
            raise _LegFault(error, failure, worker.id, certain=prefill is None) from error
        except PeerFault as error:
            blamed = worker.id if prefill is None else None
            raise _LegFault(error, failure, blamed) from error
        self._check_status(answer, worker, prefill)
        if entry is not None and answer.status == 200:
            entry.first_content()
            entry.finished()
        await self._reply_whole(call, answer, entry)

    async def _reply_whole(self, call: _Call, answer: Answer, entry: Entry | None) -> None:
        if entry is not None and answer.status != 200:
            entry.failed(f"decode refused the request ({answer.status})")
        call.trail.status = answer.status
        headers = [
            ("content-type", answer.content_type),
            ("content-length", str(len(answer.body))),
            *self._headers(call.trail),
        ]
        await call.reply.start(answer.status, headers)
        await call.reply.send(answer.body, last=True)

    async def _stream(
        self,
        call: _Call,
        worker: WorkerRecord,
        body: bytes,
        entry: Entry | None,
        prefill: WorkerRecord | None,
    ) -> None:
        began_s = self._clock.monotonic_s()
        first_s = self._left_s(call, self._deadlines.first_token_s)
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
            head = await self._guarded(self._first_content(leg, events, left_s), prefill, worker)
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
                    *self._headers(call.trail),
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
        self, call: _Call, leg: Leg, events: sse.EventBuffer, head: bytes, entry: Entry | None
    ) -> None:
        """From the first content to the end. A failure becomes an error event, never silence."""
        reply, idle_s = call.reply, self._deadlines.idle_s
        done = sse.is_complete(head)
        await reply.send(head)
        try:
            while data := await leg.read(timeout_s=self._left_s(call, idle_s)):
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

    async def _broke_off(
        self, call: _Call, leg: Leg, error: Exception, entry: Entry | None
    ) -> None:
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
            _LegFault: the worker's fault: 5xx, or a key that it does not take.
        """
        if answer.status < 500 and answer.status != 401:
            return
        error = WorkerFailed(f"worker {worker.id} answered {answer.status}")
        if prefill is None:
            raise _LegFault(error, Reason.DECODE_FAILED, worker.id)
        raise _LegFault(error, Reason.TRANSFER_FAILED, None)

    async def _guarded(
        self, work: Coroutine[Any, Any, T], prefill: WorkerRecord | None, decode: WorkerRecord
    ) -> T:
        """Runs ``work``; gives it up when prefill has gone silent and decode still waits for it.

        An engine that pulls from a hung peer waits without end, and a whole answer shows no first
        token. So the registry is asked: prefill no longer ready, and decode, by its own figures
        from after that, with requests that are not running yet.

        Raises:
            WorkerTimeout: it was given up.
        """
        if prefill is None:
            return await work
        working = asyncio.ensure_future(work)
        watching = asyncio.create_task(self._until_stalled(prefill, decode))
        try:
            await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            raise WorkerTimeout(
                f"prefill worker {prefill.id} fell silent before its blocks were pulled"
            )
        finally:
            for task in (working, watching):
                task.cancel()
            await asyncio.gather(working, watching, return_exceptions=True)

    async def _until_stalled(self, prefill: WorkerRecord, decode: WorkerRecord) -> None:
        beats: set[float] = set()
        while True:
            await asyncio.sleep(_WATCH_S)
            now = self._pool.record(prefill.id)
            if (
                now is not None
                and now.engine_id == prefill.engine_id
                and now.state in (WorkerState.READY, WorkerState.DRAINING)
            ):
                beats.clear()
                continue
            other = self._pool.record(decode.id)
            if other is None:
                continue
            beats.add(other.heartbeat_s)
            # The first is from before prefill fell silent, perhaps.
            if len(beats) > _BEATS_TO_JUDGE:
                if other.load.waiting > 0:
                    return
                beats.clear()

    def _doubt(self, worker: WorkerRecord, error: BatonError) -> None:
        if isinstance(error, WorkerUnreachable):
            self._pool.suspect(worker)

    def _headers(self, trail: Trail) -> Headers:
        return trail.headers(self._profile.metadata.name)


def _read_offer(answer: Answer, prefill: WorkerRecord) -> tuple[dict[str, Any], int]:
    """Transfer parameters and prompt length of prefill's answer.

    Raises:
        _LegFault: prefill worked, but nothing can be pulled.
    """
    try:
        body = msgspec.json.decode(answer.body)
        params = body["kv_transfer_params"]
        prompt_tokens = int(body["usage"]["prompt_tokens"])
        if isinstance(params, dict) and params.get("remote_block_ids") and prompt_tokens > 0:
            return params, prompt_tokens
    except (msgspec.DecodeError, KeyError, TypeError, ValueError):
        pass
    raise _LegFault(
        HandoffUnusable(f"prefill worker {prefill.id} offered no blocks"),
        Reason.PREFILL_FAILED,
        prefill.id,
    )


__all__ = ["Dispatcher", "Headers", "Reply", "Trail"]
