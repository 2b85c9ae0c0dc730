"""``python -m benchmarks.registry``: see the package.

Ends with 0 when everything asked for was measured, with 1 when something was not, with 2 when
nothing could be.
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from baton.errors import BatonError
from baton.store import MAX_ROUTERS, MAX_WORKERS
from benchmarks.history import environment
from benchmarks.load.loops import new_loop
from benchmarks.registry.records import Cell, Report
from benchmarks.registry.run import Plan, measure
from benchmarks.registry.server import find_server
from benchmarks.registry.show import show
from benchmarks.whole import write_json

_PAGE_COLUMNS = 120


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints, and writes the JSON file if one is named."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(arguments)
    console = Console()
    if not console.is_terminal:
        # A file or a pipe has no width; the tables have one that they need.
        console = Console(width=_PAGE_COLUMNS)
    try:
        plan = Plan(options.workers, options.routers, options.seconds, find_server(options.server))
    except BatonError as error:
        sys.stderr.write(f"{error.message}\n")
        return 2
    began, began_s = datetime.now(UTC), time.monotonic()

    def say(line: str) -> None:
        sys.stderr.write(f"{time.monotonic() - began_s:5.0f} s  {line}\n")

    cells: list[Cell] = []
    problems: list[str] = []
    with asyncio.Runner(loop_factory=new_loop) as runner:
        version = runner.run(measure(plan, say, cells, problems))
    here = environment()
    report = Report(
        began=began.isoformat(timespec="seconds"),
        command=shlex.join(["python", "-m", "benchmarks.registry", *arguments]),
        redis=version,
        machine=here.machine,
        versions={name: here.versions[name] for name in ("baton", "python", "uvloop")},
        commit=here.commit,
        cells=cells,
        problems=problems,
    )
    show(report, console)
    if options.json is not None:
        write_json(options.json, report)
    return 1 if problems else 0


def _counts(most: int) -> Callable[[str], list[int]]:
    def parse(text: str) -> list[int]:
        counts = [int(part) for part in text.split(",")]
        if not all(0 < count <= most for count in counts):
            raise argparse.ArgumentTypeError(f"numbers from 1 to {most}, with commas between")
        return sorted(set(counts))

    return parse


def _seconds(text: str) -> float:
    value = float(text)
    if not 1 <= value <= 600:
        raise argparse.ArgumentTypeError("must be 1 to 600")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.registry",
        description="CPU, commands and bytes of routers that follow a registry in Redis.",
    )
    parser.add_argument(
        "--workers", type=_counts(MAX_WORKERS), default=[10, 100, 1000], metavar="N,..."
    )
    parser.add_argument("--routers", type=_counts(MAX_ROUTERS), default=[1, 2], metavar="N,...")
    parser.add_argument("--seconds", type=_seconds, default=5.0, help="of each measurement")
    parser.add_argument("--server", type=Path, metavar="FILE", help="a redis-server")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
