"""Where a request runs: filter, decide, score, pick; and where it runs next after a fault.

The order of things, for a prompt that could be handed over:

1. The best worker for the whole request is picked, within decode's prefill budget where possible.
2. The decider says, of the tokens that are not cached there, whether a handoff pays.
3. Over decode's budget everywhere, a short prompt is handed over too.
4. A pair is picked: workers that match, fit, and have nothing known against them. Where prefill's
   queue is full, prompts within the local budget stay local; others queue there.
5. Without a pair the request is served whole, with the reason why.

Everything that a handoff cannot carry correctly is served whole in any case. All plug-ins stand in
dictionaries: ``filters.HARD`` and ``SOFT``, ``DECIDERS``, ``SCORERS``, ``PICKERS``.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from baton.types import WorkerId
from router.policy.deciders import DECIDERS, Verdict
from router.policy.query import Query
from router.policy.rules import RoutingRules
from router.policy.snapshot import Snapshot
from router.policy.terms import (
    Ask,
    Fail,
    Fault,
    Handoff,
    Lean,
    Local,
    NextPlan,
    Plan,
    Prediction,
    RandomSource,
    Reason,
    Refusal,
    Refuse,
    Wait,
)

_LONGEST_WAIT_S = 10.0


def plan(ask: Ask, snapshot: Snapshot, rng: RandomSource) -> Plan:
    """Where the request runs. Linear in workers, with a small constant."""
    query = Query(ask, snapshot, rng)
    reason = own_reason(query)
    if reason is not None:
        return _whole(query, reason)
    local, roomy = query.whole()
    if local is None:
        return _refuse(query)
    case = _Case(query, local)
    verdict = DECIDERS[query.rules.decider](case)
    if not verdict.hand_over and roomy:
        return _local(query, local, verdict.reason, case, verdict)
    reason = verdict.reason if verdict.hand_over else Reason.DECODE_BUSY
    pair = case.pair()
    if pair is Reason.PREFILL_BUSY and verdict.hand_over and not (roomy and _spared(query)):
        # Too long for decode, or decode is as busy: better to queue where nobody is decoding.
        pair = query.pair(local, may_queue=True)
    if isinstance(pair, Reason):
        return _local(query, local, pair if verdict.hand_over else reason, case, verdict)
    return _handoff(query, pair, reason, case, verdict)


def plan_local(
    ask: Ask,
    snapshot: Snapshot,
    rng: RandomSource,
    *,
    reason: str,
    avoid: Collection[WorkerId] = (),
) -> Local | Refuse:
    """One worker for the whole request, none of ``avoid`` nor of ``ask.avoid``."""
    return _whole(Query(avoiding(ask, avoid), snapshot, rng), reason)


def plan_again(
    ask: Ask, snapshot: Snapshot, rng: RandomSource, fault: Fault, attempt: int
) -> NextPlan:
    """What comes after a fault, by the rules' ``degrade``; never onto a worker that is blamed for
    this one, nor onto those that ``ask.avoid`` remembers of earlier ones.

    ``other_prefill`` is taken when a fresh decision hands over again; a prefill worker that found
    the request itself wrong (``PREFILL_REFUSED``) is not contradicted by another one. ``local``
    needs the prompt within ``rules.local_tokens``, for certain. After ``queue`` the caller may
    forget whom it avoided: by then the breakers know.

    Args:
        ask: the request, with the workers that failed it before.
        snapshot: the state of things now.
        rng: for lots.
        fault: what just happened.
        attempt: how many attempts there were, this one included; waits count.
    """
    rules = snapshot.rules
    if attempt >= rules.attempts:
        return Fail(fault.kind)
    ask = avoiding(ask, fault.blamed)
    for step in rules.degrade:
        match step:
            case "other_prefill" if fault.kind != Reason.PREFILL_REFUSED:
                again = plan(ask, snapshot, rng)
                if isinstance(again, Handoff):
                    return msgspec.structs.replace(again, reason=fault.kind)
            case "local" if within_local_tokens(ask, rules):
                local = plan_local(ask, snapshot, rng, reason=fault.kind)
                if isinstance(local, Local):
                    return local
            case "queue":
                # Requests that failed together must not come back together.
                wait_s = rules.queue_wait_s * 2.0 ** (attempt - 1) * (0.75 + rng.random() / 2)
                return Wait(min(wait_s, _LONGEST_WAIT_S), fault.kind)
    return Fail(fault.kind)


def avoiding(ask: Ask, workers: Collection[WorkerId]) -> Ask:
    """The same request, with more workers to avoid."""
    return msgspec.structs.replace(ask, avoid=ask.avoid.union(workers)) if workers else ask


def within_local_tokens(ask: Ask, rules: RoutingRules) -> bool:
    """Whether the prompt is certain to be one that decode may take over from prefill."""
    if rules.local_tokens is None:
        return True
    return ask.prompt_tokens is not None and ask.prompt_tokens.within(rules.local_tokens)


def own_reason(query: Query) -> str | None:
    """Why the request is served whole whatever the workers are; None if it need not be."""
    if query.rules.threshold_tokens is None:
        return Reason.STANDARD_PROFILE
    if query.ask.local_reason is not None:
        return query.ask.local_reason
    return Reason.UNCOUNTED_PROMPT if query.ask.prompt_tokens is None else None


class _Case:
    """What deciders see; looks for a pair once, when somebody wants to know."""

    __slots__ = (
        "_local",
        "_pair",
        "_predicted",
        "_query",
        "cached_tokens",
        "rules",
        "uncached_tokens",
    )

    def __init__(self, query: Query, local: int) -> None:
        self._query = query
        self._local = local
        self._pair: tuple[int, int] | Reason | None = None
        self._predicted: Prediction | None = None
        self.rules = query.rules
        self.uncached_tokens = query.uncached(local) or 0
        self.cached_tokens = query.cached(local)

    def pair(self) -> tuple[int, int] | Reason:
        if self._pair is None:
            self._pair = self._query.pair(self._local)
        return self._pair

    def prediction(self) -> Prediction | None:
        if self._predicted is None and self._query.snapshot.estimates is not None:
            pair = self.pair()
            self._predicted = self._query.predict(
                self._local, None if isinstance(pair, Reason) else pair
            )
        return self._predicted

    def leaning(self, bucket: int) -> bool | None:
        return self._query.snapshot.leaning.get(self.lean_key(bucket))

    def lean_key(self, bucket: int) -> tuple[str, int]:
        # Adapters cost what their base costs, and there are fewer bases to remember.
        return self._query.record(self._local).model, bucket

    def known(self, pair: tuple[int, int] | None) -> Prediction | None:
        """What was predicted for the decision, else what can be said of the way taken if somebody
        wants to know."""
        if self._predicted is None and self._query.ask.predict:
            return self._query.predict(self._local, pair)
        return self._predicted

    def lean(self, verdict: Verdict) -> Lean | None:
        if verdict.bucket is None:
            return None
        return Lean(self.lean_key(verdict.bucket), verdict.hand_over)


def _spared(query: Query) -> bool:
    """Whether decode may take a prompt for which prefill's queue is full."""
    return "local" in query.rules.degrade and within_local_tokens(query.ask, query.rules)


def _whole(query: Query, reason: str) -> Local | Refuse:
    slot, _ = query.whole()
    if slot is None:
        return _refuse(query)
    return Local(
        query.record(slot),
        reason,
        query.ask.prompt_tokens,
        query.uncached(slot),
        "",
        query.predict(slot, None) if query.ask.predict else None,
    )


def _refuse(query: Query) -> Refuse:
    return Refuse(Refusal.UNKNOWN_MODEL if query.name is None else Refusal.NO_WORKER)


def _local(query: Query, slot: int, reason: str, case: _Case, verdict: Verdict) -> Local:
    return Local(
        query.record(slot),
        reason,
        query.ask.prompt_tokens,
        case.uncached_tokens,
        verdict.decider,
        case.known(None),
        case.lean(verdict),
    )


def _handoff(
    query: Query, pair: tuple[int, int], reason: str, case: _Case, verdict: Verdict
) -> Handoff:
    prefill, decode = pair
    return Handoff(
        query.record(prefill),
        query.record(decode),
        reason,
        query.ask.prompt_tokens,
        query.uncached(decode),
        query.uncached(prefill),
        verdict.decider,
        case.known(pair),
        case.lean(verdict),
    )
