"""Gives orphaned blocks back: prefill has answered, and decode has given nothing for it.

A client that leaves, a decode worker that dies, a stop of the router or a lease near its end leaves
a prefill worker with blocks that nobody will pull; by itself it keeps them for the whole lease.
There is no request to prefill that frees them: only a NIXL notification from a decode engine does.
This is how one is brought about (vLLM 0.32, pull mode; read in its source, and measured: blocks are
free 0.1 s later, tests/e2e/test_router_faults.py):

- *Refusal*, where the two engines know each other already. Decode is sent a request with the
  parameters that its API server must refuse: a model that it does not have. vLLM then hands the
  engine a request that is aborted before it is scheduled (``_with_kv_transfer_rejection_cleanup``
  in ``entrypoints/generate/base/serving.py``), whose ``request_finished``
  (``nixl/pull_scheduler.py``) finds ``do_remote_prefill`` still set and queues an empty read, and
  an empty read is nothing but the notification (``_read_blocks`` in ``nixl/pull_worker.py``).
  Nothing is computed, moved or allocated, and no prompt is needed.
- *Pull*, where they may not. The notification of a refusal would wait for a handshake in the
  background, and be sent at decode's next step: an idle engine takes none, so the lease ends
  first. A request that waits for its KV keeps the engine stepping, so decode gets the client's own
  body for one token, and pulls. The answer is thrown away. Its cache salt is replaced by a fresh
  one: whatever was pulled, no later request can find it in decode's prefix cache.

Dropping the connection early would be cheaper still, and cannot be relied on: a request that the
API server has not read yet never was, and then nobody notifies. So a refusal follows it; where
blocks are free already, the notification only counts as late on prefill.

What cannot be reclaimed: a client that leaves while prefill computes. The leg is closed, and the
engine aborts and frees. If prefill finished just before it noticed, its blocks are offered to
nobody: the parameters are in an answer that was never read, so only the lease frees them.

The parameters of an orphan count as used from here on. A second decode worker is tried only where
the first could not be reached; nobody gets an answer made from them either way.
"""

from __future__ import annotations

import enum
import logging
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from baton.clock import Clock
from baton.errors import PeerFault, WorkerUnreachable
from baton.types import RequestId, WorkerId, WorkerRecord
from router.care.first_token import CHAT, COMPLETIONS
from router.care.seams import Answer, Asker
from router.care.tasks import Tasks

MOST_WAITING = 256
"""Orphans that wait for their turn; more are left to their lease."""
AT_A_TIME = 4
RECLAIM_TIMEOUT_S = 10.0
_TRIES = 2
_NO_MODEL: Final = "baton-release-blocks"
"""A name that no profile will choose for its model."""

_RESPONSES: Final = "/v1/responses"
_NOT_PULLED: Final = ("stream", "stream_options", "min_tokens", "max_completion_tokens")

log = logging.getLogger("baton.router.reclaim")


class Outcome(enum.StrEnum):
    """RELEASED: decode was asked in a way that frees the blocks, and answered as it should.
    LEFT: their lease has to run out."""

    RELEASED = "released"
    LEFT = "left"


@dataclass(frozen=True, slots=True, eq=False)
class Orphan:
    """An offer that nobody will take.

    Attributes:
        path: the endpoint.
        body: what decode would have been sent, without transfer parameters; not changed here.
        params: prefill's ``kv_transfer_params``, as they came.
        expires_s: end of the lease, monotonic.
        may_pull: whether nobody has had the parameters, so that they may be used for a pull.
        any_decode: whether others than ``decode`` may give it back.
        on_end: told once how it ended, also when it was not tried; must not raise.
    """

    request_id: RequestId
    path: str
    body: Mapping[str, Any]
    params: Mapping[str, Any]
    prefill: WorkerRecord
    decode: WorkerRecord
    expires_s: float
    may_pull: bool = True
    any_decode: bool = True
    on_end: Callable[[Outcome], None] = field(default=lambda _: None)


@dataclass(slots=True)
class ReclaimCounts:
    """Totals by outcome; ``refused`` of those LEFT never were tried, for want of room."""

    released: int = 0
    left: int = 0
    refused: int = 0


Decoders = Callable[[Orphan], Sequence[WorkerRecord]]
"""Decode workers that may be asked, best first."""
Handshaken = Callable[[WorkerId, WorkerId], bool]


class Reclaimer:
    """Works orphans off in the background, whatever becomes of their requests.

    Args:
        asker: for the requests to decode.
        decoders: whom to ask.
        handshaken: whether a prefill and a decode worker know each other.
        clock: the one that leases are measured with.
        rng: for salts.
        timeout_s: for each orphan.
    """

    def __init__(
        self,
        asker: Asker,
        decoders: Decoders,
        handshaken: Handshaken,
        clock: Clock,
        rng: random.Random,
        *,
        timeout_s: float = RECLAIM_TIMEOUT_S,
    ) -> None:
        self.counts = ReclaimCounts()
        self._asker = asker
        self._decoders = decoders
        self._handshaken = handshaken
        self._clock = clock
        self._rng = rng
        self._timeout_s = timeout_s
        self._waiting: deque[Orphan] = deque()
        self._in_work: set[Orphan] = set()
        self._tasks = Tasks(AT_A_TIME)
        self._closed = False

    @property
    def pending(self) -> int:
        """Orphans that are waiting or in work."""
        return len(self._waiting) + len(self._in_work)

    def reclaim(self, orphan: Orphan) -> bool:
        """Takes an orphan over. Synchronous, so that a cancelled request can do it on its way out.
        Returns False if it is left to its lease."""
        if self._closed or len(self._waiting) >= MOST_WAITING:
            self.counts.refused += 1
            self._end(orphan, Outcome.LEFT)
            return False
        self._waiting.append(orphan)
        self._tasks.spawn(self._work_off, "reclaim")
        return True

    async def drain(self, timeout_s: float) -> None:
        """Lets those taken over end, for at most ``timeout_s``."""
        await self._tasks.settle(timeout_s)

    async def close(self) -> None:
        """Gives up what is not done; each orphan is told."""
        self._closed = True
        await self._tasks.close()
        while self._waiting:
            self._end(self._waiting.popleft(), Outcome.LEFT)

    async def _work_off(self) -> None:
        while self._waiting:
            orphan = self._waiting.popleft()
            self._in_work.add(orphan)
            outcome = Outcome.LEFT
            try:
                outcome = await self._release(orphan)
            except Exception:
                log.exception("%s: its blocks are left to the lease", orphan.request_id)
            finally:
                self._in_work.discard(orphan)
                self._end(orphan, outcome)

    def _end(self, orphan: Orphan, outcome: Outcome) -> None:
        if outcome is Outcome.RELEASED:
            self.counts.released += 1
        else:
            self.counts.left += 1
        orphan.on_end(outcome)

    async def _release(self, orphan: Orphan) -> Outcome:
        ends_s = min(orphan.expires_s, self._clock.monotonic_s() + self._timeout_s)
        for decode in list(self._decoders(orphan))[:_TRIES]:
            left_s = ends_s - self._clock.monotonic_s()
            if left_s <= 0:
                break
            known = self._handshaken(orphan.prefill.id, decode.id)
            pulls = orphan.may_pull and orphan.path in (COMPLETIONS, CHAT, _RESPONSES)
            if not known and not pulls:
                continue
            try:
                answer = await self._ask(orphan, decode, known, left_s)
            except WorkerUnreachable:
                continue
            except PeerFault as fault:
                log.info("%s: left to the lease: %s", orphan.request_id, fault.message)
                return Outcome.LEFT
            hoped = 404 if known else 200
            return Outcome.RELEASED if answer.status == hoped else Outcome.LEFT
        return Outcome.LEFT

    async def _ask(
        self, orphan: Orphan, decode: WorkerRecord, known: bool, timeout_s: float
    ) -> Answer:
        if known:
            path = COMPLETIONS
            body: dict[str, Any] = {"model": _NO_MODEL, "prompt": [1], "max_tokens": 1}
        else:
            path = orphan.path
            body = {k: v for k, v in orphan.body.items() if k not in _NOT_PULLED}
            body |= {"cache_salt": f"{self._rng.getrandbits(64):016x}", "stream": False}
            if path == _RESPONSES:
                body["max_output_tokens"] = 1
            else:
                body["max_tokens"] = 1
            if path == CHAT:
                body["max_completion_tokens"] = 1
        body["kv_transfer_params"] = orphan.params
        return await self._asker.ask(
            decode,
            path,
            msgspec.json.encode(body),
            RequestId(f"reclaim-{orphan.request_id}"),
            timeout_s=timeout_s,
        )
