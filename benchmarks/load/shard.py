"""Runs one process's part of a plan in one event loop.

Open loop: each request has an absolute time, and is sent then whatever became of the others: a
late one delays none after it. Closed loop: a lane sends when its answer is there. Sessions: a turn
waits for the one before and carries the real answers. When sending time is over nothing new is
sent and what is in flight is awaited, for as long as a request may take.

It knows no HTTP and no files: what it sends with and where records go is given to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import defaultdict
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from benchmarks.load.ahead import Ahead, OnDemand
from benchmarks.load.bodies import History, Writer, build_body
from benchmarks.load.endpoint import ResolvedTarget
from benchmarks.load.health import CpuMeter, Lags, LoopWatch, Quiet, health_of
from benchmarks.plan import Lane, Piece, Plan, PlannedRequest
from benchmarks.records import ClientHealth, RequestRecord

LATE_S = 1.0
"""A request that is due before the end is still sent up to this late after it."""
_EARLY_S = 1e-6
_LEAST_SLEEP_S = 0.001
_FIRST_PAUSE_S = 0.1
_MOST_PAUSE_S = 2.0
_MAX_HISTORY_TURNS = 1000


class Sender(Protocol):
    """What sends: ``Client``, or a fake."""

    async def send(self, body: bytes, record: RequestRecord, *, keep_text: bool) -> str:
        """Fills in the record, returns the text; raises ``CancelledError`` only."""
        ...


@dataclass(slots=True)
class Counts:
    """How far a shard is."""

    done: int = 0
    in_flight: int = 0
    errors: int = 0


class Shard:
    """One part of a plan.

    Args:
        plan: the part.
        target: where it goes.
        writer: makes prompts.
        sink: gets each record when its request has ended; must not block.
        now: seconds since second zero; negative before it.
        process: number of this process.
        on_tick: called every 10 ms or so with the time; must not block.
        quiet: keeps garbage collection away; None leaves it alone.
    """

    def __init__(
        self,
        plan: Plan,
        target: ResolvedTarget,
        writer: Writer,
        sink: Callable[[RequestRecord], None],
        *,
        now: Callable[[], float],
        process: int = 0,
        on_tick: Callable[[float], None] = lambda _: None,
        quiet: Quiet | None = None,
    ) -> None:
        self._plan = plan
        self._target = target
        self._writer = _Locked(writer)
        self._sink = sink
        self._now = now
        self._process = process
        self._on_tick = on_tick
        self._quiet = quiet
        self._timed = sorted(
            (r for r in plan.requests if r.after is None),
            key=lambda r: (r.at_s if r.at_s is not None else 0.0, r.index),
        )
        self._followers: dict[int, list[PlannedRequest]] = defaultdict(list)
        for request in plan.requests:
            if request.after is not None:
                self._followers[request.after].append(request)
        self._ahead = Ahead([self._body_of(request) for request in self._timed])
        self._demand = OnDemand()
        self._first_of_lane: list[tuple[PlannedRequest, str]] = []
        self._lags = Lags()
        self._tasks: set[asyncio.Task[None]] = set()
        self._group: asyncio.TaskGroup | None = None
        self.counts = Counts()

    @property
    def planned(self) -> int | None:
        """Requests of this part; None if a lane has no end."""
        total = len(self._plan.requests)
        for lane in self._plan.lanes:
            if lane.requests is None:
                return None
            total += lane.requests
        return total

    async def prepare(self) -> None:
        """Builds what can be built before second zero."""
        await self._ahead.fill()
        for lane in self._plan.lanes:
            if lane.requests == 0:
                continue
            request = lane.draw(0)
            prompt = await self._text(request)
            self._first_of_lane.append((request, prompt))
        if self._quiet is not None:
            self._quiet.settle()

    async def run(self, sender: Sender, stop: asyncio.Event) -> ClientHealth:
        """From second zero, which may lie ahead, until the last request has ended.

        When ``stop`` is set, or the caller is cancelled, what is in flight ends as ``cancelled``.
        """
        with contextlib.ExitStack() as held:
            held.callback(self.close)
            if self._quiet is not None:
                held.enter_context(self._quiet.held())
            await self._sleep_until(0.0, stop)
            watch = LoopWatch(self._ticked, self._now)
            watching = asyncio.create_task(watch.run(), name="loop-watch")
            stopping = asyncio.create_task(self._stop_on(stop), name="stop-watch")
            meter = CpuMeter()
            try:
                await self._send_all(sender, stop)
                share = meter.share()
            finally:
                for task in (watching, stopping):
                    task.cancel()
                await asyncio.gather(watching, stopping, return_exceptions=True)
            return health_of(self._lags.ordered(), watch.ordered(), share)

    def close(self) -> None:
        """Ends the threads; part of ``run``, needed where it is not reached."""
        self._ahead.close()
        self._demand.close()

    async def _send_all(self, sender: Sender, stop: asyncio.Event) -> None:
        if stop.is_set():
            return
        async with asyncio.TaskGroup() as self._group:
            self._spawn(self._pace(sender))
            sent = zip(
                (lane for lane in self._plan.lanes if lane.requests != 0),
                self._first_of_lane,
                strict=True,
            )
            for lane, (request, prompt) in sent:
                self._spawn(self._run_lane(sender, lane, request, prompt))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        assert self._group is not None
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _stop_on(self, stop: asyncio.Event) -> None:
        await stop.wait()
        # More than once: a task may have begun another one before it heard of it.
        while True:
            for task in list(self._tasks):
                task.cancel()
            await asyncio.sleep(0.01)

    async def _until(self, due_s: float) -> None:
        # A timer may ring a moment early; a request may not leave early. Event loops count in
        # milliseconds: less than one would be no sleep at all but a spin, on cores that the
        # servers may need.
        wait_s = due_s - self._now()
        while wait_s > _EARLY_S:
            await asyncio.sleep(max(wait_s, _LEAST_SLEEP_S))
            wait_s = due_s - self._now()

    async def _sleep_until(self, due_s: float, stop: asyncio.Event) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, due_s - self._now())):
                await stop.wait()

    def _ticked(self, now: float) -> None:
        if self._quiet is not None:
            self._quiet.tick(now)
        self._on_tick(now)

    # Open loop -------------------------------------------------------------------------------

    async def _pace(self, sender: Sender) -> None:
        for request in self._timed:
            due = request.at_s or 0.0
            await self._until(due)
            if self._now() > self._plan.duration_s + LATE_S:
                return
            body = await self._ahead.take()
            self._spawn(self._turn(sender, request, due, body, None, (), 0))

    async def _turn(
        self,
        sender: Sender,
        request: PlannedRequest,
        scheduled_s: float,
        body: bytes,
        prompt: str | None,
        history: History,
        turn: int,
    ) -> None:
        """One request and then, in tasks of their own, those that follow it. ``prompt`` is the
        new text where it is known."""
        followers = self._followers.get(request.index, ())
        record = self._record(request, scheduled_s, turn=turn)
        texts = [self._text(follower) for follower in followers]
        answer = await self._send(sender, body, record, keep_text=bool(followers))
        if not followers:
            return
        if prompt is None:
            prompt = await self._text(request)
        grown = _grown(history, prompt, answer, record)
        assert record.end_s is not None
        for follower, text in zip(followers, texts, strict=True):
            due = record.end_s + follower.think_s
            if due < self._plan.duration_s:
                self._spawn(self._follow(sender, follower, due, text, grown, turn + 1))

    async def _follow(
        self,
        sender: Sender,
        request: PlannedRequest,
        due: float,
        text: asyncio.Future[str],
        history: History,
        turn: int,
    ) -> None:
        prompt = await text
        body = build_body(self._target, request, prompt, self._carried(request, history))
        await self._until(due)
        await self._turn(sender, request, due, body, prompt, history, turn)

    # Closed loop -----------------------------------------------------------------------------

    async def _run_lane(
        self, sender: Sender, lane: Lane, request: PlannedRequest, prompt: str
    ) -> None:
        count, turn, failures, ended_s = 0, 0, 0, 0.0
        history: History = ()
        while True:
            due = ended_s + max(request.think_s, _pause_s(failures))
            if due >= self._plan.duration_s:
                return
            body = build_body(self._target, request, prompt, self._carried(request, history))
            await self._until(due)
            count += 1
            last = lane.requests is not None and count >= lane.requests
            following = None if last else lane.draw(count)
            text = None
            if following is not None:
                text = self._text(following)
            goes_on = following is not None and following.after is not None
            record = self._record(request, due, turn=turn)
            record.lane = lane.name
            answer = await self._send(sender, body, record, keep_text=goes_on)
            assert record.end_s is not None
            ended_s = record.end_s
            failures = failures + 1 if record.error is not None else 0
            if following is None or text is None:
                return
            history = _grown(history, prompt, answer, record) if goes_on else ()
            turn = turn + 1 if goes_on else 0
            request, prompt = following, await text

    # Both ------------------------------------------------------------------------------------

    async def _send(
        self, sender: Sender, body: bytes, record: RequestRecord, *, keep_text: bool
    ) -> str:
        self.counts.in_flight += 1
        try:
            return await sender.send(body, record, keep_text=keep_text)
        finally:
            self.counts.in_flight -= 1
            self.counts.done += 1
            if record.end_s is None:
                record.end_s = self._now()
            if record.error is not None:
                self.counts.errors += 1
            self._lags.add(record)
            self._sink(record)

    def _record(self, request: PlannedRequest, scheduled_s: float, *, turn: int) -> RequestRecord:
        return RequestRecord(
            index=request.index,
            class_name=request.class_name,
            scheduled_s=scheduled_s,
            session=request.session,
            turn=turn,
            tenant=request.tenant,
            priority=request.priority,
            model=request.model or self._target.model,
            process=self._process,
            planned_prompt_tokens=request.prompt_tokens,
            planned_output_tokens=request.output_tokens,
        )

    def _text(self, request: PlannedRequest) -> asyncio.Future[str]:
        return self._demand.start(partial(self._writer.write, request.pieces))

    def _body_of(self, request: PlannedRequest) -> Callable[[], bytes]:
        return lambda: build_body(self._target, request, self._writer.write(request.pieces))

    @staticmethod
    def _carried(request: PlannedRequest, history: History) -> History:
        return history if request.session is not None else ()


class _Locked:
    """A writer for two threads: it keeps a cache, and has no lock of its own."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._lock = threading.Lock()

    def write(self, pieces: Sequence[Piece]) -> str:
        with self._lock:
            return self._writer.write(pieces)


def _grown(history: History, prompt: str, answer: str, record: RequestRecord) -> History:
    """The conversation after a turn. A turn that failed is left out: the person asks the next
    question all the same, and the server sees as many requests as planned."""
    if record.error is not None:
        return history
    return (*history, (prompt, answer))[-_MAX_HISTORY_TURNS:]


def _pause_s(failures: int) -> float:
    """A lane whose requests fail at once must not become a flood."""
    return min(_MOST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** (failures - 1)) if failures else 0.0
