"""The result as tables in a terminal.

Whatever a router printed or answered is shown as plain text, never as rich's markup.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.router.records import Cell, Report, Row, Spread, Verdict

_DASH = "-"


def show(report: Report, console: Console) -> None:
    """Prints rows, ratios, the project's targets, and what went wrong."""
    machine = report.machine
    console.print(
        Text(
            f"{report.began}  {machine.get('cores')} cores, {machine.get('cpu')}  "
            + "  ".join(
                f"{name} {version}" for name, version in report.versions.items() if version
            ),
            "dim",
        )
    )
    if not report.client_first:
        console.print(Text("The client could not run first (CAP_SYS_NICE): it lags.", "yellow"))
    for stream in (False, True):
        rows = [row for row in report.rows if row.cell.stream == stream]
        if rows:
            console.print()
            console.print(_rows(rows, stream=stream))
    if report.ratios:
        console.print()
        console.print(_ratios(report))
    console.print()
    console.print(_verdicts(report.verdicts))
    for problem in report.problems:
        console.print(Text(f"not measured: {problem}", "red"))


def _table(title: str, left: Sequence[str], right: Sequence[str], *last: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="dim")
    for name in left:
        table.add_column(name, no_wrap=True)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    for name in last:
        table.add_column(name, overflow="fold")
    return table


def _rows(rows: Sequence[Row], *, stream: bool) -> Table:
    if stream:
        title = "Streams: per chunk (CPU ms per 1,000 is the same number)"
        late: tuple[str, ...] = ("late p50 ms", "late p99 ms", "first chunk ms", "chunks/s")
    else:
        title = "Whole answers: per request"
        late = ("p50 ms", "p99 ms", "requests/s")
    right = ("CPU us", "rounds", *late, "client us", "workers us")
    table = _table(title, ("", "target"), right, "notes")
    before: Cell | None = None
    for row in sorted(rows, key=lambda row: (row.cell.mode != "plain", row.cell.concurrency)):
        first = [] if row.first_event_ms is None else [f"{row.first_event_ms:.2f}"]
        table.add_row(
            row.cell.name if row.cell != before else "",
            row.target,
            _DASH if row.cpu_us is None else f"{row.cpu_us.value:.1f}",
            _DASH if row.cpu_us is None else _range(row.cpu_us, 1),
            f"{row.p50_ms:.2f}",
            f"{row.p99_ms:.2f}",
            *first,
            f"{row.per_s:,.0f}",
            f"{row.client_us:.0f}",
            f"{row.workers_us:.0f}",
            Text("; ".join(row.notes), "yellow"),
        )
        before = row.cell
    return table


def _ratios(report: Report) -> Table:
    table = _table("CPU of ours by that of a peer", ("", "by"), ("ratio", "rounds"))
    before: Cell | None = None
    for each in report.ratios:
        table.add_row(
            each.cell.name if each.cell != before else "",
            each.peer,
            f"{each.ratio.value:.2f}",
            _range(each.ratio, 2),
        )
        before = each.cell
    return table


def _verdicts(verdicts: Sequence[Verdict]) -> Table:
    table = _table("Targets", ("",), ("at most", "reached", "rounds", "met"), "")
    for verdict in verdicts:
        reached = verdict.reached
        style = {True: "green", False: "red", None: "dim"}[verdict.met]
        table.add_row(
            verdict.what,
            f"{verdict.limit:g} {verdict.unit}".strip(),
            _DASH if reached is None else f"{reached.value:.2f}",
            _DASH if reached is None else _range(reached, 2),
            Text({True: "yes", False: "no", None: "not measured"}[verdict.met], style),
            Text(verdict.remark, "yellow"),
        )
    return table


def _range(spread: Spread, digits: int) -> str:
    return f"{spread.low:.{digits}f}..{spread.high:.{digits}f}"
