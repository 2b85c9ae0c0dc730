"""``baton pairs`` and ``baton handoffs``: who hands over to whom, and what is on its way."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from baton.cli.admin import AdminClient, run_with_admin
from baton.cli.console import print_table, show_bytes, show_s

Row = Mapping[str, Any]


def run_pairs(admin: str | None, home: Path, *, as_json: bool) -> int:
    """Prints the pair matrix. Returns the exit status.

    Raises:
        SettingsError: no usable token.
    """
    return _show("/admin/pairs", admin, home, render_pairs, as_json=as_json)


def run_handoffs(admin: str | None, home: Path, *, as_json: bool) -> int:
    """Prints the handoffs. Returns the exit status.

    Raises:
        SettingsError: no usable token.
    """
    return _show("/admin/handoffs", admin, home, render_handoffs, as_json=as_json)


def _show(path: str, admin: str | None, home: Path, render: Any, *, as_json: bool) -> int:
    async def work(client: AdminClient) -> int:
        answer = await client.ask("GET", path)
        if as_json:
            sys.stdout.write(json.dumps(answer, indent=2) + "\n")
        else:
            print_table(*render(answer))
        return 0

    return run_with_admin(admin, home, work)


def render_pairs(answer: Row) -> list[Table | str]:
    """The pairs as a table, those that are not used first."""
    rows = _rows(answer.get("pairs"))
    if not rows:
        return ["no pairs: no prefill and decode workers are registered together"]
    rows.sort(key=lambda row: (row.get("state") == "ready", str(row.get("prefill"))))
    table = _table(rows, "prefill", "decode", "state", ">bandwidth", ">set-up", ">for", "reason")
    for row in rows:
        speed = show_bytes(row.get("bandwidth_bytes_per_s"))
        bound = "" if row.get("exact") else ">= "
        _add(
            table,
            row,
            row.get("prefill"),
            row.get("decode"),
            row.get("state"),
            f"{bound}{speed}/s" if speed else "",
            show_s(row.get("setup_s")),
            show_s(row.get("age_s")),
            row.get("reason"),
        )
    return [table]


def render_handoffs(answer: Row) -> list[Table | str]:
    """Handoffs in progress, then stranded ones, then the bytes per worker."""
    opened, stranded = _rows(answer.get("open")), _rows(answer.get("stranded"))
    held = answer.get("stranded_bytes")
    per_worker = held if isinstance(held, dict) else {}
    parts: list[Table | str] = [f"{len(opened)} open, {len(stranded)} stranded"]
    if opened or stranded:
        table = _table(
            [*opened, *stranded], "handoff", "state", "from", "to", ">tokens", ">KV", ">age",
            ">lease left", "reason",
        )  # fmt: skip
        for kind, rows in (("", opened), (" (stranded)", stranded)):
            for row in rows:
                _add(
                    table,
                    row,
                    row.get("request_id"),
                    f"{row.get('state', '')}{kind}",
                    row.get("prefill"),
                    row.get("decode"),
                    row.get("prompt_tokens"),
                    show_bytes(row.get("kv_bytes")),
                    show_s(row.get("age_s")),
                    show_s(row.get("lease_left_s")),
                    row.get("reason"),
                )
        parts += ["", table]
    for worker, count in sorted(per_worker.items()):
        parts.append(f"{worker} may hold {show_bytes(count)} for nobody")
    return parts


def _table(rows: Sequence[Row], *names: str) -> Table:
    """A table; ``>`` before a name means numbers. Rows of several processes get their column."""
    table = Table(box=None, pad_edge=False)
    for name in (*names, *(("process",) if any("process" in row for row in rows) else ())):
        table.add_column(name.removeprefix(">"), justify="right" if name[0] == ">" else "left")
    return table


def _add(table: Table, row: Row, *values: object) -> None:
    cells = (*values, row.get("process"))[: len(table.columns)]
    table.add_row(*(Text("" if value is None else str(value)) for value in cells))


def _rows(value: object) -> list[Row]:
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []
