"""A fault, what the client saw of it, and what must be true once it is over.

Every fault test ends in the same question: is nothing left behind? This module asks it, and keeps
a row for the table that is printed when the run ends (and stands in the docs).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import httpx

from tests.e2e.stack import Stack

KV_USAGE = "vllm:kv_cache_usage_perc"

_rows: list[Row] = []


@dataclass
class Row:
    """One line of the table.

    Attributes:
        case: what was done to whom.
        saw: what the client saw.
        took_s: how long that took.
        settled: what was back to normal, and how many seconds after the client was done.
    """

    case: str
    saw: str = "?"
    took_s: float = 0.0
    settled: dict[str, float] = field(default_factory=dict)
    _done_s: float = field(default_factory=time.monotonic)

    @contextlib.contextmanager
    def client(self) -> Iterator[None]:
        """Times the client's part."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._done_s = time.monotonic()
            self.took_s = self._done_s - began

    def settle(
        self, stack: Stack, engines: Sequence[str], *, router: str = "router", timeout_s: float = 90
    ) -> None:
        """Waits until the router has no handoff open or stranded and all breakers are closed, and
        the engines named hold no KV; notes when each came to be."""
        waiting = {"ledger", "breakers", *engines}
        while True:
            for what in sorted(waiting):
                if _is_settled(stack, what, router):
                    waiting.discard(what)
                    self.settled[what] = time.monotonic() - self._done_s
            if not waiting:
                break
            if time.monotonic() - self._done_s > timeout_s:
                raise AssertionError(
                    f"not within {timeout_s:g} s: {waiting}; {stack.admin('handoffs', router)}"
                )
            time.sleep(0.05)
        _rows.append(self)


def _is_settled(stack: Stack, what: str, router: str) -> bool:
    if what == "ledger":
        told = stack.admin("handoffs", router)
        return (
            not told["open"] and not told["stranded"] and not any(told["stranded_bytes"].values())
        )
    if what == "breakers":
        workers = stack.admin("workers", router)["workers"]
        return all(worker["breaker"] == "closed" for worker in workers)
    # An engine that is not there, or does not answer, holds who knows what.
    with contextlib.suppress(httpx.HTTPError):
        return stack.engine_metric(what, KV_USAGE) == 0
    return False


def table() -> str:
    """All rows so far, as Markdown; empty if there are none."""
    if not _rows:
        return ""
    lines = [
        "| case | client saw | s | nothing stranded after, s | prefill's KV free after, s | "
        "breakers closed after, s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in _rows:
        free = row.settled.get("prefill")
        lines.append(
            f"| {row.case} | {row.saw} | {row.took_s:.1f} | {row.settled['ledger']:.1f} | "
            f"{'-' if free is None else f'{free:.1f}'} | {row.settled['breakers']:.1f} |"
        )
    return "\n".join(lines)
