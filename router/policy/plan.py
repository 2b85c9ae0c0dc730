"""Classify a prompt by its length and pick the workers that will serve it.

The rule of this version: a prompt of at least ``threshold_tokens`` tokens is prefilled by a
prefill worker and decoded by a decode worker of equal KV geometry and weights; everything else,
and whatever a handoff cannot carry correctly, is served whole by a decode (or standard) worker.
Among workers that fit, the one with the least work is picked, ties by the given random source.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from baton.types import Role, WorkerId, WorkerRecord, WorkerState
from kvtransfer import differences
from router.policy.bounds import TokenBounds


class RandomSource(Protocol):
    """What breaks ties; ``random.Random`` is one."""

    def random(self) -> float:
        """A number in [0, 1)."""
        ...


class Reason(enum.StrEnum):
    """Why a request takes its path; the value of ``x-baton-reason``.

    What a request itself brings (``LocalReason``: a list of prompts, several choices) is used as
    it is, so reasons are plain strings in plans.
    """

    LONG_PROMPT = "long_prompt"
    SHORT_PROMPT = "short_prompt"
    STANDARD_PROFILE = "standard_profile"
    UNCOUNTED_PROMPT = "uncounted_prompt"
    OVER_LIMITS = "over_limits"
    NO_PREFILL_WORKER = "no_prefill_worker"
    NO_MATCHING_PAIR = "no_matching_pair"
    PREFILL_FAILED = "prefill_failed"
    PREFILL_REFUSED = "prefill_refused"
    TRANSFER_FAILED = "transfer_failed"
    DECODE_FAILED = "decode_failed"


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A worker as the router sees it now.

    Attributes:
        record: what the worker said last.
        in_flight: legs that this router has open on it.
        suspect: it just failed us, and has not proved itself since.
    """

    record: WorkerRecord
    in_flight: int = 0
    suspect: bool = False

    @property
    def usable(self) -> bool:
        """Whether it takes new traffic."""
        return self.record.state is WorkerState.READY and not self.suspect

    @property
    def work(self) -> int:
        """Sequences it has or waits for: the larger of its own figure and ours, which are late in
        different ways."""
        load = self.record.load
        return max(self.in_flight, load.running + load.waiting)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything a decision may look at.

    Attributes:
        workers: all that are registered.
        threshold_tokens: prompts of so many tokens are disaggregated; None under a profile that
            does not disaggregate.
    """

    workers: tuple[WorkerView, ...]
    threshold_tokens: int | None


@dataclass(frozen=True, slots=True)
class Ask:
    """What a decision needs to know of a request.

    Attributes:
        model: the name asked for.
        prompt_tokens: bounds of its length, or None when nobody could count.
        answer_tokens: tokens of answer asked for; 1 when the request does not say.
        local_reason: why a handoff could not carry it, or None.
    """

    model: str
    prompt_tokens: TokenBounds | None
    answer_tokens: int = 1
    local_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Local:
    """One worker does all."""

    worker: WorkerRecord
    reason: str


@dataclass(frozen=True, slots=True)
class Handoff:
    """``prefill`` computes the KV cache, ``decode`` pulls it and answers."""

    prefill: WorkerRecord
    decode: WorkerRecord
    reason: str


class Refusal(enum.StrEnum):
    """Why nothing can be done."""

    UNKNOWN_MODEL = "unknown_model"
    NO_WORKER = "no_worker"


@dataclass(frozen=True, slots=True)
class Refuse:
    """No worker can take the request now."""

    refusal: Refusal


Plan = Local | Handoff | Refuse


def plan(ask: Ask, snapshot: Snapshot, rng: RandomSource) -> Plan:
    """Where the request runs. Linear in workers; quadratic only in those of equal, least work."""
    reason = _local_reason(ask, snapshot.threshold_tokens)
    if reason is not None:
        return plan_local(ask, snapshot, rng, reason=reason)
    decodes = _candidates(ask.model, snapshot, (Role.DECODE,))
    prefills = _candidates(ask.model, snapshot, (Role.PREFILL,))
    if not decodes or not prefills:
        return plan_local(ask, snapshot, rng, reason=Reason.NO_PREFILL_WORKER)
    fitting = [d for d in decodes if _fits(ask, d.record)]
    why = Reason.NO_MATCHING_PAIR if fitting else Reason.OVER_LIMITS
    for decode in _by_work(fitting, rng):
        matching = [p for p in prefills if _pair_matches(p.record, decode.record)]
        able = [p for p in matching if _fits_prefill(ask, p.record)]
        if able:
            prefill = _by_work(able, rng)[0]
            return Handoff(prefill.record, decode.record, Reason.LONG_PROMPT)
        if matching:
            why = Reason.OVER_LIMITS
    return plan_local(ask, snapshot, rng, reason=why)


def plan_local(
    ask: Ask,
    snapshot: Snapshot,
    rng: RandomSource,
    *,
    reason: str,
    avoid: Collection[WorkerId] = (),
) -> Local | Refuse:
    """One worker for the whole request, none of ``avoid``.

    A prompt over every worker's limit still goes to one: the engine's refusal is what a client of
    a single server would see.
    """
    candidates = [
        view
        for view in _candidates(ask.model, snapshot, (Role.DECODE, Role.STANDARD))
        if view.record.id not in avoid
    ]
    if not candidates:
        known = any(view.record.model == ask.model for view in snapshot.workers)
        return Refuse(Refusal.NO_WORKER if known else Refusal.UNKNOWN_MODEL)
    fitting = [view for view in candidates if _fits(ask, view.record)]
    return Local(_by_work(fitting or candidates, rng)[0].record, reason)


def _local_reason(ask: Ask, threshold: int | None) -> str | None:
    if threshold is None:
        return Reason.STANDARD_PROFILE
    if ask.local_reason is not None:
        return ask.local_reason
    if ask.prompt_tokens is None:
        return Reason.UNCOUNTED_PROMPT
    # Bounds that still straddle the threshold count as short: a handoff is for certainty.
    return None if ask.prompt_tokens.lower >= threshold else Reason.SHORT_PROMPT


def _candidates(model: str, snapshot: Snapshot, roles: Collection[Role]) -> list[WorkerView]:
    return [
        view
        for view in snapshot.workers
        if view.record.model == model and view.record.role in roles and view.usable
    ]


def _by_work(views: Sequence[WorkerView], rng: RandomSource) -> list[WorkerView]:
    return sorted(views, key=lambda view: (view.work, rng.random()))


def _fits(ask: Ask, worker: WorkerRecord) -> bool:
    if ask.prompt_tokens is None:
        return True
    return ask.prompt_tokens.within(worker.limits.max_model_len - ask.answer_tokens)


def _fits_prefill(ask: Ask, worker: WorkerRecord) -> bool:
    if ask.prompt_tokens is None:
        return True
    return ask.prompt_tokens.within(worker.limits.max_model_len - 1)


def _pair_matches(prefill: WorkerRecord, decode: WorkerRecord) -> bool:
    return prefill.model_digest == decode.model_digest and not differences(
        prefill.geometry, decode.geometry
    )
