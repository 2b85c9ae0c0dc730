"""How far a run is, and how a person sees it: one line that changes in place on a terminal, a
line every few seconds elsewhere. A screen that is gone ends no run.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import IO, Self

import msgspec
from rich.console import Console
from rich.live import Live
from rich.text import Text

SILENCE_S = 5.0
_FRAME_S = 0.1
_BAR_CELLS = 24


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """A look at a run.

    Attributes:
        phase: ``warm-up``, ``prepare``, ``measure`` or ``drain``.
        done: requests that have ended. ``planned``: how many there will be, None in a closed loop.
        elapsed_s: since the phase's second zero. ``duration_s``: planned sending time.
        eta_s: seconds of sending that are left.
        label: what is measured, such as the level of a sweep.
    """

    phase: str
    done: int = 0
    planned: int | None = None
    in_flight: int = 0
    errors: int = 0
    elapsed_s: float = 0.0
    duration_s: float = 0.0
    eta_s: float = 0.0
    label: str = ""


def sentence(progress: Progress) -> str:
    """``measuring 12 of 30 s, 48 of 120 requests, 3 in flight, 1 failed``."""
    of = f" of {progress.planned}" if progress.planned is not None else ""
    requests = f"{progress.done}{of} requests"
    flying = f"{progress.in_flight} in flight"
    label = f"{progress.label}: " if progress.label else ""
    failed = f", {progress.errors} failed" if progress.errors else ""
    if progress.phase == "prepare":
        return f"{label}preparing the requests"
    if progress.phase == "drain":
        return f"{label}waiting for {progress.in_flight} answers, {requests}{failed}"
    name = "measuring" if progress.phase == "measure" else "warming up"
    seconds = f"{min(progress.elapsed_s, progress.duration_s):.0f} of {progress.duration_s:.0f} s"
    return f"{label}{name} {seconds}, {requests}, {flying}{failed}"


class ProgressView:
    """Shows progress; a context manager.

    Args:
        out: where to write.
        live: a line that changes in place; None for "if ``out`` is a terminal".
        clock: monotonic seconds.
    """

    def __init__(
        self,
        out: IO[str],
        *,
        live: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._out = out
        self._clock = clock
        self._spoke_s = clock()
        self._phase = ""
        self._live: Live | None = None
        if out.isatty() if live is None else live:
            self._live = Live(
                console=Console(file=out, highlight=False, force_terminal=live),
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )

    def __enter__(self) -> Self:
        if self._live is not None:
            with _screen_errors():
                self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            with _screen_errors():
                self._live.stop()
            self._live = None

    def update(self, progress: Progress) -> None:
        """Shows where a run is; may be called as often as one likes."""
        now_s = self._clock()
        named = f"{progress.label}/{progress.phase}"
        fresh = named != self._phase
        if not fresh and now_s - self._spoke_s < (SILENCE_S if self._live is None else _FRAME_S):
            return
        self._phase, self._spoke_s = named, now_s
        with _screen_errors():
            if self._live is None:
                self._out.write(f"{sentence(progress)}\n")
                self._out.flush()
            else:
                self._live.update(_line(progress), refresh=True)

    def say(self, text: str) -> None:
        """A sentence that stays."""
        self._spoke_s = self._clock()
        with _screen_errors():
            if self._live is None:
                self._out.write(f"{text}\n")
                self._out.flush()
            else:
                self._live.console.print(Text(text))


def _line(progress: Progress) -> Text:
    share = 0.0
    if progress.duration_s > 0:
        share = min(1.0, max(0.0, progress.elapsed_s / progress.duration_s))
    full = round(_BAR_CELLS * share)
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append("━" * full, style="green")
    line.append("━" * (_BAR_CELLS - full), style="dim")
    line.append(f" {sentence(progress)}", style="red" if progress.errors else "")
    return line


@contextlib.contextmanager
def _screen_errors() -> Iterator[None]:
    # ValueError is what a closed file object raises.
    with contextlib.suppress(OSError, ValueError):
        yield
