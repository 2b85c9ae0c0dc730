"""Being told to stop: once is a request, twice means now."""

from __future__ import annotations

import asyncio
import signal
from typing import Self


class StopSignals:
    """Takes SIGINT, SIGTERM and SIGHUP while open; to be used inside a running loop.

    Attributes:
        first: set at the first one.
        second: set at the second one.
    """

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        self._taken: list[signal.Signals] = []

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # Whoever started us with nohup wants us to outlive the terminal.
            if number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue
            loop.add_signal_handler(number, self._on_signal)
            self._taken.append(number)
        return self

    def __exit__(self, *_: object) -> None:
        loop = asyncio.get_running_loop()
        for number in self._taken:
            loop.remove_signal_handler(number)

    def _on_signal(self) -> None:
        if self.first.is_set():
            self.second.set()
        self.first.set()
