"""Giving up waits that the registry says are in vain.

An engine that pulls from a hung peer waits without end, and a whole answer shows nothing until its
last byte. So waits for a first sign of an answer are written down here, and each time the registry
was read they are held against it:

- The worker that was asked, to answer or to prefill, is gone, has another engine, or has not been
  ready for a while: nothing will come from it.
- Prefill is no longer ready, and decode, by its own figures from after that, has requests that are
  not running yet: it pulls from a hung peer (ADR 5). Nothing is aborted inside an engine: a late
  write into blocks that are free again would be silent corruption.

A wait costs a request two dictionary entries; no task, no timer.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Protocol

from baton.clock import Clock
from baton.errors import BatonError, WorkerTimeout, WorkerUnreachable
from baton.types import WorkerId, WorkerRecord, WorkerState

_BEATS_TO_JUDGE = 2
"""Heartbeats of decode, after prefill fell silent, before its figures are believed."""
_GONE_S = 2.0
"""A registry that lost its memory is whole again after one heartbeat; so long it may be wrong."""
_ANSWERS = (WorkerState.READY, WorkerState.DRAINING)


class Records(Protocol):
    """The registry as the router last read it."""

    def record(self, worker_id: WorkerId) -> WorkerRecord | None:
        """What the worker said last, or None."""
        ...


class Watches:
    """The waits of one router.

    Args:
        records: the registry.
        clock: for how long a worker has been silent.
        silent_s: how long an answering worker may say that its engine is not ready (on top of the
            three seconds after which it says so) before waits for it are given up.
        pulling_silent_s: the same of one that is to pull. Much less than a lease: one that hung
            with its leg unread must not come back later, pull what is no longer there, and answer.
    """

    def __init__(
        self, records: Records, clock: Clock, *, silent_s: float, pulling_silent_s: float
    ) -> None:
        self._records = records
        self._clock = clock
        self._silent_s = silent_s
        self._pulling_silent_s = pulling_silent_s
        self._open: dict[int, Watch] = {}

    def follow(self, *, silent_s: float, pulling_silent_s: float) -> None:
        """Other bounds from now on, for waits that are open as well."""
        self._silent_s = silent_s
        self._pulling_silent_s = pulling_silent_s

    def over(
        self,
        answering: WorkerRecord,
        prefill: WorkerRecord | None = None,
        task: asyncio.Task[None] | None = None,
    ) -> Watch:
        """A context in which the current task may be told, by a ``PeerFault``, to give up.

        Args:
            answering: who is waited for.
            prefill: whom it pulls from.
            task: the current one, where the caller knows it.
        """
        return Watch(self._open, answering, prefill, task)

    def look(self) -> None:
        """Holds every wait against the registry. To be called when it has been read."""
        if not self._open:
            return
        now_s = self._clock.monotonic_s()
        for watch in list(self._open.values()):
            fault = self._of_answering(watch, now_s) or self._of_prefill(watch)
            if fault is not None:
                watch.give_up(fault)

    def _of_answering(self, watch: Watch, now_s: float) -> BatonError | None:
        then = watch.answering
        now = self._records.record(then.id)
        if now is not None and now.engine_id != then.engine_id:
            return WorkerUnreachable(f"worker {then.id} has another engine now")
        if now is not None and now.state in _ANSWERS:
            watch.silent_since_s = None
            return None
        if watch.silent_since_s is None:
            watch.silent_since_s = now_s
        silent_s = now_s - watch.silent_since_s
        most_s = self._silent_s if watch.prefill is None else self._pulling_silent_s
        if silent_s < (_GONE_S if now is None else most_s):
            return None
        return WorkerTimeout(f"worker {then.id} fell silent before it answered")

    def _of_prefill(self, watch: Watch) -> BatonError | None:
        then = watch.prefill
        if then is None:
            return None
        now = self._records.record(then.id)
        if now is not None and now.engine_id == then.engine_id and now.state in _ANSWERS:
            watch.beats = None
            return None
        decode = self._records.record(watch.answering.id)
        if decode is None:
            return None
        beats = watch.beats = watch.beats or set()
        beats.add(decode.heartbeat_s)
        # The first is from before prefill fell silent, perhaps.
        if len(beats) <= _BEATS_TO_JUDGE:
            return None
        watch.beats = None
        if decode.load.waiting == 0:
            return None
        return WorkerTimeout(f"prefill worker {then.id} fell silent before its blocks were pulled")


class Watch:
    """One wait. Like ``asyncio.timeout``, but its end comes from ``Watches.look``.

    Raises:
        PeerFault: from the ``with`` block, when the wait was given up.
    """

    __slots__ = ("_fault", "_open", "_task", "answering", "beats", "prefill", "silent_since_s")

    def __init__(
        self,
        waits: dict[int, Watch],
        answering: WorkerRecord,
        prefill: WorkerRecord | None,
        task: asyncio.Task[None] | None,
    ) -> None:
        self._open = waits
        self._task = task
        self._fault: BatonError | None = None
        self.answering = answering
        self.prefill = prefill
        self.silent_since_s: float | None = None
        self.beats: set[float] | None = None

    def __enter__(self) -> Watch:
        if self._task is None:
            self._task = asyncio.current_task()
        self._open[id(self)] = self
        return self

    def give_up(self, fault: BatonError) -> None:
        """Ends the wait; once."""
        if self._fault is None and self._task is not None:
            self._fault = fault
            self._task.cancel()

    def over(self) -> None:
        """Nothing is waited for any more, though the block goes on."""
        self._open.pop(id(self), None)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.pop(id(self), None)
        task, fault = self._task, self._fault
        self._task = None
        if fault is None or task is None:
            return
        # A cancellation of somebody else's (the client left) at the same moment wins.
        if task.uncancel() == 0 and kind is asyncio.CancelledError:
            raise fault from error
