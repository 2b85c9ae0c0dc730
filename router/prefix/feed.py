"""Listens to the KV events of all workers that publish them, and keeps the index true to them.

One task and one subscriber socket per worker. What the index holds of a worker is what its engine
said, without a hole: batches are numbered, and when one is missing the engine is asked for it
again (it keeps the last thousand); if it cannot say, the worker's part of the index is emptied and
built anew from what comes. A router that starts late asks for everything that is kept. A worker
whose engine is another one, or that left the registry, is emptied at once.

Nothing that a worker sends or fails to send ends the feed, and nothing here delays a request: at
worst the router prefers a worker for blocks that it no longer has. It refuses to speak anything
but ``tcp`` and ``ipc``, since addresses come out of records.

It needs pyzmq, which nothing else in the router does: import this module only where it is used.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import zmq
import zmq.asyncio

from baton.kv_events import REPLAY_BATCHES, TOPIC, replay_url
from baton.types import WorkerId, WorkerRecord
from router.prefix.events import (
    Arrival,
    BatchSequence,
    EventBatch,
    ExactIndex,
    WorkerBlocks,
    decode_batch,
)

MAX_WORKERS: Final = 1024
"""More publish into the void: each takes a socket, and a second one while it replays."""

_QUEUE_BATCHES: Final = 1000
"""Per worker; what comes on top is dropped by ZeroMQ, seen as a gap, and asked for again."""
_MAX_BATCH_BYTES: Final = 16 * 1024 * 1024
"""A prompt of a million tokens is about 5 MiB in one batch."""
_RETRY_S: Final = 1.0
_BURST: Final = 16
"""Batches taken at a stretch before other tasks have their turn."""
_END_OF_REPLAY: Final = (-1).to_bytes(8, "big", signed=True)

log = logging.getLogger("baton.router.prefix")


@dataclass(slots=True)
class FeedStatus:
    """How the feed of one worker goes; counts since the router follows this engine.

    Attributes:
        batches: applied.
        blocks: known now.
        gaps: batches were missing and asked for again.
        losses: and could not be had, so that the worker's knowledge was dropped.
        unreadable: messages that were no batch of events.
        errors: the socket failed and was opened again.
    """

    batches: int = 0
    blocks: int = 0
    gaps: int = 0
    losses: int = 0
    unreadable: int = 0
    errors: int = 0


@dataclass(slots=True)
class _Followed:
    """One engine that is listened to."""

    identity: tuple[object, ...]
    url: str
    blocks: WorkerBlocks
    sequence: BatchSequence = field(default_factory=BatchSequence)
    status: FeedStatus = field(default_factory=FeedStatus)
    task: asyncio.Task[None] | None = None


class KvEventFeed:
    """All workers' KV events, into one index.

    Args:
        index: written by this feed only, for the workers that it follows.
        replay_wait_s: how long an engine may take for the next replayed batch, in seconds. vLLM
            looks for questions ten times a second when it is idle.
    """

    def __init__(self, index: ExactIndex, *, replay_wait_s: float = 2.0) -> None:
        self._index = index
        self._replay_wait_s = replay_wait_s
        self._followed: dict[WorkerId, _Followed] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._context: zmq.asyncio.Context | None = None
        self._closed = False

    def follow(self, records: Iterable[WorkerRecord]) -> None:
        """Listens to exactly these workers' engines from now on; to be called after each look at
        the registry, inside the event loop. Cheap when nothing changed."""
        if self._closed:
            return
        wanted = {record.id: record for record in records if record.kv_events_url}
        for worker_id, followed in [*self._followed.items()]:
            record = wanted.get(worker_id)
            if record is None or _identity(record) != followed.identity:
                self._leave(worker_id)
        for worker_id, record in wanted.items():
            if worker_id not in self._followed and len(self._followed) < MAX_WORKERS:
                self._join(record)

    def follows(self, worker_id: WorkerId) -> bool:
        """Whether the index is written from this worker's events."""
        return worker_id in self._followed

    def status(self) -> Mapping[WorkerId, FeedStatus]:
        """How it goes, for each worker that is followed."""
        for followed in self._followed.values():
            followed.status.blocks = len(followed.blocks)
        return {worker_id: followed.status for worker_id, followed in self._followed.items()}

    async def close(self) -> None:
        """Stops listening. Leaves no task and no socket, even when cancelled."""
        self._closed = True
        for worker_id in [*self._followed]:
            self._leave(worker_id)
        try:
            await asyncio.gather(*self._ending, return_exceptions=True)
        finally:
            if self._context is not None:
                self._context.destroy(linger=0)
                self._context = None

    def _join(self, record: WorkerRecord) -> None:
        url = record.kv_events_url
        try:
            replay_url(url)
        except ValueError as error:
            log.warning("the KV events of worker %s are not followed: %s", record.id, error)
            # Followed without a task: said once, not with every heartbeat.
            url = ""
        blocks = WorkerBlocks(record.id, record.model, record.geometry.block_size, self._index)
        followed = _Followed(_identity(record), url, blocks)
        self._followed[record.id] = followed
        if url:
            followed.task = asyncio.create_task(
                self._keep_listening(record.id, followed), name=f"kv-events-{record.id}"
            )

    def _leave(self, worker_id: WorkerId) -> None:
        followed = self._followed.pop(worker_id)
        if followed.task is not None:
            self._ending.add(followed.task)
            followed.task.add_done_callback(self._ending.discard)
            followed.task.cancel()
        # The task runs no more line of its own than its cleanup, so nothing is written after this.
        followed.blocks.clear()

    async def _keep_listening(self, worker_id: WorkerId, followed: _Followed) -> None:
        while True:
            try:
                await self._listen(followed)
            except Exception:
                # A router without this knowledge still routes; one without this task never knows.
                followed.status.errors += 1
                log.exception("the KV events of worker %s; trying again", worker_id)
            followed.blocks.clear()
            followed.sequence = BatchSequence()
            await asyncio.sleep(_RETRY_S)

    async def _listen(self, followed: _Followed) -> None:
        """Replays what is kept, then follows what is live, for ever."""
        with self._socket(zmq.SUB) as live:
            live.subscribe(TOPIC.encode())
            # Live first: what happens during the replay waits in this socket's queue.
            live.connect(followed.url)
            await self._replay(followed)
            taken = 0
            while True:
                await self._take(followed, await live.recv_multipart())
                taken += 1
                if taken % _BURST == 0:
                    await asyncio.sleep(0)

    async def _take(self, followed: _Followed, frames: list[bytes]) -> None:
        """One live message: applied if it is the next, else what is missing is fetched first."""
        number = _number(frames, parts=3)
        if number is None:
            followed.status.unreadable += 1
            return
        batch = decode_batch(frames[2])
        if batch is None:
            self._pass_unreadable(followed, number)
            return
        arrival = followed.sequence.judge(number, batch.ts)
        if arrival is Arrival.SEEN:
            return
        if arrival is Arrival.RESTARTED:
            # The registry will say so too, but has not yet.
            followed.blocks.clear()
            followed.sequence = BatchSequence()
            arrival = followed.sequence.judge(number, batch.ts)
        if arrival is Arrival.GAP:
            followed.status.gaps += 1
            await self._replay(followed)
        if number >= followed.sequence.expected:
            self._apply(followed, number, batch)

    async def _replay(self, followed: _Followed) -> None:
        """Asks for all batches from the next one on and applies them. An engine that does not
        answer, or not to the end, leaves a gap to whatever comes next."""
        with self._socket(zmq.DEALER) as asking:
            asking.connect(replay_url(followed.url))
            start = followed.sequence.expected.to_bytes(8, "big")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._replay_wait_s) as patience:
                    await asking.send_multipart([b"", start])
                    for taken in range(2 * REPLAY_BATCHES):
                        frames = (await asking.recv_multipart())[1:]
                        if len(frames) == 3 and frames[1] == _END_OF_REPLAY:
                            return
                        self._take_replayed(followed, frames)
                        if taken % _BURST == 0:
                            await asyncio.sleep(0)
                        now_s = asyncio.get_running_loop().time()
                        patience.reschedule(now_s + self._replay_wait_s)

    def _take_replayed(self, followed: _Followed, frames: list[bytes]) -> None:
        number = _number(frames, parts=3)
        if number is None:
            followed.status.unreadable += 1
        elif number >= followed.sequence.expected:
            batch = decode_batch(frames[2])
            if batch is None:
                self._pass_unreadable(followed, number)
            else:
                self._apply(followed, number, batch)

    def _apply(self, followed: _Followed, number: int, batch: EventBatch) -> None:
        if number > followed.sequence.expected:
            # Removals may be among what is missing. Nothing is lost by who knows nothing yet.
            followed.status.losses += len(followed.blocks) > 0
            followed.blocks.clear()
        followed.blocks.apply(batch.events)
        followed.sequence.took(number, batch.ts)
        followed.status.batches += 1

    def _pass_unreadable(self, followed: _Followed, number: int) -> None:
        """Asking for it again would give the same; what it said is lost."""
        followed.status.unreadable += 1
        followed.blocks.clear()
        followed.sequence.skip(number)

    @contextlib.contextmanager
    def _socket(self, kind: int) -> Iterator[zmq.asyncio.Socket]:
        if self._context is None:
            self._context = zmq.asyncio.Context()
            self._context.set(zmq.MAX_SOCKETS, 2 * MAX_WORKERS + 64)
        socket = self._context.socket(kind)
        try:
            socket.setsockopt(zmq.LINGER, 0)
            # A replay is one burst, and a dropped batch in it would be a lost one.
            queue = _QUEUE_BATCHES if kind == zmq.SUB else 2 * REPLAY_BATCHES
            socket.setsockopt(zmq.RCVHWM, queue)
            socket.setsockopt(zmq.MAXMSGSIZE, _MAX_BATCH_BYTES)
            socket.setsockopt(zmq.RECONNECT_IVL, 200)
            socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
            # A network that swallows packets must not look like an idle engine for ever.
            socket.setsockopt(zmq.HEARTBEAT_IVL, 10_000)
            socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 30_000)
            yield socket
        finally:
            socket.close(linger=0)


def _identity(record: WorkerRecord) -> tuple[object, ...]:
    """What makes a worker's blocks other blocks when it changes."""
    return (
        record.engine_id,
        record.kv_events_url,
        record.model,
        record.geometry.block_size,
    )


def _number(frames: list[bytes], *, parts: int) -> int | None:
    """The batch's number, or None for a message of another make."""
    if len(frames) != parts or len(frames[1]) != 8:
        return None
    return int.from_bytes(frames[1], "big")
