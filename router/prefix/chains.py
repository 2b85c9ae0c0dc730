"""A prompt's prefix as a chain of hashes, one for each whole piece, each over all before it.

Two prompts share the first N hashes if and only if their first N pieces are equal, so "how much of
this prompt does that worker have" is a count of equal hashes, and no text is kept. There are two
kinds of pieces. Exact: blocks of token ids, the same for a request and for an engine's KV events.
Approximate: bytes of text, where the router knows what it sent but does not tokenize.

The hash is Python's own (SipHash over the piece, mixed with the hash before it). It is random per
process, so hashes must never leave the process, and it is the fastest that needs no dependency:
32 KiB of text in pieces of 128 bytes take 33 µs, in pieces of 512 bytes 14 µs; with blake2b they
take 145 µs, with crc32 and adler32 86 µs (one core, best of eight). A collision costs a wrong
preference for a worker and nothing else: engines decide for themselves what they have cached.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from typing import Final

Chain = tuple[int, ...]
"""Hashes of a prompt's pieces, first piece first. Signed, 64 bits."""

MAX_BLOCKS: Final = 4096
"""Longest chain. 131,072 tokens in blocks of 32; what comes after it counts as unknown."""

TOKEN_BYTES: Final = 4
"""Text per token, roughly, in English; and the size of a token id, so that a piece of an
approximate chain and of an exact one have the same number of bytes."""


def chain_seed(model: str, adapter: str = "", cache_salt: str = "") -> int:
    """What a chain begins with: KV is shared by requests only if all of these are equal.

    Args:
        model: the base model's served name.
        adapter: the LoRA adapter's name as the engine knows it; empty for none.
        cache_salt: the request's ``cache_salt``; empty for none.
    """
    return hash((model, adapter, cache_salt))


def text_chain(
    seed: int, prompt: bytes, *, piece_bytes: int, max_blocks: int = MAX_BLOCKS
) -> Chain:
    """The approximate chain of a prompt's canonical bytes. A rest shorter than a piece is left out.

    Args:
        seed: from ``chain_seed``.
        prompt: bytes that begin alike if and only if the prompts do.
        piece_bytes: size of a piece; a KV block's worth of text is ``TOKEN_BYTES * block_size``.
            Larger pieces cost less and know less exactly.
        max_blocks: longest chain.
    """
    return tuple(_extend(seed, prompt, piece_bytes, max_blocks))


def request_chain(
    seed: int, token_ids: Sequence[int], *, block_size: int, max_blocks: int = MAX_BLOCKS
) -> Chain:
    """The exact chain of a request: the blocks that an engine can take from its cache.

    The last token's block is never one of them, even when it is full: the engine has to compute
    at least one token to have something to sample from (vLLM, ``get_computed_blocks``).
    """
    usable = min((len(token_ids) - 1) // block_size, max_blocks) * block_size
    return tuple(block_chain(seed, token_ids[: max(usable, 0)], block_size))


def block_chain(previous: int, token_ids: Sequence[int], block_size: int) -> list[int]:
    """Hashes of all whole blocks of ``token_ids``, which follow the block hashed ``previous``.

    Args:
        previous: the hash of the block before, or the seed for a prompt's first block.
        token_ids: at least zero; ids that do not fit into 32 bits give no chain.
        block_size: tokens per block.
    """
    try:
        data = array("I", token_ids).tobytes()
    except (OverflowError, TypeError):
        return []
    return _extend(previous, data, block_size * array("I").itemsize, MAX_BLOCKS)


def _extend(previous: int, data: bytes, piece_bytes: int, max_blocks: int) -> list[int]:
    whole = min(len(data) // piece_bytes, max_blocks) * piece_bytes
    last = previous
    return [
        last := hash((last, piece))
        for (piece,) in struct.iter_unpack(f"{piece_bytes}s", memoryview(data)[:whole])
    ]
