"""The result as tables in a terminal."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.registry.records import Cell, Report

_FIGURES: tuple[tuple[str, Callable[[Cell], float | None]], ...] = (
    ("CPU of a router", lambda cell: cell.router_cpu_ms),
    ("CPU of Redis", lambda cell: cell.redis_cpu_ms),
    ("scripts", lambda cell: cell.calls),
    ("bytes sent by Redis", lambda cell: cell.sent_bytes),
)


def show(report: Report, console: Console) -> None:
    """Prints the cells, what a router adds, how figures grow, and what went wrong."""
    console.print(
        Text(
            f"{report.began}  {report.machine.get('cores')} cores, {report.machine.get('cpu')}  "
            f"redis {report.redis}",
            "dim",
        )
    )
    console.print(_cells(report.cells))
    console.print()
    console.print(_added(report.cells))
    console.print()
    console.print(_growth(report.cells))
    for problem in report.problems:
        console.print(Text(f"not measured: {problem}", "red"))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="dim")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _cells(cells: Sequence[Cell]) -> Table:
    table = _table(
        "Per second",
        "workers",
        "routers",
        "router CPU ms",
        "redis CPU ms",
        "scripts",
        "commands",
        "sent KB",
        "received KB",
        "look ms",
        "compile ms",
        "took ms",
    )
    for cell in cells:
        table.add_row(
            str(cell.workers),
            str(cell.routers),
            _number(cell.router_cpu_ms, 1),
            _number(cell.redis_cpu_ms, 1),
            _number(cell.calls, 0),
            _number(cell.commands, 0),
            _number(cell.sent_bytes / 1e3, 1),
            _number(cell.received_bytes / 1e3, 1),
            _number(cell.look_ms, 2),
            _number(cell.compile_ms, 2),
            _number(cell.took_ms, 2),
        )
    return table


def _added(cells: Sequence[Cell]) -> Table:
    """What one router adds to what the workers' beats cost, on average over the routers."""
    table = _table(
        "Each router adds, per second",
        *("workers", "routers", "redis CPU ms", "scripts", "commands", "sent KB", "received KB"),
    )
    alone = {cell.workers: cell for cell in cells if cell.routers == 0}
    for cell in cells:
        base = alone.get(cell.workers)
        if cell.routers == 0 or base is None:
            continue
        more = (
            (cell.redis_cpu_ms - base.redis_cpu_ms, 1),
            (cell.calls - base.calls, 1),
            (cell.commands - base.commands, 0),
            ((cell.sent_bytes - base.sent_bytes) / 1e3, 1),
            ((cell.received_bytes - base.received_bytes) / 1e3, 1),
        )
        figures = [_number(value / cell.routers, digits) for value, digits in more]
        table.add_row(str(cell.workers), str(cell.routers), *figures)
    return table


def _growth(cells: Sequence[Cell]) -> Table:
    """How many times more, from one size to the next of either kind."""
    table = _table("Growth", "from", "to", *(name for name, _ in _FIGURES))
    for before in cells:
        for after in cells:
            sizes = sorted({cell.workers for cell in cells if cell.routers == before.routers})
            crews = sorted({cell.routers for cell in cells if cell.workers == before.workers})
            wider = before.routers == after.routers and _next(sizes, before.workers, after.workers)
            more = before.workers == after.workers and _next(crews, before.routers, after.routers)
            if before.routers and (wider or more):
                table.add_row(
                    _name(before), _name(after), *(_times(of, before, after) for _, of in _FIGURES)
                )
    return table


def _next(steps: Sequence[int], before: int, after: int) -> bool:
    return (before, after) in itertools.pairwise(steps)


def _name(cell: Cell) -> str:
    return f"{cell.workers} x {cell.routers}"


def _times(of: Callable[[Cell], float | None], before: Cell, after: Cell) -> str:
    less, more = of(before), of(after)
    return "-" if not less or more is None else f"x {more / less:.1f}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"
