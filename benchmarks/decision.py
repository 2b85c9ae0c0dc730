"""What a routing decision costs: ``python -m benchmarks.decision``.

The router's policy is pure, so it is measured alone: no network, no engines, no other thread. Half
of the workers prefill, half decode. All that can cost time is on: decider ``cost`` with a history
for every worker, all scorers, a session, adapters loaded, legs on every worker, prompts in prefill,
budgets and queue limits, some bad pairs, and prompts of 8,192 tokens whose prefixes many workers
share to different depths.

Times are CPU times of the thread, since a busy machine would otherwise be measured instead of the
policy; the 99th percentile of elapsed time stands beside them. Even so a busy machine shows in the
tail (caches are cold after another process had the core), so the process asks to run first where
it may, and a yardstick is measured between decisions: a fixed piece of Python whose own tail says
how much of the tail is the machine's. Sizes take turns, so that a slow moment hits all of them. The
garbage collector runs, with what lives long frozen before, as in the router.
"""

from __future__ import annotations

import argparse
import gc
import math
import platform
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from baton.types import (
    Adapter,
    EngineId,
    KvGeometry,
    Limits,
    Load,
    Role,
    WorkerId,
    WorkerRecord,
    WorkerState,
)
from benchmarks.load.priority import first_in_line
from benchmarks.whole import write_json
from router.policy import (
    Ask,
    Estimates,
    Handoff,
    Local,
    PairBook,
    PairView,
    PrefixIndex,
    RoutingRules,
    Slots,
    Snapshot,
    TokenBounds,
    Traffic,
    compile_fleet,
    plan,
)

TARGETS_US = {16: 100.0, 1000: 1000.0}
"""Workers to the 99th percentile of ``plan`` that we want to stay below."""

_SHARED = (0.25, 0.5, 0.75)
"""Depths, as shares of a prompt, at which prompts of one family part."""
_FAMILIES = 8
_BAD_PAIRS = 0.02
_SESSIONS = 500
_NOW_S = 100.0
_WARM_UP = 200
_YARDSTICK = range(2000)


class Figure(msgspec.Struct, frozen=True):
    """Times of one operation, in microseconds."""

    p50_us: float
    p99_us: float
    elapsed_p99_us: float


class Row(msgspec.Struct, frozen=True):
    """One fleet.

    Attributes:
        workers: its size.
        plan: one decision.
        match: finding out who has the prompt's prefix, before it.
        record: taking down where the prompt went, after it.
        compile_ms: arranging the workers, once per look at the registry; median.
        handed_over: share of the decisions that were handoffs.
        target_us: for the 99th percentile of ``plan``; None where there is none.
    """

    workers: int
    plan: Figure
    match: Figure
    record: Figure
    compile_ms: float
    handed_over: float
    target_us: float | None

    @property
    def met(self) -> bool | None:
        """Whether the target was met."""
        return None if self.target_us is None else self.plan.p99_us < self.target_us


class Result(msgspec.Struct, frozen=True):
    """A run of the benchmark.

    Attributes:
        date: UTC.
        python: version.
        machine: processor architecture.
        seed: of workers, prompts and lots.
        decisions: per fleet.
        prompt_tokens: of every prompt.
        block_tokens: per hash of a prefix chain.
        observe_us: taking down one measured duration; median.
        growth: the power of the number of workers with which the median of ``plan`` grows.
        first_in_line: whether the process ran before others.
        yardstick: a fixed piece of Python, measured between decisions.
        rows: by size.
    """

    date: str
    python: str
    machine: str
    seed: int
    decisions: int
    prompt_tokens: int
    block_tokens: int
    observe_us: float
    growth: float | None
    first_in_line: bool
    yardstick: Figure
    rows: list[Row]


@dataclass
class Times:
    """Samples of one operation, in nanoseconds: of the thread's CPU, and elapsed."""

    cpu: list[int] = field(default_factory=list)
    elapsed: list[int] = field(default_factory=list)

    def take(self, cpu: int, elapsed: int) -> None:
        """One more."""
        self.cpu.append(time.thread_time_ns() - cpu)
        self.elapsed.append(time.perf_counter_ns() - elapsed)

    def figure(self) -> Figure:
        """Percentiles."""
        return Figure(
            percentile(self.cpu, 0.5) / 1e3,
            percentile(self.cpu, 0.99) / 1e3,
            percentile(self.elapsed, 0.99) / 1e3,
        )


def percentile(samples: Sequence[float], share: float) -> float:
    """The smallest sample that at least ``share`` of all samples do not exceed."""
    return sorted(samples)[max(0, math.ceil(len(samples) * share) - 1)]


def growth(rows: Sequence[Row]) -> float | None:
    """The exponent between the smallest and the largest fleet; None for fewer than two sizes."""
    first, last = min(rows, key=lambda r: r.workers), max(rows, key=lambda r: r.workers)
    if first.workers == last.workers:
        return None
    return math.log(last.plan.p50_us / first.plan.p50_us) / math.log(last.workers / first.workers)


class Scene:
    """A fleet with everything on, and prompts for it."""

    def __init__(self, workers: int, prompt_tokens: int, block_tokens: int, seed: int) -> None:
        self.workers = workers
        self._rng = random.Random(seed)  # noqa: S311 (figures, not secrets)
        self._tokens = prompt_tokens
        self._block_tokens = block_tokens
        self._blocks = prompt_tokens // block_tokens
        self._families = [self._hashes(self._blocks) for _ in range(_FAMILIES)]
        self._rules = RoutingRules(
            decider="cost", threshold_tokens=2048, decode_prefill_tokens=32_768,
            max_prefill_queue=64,
        )  # fmt: skip
        self._records = [self._record(n) for n in range(workers)]
        self._slots = Slots()
        self._index = PrefixIndex(self._slots, max_worker_entries=4 * self._blocks)
        self._pairs = PairBook(self._slots)
        self._estimates = Estimates()
        self._traffic = Traffic(compile_fleet(self._records, self._rules, self._slots))
        self._fill()
        self.plans, self.matches, self.records = Times(), Times(), Times()
        self.yardstick = Times()
        self.compiles: list[int] = []
        self.handed_over = self.decided = 0

    def decide(self, times: int) -> None:
        """Decisions one after the other, each with its match before and its record after."""
        clock, cpu = time.perf_counter_ns, time.thread_time_ns
        for _ in range(times):
            chain = self._chain()
            ask = Ask(
                "bench", TokenBounds(self._tokens, self._tokens), 256,
                session=f"session-{self._rng.randrange(_SESSIONS)}",
            )  # fmt: skip
            began = cpu(), clock()
            match = self._index.match(chain, self._block_tokens)
            self.matches.take(*began)
            began = cpu(), clock()
            snapshot = Snapshot(self._traffic, (), self._pairs, match, self._estimates, {}, _NOW_S)
            choice = plan(ask, snapshot, self._rng)
            self.plans.take(*began)
            match choice:
                case Handoff():
                    worker = choice.prefill.id
                    self.handed_over += 1
                case Local():
                    worker = choice.worker.id
                case _:
                    raise AssertionError("a fleet of ready workers refused")
            self.decided += 1
            began = cpu(), clock()
            self._index.record(worker, chain)
            self.records.take(*began)
            began = cpu(), clock()
            sum(_YARDSTICK)
            self.yardstick.take(*began)

    def compile(self) -> None:
        """One look at the registry: the same workers, arranged anew."""
        began = time.thread_time_ns()
        self._traffic.refresh(compile_fleet(self._records, self._rules, self._slots))
        self.compiles.append(time.thread_time_ns() - began)

    def forget_times(self) -> None:
        """What was measured so far was warming up."""
        self.plans, self.matches, self.records = Times(), Times(), Times()
        self.yardstick = Times()
        self.compiles.clear()
        self.handed_over = self.decided = 0

    def row(self) -> Row:
        """The figures."""
        return Row(
            self.workers,
            self.plans.figure(),
            self.matches.figure(),
            self.records.figure(),
            percentile(self.compiles, 0.5) / 1e6,
            self.handed_over / max(1, self.decided),
            TARGETS_US.get(self.workers),
        )

    def _hashes(self, count: int) -> list[int]:
        return [self._rng.getrandbits(62) for _ in range(count)]

    def _chain(self) -> list[int]:
        """A prompt that shares its beginning with others of its family, to one of the depths."""
        shared = int(self._blocks * self._rng.choice((0.0, *_SHARED)))
        family = self._rng.choice(self._families)
        return family[:shared] + self._hashes(self._blocks - shared)

    def _record(self, n: int) -> WorkerRecord:
        rng = self._rng
        return WorkerRecord(
            id=WorkerId(f"worker-{n:04d}"),
            role=Role.PREFILL if n % 2 else Role.DECODE,
            url=f"http://10.0.{n // 250}.{n % 250}:8000",
            state=WorkerState.READY,
            model="bench",
            model_digest="sha256:bench",
            engine_id=EngineId(f"engine-{n}"),
            geometry=KvGeometry(32, 8, 128, "bfloat16", 16, 131_072),
            limits=Limits(32_768, 128),
            accelerator="bench",
            node=f"node-{n // 8}",
            profile="bench",
            profile_version="1",
            started_s=0.0,
            heartbeat_s=0.0,
            load=Load(rng.randrange(100), rng.randrange(4), rng.random()),
            adapters=tuple(Adapter(f"adapter-{a}", "sha256:a") for a in range(rng.randrange(3))),
            engine_version="1",
        )

    def _fill(self) -> None:
        rng, records = self._rng, self._records
        prefills, decodes = records[1::2], records[::2]
        for record in records:
            self._index.record(record.id, self._chain())
            self._traffic.counts.leg(record.id, rng.randrange(1, 120))
            # Decode workers prefill now and then, prefill workers all the time.
            if record.role is Role.PREFILL or rng.random() < 0.2:
                self._traffic.counts.prefill(record.id, rng.randrange(1, 40_000))
            for n in range(12):
                tokens = rng.randrange(100, 10_000)
                per_token_s = 1e-4 if record.role is Role.PREFILL else 2e-4
                seconds = (0.01 + per_token_s * tokens) * rng.uniform(0.9, 1.1)
                self._estimates.observe_prefill(record, tokens, seconds, n)
        for decode in decodes:
            for prefill in rng.sample(prefills, min(4, len(prefills))):
                good = rng.random() >= _BAD_PAIRS
                self._pairs.put(prefill.id, decode.id, PairView(good, "", 2e10))
                for n in range(10):
                    kv_bytes = 131_072 * rng.randrange(100, 10_000)
                    seconds = 0.02 + kv_bytes / 2e10
                    self._estimates.observe_pull(prefill, decode, kv_bytes, seconds, n)


def observe_us(times: int = 2000) -> float:
    """What taking down one duration costs, in microseconds; median."""
    scene = Scene(2, 512, 16, 1)
    record, estimates, samples = scene._records[0], Estimates(), []
    for n in range(times):
        began = time.thread_time_ns()
        estimates.observe_prefill(record, 100 + n % 900, 0.1 + n % 7 * 0.01, n * 0.01)
        samples.append(time.thread_time_ns() - began)
    return percentile(samples, 0.5) / 1e3


def measure(
    sizes: Sequence[int],
    *,
    decisions: int,
    prompt_tokens: int = 8192,
    block_tokens: int = 16,
    seed: int = 1,
    rounds: int = 10,
    say: Callable[[str], None] = lambda text: None,
) -> Result:
    """Measures fleets of these sizes.

    Args:
        sizes: numbers of workers, two or more each.
        decisions: per fleet, in all.
        prompt_tokens: of every prompt.
        block_tokens: per hash of a chain; 16 is an engine's smallest usual block.
        seed: of everything that is drawn.
        rounds: turns that the sizes take.
        say: told of progress.
    """
    scenes = []
    for size in sizes:
        say(f"setting up {size} workers")
        scenes.append(Scene(size, prompt_tokens, block_tokens, seed))
    for scene in scenes:
        scene.decide(min(_WARM_UP, decisions))
        scene.compile()
        scene.forget_times()
    gc.collect()
    gc.freeze()
    try:
        with first_in_line() as first:
            for turn in range(rounds):
                say(f"round {turn + 1} of {rounds}")
                for scene in scenes:
                    scene.decide(-(-decisions // rounds))
                    scene.compile()
    finally:
        gc.unfreeze()
    rows = [scene.row() for scene in scenes]
    yardstick = Times()
    for scene in scenes:
        yardstick.cpu += scene.yardstick.cpu
        yardstick.elapsed += scene.yardstick.elapsed
    return Result(
        date=time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        python=platform.python_version(),
        machine=platform.machine(),
        seed=seed,
        decisions=decisions,
        prompt_tokens=prompt_tokens,
        block_tokens=block_tokens,
        observe_us=observe_us(),
        growth=growth(rows),
        first_in_line=first,
        yardstick=yardstick.figure(),
        rows=rows,
    )


def table(result: Result) -> Table:
    """The figures for people."""
    shown = Table(
        title=(
            f"A decision, microseconds of CPU ({result.prompt_tokens} prompt tokens, chains of "
            f"{result.prompt_tokens // result.block_tokens} hashes, {result.decisions} decisions)"
        ),
        caption=("" if result.growth is None else f"plan grows with workers^{result.growth:.2f}; ")
        + f"one duration is taken down in {result.observe_us:.1f}; yardstick p50 "
        f"{result.yardstick.p50_us:.1f}, p99 {result.yardstick.p99_us:.1f}, elapsed p99 "
        f"{result.yardstick.elapsed_p99_us:.1f}",
    )
    for name in ("workers", "plan p50", "p99", "elapsed p99", "target", "match p50", "p99",
                 "record p50", "p99", "compile, ms", "handed over"):  # fmt: skip
        shown.add_column(name, justify="right")
    for row in result.rows:
        target = (
            ""
            if row.target_us is None
            else f"{'met' if row.met else 'MISSED'} <{row.target_us:.0f}"
        )
        shown.add_row(
            str(row.workers),
            f"{row.plan.p50_us:.1f}",
            f"{row.plan.p99_us:.1f}",
            f"{row.plan.elapsed_p99_us:.1f}",
            target,
            f"{row.match.p50_us:.1f}",
            f"{row.match.p99_us:.1f}",
            f"{row.record.p50_us:.1f}",
            f"{row.record.p99_us:.1f}",
            f"{row.compile_ms:.2f}",
            f"{row.handed_over:.0%}",
        )
    return shown


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; 0 whatever the figures are."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decision", description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[16, 128, 1000], metavar="N")
    parser.add_argument("--decisions", type=int, default=5000, help="per size; default 5000")
    parser.add_argument("--prompt-tokens", type=int, default=8192, metavar="N")
    parser.add_argument("--block-tokens", type=int, default=16, metavar="N")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result there")
    options = parser.parse_args(argv)
    if min(options.workers) < 2 or options.decisions < 1:
        parser.error("at least two workers and one decision")
    if not 0 < options.block_tokens <= options.prompt_tokens:
        parser.error("a prompt has at least one block")
    result = measure(
        options.workers,
        decisions=options.decisions,
        prompt_tokens=options.prompt_tokens,
        block_tokens=options.block_tokens,
        seed=options.seed,
        say=Console(stderr=True, highlight=False).print,
    )
    Console().print(table(result))
    if options.json is not None:
        write_json(options.json, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
