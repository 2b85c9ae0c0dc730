"""The pair matrix: what is known of each prefill and decode worker as two ends of a handoff.

A pair is refused on paper where a handoff would give wrong text; otherwise it is warmed and
measured once, so that the first handshake and a slow or corrupt transport are met by the router
and not by a client. It does not choose pairs, and never lifts a quarantine by itself: doubtful KV
stays unused until a person or a new engine says otherwise.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import random
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from baton.clock import Clock
from baton.errors import PeerFault
from baton.types import Role, WorkerId, WorkerRecord, WorkerState
from router.care.first_token import Likeness
from router.care.pair import Pair, PairRow, PairState, identity
from router.care.pair_check import Measured, measure, static_refusal
from router.care.rules import CareRules
from router.care.seams import Asker
from router.care.tasks import Tasks
from router.policy import PairKey, PairView

MOST_PAIRS = 4096
"""Kept, and so checked at join: 64 x 64 workers. Past it a pair is looked at on paper at each use
only; it is never warmed, and with ``require_checked`` not used."""
CHECKS_AT_A_TIME = 2
CHECK_TIMEOUT_S = 30.0
"""For each dummy handoff: the engine's own handshake timeout is 5 s, and prefill may be busy."""
_FIRST_RETRY_S = 1.0
_LONGEST_RETRY_S = 60.0
_SLOW_RETRY_S = 60.0
_LONGEST_SLOW_RETRY_S = 600.0
_BLOCKED_PAUSE_S = 1.0
_HANDSHAKE_KEPT_S = 3000.0
"""Less than the hour of idleness after which an engine forgets a peer (NIXL's ``engine_ttl``)."""
_WEIGHT = 0.2
"""Of a new observation in the bandwidth's moving average."""

OnView = Callable[[WorkerId, WorkerId, PairView], None]

log = logging.getLogger("baton.router.pairs")


class Pairs:
    """All pairs of the registered workers.

    Args:
        asker: for dummy handoffs.
        rules: the profile's.
        clock: for durations.
        rng: for prompts and salts of dummy handoffs.
        is_blocked: whether a worker's breaker is open; its checks wait.
        on_view: told of each new view, at once; must not raise. Of pairs that are gone it is not
            told.
        check_timeout_s: for each dummy handoff.
        most: pairs kept.
    """

    def __init__(
        self,
        asker: Asker,
        rules: CareRules,
        clock: Clock,
        rng: random.Random,
        *,
        is_blocked: Callable[[WorkerId], bool] = lambda _: False,
        on_view: OnView = lambda _prefill, _decode, _view: None,
        check_timeout_s: float = CHECK_TIMEOUT_S,
        most: int = MOST_PAIRS,
    ) -> None:
        self.quarantines = 0
        self._asker = asker
        self._rules = rules
        self._clock = clock
        self._rng = rng
        self._is_blocked = is_blocked
        self._on_view = on_view
        self._check_timeout_s = check_timeout_s
        self._most = most
        self._pairs: dict[PairKey, Pair] = {}
        self._views: dict[PairKey, PairView] = {}
        self._workers: dict[WorkerId, WorkerRecord] = {}
        # By engines, so that it outlives a lapse of a worker's registration.
        self._quarantine: dict[tuple[str, str], str] = {}
        self._due: list[tuple[float, int, PairKey, Pair]] = []
        self._order = 0
        self._wake = asyncio.Event()
        # Checks under way. One of a worker that has fallen silent is given up, or a few hung
        # workers would keep all others unchecked.
        self._under_way: dict[Pair, asyncio.Timeout] = {}
        self._tasks = Tasks(CHECKS_AT_A_TIME)

    # --- what others ask ---

    def views(self) -> Mapping[PairKey, PairView]:
        """All pairs kept, live: read it and do not await in between. A pair that is missing has
        not been looked at; ``use`` does that."""
        return MappingProxyType(self._views)

    def use(self, prefill: WorkerRecord, decode: WorkerRecord) -> PairView:
        """The pair's view, looked at now if it is not kept. To be asked before a handoff."""
        key = (prefill.id, decode.id)
        view = self._views.get(key)
        if view is not None:
            return view
        if len(self._pairs) < self._most and self._knows(prefill) and self._knows(decode):
            self._add(prefill, decode)
            return self._views[key]
        refusal = static_refusal(prefill, decode, self._rules)
        if refusal is None and self._rules.require_checked and self._rules.warm_pairs:
            refusal = "not checked: more pairs than the router keeps"
        return PairView(refusal is None, refusal or "", None)

    def handshaken(self, prefill: WorkerId, decode: WorkerId) -> bool:
        """Whether the engines of the two know each other already, as far as this router saw."""
        pair = self._pairs.get((prefill, decode))
        if pair is None or pair.moved_s is None:
            return False
        return self._clock.monotonic_s() - pair.moved_s < _HANDSHAKE_KEPT_S

    def table(self) -> tuple[PairRow, ...]:
        """All pairs kept."""
        now_s = self._clock.monotonic_s()
        return tuple(
            PairRow(
                prefill,
                decode,
                pair.state,
                pair.reason,
                pair.bandwidth_bytes_per_s,
                pair.exact,
                pair.setup_s,
                now_s - pair.since_s,
            )
            for (prefill, decode), pair in self._pairs.items()
        )

    # --- what others report ---

    def observe(self, prefill: WorkerId, decode: WorkerId, kv_bytes: int, seconds: float) -> None:
        """A real handoff moved ``kv_bytes`` in ``seconds``.

        It moves the average that cost models read. It never makes a pair slow: what a router sees
        holds decode's queue and first step as well.
        """
        pair = self._pairs.get((prefill, decode))
        if pair is None:
            return
        pair.moved_s = self._clock.monotonic_s()
        if kv_bytes > 0 and seconds > 0:
            seen, before = kv_bytes / seconds, pair.bandwidth_bytes_per_s
            pair.bandwidth_bytes_per_s = (
                seen if before is None else before + _WEIGHT * (seen - before)
            )
            self._show((prefill, decode), pair)

    def quarantine(self, prefill: WorkerId, decode: WorkerId, reason: str) -> None:
        """Takes a pair out until ``release``, or until one of its engines is another one."""
        pair = self._pairs.get((prefill, decode))
        if pair is None:
            ends = self._workers.get(prefill), self._workers.get(decode)
            if ends[0] is None or ends[1] is None:
                return
            pair = self._add(ends[0], ends[1])
        if pair.state is PairState.QUARANTINED:
            return
        while len(self._quarantine) >= self._most:
            del self._quarantine[next(iter(self._quarantine))]
        self._quarantine[pair.engines] = reason
        self.quarantines += 1
        log.error("pair %s -> %s is quarantined: %s", prefill, decode, reason)
        self._enter((prefill, decode), pair, PairState.QUARANTINED, reason)

    def release(self, prefill: WorkerId, decode: WorkerId) -> bool:
        """Ends a quarantine, on a person's word and without another check. Returns whether there
        was one."""
        pair = self._pairs.get((prefill, decode))
        if pair is None or pair.state is not PairState.QUARANTINED:
            return False
        self._quarantine.pop(pair.engines, None)
        self._enter((prefill, decode), pair, PairState.READY, "")
        return True

    def update(self, records: Iterable[WorkerRecord]) -> None:
        """Takes over what the registry says: new, changed and vanished workers.

        Costs a pass over the workers; over pairs only where a worker is new or another one.
        """
        now = {r.id: r for r in records if r.role is not Role.STANDARD and self._takes_part(r)}
        changed = {i for i, r in now.items() if identity(r) != identity(self._workers.get(i))}
        gone = self._workers.keys() - now.keys()
        self._workers = now
        if changed or gone:
            stale = changed | gone
            for key in [k for k in self._pairs if k[0] in stale or k[1] in stale]:
                del self._pairs[key], self._views[key]
            self._add_pairs_of(changed)
            self._due = [entry for entry in self._due if self._pairs.get(entry[2]) is entry[3]]
            heapq.heapify(self._due)
        for pair, check in self._under_way.items():
            silent = any(self._is_silent(end.id) for end in (pair.prefill, pair.decode))
            if silent and not check.expired():
                check.reschedule(asyncio.get_running_loop().time())

    def follow(self, rules: CareRules) -> None:
        """Other rules from now on. Where they ask for something else of a pair, all are looked at
        anew. What was measured is held against the new rules; what was good and is to be checked is
        used meanwhile."""
        before, self._rules = self._rules, rules
        if _asked_of_pairs(before) == _asked_of_pairs(rules):
            return
        known = self._pairs
        self._pairs, self._views, self._due = {}, {}, []
        for (prefill_id, decode_id), old in known.items():
            prefill, decode = self._workers.get(prefill_id), self._workers.get(decode_id)
            if prefill is None or decode is None:
                continue
            pair = self._add(prefill, decode)
            key = (prefill_id, decode_id)
            if pair.engines != old.engines:
                continue
            if old.trusted and old.tries == 0 and pair.state is PairState.UNCHECKED:
                pair.trusted = True
                self._show(key, pair)
            if old.state is not PairState.READY:
                continue
            pair.checked_bytes_per_s = old.checked_bytes_per_s
            pair.bandwidth_bytes_per_s, pair.exact = old.bandwidth_bytes_per_s, old.exact
            pair.setup_s, pair.moved_s = old.setup_s, old.moved_s
            if pair.state is not PairState.UNCHECKED:
                continue
            floor, checked = rules.floor_bytes_per_s, old.checked_bytes_per_s
            if before.warm_pairs and (floor is None or checked is None or checked >= floor):
                self._enter(key, pair, PairState.READY, "")
            elif not before.warm_pairs:
                pair.trusted = True
                self._show(key, pair)

    def start(self) -> None:
        """Begins to check, in the background."""
        for number in range(CHECKS_AT_A_TIME):
            self._tasks.spawn(self._check_for_ever, f"pairs-{number}")

    async def close(self) -> None:
        """Ends all checks."""
        await self._tasks.close()

    # --- the matrix ---

    def _takes_part(self, record: WorkerRecord) -> bool:
        if record.state in (WorkerState.READY, WorkerState.DRAINING):
            return True
        # Silent for a moment: the same engine comes back with the same handshakes.
        return identity(record) == identity(self._workers.get(record.id))

    def _is_silent(self, worker_id: WorkerId) -> bool:
        """Whether it is gone, or says itself that its engine does not answer."""
        record = self._workers.get(worker_id)
        return record is None or record.state not in (WorkerState.READY, WorkerState.DRAINING)

    def _knows(self, record: WorkerRecord) -> bool:
        return identity(self._workers.get(record.id)) == identity(record)

    def _add_pairs_of(self, changed: set[WorkerId]) -> None:
        by_role: dict[Role, list[WorkerRecord]] = {Role.PREFILL: [], Role.DECODE: []}
        for record in self._workers.values():
            by_role[record.role].append(record)
        for worker_id in changed:
            worker = self._workers[worker_id]
            joins_as_prefill = worker.role is Role.PREFILL
            for other in by_role[Role.DECODE if joins_as_prefill else Role.PREFILL]:
                prefill, decode = (worker, other) if joins_as_prefill else (other, worker)
                if other.model != worker.model or (prefill.id, decode.id) in self._pairs:
                    continue
                if len(self._pairs) >= self._most:
                    return
                self._add(prefill, decode)

    def _add(self, prefill: WorkerRecord, decode: WorkerRecord) -> Pair:
        key = (prefill.id, decode.id)
        pair = self._pairs[key] = Pair(prefill, decode, self._clock.monotonic_s())
        refusal = static_refusal(prefill, decode, self._rules)
        doubt = self._quarantine.get(pair.engines)
        if refusal is not None:
            log.warning("pair %s -> %s is refused: %s", *key, refusal)
            self._enter(key, pair, PairState.REFUSED, refusal)
        elif doubt is not None:
            self._enter(key, pair, PairState.QUARANTINED, doubt)
        elif self._rules.warm_pairs:
            self._enter(key, pair, PairState.UNCHECKED, "")
            self._check_in(0.0, key, pair)
        else:
            self._enter(key, pair, PairState.READY, "")
        return pair

    def _enter(self, key: PairKey, pair: Pair, state: PairState, reason: str) -> None:
        if pair.state is not state:
            pair.since_s = self._clock.monotonic_s()
        pair.state, pair.reason = state, reason
        self._show(key, pair)

    def _show(self, key: PairKey, pair: Pair) -> None:
        if self._pairs.get(key) is not pair:
            return
        unproven = pair.state in (PairState.UNCHECKED, PairState.CHECKING)
        # One that failed or was slow stays out while it is checked again.
        usable = pair.state is PairState.READY or (
            unproven and pair.tries == 0 and (pair.trusted or not self._rules.require_checked)
        )
        why = "" if usable else (f"{pair.state}: {pair.reason}" if pair.reason else pair.state)
        view = self._views[key] = PairView(usable, str(why), pair.bandwidth_bytes_per_s)
        self._on_view(*key, view)

    # --- checking ---

    def _check_in(self, seconds: float, key: PairKey, pair: Pair) -> None:
        self._order += 1
        due_s = self._clock.monotonic_s() + seconds
        heapq.heappush(self._due, (due_s, self._order, key, pair))
        self._wake.set()

    async def _check_for_ever(self) -> None:
        while True:
            key, pair = await self._next_due()
            if any(self._is_blocked(end) or self._is_silent(end) for end in key):
                self._check_in(_BLOCKED_PAUSE_S, key, pair)
                continue
            await self._check(key, pair)

    async def _next_due(self) -> tuple[PairKey, Pair]:
        while True:
            pause_s = None
            if self._due:
                pause_s = self._due[0][0] - self._clock.monotonic_s()
                if pause_s <= 0:
                    _, _, key, pair = heapq.heappop(self._due)
                    if self._wants_check(key, pair):
                        return key, pair
                    continue
            self._wake.clear()
            try:
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def _wants_check(self, key: PairKey, pair: Pair) -> bool:
        if self._pairs.get(key) is not pair:
            return False
        ends = (self._workers.get(key[0]), self._workers.get(key[1]))
        if any(end is None or end.state is WorkerState.DRAINING for end in ends):
            return False
        return pair.state in (PairState.UNCHECKED, PairState.FAILED, PairState.SLOW)

    async def _check(self, key: PairKey, pair: Pair) -> None:
        self._enter(key, pair, PairState.CHECKING, pair.reason)
        try:
            async with asyncio.timeout(None) as self._under_way[pair]:
                measured = await measure(
                    self._asker,
                    pair.prefill,
                    pair.decode,
                    floor_bytes_per_s=self._rules.floor_bytes_per_s,
                    timeout_s=self._check_timeout_s,
                    clock=self._clock,
                    rng=self._rng,
                )
        except TimeoutError:
            if pair.state is PairState.CHECKING:
                self._failed(key, pair, "one of the workers fell silent during the check")
            return
        except PeerFault as fault:
            if pair.state is PairState.CHECKING:
                self._failed(key, pair, fault.message)
            return
        except Exception as error:
            # The check of one pair must not end those of all others.
            log.exception("the check of pair %s -> %s failed", *key)
            if pair.state is PairState.CHECKING:
                self._failed(key, pair, f"internal error: {type(error).__name__}")
            return
        finally:
            del self._under_way[pair]
        self._conclude(key, pair, measured)

    def _conclude(self, key: PairKey, pair: Pair, measured: Measured) -> None:
        pair.moved_s = self._clock.monotonic_s()
        pair.setup_s = measured.setup_s
        pair.bandwidth_bytes_per_s, pair.exact = measured.bandwidth_bytes_per_s, measured.exact
        pair.checked_bytes_per_s = measured.bandwidth_bytes_per_s if measured.exact else None
        floor = self._rules.floor_bytes_per_s
        if pair.state is not PairState.CHECKING or self._pairs.get(key) is not pair:
            return  # quarantined, released or gone meanwhile
        if measured.likeness is Likeness.DIFFERENT:
            self.quarantine(
                *key,
                "each dummy handoff began otherwise than prefill's own answer "
                f"(log probability differs by {measured.difference:.2f} or more)",
            )
        elif floor is not None and measured.exact and measured.bandwidth_bytes_per_s < floor:
            reason = f"{measured.bandwidth_bytes_per_s:.3g} bytes/s, the floor is {floor:.3g}"
            log.warning("pair %s -> %s is slow: %s", *key, reason)
            self._again(key, pair, PairState.SLOW, reason, _SLOW_RETRY_S, _LONGEST_SLOW_RETRY_S)
        else:
            log.info(
                "pair %s -> %s is ready: set-up %.3f s, %.3g bytes/s",
                *key,
                measured.setup_s,
                measured.bandwidth_bytes_per_s,
            )
            self._enter(key, pair, PairState.READY, "")

    def _failed(self, key: PairKey, pair: Pair, reason: str) -> None:
        log.warning("pair %s -> %s failed its check: %s", *key, reason)
        self._again(key, pair, PairState.FAILED, reason, _FIRST_RETRY_S, _LONGEST_RETRY_S)

    def _again(
        self,
        key: PairKey,
        pair: Pair,
        state: PairState,
        reason: str,
        first_s: float,
        longest_s: float,
    ) -> None:
        pause_s = min(longest_s, first_s * 2.0 ** min(pair.tries, 16))
        pair.tries += 1
        self._enter(key, pair, state, reason)
        if self._pairs.get(key) is pair:
            self._check_in(pause_s, key, pair)


def _asked_of_pairs(rules: CareRules) -> object:
    """The part of the rules that says which pairs are good."""
    return (
        rules.warm_pairs,
        rules.require_checked,
        rules.floor_bytes_per_s,
        rules.require_rdma,
    )
