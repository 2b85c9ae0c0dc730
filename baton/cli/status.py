"""``baton status``: one look at a running router, for people and for scripts."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from baton.cli.client import RouterAway, RouterClient
from baton.cli.console import print_table, show_bytes
from baton.cli.runfile import RunNote, read_note
from baton.errors import SettingsError
from baton.secrets import FILE_ENV, FILE_NAME, VALUE_ENV, cluster_token

NO_ROUTER = 1
NOT_SERVING = 3


def run_status(router: str | None, home: Path, *, as_json: bool) -> int:
    """Prints the status. Returns 0 if requests can be served, 1 without a router, else 3.

    Raises:
        SettingsError: there is no cluster token here, or it is not usable.
    """
    note = read_note(home)
    url = router or (note.router if note else None)
    if url is None:
        sys.stderr.write(
            f"baton: nothing was started from {home}: run `baton up`, or name a router with "
            "--router http://HOST:PORT, or its home with --home\n"
        )
        return NO_ROUTER
    token = _token(home, os.environ)
    try:
        report, serving = asyncio.run(_ask(url, token))
    except RouterAway as error:
        hint = _hint(error, note if router is None else None)
        sys.stderr.write(f"baton: no router at {url}: {error.message}. {hint}\n")
        return NO_ROUTER
    if as_json:
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    else:
        print_table(*render(url, report, serving=serving))
    return 0 if serving else NOT_SERVING


def _token(home: Path, env: Mapping[str, str]) -> str:
    if VALUE_ENV not in env and FILE_ENV not in env and not (home / FILE_NAME).exists():
        # Making one here would only get us refused.
        raise SettingsError(
            f"there is no cluster token in {home}: name the router's home with --home, or set "
            f"{VALUE_ENV} or {FILE_ENV}"
        )
    return cluster_token(home, env)


async def _ask(url: str, token: str) -> tuple[dict[str, Any], bool]:
    async with RouterClient.open(url, token) as client:
        report = await client.status()
        return report, await client.serving()


def _hint(error: RouterAway, note: RunNote | None) -> str:
    if error.refused:
        return (
            f"Use the token of the router's cluster: its home with --home, {VALUE_ENV} or "
            f"{FILE_ENV}"
        )
    if note is None:
        return "Check the address, and whether the router runs"
    try:
        os.kill(note.pid, 0)
    except ProcessLookupError:
        return (
            f"The `baton up` that started it (pid {note.pid}) is gone without a goodbye; "
            "start another with `baton up`"
        )
    except PermissionError:
        pass
    return (
        f"`baton up` (pid {note.pid}) may still be starting it; look into its logs if it stays so"
    )


def render(url: str, report: Mapping[str, Any], *, serving: bool) -> list[Table | str]:
    """The report for people; fields that another version does not have stay empty."""
    profile = _mapping(report.get("profile"))
    handoffs = _mapping(report.get("handoffs"))
    threshold = profile.get("threshold_tokens")
    about = f"{profile.get('name')} ({profile.get('mode')}, version {profile.get('version')}"
    about += f", threshold {threshold} tokens)" if threshold is not None else ")"
    states = Counter(str(_mapping(row).get("state")) for row in _list(report.get("processes")))
    open_now, stranded = (_list(handoffs.get(key)) for key in ("open", "stranded"))
    head = Table.grid(padding=(0, 2))
    for name, value in (
        ("router", f"{url}, version {report.get('version')}, store {report.get('store')}"),
        ("serving", "yes" if serving else "no: no ready worker can answer"),
        ("profile", about),
        ("in flight", str(report.get("in_flight"))),
        ("handoffs", f"{len(open_now)} open, {len(stranded)} stranded"),
        ("processes", ", ".join(f"{count} {state}" for state, count in sorted(states.items()))),
    ):
        if name == "processes" and not value:
            continue  # A router of one process says nothing of it.
        head.add_row(name, Text(value))
    parts: list[Table | str] = [head, ""]
    workers = [_mapping(worker) for worker in _list(report.get("workers"))]
    parts.append(_workers(workers) if workers else "no worker is registered")
    if open_now or stranded:
        parts += ["", _handoffs(open_now, stranded)]
    return parts


def _workers(workers: list[Mapping[str, Any]]) -> Table:
    table = Table(
        "worker", "role", "state", "model", "url", "running", "waiting", "KV", "legs", "breaker",
        "stranded", box=None, pad_edge=False,
    )  # fmt: skip
    for name in ("running", "waiting", "KV", "legs", "stranded"):
        next(column for column in table.columns if column.header == name).justify = "right"
    for worker in sorted(workers, key=lambda worker: str(_mapping(worker.get("record")).get("id"))):
        record = _mapping(worker.get("record"))
        load = _mapping(record.get("load"))
        marks = [mark for mark in ("suspect", "drained", "turning") if worker.get(mark)]
        if worker.get("cordoned") and not worker.get("drained"):
            marks.append("draining")
        state = str(record.get("state", "")) + (f" ({', '.join(marks)})" if marks else "")
        usage = load.get("kv_usage")
        table.add_row(
            *(
                Text(str(value))
                for value in (
                    record.get("id", ""),
                    _role(worker, record),
                    state,
                    record.get("model", ""),
                    record.get("url", ""),
                    load.get("running", ""),
                    load.get("waiting", ""),
                    f"{100 * usage:.0f} %" if isinstance(usage, int | float) else "",
                    worker.get("legs", ""),
                    worker.get("breaker", ""),
                    show_bytes(worker.get("stranded_bytes") or None),
                )
            )
        )
    return table


def _role(worker: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """What it was started for, and what it is used for where that is something else."""
    own, used = record.get("role", ""), worker.get("role")
    return f"{own} as {used}" if used and used != own else str(own)


def _handoffs(open_now: list[Any], stranded: list[Any]) -> Table:
    table = Table("handoff", "state", "from", "to", "KV bytes", "reason", box=None, pad_edge=False)
    table.columns[4].justify = "right"
    for kind, entries in (("", open_now), (" (stranded)", stranded)):
        for entry in map(_mapping, entries):
            fields = ("prefill", "decode", "kv_bytes", "reason")
            table.add_row(
                Text(str(entry.get("request_id", ""))),
                Text(f"{entry.get('state', '')}{kind}"),
                *(Text(_shown(entry.get(field))) for field in fields),
            )
    return table


def _shown(value: object) -> str:
    return "" if value is None else str(value)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
