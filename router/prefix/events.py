"""What an engine's KV events say, as pure bookkeeping: bytes in, our own block hashes out.

vLLM names blocks by hashes of its own, which a router cannot compute from a prompt without being
vLLM. But each event carries the token ids, so we compute our hashes from those, and remember per
worker which of the engine's names stands for which of ours: names are all that a removal or a
successor gives.

What could not be matched against a request's chain is left out, with everything that follows it:
blocks with images or prompt embeddings in them, partial blocks, blocks of another size, tiers other
than the device's own memory, attention groups that do not decide alone how much of a prompt is
reusable. Knowing too little costs a preference; knowing something false costs a prefill.

The wire format is that of vLLM 0.32 (``vllm/distributed/kv_events.py``): a batch is an array
``[ts, events, data_parallel_rank]``, an event a map with its class name under ``type``. Fields that
are not read here are skipped.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from typing import Any, Final, Protocol

import msgspec

from baton.types import WorkerId
from router.prefix.chains import block_chain, chain_seed

EngineHash = int | bytes
"""vLLM's name of a block: an integer by default, bytes where its environment says so."""

_DEVICE_MEMORY: Final = (None, "GPU")
"""vLLM says GPU for the engine's own KV memory on every device, CPU included."""
_REUSE_DECIDING: Final = (None, "full_attention", "mla_attention", "sink_full_attention")

MAX_WORKER_BLOCKS: Final = 262_144
"""Blocks of one worker that are remembered; 4 million tokens in blocks of 16. About 200 bytes
each; the oldest are forgotten, and their removal or successors then mean nothing."""


class BlockStored(msgspec.Struct, tag=True, frozen=True, gc=False):
    """Blocks that follow ``parent_block_hash`` (None: a prompt's first) are in the cache."""

    block_hashes: list[EngineHash]
    parent_block_hash: EngineHash | None
    token_ids: list[int]
    block_size: int
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: list[list[Any] | None] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    locality: str | None = None


class BlockRemoved(msgspec.Struct, tag=True, frozen=True, gc=False):
    """One copy of each of these blocks left the cache."""

    block_hashes: list[EngineHash]
    medium: str | None = None
    group_idx: int | None = None
    locality: str | None = None


class AllBlocksCleared(msgspec.Struct, tag=True, frozen=True, gc=False):
    """The cache is empty."""


Event = BlockStored | BlockRemoved | AllBlocksCleared


class EventBatch(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What happened in one step of an engine. ``ts`` is its wall clock, in seconds."""

    ts: float
    events: list[Event]


_DECODER: Final = msgspec.msgpack.Decoder(EventBatch)


def decode_batch(payload: bytes) -> EventBatch | None:
    """A batch, or None for bytes that are none (another version's format, or not an engine)."""
    try:
        return _DECODER.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


class Arrival(enum.Enum):
    """What a batch's number says about it."""

    NEXT = "next"
    SEEN = "seen"
    GAP = "gap"
    RESTARTED = "restarted"


class BatchSequence:
    """Numbers of one publisher's batches: 0, 1, 2 and so on since the engine started.

    Attributes:
        expected: the number that comes next.
    """

    def __init__(self) -> None:
        self.expected = 0
        self._last_ts = float("-inf")

    def judge(self, number: int, ts: float) -> Arrival:
        """What to make of a batch. Changes nothing.

        A number that was there before is an old batch again (a replay overlaps with what is live)
        unless it was made after all that we have seen: then the engine counts anew.
        """
        if number == self.expected:
            return Arrival.NEXT
        if number > self.expected:
            return Arrival.GAP
        return Arrival.RESTARTED if ts > self._last_ts else Arrival.SEEN

    def took(self, number: int, ts: float) -> None:
        """The batch was applied; the next one is the one after it."""
        self.expected = number + 1
        self._last_ts = ts

    def skip(self, number: int) -> None:
        """The batch could not be read and never will be; the next one is the one after it."""
        self.expected = max(self.expected, number + 1)


class ExactIndex(Protocol):
    """What is kept of which worker has which block: the part that events write."""

    def stored(self, worker: WorkerId, hashes: Sequence[int], /) -> object:
        """The worker has these blocks."""
        ...

    def removed(self, worker: WorkerId, hashes: Sequence[int], /) -> object:
        """The worker no longer has these blocks."""
        ...

    def cleared(self, worker: WorkerId, /) -> object:
        """Nothing is known of the worker."""
        ...


class WorkerBlocks:
    """The engine's names of one worker's blocks, and our hashes for them.

    Args:
        worker: whose they are.
        model: the base model's served name, part of every chain.
        block_size: tokens per block; blocks of another size are left out.
        index: told of every change.
        max_blocks: names remembered at most.
    """

    def __init__(
        self,
        worker: WorkerId,
        model: str,
        block_size: int,
        index: ExactIndex,
        *,
        max_blocks: int = MAX_WORKER_BLOCKS,
    ) -> None:
        self._worker = worker
        self._model = model
        self._block_size = block_size
        self._index = index
        self._max_blocks = max_blocks
        self._ours: dict[EngineHash, int] = {}
        # Two requests that compute the same prompt at the same time make two copies of a block,
        # stored and removed one by one. Only names with more than one copy stand here.
        self._further_copies: dict[EngineHash, int] = {}
        self._group: int | None = None

    def __len__(self) -> int:
        return len(self._ours)

    def clear(self) -> None:
        """Forgets everything about the worker, here and in the index."""
        self._ours.clear()
        self._further_copies.clear()
        self._index.cleared(self._worker)

    def apply(self, events: Iterable[Event]) -> None:
        """Takes over what a batch says, in its order."""
        for event in events:
            match event:
                case BlockStored():
                    self._store(event)
                case BlockRemoved():
                    self._remove(event)
                case AllBlocksCleared():
                    self.clear()

    def _store(self, event: BlockStored) -> None:
        if not self._concerns_us(event):
            return
        previous = self._before(event)
        if previous is None:
            return
        names = event.block_hashes[: _plain_blocks(event)]
        ids = event.token_ids[: len(names) * self._block_size]
        new = []
        # Not strict: ids that no chain can be made of give fewer hashes.
        for name, ours in zip(names, block_chain(previous, ids, self._block_size), strict=False):
            if self._ours.get(name) == ours:
                self._further_copies[name] = self._further_copies.get(name, 0) + 1
                continue
            self._ours[name] = ours
            new.append(ours)
        if new:
            self._index.stored(self._worker, new)
            self._forget_oldest()

    def _concerns_us(self, event: BlockStored) -> bool:
        if event.medium not in _DEVICE_MEMORY or event.locality == "REMOTE":
            return False
        if event.kv_cache_spec_kind not in _REUSE_DECIDING or event.block_size != self._block_size:
            return False
        if len(event.block_hashes) * event.block_size != len(event.token_ids):
            return False  # some blocks of the range are left out: which, is not said
        if self._group is None:
            self._group = event.group_idx
        return event.group_idx == self._group

    def _before(self, event: BlockStored) -> int | None:
        """What the event's first block is chained to; None if that is not known."""
        if event.parent_block_hash is not None:
            return self._ours.get(event.parent_block_hash)
        keys = _own_keys(event, 0)
        salt = keys[0] if keys and isinstance(keys[0], str) else ""
        return chain_seed(self._model, event.lora_name or "", salt)

    def _remove(self, event: BlockRemoved) -> None:
        if event.medium not in _DEVICE_MEMORY or event.locality == "REMOTE":
            return
        if event.group_idx != self._group:
            return
        gone = []
        for name in event.block_hashes:
            copies = self._further_copies.get(name, 0)
            if copies > 1:
                self._further_copies[name] = copies - 1
            elif copies == 1:
                del self._further_copies[name]
            else:
                ours = self._ours.pop(name, None)
                if ours is not None:
                    gone.append(ours)
        if gone:
            self._index.removed(self._worker, gone)

    def _forget_oldest(self) -> None:
        surplus = len(self._ours) - self._max_blocks
        if surplus <= 0:
            return
        gone = []
        for name in [name for name, _ in zip(self._ours, range(surplus), strict=False)]:
            gone.append(self._ours.pop(name))
            self._further_copies.pop(name, None)
        self._index.removed(self._worker, gone)


def _own_keys(event: BlockStored, number: int) -> list[Any]:
    """What besides token ids and adapter went into the engine's hash of a block."""
    if not event.extra_keys or number >= len(event.extra_keys):
        return []
    keys = event.extra_keys[number] or []
    return keys[1:] if event.lora_name and keys and keys[0] == event.lora_name else keys


def _plain_blocks(event: BlockStored) -> int:
    """How many blocks from the first are token ids only; the cache salt of a first one is allowed.

    A salt is a bare string; images are pairs and prompt embeddings bytes.
    """
    if not event.extra_keys:
        return len(event.block_hashes)
    for number in range(len(event.block_hashes)):
        keys = _own_keys(event, number)
        first = number == 0 and event.parent_block_hash is None
        if keys and not (first and len(keys) == 1 and isinstance(keys[0], str)):
            return number
    return len(event.block_hashes)
