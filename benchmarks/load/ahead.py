"""Builds requests before they are due, so that making text is never taken for lag.

As much as fits the budget is built before second zero; the rest in a thread, in the order in which
it is due, as space becomes free. What is needed and not there yet is waited for, and that is lag.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

BUDGET_BYTES = 256 * 1024 * 1024
_FIRST_LOOK_S = 0.02


class Ahead:
    """Bodies of a row of requests, in order.

    Args:
        builders: each makes one body; called once, in order, in a thread.
        budget_bytes: of bodies that are built and not yet taken; at least one is always built.
    """

    def __init__(
        self, builders: Sequence[Callable[[], bytes]], *, budget_bytes: int = BUDGET_BYTES
    ) -> None:
        self._builders = builders
        self._budget = budget_bytes
        self._held = 0
        self._ready: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._failure: BaseException | None = None
        self._built = 0
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news: asyncio.Event | None = None

    async def fill(self) -> None:
        """Starts to build; returns when all is built, or as much as the budget allows.

        Raises:
            Exception: what a builder raised.
        """
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._thread = threading.Thread(target=self._work, name="build-ahead", daemon=True)
        self._thread.start()
        while not self._filled():
            await self._wait()
        self._raise()

    async def take(self) -> bytes:
        """The next body.

        Raises:
            Exception: what its builder raised.
            IndexError: all were taken.
        """
        while not self._ready:
            self._raise()
            if self._built >= len(self._builders):
                raise IndexError("all bodies were taken")
            await self._wait()
        with self._changed:
            body = self._ready.popleft()
            self._held -= len(body)
            self._changed.notify()
        return body

    def close(self) -> None:
        """Ends the thread, after the body that it is at."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _filled(self) -> bool:
        with self._changed:
            return (
                self._failure is not None
                or self._built >= len(self._builders)
                or self._held >= self._budget
            )

    def _raise(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def _wait(self) -> None:
        assert self._news is not None
        # The thread may have spoken between the look and the wait: never for longer than this.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_LOOK_S):
                await self._news.wait()
        self._news.clear()

    def _work(self) -> None:
        try:
            for build in self._builders:
                with self._changed:
                    while self._held >= self._budget and not self._closed:
                        self._changed.wait()
                    if self._closed:
                        return
                body = build()
                with self._changed:
                    self._ready.append(body)
                    self._held += len(body)
                    self._built += 1
                    full = self._held >= self._budget
                if len(self._ready) == 1 or full:
                    self._tell()
        except BaseException as error:
            self._failure = error
        self._tell()

    def _tell(self) -> None:
        assert self._loop is not None
        assert self._news is not None
        # A loop that is closed has nobody waiting.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._news.set)


class OnDemand:
    """Builds single texts in a thread, for requests whose turn is not known beforehand."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="build")

    def start(self, build: Callable[[], T]) -> asyncio.Future[T]:
        """The text, soon."""
        return asyncio.get_running_loop().run_in_executor(self._pool, build)

    def close(self) -> None:
        """Drops what was not begun."""
        self._pool.shutdown(wait=True, cancel_futures=True)
