"""What a doctor says, and how checks are run: each bounded, side by side where that is harmless.

A check looks at one thing and says what it saw. It may say nothing; it never ends the others. One
that raises or takes too long is a finding itself, because "not checked" is not "sound".
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from baton.errors import BatonError, SettingsError

C = TypeVar("C")
"""What the checks of a doctor look at."""

log = logging.getLogger("baton.doctor")

AT_A_TIME = 8
CHECK_S = 20.0
"""For one check that says nothing else of itself."""


class Level(enum.StrEnum):
    """OK: looked at, and sound. NOTE: worth knowing, nothing is wrong. WARNING: works, and may
    disappoint. PROBLEM: something of Baton will not work."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        check: name of the check that says it.
        level: how bad it is.
        seen: what was seen, with its figures.
        todo: a command or a sentence; empty where nothing is to be done.
    """

    check: str
    level: Level
    seen: str
    todo: str = ""


class NotSeen(Exception):
    """What a check needs cannot be looked at by whoever asks; a note, since nothing is wrong.

    Attributes:
        seen, todo: of the finding.
    """

    def __init__(self, seen: str, todo: str = "") -> None:
        super().__init__(seen)
        self.seen = seen
        self.todo = todo


Said = tuple[Level, str, str]
"""A finding without the name of its check."""


def ok(seen: str) -> Said:
    """Looked at, and sound."""
    return Level.OK, seen, ""


def note(seen: str, todo: str = "") -> Said:
    """Worth knowing."""
    return Level.NOTE, seen, todo


def warning(seen: str, todo: str) -> Said:
    """Works, and may disappoint."""
    return Level.WARNING, seen, todo


def problem(seen: str, todo: str) -> Said:
    """Something of Baton will not work."""
    return Level.PROBLEM, seen, todo


@dataclass(frozen=True, slots=True)
class Check(Generic[C]):
    """One check of a doctor.

    Attributes:
        name: as ``--only`` and ``--skip`` take it.
        about: what it looks at, in a few words.
        look: says what it saw; an answer of nothing means that the check does not apply.
        limit_s: after which it is given up.
        alone: whether it runs after the others and by itself, because it measures.
    """

    name: str
    about: str
    look: Callable[[C], Awaitable[Iterable[Said]]]
    limit_s: float = CHECK_S
    alone: bool = False


def chosen(checks: Sequence[Check[C]], only: Iterable[str], skip: Iterable[str]) -> list[Check[C]]:
    """Those of ``checks`` that are asked for.

    Raises:
        SettingsError: a name that no check has, or nothing is left.
    """
    only, skip = set(only), set(skip)
    names = [check.name for check in checks]
    unknown = sorted((only | skip) - set(names))
    if unknown:
        raise SettingsError(f"no check is called {unknown[0]!r}; there are {', '.join(names)}")
    left = [
        check for check in checks if check.name not in skip and (not only or check.name in only)
    ]
    if not left:
        raise SettingsError("no check is left to run; see --only and --skip")
    return left


async def examine(
    checks: Sequence[Check[C]],
    context: C,
    *,
    on_start: Callable[[Check[C]], None] = lambda _: None,
    on_end: Callable[[Check[C]], None] = lambda _: None,
) -> list[Finding]:
    """Runs the checks, and returns what they said in the order of ``checks``."""
    places = asyncio.Semaphore(AT_A_TIME)

    async def one(check: Check[C]) -> list[Finding]:
        async with places:
            on_start(check)
            try:
                return await _one(check, context)
            finally:
                on_end(check)

    together = [check for check in checks if not check.alone]
    async with asyncio.TaskGroup() as group:
        tasks = {check.name: group.create_task(one(check)) for check in together}
    said = {name: task.result() for name, task in tasks.items()}
    for check in checks:
        if check.alone:
            said[check.name] = await one(check)
    return [finding for check in checks for finding in said[check.name]]


async def _one(check: Check[C], context: C) -> list[Finding]:
    try:
        async with asyncio.timeout(check.limit_s):
            said = list(await check.look(context))
    except TimeoutError:
        said = [
            warning(
                f"not checked: it was not over after {check.limit_s:g} s",
                f"run it by itself: --only {check.name}",
            )
        ]
    except NotSeen as error:
        said = [note(f"not checked: {error.seen}", error.todo)]
    except BatonError as error:
        said = [warning(f"not checked: {error.message}", "mend that, and ask again")]
    except Exception as error:
        # A doctor that falls over its patient helps nobody; the trace is for whoever mends us.
        log.debug("check %s failed", check.name, exc_info=True)
        said = [
            warning(
                f"not checked: {type(error).__name__}: {error}",
                f"run it by itself and with -v: --only {check.name} -v",
            )
        ]
    return [Finding(check.name, *parts) for parts in said]


def many(count: int, noun: str) -> str:
    """``1 node``, ``2 nodes``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def worst(findings: Iterable[Finding]) -> Level:
    """The worst level of all; OK of none."""
    order = list(Level)
    return max((finding.level for finding in findings), key=order.index, default=Level.OK)
