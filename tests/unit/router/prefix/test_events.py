"""KV events: from the engine's bytes to our hashes, and what is left out."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from baton.types import WorkerId
from router.prefix.chains import Chain, chain_seed, request_chain
from router.prefix.events import (
    AllBlocksCleared,
    Arrival,
    BatchSequence,
    BlockRemoved,
    BlockStored,
    WorkerBlocks,
    decode_batch,
)
from tests.unit.router.prefix.recording_index import RecordingIndex

W = WorkerId("w-1")
BLOCK = 4


def stored(
    first: int, count: int, *, ids: int = 0, parent: int | None = None, **changes: Any
) -> BlockStored:
    """``count`` blocks named ``first`` and up, with token ids that count up from ``ids``."""
    fields: dict[str, Any] = {
        "block_hashes": [*range(first, first + count)],
        "parent_block_hash": parent,
        "token_ids": [*range(ids, ids + count * BLOCK)],
        "block_size": BLOCK,
        "medium": "GPU",
        "group_idx": 0,
        "kv_cache_spec_kind": "full_attention",
    }
    return BlockStored(**(fields | changes))


def removed(*names: int, **changes: Any) -> BlockRemoved:
    fields: dict[str, Any] = {"block_hashes": [*names], "medium": "GPU", "group_idx": 0}
    return BlockRemoved(**(fields | changes))


def chain(tokens: int, adapter: str = "", salt: str = "") -> Chain:
    """A request's chain over ids 0, 1, 2 and so on, with every whole block in it."""
    return request_chain(chain_seed("tiny", adapter, salt), range(tokens + 1), block_size=BLOCK)


class Worker:
    """One worker's blocks and an index."""

    def __init__(self, **settings: Any) -> None:
        self.index = RecordingIndex()
        self.blocks = WorkerBlocks(W, "tiny", BLOCK, self.index, **settings)

    def after(self, *events: BlockStored | BlockRemoved | AllBlocksCleared) -> Worker:
        self.blocks.apply(events)
        return self

    def matched(self, tokens: int = 16, **of: str) -> int:
        return self.index.matched(W, chain(tokens, **of))


def test_stored_blocks_match_the_request() -> None:
    """Blocks that came in one event, and those that follow them in another, are found."""
    worker = Worker().after(stored(100, 2))
    assert worker.matched() == 2
    assert worker.after(stored(102, 2, ids=8, parent=101)).matched() == 4


def test_removed_blocks_do_not() -> None:
    """What is evicted is no longer matched; the engine evicts from the end."""
    worker = Worker().after(stored(100, 4), removed(103), removed(102))
    assert worker.matched() == 2
    assert worker.after(stored(102, 2, ids=8, parent=101)).matched() == 4


def test_a_cleared_cache_is_empty() -> None:
    """All blocks go at once, and old names mean nothing afterwards."""
    worker = Worker().after(stored(100, 4), AllBlocksCleared())
    assert worker.matched() == 0
    assert worker.after(stored(104, 1, ids=16, parent=103)).matched(20) == 0
    assert len(worker.blocks) == 0


def test_two_copies_are_removed_one_by_one() -> None:
    """A block is known while a copy of it is left."""
    worker = Worker().after(stored(100, 2), stored(100, 2), removed(101))
    assert worker.matched(8) == 2
    assert worker.after(removed(101)).matched(8) == 1
    assert worker.after(stored(101, 1, ids=4, parent=100)).matched(8) == 2
    assert worker.after(removed(101), removed(101)).matched(8) == 1


def test_adapters_and_salts_have_chains_of_their_own() -> None:
    """The same ids under an adapter, a salt or both are other blocks."""
    worker = Worker().after(
        stored(100, 2, lora_name="lora@1", extra_keys=[["lora@1"], ["lora@1"]]),
        stored(200, 2, extra_keys=[["pepper"], None]),
        stored(300, 2, lora_name="lora@1", extra_keys=[["lora@1", "pepper"], ["lora@1"]]),
        stored(102, 1, ids=8, parent=101, lora_name="lora@1", extra_keys=[["lora@1"]]),
    )
    assert worker.matched() == 0
    assert worker.matched(adapter="lora@1") == 3
    assert worker.matched(salt="pepper") == 2
    assert worker.matched(adapter="lora@1", salt="pepper") == 2
    assert worker.matched(adapter="pepper") == 0


@pytest.mark.parametrize("keys", [["image-1", 0], b"digest"], ids=["an image", "prompt embeddings"])
def test_what_is_more_than_token_ids_ends_the_chain(keys: object) -> None:
    """Blocks with an image or embeddings in them are left out, and all that follow."""
    worker = Worker().after(
        stored(100, 4, extra_keys=[None, None, [keys], None]),
        stored(104, 1, ids=16, parent=103),
        stored(200, 1, extra_keys=[[keys]]),
    )
    assert worker.matched(20) == 2
    assert len(worker.blocks) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"medium": "CPU"},
        {"medium": "STORAGE"},
        {"locality": "REMOTE"},
        {"block_size": 2, "token_ids": [0, 1, 2, 3]},
        {"token_ids": [*range(12)]},
        {"kv_cache_spec_kind": "sliding_window"},
        {"kv_cache_spec_kind": "mamba"},
        {"parent_block_hash": 99},
        {"token_ids": [-1] * 8},
    ],
)
def test_what_cannot_be_reused_is_left_out(changes: dict[str, Any]) -> None:
    """Other tiers, partial and skipped blocks, other kinds of attention, unknown parents."""
    worker = Worker().after(stored(100, 2, **changes))
    assert (worker.matched(), len(worker.blocks)) == (0, 0)


@pytest.mark.parametrize("changes", [{"medium": "CPU"}, {"locality": "REMOTE"}, {"group_idx": 1}])
def test_removals_elsewhere_remove_nothing_here(changes: dict[str, Any]) -> None:
    """A block that leaves another tier or group stays where it is matched."""
    assert Worker().after(stored(100, 2), removed(101, **changes)).matched(8) == 2


def test_one_attention_group_is_followed() -> None:
    """The first that decides; the same names in another group change nothing."""
    worker = Worker().after(
        stored(100, 2, group_idx=0, kv_cache_spec_kind="sliding_window"),
        stored(100, 2, group_idx=1),
        stored(100, 2, group_idx=2),
        removed(101, group_idx=2),
        removed(101, group_idx=0),
    )
    assert worker.matched(8) == 2
    assert worker.after(removed(101, group_idx=1)).matched(8) == 1


def test_memory_is_bounded() -> None:
    """The oldest names go first, and leave the index with them."""
    worker = Worker(max_blocks=3).after(stored(100, 2), stored(200, 2, ids=50))
    assert len(worker.blocks) == 3
    assert worker.matched(8) == 0
    assert len(worker.index.has[W]) == 3
    assert worker.after(removed(100), removed(101)).index.has[W]


def engine_bytes(*events: object) -> bytes:
    return msgspec.msgpack.encode([1.5, [*events], 0])


STORED_MAP = {
    "type": "BlockStored",
    "block_hashes": [100, b"\x01" * 32],
    "parent_block_hash": None,
    "token_ids": [1, 2],
    "block_size": 1,
    "lora_id": None,
    "medium": "GPU",
    "lora_name": None,
    "session_id": "of the client",
    "a field of tomorrow": {"x": [1]},
}


def test_decoding() -> None:
    """The three events as the engine writes them; names of both kinds; unknown fields skipped."""
    batch = decode_batch(
        engine_bytes(
            STORED_MAP,
            {"type": "BlockRemoved", "block_hashes": [7], "medium": "GPU", "group_idx": 0},
            {"type": "AllBlocksCleared"},
        )
    )
    assert batch is not None
    assert batch.ts == 1.5
    first, second, third = batch.events
    assert isinstance(first, BlockStored)
    assert first.block_hashes == [100, b"\x01" * 32]
    assert (first.token_ids, first.medium, first.group_idx) == ([1, 2], "GPU", None)
    assert second == BlockRemoved([7], "GPU", 0)
    assert third == AllBlocksCleared()


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"GET / HTTP/1.1",
        msgspec.msgpack.encode({"ts": 1.0}),
        msgspec.msgpack.encode([1.0]),
        msgspec.msgpack.encode(["late", []]),
        engine_bytes({"type": "BlockMoved"}),
        engine_bytes({**STORED_MAP, "token_ids": ["1"]}),
        engine_bytes(STORED_MAP)[:-9],
        b"\x91" * 100_000,
    ],
)
def test_what_is_no_batch(payload: bytes) -> None:
    """None, whatever is wrong with it."""
    assert decode_batch(payload) is None


def test_numbers() -> None:
    """In order, again, missing, and from the beginning by a new engine."""
    sequence = BatchSequence()
    assert sequence.judge(0, ts=10.0) is Arrival.NEXT
    sequence.took(0, ts=10.0)
    sequence.took(1, ts=11.0)
    assert sequence.judge(2, ts=12.0) is Arrival.NEXT
    assert sequence.judge(3, ts=12.0) is Arrival.GAP
    assert sequence.judge(1, ts=11.0) is Arrival.SEEN
    assert sequence.judge(0, ts=10.0) is Arrival.SEEN
    assert sequence.judge(0, ts=12.0) is Arrival.RESTARTED
    sequence.skip(2)
    assert sequence.judge(3, ts=12.0) is Arrival.NEXT
    sequence.skip(0)
    assert sequence.expected == 3
