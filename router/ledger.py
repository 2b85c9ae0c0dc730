"""Every handoff in one state: the router's book of what is planned, offered, pulled, stranded.

The state machine is ``kvtransfer.protocol``; this module keeps its instances, lets leases run out,
and counts. It holds what is open and what may still be stranded, nothing of the past.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable

from baton.clock import Clock
from baton.types import RequestId, WorkerId
from kvtransfer import protocol
from kvtransfer.protocol import Event, Handoff, HandoffState
from router.metrics import RouterMetrics

_MOST_STRANDED = 10_000
"""Ended handoffs kept until their lease is over; past this the oldest is forgotten."""


class Ledger:
    """The handoffs of one router."""

    def __init__(self, clock: Clock, metrics: RouterMetrics) -> None:
        self._clock = clock
        self._metrics = metrics
        self._open: dict[str, Handoff] = {}
        self._stranded: dict[str, Handoff] = {}

    def plan(self, request_id: RequestId, prefill: WorkerId, decode: WorkerId) -> Entry:
        """Opens a handoff."""
        key = uuid.uuid4().hex
        self._open[key] = protocol.plan(
            request_id, prefill=prefill, decode=decode, at_s=self._clock.monotonic_s()
        )
        self._metrics.handoffs_open.set(len(self._open))
        return Entry(self, key)

    def open_handoffs(self) -> tuple[Handoff, ...]:
        """Those in progress."""
        return tuple(self._open.values())

    def stranded_handoffs(self) -> tuple[Handoff, ...]:
        """Those that ended, and whose blocks prefill may still hold."""
        self.sweep()
        return tuple(self._stranded.values())

    def sweep(self) -> None:
        """Reclaims what has run out of its lease. To be called about once a second."""
        now_s = self._clock.monotonic_s()
        for key, handoff in list(self._stranded.items()):
            if handoff.lease_expires_s is not None and now_s >= handoff.lease_expires_s:
                protocol.advance(handoff, protocol.LeaseExpired(now_s))
                del self._stranded[key]
        self._metrics.stranded_bytes.set(sum(h.kv_bytes for h in self._stranded.values()))

    def advance(self, key: str, make_event: Callable[[float], Event]) -> Handoff:
        """Applies an event at the present moment.

        Raises:
            IllegalTransition: the event is not allowed; the book is unchanged.
        """
        handoff = protocol.advance(self._open[key], make_event(self._clock.monotonic_s()))
        self._open[key] = handoff
        if not handoff.is_open:
            self._close(key, handoff)
        return handoff

    def is_open(self, key: str) -> bool:
        """Whether the handoff has not ended."""
        return key in self._open

    def get(self, key: str) -> Handoff:
        """An open handoff."""
        return self._open[key]

    def _close(self, key: str, handoff: Handoff) -> None:
        del self._open[key]
        self._metrics.handoffs_open.set(len(self._open))
        self._metrics.handoffs.labels(handoff.state).inc()
        if handoff.stranded:
            if len(self._stranded) >= _MOST_STRANDED:
                self._stranded.pop(next(iter(self._stranded)))
            self._stranded[key] = handoff
            self.sweep()


class Entry:
    """A handle on one handoff of the ledger. Whoever holds it sees to its end: ``finished``,
    ``failed``, or ``client_gone`` in a ``finally``."""

    def __init__(self, ledger: Ledger, key: str) -> None:
        self._ledger = ledger
        self._key = key

    def prefill_sent(self) -> None:
        """The first leg goes out."""
        self._ledger.advance(self._key, protocol.PrefillSent)

    def prefill_answered(self, *, prompt_tokens: int, kv_bytes: int, lease_s: float) -> None:
        """Prefill offers blocks; the lease runs."""
        self._ledger.advance(
            self._key,
            lambda at_s: protocol.PrefillAnswered(
                at_s, prompt_tokens=prompt_tokens, kv_bytes=kv_bytes, lease_s=lease_s
            ),
        )
        self._ledger._metrics.kv_bytes.inc(kv_bytes)

    def decode_sent(self) -> None:
        """The second leg goes out.

        Raises:
            IllegalTransition: too little of the lease is left.
        """
        self._ledger.advance(self._key, protocol.DecodeSent)

    def fresh(self) -> bool:
        """Whether enough of the lease is left to send decode."""
        handoff = self._ledger.get(self._key)
        return protocol.lease_left_s(handoff, self._ledger._clock.monotonic_s()) > 0

    def first_content(self) -> None:
        """Decode answers: the pull is over."""
        self._ledger.advance(self._key, protocol.FirstContent)

    def finished(self) -> None:
        """The answer is complete."""
        self._ledger.advance(self._key, protocol.Finished)

    def failed(self, reason: str) -> None:
        """The leg in progress failed; does nothing to a handoff that has ended."""
        if self._ledger.is_open(self._key):
            self._ledger.advance(self._key, lambda at_s: protocol.LegFailed(at_s, reason))

    def client_gone(self) -> None:
        """The client left, or the request was cancelled; nothing if it has ended."""
        if self._ledger.is_open(self._key):
            self._ledger.advance(self._key, protocol.ClientGone)

    @property
    def state(self) -> HandoffState | None:
        """Where it stands while open, else None."""
        return self._ledger.get(self._key).state if self._ledger.is_open(self._key) else None
