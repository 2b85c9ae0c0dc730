"""``baton controller``: one process of the controller, one pass of it, or only what it would do."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from baton.cli.profile_flags import parse_duration
from baton.cli.signals import StopSignals
from baton.errors import SettingsError, SourceUnavailable
from baton.kube import KubeApi, find_access
from baton.secrets import ADMIN_FILE_ENV, ADMIN_FILE_NAME, ADMIN_VALUE_ENV, admin_token
from baton.telemetry import hide
from deploy.controller import Controller, ControllerSettings, Plan
from deploy.controller.observe import Seen
from deploy.controller.settings import Rules

NOT_THERE = 1
SOMEBODY_ELSE = 3

_LEAST_LEASE_S = 2
"""Below that, one slow call of the API would lose it."""

log = logging.getLogger("baton.controller")


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """The flags as typed; durations are text such as ``15s``."""

    admin: str
    namespace: str | None
    profiles: str
    site: str
    active: str
    lease_name: str
    lease: str
    identity: str | None
    retire: str
    settle: str
    min_ready: float
    poll: str
    busy_poll: str
    health: tuple[str, int] | None
    home: Path


def run_controller(flags: Flags, *, once: bool, dry_run: bool, as_json: bool) -> int:
    """Runs it until it is told to stop, once, or only as far as to say what it would do. Returns
    the exit status: 1 where the cluster does not answer or a part broke, 3 for ``once`` where
    another controller acts.

    Raises:
        SettingsError: a flag, the admin token or the cluster cannot be used.
    """
    if as_json and not dry_run:
        raise SettingsError("--json is for --dry-run")
    access = find_access()
    settings = _settings(flags, flags.namespace or access.namespace)
    hide(settings.admin_token)
    api = KubeApi(access)
    if dry_run:
        return asyncio.run(_preview(settings, api, as_json=as_json))
    return asyncio.run(_once(settings, api) if once else _run(settings, api))


def _settings(flags: Flags, namespace: str) -> ControllerSettings:
    settle_s = parse_duration(flags.settle, "--settle", positive=True)
    return ControllerSettings(
        namespace=namespace,
        profiles=flags.profiles,
        site=flags.site,
        admin_url=_checked(flags.admin),
        admin_token=_token(flags.home, os.environ),
        active=flags.active,
        lease=flags.lease_name,
        identity=flags.identity or f"{socket.gethostname()}-{secrets.token_hex(4)}",
        lease_s=_whole(flags.lease, "--lease"),
        poll_s=parse_duration(flags.poll, "--poll", positive=True),
        busy_poll_s=parse_duration(flags.busy_poll, "--busy-poll", positive=True),
        health=flags.health,
        rules=Rules(
            retire_s=parse_duration(flags.retire, "--retire"),
            settle_s=settle_s,
            absent_s=settle_s,
            min_ready=flags.min_ready,
        ),
    )


async def _preview(settings: ControllerSettings, api: KubeApi, *, as_json: bool) -> int:
    made = Controller(settings, api)
    try:
        seen, found = await made.preview()
    except SourceUnavailable as error:
        sys.stderr.write(f"baton: {error.message}\n")
        return NOT_THERE
    finally:
        await made.close()
        await api.close()
    sys.stdout.write(as_json_text(seen, found) if as_json else told(seen, found))
    return 0


async def _once(settings: ControllerSettings, api: KubeApi) -> int:
    made = Controller(settings, api)
    try:
        found = await made.once()
    except SourceUnavailable as error:
        sys.stderr.write(f"baton: {error.message}\n")
        return NOT_THERE
    finally:
        await made.close()
        await api.close()
    return SOMEBODY_ELSE if found is None else 0


async def _run(settings: ControllerSettings, api: KubeApi) -> int:
    with StopSignals() as signals:
        log.info(
            "controller %s for namespace %s, routers at %s",
            *(settings.identity, settings.namespace, settings.admin_url),
        )
        try:
            await Controller(settings, api).run(signals.first)
        except OSError as error:
            sys.stderr.write(f"baton: no probes: {error}\n")
            return NOT_THERE
        except asyncio.CancelledError:
            # One of its parts broke, and has said so.
            return NOT_THERE
        finally:
            await api.close()
    return 0


def told(seen: Seen, found: Plan) -> str:
    """A plan, for people: what would be done and why, what is waited for, what is wrong."""
    lines = [f"phase   {found.phase}"]
    wish = found.stands.wish
    if wish is not None:
        outcome = found.stands.outcome.value or "not met yet"
        lines.append(f"wish    {wish.known.ref.name} ({wish.known.ref.version}): {outcome}")
    routers = seen.picture.routers
    if routers is not None:
        lines.append(f"active  {routers.active.name} ({routers.active.version})")
    for pool in seen.picture.pools:
        why = ", ".join(found.needed.get(pool.name, ())) or "not needed"
        ready = f"{pool.ready_members()} of {pool.replicas} ready"
        lines.append(f"pool    {pool.name}: {ready}: {why}")
    lines += [f"do      {a.kind} {a.target}: {a.reason}" for a in found.actions]
    lines += [f"wait    {wait.sentence}" for wait in found.waits]
    lines += [f"problem {problem}" for problem in seen.picture.problems]
    if not found.actions:
        lines.append("nothing would be changed")
    return "\n".join(lines) + "\n"


def as_json_text(seen: Seen, found: Plan) -> str:
    """A plan, for programs."""
    routers = seen.picture.routers
    data = {
        "phase": found.phase,
        "wish_outcome": found.stands.outcome.value,
        "active": None if routers is None else {"name": routers.active.name},
        "actions": [
            {"kind": a.kind, "target": a.target, "reason": a.reason} for a in found.actions
        ],
        "waits": [wait.sentence for wait in found.waits],
        "needed": {name: list(why) for name, why in found.needed.items()},
        "problems": list(seen.picture.problems),
    }
    if routers is not None:
        data["active"] = {"name": routers.active.name, "version": routers.active.version}
    return json.dumps(data, indent=2) + "\n"


def _checked(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingsError(f"{url!r} is no URL of an admin API, such as http://127.0.0.1:8001")
    return url


def _whole(text: str, flag: str) -> int:
    """Seconds of a lease, which the API knows whole ones of."""
    seconds = parse_duration(text, flag)
    if seconds < _LEAST_LEASE_S or seconds != int(seconds):
        raise SettingsError(f"{flag} must be whole seconds, {_LEAST_LEASE_S} at least (got {text})")
    return int(seconds)


def _token(home: Path, env: Mapping[str, str]) -> str:
    given = ADMIN_VALUE_ENV in env or ADMIN_FILE_ENV in env
    if not given and not (home / ADMIN_FILE_NAME).exists():
        raise SettingsError(
            f"there is no admin token: set {ADMIN_VALUE_ENV} or {ADMIN_FILE_ENV} to the routers' "
            "own, in a cluster from the Secret baton-tokens"
        )
    return admin_token(home, env)
