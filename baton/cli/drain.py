"""``baton drain``: takes a worker out of traffic, and waits until it is free."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from baton.cli.admin import NOT_DONE, AdminClient, run_with_admin, worker_path
from baton.cli.console import show_bytes
from baton.errors import SettingsError

_POLL_S = 0.5


def run_drain(
    worker: str,
    admin: str | None,
    home: Path,
    *,
    wait_s: float | None,
    undo: bool,
    as_json: bool,
) -> int:
    """Drains a worker, or takes that back. Returns the exit status.

    Args:
        worker: its id.
        admin: URL of the admin API, or None for the one that was started from here.
        home: Baton's folder.
        wait_s: how long to wait until it is free; None for not at all.
        undo: take the drain back.
        as_json: print the last state as JSON instead of words.

    Raises:
        SettingsError: undo and wait together, or no usable token.
    """
    if undo and wait_s is not None:
        raise SettingsError("--undo has nothing to wait for: leave --wait out")

    async def work(client: AdminClient) -> int:
        path = worker_path(worker, "drain")
        state = await client.ask("DELETE" if undo else "POST", path)
        status = 0
        if wait_s is not None:
            state, status = await _wait(client, path, state, wait_s)
        if as_json:
            sys.stdout.write(json.dumps(state, indent=2) + "\n")
        else:
            sys.stdout.write(f"{worker} {_told(state, undone=undo)}\n")
        return status

    return run_with_admin(admin, home, work)


async def _wait(
    client: AdminClient, path: str, state: dict[str, Any], wait_s: float
) -> tuple[dict[str, Any], int]:
    """The last state, and the exit status; progress goes to stderr."""
    loop = asyncio.get_running_loop()
    ends_s = loop.time() + wait_s
    said = ""
    while not _is_over(state):
        if loop.time() >= ends_s:
            sys.stderr.write(f"baton: not free after {wait_s:g} s; the drain goes on\n")
            return state, NOT_DONE
        if (now := f"waiting for {_left(state)}") != said:
            sys.stderr.write(f"{now}\n")
            said = now
        await asyncio.sleep(_POLL_S)
        state = await client.ask("GET", path)
    if state.get("registered") and not state.get("cordoned"):
        sys.stderr.write("baton: somebody took the drain back\n")
        return state, NOT_DONE
    return state, 0


def _is_over(state: dict[str, Any]) -> bool:
    """Whether there is nothing to wait for: it is free, has left, or takes requests again."""
    return not state.get("registered") or not state.get("cordoned") or bool(state.get("drained"))


def _left(state: dict[str, Any]) -> str:
    legs, held = state.get("legs") or 0, state.get("stranded_bytes") or 0
    parts = [f"{legs} request{'' if legs == 1 else 's'}"] if legs else []
    if held:
        parts.append(f"{show_bytes(held)} of KV that nobody pulled yet")
    return " and ".join(parts) or "what the worker itself reports as running"


def _told(state: dict[str, Any], *, undone: bool) -> str:
    if undone:
        return "takes requests again"
    if not state.get("registered"):
        return "has left"
    if state.get("drained"):
        return "is drained: it can be stopped"
    if not state.get("cordoned"):
        return "takes requests again"
    return f"gets nothing new; it still has {_left(state)}"
