"""Why a request would run where it would: every worker, every verdict, every score.

The slow twin of ``plan``, for ``POST /admin/explain``. It runs ``plan`` itself for the choice, and
the same filters and scorers for the reasons, so it cannot tell another story. Plain data comes
out, ready to be encoded as JSON.
"""

from __future__ import annotations

import msgspec

from baton.types import Role
from router.policy.bits import slots_of
from router.policy.filters import HARD, SOFT, Seat
from router.policy.plan import own_reason, plan
from router.policy.query import Query
from router.policy.snapshot import Snapshot
from router.policy.terms import Ask, Handoff, Local, Prediction, RandomSource, Reason, Refuse


class WorkerVerdict(msgspec.Struct, frozen=True):
    """One worker in the eyes of one request.

    Attributes:
        worker: its id.
        role: its role.
        seat: what it was considered for: ``prefill``, or ``whole`` (and the decode leg).
        candidate: whether it passed all hard filters.
        failed: filters that it did not pass, hard and soft; ``pair`` when nobody can hand over
            to or from it.
        scores: by scorer, from 0 to 1; ``session`` is 1 for one of the candidates.
        total: their weighted sum.
        cached_tokens: of this prompt.
        in_flight: legs of this router.
        prefilling_tokens: that this router has in prefill there.
    """

    worker: str
    role: str
    seat: str
    candidate: bool
    failed: tuple[str, ...]
    scores: dict[str, float]
    total: float
    cached_tokens: int
    in_flight: int
    prefilling_tokens: int


class Explanation(msgspec.Struct, frozen=True):
    """What ``plan`` would answer, and how it came to that.

    Attributes:
        path: ``disaggregated``, ``local`` or ``refused``.
        reason: as in ``x-baton-reason``, or of the refusal.
        prefill: the prefill worker chosen; empty without.
        decode: who would answer; empty when refused.
        prompt_tokens: bounds, as in the response header; empty if uncounted.
        uncached_tokens: on who would answer, at least.
        decider: who compared the two ways; empty where there was nothing to compare.
        threshold_tokens: of the rules.
        predicted: both ways, as far as they were measured.
        predicted_local_s: the local way in all.
        predicted_remote_s: the handoff in all.
        why_no_handoff: why no pair could do it; empty if one could.
        workers: all of them, candidates first, then by total.
    """

    path: str
    reason: str
    prefill: str
    decode: str
    prompt_tokens: str
    uncached_tokens: int | None
    decider: str
    threshold_tokens: int | None
    predicted: Prediction | None
    predicted_local_s: float | None
    predicted_remote_s: float | None
    why_no_handoff: str
    workers: tuple[WorkerVerdict, ...]


def explain(ask: Ask, snapshot: Snapshot, rng: RandomSource) -> Explanation:
    """What ``plan`` answers to the same arguments (``rng`` in the same state), and why. Draws more
    lots than ``plan``."""
    choice = plan(ask, snapshot, rng)
    query = Query(ask, snapshot, rng)
    pair: tuple[int, int] | Reason | str = own_reason(query) or query.pair(may_queue=True)
    slot_of = query.fleet.slot_of
    prefill = decode = ""
    uncached: int | None = None
    decider, local = "", None
    match choice:
        case Refuse(refusal):
            path, reason = "refused", str(refusal)
        case Local():
            path, reason, decode = "local", str(choice.reason), choice.worker.id
            uncached, decider = choice.uncached_tokens, choice.decider
            local = slot_of[choice.worker.id]
        case Handoff():
            path, reason = "disaggregated", str(choice.reason)
            prefill, decode = choice.prefill.id, choice.decode.id
            uncached, decider = choice.uncached_tokens, choice.decider
            pair = slot_of[choice.prefill.id], slot_of[choice.decode.id]
            local = slot_of[choice.decode.id]
    predicted = None if isinstance(choice, Refuse) else choice.predicted
    if predicted is None or predicted.local_s is None or predicted.remote_s is None:
        predicted = query.predict(local, None if isinstance(pair, str) else pair)
    bounds = ask.prompt_tokens
    return Explanation(
        path=path,
        reason=reason,
        prefill=prefill,
        decode=decode,
        prompt_tokens="" if bounds is None else str(bounds),
        uncached_tokens=uncached,
        decider=decider,
        threshold_tokens=query.rules.threshold_tokens,
        predicted=predicted,
        predicted_local_s=predicted.local_s if predicted else None,
        predicted_remote_s=predicted.remote_s if predicted else None,
        why_no_handoff=str(pair) if isinstance(pair, str) else "",
        workers=_workers(query),
    )


def _workers(query: Query) -> tuple[WorkerVerdict, ...]:
    verdicts = [_verdict(query, slot) for slot in slots_of(query.fleet.everyone)]
    return tuple(sorted(verdicts, key=lambda v: (not v.candidate, v.seat, -v.total, v.worker)))


def _verdict(query: Query, slot: int) -> WorkerVerdict:
    record = query.record(slot)
    seat = Seat.PREFILL if record.role is Role.PREFILL else Seat.WHOLE
    failed = [name for name, passes in (HARD | SOFT).items() if not passes(query, seat) >> slot & 1]
    if not _has_partner(query, slot, seat):
        failed.append("pair")
    scores = query.scores(slot, query.able(seat))
    return WorkerVerdict(
        worker=record.id,
        role=str(record.role),
        seat=str(seat),
        candidate=bool(query.able(seat) >> slot & 1),
        failed=tuple(failed),
        scores=scores,
        total=sum(query.fleet.weights[name] * score for name, score in scores.items()),
        cached_tokens=query.cached(slot),
        in_flight=query.snapshot.traffic.counts.on(record.id),
        prefilling_tokens=query.snapshot.traffic.counts.prefilling.get(record.id, 0),
    )


def _has_partner(query: Query, slot: int, seat: Seat) -> bool:
    decodes, prefills = query.able(Seat.DECODE), query.able(Seat.PREFILL)
    if seat is Seat.PREFILL:
        return bool(query.pairable(decodes, 1 << slot))
    if not query.fleet.seats[Seat.DECODE] >> slot & 1:
        # A standard worker is nobody's partner, and need not be.
        return True
    return bool(query.partners(slot, prefills))
