"""What a fake engine computes: text that depends on the whole prompt, and KV that can be wrong.

The text is a hash of everything that the real one depends on, so a router that lets prefill and
decode disagree gets other words, not an error: as with the real engine, HTTP 200 says nothing.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

DEFAULT_WEIGHTS = "weights-1"


@dataclass(frozen=True, slots=True)
class Token:
    """A token of an answer, and its logprob."""

    text: str
    logprob: float


def generate(
    prompt: Sequence[int], count: int, *, weights: str = DEFAULT_WEIGHTS, spoiled: bool = False
) -> list[Token]:
    """The answer's tokens: ``count`` of them that depend on all arguments but ``count``."""
    seed = hashlib.sha256(f"{weights}|{spoiled}|{list(prompt)}".encode()).digest()
    return [_token(seed, index) for index in range(count)]


def words(
    prompt: Sequence[int], count: int, *, weights: str = DEFAULT_WEIGHTS, spoiled: bool = False
) -> list[str]:
    """The answer's tokens as text."""
    return [token.text for token in generate(prompt, count, weights=weights, spoiled=spoiled)]


def _token(seed: bytes, index: int) -> Token:
    digest = hashlib.sha256(seed + index.to_bytes(4, "big")).hexdigest()
    # Now and then something that is several bytes long, or that looks like a frame of its own.
    text = (" " + digest[:5], " é" + digest[:3], " 🙂", " data: [DONE]")[
        0 if digest[5] < "c" else int(digest[5], 16) - 12
    ]
    return Token(text, -round(int(digest[6:12], 16) / 0xFFFFFF * 5, 6))


class Corruption(enum.StrEnum):
    """Why a pull gave wrong KV; the numbers are those of the list of silent corruptions."""

    PROMPT_LIST = "1: parameters cover one prompt, the request has a list"
    SEVERAL_CHOICES = "2: the first child of n > 1 freed the blocks"
    LONG_PREFILL = "3: prefill made more than one token"
    USED_TWICE = "4: the parameters were used before"
    OTHER_PROMPT = "5: prefill computed another prompt"
    EXPIRED = "6: the lease was over"
    BLOCK_SIZE = "7: block sizes differ"
    WEIGHTS = "8: weights differ under the same name"
    ADAPTER = "9: another adapter, or none, at the other end"


@dataclass(slots=True)
class Offer:
    """Blocks that prefill holds for a decode engine."""

    request_id: str
    prompt: tuple[int, ...]
    model: str
    tokens_made: int
    expires_s: float
    pulled: bool = False


@dataclass(slots=True)
class KvSide:
    """What matters of an engine's KV to its peers.

    Attributes:
        engine_id: NIXL's name of the run.
        block_size: tokens per block.
        weights: stands for the weights' content.
        offers: by remote request id; those pulled or expired stay, as traps.
        late_pulls: pulls after the lease, which only prefill notices.
        prefixes: whole blocks of prompts that the prefix cache has, by a hash of all up to them.
    """

    engine_id: str
    block_size: int = 32
    weights: str = DEFAULT_WEIGHTS
    offers: dict[str, Offer] = field(default_factory=dict)
    late_pulls: int = 0
    prefixes: set[int] = field(default_factory=set)

    def cache(self, prompt: tuple[int, ...]) -> tuple[int, int]:
        """Has the cache remember a prompt. Returns the tokens it had, and those it got."""
        size = self.block_size
        ends = range(size, len(prompt) + 1, size)
        chain, last = [], 0
        for end in ends:
            chain.append(last := hash((last, prompt[end - size : end])))
        # At least one token is always computed: the answer's first comes from it.
        known = zip(ends, chain, strict=True)
        had = sum(1 for end, block in known if end < len(prompt) and block in self.prefixes)
        self.prefixes.update(chain)
        return had * size, (len(ends) - had) * size

    def held(self, now_s: float) -> list[Offer]:
        """Offers whose blocks are still pinned."""
        return [o for o in self.offers.values() if not o.pulled and now_s < o.expires_s]

    def give_back(self, request_id: str) -> None:
        """A decode engine says that nobody will pull: the blocks are free."""
        offer = self.offers.get(request_id)
        if offer is not None:
            offer.pulled = True

    def pull(
        self,
        reader: KvSide,
        request_id: str,
        prompts: Sequence[tuple[int, ...]],
        choices: int,
        model: str,
        now_s: float,
    ) -> list[Corruption]:
        """Hands an offer over to ``reader``. Returns what makes the text wrong; empty if nothing.

        With the first two of the list the first text is right and the others are not.
        """
        offer = self.offers.get(request_id)
        found = []
        if offer is None or offer.pulled:
            return [Corruption.USED_TWICE]
        offer.pulled = True
        if now_s >= offer.expires_s:
            self.late_pulls += 1
            found.append(Corruption.EXPIRED)
        if prompts[0] != offer.prompt:
            found.append(Corruption.OTHER_PROMPT)
        if offer.tokens_made > 1:
            found.append(Corruption.LONG_PREFILL)
        if reader.block_size != self.block_size:
            found.append(Corruption.BLOCK_SIZE)
        if reader.weights != self.weights:
            found.append(Corruption.WEIGHTS)
        if model != offer.model:
            found.append(Corruption.ADAPTER)
        if len(prompts) > 1:
            found.append(Corruption.PROMPT_LIST)
        if choices > 1:
            found.append(Corruption.SEVERAL_CHOICES)
        return found
