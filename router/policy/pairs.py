"""Which pairs may hand over in fact, and how fast: what the pair matrix found, kept by slot.

Whether two workers match on paper is the fleet's business. This is about what was tried: a pair
that failed its check, is too slow, or is quarantined must not be used, however well it matches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from baton.types import WorkerId
from router.policy.bits import mask_of
from router.policy.slots import Slots

PairKey = tuple[WorkerId, WorkerId]
"""Prefill worker, decode worker."""


class PairView(NamedTuple):
    """What is known of a pair.

    Attributes:
        usable: whether handoffs may go over it.
        why: why not, in words.
        bandwidth_bytes_per_s: as measured; None if it was not.
    """

    usable: bool = True
    why: str = ""
    bandwidth_bytes_per_s: float | None = None


class PairBook:
    """All pairs that something is known of. Bounded by the workers there are: a pair is forgotten
    with either of its workers, also when that one's engine restarts."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._views: dict[PairKey, PairView] = {}
        self._good: dict[int, int] = {}
        self._bad: dict[int, int] = {}
        self._suspects = 0
        slots.watch(self._forget)

    @property
    def suspects(self) -> int:
        """Decode workers that have a partner they must not be paired with."""
        return self._suspects

    def bad(self, decode_slot: int) -> int:
        """The prefill workers that a decode worker must not be paired with."""
        return self._bad.get(decode_slot, 0)

    def good(self, decode_slot: int) -> int:
        """The prefill workers that were found good for a decode worker."""
        return self._good.get(decode_slot, 0)

    def put(self, prefill: WorkerId, decode: WorkerId, view: PairView) -> None:
        """Takes down what is known of a pair now; workers that are not there are passed over."""
        p, d = self._slots.get(prefill), self._slots.get(decode)
        if p is None or d is None:
            return
        self._views[prefill, decode] = view
        self._mark(self._good, d, 1 << p, view.usable)
        self._mark(self._bad, d, 1 << p, not view.usable)
        self._suspects = mask_of(self._bad)

    def replace(self, views: Mapping[PairKey, PairView]) -> None:
        """Takes down ``views`` and forgets all else."""
        self._views.clear()
        self._good.clear()
        self._bad.clear()
        self._suspects = 0
        for (prefill, decode), view in views.items():
            self.put(prefill, decode, view)

    def get(self, prefill: WorkerId, decode: WorkerId) -> PairView | None:
        """What is known of a pair; None for nothing."""
        return self._views.get((prefill, decode))

    def __len__(self) -> int:
        return len(self._views)

    @staticmethod
    def _mark(book: dict[int, int], slot: int, bit: int, on: bool) -> None:
        mask = book.get(slot, 0) | bit if on else book.get(slot, 0) & ~bit
        if mask:
            book[slot] = mask
        else:
            book.pop(slot, None)

    def _forget(self, worker_id: WorkerId, slot: int) -> None:
        for book in (self._good, self._bad):
            book.pop(slot, None)
            for decode_slot in [*book]:
                self._mark(book, decode_slot, 1 << slot, False)
        self._suspects = mask_of(self._bad)
        for key in [key for key in self._views if worker_id in key]:
            del self._views[key]
