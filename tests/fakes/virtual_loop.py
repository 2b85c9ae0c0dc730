"""An event loop whose time is virtual, so that waits and timeouts are tested without waiting.

When nothing is ready the loop jumps to the next timer. With no timer either, the code under test
waits for something that can never come: that raises instead of hanging the tests, and so does a
test that goes on and on (``LIMIT_S``). It serves code
that talks to tasks, events and timers only; sockets, threads and processes have no virtual time.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

LIMIT_S = 10_000.0
"""Virtual seconds; a test that gets this far waits for something that does not come."""


class _JumpingSelector(selectors.DefaultSelector):
    """Instead of waiting ``timeout`` seconds, adds them to the time."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("every task waits, and no timer is set: this would hang for ever")
        if not ready and timeout is not None and timeout > 0:
            self.now_s += timeout
            if self.now_s > LIMIT_S:
                raise RuntimeError(f"still running after {LIMIT_S:g} virtual seconds")
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Starts at second 0."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._jumping.now_s


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Runs ``main`` to its end in a loop of its own.

    Raises:
        AssertionError: tasks other than ``main`` are left over.
    """

    async def checked() -> T:
        result = await main
        # One turn for tasks that are cancelled but have not yet heard of it.
        await asyncio.sleep(0)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"tasks left over: {left}"
        return result

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(checked())
