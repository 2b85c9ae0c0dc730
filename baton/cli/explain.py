"""``baton explain``: what a router would do with a request, and why."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from baton.cli.admin import AdminClient, run_with_admin
from baton.cli.console import print_table, show_s
from baton.errors import SettingsError

_MAX_BYTES = 64 * 1024 * 1024
_ENDPOINTS = {
    "messages": "/v1/chat/completions",
    "prompt": "/v1/completions",
    "input": "/v1/responses",
}
"""By the field that only this endpoint of OpenAI's has among those that generate."""


def run_explain(
    file: str, endpoint: str | None, admin: str | None, home: Path, *, as_json: bool
) -> int:
    """Prints the explanation for a body. Returns the exit status.

    Raises:
        SettingsError: the file cannot be read, is no JSON object, or there is no usable token.
    """
    body = _read(file)
    params = {"endpoint": endpoint or _endpoint_of(body, file)}

    async def work(client: AdminClient) -> int:
        told = await client.ask("POST", "/admin/explain", params=params, body=body)
        if as_json:
            sys.stdout.write(json.dumps(told, indent=2) + "\n")
        else:
            print_table(*render(told))
        return 0

    return run_with_admin(admin, home, work)


def _read(file: str) -> bytes:
    try:
        if file == "-":
            body = sys.stdin.buffer.read(_MAX_BYTES + 1)
        else:
            with Path(file).open("rb") as opened:
                body = opened.read(_MAX_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"cannot read {file}: {error.strerror}") from error
    if len(body) > _MAX_BYTES:
        raise SettingsError(f"{file} has more than {_MAX_BYTES} bytes")
    return body


def _endpoint_of(body: bytes, file: str) -> str:
    try:
        fields = json.loads(body)
    except ValueError as error:
        raise SettingsError(f"{file} is no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise SettingsError(f"{file} is no JSON object, as the body of a request is")
    for field, endpoint in _ENDPOINTS.items():
        if field in fields:
            return endpoint
    raise SettingsError(
        f"{file} has neither messages nor prompt nor input: say with --endpoint what it is for"
    )


def render(told: Mapping[str, Any]) -> list[Table | str]:
    """The decision, then the workers."""
    head = Table.grid(padding=(0, 2))
    for name, value in _facts(told):
        if value:
            head.add_row(name, Text(value))
    workers = told.get("workers")
    rows = [row for row in workers if isinstance(row, dict)] if isinstance(workers, list) else []
    return [head, "", _workers(rows) if rows else "no worker is registered"]


def _facts(told: Mapping[str, Any]) -> list[tuple[str, str]]:
    model, profile = _mapping(told.get("model")), _mapping(told.get("profile"))
    prefill, decode = str(told.get("prefill") or ""), str(told.get("decode") or "")
    adapter = f", adapter {model['adapter']}" if model.get("adapter") else ""
    uncached = told.get("uncached_tokens")
    tokens = str(told.get("prompt_tokens") or "not counted")
    threshold = told.get("threshold_tokens")
    decider = str(told.get("decider") or "")
    predicted = _mapping(told.get("predicted"))
    return [
        ("path", f"{told.get('path')}, because {told.get('reason')}"),
        ("workers", f"{prefill} hands over to {decode}" if prefill else decode),
        ("model", f"{model.get('base', '')}{adapter}"),
        ("tokens", tokens + ("" if uncached is None else f", {uncached} of them not cached")),
        (
            "decider",
            decider + (f" (threshold {threshold} tokens)" if decider and threshold else ""),
        ),
        ("local", _predicted(told.get("predicted_local_s"), predicted, "local_")),
        ("handoff", _predicted(told.get("predicted_remote_s"), predicted, "remote_")),
        ("no handoff", str(told.get("why_no_handoff") or "")),
        ("profile", f"{profile.get('name', '')}, version {profile.get('version', '')}"),
        ("process", str(told.get("process") or "")),
    ]


def _predicted(total_s: object, parts: Mapping[str, Any], prefix: str) -> str:
    """``0.25 s to the first token (queue 0.10 s, prefill 0.15 s)``; empty if unknown."""
    if not isinstance(total_s, int | float):
        return ""
    known = [
        f"{name.removeprefix(prefix).removesuffix('_s')} {show_s(value)}"
        for name, value in parts.items()
        if name.startswith(prefix) and isinstance(value, int | float)
    ]
    return f"{show_s(total_s)} to the first token" + (f" ({', '.join(known)})" if known else "")


def _workers(rows: Sequence[Mapping[str, Any]]) -> Table:
    names = sorted({name for row in rows for name in _mapping(row.get("scores"))})
    table = Table("worker", "role", "for", "candidate", "failed", box=None, pad_edge=False)
    for name in (*names, "total", "cached", "in flight"):
        table.add_column(name, justify="right")
    for row in rows:
        failed = row.get("failed")
        scores = _mapping(row.get("scores"))
        table.add_row(
            *(
                Text(cell)
                for cell in (
                    str(row.get("worker", "")),
                    str(row.get("role", "")),
                    str(row.get("seat", "")),
                    "yes" if row.get("candidate") else "no",
                    ", ".join(map(str, failed)) if isinstance(failed, list) else "",
                    *(_number(scores.get(name)) for name in names),
                    _number(row.get("total")),
                    str(row.get("cached_tokens", "")),
                    str(row.get("in_flight", "")),
                )
            )
        )
    return table


def _number(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, int | float) else ""


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
