"""The handoff of one request's KV cache from prefill to decode, as a state machine.

It exists so that the router, the simulator and the tests drive one and the same machine, and so
that "never 200 on doubtful KV" is a property of a table that fits on a screen. It has no I/O, no
clock and no randomness: time arrives in the events, in seconds of the driver's monotonic clock.
It refuses to guess: an event that the table does not allow raises, and changes nothing.

One ``Handoff`` is one try. Transfer parameters that were used twice corrupt the answer, so a
retry is a fresh prefill and a fresh ``Handoff``, never a step back in this one.

What the engine's lease means here (vLLM 0.32, NixlConnector): prefill holds the blocks of a
finished request for ``kv_lease_duration`` seconds and frees them exactly then, unless decode has
pulled them. Once decode knows the request it renews the lease by heartbeats while the request
waits in its queue, every sixth of the lease, each time to at least two thirds of the lease from
then. The router sees neither heartbeats nor pulls, hence the two shares below.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import msgspec

from baton.errors import IllegalTransition
from baton.types import RequestId, WorkerId

LEASE_MARGIN_SHARE = 1 / 6
"""Share of the lease, at its end, in which decode may no longer be sent.

One heartbeat interval of the engine: that long may pass between the dispatch and the first
renewal. It also covers the way of prefill's answer, since the lease began before that arrived.
"""

LEASE_RENEWAL_SHARE = 2 / 3
"""Share of the lease for which decode's last heartbeat may keep the blocks held."""

REASON_MAX_CHARS = 300
"""Reasons may quote an engine's message, and a ledger keeps many of them."""


class HandoffState(enum.StrEnum):
    """Where a handoff stands; the last five are its ends, DONE the only good one."""

    PLANNED = "planned"
    PREFILLING = "prefilling"
    OFFERED = "offered"
    ACCEPTED = "accepted"
    PULLED = "pulled"
    DONE = "done"
    FAILED = "failed"
    EXPIRED = "expired"
    ABORTED = "aborted"
    RECLAIMED = "reclaimed"


_OPEN = frozenset(
    {
        HandoffState.PLANNED,
        HandoffState.PREFILLING,
        HandoffState.OFFERED,
        HandoffState.ACCEPTED,
        HandoffState.PULLED,
    }
)


class Event(msgspec.Struct, frozen=True):
    """Something that happened to a handoff at ``at_s`` (monotonic seconds of the driver)."""

    at_s: float


class PrefillSent(Event, frozen=True):
    """The first leg is on its way to the prefill worker."""


class PrefillAnswered(Event, frozen=True):
    """Prefill has computed the prompt and offers its blocks; the lease runs from here.

    ``prompt_tokens`` is what prefill counted, ``kv_bytes`` what it holds for decode (whole
    blocks, over all ranks), ``lease_s`` the length of the engine's lease in seconds.

    Raises:
        ValueError: if a figure is impossible. Whoever reads a peer's answer has to check it
            before it becomes an event.
    """

    prompt_tokens: int
    kv_bytes: int
    lease_s: float

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1:
            raise ValueError(f"prompt_tokens must be 1 or more: {self.prompt_tokens}")
        if self.kv_bytes < 0:
            raise ValueError(f"kv_bytes must not be negative: {self.kv_bytes}")
        if not 0 < self.lease_s < math.inf:
            raise ValueError(f"lease_s must be positive and finite: {self.lease_s}")


class DecodeSent(Event, frozen=True):
    """The second leg is about to go to the decode worker; ask before sending, not after."""


class FirstContent(Event, frozen=True):
    """The first content event came from decode, which proves that the pull is over.

    An answer that arrives whole is a FirstContent and a Finished at the same moment.
    """


class Finished(Event, frozen=True):
    """Decode's answer is complete."""


class LegFailed(Event, frozen=True):
    """The leg in progress failed, passed its deadline, or was given up by the router."""

    reason: str


class LeaseExpired(Event, frozen=True):
    """The driver's clock has reached ``lease_expires_s``."""


class ClientGone(Event, frozen=True):
    """The client closed its connection."""


class BlocksReleased(Event, frozen=True):
    """It is known that prefill has freed the blocks: notified, aborted through, or restarted."""


@dataclass(frozen=True, slots=True)
class Transition:
    """One row of the table.

    ``strands``: blocks may stay behind on prefill that nobody will pull. ``only_stranded``: the
    row applies to a handoff with stranded blocks only. ``reason``: what an end is put down to
    where the event does not say it.
    """

    target: HandoffState
    strands: bool = False
    only_stranded: bool = False
    reason: str = ""


_S = HandoffState
_CLIENT_GONE = "client gone"

# Not here on purpose: a handoff cut off while PREFILLING may strand blocks as well, if prefill
# had just finished; but nobody was told how many or until when, so there is nothing to track.
TRANSITIONS: Mapping[tuple[HandoffState, type[Event]], Transition] = MappingProxyType(
    {
        (_S.PLANNED, PrefillSent): Transition(_S.PREFILLING),
        (_S.PLANNED, LegFailed): Transition(_S.FAILED),
        (_S.PLANNED, ClientGone): Transition(_S.ABORTED, reason=_CLIENT_GONE),
        (_S.PREFILLING, PrefillAnswered): Transition(_S.OFFERED),
        (_S.PREFILLING, LegFailed): Transition(_S.FAILED),
        (_S.PREFILLING, ClientGone): Transition(_S.ABORTED, reason=_CLIENT_GONE),
        (_S.OFFERED, DecodeSent): Transition(_S.ACCEPTED),
        (_S.OFFERED, LegFailed): Transition(_S.FAILED, strands=True),
        (_S.OFFERED, ClientGone): Transition(_S.ABORTED, strands=True, reason=_CLIENT_GONE),
        # Nobody renewed the lease, so prefill has freed the blocks at this very moment.
        (_S.OFFERED, LeaseExpired): Transition(
            _S.EXPIRED, reason="lease ended before decode was sent"
        ),
        (_S.ACCEPTED, FirstContent): Transition(_S.PULLED),
        # From ACCEPTED on decode may have pulled, or renewed the lease, or neither.
        (_S.ACCEPTED, LegFailed): Transition(_S.FAILED, strands=True),
        (_S.ACCEPTED, ClientGone): Transition(_S.ABORTED, strands=True, reason=_CLIENT_GONE),
        (_S.ACCEPTED, LeaseExpired): Transition(
            _S.EXPIRED, strands=True, reason="lease ended before the first content"
        ),
        (_S.PULLED, Finished): Transition(_S.DONE),
        (_S.PULLED, LegFailed): Transition(_S.FAILED),
        (_S.PULLED, ClientGone): Transition(_S.ABORTED, reason=_CLIENT_GONE),
        (_S.FAILED, LeaseExpired): Transition(_S.RECLAIMED, only_stranded=True),
        (_S.FAILED, BlocksReleased): Transition(_S.RECLAIMED, only_stranded=True),
        (_S.ABORTED, LeaseExpired): Transition(_S.RECLAIMED, only_stranded=True),
        (_S.ABORTED, BlocksReleased): Transition(_S.RECLAIMED, only_stranded=True),
        (_S.EXPIRED, LeaseExpired): Transition(_S.RECLAIMED, only_stranded=True),
        (_S.EXPIRED, BlocksReleased): Transition(_S.RECLAIMED, only_stranded=True),
    }
)


class Handoff(msgspec.Struct, frozen=True):
    """One try at handing one request's KV from ``prefill`` to ``decode``.

    All times are monotonic seconds of the driver; they mean nothing in another process.

    Attributes:
        reason: why it ended, kept through RECLAIMED; empty while open and when DONE.
        prompt_tokens: prefill's count; 0 until offered.
        kv_bytes: what prefill holds for decode; 0 until offered, never changed after.
        lease_s: length of the engine's lease in seconds; 0 until offered.
        lease_expires_s: when prefill frees the blocks at the latest; None until offered. Moved
            out once if the handoff ends from ACCEPTED, as decode may have renewed the lease.
        stranded: prefill holds, or may hold, blocks that nobody will pull.
    """

    request_id: RequestId
    prefill: WorkerId
    decode: WorkerId
    created_s: float
    updated_s: float
    state: HandoffState = HandoffState.PLANNED
    reason: str = ""
    prompt_tokens: int = 0
    kv_bytes: int = 0
    lease_s: float = 0.0
    lease_expires_s: float | None = None
    stranded: bool = False

    @property
    def is_open(self) -> bool:
        """Whether the request is still in progress over this handoff."""
        return self.state in _OPEN

    @property
    def holds_kv(self) -> bool:
        """Whether prefill holds, or may hold, blocks for this handoff."""
        return self.stranded or self.state in (HandoffState.OFFERED, HandoffState.ACCEPTED)

    @property
    def is_final(self) -> bool:
        """Whether nothing more can happen: ended, and nothing left to reclaim."""
        return not self.is_open and not self.stranded


def plan(request_id: RequestId, *, prefill: WorkerId, decode: WorkerId, at_s: float) -> Handoff:
    """A handoff in PLANNED.

    Raises:
        ValueError: if both ends are the same worker, or ``at_s`` is not a finite number.
    """
    if prefill == decode:
        raise ValueError(f"a handoff needs two workers: {request_id} has {prefill} twice")
    if not math.isfinite(at_s):
        raise ValueError(f"at_s must be finite: {at_s}")
    return Handoff(request_id, prefill, decode, created_s=at_s, updated_s=at_s)


def lease_left_s(handoff: Handoff, now_s: float) -> float:
    """Seconds in which decode may still be sent: the lease, less its margin, less what has passed.

    0.0 when that time is over, and when there is no lease because nothing was offered.
    """
    if handoff.lease_expires_s is None:
        return 0.0
    last_dispatch_s = handoff.lease_expires_s - handoff.lease_s * LEASE_MARGIN_SHARE
    return max(0.0, last_dispatch_s - now_s)


def advance(handoff: Handoff, event: Event) -> Handoff:
    """The handoff after ``event``; the one passed in is left as it was.

    Raises:
        IllegalTransition: if the table has no row for the state and the event, if the event lies
            before the handoff's last one (or is not a finite time), if decode is sent when
            ``lease_left_s`` is 0, or if a lease is said to have expired before its end.
    """
    transition = TRANSITIONS.get((handoff.state, type(event)))
    if transition is None:
        raise _illegal(handoff, event, "the state does not allow it")
    if transition.only_stranded and not handoff.stranded:
        raise _illegal(handoff, event, "no blocks are stranded")
    # Written so that NaN, which compares false with everything, is refused as well.
    if not handoff.updated_s <= event.at_s < math.inf:
        raise _illegal(handoff, event, f"{event.at_s} s is not after {handoff.updated_s} s")
    if isinstance(event, DecodeSent) and lease_left_s(handoff, event.at_s) <= 0:
        raise _illegal(handoff, event, "the lease is over or about to be")
    expires_s = handoff.lease_expires_s
    prompt_tokens, kv_bytes, lease_s = handoff.prompt_tokens, handoff.kv_bytes, handoff.lease_s
    if isinstance(event, PrefillAnswered):
        prompt_tokens, kv_bytes, lease_s = event.prompt_tokens, event.kv_bytes, event.lease_s
        expires_s = event.at_s + lease_s
    if isinstance(event, LeaseExpired) and (expires_s is None or event.at_s < expires_s):
        raise _illegal(handoff, event, f"the lease runs until {expires_s} s")
    if transition.strands and handoff.state is HandoffState.ACCEPTED and expires_s is not None:
        expires_s = max(expires_s, event.at_s + lease_s * LEASE_RENEWAL_SHARE)
    reason = (event.reason or "leg failed") if isinstance(event, LegFailed) else transition.reason
    # In the order of the fields: there are six of these a request.
    return Handoff(
        handoff.request_id,
        handoff.prefill,
        handoff.decode,
        handoff.created_s,
        event.at_s,
        transition.target,
        (reason or handoff.reason)[:REASON_MAX_CHARS],
        prompt_tokens,
        kv_bytes,
        lease_s,
        expires_s,
        transition.strands,
    )


def _illegal(handoff: Handoff, event: Event, why: str) -> IllegalTransition:
    return IllegalTransition(
        f"handoff {handoff.request_id}: {type(event).__name__} in {handoff.state.name}: {why}"
    )


def mermaid() -> str:
    """The table as a Mermaid ``stateDiagram-v2``, for the docs; ends with a newline.

    Events with the same two ends share an arrow. ``*`` marks one that strands blocks.
    """
    arrows: dict[tuple[HandoffState, HandoffState], list[str]] = {}
    for (source, event), row in TRANSITIONS.items():
        label = event.__name__ + ("*" if row.strands else "")
        arrows.setdefault((source, row.target), []).append(label)
    lines = ["stateDiagram-v2", f"    [*] --> {HandoffState.PLANNED.name}"]
    lines += [
        f"    {source.name} --> {target.name}: {', '.join(labels)}"
        for (source, target), labels in arrows.items()
    ]
    lines += [f"    {state.name} --> [*]" for state in HandoffState if state not in _OPEN]
    return "\n".join(lines) + "\n"
