"""Every handoff in one state: the router's book of what is planned, offered, pulled, stranded.

The state machine is ``kvtransfer.protocol``; this module keeps its instances, lets leases run out,
and counts. It holds what is open and what may still be stranded, nothing of the past.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from baton.clock import Clock
from baton.errors import OurFault
from baton.types import RequestId, WorkerId
from kvtransfer import protocol
from kvtransfer.protocol import Event, Handoff, HandoffState
from router.observe import RouterMetrics

_MOST_STRANDED = 10_000
"""Ended handoffs kept until their lease is over; past this the oldest is forgotten."""


class Ledger:
    """The handoffs of one router."""

    def __init__(self, clock: Clock, metrics: RouterMetrics) -> None:
        self._clock = clock
        self.metrics = metrics
        self._open: dict[int, Handoff] = {}
        self._stranded: dict[int, Handoff] = {}
        self._keys = itertools.count(1)

    def plan(self, request_id: RequestId, prefill: WorkerId, decode: WorkerId) -> Entry:
        """Opens a handoff."""
        key = next(self._keys)
        self._open[key] = protocol.plan(
            request_id, prefill=prefill, decode=decode, at_s=self._clock.monotonic_s()
        )
        return Entry(self, key, self._clock.monotonic_s)

    def open_handoffs(self) -> tuple[Handoff, ...]:
        """Those in progress."""
        return tuple(self._open.values())

    def stranded_handoffs(self) -> tuple[Handoff, ...]:
        """Those that ended, and whose blocks prefill may still hold."""
        self.sweep()
        return tuple(self._stranded.values())

    @property
    def open_count(self) -> int:
        """Handoffs in progress."""
        return len(self._open)

    def stranded_bytes(self) -> Mapping[WorkerId, int]:
        """KV bytes that may still be held for nobody, by prefill worker."""
        found: Counter[WorkerId] = Counter()
        for handoff in self._stranded.values():
            found[handoff.prefill] += handoff.kv_bytes
        return found

    def sweep(self) -> None:
        """Reclaims what has run out of its lease. To be called about once a second."""
        now_s = self._clock.monotonic_s()
        for key, handoff in list(self._stranded.items()):
            if handoff.lease_expires_s is not None and now_s >= handoff.lease_expires_s:
                self._reclaim(key, protocol.LeaseExpired(now_s), "lease")

    def released(self, key: int) -> None:
        """It is known that prefill has freed the blocks; nothing if they are not stranded."""
        if key in self._stranded:
            now_s = self._clock.monotonic_s()
            self._reclaim(key, protocol.BlocksReleased(now_s), "released")

    def restarted(self, worker_id: WorkerId) -> None:
        """A prefill worker has another engine, or is gone: what the old one held is free."""
        for key, handoff in list(self._stranded.items()):
            if handoff.prefill == worker_id:
                self.released(key)

    def stranded(self, key: int) -> Handoff | None:
        """A handoff that ended and whose blocks prefill may still hold, else None."""
        return self._stranded.get(key)

    def advance(self, key: int, event: Event) -> Handoff:
        """Applies an event.

        Raises:
            IllegalTransition: the event is not allowed; the book is unchanged.
        """
        handoff = protocol.advance(self._open[key], event)
        if handoff.is_open:
            self._open[key] = handoff
        else:
            self._close(key, handoff)
        return handoff

    def is_open(self, key: int) -> bool:
        """Whether the handoff has not ended."""
        return key in self._open

    def get(self, key: int) -> Handoff:
        """An open handoff."""
        return self._open[key]

    def _close(self, key: int, handoff: Handoff) -> None:
        del self._open[key]
        self.metrics.handoff_ended(handoff.state)
        if handoff.stranded:
            if len(self._stranded) >= _MOST_STRANDED:
                self._stranded.pop(next(iter(self._stranded)))
            self._stranded[key] = handoff

    def _reclaim(self, key: int, event: Event, how: str) -> None:
        protocol.advance(self._stranded.pop(key), event)
        self.metrics.handoff_reclaimed(how)


class Offer:
    """What prefill offered: transfer parameters, to be taken once.

    An engine that gets the same parameters twice answers 200 with wrong text, so that they cannot
    be had twice is a property of this object and not of its callers' care.
    """

    __slots__ = ("_params", "kv_bytes", "prompt_tokens", "taken")

    def __init__(self, params: Mapping[str, Any], *, prompt_tokens: int, kv_bytes: int) -> None:
        self._params = params
        self.taken = False
        """Whether somebody has them, to pull with."""
        self.prompt_tokens = prompt_tokens
        self.kv_bytes = kv_bytes

    def take(self) -> Mapping[str, Any]:
        """The parameters, as they came.

        Raises:
            OurFault: they were taken before, or given back.
        """
        if self.taken:
            raise OurFault("transfer parameters were to be used twice")
        self.taken = True
        return self._params

    def give_back(self) -> Mapping[str, Any]:
        """The parameters, for telling prefill that nobody will pull; they cannot be taken after."""
        self.taken = True
        return self._params


class Entry:
    """A handle on one handoff of the ledger. Whoever holds it sees to its end: ``finished``,
    ``failed``, or ``client_gone`` in a ``finally``."""

    __slots__ = ("_ledger", "_now_s", "key", "offer")

    def __init__(self, ledger: Ledger, key: int, now_s: Callable[[], float]) -> None:
        self.offer: Offer | None = None
        """What prefill offered, once it has."""
        self._ledger = ledger
        self._now_s = now_s
        self.key = key

    def prefill_sent(self) -> None:
        """The first leg goes out."""
        self._ledger.advance(self.key, protocol.PrefillSent(self._now_s()))

    def prefill_answered(
        self, *, prompt_tokens: int, kv_bytes: int, lease_s: float, unseen_s: float = 0.0
    ) -> None:
        """Prefill offers blocks; the lease has run for up to ``unseen_s`` already."""
        at_s = max(self._ledger.get(self.key).updated_s, self._now_s() - unseen_s)
        event = protocol.PrefillAnswered(at_s, prompt_tokens, kv_bytes, lease_s)
        self._ledger.advance(self.key, event)
        self._ledger.metrics.kv_bytes.add((), kv_bytes)

    def decode_sent(self) -> None:
        """The second leg goes out.

        Raises:
            IllegalTransition: too little of the lease is left.
        """
        self._ledger.advance(self.key, protocol.DecodeSent(self._now_s()))

    def fresh(self) -> bool:
        """Whether enough of the lease is left to send decode."""
        return protocol.lease_left_s(self._ledger.get(self.key), self._now_s()) > 0

    def first_content(self) -> None:
        """Decode answers: the pull is over."""
        self._ledger.advance(self.key, protocol.FirstContent(self._now_s()))

    def finished(self) -> None:
        """The answer is complete."""
        self._ledger.advance(self.key, protocol.Finished(self._now_s()))

    def failed(self, reason: str) -> None:
        """The leg in progress failed; does nothing to a handoff that has ended."""
        if self._ledger.is_open(self.key):
            self._ledger.advance(self.key, protocol.LegFailed(self._now_s(), reason))

    def client_gone(self) -> None:
        """The client left, or the request was cancelled; nothing if it has ended."""
        if self._ledger.is_open(self.key):
            self._ledger.advance(self.key, protocol.ClientGone(self._now_s()))

    @property
    def strands_kv(self) -> bool:
        """Whether it has ended and prefill may still hold its blocks."""
        return self._ledger.stranded(self.key) is not None

    def lease_expires_s(self) -> float | None:
        """When prefill frees the blocks at the latest; None if it never offered any, or if nothing
        is left to free."""
        handoff = self._ledger.stranded(self.key)
        return None if handoff is None else handoff.lease_expires_s

    def released(self) -> None:
        """Prefill is known to have freed the blocks of this handoff, which has ended."""
        self._ledger.released(self.key)

    @property
    def state(self) -> HandoffState | None:
        """Where it stands while open, else None."""
        return self._ledger.get(self.key).state if self._ledger.is_open(self.key) else None
