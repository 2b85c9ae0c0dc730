"""The words of a decision: what is asked, what can be answered, and why.

They exist apart from the code that decides so that whoever carries plans out, prints them or
tests them needs nothing else. Plain data; nothing here computes.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

import msgspec

from baton.types import WorkerId, WorkerRecord, WorkerState
from router.policy.bounds import TokenBounds


class RandomSource(Protocol):
    """What breaks ties and draws lots; ``random.Random`` is one."""

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
    CACHED_PROMPT = "cached_prompt"
    """Long, but what is not cached on the decode worker is short."""
    REMOTE_FASTER = "remote_faster"
    LOCAL_FASTER = "local_faster"
    STANDARD_PROFILE = "standard_profile"
    UNCOUNTED_PROMPT = "uncounted_prompt"
    OVER_LIMITS = "over_limits"
    NO_PREFILL_WORKER = "no_prefill_worker"
    NO_MATCHING_PAIR = "no_matching_pair"
    NO_USABLE_PAIR = "no_usable_pair"
    """Workers match, but the pair matrix has them flagged, or has not checked them yet."""
    PREFILL_BUSY = "prefill_busy"
    """Every prefill worker has as many requests waiting as the rules allow."""
    DECODE_BUSY = "decode_busy"
    """Every decode worker is prefilling as many tokens as the rules allow."""
    PREFILL_FAILED = "prefill_failed"
    PREFILL_REFUSED = "prefill_refused"
    TRANSFER_FAILED = "transfer_failed"
    DECODE_FAILED = "decode_failed"


class Refusal(enum.StrEnum):
    """Why nothing can be done."""

    UNKNOWN_MODEL = "unknown_model"
    NO_WORKER = "no_worker"


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A worker as the router sees it now; ``Snapshot.of`` makes a snapshot of some.

    Attributes:
        record: what the worker said last.
        in_flight: legs that this router has open on it.
        suspect: its breaker is not closed.
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


class Ask(msgspec.Struct, frozen=True):
    """What a decision needs to know of a request.

    Attributes:
        model: the name asked for, of a model or of an adapter.
        prompt_tokens: bounds of its length, or None when nobody could count.
        answer_tokens: tokens of answer asked for; 1 when the request does not say.
        local_reason: why a handoff could not carry it, or None.
        session: what its requests have in common (a session id, a user), or empty.
        avoid: workers that failed this request; none of them gets it again.
        predict: whether somebody wants to know what either way would take although the decider
            does not ask; it costs a fifth of the decision.
    """

    model: str
    prompt_tokens: TokenBounds | None
    answer_tokens: int = 1
    local_reason: str | None = None
    session: str = ""
    avoid: frozenset[WorkerId] = frozenset()
    predict: bool = False


class Prediction(msgspec.Struct, frozen=True):
    """Time to the first token on either way, in seconds; None where too little was measured.

    Attributes:
        local_queue_s: for prompts that the decode worker is prefilling already.
        local_prefill_s: for the uncached prompt on the decode worker.
        remote_queue_s: for prompts ahead on the prefill worker.
        remote_prefill_s: for the uncached prompt on the prefill worker.
        remote_fixed_s: what every handoff costs: set-up and the first decode step.
        remote_move_s: the KV bytes that decode lacks, over the pair's bandwidth.
    """

    local_queue_s: float | None = None
    local_prefill_s: float | None = None
    remote_queue_s: float | None = None
    remote_prefill_s: float | None = None
    remote_fixed_s: float | None = None
    remote_move_s: float | None = None

    @property
    def local_s(self) -> float | None:
        """The whole of the local way."""
        if self.local_queue_s is None or self.local_prefill_s is None:
            return None
        return self.local_queue_s + self.local_prefill_s

    @property
    def remote_s(self) -> float | None:
        """The whole of the way over a prefill worker."""
        if (
            self.remote_queue_s is None
            or self.remote_prefill_s is None
            or self.remote_fixed_s is None
            or self.remote_move_s is None
        ):
            return None
        return (
            self.remote_queue_s + self.remote_prefill_s + self.remote_fixed_s + self.remote_move_s
        )


class Lean(msgspec.Struct, frozen=True):
    """What the cost decider last preferred for prompts of a size; kept by the caller, by ``key``.

    Attributes:
        key: base model and size bucket: the bit length of the uncached tokens.
        hand_over: the side preferred.
    """

    key: tuple[str, int]
    hand_over: bool


class Local(msgspec.Struct, frozen=True):
    """One worker does all.

    Attributes:
        worker: which.
        reason: why so.
        prompt_tokens: as asked.
        uncached_tokens: prompt tokens not cached on ``worker``, at least; None if uncounted.
        decider: what compared the two ways; empty where there was nothing to compare.
        predicted: what it is thought to take, if anything can be said.
        lean: to be kept for later decisions, if not None.
    """

    worker: WorkerRecord
    reason: str
    prompt_tokens: TokenBounds | None = None
    uncached_tokens: int | None = None
    decider: str = ""
    predicted: Prediction | None = None
    lean: Lean | None = None


class Handoff(msgspec.Struct, frozen=True):
    """``prefill`` computes the KV cache, ``decode`` pulls it and answers.

    Attributes:
        prefill: who prefills.
        decode: who answers.
        reason: why so.
        prompt_tokens: as asked.
        uncached_tokens: prompt tokens not cached on ``decode``, at least: what is pulled.
        prefill_uncached_tokens: prompt tokens not cached on ``prefill``, at least.
        decider: what compared the two ways.
        predicted: what either way is thought to take, if anything can be said.
        lean: to be kept for later decisions, if not None.
    """

    prefill: WorkerRecord
    decode: WorkerRecord
    reason: str
    prompt_tokens: TokenBounds | None = None
    uncached_tokens: int | None = None
    prefill_uncached_tokens: int | None = None
    decider: str = ""
    predicted: Prediction | None = None
    lean: Lean | None = None


class Refuse(msgspec.Struct, frozen=True):
    """No worker can take the request now."""

    refusal: Refusal


Plan = Local | Handoff | Refuse


class Fault(msgspec.Struct, frozen=True):
    """What went wrong with a plan before anything was sent to the client.

    Attributes:
        kind: ``Reason.PREFILL_FAILED`` and its like; the reason of what comes next.
        blamed: workers that are held to be at fault.
    """

    kind: str
    blamed: frozenset[WorkerId] = frozenset()


class Wait(msgspec.Struct, frozen=True):
    """Try again after a while, with a fresh snapshot."""

    seconds: float
    reason: str


class Fail(msgspec.Struct, frozen=True):
    """Give up, and tell the client of the fault."""

    reason: str


NextPlan = Local | Handoff | Wait | Fail
