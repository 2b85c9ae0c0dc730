"""The answer of a worker, while it comes.

A body is handed on as it comes, either to who reads or, for streams, straight into a sink, so that
no task wakes for a chunk. What is unread is bounded. Each wait has its own deadline, which ends
with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from baton.errors import PeerFault, WorkerFailed, WorkerTimeout, WorkerUnreachable
from baton.types import WorkerRecord

if TYPE_CHECKING:
    from router.wire.link import Link

_UNREAD_BYTES = 256 * 1024
_MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""A whole answer larger than this is a fault; streams have no such bound, they are passed on."""


class Answer(msgspec.Struct, frozen=True):
    """A whole answer of a worker."""

    status: int
    content_type: str
    body: bytes


class ChunkSink:
    """Takes chunks of a body as they come over the wire. A class and not a callable, since a call
    of a method that the compiler knows costs a third."""

    def feed_chunk(self, chunk: bytes) -> bool:
        """One chunk, framing and all; False if its content is wanted by the other sink instead.
        Must not block."""
        raise NotImplementedError


class Leg:
    """The answer of a worker, while it comes. Used by one task.

    Attributes:
        worker: who answers.
        status: HTTP status.
        content_type: ``application/json`` if the worker named none.
    """

    __slots__ = (
        "_chunk_sink", "_heard_s", "_link", "_loop", "_now_s", "_parts", "_paused", "_sink",
        "_unread", "_waiter",
        "content_type", "ended", "error", "headers", "status", "worker",
    )  # fmt: skip

    def __init__(self, link: Link, worker: WorkerRecord, loop: asyncio.AbstractEventLoop) -> None:
        self.worker = worker
        self.status = 0
        self.content_type = "application/json"
        self.headers: list[tuple[bytes, bytes]] = []
        self.ended = False
        self.error: Exception | None = None
        self._link = link
        self._loop = loop
        self._now_s: Callable[[], float] = loop.time
        self._parts: list[bytes] = []
        self._unread = 0
        self._paused = False
        self._heard_s = 0.0
        self._sink: Callable[[bytes], None] | None = None
        self._chunk_sink: ChunkSink | None = None
        self._waiter: asyncio.Future[bool] | None = None

    def header(self, name: str) -> str | None:
        """The first header of this name."""
        wanted = name.lower().encode("latin-1")
        for key, value in self.headers:
            if key == wanted:
                return value.decode("latin-1")
        return None

    async def read(self, *, timeout_s: float) -> bytes:
        """The next bytes as they came; empty at the end.

        Raises:
            WorkerUnreachable: the connection broke.
            WorkerTimeout: nothing came for ``timeout_s``.
            WorkerFailed: what came is not HTTP.
        """
        if not self._parts and not self.ended and self.error is None:
            at_s = self._loop.time() + timeout_s
            while not self._parts and not self.ended and self._sound():
                if not await self.wait(at_s):
                    raise self._late("send more", timeout_s)
        if self._parts:
            return self._take()
        if self.error is not None:
            raise self.error
        return b""

    async def whole(self, *, timeout_s: float) -> Answer:
        """All of it; raises like ``read``, for all of ``timeout_s``.

        Raises:
            WorkerFailed: it is larger than the router takes.
        """
        return await self.whole_by(self._loop.time() + timeout_s, timeout_s)

    async def whole_by(self, at_s: float, timeout_s: float) -> Answer:
        """Like ``whole``, up to ``at_s`` on the loop's clock."""
        found: list[bytes] = []
        size = 0
        while True:
            if self._parts:
                found.append(self._take())
                size += len(found[-1])
                if size > _MAX_ANSWER_BYTES:
                    raise WorkerFailed(
                        f"worker {self.worker.id} sent more than {_MAX_ANSWER_BYTES} bytes"
                    )
            if self.ended:
                break
            if self.error is not None:
                raise self.error
            if not await self.wait(at_s):
                raise self._late("answer", timeout_s)
        body = found[0] if len(found) == 1 else b"".join(found)
        return Answer(self.status, self.content_type, body)

    async def pump(
        self,
        sink: Callable[[bytes], None],
        *,
        idle_s: float,
        ends_s: float,
        chunk_sink: ChunkSink | None = None,
    ) -> None:
        """Calls ``sink`` with the bytes of the body, from where they arrive, up to their end.

        What ``sink`` raises ends this and is raised here. While reading is paused the worker's
        silence does not count.

        Args:
            sink: takes bytes; must not block.
            idle_s: the longest silence.
            ends_s: when it has to be over, on the loop's clock.
            chunk_sink: asked first where a segment is one chunk of HTTP, with that chunk as it
                came.

        Raises:
            WorkerUnreachable: the connection broke.
            WorkerTimeout: silence, or ``ends_s`` has come.
            WorkerFailed: what came is not HTTP.
        """
        if self._parts:
            sink(self._take())
        if self.error is not None:
            raise self.error
        if self.ended:
            return
        loop = self._loop
        self._sink, self._chunk_sink = sink, chunk_sink
        self._heard_s = loop.time()
        waiter = self._waiter = loop.create_future()
        watch = _Watch(self, waiter, idle_s, ends_s)
        try:
            await waiter
        finally:
            watch.cancel()
            self._sink = self._chunk_sink = self._waiter = None
        self._sound(or_raise=True)

    def pause(self) -> None:
        """Stops reading from the worker, which soon can send no more."""
        self._paused = True
        self._pause(True)

    def resume(self) -> None:
        """Reads again."""
        self._paused = False
        self._heard_s = self._loop.time()
        if self._unread <= _UNREAD_BYTES:
            self._pause(False)

    def silent_s(self, now_s: float) -> float:
        """How long the worker has said nothing although it was listened to."""
        return 0.0 if self._paused else now_s - self._heard_s

    async def wait(self, at_s: float) -> bool:
        """Until something came; False at ``at_s`` on the loop's clock, if nothing did."""
        waiter = self._waiter = self._loop.create_future()
        handle = self._loop.call_at(at_s, _settle, waiter, False)
        try:
            came: bool = await waiter
            return came
        finally:
            handle.cancel()
            self._waiter = None

    # The link's side.

    def feed(self, part: bytes) -> None:
        """A part of the body; ``deliver`` follows."""
        self._parts.append(part)
        self._unread += len(part)

    @property
    def takes_chunks(self) -> bool:
        """Whether ``pass_chunk`` may be tried."""
        return self._chunk_sink is not None

    def pass_chunk(self, chunk: bytes) -> bool:
        """One chunk with its framing; False if it is wanted by ``feed``."""
        sink = self._chunk_sink
        if sink is None:
            return False
        try:
            if not sink.feed_chunk(chunk):
                return False
        except Exception as error:
            self.fail(error)
        self._heard_s = self._now_s()
        return True

    def deliver(self) -> None:
        """All that one segment brought is here."""
        sink = self._sink
        if sink is not None:
            self._heard_s = self._loop.time()
            if self._parts:
                try:
                    sink(self._take())
                except Exception as error:
                    self.fail(error)
                    return
            if self.ended and self._waiter is not None:
                _settle(self._waiter, True)
            return
        if self._unread > _UNREAD_BYTES:
            self._pause(True)
        if self.status and self._waiter is not None:
            _settle(self._waiter, True)

    def fail(self, error: Exception) -> None:
        """No more will come. What came before can still be read."""
        if self.error is None and not self.ended:
            self.error = error
        self._sink = self._chunk_sink = None
        if self._waiter is not None:
            _settle(self._waiter, True)

    def lost(self, why: str) -> None:
        """The connection broke."""
        self.fail(WorkerUnreachable(f"worker {self.worker.id} cannot be reached: {why}"))

    def _pause(self, paused: bool) -> None:
        # Once this is over, the connection is another's.
        if self._link.leg is self:
            self._link.pause(paused)

    def _sound(self, *, or_raise: bool = False) -> bool:
        """Whether nothing has failed: asked anew, since type checkers know nothing of waits."""
        if or_raise and self.error is not None:
            raise self.error
        return self.error is None

    def _take(self) -> bytes:
        parts = self._parts
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        if self._unread > _UNREAD_BYTES and not self._paused:
            self._pause(False)
        self._unread = 0
        return data

    def _late(self, what: str, timeout_s: float) -> PeerFault:
        return WorkerTimeout(f"worker {self.worker.id} did not {what} within {timeout_s:g} s")


class _Watch:
    """The two deadlines of a pump in one timer, set anew only when it fires."""

    __slots__ = ("_ends_s", "_handle", "_idle_s", "_leg", "_loop", "_waiter")

    def __init__(
        self, leg: Leg, waiter: asyncio.Future[bool], idle_s: float, ends_s: float
    ) -> None:
        self._leg = leg
        self._waiter = waiter
        self._idle_s = idle_s
        self._ends_s = ends_s
        self._loop = waiter.get_loop()
        self._handle: asyncio.TimerHandle | None = None
        self._look()

    def _look(self) -> None:
        leg, now_s = self._leg, self._loop.time()
        left_s = self._idle_s - leg.silent_s(now_s)
        if self._waiter.done():
            return
        if now_s >= self._ends_s:
            leg.fail(WorkerTimeout(f"worker {leg.worker.id} did not end its answer in time"))
        elif left_s <= 0:
            leg.fail(
                WorkerTimeout(f"worker {leg.worker.id} did not send more within {self._idle_s:g} s")
            )
        else:
            # A hair late rather than early: the loop's clock may be coarse.
            at_s = min(now_s + left_s, self._ends_s) + 0.001
            self._handle = self._loop.call_at(at_s, self._look)

    def cancel(self) -> None:
        if self._handle is not None:
            self._handle.cancel()


def _settle(waiter: asyncio.Future[bool], result: bool) -> None:
    if not waiter.done():
        waiter.set_result(result)
