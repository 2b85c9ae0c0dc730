"""``baton doctor``: gathers what the checks need, runs them, and prints what they say."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

from baton.cli.admin import AdminAway, AdminClient, AdminRefused
from baton.cli.console import print_table
from baton.cli.runfile import read_note
from baton.engine import detect_device
from baton.errors import SettingsError
from baton.kube import KubeApi, find_access
from baton.process import Child
from baton.secrets import FILE_ENV, FILE_NAME, VALUE_ENV, admin_token, cluster_token
from deploy.doctor import (
    CLUSTER_CHECKS,
    MACHINE_CHECKS,
    Check,
    Cluster,
    Finding,
    Level,
    NoRouter,
    Patient,
    ThisMachine,
    chosen,
    examine,
    examine_cluster,
    worst,
)
from deploy.doctor.patient import answer
from deploy.lws.site import load_site
from kvtransfer.probe import SECRET_ENV
from profiles import ServingProfile, resolve_profile

PROBLEMS = 1
_COLOURS = {Level.OK: "green", Level.NOTE: "cyan", Level.WARNING: "yellow", Level.PROBLEM: "red"}

C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class Wanted:
    """How the report is wanted: names of checks, and in which form."""

    only: tuple[str, ...]
    skip: tuple[str, ...]
    verbose: bool
    as_json: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """What was said of a cluster; None where nothing was."""

    namespace: str | None
    site: str | None
    profile: str | None
    admin_url: str | None


def run_machine(wanted: Wanted, profile: str | None, peer: str | None, home: Path) -> int:
    """Checks this machine. Returns 1 if there is a problem, else 0.

    Raises:
        SettingsError: unknown checks, or a peer that is no address.
        ProfileError: the profile is wrong.
    """
    checks = chosen(MACHINE_CHECKS, wanted.only, wanted.skip)
    where = _address(peer) if peer else None
    patient = Patient(
        ThisMachine(),
        detect_device(),
        _profile(profile),
        home,
        _token(home) if where else secrets.token_hex(16),
        peer=where,
        stale=_stale,
        running=_running(home),
        forced=bool(os.environ.get("BATON_DEVICE")),
    )

    async def look() -> list[Finding]:
        with _progress(wanted) as progress:
            return await examine(checks, patient, on_start=progress.started, on_end=progress.ended)

    return _report(wanted, "machine", checks, asyncio.run(look()))


def run_cluster(wanted: Wanted, plan: Plan, home: Path) -> int:
    """Checks a cluster. Returns 1 if there is a problem, else 0.

    Raises:
        SettingsError: unknown checks, no cluster, a wrong site.
        ProfileError: the profile is wrong.
    """
    checks = chosen(CLUSTER_CHECKS, wanted.only, wanted.skip)
    site = load_site(plan.site) if plan.site else None
    profile = _profile(plan.profile)
    access = find_access()
    namespace = plan.namespace or (site.spec.namespace if site else access.namespace)

    async def look() -> list[Finding]:
        api = KubeApi(access)
        try:
            async with _router(plan.admin_url, home) as ask:
                cluster = Cluster(api, namespace, profile, site, ask)
                with _progress(wanted) as progress:
                    return await examine_cluster(
                        checks, cluster, on_start=progress.started, on_end=progress.ended
                    )
        finally:
            await api.close()

    return _report(wanted, f"cluster, namespace {namespace}", checks, asyncio.run(look()))


def run_serve(host: str, port: int, profile: str | None, limit_s: float, home: Path) -> int:
    """Serves peers until it is over. Returns 0, or 1 if it could not.

    Raises:
        SettingsError: no cluster token.
    """
    machine, device = ThisMachine(), detect_device()
    patient = Patient(machine, device, _profile(profile), home, _token(home))
    try:
        return asyncio.run(_serve(patient, host, port, limit_s))
    except KeyboardInterrupt:
        return 0


async def _serve(patient: Patient, host: str, port: int, limit_s: float) -> int:
    def tell(line: str) -> None:
        said = answer(line, "", 0)
        if "port" in said:
            sys.stderr.write(
                f"baton: offering 64 MiB ({said['memory']}) on {host}:{said['port']}; elsewhere: "
                f"baton doctor machine --peer ADDRESS:{said['port']}; Ctrl-C ends it\n"
            )

    argv = patient.probe_argv("serve", host, str(port), "--limit", str(limit_s), *patient.cuda)
    env = {**os.environ, **patient.ucx(), SECRET_ENV: patient.secret}
    child = Child("probe", argv, env, on_line=tell)
    await child.start()
    try:
        status = await child.wait()
    finally:
        await child.stop(grace_s=0.0)
    if status == 0:
        return 0
    failure = answer("\n".join(child.tail), "", status)["error"]
    sys.stderr.write(f"baton: cannot serve on {host}:{port}: {failure}\n")
    return PROBLEMS


def _profile(ref: str | None) -> ServingProfile | None:
    return resolve_profile(ref) if ref else None


def _address(peer: str) -> tuple[str, int]:
    parts = urlsplit(f"//{peer}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port:
        raise SettingsError(f"--peer {peer!r} is no HOST:PORT, such as 10.0.0.7:5690")
    return host, port


def _token(home: Path) -> str:
    said = VALUE_ENV in os.environ or FILE_ENV in os.environ
    if not said and not (home / FILE_NAME).exists():
        # One made here would be another one than the peer's.
        raise SettingsError(
            f"there is no cluster token in {home}; both machines need the same one: set "
            f"{VALUE_ENV} or {FILE_ENV}"
        )
    return cluster_token(home, os.environ)


def _stale() -> list[str] | None:
    from router import compiled

    found = compiled.stale()
    return found if found or compiled.modules() else None


def _running(home: Path) -> str:
    note = read_note(home)
    if note is None:
        return ""
    try:
        os.kill(note.pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return f"`baton up` (pid {note.pid}) runs here, with profile {note.profile}"


@asynccontextmanager
async def _router(url: str | None, home: Path) -> AsyncIterator[Any]:
    """What asks the router; None where none was named."""
    if url is None:
        yield None
        return
    token = admin_token(home, os.environ)
    async with aiohttp.ClientSession() as http:
        client = AdminClient(http, url, token)

        async def ask(path: str) -> Mapping[str, Any]:
            try:
                return await client.ask("GET", path)
            except (AdminAway, AdminRefused) as error:
                raise NoRouter(f"the router's admin API at {url}: {error.message}") from error

        yield ask


class _Progress:
    """Names of the checks that run, on a terminal, while they do."""

    def __init__(self, status: Status | None) -> None:
        self._status = status
        self._names: list[str] = []

    def __enter__(self) -> _Progress:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def started(self, check: Check[Any]) -> None:
        """Shows it."""
        self._names.append(check.name)
        self._show()

    def ended(self, check: Check[Any]) -> None:
        """Takes it away."""
        self._names.remove(check.name)
        self._show()

    def _show(self) -> None:
        if self._status is not None and self._names:
            self._status.update("checking " + ", ".join(self._names))


def _progress(wanted: Wanted) -> _Progress:
    if wanted.verbose:
        logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
        return _Progress(None)
    return _Progress(Status("checking", console=Console(stderr=True)) if _watched() else None)


def _watched() -> bool:
    return sys.stderr.isatty()


def _report(
    wanted: Wanted, what: str, checks: Sequence[Check[C]], findings: Sequence[Finding]
) -> int:
    level = worst(findings)
    if wanted.as_json:
        said = [asdict(finding) for finding in findings]
        answer = {"examined": what, "worst": level, "findings": said}
        sys.stdout.write(json.dumps(answer, indent=2) + "\n")
    else:
        print_table(*render(checks, findings, verbose=wanted.verbose))
    return PROBLEMS if level is Level.PROBLEM else 0


def render(
    checks: Sequence[Check[Any]], findings: Sequence[Finding], *, verbose: bool
) -> list[Table | str]:
    """The findings for people, in the order of the checks, and how many of each level."""
    table = Table(box=None, pad_edge=False, show_header=False)
    about = {check.name: check.about for check in checks}
    for finding in findings:
        seen = Text(finding.seen)
        if finding.todo:
            seen.append(f"\n-> {finding.todo}", style="bold")
        name = Text(finding.check)
        if verbose:
            name.append(f"\n({about.get(finding.check, '')})", style="dim")
        table.add_row(Text(finding.level, style=_COLOURS[finding.level]), name, seen)
    counts = Counter(finding.level for finding in findings)
    summary = ", ".join(_count(counts[level], level) for level in Level if counts[level])
    return [table, "", summary or "nothing to say"]


def _count(count: int, level: Level) -> str:
    return f"{count} {level}" + ("s" if count > 1 and level is not Level.OK else "")
