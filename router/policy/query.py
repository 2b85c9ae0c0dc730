"""One request against one snapshot: the candidates, their scores, the pairs, the predictions.

The shared workings of ``plan`` and ``explain``, so that both see the same. Values are worked out
when first asked for and kept. A query lives for one decision.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from baton.types import WorkerId, WorkerRecord
from kvtransfer import kv_bytes
from router.policy.bits import mask_of, slots_of
from router.policy.filters import MOMENTARY, SOFT, STANDING, Seat
from router.policy.fleet import Fleet, Name
from router.policy.pickers import PICKERS
from router.policy.rules import RoutingRules
from router.policy.scorers import SCORERS, stable_hash
from router.policy.snapshot import Snapshot
from router.policy.terms import Ask, Prediction, RandomSource, Reason

_Parts = tuple[float, float] | tuple[None, None]
_NOTHING: _Parts = (None, None)


class Query:
    """See the module.

    Attributes:
        ask: the request.
        snapshot: the state of things.
        fleet: the snapshot's.
        rules: the fleet's.
        name: what is asked for; None if nobody serves it.
    """

    __slots__ = (
        "_cached",
        "_hard",
        "_rng",
        "_session_hash",
        "_totals",
        "ask",
        "fleet",
        "name",
        "rules",
        "snapshot",
    )

    def __init__(self, ask: Ask, snapshot: Snapshot, rng: RandomSource) -> None:
        self.ask = ask
        self.snapshot = snapshot
        self.fleet: Fleet = snapshot.fleet
        self.rules: RoutingRules = snapshot.fleet.rules
        self.name: Name | None = snapshot.fleet.names.get(ask.model)
        snapshot.traffic.settle()
        self._rng = rng
        self._cached: dict[int, int] = {}
        self._session_hash: int | None = None
        self._hard: dict[Seat, int] = {}
        self._totals: list[float] | None = None

    def everyone_but(self, workers: Collection[WorkerId]) -> int:
        """All workers without these."""
        if not workers:
            return self.fleet.everyone
        slot_of = self.fleet.slot_of
        return self.fleet.everyone & ~mask_of(slot_of[w] for w in workers if w in slot_of)

    def able(self, seat: Seat) -> int:
        """Who passes all hard filters."""
        mask = self._hard.get(seat)
        if mask is None:
            mask = self._standing(seat)
            if self.snapshot.closed or self.ask.avoid:
                for passes in MOMENTARY.values():
                    mask &= passes(self, seat)
            self._hard[seat] = mask
        return mask

    def _standing(self, seat: Seat) -> int:
        """Who passes the filters that do not change while the fleet lasts; kept with it."""
        if self.name is None:
            return 0
        known = self.fleet.standing_able
        mask = known.get((self.ask.model, seat))
        if mask is None:
            mask = self.fleet.everyone
            for passes in STANDING.values():
                mask &= passes(self, seat)
            known[self.ask.model, seat] = mask
        return mask

    def soft(self, name: str, seat: Seat, among: int) -> int:
        """Who of ``among`` passes a soft filter."""
        return among & SOFT[name](self, seat)

    # --- tokens ---------------------------------------------------------------------------------

    def cached(self, slot: int) -> int:
        """Prompt tokens that a worker is thought to have; never all, since an engine computes the
        last one anyway."""
        tokens = self._cached.get(slot)
        if tokens is None:
            match, bounds = self.snapshot.prefix, self.ask.prompt_tokens
            tokens = 0
            if match is not None and bounds is not None and match.levels:
                tokens = max(0, min(match.depth(slot) * match.block_tokens, bounds.lower - 1))
            self._cached[slot] = tokens
        return tokens

    def uncached(self, slot: int) -> int | None:
        """Prompt tokens that a worker would have to compute, at least; None if uncounted."""
        bounds = self.ask.prompt_tokens
        return None if bounds is None else bounds.lower - self.cached(slot)

    def session_hash(self) -> int:
        """Of the session's name, the same in all routers."""
        if self._session_hash is None:
            self._session_hash = stable_hash(self.ask.session)
        return self._session_hash

    # --- scores ---------------------------------------------------------------------------------

    def totals(self) -> list[float]:
        """By slot, the weighted sum of all scores that do not depend on the candidates."""
        if self._totals is None:
            self._totals = self.snapshot.traffic.totals.copy()
            for weight, request in self.fleet.request_scorers:
                for slot, score in request(self):
                    self._totals[slot] += weight * score
        return self._totals

    def pick(self, among: int) -> int:
        """The slot that the rules' picker takes of ``among``, which must not be empty."""
        slots = slots_of(among)
        if len(slots) == 1:
            return slots[0]
        totals = self.totals()
        scores = [totals[slot] for slot in slots]
        for weight, special in self.fleet.among_scorers:
            for slot, score in special(self, slots):
                scores[slots.index(slot)] += weight * score
        return slots[PICKERS[self.rules.picker](scores, self._rng)]

    def scores(self, slot: int, among: int) -> dict[str, float]:
        """What each scorer says of one worker among candidates. For explanations: slow."""
        record, counts = self.fleet.records[slot], self.snapshot.traffic.counts
        legs, tokens = counts.on(record.id), counts.prefilling.get(record.id, 0)
        told = dict.fromkeys(self.fleet.weights, 0.0)
        for name in told:
            scorer = SCORERS[name]
            if scorer.standing is not None:
                told[name] = scorer.standing(record)
            if scorer.live is not None:
                told[name] = scorer.live(record, legs, tokens)
            if scorer.request is not None:
                told[name] = dict(scorer.request(self)).get(slot, 0.0)
            if scorer.among is not None and among:
                told[name] = dict(scorer.among(self, slots_of(among))).get(slot, 0.0)
        return told

    # --- places ---------------------------------------------------------------------------------

    def whole(self) -> tuple[int | None, bool]:
        """The worker for the request without a handoff, or None; and whether it is within its
        prefill budget.

        A prompt over every worker's limit still goes to one: the engine's refusal is what a
        client of a single server would see.
        """
        able = self.able(Seat.WHOLE)
        if not able:
            return None, True
        fitting = self.soft("limits", Seat.WHOLE, able) or able
        roomy = self.soft("prefill_budget", Seat.WHOLE, fitting)
        return self.pick(roomy or fitting), bool(roomy)

    def partners(self, decode: int, prefills: int) -> int:
        """Who of ``prefills`` may hand over to ``decode``: equal weights, geometry, version and
        content of the name asked for, and nothing against the pair in the pair book."""
        # One bit is in one class of one content at most.
        for _, mates in self._matches(1 << decode, prefills):
            return self._trusted(decode, mates)
        return 0

    def pairable(self, decodes: int, prefills: int) -> int:
        """Who of ``decodes`` has a partner among ``prefills``."""
        found, pairs = 0, self.snapshot.pairs
        for alike, mates in self._matches(decodes, prefills):
            if self.rules.require_checked_pairs:
                doubtful = alike
            else:
                doubtful = 0 if pairs is None else pairs.suspects & alike
            found |= alike & ~doubtful
            for slot in slots_of(doubtful):
                if self._trusted(slot, mates):
                    found |= 1 << slot
        return found

    def _matches(self, decodes: int, prefills: int) -> Iterator[tuple[int, int]]:
        """Decode workers that are alike, with the prefill workers that match; no empty ones."""
        for content in self.name.contents if self.name else ():
            here = prefills & content
            if here:
                for kind in self.fleet.pairs:
                    alike, mates = decodes & content & kind.decodes, here & kind.prefills
                    if alike and mates:
                        yield alike, mates

    def _trusted(self, decode: int, prefills: int) -> int:
        """Without those that the pair book has something against."""
        pairs = self.snapshot.pairs
        if self.rules.require_checked_pairs:
            return 0 if pairs is None else prefills & pairs.good(decode)
        return prefills if pairs is None else prefills & ~pairs.bad(decode)

    def pair(
        self, prefer: int | None = None, *, may_queue: bool = False
    ) -> tuple[int, int] | Reason:
        """Slots of a prefill and a decode worker that can do it together, or why there are none.

        Args:
            prefer: the decode worker to take if it can.
            may_queue: also where prefill's queue is full.
        """
        decodes, prefills = self.able(Seat.DECODE), self.able(Seat.PREFILL)
        if not decodes or not prefills:
            return Reason.NO_PREFILL_WORKER
        fitting = self.soft("limits", Seat.DECODE, decodes)
        able = self.soft("limits", Seat.PREFILL, prefills)
        free = able if may_queue else self.soft("prefill_queue", Seat.PREFILL, able)
        paired = self.pairable(fitting, free)
        if not paired:
            if free != able and self.pairable(fitting, able):
                return Reason.PREFILL_BUSY
            return self._why_no_pair(decodes, prefills, fitting, able)
        wished = prefer is not None and paired >> prefer & 1
        decode = prefer if prefer is not None and wished else self.pick(paired)
        return self.pick(self.partners(decode, free)), decode

    def _why_no_pair(self, decodes: int, prefills: int, fitting: int, able: int) -> Reason:
        if not fitting:
            return Reason.OVER_LIMITS
        if any(self._matches(fitting, able)):
            return Reason.NO_USABLE_PAIR
        if any(self._matches(fitting, prefills)):
            return Reason.OVER_LIMITS
        return Reason.NO_MATCHING_PAIR

    # --- predictions ----------------------------------------------------------------------------

    def predict(self, local: int | None, pair: tuple[int, int] | None) -> Prediction | None:
        """What the local way and the handoff would take, as far as it was measured."""
        estimates, bounds = self.snapshot.estimates, self.ask.prompt_tokens
        if estimates is None or bounds is None:
            return None
        here = _NOTHING if local is None else self._prefill(local)
        there = _NOTHING if pair is None else self._prefill(pair[0])
        pull = _NOTHING if pair is None else self._pull(*pair)
        if here is there is pull is _NOTHING:
            return None
        return Prediction(*here, *there, *pull)

    def _prefill(self, slot: int) -> _Parts:
        """Seconds of waiting and of prefill on one worker."""
        snapshot, worker = self.snapshot, self.fleet.records[slot]
        assert snapshot.estimates is not None
        line = snapshot.estimates.prefill(worker, snapshot.now_s)
        tokens = self.uncached(slot)
        if line is None or tokens is None:
            return _NOTHING
        queue_s = line.slope_s * snapshot.traffic.counts.prefilling.get(worker.id, 0)
        # Requests of other routers wait there too; of those only the number is known.
        others = worker.load.waiting - snapshot.traffic.counts.legs.get(worker.id, 0)
        if others > 0:
            queue_s += others * line.mean_s
        return queue_s, line.at(tokens)

    def _pull(self, prefill_slot: int, decode_slot: int) -> _Parts:
        """Seconds of set-up and first step, and of moving the bytes that decode lacks."""
        snapshot = self.snapshot
        prefill, decode = self.fleet.records[prefill_slot], self.fleet.records[decode_slot]
        assert snapshot.estimates is not None
        line, own = snapshot.estimates.pull(prefill, decode, snapshot.now_s)
        tokens = self.uncached(decode_slot)
        if line is None or tokens is None:
            return _NOTHING
        slope_s = line.slope_s
        if not own and snapshot.pairs is not None:
            # Of the pair itself only the matrix's measurement is known: better than its like.
            view = snapshot.pairs.get(prefill.id, decode.id)
            if view is not None and view.bandwidth_bytes_per_s:
                slope_s = 1.0 / view.bandwidth_bytes_per_s
        return line.fixed_s, slope_s * kv_bytes(decode.geometry, tokens)

    def record(self, slot: int) -> WorkerRecord:
        """The worker in a slot."""
        return self.fleet.records[slot]
