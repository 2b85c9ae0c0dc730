"""Sampled canaries: was the KV of a handoff what decode would have computed itself?

After a finished greedy handoff its prompt is handed over once more on the same pair, and computed
by the decode worker alone; the first tokens' log probabilities have to agree. A mismatch
quarantines the pair. Anything short of a comparison (an error, a deadline, too few candidates) is
`unknown`, and never costs a pair its place: broken workers are the breakers' business.

Why the replays cannot see each other's KV: a cache salt is part of the hash of a prompt's first
block, and through the chain of all others (vLLM's ``kv_cache_utils.py``), on each engine for
itself. With a fresh salt the handed-over replay finds nothing on decode and pulls every block; with
another fresh salt the local one computes every block. Prefill's leg is sent as the client's was, so
that it offers the very blocks that it keeps for this prompt, the ones to be doubted.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from baton.clock import Clock
from baton.errors import PeerFault
from baton.types import RequestId, WorkerId, WorkerRecord
from router.care.first_token import ASK_LOGPROBS, CHAT, Likeness, compare, read_first_token
from router.care.handoffs import checked, hand_over
from router.care.rules import CareRules
from router.care.seams import Asker
from router.care.tasks import Tasks

CANARY_TIMEOUT_S = 60.0

# Gone from a replay: what the engine refuses with one token or without a stream, and what would
# have decode compute the prompt itself or send more than is read here.
_NOT_REPLAYED: Final = (
    "stream",
    "stream_options",
    "min_tokens",
    "max_completion_tokens",
    "best_of",
    "echo",
    "logprobs",
    "top_logprobs",
    "logprob_token_ids",
    "prompt_logprobs",
    "return_token_ids",
    "return_prompt_text",
    "kv_transfer_params",
)

Quarantine = Callable[[WorkerId, WorkerId, str], None]

log = logging.getLogger("baton.router.canary")


@dataclass(frozen=True, slots=True, eq=False)
class Finished:
    """A handed-over request that ended well.

    Attributes:
        path: the endpoint.
        body: what decode was sent, without transfer parameters; not changed here.
        prefill_body: what prefill was sent.
        prompt_tokens: the engine's count.
    """

    request_id: RequestId
    path: str
    body: Mapping[str, Any]
    prefill_body: bytes
    prompt_tokens: int
    prefill: WorkerRecord
    decode: WorkerRecord


@dataclass(slots=True)
class CanaryCounts:
    """Totals. ``skipped``: drawn, but another canary was under way."""

    ok: int = 0
    mismatched: int = 0
    unknown: int = 0
    skipped: int = 0


class Canary:
    """Replays some requests, one at a time.

    Args:
        asker: for the legs.
        rules: rate and longest prompt.
        clock: for durations.
        rng: draws which requests are replayed, and salts.
        quarantine: takes a pair out, with the reason.
        timeout_s: for each of the two replays.
    """

    def __init__(
        self,
        asker: Asker,
        rules: CareRules,
        clock: Clock,
        rng: random.Random,
        quarantine: Quarantine,
        *,
        timeout_s: float = CANARY_TIMEOUT_S,
    ) -> None:
        self.counts = CanaryCounts()
        self._asker = asker
        self.rules = rules
        self._clock = clock
        self._rng = rng
        self._quarantine = quarantine
        self._timeout_s = timeout_s
        self._tasks = Tasks(1)

    def drawn(self) -> bool:
        """Draws whether the next finished request is one to check; before anything is put together
        for it."""
        rate = self.rules.canary_rate
        return rate > 0 and self._rng.random() < rate

    def replay(self, finished: Finished) -> bool:
        """Replays the request in the background, if it is fit and none is under way. Returns
        whether it is."""
        if not self._fit(finished):
            return False
        if self._tasks.spawn(lambda: self._replay(finished), "canary") is None:
            self.counts.skipped += 1
            return False
        return True

    async def close(self) -> None:
        """Ends the replay under way."""
        await self._tasks.close()

    def _fit(self, finished: Finished) -> bool:
        return (
            finished.path in ASK_LOGPROBS
            and finished.prompt_tokens <= self.rules.canary_prompt_tokens
            and finished.body.get("temperature") == 0
            and not finished.body.get("use_beam_search")
            and (finished.body.get("n") or 1) == 1
        )

    async def _replay(self, finished: Finished) -> None:
        try:
            likeness, difference = await self._compare(finished)
        except PeerFault as fault:
            log.info("canary of %s is unknown: %s", finished.request_id, fault.message)
            self.counts.unknown += 1
            return
        except Exception:
            self.counts.unknown += 1
            raise
        if likeness is Likeness.SAME:
            self.counts.ok += 1
        elif likeness is Likeness.UNKNOWN:
            self.counts.unknown += 1
        else:
            self.counts.mismatched += 1
            self._quarantine(
                finished.prefill.id,
                finished.decode.id,
                f"canary of {finished.request_id}: the first token's log probability differs by "
                f"{difference:.2f}",
            )

    async def _compare(self, finished: Finished) -> tuple[Likeness, float | None]:
        body = self._body(finished)
        request_id = RequestId(f"canary-{self._salt()}")
        handed = await hand_over(
            self._asker,
            finished.prefill,
            finished.decode,
            finished.path,
            finished.prefill_body,
            {**body, "cache_salt": self._salt()},
            request_id,
            timeout_s=self._timeout_s,
            clock=self._clock,
        )
        alone = await checked(
            self._asker,
            finished.decode,
            finished.path,
            msgspec.json.encode({**body, "cache_salt": self._salt()}),
            request_id,
            timeout_s=self._timeout_s,
        )
        there = read_first_token(finished.path, handed.decode_answer)
        here = read_first_token(finished.path, alone)
        if there is None or here is None:
            return Likeness.UNKNOWN, None
        return compare(there, here)

    def _body(self, finished: Finished) -> dict[str, Any]:
        body = {key: value for key, value in finished.body.items() if key not in _NOT_REPLAYED}
        body |= {"max_tokens": 1, **ASK_LOGPROBS[finished.path]}
        if finished.path == CHAT:
            body["max_completion_tokens"] = 1  # takes precedence over max_tokens
        return body

    def _salt(self) -> str:
        return f"{self._rng.getrandbits(64):016x}"
