"""The router's picture of the workers: the registry's records, its own legs, what it has learnt.

Decisions are made on snapshots of it; it makes none itself. When the store is away the last
picture is used on, since engines serve without a store.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from types import TracebackType

from baton.clock import Clock, until_beat_s
from baton.errors import StoreUnavailable
from baton.store import Store
from baton.types import Role, WorkerId, WorkerRecord, WorkerState
from router.flow import UNKNOWN, Capacity
from router.policy import (
    Estimates,
    Fleet,
    Handoff,
    Lean,
    PairBook,
    PrefixIndex,
    PrefixMatch,
    RoutingRules,
    Slots,
    Snapshot,
    TokenBounds,
    Traffic,
    compile_fleet,
)
from router.prefix import Chain, PrefixRouting

_REFRESH_S = 0.5
_LEARN_EVERY = 8
_MOST_LEANINGS = 4096
"""One for each model and size of a prompt; far more than there are."""

log = logging.getLogger("baton.router.pool")

Listener = Callable[[Sequence[WorkerRecord]], None]
"""Told of the records after each reading of the registry, changed or not."""


class WorkerPool:
    """Workers as one router sees them.

    Args:
        store: the registry.
        clock: for what is measured.
        rules: how the profile routes.
        served_name: the model that the profile is about: known even while no worker serves it.
        make_prefix: builds the prefix knowledge over the pool's index.
        blocked: workers whose breaker lets no request through, now.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        rules: RoutingRules,
        *,
        served_name: str,
        make_prefix: Callable[[PrefixIndex], PrefixRouting],
        max_prefix_blocks: int,
        blocked: Callable[[], Collection[WorkerId]] = frozenset,
    ) -> None:
        self._store = store
        self._clock = clock
        self._rules = rules
        self._served_name = served_name
        self._blocked = blocked
        self._seen: Sequence[WorkerRecord] = ()
        self._fleet: Fleet | None = None
        self._records: dict[WorkerId, WorkerRecord] = {}
        self._cordoned: frozenset[WorkerId] = frozenset()
        self._blocked_seen: Collection[WorkerId] = frozenset()
        self._closed: frozenset[WorkerId] = frozenset()
        self._store_lost = False
        self._slots = Slots()
        self.pairs = PairBook(self._slots)
        self.prefix = make_prefix(PrefixIndex(self._slots, max_entries=max_prefix_blocks))
        self.estimates = Estimates()
        self._bases: dict[str, tuple[str, str]] = {}
        self._tellers: dict[str, WorkerRecord | None] = {}
        self._measured = 0
        self._leaning: dict[tuple[str, int], bool] = {}
        self._traffic = Traffic(compile_fleet((), rules, self._slots))
        self._listeners: list[Listener] = []

    def listen(self, listener: Listener) -> None:
        """Has ``listener`` called after each reading of the registry."""
        self._listeners.append(listener)

    # --- looking ---

    def records(self) -> Sequence[WorkerRecord]:
        """All registered workers, sorted by id."""
        return list(self._records.values())

    def record(self, worker_id: WorkerId) -> WorkerRecord | None:
        """What the worker said last, or None if it is not registered."""
        return self._records.get(worker_id)

    def is_cordoned(self, worker_id: WorkerId) -> bool:
        """Whether an operator drains it."""
        return worker_id in self._cordoned

    def is_usable(self, record: WorkerRecord) -> bool:
        """Whether it takes new requests."""
        return record.state is WorkerState.READY and record.id not in self._no_traffic()

    def legs(self, worker_id: WorkerId) -> int:
        """Legs that this router has open on the worker."""
        return self._traffic.legs.get(worker_id, 0)

    def prefilling(self, worker_id: WorkerId) -> int:
        """Prompt tokens of this router's that the worker computes now."""
        return self._traffic.prefilling.get(worker_id, 0)

    def counts(self) -> Counter[tuple[str, str]]:
        """Workers by role and state."""
        return Counter((record.role, record.state) for record in self._records.values())

    def ready_by_role(self) -> Counter[str]:
        """Usable workers by role."""
        return Counter(r.role for r in self._records.values() if self.is_usable(r))

    def base_of(self, model: str) -> tuple[str, str]:
        """The base model and the adapter that a name stands for; the adapter is empty for none."""
        return self._bases.get(model) or (model, "")

    def capacity(self, model: str) -> Capacity:
        """How many requests the answering workers of a base model take at a time."""
        slots, known, ready = 0, model == self._served_name, False
        for record in self._records.values():
            if record.model != model or record.role is Role.PREFILL:
                known = known or record.model == model
                continue
            known = True
            if self.is_usable(record):
                ready = True
                slots += record.limits.slots
        return Capacity(slots, ready) if known else UNKNOWN

    def teller(self, model: str) -> WorkerRecord | None:
        """Who is best asked about prompts of a model: the least busy of its usable workers, decode
        before prefill, since decode's limits are the ones. Looked for once per reading of the
        registry."""
        if model not in self._tellers and model in self._bases:
            self._tellers[model] = self._find_teller(model)
        return self._tellers.get(model)

    def _find_teller(self, model: str) -> WorkerRecord | None:
        found: tuple[tuple[bool, int], WorkerRecord] | None = None
        for record in self._records.values():
            if not self.is_usable(record) or not _serves(record, model):
                continue
            load = record.load.running + record.load.waiting
            key = (record.role is Role.PREFILL, max(load, self.legs(record.id)))
            if found is None or key < found[0]:
                found = (key, record)
        return None if found is None else found[1]

    def snapshot(self, match: PrefixMatch | None = None) -> Snapshot:
        """The picture for one decision; nothing may be awaited before it is made."""
        return Snapshot(
            self._traffic,
            self._no_traffic(),
            self.pairs,
            match,
            self.estimates,
            self._leaning,
            self._clock.monotonic_s(),
        )

    def match(self, chain: Chain, prompt: TokenBounds | None) -> PrefixMatch | None:
        """Who has how much of a prompt cached."""
        if not chain:
            return None
        return self.prefix.match(chain, None if prompt is None else prompt.lower)

    def _no_traffic(self) -> frozenset[WorkerId]:
        """Workers under a cordon, or behind a breaker that lets nothing through."""
        blocked = self._blocked()
        if blocked is not self._blocked_seen:
            self._blocked_seen = blocked
            self._closed = self._cordoned.union(blocked)
        return self._closed

    # --- traffic ---

    def leg(self, worker_id: WorkerId) -> _Leg:
        """Counts one leg on the worker while open, whatever ends it."""
        return _Leg(self._traffic, worker_id)

    def prefilling_on(self, worker_id: WorkerId, tokens: int) -> Prefilling:
        """Counts prompt tokens in prefill on the worker while open, or until ``over``."""
        return Prefilling(self._traffic, worker_id, tokens)

    def lean(self, lean: Lean) -> None:
        """Remembers which way prompts of a size went."""
        if lean.key in self._leaning or len(self._leaning) < _MOST_LEANINGS:
            self._leaning[lean.key] = lean.hand_over

    # --- learning ---

    def cached(self, worker: WorkerRecord, chain: Chain) -> None:
        """The worker has computed, or pulled, the prompt with this chain."""
        if chain:
            self.prefix.sent(worker.id, chain)

    def prefilled(
        self, worker: WorkerRecord, uncached_tokens: int, ahead_tokens: int, seconds: float
    ) -> None:
        """A worker took so long to compute a prompt."""
        if not self._learns():
            return
        self.estimates.observe_prefill(
            worker,
            uncached_tokens,
            seconds,
            self._clock.monotonic_s(),
            ahead_tokens=ahead_tokens,
        )

    def pulled(self, pair: Handoff, kv_bytes: int, seconds: float) -> None:
        """A handoff took so long from decode's dispatch to its first content."""
        if not self._learns():
            return
        self.estimates.observe_pull(
            pair.prefill, pair.decode, kv_bytes, seconds, self._clock.monotonic_s()
        )

    def _learns(self) -> bool:
        """Whether this measurement is taken: each one where costs decide, else one in eight, for
        the predictions in explanations."""
        self._measured += 1
        return self._rules.decider == "cost" or self._measured % _LEARN_EVERY == 0

    # --- the registry ---

    async def refresh(self) -> None:
        """Reads the registry once. A store that is away leaves the picture as it was."""
        try:
            records = await self._store.workers()
            cordoned = await self._store.cordoned()
        except StoreUnavailable as error:
            if not self._store_lost:
                log.warning(
                    "the registry is away, going on with %d workers known: %s",
                    len(self._records),
                    error.message,
                )
            self._store_lost = True
            return
        if self._store_lost:
            log.info("the registry is back")
            self._store_lost = False
        self._tellers = {}
        if records is not self._seen or cordoned is not self._cordoned:
            self._take(records, cordoned)
        for listener in self._listeners:
            listener(records)

    def _take(self, records: Sequence[WorkerRecord], cordoned: frozenset[WorkerId]) -> None:
        self._note_changes(records, cordoned)
        before, self._fleet = self._fleet, None
        self._seen = ()
        self._records = {record.id: record for record in records}
        self._cordoned = cordoned
        self._blocked_seen = self._blocked()
        self._closed = cordoned.union(self._blocked_seen)
        self._bases = _bases(records)
        fleet = compile_fleet(records, self._rules, self._slots, before)
        self._traffic.refresh(fleet)
        self.prefix.follow(records)
        # Only now: what fails half-way is done again, and from nothing.
        self._seen, self._fleet = records, fleet

    def _note_changes(self, records: Sequence[WorkerRecord], cordoned: frozenset[WorkerId]) -> None:
        for record in records:
            before = self._records.get(record.id)
            if before is None or before.state is not record.state:
                log.info("worker %s (%s) is %s", record.id, record.role, record.state)
        for gone in self._records.keys() - {record.id for record in records}:
            log.info("worker %s is gone", gone)
        for worker_id in cordoned - self._cordoned:
            log.info("worker %s is drained: it gets nothing new", worker_id)
        for worker_id in self._cordoned - cordoned:
            log.info("worker %s takes requests again", worker_id)

    async def keep_fresh(self) -> None:
        """Refreshes for ever; to be run as a task and cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                await self.refresh()
            except Exception:
                # An old picture is better than a router that never looks again.
                log.exception("the registry could not be read")
            await asyncio.sleep(until_beat_s(loop.time(), _REFRESH_S))


def _bases(records: Sequence[WorkerRecord]) -> dict[str, tuple[str, str]]:
    """Base model and adapter by every name that can be asked for; a base's own name wins."""
    found = {
        adapter.name: (record.model, f"{adapter.name}@{adapter.digest}")
        for record in records
        for adapter in record.adapters
    }
    return found | {record.model: (record.model, "") for record in records}


def _serves(record: WorkerRecord, model: str) -> bool:
    return record.model == model or any(a.name == model for a in record.adapters)


class _Leg:
    """One leg that is counted."""

    __slots__ = ("_traffic", "_worker_id")

    def __init__(self, traffic: Traffic, worker_id: WorkerId) -> None:
        self._traffic = traffic
        self._worker_id = worker_id

    def __enter__(self) -> None:
        self._traffic.leg(self._worker_id, 1)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._traffic.leg(self._worker_id, -1)


class Prefilling:
    """Prompt tokens that are in prefill on a worker.

    Attributes:
        ahead: tokens that were in prefill there before.
    """

    __slots__ = ("_tokens", "_traffic", "_worker_id", "ahead")

    def __init__(self, traffic: Traffic, worker_id: WorkerId, tokens: int) -> None:
        self._traffic = traffic
        self._worker_id = worker_id
        self._tokens = tokens
        self.ahead = 0

    def __enter__(self) -> Prefilling:
        self.ahead = self._traffic.prefilling.get(self._worker_id, 0)
        if self._tokens:
            self._traffic.prefill(self._worker_id, self._tokens)
        return self

    def over(self) -> None:
        """The prompt is computed."""
        if self._tokens:
            self._traffic.prefill(self._worker_id, -self._tokens)
            self._tokens = 0

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.over()
