"""What requests see of prefix knowledge: a chain for a prompt, who has it, and who was sent it.

One object for the three ways of a profile's ``routing.prefix``: off, approximate (from what was
sent) and exact (from engines' KV events). A worker that publishes no events although the profile
says exact, one of an older version say, is known approximately: from the same exact chains, by what
was sent to it. It refuses to tokenize and to choose workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

from baton.types import WorkerId, WorkerRecord
from profiles import PrefixKnowledge
from router.policy.prefix import PrefixIndex, PrefixMatch
from router.prefix.chains import (
    MAX_BLOCKS,
    TOKEN_BYTES,
    Chain,
    chain_seed,
    request_chain,
    text_chain,
)

PIECE_BYTES: Final = 512
"""Of approximate chains: about 128 tokens. A quarter of the cost of a KV block's 128 bytes, in
hashing and in the index alike, and a prompt's cached part is known to within 128 tokens."""


class Request(Protocol):
    """What is looked at of a request."""

    @property
    def body(self) -> Mapping[str, Any]:
        """The body as it was parsed."""
        ...


class Feed(Protocol):
    """Where exact knowledge comes from; ``router.prefix.feed.KvEventFeed`` is one."""

    def follow(self, records: Iterable[WorkerRecord]) -> None:
        """Listens to exactly these workers' engines from now on."""
        ...

    def follows(self, worker_id: WorkerId) -> bool:
        """Whether the index is written from this worker's events."""
        ...

    async def close(self) -> None:
        """Stops listening."""
        ...


class PrefixRouting:
    """Prefix knowledge of one router process.

    Args:
        index: who has what.
        knowledge: the profile's ``routing.prefix``.
        prompt_bytes: canonical bytes of a request's prompt, which begin alike if and only if the
            prompts do; used in approximate mode only.
        block_size: tokens per KV block of the profile's engines.
        feed: engines' events, into the same index; needed in exact mode only.
        piece_bytes: size of a piece in approximate mode.
    """

    def __init__(
        self,
        index: PrefixIndex,
        knowledge: PrefixKnowledge,
        *,
        prompt_bytes: Callable[[Any], bytes],
        block_size: int,
        feed: Feed | None = None,
        piece_bytes: int = PIECE_BYTES,
    ) -> None:
        self.knowledge = knowledge
        self._index = index
        self._prompt_bytes = prompt_bytes
        self.block_size = block_size
        self._feed = feed if knowledge is PrefixKnowledge.EXACT else None
        self._piece_bytes = piece_bytes

    @property
    def needs_token_ids(self) -> bool:
        """Whether ``chain_for`` makes something of a prompt only with its token ids."""
        return self.knowledge is PrefixKnowledge.EXACT

    def chain_for(
        self,
        request: Request,
        *,
        model: str,
        adapter: str = "",
        token_ids: Sequence[int] | None = None,
    ) -> Chain:
        """The prompt's chain; empty when nothing is to be known of it.

        Args:
            request: its ``cache_salt`` keeps it apart from all others.
            model: the base model's served name, as workers' records have it.
            adapter: the LoRA adapter's name as engines know it, empty for none.
            token_ids: the whole prompt's, as the engine will see them; needed in exact mode, where
                a prompt without them (images, several prompts) has no chain.
        """
        if self.knowledge is PrefixKnowledge.OFF:
            return ()
        salt = request.body.get("cache_salt")
        seed = chain_seed(model, adapter, salt if isinstance(salt, str) else "")
        if self.knowledge is PrefixKnowledge.APPROXIMATE:
            return text_chain(seed, self._prompt_bytes(request), piece_bytes=self._piece_bytes)
        if token_ids is None:
            return ()
        return request_chain(seed, token_ids, block_size=self.block_size)

    def match(self, chain: Chain, prompt_tokens: int | None = None) -> PrefixMatch:
        """Who has how many leading blocks of the chain.

        Args:
            chain: from ``chain_for``.
            prompt_tokens: length of the whole prompt, at least, where it is known. In approximate
                mode it tells how many tokens a piece has, rounded down: a cached prompt must not
                look longer than it is.
        """
        return self._index.match(chain, self._block_tokens(len(chain), prompt_tokens))

    def sent(self, worker_id: WorkerId, chain: Chain) -> None:
        """A request with this prompt was dispatched to the worker, which will cache it. Of workers
        whose events are followed it says nothing new."""
        if chain and not (self._feed is not None and self._feed.follows(worker_id)):
            self._index.record(worker_id, chain)

    def follow(self, records: Iterable[WorkerRecord]) -> None:
        """Listens to these workers' engines. To be called after each look at the registry, at once
        after the index's slots were updated: what is reported of a worker without a slot is lost,
        and what an engine reports after its successor got the slot would be wrong."""
        if self._feed is not None:
            self._feed.follow(records)

    async def close(self) -> None:
        """Stops listening to engines."""
        if self._feed is not None:
            await self._feed.close()

    def _block_tokens(self, pieces: int, prompt_tokens: int | None) -> int:
        if self.knowledge is PrefixKnowledge.EXACT:
            return self.block_size
        usual = self._piece_bytes // TOKEN_BYTES
        if prompt_tokens is None:
            return usual
        if pieces >= MAX_BLOCKS:
            return min(usual, prompt_tokens // pieces)
        # The rest that is no whole piece has tokens too.
        return prompt_tokens // (pieces + 1)
