"""An index that is nothing but sets, to compare with."""

from __future__ import annotations

from collections.abc import Sequence

from baton.types import WorkerId


class RecordingIndex:
    """What each worker has, and whether an event was ever about what it had not."""

    def __init__(self) -> None:
        self.has: dict[WorkerId, set[int]] = {}
        self.clears: list[WorkerId] = []

    def stored(self, worker: WorkerId, hashes: Sequence[int], /) -> None:
        self.has.setdefault(worker, set()).update(hashes)

    def removed(self, worker: WorkerId, hashes: Sequence[int], /) -> None:
        assert set(hashes) <= self.has[worker], "removed what was never stored"
        self.has[worker].difference_update(hashes)

    def cleared(self, worker: WorkerId, /) -> None:
        self.clears.append(worker)
        self.has.pop(worker, None)

    def matched(self, worker: WorkerId, chain: Sequence[int]) -> int:
        """Blocks of the chain, from its start, that the worker has."""
        has = self.has.get(worker, set())
        for length, block in enumerate(chain):
            if block not in has:
                return length
        return len(chain)
