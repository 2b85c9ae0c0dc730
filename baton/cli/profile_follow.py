"""Stays with a switch until it is over, and shows how far it is.

The switch itself belongs to the routers: it goes on when whoever watches it leaves. A router that
is away for a while is asked again; nothing here waits for something that does not move any more.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, TypeVar

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from baton.cli.admin import AdminAway, AdminClient, AdminRefused
from baton.cli.board import say
from baton.cli.profile_answers import History, SwitchAnswer, understood
from baton.cli.profile_view import (
    Parts,
    phase_line,
    shadow_line,
    show_ref,
    show_span,
    switch_parts,
    taken_line,
)
from profiles.switching import Report

T = TypeVar("T")

POLL_S = 0.5
"""Between two questions; the owner of a switch writes about as often."""

AWAY_S = 30.0
"""How long a router may give no answer: a restart of its pod, or of its store."""

FORGOTTEN_S = 10.0
"""How long a router may know nothing of a switch that was begun: one that lags, or another one."""

STILL_S = 60.0
"""How long a switch may not move at all: other routers take over after seconds."""


class LostSight(Exception):
    """How a switch ended cannot be known from here; ``message`` says why."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Screen:
    """Progress: a view that changes in place on a terminal, elsewhere lines.

    Args:
        out: where to.
        live: whether it is such a terminal.
    """

    def __init__(self, out: IO[str], *, live: bool) -> None:
        self._out = out
        self._live: Live | None = None
        if live:
            self._live = Live(
                console=Console(file=out, highlight=False), auto_refresh=False,
                redirect_stdout=False, redirect_stderr=False, vertical_overflow="visible",
            )  # fmt: skip
            with _screen_errors():
                self._live.start()

    @property
    def live(self) -> bool:
        """Whether the view changes in place."""
        return self._live is not None

    def show(self, parts: Parts) -> None:
        """The view as it is now; nothing where it cannot change in place."""
        if self._live is not None:
            whole = Group(*(Text(part) if isinstance(part, str) else part for part in parts))
            with _screen_errors():
                self._live.update(whole, refresh=True)

    def line(self, text: str) -> None:
        """Progress that the view shows by itself; a line elsewhere."""
        if self._live is None:
            say(self._out, text)

    def note(self, text: str) -> None:
        """A sentence that stays, above the view."""
        if self._live is None:
            say(self._out, text)
        else:
            with _screen_errors():
                self._live.console.print(Text(text))

    def close(self) -> None:
        """Leaves the view as it is."""
        if self._live is not None:
            with _screen_errors():
                self._live.stop()
            self._live = None


@contextlib.contextmanager
def _screen_errors() -> Iterator[None]:
    # A screen that is gone is nobody's fault; ValueError is what a closed file object raises.
    with contextlib.suppress(OSError, ValueError):
        yield


@dataclass(slots=True)
class Patience:
    """Asks again where there is no answer for a while.

    Attributes:
        client: who asks.
        note: told when answers stop and when they come again.
        clock: monotonic seconds.
    """

    client: AdminClient
    note: Callable[[str], None]
    clock: Callable[[], float]
    _away_since_s: float | None = None

    async def ask(self, path: str, kind: type[T]) -> T | None:
        """An answer, or None when there is none this time.

        Raises:
            AdminAway: none for ``AWAY_S``, or our token is refused.
        """
        try:
            answer = understood(await self.client.ask("GET", path), kind)
        except (AdminAway, AdminRefused) as error:
            now_s = self.clock()
            if self._away_since_s is None:
                self._away_since_s = now_s
                self.note(f"no answer ({error.message}); asking again for {show_span(AWAY_S)}")
            refused = isinstance(error, AdminAway) and error.refused
            if refused or now_s - self._away_since_s >= AWAY_S:
                raise AdminAway(error.message, refused=refused) from error
            return None
        if self._away_since_s is not None:
            self._away_since_s = None
            self.note("it answers again")
        return answer


@dataclass(slots=True)
class Course:
    """What has been seen of one switch; pure, so that it can be told without waiting.

    Attributes:
        number: of the switch.
        phase_since_s: when its phase was seen first.
        phase_revision: the revision that it was seen with first.
    """

    number: int
    phase_since_s: float = 0.0
    phase_revision: int = 0
    _phase: tuple[int, str] = (-1, "")
    _told: set[str] = field(default_factory=set)
    _waiting: tuple[str, ...] = ()
    _beat: int = -1
    _moved_s: float = 0.0
    _missing_since_s: float | None = None

    def see(self, answer: SwitchAnswer, now_s: float) -> list[str]:
        """Takes an answer in which the switch is on; returns what is new, a line each.

        Raises:
            LostSight: it has not moved for ``STILL_S``.
        """
        switch = answer.switch
        assert switch is not None
        self._missing_since_s = None
        if self._beat != switch.beat:
            self._beat, self._moved_s = switch.beat, now_s
        elif now_s - self._moved_s >= STILL_S:
            raise LostSight(
                f"switch {self.number} has stood still for {show_span(STILL_S)}: no router moves "
                "it on. It may go on later; see `baton profile status`"
            )
        lines = []
        if self._phase[0] < 0:
            old, new = show_ref(switch.old), show_ref(switch.new)
            lines.append(f"switch {switch.number}: {old} -> {new}, by {switch.by}")
        for name, took_s in switch.took_s.items():
            if name not in self._told:
                self._told.add(name)
                detail = shadow_line(switch.shadow) if name == "shadow" and switch.shadow else ""
                over = f"{name}: over after {show_span(took_s)}"
                lines.append(f"{over}; {detail}" if detail else over)
        if self._phase != (phase := (switch.phase_number, str(switch.phase))):
            self._phase = phase
            self.phase_since_s, self.phase_revision = now_s, answer.revision
            lines.append(phase_line(switch))
        if switch.waiting_for and switch.waiting_for != self._waiting:
            lines.append(f"waiting: {'; '.join(switch.waiting_for)}")
        self._waiting = switch.waiting_for
        return lines

    def miss(self, now_s: float) -> None:
        """Takes note that nobody knows the switch.

        Raises:
            LostSight: for ``FORGOTTEN_S`` by now.
        """
        if self._missing_since_s is None:
            self._missing_since_s = now_s
        elif now_s - self._missing_since_s >= FORGOTTEN_S:
            raise LostSight(
                f"the router knows nothing of switch {self.number} any more: it may have been "
                "restarted without a store that outlives it. See `baton profile status`"
            )


async def follow(client: AdminClient, number: int, first: SwitchAnswer, screen: Screen) -> Report:
    """Waits until a switch is over; returns how it ended.

    Args:
        client: who asks.
        number: of the switch.
        first: the answer to what began it.
        screen: shows how far it is.

    Raises:
        AdminAway: no answer for ``AWAY_S``.
        LostSight: how it ended cannot be known.
    """
    clock = asyncio.get_running_loop().time
    patience, course = Patience(client, screen.note, clock), Course(number)
    answer: SwitchAnswer | None = first
    while True:
        if answer is not None:
            if answer.last is not None and answer.last.number == number:
                return answer.last
            if answer.switch is not None and answer.switch.number == number:
                for line in course.see(answer, clock()):
                    screen.line(line)
                screen.show(following_parts(answer, course, clock()))
            else:
                # Another one may have begun since; or this router has not heard of it yet.
                past = await patience.ask("/admin/history", History)
                for report in past.history if past is not None else ():
                    if report.number == number:
                        return report
                course.miss(clock())
        await asyncio.sleep(POLL_S)
        answer = await patience.ask("/admin/switch", SwitchAnswer)


def following_parts(answer: SwitchAnswer, course: Course, now_s: float) -> Parts:
    """The live view of a switch that is on."""
    assert answer.switch is not None
    parts = switch_parts(answer.switch, now_s - course.phase_since_s)
    if taken := taken_line(answer.routers, course.phase_revision):
        parts += ["", f"routers: {taken}"]
    if answer.store_lost:
        parts.append("the router cannot reach its store: the switch stands still until it can")
    return parts
