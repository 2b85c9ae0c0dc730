"""Chains: equal exactly as far as the prompts are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.prefix.chains import (
    MAX_BLOCKS,
    Chain,
    block_chain,
    chain_seed,
    request_chain,
    text_chain,
)

SEED = chain_seed("tiny")


def shared(one: Chain, other: Chain) -> int:
    """Length of the common prefix of two chains; nothing may be equal after it."""
    length = next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )
    assert not set(one[length:]) & set(other[length:])
    return length


@given(
    common=st.binary(max_size=200),
    one=st.binary(max_size=100),
    other=st.binary(max_size=100),
    piece=st.integers(1, 40),
)
def test_texts_share_what_they_share(common: bytes, one: bytes, other: bytes, piece: int) -> None:
    """Two texts' chains agree on exactly the whole pieces that the texts agree on."""
    chains = [text_chain(SEED, common + rest, piece_bytes=piece) for rest in (one, other)]
    equal = 0
    for a, b in zip(common + one, common + other, strict=False):
        if a != b:
            break
        equal += 1
    assert shared(*chains) == equal // piece
    assert [len(chain) for chain in chains] == [
        len(common + rest) // piece for rest in (one, other)
    ]


@given(ids=st.lists(st.integers(0, 2**32 - 1), max_size=100), block=st.integers(1, 16))
def test_a_request_finds_what_an_engine_stored(ids: list[int], block: int) -> None:
    """A request's chain is the engine's own of the same ids, without the block that holds the
    last token: that one an engine computes always."""
    stored = block_chain(SEED, ids, block)
    asked = request_chain(SEED, ids, block_size=block)
    assert len(stored) == len(ids) // block
    assert len(asked) == (max(len(ids), 1) - 1) // block
    assert list(asked) == stored[: len(asked)]


@given(
    ids=st.lists(st.integers(0, 300), max_size=80), block=st.integers(1, 8), cut=st.integers(0, 10)
)
def test_a_chain_goes_on_from_any_block(ids: list[int], block: int, cut: int) -> None:
    """Blocks that come later give the hashes that they would have had in one go."""
    whole = block_chain(SEED, ids, block)
    cut = min(cut, len(whole))
    previous = whole[cut - 1] if cut else SEED
    assert block_chain(previous, ids[cut * block :], block) == whole[cut:]


@pytest.mark.parametrize(
    "other",
    [
        chain_seed("other"),
        chain_seed("tiny", adapter="a"),
        chain_seed("tiny", cache_salt="a"),
        chain_seed("", adapter="tiny"),
    ],
)
def test_model_adapter_and_salt_separate(other: int) -> None:
    """Equal text under another model, adapter or salt shares nothing, and none stands for
    another."""
    assert shared(*(text_chain(s, b"x" * 512, piece_bytes=128) for s in (SEED, other))) == 0
    assert chain_seed("tiny", adapter="a") != chain_seed("tiny", cache_salt="a")


def test_equal_pieces_in_different_places_differ() -> None:
    """Each hash depends on all that came before."""
    chain = text_chain(SEED, b"x" * 1280, piece_bytes=128)
    assert len(set(chain)) == 10


def test_chains_end_somewhere() -> None:
    """No prompt makes a chain longer than the bound."""
    assert len(text_chain(SEED, bytes(MAX_BLOCKS + 9), piece_bytes=1)) == MAX_BLOCKS
    assert len(text_chain(SEED, bytes(100), piece_bytes=1, max_blocks=7)) == 7
    assert len(request_chain(SEED, [1] * (MAX_BLOCKS + 9), block_size=1)) == MAX_BLOCKS
    assert len(request_chain(SEED, [1] * 100, block_size=4, max_blocks=7)) == 7


@pytest.mark.parametrize("ids", [[-1] * 8, [2**32] * 8, [1, 2, 3, "4"] * 2])
def test_ids_that_are_none_have_no_chain(ids: list[int]) -> None:
    """Whatever a client or an engine calls a token, nothing breaks."""
    assert block_chain(SEED, ids, 4) == []
    assert request_chain(SEED, [*ids, 0], block_size=4) == ()
