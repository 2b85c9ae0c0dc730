"""``baton profile status`` and ``history``: what is active and since when, what is going on, and
how the last switches ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from baton.cli.admin import NOT_DONE, AdminClient, run_with_admin
from baton.cli.console import print_table
from baton.cli.profile_answers import History, SwitchAnswer, understood
from baton.cli.profile_follow import Patience, Screen
from baton.cli.profile_view import agree, history_table, status_parts
from profiles.switching import Phase, Ref, Report

WATCH_S = 1.0
"""Between two looks."""


def run_status(admin: str | None, home: Path, *, watch: bool, as_json: bool) -> int:
    """Prints what is active and what is going on. Returns the exit status.

    Raises:
        SettingsError: there is no usable token.
    """
    if watch:
        return _watch(admin, home, as_json=as_json)

    async def work(client: AdminClient) -> int:
        raw = await client.ask("GET", "/admin/switch")
        answer = understood(raw, SwitchAnswer)
        if as_json:
            sys.stdout.write(json.dumps(raw, indent=2) + "\n")
        else:
            past = understood(await client.ask("GET", "/admin/history"), History)
            print_table(*status_parts(answer, made_active(answer.active, past.history)))
        return status_of(answer)

    return run_with_admin(admin, home, work)


def run_history(admin: str | None, home: Path, *, as_json: bool) -> int:
    """Prints how the last switches ended. Returns the exit status.

    Raises:
        SettingsError: there is no usable token.
    """

    async def work(client: AdminClient) -> int:
        raw = await client.ask("GET", "/admin/history")
        past = understood(raw, History)
        if as_json:
            sys.stdout.write(json.dumps(raw, indent=2) + "\n")
        else:
            print_table(history_table(past.history) if past.history else "no switches yet")
        return 0

    return run_with_admin(admin, home, work)


def status_of(answer: SwitchAnswer) -> int:
    """0 if all is as it should be; 3 if the source has problems, routers disagree, or the state
    cannot be read."""
    wrong = answer.source is not None and answer.source.problems
    return NOT_DONE if wrong or answer.store_lost or not agree(answer) else 0


def made_active(active: Ref, reports: Sequence[Report]) -> Report | None:
    """The switch that made a profile active, if it is remembered."""
    for report in sorted(reports, key=lambda report: report.number, reverse=True):
        if report.outcome is Phase.COMMITTED:
            return report if report.new == active else None
    return None


def _watch(admin: str | None, home: Path, *, as_json: bool) -> int:
    status = 0

    async def work(client: AdminClient) -> int:
        nonlocal status
        screen = Screen(sys.stdout, live=not as_json and sys.stdout.isatty())
        clock = asyncio.get_running_loop().time
        note = screen.note if screen.live else _aside
        patience = Patience(client, note, clock)
        past: History | None = None
        told: object = None
        phase: object = None
        phase_since_s = 0.0
        with contextlib.closing(screen):
            while True:
                answer = await patience.ask("/admin/switch", SwitchAnswer)
                if answer is not None:
                    status = status_of(answer)
                    if past is None or _newest(past.history) != answer.last:
                        past = await patience.ask("/admin/history", History)
                    since = made_active(answer.active, past.history if past else ())
                    if (now := _key(answer)) != told:
                        _tell(answer, since, screen, as_json=as_json)
                        told = now
                    on = answer.switch
                    if (at := on and (on.number, on.phase_number)) != phase:
                        phase, phase_since_s = at, clock()
                    screen.show(status_parts(answer, since, clock() - phase_since_s))
                await asyncio.sleep(WATCH_S)

    try:
        return run_with_admin(admin, home, work)
    except KeyboardInterrupt:
        # The only way to end it: what was seen last is the result.
        return status


def _aside(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _newest(reports: Sequence[Report]) -> Report | None:
    return max(reports, key=lambda report: report.order, default=None)


def _tell(answer: SwitchAnswer, since: Report | None, screen: Screen, *, as_json: bool) -> None:
    """Where nothing changes in place, each change is told as a whole."""
    if as_json:
        sys.stdout.write(json.dumps(msgspec.to_builtins(answer)) + "\n")
    elif not screen.live:
        print_table(*status_parts(answer, since), "")
    sys.stdout.flush()


def _key(answer: SwitchAnswer) -> object:
    """What is worth telling when it changes: not beats and counts."""
    switch, source = answer.switch, answer.source
    return (
        answer.active,
        switch and (switch.number, switch.phase_number, switch.phase, switch.waiting_for),
        answer.last and answer.last.number,
        source and (source.active, source.problems),
        sorted((router.id, router.profile_version) for router in answer.routers),
        answer.store_lost,
    )
