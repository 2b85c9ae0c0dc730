"""``python -m benchmarks.router [TARGET...]``: see the package.

Ends with 0 when everything asked for was measured, whatever the figures are; with 1 when something
was not; with 2 when nothing could be.
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from baton.errors import BatonError, SettingsError
from benchmarks.history import environment
from benchmarks.load.loops import new_loop
from benchmarks.router.figures import OURS, make_ratios, make_rows, make_verdicts
from benchmarks.router.ours import THRESHOLD_TOKENS
from benchmarks.router.records import Mode, Report
from benchmarks.router.run import Outcome, Plan, measure
from benchmarks.router.show import show
from benchmarks.router.targets import NAMES, PEERS, Choices, find, version
from benchmarks.whole import write_json

_PAGE_COLUMNS = 150
_QUICK: dict[str, Any] = {
    "rounds": 1,
    "block_s": 0.4,
    "warm_s": 0.1,
    "concurrencies": (1, 16),
    "streams": (4,),
}
_SHORTEST_PROMPT_BYTES = 16 * THRESHOLD_TOKENS
"""No word of a prompt is longer than 16 bytes with its blank, so this is over the threshold."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints, and writes the JSON file if one is named."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    console = Console()
    if not console.is_terminal:
        # A file or a pipe has no width; the tables have one that they need.
        console = Console(width=_PAGE_COLUMNS)
    try:
        plan, options = make_plan(arguments)
        for name in plan.targets:
            if name in PEERS:
                find(name, plan.choices)
    except BatonError as error:
        sys.stderr.write(f"{error.message}\n")
        return 2
    began_s, began = time.monotonic(), datetime.now(UTC)

    def say(line: str) -> None:
        at_s = time.monotonic() - began_s
        sys.stderr.write(f"{at_s:5.0f} s  {line}\n")

    outcome, interrupted = Outcome(), False
    with tempfile.TemporaryDirectory(prefix="baton-router-bench-") as scratch:
        try:
            with asyncio.Runner(loop_factory=new_loop) as runner:
                runner.run(measure(plan, Path(scratch), say, outcome))
        except BatonError as error:
            outcome.problems.append(error.message)
        except KeyboardInterrupt:
            interrupted = True
            outcome.problems.append("interrupted")
    report = make_report(plan, outcome, began, arguments)
    report.took_s = round(time.monotonic() - began_s, 1)
    show(report, console)
    if options.json is not None:
        write_json(options.json, report)
    if interrupted:
        return 130
    return 1 if outcome.problems else 0


def make_plan(arguments: Sequence[str]) -> tuple[Plan, argparse.Namespace]:
    """The plan that a command line asks for, and all its options.

    Raises:
        SettingsError: it cannot be carried out.
    """
    options = _parser().parse_args(arguments)
    unknown = [name for name in options.targets if name not in NAMES]
    if unknown:
        raise SettingsError(f"{unknown[0]!r} is none of {', '.join(NAMES)}")
    choices = Choices(
        paths={name: Path(path) for name, path in (_pair(text) for text in options.path)},
        folders=tuple(options.peer_bin),
        extra={
            name: [value for other, value in map(_pair, options.arg) if other == name]
            for name, _ in map(_pair, options.arg)
        },
    )
    if options.prompt_bytes < _SHORTEST_PROMPT_BYTES:
        raise SettingsError(f"--prompt-bytes must be at least {_SHORTEST_PROMPT_BYTES}")
    settings: dict[str, Any] = {
        "rounds": options.rounds,
        "block_s": options.block,
        "warm_s": options.warm,
        "concurrencies": options.concurrency and tuple(options.concurrency),
        "streams": options.streams and tuple(count for count in options.streams if count),
    }
    given = {name: value for name, value in settings.items() if value is not None}
    plan = Plan(
        targets=tuple(dict.fromkeys(options.targets or ("direct", OURS))),
        modes=tuple(dict.fromkeys(Mode(mode) for mode in options.mode)) or tuple(Mode),
        prompt_bytes=options.prompt_bytes,
        answer_tokens=options.answer_tokens,
        workers=options.workers,
        long_token=options.long_token,
        choices=choices,
        **((_QUICK if options.quick else {}) | given),
    )
    return plan, options


def make_report(plan: Plan, outcome: Outcome, began: datetime, arguments: Sequence[str]) -> Report:
    """The report of what was measured."""
    here = environment()
    versions = {name: here.versions[name] for name in ("baton", "python", "uvloop")}
    peers = [name for name in plan.targets if name in PEERS]
    rows, ratios = make_rows(outcome.blocks, outcome.samples), make_ratios(outcome.blocks)
    return Report(
        began=began.isoformat(timespec="seconds"),
        command=shlex.join(["python", "-m", "benchmarks.router", *arguments]),
        settings={
            name: getattr(plan, name)
            for name in (
                "targets",
                "modes",
                "concurrencies",
                "streams",
                "rounds",
                "block_s",
                "warm_s",
                "prompt_bytes",
                "answer_tokens",
                "workers",
                "long_token",
            )
        },
        machine=here.machine,
        versions=versions | {name: version(name, find(name, plan.choices)) for name in peers},
        commit=here.commit,
        dirty=here.dirty,
        commands=outcome.commands,
        client_first=outcome.client_first,
        rows=rows,
        ratios=ratios,
        verdicts=make_verdicts(rows, ratios, outcome.blocks),
        problems=outcome.problems,
        blocks=outcome.blocks,
    )


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or name not in NAMES or not value:
        raise SettingsError(f"{text!r} is not TARGET=VALUE with one of {', '.join(NAMES)}")
    return name, value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.router",
        description="CPU and latency of routers, side by side, in front of mock workers.",
    )
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET", help=f"{', '.join(NAMES)}; default: direct {OURS}"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--quick", action="store_true", help="one short round, for CI")
    parser.add_argument("--rounds", type=_positive, help="default 3")
    parser.add_argument("--block", type=float, metavar="S", help="seconds per block, default 1.6")
    parser.add_argument("--warm", type=float, metavar="S", help="warm-up before each, default 0.3")
    parser.add_argument("--concurrency", type=_positive, nargs="+", help="default 1 16 64")
    parser.add_argument(
        "--streams", type=_count, nargs="+", help="streams at a time, default 16 64; 0 for none"
    )
    parser.add_argument("--mode", nargs="+", choices=[m.value for m in Mode], default=[])
    parser.add_argument("--prompt-bytes", type=_positive, default=1500)
    parser.add_argument("--answer-tokens", type=_positive, default=16)
    parser.add_argument("--workers", type=_positive, default=1, help="mock workers per role")
    parser.add_argument(
        "--long-token",
        action="store_true",
        help="a tokenizer with a token of 128 bytes: routers that count have to tokenize",
    )
    parser.add_argument("--peer-bin", type=Path, action="append", default=[], metavar="DIR")
    parser.add_argument(
        "--path",
        action="append",
        default=[],
        metavar="TARGET=FILE",
        help="its executable; of baton a Python, or a checkout",
    )
    parser.add_argument(
        "--arg", action="append", default=[], metavar="TARGET=ARG", help="one more argument for it"
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
