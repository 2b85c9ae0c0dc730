"""What a person sees while ``baton up`` works: a line for each part, its state, its seconds.

On a terminal the lines stay in place and count; elsewhere each change is a line of its own, and
whoever waits hears something every few seconds. A screen that is gone must not stop the service,
so nothing here raises when it cannot be written to.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import IO

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

SILENCE_S = 3.0
"""Longest silence while something is being waited for, where lines cannot change in place."""

_TICK_S = 0.25


@dataclass(slots=True)
class _Row:
    since_s: float
    state: str
    detail: str = ""
    done: bool = False
    took_s: float = 0.0


class Board:
    """Shows parts and their states.

    Args:
        out: where to write.
        clock: monotonic seconds.
        live: lines that change in place; None for "if ``out`` is a terminal".
    """

    def __init__(
        self, out: IO[str], clock: Callable[[], float], *, live: bool | None = None
    ) -> None:
        self._out = out
        self._clock = clock
        self._rows: dict[str, _Row] = {}
        self._spoke_s = clock()
        self._live: Live | None = None
        if out.isatty() if live is None else live:
            self._live = Live(
                console=Console(file=out), auto_refresh=False, redirect_stdout=False,
                redirect_stderr=False, get_renderable=self._table, vertical_overflow="visible",
            )  # fmt: skip
            with _screen_errors():
                self._live.start()

    def set(self, name: str, state: str, *, done: bool = False) -> None:
        """A part's new state; its seconds count from the first one."""
        row = self._rows.get(name)
        now_s = self._clock()
        if row is None:
            row = self._rows[name] = _Row(now_s, "")
        if (row.state, row.done) == (state, done):
            return
        row.state, row.done, row.detail = state, done, ""
        row.took_s = now_s - row.since_s
        if self._live is None:
            self._line(_sentence(name, row, now_s))
        self.tick()

    def detail(self, name: str, text: str) -> None:
        """How far a part has come; shown with the next tick."""
        if name in self._rows:
            self._rows[name].detail = text

    def note(self, text: str) -> None:
        """A sentence that stays."""
        if self._live is None:
            self._line(text)
        else:
            with _screen_errors():
                self._live.console.print(Text(text))

    def tick(self) -> None:
        """Brings the seconds up to date; to be called a few times a second."""
        if self._live is not None:
            with _screen_errors():
                self._live.refresh()
            return
        now_s = self._clock()
        waiting = [(name, row) for name, row in self._rows.items() if not row.done]
        if waiting and now_s - self._spoke_s >= SILENCE_S:
            self._line("; ".join(_sentence(name, row, now_s) for name, row in waiting))

    def close(self) -> None:
        """Leaves the lines as they are; what is noted from now on goes below them."""
        if self._live is not None:
            with _screen_errors():
                self._live.stop()
            self._live = None
        self._rows.clear()

    @contextlib.asynccontextmanager
    async def ticking(self) -> AsyncIterator[None]:
        """Ticks by itself while open."""

        async def tick() -> None:
            while True:
                await asyncio.sleep(_TICK_S)
                self.tick()

        task = asyncio.create_task(tick(), name="board")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _line(self, text: str) -> None:
        self._spoke_s = self._clock()
        say(self._out, text)

    def _table(self) -> Table:
        now_s = self._clock()
        table = Table.grid(padding=(0, 2))
        for _ in range(2):
            table.add_column(no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        for name, row in self._rows.items():
            seconds = row.took_s if row.done else now_s - row.since_s
            style = "green" if row.done else "yellow"
            table.add_row(
                Text(name, style="bold"), Text(row.state, style=style), Text(f"{seconds:.0f} s"),
                Text(row.detail, style="dim"),
            )  # fmt: skip
        return table


def say(out: IO[str], text: str) -> None:
    """Writes lines at once; a screen that is gone is nobody's fault."""
    with _screen_errors():
        out.write(f"{text}\n")
        out.flush()


@contextlib.contextmanager
def _screen_errors() -> Iterator[None]:
    # ValueError is what a closed file object raises.
    with contextlib.suppress(OSError, ValueError):
        yield


def _sentence(name: str, row: _Row, now_s: float) -> str:
    if row.done:
        return f"{name}: {row.state}, after {row.took_s:.0f} s" if row.took_s >= 1 else (
            f"{name}: {row.state}"
        )  # fmt: skip
    seconds = now_s - row.since_s
    parts = [f"{name}: {row.state}", f"{seconds:.0f} s" if seconds >= 1 else "", row.detail]
    return ", ".join(filter(None, parts))
