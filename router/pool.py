"""The router's picture of the workers: the registry's records, its own legs, what it has learnt.

Decisions are made on snapshots of it; it makes none itself. When the store is away the last
picture is used on, since engines serve without a store. There is one picture for each profile that
serves, over the same counts.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from types import TracebackType

import msgspec

from baton.clock import Clock, until_beat_s
from baton.errors import StoreUnavailable
from baton.store import Look, Store
from baton.types import Role, RouterId, RouterRecord, WorkerId, WorkerRecord, WorkerState
from router.flow import UNKNOWN, Capacity
from router.policy import (
    Counts,
    Estimates,
    Handoff,
    Lean,
    PairBook,
    PrefixIndex,
    PrefixMatch,
    Slots,
    Snapshot,
    TokenBounds,
    compile_fleet,
)
from router.prefix import Chain, PrefixRouting
from router.roles import Roles
from router.serving import Serving, Servings

_REFRESH_S = 0.5
ROUTER_TTL_S = 5.0
"""Seconds that what a router tells the others counts; ten beats."""
_LEARN_EVERY = 8
_GRACE_S = 5.0
"""After a store was away, or lost what it had: so long workers are kept that it does not know. All
that live have told it by then."""
_MOST_LEANINGS = 4096
"""One for each model and size of a prompt; far more than there are."""

log = logging.getLogger("baton.router.pool")

Listener = Callable[[Look], None]
"""Told of what was read after each reading of the store, changed or not."""


class WorkerPool:
    """Workers as one router sees them.

    Args:
        store: the registry.
        clock: for what is measured.
        servings: the profiles, each with the picture of the workers under its rules.
        counts: what is on the workers.
        router_id: this router's own, whose record says nothing new.
        make_prefix: builds the prefix knowledge over the pool's index.
        blocked: workers whose breaker lets no request through, now.
        stranded: by worker, bytes that this router knows to be held there for nobody.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        servings: Servings,
        counts: Counts,
        *,
        make_prefix: Callable[[PrefixIndex], PrefixRouting],
        max_prefix_blocks: int,
        router_id: RouterId | None = None,
        blocked: Callable[[], Collection[WorkerId]] = frozenset,
        stranded: Callable[[], Mapping[WorkerId, int]] = dict,
    ) -> None:
        self._store = store
        self._clock = clock
        self._servings = servings
        self._counts = counts
        self._router_id = router_id
        self._blocked = blocked
        self._stranded = stranded
        self._look: Look | None = None
        self._held: dict[WorkerId, WorkerRecord] = {}
        self._held_until_s = 0.0
        self._lost_s = 0.0
        self._unheard = False
        self._records: dict[WorkerId, WorkerRecord] = {}
        self._seated: dict[WorkerId, WorkerRecord] = {}
        self._others: tuple[RouterRecord, ...] = ()
        self._roles = Roles(self._has_work, clock.monotonic_s)
        self._pairing: Serving | None = None
        self._cordoned: frozenset[WorkerId] = frozenset()
        self._blocked_seen: Collection[WorkerId] = frozenset()
        self._closed: frozenset[WorkerId] = frozenset()
        self._store_lost = False
        self._slots = Slots()
        self.pairs = PairBook(self._slots)
        self.index = PrefixIndex(self._slots, max_entries=max_prefix_blocks)
        self.prefix = make_prefix(self.index)
        self.estimates = Estimates()
        self._bases: dict[str, tuple[str, str]] = {}
        self._tellers: dict[str, WorkerRecord | None] = {}
        self._measured = 0
        self._leaning: dict[tuple[str, int], bool] = {}
        self._listeners: list[Listener] = []

    def listen(self, listener: Listener) -> None:
        """Has ``listener`` called after each reading of the store."""
        self._listeners.append(listener)

    # --- looking ---

    def records(self) -> Sequence[WorkerRecord]:
        """All registered workers, sorted by id."""
        return list(self._records.values())

    def record(self, worker_id: WorkerId) -> WorkerRecord | None:
        """What the worker said last, or None if it is not registered."""
        return self._records.get(worker_id)

    def seated(self) -> Sequence[WorkerRecord]:
        """All registered workers as the active profile uses them: in other roles than they said,
        or not READY, where it does so."""
        return list(self._seated.values())

    def role_of(self, record: WorkerRecord) -> Role:
        """What a worker is used for now."""
        seated = self._seated.get(record.id)
        return record.role if seated is None else seated.role

    def pairing(self) -> Sequence[WorkerRecord]:
        """The workers as the last profile with handoffs uses them, on their way between roles or
        not: while another is active their pairs stay known, so that a switch back is quick."""
        serving, look = self._pairing, self._look
        if serving is None or look is None:
            return self.seated()
        found = []
        for record in look.workers:
            role = serving.pools.role_of(look.assigned.get(record.id, record.role))
            if role is not None:
                same = role is record.role
                found.append(record if same else msgspec.structs.replace(record, role=role))
        return found

    @property
    def others(self) -> tuple[RouterRecord, ...]:
        """What other routers told last."""
        return self._others

    @property
    def turning(self) -> frozenset[WorkerId]:
        """Workers on their way from one kind of work to the other."""
        return self._roles.turning

    @property
    def is_lost(self) -> bool:
        """Whether the store is away."""
        return self._store_lost

    def is_cordoned(self, worker_id: WorkerId) -> bool:
        """Whether an operator drains it."""
        return worker_id in self._cordoned

    def is_usable(self, record: WorkerRecord) -> bool:
        """Whether it takes new requests."""
        return record.state is WorkerState.READY and record.id not in self._no_traffic()

    def legs(self, worker_id: WorkerId) -> int:
        """Legs that this router has open on the worker."""
        return self._counts.legs.get(worker_id, 0)

    def prefilling(self, worker_id: WorkerId) -> int:
        """Prompt tokens of this router's that the worker computes now."""
        return self._counts.prefilling.get(worker_id, 0)

    def counts(self) -> Counter[tuple[str, str]]:
        """Workers by role and state."""
        return Counter((record.role, record.state) for record in self._seated.values())

    def ready_by_role(self) -> Counter[str]:
        """Usable workers by role."""
        return Counter(r.role for r in self._seated.values() if self.is_usable(r))

    def base_of(self, model: str) -> tuple[str, str]:
        """The base model and the adapter that a name stands for; the adapter is empty for none."""
        return self._bases.get(model) or (model, "")

    def capacity(self, model: str) -> Capacity:
        """How many requests the answering workers of a base model take at a time."""
        slots, known, ready = 0, model == self._servings.current.profile.served_name, False
        for record in self._seated.values():
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
        for record in self._seated.values():
            if not self.is_usable(record) or not _serves(record, model):
                continue
            load = record.load.running + record.load.waiting
            key = (record.role is Role.PREFILL, max(load, self.legs(record.id)))
            if found is None or key < found[0]:
                found = (key, record)
        return None if found is None else found[1]

    def snapshot(self, serving: Serving, match: PrefixMatch | None = None) -> Snapshot:
        """The picture for one decision; nothing may be awaited before it is made."""
        return Snapshot(
            serving.traffic,
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

    def leg(self, worker_id: WorkerId, *, answering: bool = True) -> _Leg:
        """Counts one leg on the worker while open, whatever ends it."""
        return _Leg(self._counts, worker_id, answering)

    def prefilling_on(self, worker_id: WorkerId, tokens: int) -> Prefilling:
        """Counts prompt tokens in prefill on the worker while open, or until ``over``."""
        return Prefilling(self._counts, worker_id, tokens)

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
        costs = self._servings.current.routing.decider == "cost"
        return costs or self._measured % _LEARN_EVERY == 0

    # --- the registry ---

    async def refresh(self) -> None:
        """Reads the store once. One that is away leaves the picture as it was."""
        try:
            look = await self._store.look()
        except StoreUnavailable as error:
            if not self._store_lost:
                log.warning(
                    "the store is away, going on with %d workers known: %s",
                    len(self._records),
                    error.message,
                )
                self._lost_s = self._clock.monotonic_s()
            self._store_lost = True
            if self._others and self._clock.monotonic_s() - self._lost_s > ROUTER_TTL_S:
                # What others told holds no longer than in the store.
                self._hear(())
                self._unheard = True
            return
        before = self._look
        emptied = before is not None and look.epoch != before.epoch
        if self._store_lost or emptied:
            log.info("the store is back" if self._store_lost else "the store has lost what it had")
            self._store_lost = False
            self._held = dict(self._records)
            self._held_until_s = self._clock.monotonic_s() + _GRACE_S
        if self._held:
            look = self._with_held(look)
        self._tellers = {}
        if before is None or look.routers is not before.routers or self._unheard:
            self._unheard = False
            self._hear(look.routers)
        if (
            before is None
            or look.workers is not before.workers
            or look.cordoned is not before.cordoned
            or look.assigned is not before.assigned
            or self._roles.turning
        ):
            self._take(look)
        else:
            self._look = look
        for listener in self._listeners:
            listener(look)

    def _with_held(self, look: Look) -> Look:
        """With the workers of before that the store does not know again yet."""
        known = {record.id for record in look.workers}
        missed = [record for record in self._held.values() if record.id not in known]
        if not missed or self._clock.monotonic_s() >= self._held_until_s:
            self._held = {}
            return look
        self._held = {record.id: record for record in missed}
        workers = sorted((*look.workers, *missed), key=_by_id)
        return msgspec.structs.replace(look, workers=tuple(workers))

    def seen_by(self, serving: Serving) -> Sequence[WorkerRecord]:
        """The workers as a profile may use them now."""
        look = self._look
        return () if look is None else self._roles.seen_by(serving, look.workers, look.assigned)

    def picture(self, serving: Serving) -> None:
        """Makes a picture for a profile that serves nobody: of the workers in the roles that it
        would give them."""
        look = self._look
        if look is None:
            return
        roles = Roles(self._has_work, self._clock.monotonic_s)
        roles.arrange(look.workers, look.assigned, [serving])
        seen = roles.seen_by(serving, look.workers, look.assigned)
        serving.traffic.refresh(compile_fleet(seen, serving.routing, self._slots))

    def is_closed(self, worker_id: WorkerId) -> bool:
        """Whether it gets nothing new: under a cordon, or behind a breaker."""
        return worker_id in self._no_traffic()

    def rearrange(self) -> None:
        """The profiles that serve are others: the picture is made for them."""
        if self._look is not None:
            self._take(self._look)

    def _take(self, look: Look) -> None:
        records, cordoned = look.workers, look.cordoned
        self._note_changes(records, cordoned)
        self._look = None
        self._records = {record.id: record for record in records}
        self._cordoned = cordoned
        self._blocked_seen = self._blocked()
        self._closed = cordoned.union(self._blocked_seen)
        self._bases = _bases(records)
        servings = self._servings
        admitting = [s for s in (servings.candidate, servings.current) if s is not None]
        for serving in admitting:
            if serving.classify is not None:
                self._pairing = serving
                break
        self._roles.arrange(records, look.assigned, admitting, self.is_usable)
        for serving in servings.all():
            seen = self._roles.seen_by(serving, records, look.assigned)
            if serving is servings.current:
                self._seated = {record.id: record for record in seen}
            traffic = serving.traffic
            before = traffic.fleet if serving.settled else None
            serving.settled = False
            traffic.refresh(compile_fleet(seen, serving.routing, self._slots, before))
            serving.settled = True
        self.prefix.follow(records)
        # Only now: what fails half-way is done again, and from nothing.
        self._look = look

    def _hear(self, routers: tuple[RouterRecord, ...]) -> None:
        """What other routers have on workers counts in ours."""
        self._others = tuple(record for record in routers if record.id != self._router_id)
        legs: dict[WorkerId, int] = {}
        for record in self._others:
            for held in (record.prefilling, record.answering):
                for worker_id, count in held.items():
                    legs[worker_id] = legs.get(worker_id, 0) + count
        self._counts.tell_elsewhere(legs)

    def _has_work(self, worker_id: WorkerId, prefilling: bool) -> bool:
        answering = self._counts.answering.get(worker_id, 0)
        if not prefilling:
            return bool(answering or any(r.answering.get(worker_id) for r in self._others))
        if self._counts.legs.get(worker_id, 0) > answering or self._stranded().get(worker_id):
            return True
        return any(
            r.prefilling.get(worker_id) or r.stranded_bytes.get(worker_id) for r in self._others
        )

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


def _by_id(record: WorkerRecord) -> str:
    return record.id


def _serves(record: WorkerRecord, model: str) -> bool:
    return record.model == model or any(a.name == model for a in record.adapters)


class _Leg:
    """One leg that is counted."""

    __slots__ = ("_answering", "_counts", "_worker_id")

    def __init__(self, counts: Counts, worker_id: WorkerId, answering: bool) -> None:
        self._counts = counts
        self._worker_id = worker_id
        self._answering = answering

    def __enter__(self) -> None:
        self._counts.leg(self._worker_id, 1, answering=self._answering)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._counts.leg(self._worker_id, -1, answering=self._answering)


class Prefilling:
    """Prompt tokens that are in prefill on a worker.

    Attributes:
        ahead: tokens that were in prefill there before.
    """

    __slots__ = ("_counts", "_tokens", "_worker_id", "ahead")

    def __init__(self, counts: Counts, worker_id: WorkerId, tokens: int) -> None:
        self._counts = counts
        self._worker_id = worker_id
        self._tokens = tokens
        self.ahead = 0

    def __enter__(self) -> Prefilling:
        self.ahead = self._counts.prefilling.get(self._worker_id, 0)
        if self._tokens:
            self._counts.prefill(self._worker_id, self._tokens)
        return self

    def over(self) -> None:
        """The prompt is computed."""
        if self._tokens:
            self._counts.prefill(self._worker_id, -self._tokens)
            self._tokens = 0

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.over()
