"""Small numbers for workers, so that sets of them are bits of an integer.

A number belongs to a worker for as long as the registry knows it, and is given to another one
afterwards. Whoever keeps bits of workers over time (the prefix index, the pair book) watches the
slots and forgets a worker when it leaves or its engine is another one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from baton.types import EngineId, WorkerId

Forget = Callable[[WorkerId, int], None]
"""Told of the worker and its slot, before anybody else can get the slot."""


class Slots:
    """The numbers in use. One per router; not thread-safe."""

    def __init__(self) -> None:
        self._slots: dict[WorkerId, int] = {}
        self._engines: dict[WorkerId, EngineId] = {}
        self._free: list[int] = []
        self._watchers: list[Forget] = []

    def watch(self, forget: Forget) -> None:
        """``forget`` is called for each worker that leaves or restarts."""
        self._watchers.append(forget)

    def update(self, engines: Mapping[WorkerId, EngineId]) -> None:
        """The workers that there are now, with their engines. Tells the watchers who is not what
        it was. The lowest free numbers are given first, so that sets stay short."""
        for worker_id in self._slots.keys() - engines.keys():
            self._forget(worker_id)
            self._free.append(self._slots.pop(worker_id))
            del self._engines[worker_id]
        self._free.sort(reverse=True)
        for worker_id, engine_id in engines.items():
            if worker_id not in self._slots:
                # Without free ones the numbers in use are 0 to len - 1.
                self._slots[worker_id] = self._free.pop() if self._free else len(self._slots)
            elif self._engines[worker_id] != engine_id:
                self._forget(worker_id)
            self._engines[worker_id] = engine_id

    def get(self, worker_id: WorkerId) -> int | None:
        """The worker's number; None if it is not there."""
        return self._slots.get(worker_id)

    def all(self) -> Mapping[WorkerId, int]:
        """A copy of who has which number."""
        return dict(self._slots)

    def __len__(self) -> int:
        return len(self._slots)

    def _forget(self, worker_id: WorkerId) -> None:
        slot = self._slots[worker_id]
        for forget in self._watchers:
            forget(worker_id, slot)
