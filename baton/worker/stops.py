"""How a worker is asked to end: to drain, to leave once it has, or to stop without waiting."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator


class Stops:
    """Three wishes, each of which brings the ones before it along.

    Attributes:
        drain: finish what is in flight, take nothing new.
        leave: end, once drained.
        now: end without waiting for the drain.
    """

    def __init__(self) -> None:
        self.drain = asyncio.Event()
        self.leave = asyncio.Event()
        self.now = asyncio.Event()

    def on_signal(self) -> None:
        """A first SIGTERM or SIGINT drains and leaves; a second one does not wait."""
        if self.leave.is_set():
            self.now.set()
        self.leave.set()
        self.drain.set()

    def at_once(self) -> None:
        """All three."""
        for event in (self.drain, self.leave, self.now):
            event.set()

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """While open, this process's SIGTERM and SIGINT come here. Afterwards they are ignored: the
        process is about to end with a status of its own, which one more signal must not replace.
        """
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGTERM, signal.SIGINT)
        for number in numbers:
            loop.add_signal_handler(number, self.on_signal)
        try:
            yield
        finally:
            with contextlib.suppress(NotImplementedError):
                for number in numbers:
                    loop.remove_signal_handler(number)
                    signal.signal(number, signal.SIG_IGN)
