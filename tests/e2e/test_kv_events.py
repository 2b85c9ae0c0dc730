"""KV events of a real engine: what the index says of it is what it has in its cache."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil
import pytest

from baton.kv_events import publisher_config, tcp_url
from baton.types import WorkerRecord
from router.prefix.chains import chain_seed, request_chain
from router.prefix.feed import KvEventFeed
from tests.e2e.stack import BLOCK, MODEL, PROFILE, Stack, free_port, open_stack, wait_until
from tests.fakes.waiting import until
from tests.fakes.worker_records import worker_record
from tests.unit.router.prefix.recording_index import RecordingIndex

pytestmark = pytest.mark.engine

NAME = "decode"


@pytest.fixture(scope="module")
def publishing(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A router and one worker with events on, and room for some 8,000 tokens of KV."""
    with open_stack(tmp_path_factory.mktemp("events"), model) as stack:
        text = PROFILE.replace("cpu_kv_cache_mib: 64", "cpu_kv_cache_mib: 32")
        stack.profile.write_text(text + "  routing: {prefix: exact}\n")
        router = stack.start_router()
        stack.start_worker(NAME, registry=router.url)
        stack.wait_ready(NAME)
        yield stack


def record(stack: Stack) -> WorkerRecord:
    """The worker's record, as the registry has it."""
    return msgspec.convert(stack.worker(NAME), WorkerRecord)


def ask(stack: Stack, ids: Sequence[int], **options: Any) -> int:
    """Sends a prompt to the engine. How many of its tokens came out of the cache."""
    metric = "vllm:prefix_cache_hits_total"
    before = stack.engine_metric(NAME, metric)
    response = httpx.post(
        stack.url(NAME) + "/v1/completions",
        headers=stack.cluster_headers,
        json={"model": MODEL, "prompt": [*ids], "max_tokens": 1, **options},
        timeout=60,
    )
    response.raise_for_status()
    return int(stack.engine_metric(NAME, metric) - before)


def prompt(seed: int, tokens: int) -> list[int]:
    """Token ids that no other seed begins with."""
    draw = random.Random(seed)
    return [draw.randrange(20, 120) for _ in range(tokens)]


class Watching:
    """A feed on the worker, and what its index says of prompts."""

    def __init__(self, worker: WorkerRecord) -> None:
        self.worker = worker
        self.index = RecordingIndex()
        self.feed = KvEventFeed(self.index)
        self.feed.follow([worker])

    def matched(self, ids: Sequence[int], salt: str = "") -> int:
        """Tokens that the index says are cached."""
        chain = request_chain(chain_seed(MODEL, "", salt), ids, block_size=BLOCK)
        return BLOCK * self.index.matched(self.worker.id, chain)

    @property
    def blocks(self) -> set[int]:
        return self.index.has.get(self.worker.id, set())

    async def until_matched(self, ids: Sequence[int], tokens: int) -> None:
        await self.until(lambda: self.matched(ids) == tokens, f"{tokens} tokens known")

    async def until(self, condition: Callable[[], object], what: str) -> None:
        await until(condition, timeout_s=30, what=what)


async def test_the_index_is_what_the_engine_has(publishing: Stack) -> None:
    """Whole blocks are known after a request, under its salt only; the engine finds as many tokens
    in its cache as the index says, also after it had to evict; and a router that comes late
    learns the same."""
    stack = publishing
    worker = record(stack)
    assert worker.kv_events_url.startswith("ipc:///")
    socket = Path(worker.kv_events_url.removeprefix("ipc://"))
    assert socket.parent.stat().st_mode & 0o077 == 0, "others may listen to prompts"
    first, salted = prompt(1, 5 * BLOCK + 3), prompt(2, 4 * BLOCK)
    it = Watching(worker)
    try:
        ask(stack, first)
        await it.until(lambda: it.matched(first) == 5 * BLOCK, "five blocks known")
        assert it.matched(first, salt="pepper") == 0
        ask(stack, salted, cache_salt="pepper")
        # The last block is full and cached, but the last token is computed always.
        await it.until(lambda: it.matched(salted, "pepper") == 3 * BLOCK, "salted blocks known")
        assert it.matched(salted) == 0
        assert ask(stack, first) == 5 * BLOCK
        assert ask(stack, salted, cache_salt="pepper") == 3 * BLOCK
        assert ask(stack, [*first[: 2 * BLOCK], *prompt(3, 2 * BLOCK)]) == 2 * BLOCK

        late = Watching(worker)
        try:
            await late.until(lambda: late.blocks == it.blocks, "a late router knows as much")
        finally:
            await late.feed.close()

        others = [prompt(seed, 1500) for seed in range(10, 18)]
        for ids in others:
            ask(stack, ids)
        await it.until(lambda: it.matched(first) == 0, "the first prompt evicted")
        await it.until_matched(others[-1], 1500 // BLOCK * BLOCK)
        # From the newest: asking for an old one may evict the next.
        for ids in reversed(others):
            known = it.matched(ids)
            assert ask(stack, ids) == known
            await it.until_matched(ids, 1500 // BLOCK * BLOCK)
        assert it.feed.status()[worker.id].losses == 0
        assert it.feed.status()[worker.id].unreadable == 0
    finally:
        await it.feed.close()


async def test_a_restarted_engine_has_nothing(publishing: Stack) -> None:
    """Killed and started again it has another id and address, and what it had is forgotten."""
    stack = publishing
    before = record(stack)
    ids = prompt(50, 3 * BLOCK + 1)
    it = Watching(before)
    try:
        ask(stack, ids)
        await it.until(lambda: it.matched(ids) == 3 * BLOCK, "known")
        stack.signal_engine(NAME, signal.SIGKILL)
        await asyncio.to_thread(
            wait_until,
            "another engine ready",
            lambda: record(stack).engine_id != before.engine_id and stack.is_ready(NAME),
            timeout_s=150,
        )
        after = record(stack)
        assert after.kv_events_url != before.kv_events_url
        it.feed.follow([after])
        assert it.matched(ids) == 0
        assert ask(stack, ids) == 0
        await it.until(lambda: it.matched(ids) == 3 * BLOCK, "known again")
    finally:
        await it.feed.close()


PUBLISH = """
import json, sys, time
from vllm.config.kv_events import KVEventsConfig
from vllm.distributed.kv_events import (
    AllBlocksCleared, BlockRemoved, BlockStored, EventPublisherFactory, KVEventBatch,
)
publisher = EventPublisherFactory.create(KVEventsConfig(**json.loads(sys.argv[1])))
def stored(hashes, parent, ids):
    return BlockStored(
        block_hashes=hashes, parent_block_hash=parent, token_ids=ids, block_size=2,
        lora_id=None, medium="GPU", lora_name=None, extra_keys=[None] * len(hashes), group_idx=0,
        kv_cache_spec_kind="full_attention",
    )
steps = {
    "store": lambda: [stored([1, 2], None, [1, 2, 3, 4]), stored([3], 2, [5, 6])],
    "remove": lambda: [BlockRemoved(block_hashes=[3], medium="GPU", group_idx=0)],
    "clear": lambda: [AllBlocksCleared()],
}
print("ready", flush=True)
for line in sys.stdin:
    publisher.publish(KVEventBatch(ts=time.time(), events=steps[line.strip()]()))
publisher.shutdown()
"""


async def test_vllms_publisher_binds_the_address_between_machines() -> None:
    """With a concrete address, vLLM listens there and nowhere else, and says what we read."""
    url = tcp_url("127.0.0.1", free_port())
    worker = worker_record("w-1", kv_events_url=url)
    worker = msgspec.structs.replace(
        worker, geometry=msgspec.structs.replace(worker.geometry, block_size=2)
    )
    chain = request_chain(chain_seed(worker.model), [1, 2, 3, 4, 5, 6, 7], block_size=2)
    engine = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PUBLISH, msgspec.json.encode(publisher_config(url)).decode()),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "VLLM_LOGGING_LEVEL": "ERROR"},
    )
    index = RecordingIndex()
    feed = KvEventFeed(index)

    async def matched(blocks: int) -> None:
        await until(lambda: index.matched(worker.id, chain) == blocks, timeout_s=30)

    assert engine.stdin is not None
    assert engine.stdout is not None
    try:
        while (line := await engine.stdout.readline()) != b"ready\n":
            assert line, "the publisher ended"
        port = int(url.rpartition(":")[2])
        listening = {
            tuple(at.laddr)
            for at in psutil.Process(engine.pid).net_connections("tcp")
            if at.status == psutil.CONN_LISTEN
        }
        assert listening == {("127.0.0.1", port), ("127.0.0.1", port + 1)}
        feed.follow([worker])
        for step, known in (("store", 3), ("remove", 2), ("clear", 0), ("store", 3)):
            engine.stdin.write(f"{step}\n".encode())
            await matched(known)
    finally:
        await feed.close()
        engine.stdin.close()
        assert await asyncio.wait_for(engine.wait(), 30) == 0
