"""The bounded queue of requests that wait for a place at the engines.

Higher bands go first, always. Inside a band tenants take turns by tokens (``shares``), and a
tenant's own requests stay in their order. Models wait side by side: one whose workers are full
holds up no other. When the queue is full the newest request of the lowest band makes room for one
of a higher band; inside a band the tenant with the longest queue makes room for one with a shorter
one, so that a burst cannot shut the others out by filling the queue.

It is plain bookkeeping: it reads no clock (time comes in), waits for nothing and wakes nobody.
"""

from __future__ import annotations

import heapq

from router.flow.shares import Account, Lane, Waiting


class FairQueue:
    """All that waits at one router.

    Args:
        bound: most requests that may wait.

    Attributes:
        bound: most requests that may wait; lowering it sends nobody away.
        count: how many wait; only read it.
    """

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self._lanes: dict[str, Lane] = {}
        self.count = 0
        self._seq = 0
        self._expiries: list[tuple[float, int, Waiting]] = []

    def lane(self, model: str) -> Lane:
        """The model's lane, made if there is none. Whoever makes lanes has to ``drop`` them."""
        lane = self._lanes.get(model)
        if lane is None:
            lane = self._lanes[model] = Lane(model)
        return lane

    def drop(self, model: str) -> None:
        """Forgets a lane in which nothing waits."""
        lane = self._lanes.pop(model)
        assert not lane.waiting, "requests wait in this lane"

    def push(self, item: Waiting, bound: int | None = None) -> Waiting | None:
        """Adds a request at the end of its account.

        Args:
            item: not in a queue yet; its account is of one of this queue's lanes.
            bound: a bound for this once, lower than the queue's own.

        Returns:
            None if there was room; otherwise who is out of the queue: a victim that made room,
            or ``item`` itself.
        """
        limit = self.bound if bound is None else min(bound, self.bound)
        victim: Waiting | None = None
        if self.count >= limit:
            victim = self._victim(item.account)
            if victim is None:
                return item
            self.remove(victim)
        account = item.account
        if not account.waiting:
            account.wake()
            account.band.backlog[account.tenant] = account
        self._seq += 1
        item.seq = self._seq
        item.queued = True
        account.waiting[item.seq] = item
        account.band.lane.waiting += 1
        self.count += 1
        heapq.heappush(self._expiries, (item.expires_s, item.seq, item))
        return victim

    def peek(self, lane: Lane) -> Waiting | None:
        """Whose turn it is in a lane."""
        band = lane.top()
        account = band.next_account() if band is not None else None
        return next(iter(account.waiting.values())) if account is not None else None

    def pop(self, lane: Lane) -> Waiting | None:
        """Takes the next request of a lane out of the queue and charges it to its tenant."""
        item = self.peek(lane)
        if item is not None:
            self.remove(item)
            item.account.take(item.tokens)
        return item

    def remove(self, item: Waiting) -> None:
        """Takes a request out, wherever it stands; does nothing for one that is out already."""
        if not item.queued:
            return
        item.queued = False
        account = item.account
        del account.waiting[item.seq]
        if not account.waiting:
            del account.band.backlog[account.tenant]
        account.band.lane.waiting -= 1
        self.count -= 1
        # What left early stays among the expiries until its time; it must not pile up there.
        if len(self._expiries) > 2 * self.count + 64:
            self._expiries = [entry for entry in self._expiries if entry[2].queued]
            heapq.heapify(self._expiries)

    def expire(self, now_s: float) -> list[Waiting]:
        """Takes out everything whose time is over."""
        expired: list[Waiting] = []
        while (due_s := self.next_expiry_s()) is not None and due_s <= now_s:
            item = self._expiries[0][2]
            self.remove(item)
            expired.append(item)
        return expired

    def next_expiry_s(self) -> float | None:
        """When the next request expires; None when nothing waits."""
        while self._expiries and not self._expiries[0][2].queued:
            heapq.heappop(self._expiries)
        return self._expiries[0][0] if self._expiries else None

    def depth_by_band(self) -> dict[int, int]:
        """How many wait in each band, over all models; only bands in which somebody waits."""
        depth: dict[int, int] = {}
        for lane in self._lanes.values():
            for band in lane.bands.values():
                if band.backlog:
                    count = sum(len(account.waiting) for account in band.backlog.values())
                    depth[band.priority] = depth.get(band.priority, 0) + count
        return depth

    def oldest_s(self) -> float | None:
        """When the request that waits longest came; None when nothing waits."""
        heads = (
            next(iter(account.waiting.values())).enqueued_s
            for lane in self._lanes.values()
            for band in lane.bands.values()
            for account in band.backlog.values()
        )
        return min(heads, default=None)

    def _victim(self, newcomer: Account) -> Waiting | None:
        """Who has to make room: the newest request of the longest account (per weight) of the
        lowest band, if that is below the newcomer's band, or is its band and stays longer than the
        newcomer's account becomes. None if nobody has to."""
        bands = [
            band for lane in self._lanes.values() for band in lane.bands.values() if band.backlog
        ]
        lowest = min((band.priority for band in bands), default=newcomer.band.priority)
        if lowest > newcomer.band.priority:
            return None
        longest: tuple[float, int] = (0.0, 0)
        victim: Waiting | None = None
        for band in bands:
            if band.priority != lowest:
                continue
            for account in band.backlog.values():
                newest = account.waiting[next(reversed(account.waiting))]
                key = (len(account.waiting) / account.weight, newest.seq)
                if key > longest:
                    longest, victim = key, newest
        if victim is None or lowest < newcomer.band.priority:
            return victim
        after = (len(newcomer.waiting) + 1) / newcomer.weight
        rest = (len(victim.account.waiting) - 1) / victim.account.weight
        return victim if rest >= after else None
