"""``baton profile list``, ``show``, ``validate``, ``schema``, ``diff``: looks at profiles.

At the built-in ones and at files, or with ``served`` at those that a running router knows. Nothing
here changes what is active; that is ``profile_switch``'s.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import yaml
from rich.table import Table
from rich.text import Text

from baton.cli.admin import NO_ANSWER, REFUSED, AdminClient, run_with_admin
from baton.cli.console import print_table
from baton.cli.profile_answers import Change, Listing, Served, understood
from baton.cli.profile_flags import means_file
from baton.cli.profile_view import Parts, changes_table
from baton.errors import ProfileError
from profiles import (
    ServingProfile,
    builtin_names,
    load_profile,
    parse_profile,
    profile_schema,
    resolve_profile,
)
from profiles.switching import difference

DIFFERENT = 1


@dataclass(frozen=True, slots=True)
class Where:
    """The router to ask: its admin API's URL, or None for the one that ``baton up`` started, and
    Baton's folder."""

    admin: str | None
    home: Path


def show_list(*, as_json: bool) -> int:
    """Prints name, mode and description of each built-in profile."""
    profiles = [resolve_profile(name) for name in builtin_names()]
    if as_json:
        rows = [
            {
                "name": profile.name,
                "version": profile.version,
                "mode": str(profile.spec.mode),
                "description": profile.metadata.description,
            }
            for profile in profiles
        ]
        sys.stdout.write(json.dumps({"profiles": rows}, indent=2) + "\n")
        return 0
    table = Table("name", "mode", "description", box=None, pad_edge=False)
    for profile in profiles:
        cells = (profile.name, str(profile.spec.mode), profile.metadata.description)
        table.add_row(*(Text(cell) for cell in cells))
    print_table(table)
    return 0


def show_served_list(where: Where, *, as_json: bool) -> int:
    """Prints the profiles that a router knows. Returns the exit status.

    Raises:
        SettingsError: there is no usable token.
    """

    async def work(client: AdminClient) -> int:
        raw = await client.ask("GET", "/admin/profiles")
        listing = understood(raw, Listing)
        if as_json:
            sys.stdout.write(json.dumps(raw, indent=2) + "\n")
        else:
            print_table(*listing_parts(listing))
        return 0

    return run_with_admin(where.admin, where.home, work)


def listing_parts(listing: Listing) -> Parts:
    """Profiles, the active one marked, then where they come from and what is wrong there."""
    table = Table("name", "active", "mode", "version", "from", "description", box=None,
                  pad_edge=False)  # fmt: skip
    for row in listing.profiles:
        active = "active" if row.active else ""
        cells = (row.name, active, row.mode, row.version, row.origin, row.description)
        table.add_row(*(Text(cell) for cell in cells))
    parts: Parts = [table]
    source = listing.source
    if source is not None and source.where:
        parts += ["", f"source: {source.where}, which wants {source.active or 'nothing active'}"]
        parts += [f"problem: {problem}" for problem in source.problems]
    return parts


def show_profile(name: str, *, as_json: bool) -> int:
    """Prints a profile as YAML that reads back as the same profile.

    Raises:
        ProfileError: no such profile, or it is wrong.
    """
    profile = resolve_profile(name)
    data = profile.model_dump(mode="json", by_alias=True)
    # Filled in, so that it is seen; it is also what the version is computed from.
    data["spec"] = profile.canonical_spec()
    _write_document(profile.name, profile.version, data, as_json=as_json)
    return 0


def show_served_profile(name: str, where: Where, *, as_json: bool) -> int:
    """Prints a profile as a router knows it. Returns the exit status.

    Raises:
        SettingsError: there is no usable token.
    """

    async def work(client: AdminClient) -> int:
        served = await _served(client, name)
        _write_document(served.name, served.version, served.document, as_json=as_json)
        return 0

    return run_with_admin(where.admin, where.home, work)


def _write_document(name: str, version: str, document: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        whole = {"name": name, "version": version, "document": document}
        sys.stdout.write(json.dumps(whole, indent=2) + "\n")
        return
    sys.stdout.write(f"# Version {version}: what these decisions are, as one word.\n")
    sys.stdout.write(yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=100))


async def _served(client: AdminClient, name: str) -> Served:
    return understood(await client.ask("GET", f"/admin/profiles/{quote(name, safe='')}"), Served)


def validate(files: Sequence[Path], *, as_json: bool) -> int:
    """Prints a line for each sound file on stdout and one for each problem on stderr; as JSON, all
    of it on stdout."""
    status = 0
    rows: list[dict[str, Any]] = []
    for file in files:
        row: dict[str, Any] = {"file": str(file), "ok": True, "problems": []}
        rows.append(row)
        try:
            profile = load_profile(file)
        except ProfileError as error:
            status = 2
            row |= {"ok": False, "problems": list(error.problems)}
            if not as_json:
                sys.stderr.write("".join(f"{problem}\n" for problem in error.problems))
            continue
        mode = str(profile.spec.mode)
        row |= {"name": profile.name, "mode": mode, "version": profile.version}
        if not as_json:
            sys.stdout.write(
                f"{file}: ok, profile {profile.name} ({mode}), version {profile.version}\n"
            )
    if as_json:
        sys.stdout.write(json.dumps({"files": rows}, indent=2) + "\n")
    return status


def show_schema() -> None:
    """Prints the JSON Schema."""
    sys.stdout.write(json.dumps(profile_schema(), indent=2) + "\n")


def show_difference(a: str, b: str, where: Where | None, *, as_json: bool) -> int:
    """Prints what differs between two profiles. Returns 0 if nothing, 1 if something, else 2.

    Args:
        a, b: names or files.
        where: the router that names are asked of; None for built-in ones.
        as_json: print JSON instead of a table.

    Raises:
        ProfileError: no such profile, or it is wrong.
        SettingsError: there is no usable token.
    """
    if where is None:
        return _tell_difference(resolve_profile(a), resolve_profile(b), as_json=as_json)

    different = 0

    async def work(client: AdminClient) -> int:
        nonlocal different
        resolve = _from_router(client)
        different = _tell_difference(await resolve(a), await resolve(b), as_json=as_json)
        return 0

    # Status 1 means "different" here, so that a router that is away is trouble, as for diff(1).
    status = run_with_admin(where.admin, where.home, work)
    return REFUSED if status in (NO_ANSWER, REFUSED) else different


def _from_router(client: AdminClient) -> Callable[[str], Awaitable[ServingProfile]]:
    async def resolve(name: str) -> ServingProfile:
        if means_file(name):
            return resolve_profile(name)
        served = await _served(client, name)
        # JSON is YAML, and this way a field that this version does not know is told as usual.
        return parse_profile(json.dumps(served.document), source=f"{name} of the router")

    return resolve


def _tell_difference(a: ServingProfile, b: ServingProfile, *, as_json: bool) -> int:
    changes = difference(a, b)
    if as_json:
        whole = {
            "a": {"name": a.name, "version": a.version},
            "b": {"name": b.name, "version": b.version},
            "changes": msgspec.to_builtins(changes),
        }
        sys.stdout.write(json.dumps(whole, indent=2) + "\n")
    else:
        shown = [Change(c.path, old_text=c.old_text, new_text=c.new_text) for c in changes]
        parts: Parts = [changes_table(shown, _headed(a), _headed(b))] if shown else []
        if a.version == b.version:
            # The name and the description may differ all the same.
            parts.append(f"they decide the same: version {a.version}")
        print_table(*parts)
    return 0 if a.version == b.version else DIFFERENT


def _headed(profile: ServingProfile) -> str:
    return f"{profile.name} ({profile.version})"
