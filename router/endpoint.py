"""One request from its head to its end: who asks, what for, when it may go, what came of it.

These are the hot endpoints: handlers of ``router.wire``, past FastAPI. A client that leaves cancels
its handler's task, and with it whatever leg is open.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final

from baton.errors import (
    BatonError,
    BodyTooLarge,
    DeadlineExceeded,
    InvalidRequest,
    Overload,
    TooManyRequests,
)
from baton.telemetry import LogContext, log_context
from baton.types import RequestId
from router.api import (
    GENERATING,
    PASSED_THROUGH,
    Endpoint,
    error_body,
    parse_passthrough,
    parse_request,
    session_of,
)
from router.call import Call, Trail
from router.flow import Ticket
from router.observe import RequestSpan, Stage, access
from router.state import RouterState
from router.tenants import Tenant, effective_priority, estimate_tokens, require_model
from router.wire import ClientGone, Exchange, Handler

log = logging.getLogger("baton.router.requests")

_BODY_S = 60.0
"""For a client to send its body; a slow one must not hold a place for ever."""
_BYTES_PER_TOKEN: Final = 4
_GONE: Final = 499


def routes(state: RouterState) -> dict[tuple[str, str], Handler]:
    """The handlers of the hot endpoints, by method and path."""
    generating = {("POST", str(e)): _Generate(e, state).serve for e in GENERATING}
    room = _Room(state)
    passed = {("POST", str(e)): _PassThrough(e, state, room).serve for e in PASSED_THROUGH}
    return {**generating, **passed}


class _Handler:
    """What both kinds of endpoints have in common: accounting, errors, limits."""

    def __init__(self, endpoint: Endpoint, state: RouterState) -> None:
        self._endpoint = endpoint
        self._state = state

    async def serve(self, exchange: Exchange) -> None:
        """Answers one request; never raises but when cancelled."""
        state = self._state
        request_id = state.new_request_id()
        client_id = exchange.header(b"x-request-id")
        servings = state.servings
        serving = servings.current
        if servings.candidate is not None:
            # By the client's own id where it has one: its retry is served by the same profile.
            said = request_id if client_id is None else client_id.decode("latin-1")
            serving = servings.pick(said)
        serving.held += 1
        trail = Trail(state.clock.monotonic_s(), serving)
        span = state.tracer.begin(exchange.headers, "POST", self._endpoint)
        reply = _Reply(exchange, client_id, request_id)
        tenant: Tenant | None = None
        state.metrics.request_began()
        try:
            tenant = state.directory.tenant(
                exchange.header(b"authorization"), exchange.header(b"x-api-key")
            )
            log_context.set(LogContext(request_id, tenant.name, span.trace_id, serving.version))
            body = await exchange.body(serving.body_bytes, _BODY_S)
            trail.began_s = state.clock.monotonic_s()
            await self._answer(exchange, body, tenant, request_id, reply, trail, span)
        except ClientGone:
            trail.status = _GONE
            # One whose body took too long is still there.
            reply.cut()
        except asyncio.CancelledError:
            trail.status = _GONE
            raise
        except BatonError as error:
            self._fail(error, reply, trail)
        except Exception:
            log.exception("%s failed", request_id)
            self._fail(BatonError("The router failed; its log says why."), reply, trail)
        finally:
            self._account(trail, tenant, request_id, span, gone=exchange.gone)

    async def _answer(
        self,
        exchange: Exchange,
        body: bytes,
        tenant: Tenant,
        request_id: RequestId,
        reply: _Reply,
        trail: Trail,
        span: RequestSpan,
    ) -> None:
        raise NotImplementedError

    def _deadline_s(self, exchange: Exchange, trail: Trail) -> tuple[float, bool]:
        """The request's last moment, and whether the client named it."""
        now_s, total_s = trail.began_s, trail.serving.total_s
        given = exchange.header(b"x-baton-timeout-s")
        if given is None:
            return now_s + total_s, False
        timeout_s = math.nan
        with contextlib.suppress(ValueError):
            timeout_s = float(given)
        if not 0 < timeout_s < math.inf:
            raise InvalidRequest(
                "the header x-baton-timeout-s must be a number of seconds above 0",
                param="x-baton-timeout-s",
            )
        return now_s + min(timeout_s, total_s), timeout_s < total_s

    def _fail(self, error: BatonError, reply: _Reply, trail: Trail) -> None:
        trail.error = trail.error or error.message
        trail.own_limit = trail.own_limit or isinstance(error, DeadlineExceeded)
        if reply.started:
            # The answerer ends its streams itself; this is the last resort.
            trail.status = trail.status or error.status
            reply.cut()
            return
        trail.status = error.status
        headers = [
            ("content-type", "application/json"),
            *trail.headers(explain=False),
        ]
        if error.status in (429, 503):
            known_s = error.retry_after_s if isinstance(error, Overload) else None
            headers.append(("retry-after", str(math.ceil(known_s or 1))))
        if isinstance(error, BodyTooLarge):
            reply.last_on_connection()
        with contextlib.suppress(ClientGone):
            reply.reply(error.status, headers, error_body(self._endpoint, error))

    def _account(
        self,
        trail: Trail,
        tenant: Tenant | None,
        request_id: RequestId,
        span: RequestSpan,
        *,
        gone: bool,
    ) -> None:
        state = self._state
        status = trail.status or (_GONE if gone else 500)
        duration_s = state.clock.monotonic_s() - trail.began_s
        prompt, output = trail.known_prompt_tokens, trail.output_tokens
        ttft_s = trail.ttft_s
        serving = trail.serving
        serving.held -= 1
        state.metrics.request_done(
            endpoint=self._endpoint,
            path=trail.path,
            reason=trail.reason,
            profile_version=serving.version,
            status=status,
            duration_s=duration_s,
            ttft_s=ttft_s if trail.events else None,
            attempts=trail.attempts,
            prompt_tokens=prompt,
            uncached_tokens=trail.uncached_tokens,
            output_tokens=output or None,
        )
        streamed_s = ttft_s if trail.events else None
        if (status < 400 or status >= 500) and not trail.own_limit:
            # What the client ended, or got wrong, says nothing of the profile.
            state.servings.done(
                serving,
                status=status,
                broke_off=bool(trail.error),
                ttft_s=streamed_s,
                tpot_s=_tpot_s(duration_s, streamed_s, output),
                duration_s=duration_s,
            )
        predicted = trail.predicted
        if predicted is not None and ttft_s is not None and trail.events:
            said_s = predicted.remote_s if trail.path == "disaggregated" else predicted.local_s
            if said_s is not None:
                state.metrics.predicted(trail.path, said_s, ttft_s - trail.queue_s)
        name = None if tenant is None else tenant.name
        if name is not None:
            state.metrics.tenant_done(
                name,
                _outcome(status, trail),
                prompt_tokens=prompt or 0,
                output_tokens=output,
            )
        if span.recording:
            span.set_all(trail.attributes(name))
        span.end(status, trail.error or None)
        access(
            request_id=request_id,
            endpoint=self._endpoint,
            path=trail.path,
            reason=trail.reason,
            status=status,
            duration_s=duration_s,
            ttft_s=ttft_s,
            prompt_tokens=prompt,
            output_tokens=output,
            attempts=trail.attempts,
            tenant=name,
            trace_id=span.trace_id,
            profile_version=serving.version,
            prefill=trail.prefill,
            decode=trail.decode,
        )


class _Generate(_Handler):
    """An endpoint that generates text."""

    async def _answer(
        self,
        exchange: Exchange,
        body: bytes,
        tenant: Tenant,
        request_id: RequestId,
        reply: _Reply,
        trail: Trail,
        span: RequestSpan,
    ) -> None:
        state = self._state
        request = parse_request(self._endpoint, body)
        if request.stripped:
            log.warning("%s: transfer parameters of the client's were dropped", request_id)
        require_model(tenant, request.model)
        ends_s, limited = self._deadline_s(exchange, trail)
        tokens = estimate_tokens(len(body) // _BYTES_PER_TOKEN, request.max_new_tokens)
        base, adapter = state.pool.base_of(request.model)
        ticket = Ticket(
            model=base,
            tenant=tenant.name,
            weight=tenant.weight,
            priority=effective_priority(tenant, exchange.header(b"x-baton-priority")),
            tokens=max(1.0, tokens),
            deadline_s=ends_s if limited else None,
        )
        with _Allowance(state, tenant, tokens) as allowance:
            reply.extra = allowance.headers
            place = state.gate.try_admit(ticket)
            if place is None:
                with span.stage(Stage.QUEUE):
                    place = await state.gate.admit(ticket)
            with place:
                trail.queue_s = place.waited_s
                state.metrics.queue.observe((str(ticket.priority),), place.waited_s)
                call = Call(
                    request=request,
                    request_id=request_id,
                    reply=reply,
                    trail=trail,
                    ends_s=ends_s,
                    task=exchange.task,
                    limited_by_client=limited,
                    span=span,
                    explain=exchange.header(b"x-baton-explain") == b"1",
                    session=_session(exchange) or session_of(request),
                )
                call.chain = state.chain_of(request, base, adapter)
                await state.dispatcher.serve(call)
                used = (trail.known_prompt_tokens or 0) + trail.output_tokens
                allowance.used_tokens = used
                place.release(used)


class _Room:
    """The bound on requests, for those that do not pass the gate. Whose body is still on its way
    is not counted: slow clients must not shut the others out."""

    __slots__ = ("_count", "_gate")

    def __init__(self, state: RouterState) -> None:
        self._gate = state.gate
        self._count = 0

    def __enter__(self) -> None:
        if self._gate.held + self._count >= self._gate.rules.in_flight:
            raise TooManyRequests("This router holds as many requests as it may.")
        self._count += 1

    def __exit__(self, *_: object) -> None:
        self._count -= 1


class _PassThrough(_Handler):
    """An endpoint that one worker answers as it is."""

    def __init__(self, endpoint: Endpoint, state: RouterState, room: _Room) -> None:
        super().__init__(endpoint, state)
        self._room = room

    async def _answer(
        self,
        exchange: Exchange,
        body: bytes,
        tenant: Tenant,
        request_id: RequestId,
        reply: _Reply,
        trail: Trail,
        span: RequestSpan,
    ) -> None:
        state = self._state
        request = parse_passthrough(self._endpoint, body)
        require_model(tenant, request.model)
        ends_s, _ = self._deadline_s(exchange, trail)
        with self._room, _Allowance(state, tenant, len(body) // _BYTES_PER_TOKEN) as allowance:
            reply.extra = allowance.headers
            await state.dispatcher.pass_through(request, request_id, reply, trail, ends_s)


class _Allowance:
    """What a tenant's limits let one request take; settled when the block ends.

    Attributes:
        headers: OpenAI's rate limit headers.
        used_tokens: prompt and answer, once they are known; 0 until the request has run.

    Raises:
        TooManyRequests: from the start, when a limit is reached.
    """

    __slots__ = ("_reservation", "_state", "headers", "used_tokens")

    def __init__(self, state: RouterState, tenant: Tenant, tokens: float) -> None:
        now_s = state.clock.monotonic_s()
        self._state = state
        self._reservation = state.limits.reserve(tenant, tokens, now_s)
        self.headers = state.limits.headers(tenant, now_s)
        self.used_tokens: float | None = 0.0

    def __enter__(self) -> _Allowance:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        now_s = self._state.clock.monotonic_s()
        self._state.limits.settle(self._reservation, self.used_tokens, now_s)


class _Reply:
    """The way back to the client, with the headers that every answer bears."""

    __slots__ = ("_exchange", "_id", "extra")

    def __init__(self, exchange: Exchange, client_id: bytes | None, request_id: RequestId) -> None:
        self._exchange = exchange
        # The client's own id, if it is one that can be sent back.
        sound = client_id is not None and 0 < len(client_id) <= 200 and client_id.isascii()
        self._id = client_id.decode("ascii") if client_id is not None and sound else request_id
        self.extra: Sequence[tuple[str, str]] = ()

    @property
    def started(self) -> bool:
        """Whether status and headers are on their way."""
        return self._exchange.started

    def start(
        self, status: int, headers: Sequence[tuple[str, str]], *, length: int | None = None
    ) -> None:
        """See ``Exchange.start``."""
        self._exchange.start(status, self._all(headers), length=length)

    def write(self, data: bytes) -> None:
        """See ``Exchange.write``."""
        self._exchange.write(data)

    def writer(self) -> Callable[[bytes], None]:
        """See ``Exchange.writer``."""
        return self._exchange.writer()

    def chunk_writer(self) -> Exchange | None:
        """See ``Exchange.write_chunk``."""
        return self._exchange if self._exchange.takes_chunks else None

    def end(self, data: bytes = b"") -> None:
        """See ``Exchange.end``."""
        self._exchange.end(data)

    def reply(self, status: int, headers: Sequence[tuple[str, str]], body: bytes) -> None:
        """See ``Exchange.reply``."""
        self._exchange.reply(status, self._all(headers), body)

    def on_congestion(self, callback: object) -> None:
        """See ``Exchange.on_congestion``."""
        self._exchange.on_congestion(callback)  # type: ignore[arg-type]

    def last_on_connection(self) -> None:
        """The connection cannot be used again."""
        self._exchange.keep_alive = False

    def cut(self) -> None:
        """Closes the connection, unless the answer has ended."""
        if not self._exchange.ended:
            self._exchange.cut()

    def _all(self, headers: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        return [*headers, *self.extra, ("x-request-id", self._id)]


def _tpot_s(duration_s: float, ttft_s: float | None, output_tokens: int) -> float | None:
    """Mean time of the tokens after the first; None where there is none."""
    if ttft_s is None or output_tokens < 2:
        return None
    return (duration_s - ttft_s) / (output_tokens - 1)


def _session(exchange: Exchange) -> str | None:
    given = exchange.header(b"x-session-id")
    return given[:200].decode("latin-1") if given else None


def _outcome(status: int, trail: Trail) -> str:
    if status == _GONE:
        return "gone"
    if status == 429:
        return "limited"
    if status >= 500 or trail.error:
        return "failed"
    return "ok" if status < 400 else "client_error"


__all__ = ["routes"]
