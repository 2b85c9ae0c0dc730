"""Prefix knowledge as requests use it, on the real index."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest

from baton.types import EngineId, WorkerId, WorkerRecord
from profiles import PrefixKnowledge
from router.policy.prefix import PrefixIndex
from router.policy.slots import Slots
from router.prefix import PIECE_BYTES, PrefixRouting, chain_seed, request_chain
from router.prefix.chains import MAX_BLOCKS
from tests.fakes.worker_records import worker_record

ONE, TWO = WorkerId("w-1"), WorkerId("w-2")
BLOCK = 16


@dataclass
class Asked:
    """A request with nothing but a prompt."""

    prompt: bytes = b""
    body: dict[str, Any] = field(default_factory=dict)


class FakeFeed:
    """Follows whoever has an address."""

    def __init__(self) -> None:
        self.followed: set[WorkerId] = set()
        self.closed = False

    def follow(self, records: Iterable[WorkerRecord]) -> None:
        self.followed = {record.id for record in records if record.kv_events_url}

    def follows(self, worker_id: WorkerId) -> bool:
        return worker_id in self.followed

    async def close(self) -> None:
        self.closed = True


class Routing:
    """A router's prefix knowledge of two workers, and how deep each matches."""

    def __init__(self, knowledge: PrefixKnowledge) -> None:
        self.slots = Slots()
        self.slots.update({ONE: EngineId("a"), TWO: EngineId("b")})
        self.index = PrefixIndex(self.slots)
        self.feed = FakeFeed()
        self.prefix = PrefixRouting(
            self.index,
            knowledge,
            prompt_bytes=lambda asked: asked.prompt,
            block_size=BLOCK,
            feed=self.feed,
        )

    def depth(self, chain: tuple[int, ...], worker: WorkerId = ONE) -> int:
        slot = self.slots.get(worker)
        assert slot is not None
        return self.prefix.match(chain).depth(slot)


def test_approximate_remembers_what_was_sent() -> None:
    """The next turn of a conversation is found on the worker that had the one before."""
    it = Routing(PrefixKnowledge.APPROXIMATE)
    assert not it.prefix.needs_token_ids
    turn = b"x" * (3 * PIECE_BYTES + 7)
    chain = it.prefix.chain_for(Asked(turn), model="tiny")
    assert (len(chain), it.depth(chain)) == (3, 0)
    it.prefix.sent(ONE, chain)
    later = it.prefix.chain_for(Asked(turn + b"y" * PIECE_BYTES), model="tiny")
    assert (len(later), it.depth(later), it.depth(later, TWO)) == (4, 3, 0)


def test_model_adapter_and_salt_are_kept_apart() -> None:
    """Equal prompts under another of these share nothing; a salt of a wrong kind is none."""
    it = Routing(PrefixKnowledge.APPROXIMATE)
    prompt = b"x" * PIECE_BYTES
    chains = {
        it.prefix.chain_for(Asked(prompt), model="tiny"),
        it.prefix.chain_for(Asked(prompt), model="other"),
        it.prefix.chain_for(Asked(prompt), model="tiny", adapter="a"),
        it.prefix.chain_for(Asked(prompt, {"cache_salt": "a"}), model="tiny"),
    }
    assert len(chains) == 4
    assert it.prefix.chain_for(Asked(prompt, {"cache_salt": 7}), model="tiny") in chains


def test_exact_chains_are_of_token_ids() -> None:
    """The very chain that events give; without ids there is none, whatever the text."""
    it = Routing(PrefixKnowledge.EXACT)
    assert it.prefix.needs_token_ids
    ids = [*range(3 * BLOCK + 1)]
    asked = Asked(b"x" * 10_000, {"cache_salt": "s"})
    chain = it.prefix.chain_for(asked, model="tiny", adapter="a", token_ids=ids)
    assert chain == request_chain(chain_seed("tiny", "a", "s"), ids, block_size=BLOCK)
    assert len(chain) == 3
    assert it.prefix.chain_for(asked, model="tiny") == ()


def test_what_was_sent_counts_only_where_no_events_come_from() -> None:
    """A worker that reports its cache is believed; one that does not is remembered."""
    it = Routing(PrefixKnowledge.EXACT)
    it.prefix.follow([worker_record(ONE, kv_events_url="ipc:///run/1"), worker_record(TWO)])
    chain = it.prefix.chain_for(Asked(), model="tiny", token_ids=[*range(BLOCK + 1)])
    for worker in (ONE, TWO):
        it.prefix.sent(worker, chain)
    assert (it.depth(chain, ONE), it.depth(chain, TWO)) == (0, 1)


def test_off_knows_nothing_and_listens_to_nobody() -> None:
    """No chain, no match, no feed."""
    it = Routing(PrefixKnowledge.OFF)
    it.prefix.follow([worker_record(ONE, kv_events_url="ipc:///run/1")])
    chain = it.prefix.chain_for(Asked(b"x" * 9999), model="tiny", token_ids=[1] * 99)
    it.prefix.sent(ONE, chain)
    assert (chain, it.depth(chain), len(it.index)) == ((), 0, 0)
    assert it.feed.followed == set()


@pytest.mark.parametrize(
    ("pieces", "prompt_tokens", "expected"),
    [
        (8, None, PIECE_BYTES // 4),
        (8, 900, 100),
        (8, 8999, 999),
        (8, 3, 0),
        (MAX_BLOCKS, 10_000_000, PIECE_BYTES // 4),
        (MAX_BLOCKS, 10 * MAX_BLOCKS, 10),
    ],
)
def test_tokens_of_a_piece(pieces: int, prompt_tokens: int | None, expected: int) -> None:
    """From the prompt's length where it is known, never more than a piece can have had; the
    cached part must not look longer than it is. A chain that was cut says less."""
    it = Routing(PrefixKnowledge.APPROXIMATE)
    chain = it.prefix.chain_for(Asked(b"x" * pieces * PIECE_BYTES), model="tiny")
    assert it.prefix.match(chain, prompt_tokens).block_tokens == expected


def test_tokens_of_an_exact_block() -> None:
    """The engines' block size, whatever the prompt's length."""
    assert Routing(PrefixKnowledge.EXACT).prefix.match((1, 2), 999).block_tokens == BLOCK


async def test_closing_closes_the_feed() -> None:
    """And without a feed there is nothing to close."""
    it = Routing(PrefixKnowledge.EXACT)
    await it.prefix.close()
    assert it.feed.closed
    off = Routing(PrefixKnowledge.OFF)
    await off.prefix.close()
    assert not off.feed.closed
