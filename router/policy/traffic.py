"""What this router has on its workers now: open legs, prompts in prefill, and what follows.

The part of the picture that changes with every request. Scores that depend on it are kept up to
date here, one worker at a time as legs come and go, so that a decision need not add them up for a
thousand workers.
"""

from __future__ import annotations

from collections.abc import Mapping

from baton.types import WorkerId
from router.policy.filters import Seat
from router.policy.fleet import Fleet
from router.policy.scorers import SCORERS


class Counts:
    """What there is on the workers now, whatever profile sent it there. Kept by worker id, so that
    it outlives fleets; a worker that is gone is counted until its last leg ends.

    Attributes:
        legs: by worker, this router's legs that are open; no zeros. To be read only.
        answering: those of them that are no prefill legs of handoffs.
        prefilling: by worker, uncached prompt tokens in prefill; no zeros. To be read only.
        elsewhere: by worker, legs of other routers, as they told last.
    """

    __slots__ = ("_followers", "answering", "elsewhere", "legs", "prefilling")

    def __init__(
        self,
        legs: Mapping[WorkerId, int] | None = None,
        prefilling: Mapping[WorkerId, int] | None = None,
    ) -> None:
        self.legs: dict[WorkerId, int] = dict(legs or {})
        self.answering: dict[WorkerId, int] = {}
        self.prefilling: dict[WorkerId, int] = dict(prefilling or {})
        self.elsewhere: Mapping[WorkerId, int] = {}
        self._followers: list[Traffic] = []

    def on(self, worker_id: WorkerId) -> int:
        """Legs on the worker, of all routers."""
        return self.legs.get(worker_id, 0) + self.elsewhere.get(worker_id, 0)

    def leg(self, worker_id: WorkerId, change: int, *, answering: bool = True) -> None:
        """A leg on the worker begins (1) or has ended (-1)."""
        _count(self.legs, worker_id, change)
        if answering:
            _count(self.answering, worker_id, change)
        self._changed(worker_id)

    def prefill(self, worker_id: WorkerId, tokens: int) -> None:
        """So many uncached prompt tokens are in prefill there now; less than 0 when it is over."""
        _count(self.prefilling, worker_id, tokens)
        self._changed(worker_id)

    def tell_elsewhere(self, legs: Mapping[WorkerId, int]) -> None:
        """What other routers have on workers now."""
        before, self.elsewhere = self.elsewhere, legs
        for worker_id in before.keys() | legs.keys():
            if before.get(worker_id) != legs.get(worker_id):
                self._changed(worker_id)

    def follow(self, traffic: Traffic) -> None:
        """Has ``traffic`` told of changes, until ``leave``."""
        self._followers.append(traffic)

    def leave(self, traffic: Traffic) -> None:
        """No more."""
        self._followers.remove(traffic)

    def _changed(self, worker_id: WorkerId) -> None:
        for traffic in self._followers:
            traffic.stale.add(worker_id)


class Traffic:
    """The workers under one set of rules, with what is on them.

    Attributes:
        fleet: the workers; changed by ``refresh``.
        counts: what is on them; of all traffics of a router the same.
        stale: workers of which ``counts`` changed since the last ``settle``.
        decode_prefilling: by slot, uncached prompt tokens in prefill on workers that decode; no
            zeros.
        totals: by slot, the weighted sum of all scores that no request changes. Like the two
            others by slot as of the last ``settle``.
        full_queues: workers with ``rules.max_prefill_queue`` requests waiting or more, by their
            own word or by legs beyond their slots.
    """

    __slots__ = (
        "_live",
        "counts",
        "decode_prefilling",
        "fleet",
        "full_queues",
        "stale",
        "totals",
    )

    def __init__(self, fleet: Fleet, counts: Counts | None = None) -> None:
        self.counts = Counts() if counts is None else counts
        self.refresh(fleet)
        self.counts.follow(self)

    def refresh(self, fleet: Fleet) -> None:
        """From now on decisions are about this fleet, and under its rules."""
        self.fleet = fleet
        self.stale: set[WorkerId] = set()
        self.full_queues = fleet.full_queues
        self.decode_prefilling: dict[int, int] = {}
        self.totals = fleet.totals.copy()
        self._live = [
            (weight, live)
            for name, weight in fleet.weights.items()
            if (live := SCORERS[name].live) is not None
        ]
        for worker_id in fleet.slot_of:
            self._update(worker_id)

    def settle(self) -> None:
        """Brings up to date what follows from legs and prompts; before each decision, for the few
        workers that had any since the last."""
        if self.stale:
            for worker_id in self.stale:
                self._update(worker_id)
            self.stale.clear()

    def _update(self, worker_id: WorkerId) -> None:
        fleet = self.fleet
        slot = fleet.slot_of.get(worker_id)
        if slot is None:
            return
        record = fleet.records[slot]
        counts = self.counts
        legs, tokens = counts.on(worker_id), counts.prefilling.get(worker_id, 0)
        total = fleet.totals[slot]
        for weight, live in self._live:
            total += weight * live(record, legs, tokens)
        self.totals[slot] = total
        if tokens and fleet.seats[Seat.WHOLE] >> slot & 1:
            self.decode_prefilling[slot] = tokens
        else:
            self.decode_prefilling.pop(slot, None)
        most = fleet.rules.max_prefill_queue
        if most is not None and not fleet.full_queues >> slot & 1:
            if legs - record.limits.slots >= most:
                self.full_queues |= 1 << slot
            else:
                self.full_queues &= ~(1 << slot)


def _count(book: dict[WorkerId, int], worker_id: WorkerId, change: int) -> None:
    left = book.get(worker_id, 0) + change
    if left > 0:
        book[worker_id] = left
    else:
        book.pop(worker_id, None)
