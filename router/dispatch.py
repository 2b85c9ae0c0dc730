"""The life of a request: count, plan, prefill, hand over, stream, account.

Decisions come from ``router.policy``; this module carries them out. Its promises:

- The client's 200 is sent only after the first content event (or the whole answer) is here.
- Until then a failed leg is tried once more, locally, with a fresh prefill; transfer parameters
  are never used twice.
- Every leg has a deadline, and whatever ends a request, its legs are closed, its handoff has
  ended, and no worker stays counted busy.
"""

from __future__ import annotations

import logging
import random
from typing import Any, NoReturn

import msgspec

from baton.clock import Clock
from baton.errors import (
    BatonError,
    HandoffUnusable,
    ModelNotFound,
    NoWorker,
    PeerFault,
    WorkerFailed,
    WorkerUnreachable,
)
from baton.types import RequestId, WorkerRecord
from kvtransfer import kv_bytes
from profiles import ServingProfile
from router.answer import Answerer
from router.call import Call, LegFault, Reply, Trail
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
from router.upstream import Answer, Upstream

log = logging.getLogger("baton.router.dispatch")


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
        self._answerer = Answerer(profile=profile, pool=pool, upstream=upstream, clock=clock)
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
        call = Call(
            request, request_id, reply, trail, self._clock.monotonic_s() + self._deadlines.total_s
        )
        ask = await self._ask(request)
        trail.prompt_tokens = ask.prompt_tokens
        decision = plan(ask, self._snapshot(), self._rng)
        try:
            await self._attempt(decision, call)
        except LegFault as fault:
            self._metrics.leg_failures.labels(fault.reason, fault.error.code or "other").inc()
            log.warning("%s: %s; trying locally", request_id, fault.error.message)
            again = self._plan_again(ask, fault)
            if isinstance(again, Refuse):
                raise fault.error from fault
            try:
                await self._attempt(again, call)
            except LegFault as second:
                self._metrics.leg_failures.labels(second.reason, second.error.code or "other").inc()
                raise second.error from second

    def _plan_again(self, ask: Ask, fault: LegFault) -> Plan:
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

    async def _attempt(self, decision: Plan, call: Call) -> None:
        if isinstance(decision, Refuse):
            self._refuse(decision, call.request)
        call.trail.reason = decision.reason
        if isinstance(decision, Local):
            call.trail.path = "local"
            body = decode_body(call.request, None)
            with self._pool.leg(decision.worker.id):
                await self._answerer.answer(call, decision.worker, body)
            return
        call.trail.path = "disaggregated"
        await self._hand_over(decision, call)

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

    async def _hand_over(self, pair: Handoff, call: Call) -> None:
        entry = self._ledger.plan(call.request_id, pair.prefill.id, pair.decode.id)
        try:
            # Decode counts as busy from the plan on: requests that are planned while this one is
            # being prefilled must not all pick the same worker.
            with self._pool.leg(pair.decode.id):
                params = await self._prefill(pair, call, entry)
                body = decode_body(call.request, params)
                if not entry.fresh():
                    raise LegFault(
                        HandoffUnusable("the lease of the prefilled blocks is over"),
                        Reason.TRANSFER_FAILED,
                        None,
                    )
                entry.decode_sent()
                await self._answerer.answer(call, pair.decode, body, entry, pair.prefill)
        except (LegFault, BatonError) as fault:
            entry.failed(str(fault))
            raise
        finally:
            # Whatever else ends it is the client's leaving, or our own stop.
            entry.client_gone()

    async def _prefill(self, pair: Handoff, call: Call, entry: Entry) -> dict[str, Any]:
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
                    timeout_s=call.left_s(self._clock, self._deadlines.prefill_s),
                )
        except PeerFault as error:
            if isinstance(error, WorkerUnreachable):
                self._pool.suspect(prefill)
            raise LegFault(error, Reason.PREFILL_FAILED, prefill.id) from error
        self._metrics.prefill_leg.observe(self._clock.monotonic_s() - began_s)
        if 400 <= answer.status < 500 and answer.status != 401:
            # Decode will refuse the original body in the words that a single server would use.
            raise LegFault(
                HandoffUnusable(f"prefill refused the request ({answer.status})"),
                Reason.PREFILL_REFUSED,
                None,
            )
        if answer.status != 200:
            raise LegFault(
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


def _read_offer(answer: Answer, prefill: WorkerRecord) -> tuple[dict[str, Any], int]:
    """Transfer parameters and prompt length of prefill's answer.

    Raises:
        LegFault: prefill worked, but nothing can be pulled.
    """
    try:
        body = msgspec.json.decode(answer.body)
        params = body["kv_transfer_params"]
        prompt_tokens = int(body["usage"]["prompt_tokens"])
        if isinstance(params, dict) and params.get("remote_block_ids") and prompt_tokens > 0:
            return params, prompt_tokens
    except (msgspec.DecodeError, KeyError, TypeError, ValueError):
        pass
    raise LegFault(
        HandoffUnusable(f"prefill worker {prefill.id} offered no blocks"),
        Reason.PREFILL_FAILED,
        prefill.id,
    )
