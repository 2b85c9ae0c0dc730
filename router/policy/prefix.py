"""Which worker has how much of a prompt's KV cache: a bounded book of block hashes per worker.

A prompt is a chain of hashes made elsewhere, one per block of tokens, each depending on all before
it: who has a block is taken to have those before it. The book is filled in two ways. Approximate:
``record`` what was sent where. Exact: ``stored`` and ``removed`` as engines report. Either way it
is a guess that costs a cached prefix when wrong, never an answer.

It refuses to hash, to count tokens and to read events.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import msgspec

from baton.types import WorkerId
from router.policy.slots import Slots

_AT_A_TIME = 256
"""The part of a full worker's entries that is dropped in one go."""


class PrefixMatch(msgspec.Struct, frozen=True):
    """Who has how many leading blocks of a prompt.

    Attributes:
        levels: sets of slots with the blocks that each of them has, at least; each set is part of
            the one before, with more blocks.
        blocks: length of the chain that was looked at.
        block_tokens: tokens in a block.
    """

    levels: tuple[tuple[int, int], ...] = ()
    blocks: int = 0
    block_tokens: int = 0

    def depth(self, slot: int) -> int:
        """Leading blocks that one worker has."""
        bit = 1 << slot
        for mask, blocks in reversed(self.levels):
            if mask & bit:
                return blocks
        return 0


class PrefixIndex:
    """Block hashes of all workers.

    Memory: an entry is one hash on one worker, about 100 bytes; a hash on more workers costs its
    set of workers once. Over a bound, a worker loses what it used longest ago.

    Args:
        slots: the router's; whoever leaves them is forgotten.
        max_entries: over all workers, shared out evenly; 2 million are about 250 MB.
        max_worker_entries: for one worker; 65,536 blocks of 16 tokens are a million tokens of KV,
            more than most engines hold.
        max_chain: blocks of a prompt that are looked at; longer prompts count by their beginning.
    """

    def __init__(
        self,
        slots: Slots,
        *,
        max_entries: int = 2_000_000,
        max_worker_entries: int = 65_536,
        max_chain: int = 4096,
    ) -> None:
        if min(max_entries, max_worker_entries, max_chain) < 1:
            raise ValueError("the bounds of a prefix index must be 1 or more")
        self._slots = slots
        self._max_entries = max_entries
        self._max_worker_entries = max_worker_entries
        self._max_chain = max_chain
        self._holders: dict[int, int] = {}
        # A dictionary keeps its order: the first is what was used longest ago.
        self._owned: dict[int, dict[int, None]] = {}
        self._share = max_worker_entries
        slots.watch(self._forget)

    def match(self, chain: Sequence[int], block_tokens: int) -> PrefixMatch:
        """Who has how much of ``chain``.

        A run of blocks with the same holders is jumped over in growing steps and then halves, so
        the cost grows with the number of different depths, not with the chain: a few microseconds
        for a thousand blocks.
        """
        end = min(len(chain), self._max_chain)
        holders = self._holders.get
        levels = []
        mask = holders(chain[0], 0) if end else 0
        at = 0
        while mask:
            at = self._run_end(chain, at, end, mask)
            levels.append((mask, at))
            if at == end:
                break
            mask &= holders(chain[at], 0)
        return PrefixMatch(tuple(levels), end, block_tokens)

    def record(self, worker: WorkerId, chain: Sequence[int]) -> None:
        """A request with this prompt was sent to ``worker``, which will have its blocks."""
        self._add(worker, chain[: self._max_chain])

    def stored(self, worker: WorkerId, hashes: Sequence[int]) -> None:
        """``worker`` reports that it has these blocks, the earlier of a prompt first."""
        self._add(worker, hashes)

    def removed(self, worker: WorkerId, hashes: Sequence[int]) -> None:
        """``worker`` reports that it has dropped these blocks."""
        slot = self._slots.get(worker)
        owned = None if slot is None else self._owned.get(slot)
        if slot is None or owned is None:
            return
        for block in hashes:
            if block in owned:
                del owned[block]
                self._drop(block, slot)

    def cleared(self, worker: WorkerId) -> None:
        """``worker`` has nothing cached, or nobody knows what."""
        if (slot := self._slots.get(worker)) is not None:
            self._forget(worker, slot)

    def entries(self, worker: WorkerId) -> int:
        """Blocks known of one worker."""
        slot = self._slots.get(worker)
        return 0 if slot is None else len(self._owned.get(slot, ()))

    def __len__(self) -> int:
        """Entries over all workers."""
        return sum(map(len, self._owned.values()))

    def _run_end(self, chain: Sequence[int], at: int, end: int, mask: int) -> int:
        """How far the holders of block ``at`` have all blocks: the first that one lacks, or
        ``end``."""
        holders = self._holders.get
        have, step = at, 1
        lack = end
        while have + step < end:
            if holders(chain[have + step], 0) & mask != mask:
                lack = have + step
                break
            have += step
            step *= 2
        else:
            if holders(chain[end - 1], 0) & mask == mask:
                return end
            lack = end - 1
        while lack - have > 1:
            middle = (have + lack) // 2
            if holders(chain[middle], 0) & mask == mask:
                have = middle
            else:
                lack = middle
        return lack

    def _add(self, worker: WorkerId, hashes: Sequence[int]) -> None:
        slot = self._slots.get(worker)
        if slot is None:
            # It left while its request or its report was on the way.
            return
        owned = self._owned.get(slot)
        if owned is None:
            owned = self._join(slot)
        bit, holders = 1 << slot, self._holders
        # From the end, so that a prompt's beginning is the last of it to be dropped: what is left
        # is then still a prefix.
        for block in reversed(hashes):
            if block in owned:
                del owned[block]
            else:
                holders[block] = holders.get(block, 0) | bit
            owned[block] = None
        if len(owned) > self._share:
            self._trim(slot, owned)

    def _join(self, slot: int) -> dict[int, None]:
        owned: dict[int, None] = {}
        self._owned[slot] = owned
        self._share_out()
        for other, blocks in self._owned.items():
            self._trim(other, blocks)
        return owned

    def _share_out(self) -> None:
        workers = max(1, len(self._owned))
        self._share = min(self._max_worker_entries, self._max_entries // workers)

    def _trim(self, slot: int, owned: dict[int, None]) -> None:
        over = len(owned) - self._share
        if over <= 0:
            return
        others, holders = ~(1 << slot), self._holders
        # Some more than needed: the way to a dictionary's first entry leads past deleted ones.
        for block in list(islice(owned, over + self._share // _AT_A_TIME)):
            del owned[block]
            if left := holders[block] & others:
                holders[block] = left
            else:
                del holders[block]

    def _drop(self, block: int, slot: int) -> None:
        left = self._holders[block] & ~(1 << slot)
        if left:
            self._holders[block] = left
        else:
            del self._holders[block]

    def _forget(self, worker: WorkerId, slot: int) -> None:
        for block in self._owned.pop(slot, ()):
            self._drop(block, slot)
        self._share_out()
