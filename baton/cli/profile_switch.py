"""``baton profile switch``, ``rollback`` and ``skip``: has routers change profiles while traffic
flows, and waits for the end of it.

Progress goes to stderr, how it ended to stdout.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from baton.cli.admin import NOT_DONE, REFUSED, AdminAway, AdminClient, run_with_admin
from baton.cli.console import print_table
from baton.cli.profile_answers import CheckAnswer, SwitchAnswer, understood
from baton.cli.profile_flags import SwitchFlags, request_of
from baton.cli.profile_follow import LostSight, Screen, follow
from baton.cli.profile_view import check_parts, phase_line, report_parts, show_ref
from profiles.switching import Phase, Report

INTERRUPTED = 130

_GOES_ON = (
    "goes on without this command: `baton profile status --watch` shows it, "
    "`baton profile rollback` takes it back"
)


def run_switch(
    flags: SwitchFlags, admin: str | None, home: Path, *, wait: bool, as_json: bool
) -> int:
    """Switches, or with ``flags.check`` only says whether it would fit. Returns the exit status.

    Raises:
        SettingsError, ProfileError: a flag or the file is wrong, or there is no usable token.
    """
    body = json.dumps(request_of(flags)).encode()

    async def check(client: AdminClient) -> int:
        raw = await client.ask("POST", "/admin/switch", body=body)
        told = understood(raw, CheckAnswer)
        if as_json:
            sys.stdout.write(json.dumps(raw, indent=2) + "\n")
        else:
            print_table(*check_parts(told))
        return 0 if told.fits else REFUSED

    async def begin(client: AdminClient) -> _Begun:
        raw = await client.ask("POST", "/admin/switch", body=body)
        return _Begun(raw, understood(raw, SwitchAnswer))

    if flags.check:
        return run_with_admin(admin, home, check)
    return _run(begin, admin, home, wait=wait, as_json=as_json)


def run_rollback(admin: str | None, home: Path, *, wait: bool, as_json: bool) -> int:
    """Takes a switch back, or goes back to the previous profile. Returns the exit status.

    Raises:
        SettingsError: there is no usable token.
    """

    async def begin(client: AdminClient) -> _Begun:
        before = understood(await client.ask("GET", "/admin/switch"), SwitchAnswer)
        # Named, so that one that ends by itself at this moment does not make it another one.
        query = "" if before.switch is None else f"?number={before.switch.number}"
        raw = await client.ask("POST", f"/admin/rollback{query}")
        answer = understood(raw, SwitchAnswer)
        # What was on is wanted rolled back; what begins now, the way back, is wanted committed.
        if before.switch is None:
            return _Begun(raw, answer, Phase.COMMITTED)
        return _Begun(raw, answer, Phase.ROLLED_BACK, before.switch.number)

    return _run(begin, admin, home, wait=wait, as_json=as_json)


def run_skip(admin: str | None, home: Path, *, as_json: bool) -> int:
    """Has the switch that is on leave out the rest of its phase. Returns the exit status.

    Raises:
        SettingsError: there is no usable token.
    """

    async def work(client: AdminClient) -> int:
        before = understood(await client.ask("GET", "/admin/switch"), SwitchAnswer)
        query = "" if before.switch is None else f"?phase={before.switch.phase}"
        raw = await client.ask("POST", f"/admin/switch/skip{query}")
        answer = understood(raw, SwitchAnswer)
        if as_json:
            sys.stdout.write(json.dumps(raw, indent=2) + "\n")
        elif answer.switch is not None:
            sys.stdout.write(
                f"switch {answer.switch.number} goes on; {phase_line(answer.switch)}\n"
            )
        elif answer.last is not None:
            print_table(*report_parts(answer.last))
        return 0

    return run_with_admin(admin, home, work)


class _Begun:
    """What was begun: the answer to it, which outcome is wanted, and of which switch."""

    def __init__(
        self,
        raw: dict[str, object],
        answer: SwitchAnswer,
        wanted: Phase = Phase.COMMITTED,
        number: int = 0,
    ) -> None:
        self.raw = raw
        self.answer = answer
        self.wanted = wanted
        self.number = number or answer.subject


def _run(
    begin: Callable[[AdminClient], Awaitable[_Begun]],
    admin: str | None,
    home: Path,
    *,
    wait: bool,
    as_json: bool,
) -> int:
    number = 0

    async def work(client: AdminClient) -> int:
        nonlocal number
        begun = await begin(client)
        number = begun.number
        if not wait:
            _tell_begun(begun, as_json=as_json)
            return 0
        screen = Screen(sys.stderr, live=not as_json and sys.stderr.isatty())
        try:
            with contextlib.closing(screen):
                report = await follow(client, number, begun.answer, screen)
        except LostSight as error:
            sys.stderr.write(f"baton: {error.message}\n")
            return NOT_DONE
        except AdminAway as error:
            raise AdminAway(
                f"{error.message.rstrip('.')}. Switch {number} may go on", refused=error.refused
            ) from error
        return _tell_end(report, begun.wanted, as_json=as_json)

    try:
        return run_with_admin(admin, home, work)
    except KeyboardInterrupt:
        said = f"switch {number} {_GOES_ON}" if number else (
            "interrupted before the router answered: see `baton profile status`"
        )  # fmt: skip
        sys.stderr.write(f"baton: {said}\n")
        return INTERRUPTED


def _tell_begun(begun: _Begun, *, as_json: bool) -> None:
    answer = begun.answer
    if as_json:
        sys.stdout.write(json.dumps(begun.raw, indent=2) + "\n")
    elif answer.switch is not None:
        old, new = show_ref(answer.switch.old), show_ref(answer.switch.new)
        sys.stdout.write(f"switch {answer.switch.number} is on: {old} -> {new}\n")
    elif answer.last is not None and answer.last.number == begun.number:
        print_table(*report_parts(answer.last))
    else:
        sys.stdout.write(f"active is {show_ref(answer.active)}\n")


def _tell_end(report: Report, wanted: Phase, *, as_json: bool) -> int:
    if as_json:
        sys.stdout.write(json.dumps(msgspec.to_builtins(report), indent=2) + "\n")
    else:
        print_table(*report_parts(report))
    if report.outcome is wanted:
        return 0
    return REFUSED if report.outcome is Phase.REFUSED else NOT_DONE
