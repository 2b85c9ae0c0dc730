"""The life of a request: count, plan, prefill, hand over, stream, account.

Decisions come from ``router.policy``; this module carries them out. Its promises:

- The client's 200 is sent only after the first content event (or the whole answer) is here.
- Until then a failed leg is tried again as the profile's ``degrade`` says, with a fresh prefill,
  and never on a worker that has failed the request; transfer parameters are never used twice.
- Every leg has a deadline, and whatever ends a request, its legs are closed, its handoff has
  ended, no worker stays counted busy, and blocks that nobody will pull are reclaimed.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from typing import Final, NoReturn

import msgspec

from baton.clock import Clock
from baton.errors import (
    BatonError,
    DeadlineExceeded,
    HandoffUnusable,
    ModelNotFound,
    NoWorker,
    PeerFault,
    WorkerFailed,
    WorkerTimeout,
)
from baton.types import RequestId, WorkerId, WorkerRecord
from kvtransfer import kv_bytes
from router.aftercare import Aftercare, LegEnd
from router.answer import Answerer
from router.api import (
    Endpoint,
    PassthroughRequest,
    decode_body,
    engine_error,
    prefill_answer,
    prefill_body,
)
from router.call import EARLY_S, Call, LegFault, Reply, Trail, is_fault
from router.counting import Counting
from router.ledger import Entry, Ledger, Offer
from router.observe import RouterMetrics, Stage
from router.observe import attributes as names
from router.policy import (
    Ask,
    Fail,
    Fault,
    Handoff,
    Local,
    Plan,
    Reason,
    Refusal,
    Refuse,
    TokenBounds,
    Wait,
    plan,
    plan_again,
    plan_local,
)
from router.pool import WorkerPool
from router.prefix import Chain
from router.serving import Serving
from router.stall import Watches
from router.wire import Answer, Upstream

_PASSED_THROUGH = "passed_through"
_RECENT: Final = 256
"""Requests that are remembered, for what another profile would make of them."""

log = logging.getLogger("baton.router.dispatch")


class Recent:
    """A request that was decided about lately.

    Attributes:
        ask: what was known of it.
        chain: of its prompt.
        trail: what became of it.
    """

    __slots__ = ("ask", "chain", "trail")

    def __init__(self, ask: Ask, chain: Chain, trail: Trail) -> None:
        self.ask = ask
        self.chain = chain
        self.trail = trail


class Dispatcher:
    """Serves parsed requests.

    Args:
        pool: the workers, and what is known of them.
        upstream: the HTTP client for legs.
        answerer: carries out the answering leg.
        counting: prompt lengths.
        ledger: the book of handoffs.
        aftercare: told how workers and pairs do; reclaims orphans.
        watches: ends waits for prefill that the registry says are in vain.
        metrics: counters and timers.
        clock: for durations.
        rng: breaks ties between workers.
        unseen_s: for how long what was just read may have lain unread, since this process stood
            still: an offer's lease has run meanwhile.

    Attributes:
        recent: the last requests, oldest first.
    """

    def __init__(
        self,
        *,
        pool: WorkerPool,
        upstream: Upstream,
        answerer: Answerer,
        counting: Counting,
        ledger: Ledger,
        aftercare: Aftercare,
        watches: Watches,
        metrics: RouterMetrics,
        clock: Clock,
        rng: random.Random,
        unseen_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._pool = pool
        self._upstream = upstream
        self._answerer = answerer
        self._counting = counting
        self._ledger = ledger
        self._care = aftercare
        self._watches = watches
        self._metrics = metrics
        self._clock = clock
        self._rng = rng
        self._unseen_s = unseen_s
        self.recent: deque[Recent] = deque(maxlen=_RECENT)

    async def serve(self, call: Call) -> None:
        """Answers one request, errors of a started stream included.

        Raises:
            BatonError: nothing was sent yet; the caller answers with the error object.
        """
        with call.span.stage(Stage.PLAN):
            ask = await self.ask(call)
            match = self._pool.match(call.chain, ask.prompt_tokens)
            self.recent.append(Recent(ask, call.chain, call.trail))
            decision: Plan = plan(ask, self._pool.snapshot(call.serving, match), self._rng)
        while True:
            call.trail.attempts += 1
            fault: LegFault | None = None
            try:
                await self._attempt(decision, call)
            except LegFault as raised:
                fault = raised
            if fault is None:
                return
            # Not in the handler: a wait there would put the fault into other tasks' tracebacks.
            self._metrics.leg_failed(fault.reason, fault.error.code or "other")
            decision = await self._after(fault, ask, call)

    async def ask(self, call: Call) -> Ask:
        """What the policy needs to know; counts the prompt if the path depends on it."""
        request = call.request
        classify = call.serving.classify
        bounds: TokenBounds | None = None
        if classify is not None and request.local_reason is None:
            began_s = self._clock.monotonic_s()
            bounds = await self._counting.bounds(
                request,
                classify.threshold_tokens,
                within_s=call.left_s(began_s, call.serving.deadlines.first_token_s),
            )
            call.trail.count_s = self._clock.monotonic_s() - began_s
        call.trail.prompt_tokens = bounds
        return Ask(
            model=request.model,
            prompt_tokens=bounds,
            answer_tokens=max(1, request.max_new_tokens or 1),
            local_reason=None if request.local_reason is None else str(request.local_reason),
            session=call.session or "",
            predict=call.explain or call.span.recording,
        )

    async def pass_through(
        self,
        request: PassthroughRequest,
        request_id: RequestId,
        reply: Reply,
        trail: Trail,
        ends_s: float,
    ) -> None:
        """One worker's answer to something that generates nothing (tokens, embeddings).

        Raises:
            BatonError: nothing was sent yet.
        """
        ask = Ask(model=request.model, prompt_tokens=None)
        failed: set[WorkerId] = set()
        trail.path, trail.reason = "local", _PASSED_THROUGH
        error: BatonError | None = None
        serving = trail.serving
        while len(failed) < serving.attempts:
            decision = plan_local(
                ask, self._pool.snapshot(serving), self._rng, reason=_PASSED_THROUGH, avoid=failed
            )
            if isinstance(decision, Refuse):
                if error is not None:
                    break
                self._refuse(decision, request.model, serving)
            worker = decision.worker
            trail.attempts += 1
            trail.decode = worker.id
            try:
                answer = await self._ask_once(request, worker, request_id, ends_s)
            except PeerFault as fault:
                if (
                    isinstance(fault, WorkerTimeout)
                    and self._clock.monotonic_s() >= ends_s - EARLY_S
                ):
                    raise  # the request's own time is over, which is nobody's fault
                self._care.failed(worker, fault, request_id)
                failed.add(worker.id)
                error = fault
                continue
            body = answer.body
            if answer.status >= 400:
                body = engine_error(request.endpoint, answer.status, body)
            trail.status = answer.status
            headers = [
                ("content-type", answer.content_type),
                *trail.headers(explain=False),
            ]
            reply.reply(answer.status, headers, body)
            return
        assert error is not None  # degrade.attempts is at least 1
        raise error

    async def _ask_once(
        self,
        request: PassthroughRequest,
        worker: WorkerRecord,
        request_id: RequestId,
        ends_s: float,
    ) -> Answer:
        left_s = max(0.001, ends_s - self._clock.monotonic_s())
        # Embeddings keep an engine busy; the rest is the API server's own work.
        with (
            self._pool.leg(worker.id) if request.endpoint is Endpoint.EMBEDDINGS else nullcontext()
        ):
            answer = await self._upstream.ask(
                worker, request.endpoint, request.body, request_id, timeout_s=left_s
            )
        if is_fault(answer.status):
            raise WorkerFailed(f"worker {worker.id} answered {answer.status}")
        return answer

    # --- after a fault ---

    async def _after(self, fault: LegFault, ask: Ask, call: Call) -> Plan:
        """What to try next.

        Raises:
            BatonError: nothing; it is the fault's own.
        """
        call.failed.update(fault.failed)
        now_s = self._clock.monotonic_s()
        if call.is_over(now_s):
            raise self._out_of_time(fault.error, call) from fault
        waited = False
        while True:
            decision = self._next(fault, ask, call)
            if isinstance(decision, Fail):
                raise fault.error from fault
            if not isinstance(decision, Wait):
                log.warning(
                    "%s: %s; trying again: %s",
                    call.request_id,
                    fault.error.message,
                    decision.reason if isinstance(decision, Local) else "another handoff",
                )
                return decision
            if not waited:
                log.warning("%s: %s; waiting for a worker", call.request_id, fault.error.message)
                waited = True
            left_s = call.ends_s - self._clock.monotonic_s()
            if left_s <= 0:
                raise self._out_of_time(fault.error, call) from fault
            await asyncio.sleep(min(left_s, decision.seconds))
            call.trail.attempts += 1

    def _next(self, fault: LegFault, ask: Ask, call: Call) -> Local | Handoff | Wait | Fail:
        match = self._pool.match(call.chain, ask.prompt_tokens)
        snapshot = self._pool.snapshot(call.serving, match)
        attempt = call.trail.attempts
        # Those in doubt are left out too where that leaves somebody.
        for avoid in (call.failed.union(fault.doubted), call.failed):
            decision = plan_again(
                msgspec.structs.replace(ask, avoid=frozenset(avoid)),
                snapshot,
                self._rng,
                Fault(fault.reason, frozenset(avoid)),
                attempt,
            )
            if not isinstance(decision, Fail | Wait) or not fault.doubted:
                return decision
        return decision

    def _out_of_time(self, error: BatonError, call: Call) -> BatonError:
        if call.limited_by_client:
            return DeadlineExceeded("The deadline given with the request has passed.")
        return error

    # --- one try ---

    async def _attempt(self, decision: Plan, call: Call) -> None:
        if isinstance(decision, Refuse):
            self._refuse(decision, call.request.model, call.serving)
        trail = call.trail
        trail.reason = decision.reason
        trail.decider = decision.decider or trail.decider
        trail.uncached_tokens = decision.uncached_tokens
        trail.predicted = decision.predicted or trail.predicted
        if decision.lean is not None:
            self._pool.lean(decision.lean)
        self._metrics.decided(decision.decider or "none", decision.reason, call.serving.version)
        if isinstance(decision, Handoff):
            trail.path = "disaggregated"
            trail.prefill, trail.decode = decision.prefill.id, decision.decode.id
            await self._hand_over(decision, call)
        else:
            trail.path = "local"
            trail.prefill, trail.decode = None, decision.worker.id
            await self._local(decision, call)

    def _refuse(self, decision: Refuse, model: str, serving: Serving) -> NoReturn:
        served_name = serving.profile.served_name
        if decision.refusal is Refusal.UNKNOWN_MODEL and model != served_name:
            raise ModelNotFound(
                f"The model {model!r} does not exist here; GET /v1/models lists those that do.",
                param="model",
            )
        raise NoWorker(f"No worker is ready to serve {model!r}; try again in a few seconds.")

    async def _local(self, decision: Local, call: Call) -> None:
        worker, uncached = decision.worker, decision.uncached_tokens or 0
        body = decode_body(call.request, None)
        began_s = self._clock.monotonic_s()
        with self._pool.leg(worker.id), self._pool.prefilling_on(worker.id, uncached) as ahead:

            def on_first() -> None:
                ahead.over()
                self._pool.cached(worker, call.chain)
                # A whole answer shows its end only, which says nothing of the prefill.
                if call.request.stream:
                    took_s = self._clock.monotonic_s() - began_s
                    self._metrics.decode_first.observe(("local",), took_s)
                    self._pool.prefilled(worker, uncached, ahead.ahead, took_s)

            await self._answerer.answer(call, worker, body, on_first=on_first)

    async def _hand_over(self, pair: Handoff, call: Call) -> None:
        entry = self._ledger.plan(call.request_id, pair.prefill.id, pair.decode.id)
        end = LegEnd.CLOSED
        try:
            # Decode counts as busy from the plan on: requests that are planned while this one is
            # being prefilled must not all pick the same worker.
            with self._pool.leg(pair.decode.id):
                offer = await self._prefill(pair, call, entry)
                if not entry.fresh():
                    raise LegFault(
                        HandoffUnusable("the lease of the prefilled blocks is over"),
                        Reason.TRANSFER_FAILED,
                    )
                body = decode_body(call.request, offer.take())
                entry.decode_sent()
                sent_s = self._clock.monotonic_s()

                def on_first() -> None:
                    self._pool.cached(pair.decode, call.chain)
                    if call.request.stream:
                        took_s = self._clock.monotonic_s() - sent_s
                        self._metrics.decode_first.observe(("disaggregated",), took_s)
                        self._pool.pulled(pair, call.trail.kv_bytes, took_s)
                        self._care.pulled(pair, call.trail.kv_bytes, took_s)

                await self._answerer.answer(call, pair.decode, body, entry, pair.prefill, on_first)
            if not call.trail.error:
                self._care.finished(call, pair, offer.prompt_tokens)
        except (LegFault, BatonError) as fault:
            entry.failed(str(fault))
            end = LegEnd.of(fault.error if isinstance(fault, LegFault) else fault)
            raise
        finally:
            # Whatever else ends it is the client's leaving, or our own stop.
            entry.client_gone()
            if entry.offer is not None and entry.strands_kv:
                self._care.reclaim(call, pair, entry.offer, entry, end)

    # --- the first leg ---

    async def _prefill(self, pair: Handoff, call: Call, entry: Entry) -> Offer:
        """The first leg. Returns what prefill offers."""
        prefill, request, trail = pair.prefill, call.request, call.trail
        began_s = self._clock.monotonic_s()
        uncached = pair.prefill_uncached_tokens or 0
        entry.prefill_sent()
        try:
            with (
                self._pool.leg(prefill.id, answering=False),
                self._pool.prefilling_on(prefill.id, uncached) as ahead,
                self._watches.over(prefill, task=call.task),
                call.span.stage(Stage.PREFILL) as stage,
            ):
                stage.set(names.WORKER, prefill.id)
                stage.set(names.ATTEMPT, trail.attempts)
                answer = await self._upstream.ask(
                    prefill,
                    request.endpoint,
                    prefill_body(request),
                    call.request_id,
                    timeout_s=call.left_s(began_s, call.serving.deadlines.prefill_s),
                    headers=stage.headers_for_worker(),
                )
        except PeerFault as error:
            if not isinstance(error, WorkerTimeout) or not call.is_over(self._clock.monotonic_s()):
                self._care.failed(prefill, error, call.request_id)
            raise LegFault(error, Reason.PREFILL_FAILED, failed=[prefill]) from error
        took_s = self._clock.monotonic_s() - began_s
        self._metrics.prefill_leg.observe((), took_s)
        trail.prefill_s = took_s
        if answer.status >= 400 and not is_fault(answer.status):
            # Decode will refuse the original body in the words that a single server would use.
            raise LegFault(
                HandoffUnusable(f"prefill refused the request ({answer.status})"),
                Reason.PREFILL_REFUSED,
            )
        offer = entry.offer = self._read_offer(answer, prefill, call)
        self._care.worked(prefill)
        self._pool.cached(prefill, call.chain)
        self._pool.prefilled(prefill, uncached, ahead.ahead, took_s)
        self._counting.compare(request, trail.prompt_tokens, offer.prompt_tokens)
        trail.prompt_tokens = TokenBounds(offer.prompt_tokens, offer.prompt_tokens)
        trail.kv_bytes = offer.kv_bytes
        entry.prefill_answered(
            prompt_tokens=offer.prompt_tokens,
            kv_bytes=offer.kv_bytes,
            lease_s=_lease_s(call.serving, prefill),
            unseen_s=self._unseen_s(),
        )
        return offer

    def _read_offer(self, answer: Answer, prefill: WorkerRecord, call: Call) -> Offer:
        """Transfer parameters and prompt length of prefill's answer.

        Raises:
            LegFault: prefill failed, or it worked and nothing can be pulled.
        """
        error: PeerFault
        if answer.status == 200:
            found = prefill_answer(call.request.endpoint, answer.body)
            if found is not None:
                tokens = found.usage.prompt_tokens
                call.prefill_usage = found.usage
                held = kv_bytes(prefill.geometry, tokens)
                return Offer(found.params, prompt_tokens=tokens, kv_bytes=held)
            error = HandoffUnusable(f"prefill worker {prefill.id} offered no blocks")
        else:
            error = WorkerFailed(f"prefill worker {prefill.id} answered {answer.status}")
        self._care.failed(prefill, error, call.request_id)
        raise LegFault(error, Reason.PREFILL_FAILED, failed=[prefill])


def _lease_s(serving: Serving, prefill: WorkerRecord) -> float:
    """How long an offer may be relied on: engines keep to what they were started with."""
    lease_s = serving.profile.spec.transfer.lease_s
    return lease_s if prefill.lease_s <= 0 else min(lease_s, prefill.lease_s)
