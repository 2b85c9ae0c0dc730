"""What the life of a request tells the care of workers and pairs: who worked, who failed, which
handoff ended well, which blocks nobody will pull.

It exists so that ``dispatch`` and ``answer`` say what happened in one line each. Everything here
is synchronous: a request that is cancelled can still say it on its way out.
"""

from __future__ import annotations

import asyncio

from baton.errors import BatonError, PeerFault
from baton.types import RequestId, WorkerRecord
from router.api import greedy, prefill_body
from router.call import Call
from router.care import Care, Finished, Orphan, Outcome
from router.ledger import Entry, Ledger, Offer
from router.policy import Handoff

_ABORT_S = 1.0
"""From closing a decode leg to believing that its abort has freed prefill's blocks: measured 0.1 s
on CPU engines; an engine in the middle of a long step takes longer."""


class Aftercare:
    """The request's side of ``router.care``.

    Args:
        care: breakers, pairs, canary, reclaimer.
        ledger: told what became of stranded blocks.
    """

    def __init__(self, care: Care, ledger: Ledger) -> None:
        self._care = care
        self._ledger = ledger

    def worked(self, worker: WorkerRecord) -> None:
        """It gave content, a whole answer, or an offer."""
        self._care.breakers.success(worker.id)

    def failed(self, worker: WorkerRecord, error: BatonError, request_id: RequestId) -> None:
        """It failed a leg; only faults of a peer count against it."""
        if isinstance(error, PeerFault):
            self._care.breakers.fault(worker, request_id, error)

    def pulled(self, pair: Handoff, kv_bytes: int, seconds: float) -> None:
        """A handoff moved so much within so long."""
        self._care.pairs.observe(pair.prefill.id, pair.decode.id, kv_bytes, seconds)

    def finished(self, call: Call, pair: Handoff, prompt_tokens: int) -> None:
        """A handoff ended well: now and then one is checked."""
        if self._care.rules.canary_rate > 0 and greedy(call.request):
            self._care.canary.offer(
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

    def reclaim(self, call: Call, pair: Handoff, offer: Offer, entry: Entry) -> None:
        """Prefill offers blocks that no decode leg was sent for: they are given back at once."""
        expires_s = entry.lease_expires_s()
        if expires_s is None:
            return

        def on_end(outcome: Outcome) -> None:
            if outcome is Outcome.RELEASED:
                entry.released()

        self._care.reclaimer.reclaim(
            Orphan(
                call.request_id,
                str(call.request.endpoint),
                call.request.body,
                offer.take(),
                pair.prefill,
                pair.decode,
                expires_s,
                on_end,
            )
        )

    def abandoned(self, pair: Handoff, entry: Entry) -> None:
        """A decode leg was closed by us before its first content: the engine aborts it, and an
        abort frees prefill's blocks, pulled or not. Believed if decode is sound a moment later."""
        decode = pair.decode.id

        def believe() -> None:
            if decode not in self._care.breakers.blocked_ids:
                entry.released()

        asyncio.get_running_loop().call_later(_ABORT_S, believe)
