"""An engine's side of KV events: live batches to whoever listens, old ones to whoever asks.

Speaks what vLLM 0.32's ``ZmqEventPublisher`` speaks; the end-to-end tests hold the feed against the
real one. Runs in the test's own event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from baton.kv_events import replay_url

_END = (-1).to_bytes(8, "big", signed=True)


def stored(
    first: int, token_ids: list[int], *, block: int, parent: int | None = None, **more: Any
) -> dict[str, Any]:
    """A ``BlockStored`` of whole blocks, named ``first`` and up."""
    return {
        "type": "BlockStored",
        "block_hashes": [first + i for i in range(len(token_ids) // block)],
        "parent_block_hash": parent,
        "token_ids": token_ids,
        "block_size": block,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
        "group_idx": 0,
        "kv_cache_spec_kind": "full_attention",
        **more,
    }


def removed(*names: int) -> dict[str, Any]:
    """A ``BlockRemoved``."""
    return {"type": "BlockRemoved", "block_hashes": [*names], "medium": "GPU", "group_idx": 0}


class KvPublisher:
    """A publisher bound to ``url``; use it as an async context.

    Args:
        url: address of the live batches; that of the replay follows from it.
        began_s: the engine's wall clock at its start; each batch is a second later.

    Attributes:
        kept: batches that it can repeat, by number; a test may drop some.
        replays: numbers from which batches were asked for again, in order.
        answers: whether it answers when asked.
    """

    def __init__(self, url: str, *, began_s: float = 0.0) -> None:
        self.url = url
        self.kept: deque[tuple[int, bytes]] = deque()
        self.replays: list[int] = []
        self.answers = True
        self._number = 0
        self._ts = began_s

    async def __aenter__(self) -> KvPublisher:
        self._context = zmq.asyncio.Context()
        # An XPUB is a PUB that tells who subscribes, so that tests need not guess when.
        self._live = self._context.socket(zmq.XPUB)
        self._live.bind(self.url)
        self._replay = self._context.socket(zmq.ROUTER)
        self._replay.bind(replay_url(self.url))
        self._task = asyncio.create_task(self._answer())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._context.destroy(linger=0)

    async def subscribed(self) -> bytes:
        """Waits for a subscriber; the topic it asked for."""
        async with asyncio.timeout(10):
            message: bytes = await self._live.recv()
        assert message[:1] == b"\x01"
        return message[1:]

    async def publish(self, *events: dict[str, Any], lost: bool = False) -> int:
        """The next batch; a lost one is kept for replay and reaches nobody. Its number."""
        self._ts += 1.0
        return await self.publish_raw(msgspec.msgpack.encode([self._ts, [*events], 0]), lost=lost)

    async def publish_raw(self, payload: bytes, *, lost: bool = False) -> int:
        """The same, for bytes of the test's choice."""
        number, self._number = self._number, self._number + 1
        self.kept.append((number, payload))
        if not lost:
            await self.send(b"kv", number.to_bytes(8, "big"), payload)
        return number

    async def send(self, *frames: bytes) -> None:
        """Any live message."""
        await self._live.send_multipart(frames)

    async def _answer(self) -> None:
        while True:
            peer, _, start = await self._replay.recv_multipart()
            first = int.from_bytes(start, "big")
            self.replays.append(first)
            if not self.answers:
                continue
            for number, payload in [*self.kept]:
                if number >= first:
                    await self._replay.send_multipart(
                        [peer, b"", b"kv", number.to_bytes(8, "big"), payload]
                    )
            await self._replay.send_multipart([peer, b"", b"", _END, b""])
