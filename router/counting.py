"""Knowing a prompt's length: by its bytes, by the model's tokenizer here, or by asking a worker.

The tokenizer in the router is believed only after it agreed with an engine on a few probes; where
it cannot know (tools, images, templates of the client's own) a worker's ``/tokenize`` is asked.
When nobody can say, the answer is None, and the request stays on one worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from baton.clock import Clock
from baton.errors import BatonError, ModelError
from baton.types import RequestId, WorkerRecord
from router.api import Endpoint, GenerateRequest, count_question, parse_request
from router.observe import RouterMetrics
from router.policy import TokenBounds
from router.pool import WorkerPool
from router.tokens import PromptCounter
from router.wire import Upstream

_ASK_S = 2.0
"""For a worker's ``/tokenize``; longer, and a wrong path costs less than the wait."""
_THREAD_FROM_CHARS = 32_768
"""Texts from about this size are counted in a thread: the event loop would stand still for 5 ms."""

_PROBES: Sequence[tuple[Endpoint, dict[str, Any]]] = (
    (Endpoint.COMPLETIONS, {"prompt": "Prefill, decode; the baton passes."}),
    (Endpoint.COMPLETIONS, {"prompt": " \n\tdéjà vu — 日本語 🙂  x" * 3}),
    (Endpoint.CHAT, {"messages": [{"role": "user", "content": "How long is this?"}]}),
    (
        Endpoint.CHAT,
        {
            "messages": [
                {"role": "system", "content": "Be brief.\n"},
                {"role": "user", "content": " A question? "},
                {"role": "assistant", "content": "An answer."},
                {"role": "user", "content": "Überlegung \N{GRINNING FACE}"},
            ]
        },
    ),
)

log = logging.getLogger("baton.router.counting")


class _NotAgreedYet(Exception):
    """No engine has confirmed the tokenizer."""


class Counting:
    """Prompt lengths for all models that the pool serves."""

    def __init__(
        self, upstream: Upstream, pool: WorkerPool, metrics: RouterMetrics, clock: Clock
    ) -> None:
        self._upstream = upstream
        self._pool = pool
        self._metrics = metrics
        self._clock = clock
        # By model digest: the counters that agreed with an engine, and None for those that did
        # not or could not be made. Bounded by the models that are registered.
        self._counters: dict[str, PromptCounter | None] = {}
        # Those that no engine has been asked about yet: reading a tokenizer takes a while.
        self._made: dict[str, PromptCounter] = {}

    async def bounds(
        self, request: GenerateRequest, threshold: int, *, within_s: float = _ASK_S
    ) -> TokenBounds | None:
        """Bounds that decide on which side of ``threshold`` (tokens) the prompt is, or None; a
        worker is waited for ``within_s`` at most."""
        began_s = self._clock.monotonic_s()
        worker = self._teller(request.model)
        if worker is None:
            return None
        counter = self._counters.get(worker.model_digest)
        found: TokenBounds | None = None
        how = "tokenizer"
        if counter is not None:
            found = await self._by_counter(counter, request, threshold, worker)
        if found is None:
            how = "worker"
            found = await self._by_worker(request, worker, within_s)
        elif not found.exact:
            how = "bytes"
        self._metrics.counting.observe((how,), self._clock.monotonic_s() - began_s)
        return found

    def token_ids(self, request: GenerateRequest) -> Sequence[int] | None:
        """The prompt's token ids, where this router can tell them for certain."""
        worker = self._teller(request.model)
        counter = None if worker is None else self._counters.get(worker.model_digest)
        return None if counter is None else counter.token_ids(request)

    async def _by_counter(
        self,
        counter: PromptCounter,
        request: GenerateRequest,
        threshold: int,
        worker: WorkerRecord,
    ) -> TokenBounds | None:
        large = _text_size(request) > _THREAD_FROM_CHARS
        if large:
            bounds = await asyncio.to_thread(counter.classify, request, threshold)
        else:
            bounds = counter.classify(request, threshold)
        if bounds is None or bounds.exact or bounds.lower < threshold:
            return bounds
        limit = worker.limits.max_model_len - max(1, request.max_new_tokens or 1)
        if bounds.within(limit) or bounds.lower > limit:
            return bounds
        # A long prompt that may be over the limit has to be known exactly, too.
        if large:
            tokens = await asyncio.to_thread(counter.count, request)
        else:
            tokens = counter.count(request)
        return None if tokens is None else TokenBounds(tokens, tokens)

    def compare(
        self, request: GenerateRequest, ours: TokenBounds | None, engine_tokens: int
    ) -> None:
        """Holds our count against the one that prefill used; a tokenizer that is off is dropped."""
        if ours is None or (
            ours.lower <= engine_tokens and (ours.upper is None or engine_tokens <= ours.upper)
        ):
            return
        worker = self._teller(request.model)
        log.error(
            "counted %s tokens for a prompt of %s where the engine counted %d; "
            "asking workers from now on",
            ours,
            request.model,
            engine_tokens,
        )
        if worker is not None:
            self._counters[worker.model_digest] = None

    async def prepare(self) -> None:
        """Makes counters for models that are new in the pool, and forgets those that left.

        To be called now and then, outside the path of requests.
        """
        records = self._pool.records()
        digests = {r.model_digest: r for r in records if self._pool.is_usable(r)}
        registered = {record.model_digest for record in records}
        for digest in self._counters.keys() - registered:
            del self._counters[digest]
        for digest in self._made.keys() - registered:
            del self._made[digest]
        for digest, worker in digests.items():
            if digest not in self._counters:
                # A worker that does not answer now is asked again next time.
                with contextlib.suppress(_NotAgreedYet):
                    self._counters[digest] = await self._make_counter(worker)
                    self._made.pop(digest, None)

    async def _make_counter(self, worker: WorkerRecord) -> PromptCounter | None:
        folder = Path(worker.tokenizer_path)
        if not worker.tokenizer_path or not await asyncio.to_thread(folder.is_dir):
            log.info("%s: no tokenizer on this machine, workers are asked", worker.model)
            return None
        counter = self._made.get(worker.model_digest)
        if counter is None:
            try:
                counter = await asyncio.to_thread(PromptCounter.from_folder, folder)
            except ModelError as error:
                log.warning("%s: %s; workers are asked", worker.model, error.message)
                return None
            self._made[worker.model_digest] = counter
        agreed = False
        for endpoint, fields in _PROBES:
            request = parse_request(
                endpoint, msgspec.json.encode({"model": worker.model, **fields})
            )
            ours = counter.count(request)
            theirs = await self._by_worker(request, worker)
            if ours is None or theirs is None:
                # No chat template, perhaps: then the engine refuses chats as well.
                continue
            agreed = ours == theirs.lower
            if not agreed:
                log.warning(
                    "%s: our tokenizer counts %d where the engine counts %d; workers are asked",
                    worker.model,
                    ours,
                    theirs.lower,
                )
                return None
        if not agreed:
            raise _NotAgreedYet
        log.info("%s: prompts are counted here", worker.model)
        return counter

    async def _by_worker(
        self, request: GenerateRequest, worker: WorkerRecord, within_s: float = _ASK_S
    ) -> TokenBounds | None:
        question = count_question(request)
        if question is None:
            return None
        try:
            answer = await self._upstream.ask(
                worker,
                question.path,
                question.body,
                RequestId("baton-tokenize"),
                timeout_s=min(_ASK_S, within_s),
            )
            if answer.status != 200:
                return None
            count = msgspec.json.decode(answer.body)[question.field]
        except (BatonError, msgspec.DecodeError, ValueError, KeyError, TypeError):
            return None
        return TokenBounds(count, count) if isinstance(count, int) and count >= 0 else None

    def _teller(self, model: str) -> WorkerRecord | None:
        """The least busy ready worker of the model; decode first, its limits are the ones."""
        return self._pool.teller(model)


def _text_size(request: GenerateRequest) -> int:
    """Characters of the prompt, roughly; only to tell small from large."""
    prompt = request.body.get("prompt")
    if isinstance(prompt, str):
        return len(prompt)
    return sum(
        len(content)
        for message in request.body.get("messages") or ()
        if isinstance(content := message.get("content"), str)
    )
