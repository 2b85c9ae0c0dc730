"""What the life of a request tells the care of workers and pairs: who worked, who failed, which
handoff ended well, which blocks nobody will pull.

It exists so that ``dispatch`` and ``answer`` say what happened in one line each. Everything here
is synchronous: a request that is cancelled can still say it on its way out.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable

from baton.errors import BatonError, PeerFault, WorkerTimeout, WorkerUnreachable
from baton.types import RequestId, WorkerRecord
from router.api import greedy, prefill_body
from router.call import Call
from router.care import Care, Finished, Orphan, Outcome
from router.ledger import Entry, Ledger, Offer
from router.policy import Handoff

_ABORT_S = 1.0
"""From closing a decode leg to its abort being over: measured 0.1 s on CPU engines; an engine in
the middle of a long step takes longer."""


class LegEnd(enum.Enum):
    """How a decode leg ended that gave no content; a client's leaving is CLOSED."""

    CLOSED = enum.auto()
    """By us, or by an answer of the worker's: it goes on with others."""
    DEAD = enum.auto()
    """It could not be reached, or its connection broke: nobody is there any more."""
    SILENT = enum.auto()
    """No answer in time: whatever it was doing, it may do yet."""

    @staticmethod
    def of(error: BatonError) -> LegEnd:
        """By the fault that ended it."""
        if isinstance(error, WorkerUnreachable):
            return LegEnd.DEAD
        return LegEnd.SILENT if isinstance(error, WorkerTimeout) else LegEnd.CLOSED


class Aftercare:
    """The request's side of ``router.care``.

    Args:
        care: breakers, pairs, canary, reclaimer.
        ledger: told what became of stranded blocks.
        on_blocked: called when a fault has opened a breaker: there is less to hand out.
    """

    def __init__(
        self, care: Care, ledger: Ledger, on_blocked: Callable[[], None] = lambda: None
    ) -> None:
        self._care = care
        self._ledger = ledger
        self._on_blocked = on_blocked

    def worked(self, worker: WorkerRecord) -> None:
        """It gave content, a whole answer, or an offer."""
        self._care.breakers.success(worker.id)

    def failed(self, worker: WorkerRecord, error: BatonError, request_id: RequestId) -> None:
        """It failed a leg; only faults of a peer count against it."""
        if isinstance(error, PeerFault):
            breakers = self._care.breakers
            before = breakers.blocked_ids
            breakers.fault(worker, request_id, error)
            if breakers.blocked_ids != before:
                self._on_blocked()

    def pulled(self, pair: Handoff, kv_bytes: int, seconds: float) -> None:
        """A handoff moved so much within so long."""
        self._care.pairs.observe(pair.prefill.id, pair.decode.id, kv_bytes, seconds)

    def finished(self, call: Call, pair: Handoff, prompt_tokens: int) -> None:
        """A handoff ended well: now and then one is checked."""
        if self._care.canary.drawn() and greedy(call.request):
            self._care.canary.replay(
                Finished(
                    call.request_id,
                    str(call.request.endpoint),
                    call.request.body,
                    prefill_body(call.request),
                    prompt_tokens,
                    pair.prefill,
                    pair.decode,
                )
            )

    def reclaim(self, call: Call, pair: Handoff, offer: Offer, entry: Entry, end: LegEnd) -> None:
        """Prefill may hold blocks that nobody will pull: they are given back at once.

        A decode worker that had the parameters may have pulled or aborted already, so nothing is
        pulled to give back. Where it fell silent, its lease is waited for: it may pull yet, and
        what it then finds has to be what it was promised.
        """
        expires_s = entry.lease_expires_s()
        if expires_s is None or end is LegEnd.SILENT:
            return

        def on_end(outcome: Outcome) -> None:
            if outcome is Outcome.RELEASED:
                entry.released()

        seen = offer.taken
        orphan = Orphan(
            request_id=call.request_id,
            path=str(call.request.endpoint),
            body=call.request.body,
            params=offer.give_back(),
            prefill=pair.prefill,
            decode=pair.decode,
            expires_s=expires_s,
            may_pull=not seen,
            any_decode=not seen or end is LegEnd.DEAD,
            on_end=on_end,
        )
        if seen and end is LegEnd.CLOSED:
            # Decode has yet to hear that its leg was closed: blocks that are freed under a pull
            # that has begun could be another request's by its end.
            loop = asyncio.get_running_loop()
            loop.call_later(_ABORT_S, self._care.reclaimer.reclaim, orphan)
        else:
            self._care.reclaimer.reclaim(orphan)
