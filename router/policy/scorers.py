"""How well a worker suits a request: each scorer gives a number in [0, 1], 1 for best.

A scorer is one of four kinds of function, by what it depends on, so that a decision over a
thousand workers need not ask each scorer a thousand times:

- ``standing``: on the worker's record. Asked once, when the fleet is compiled.
- ``live``: also on what this router has there. Asked when that changes.
- ``request``: on the request. Names the workers whose score is above 0.
- ``among``: also on who else is a candidate. Likewise.

Weights belong to the rules, not to scorers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

from baton.types import WorkerRecord
from router.policy.bits import slots_of

if TYPE_CHECKING:
    from router.policy.query import Query

Scored = Iterable[tuple[int, float]]
"""Slots and their scores."""

StandingScore = Callable[[WorkerRecord], float]
LiveScore = Callable[[WorkerRecord, int, int], float]
"""Of a record, our legs on the worker, and uncached prompt tokens in prefill there."""
RequestScore = Callable[["Query"], Scored]
AmongScore = Callable[["Query", Sequence[int]], Scored]


@dataclass(frozen=True, slots=True)
class Scorer:
    """One plug-in: one of the functions is there."""

    standing: StandingScore | None = None
    live: LiveScore | None = None
    request: RequestScore | None = None
    among: AmongScore | None = None


def prefix(query: Query) -> Scored:
    """The share of the prompt whose KV cache the worker is thought to have."""
    match, bounds = query.snapshot.prefix, query.ask.prompt_tokens
    if match is None or query.name is None or not match.levels:
        return
    tokens = max(1, match.blocks * match.block_tokens if bounds is None else bounds.lower)
    # Deeper levels are subsets of the ones before; each slot is named once, with its deepest.
    inner = 0
    for mask, blocks in reversed(match.levels):
        score = min(1.0, blocks * match.block_tokens / tokens)
        for slot in slots_of(mask & ~inner & query.name.workers):
            yield slot, score
        inner = mask


def work_of(record: WorkerRecord) -> int:
    """Sequences that the worker says it has or waits for."""
    return record.load.running + record.load.waiting


def load(record: WorkerRecord, legs: int, prefilling_tokens: int) -> float:
    """1 when idle, 1/2 when all slots are taken; keeps falling, so that the fuller of two full
    workers is still the worse one. Its own figures are late, ours know only of ourselves: the
    larger counts."""
    slots = max(1, record.limits.slots)
    return slots / (slots + max(legs, work_of(record)))


def kv_load(record: WorkerRecord) -> float:
    """The share of the KV cache that is free."""
    return min(1.0, max(0.0, 1.0 - record.load.kv_usage))


_PENDING_TOKENS = 8192
"""Prompt tokens in prefill that halve a worker's score: about one batch of an engine's step."""


def pending(record: WorkerRecord, legs: int, prefilling_tokens: int) -> float:
    """Prompt tokens that are being prefilled there now: one long prompt weighs more than ten
    short ones, which a count of requests does not see."""
    return _PENDING_TOKENS / (_PENDING_TOKENS + prefilling_tokens)


def adapter(record: WorkerRecord) -> float:
    """Engines keep a few adapters on the device and swap the rest: the fewer a worker has, the
    likelier the one asked for is there. Base models are kept off workers with many."""
    return 1.0 / (1 + len(record.adapters))


_ODD = 0x9E3779B1
_WORD = (1 << 32) - 1


def stable_hash(text: str) -> int:
    """32 bits that are the same in every process, which Python's own ``hash`` are not."""
    return int.from_bytes(blake2b(text.encode(errors="replace"), digest_size=4).digest(), "big")


def session(query: Query, slots: Sequence[int]) -> Scored:
    """One of the candidates has the session: the highest hash of session and worker (rendezvous
    hashing, D. Thaler and C. Ravishankar, 1998), so that all routers agree, and a worker that
    comes or goes moves only its own sessions."""
    if not query.ask.session:
        return
    salt, seeds = query.session_hash(), query.fleet.seeds
    hashes = [((seeds[slot] ^ salt) * _ODD) & _WORD for slot in slots]
    yield slots[hashes.index(max(hashes))], 1.0


SCORERS: dict[str, Scorer] = {
    "prefix": Scorer(request=prefix),
    "load": Scorer(live=load),
    "pending": Scorer(live=pending),
    "kv_load": Scorer(standing=kv_load),
    "adapter": Scorer(standing=adapter),
    "session": Scorer(among=session),
}
