"""Carries a measurement out: starts workers and routers, and measures block after block.

One mode after the other, so that only the routers of one mode run at a time. Inside a mode each
round visits all cells, and in each cell all targets, in an order that turns with every round
(A B C, C B A): what changes slowly on the machine falls on all of them alike. All routers run
under the ordinary scheduler; the client runs before all others while it measures, since a client
that waits for a core reports the waiting. Processes are started outside of that, because they
would inherit it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import statistics
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from baton.errors import BatonError
from benchmarks.load.priority import first_in_line
from benchmarks.router import cpu
from benchmarks.router.book import Counts
from benchmarks.router.client import LoadFailed, open_load
from benchmarks.router.figures import DIRECT, lateness_s, percentiles_ms
from benchmarks.router.fleet import Fleet, open_fleet
from benchmarks.router.records import Block, Cell, Mode
from benchmarks.router.targets import Choices, Running, open_target
from benchmarks.router.text import Prompts, write_tokenizer

GAP_S = 0.01
"""Seconds between the tokens of a stream."""

_PROBES = 150
_PROBE_S = 0.1
"""A router is asked so often until it serves as its mode says; after that it is measured as it
is."""
_SPARES_S = (0.3, 2.0, 8.0)
"""How much longer streams are than their block, at the first try and at those after it."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be measured.

    Attributes:
        targets: names, in the order of the first round.
        modes: in this order.
        concurrencies: of whole answers.
        streams: how many streams at a time, each; none measures none.
        rounds: how often each block is measured.
        block_s: how long a block is.
        warm_s: how long it is warmed up.
        prompt_bytes, answer_tokens: size of a request.
        workers: mock workers per role.
        long_token: whether the tokenizer has a long token (see ``text.make_tokenizer``).
        choices: where the routers are.
    """

    targets: Sequence[str]
    modes: Sequence[Mode] = (Mode.PLAIN, Mode.PD)
    concurrencies: Sequence[int] = (1, 16, 64)
    streams: Sequence[int] = (16, 64)
    rounds: int = 3
    block_s: float = 1.6
    warm_s: float = 0.3
    prompt_bytes: int = 1500
    answer_tokens: int = 16
    workers: int = 1
    long_token: bool = False
    choices: Choices = field(default_factory=Choices)

    def cells(self, mode: Mode) -> list[Cell]:
        """What is measured of each target in a mode."""
        streams = [Cell(mode, count, stream=True) for count in self.streams]
        return [Cell(mode, concurrency) for concurrency in self.concurrencies] + streams


def order(targets: Sequence[str], at_round: int) -> list[str]:
    """The targets as they come in a round: forwards, backwards, forwards."""
    return list(targets) if at_round % 2 == 0 else list(reversed(targets))


@dataclass(slots=True)
class Outcome:
    """What was measured.

    Attributes:
        blocks: all of them, those that failed as well.
        samples: latencies in seconds of the measured ones, by target and cell, per round.
        commands: how each router was started, by ``target mode``.
        problems: what could not be measured, in words.
        client_first: whether the client could run before all others.
    """

    blocks: list[Block] = field(default_factory=list)
    samples: dict[tuple[str, Cell], list[list[float]]] = field(default_factory=dict)
    commands: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    client_first: bool = True


async def measure(plan: Plan, scratch: Path, say: Say, outcome: Outcome) -> None:
    """Measures all of a plan into ``outcome``, which holds what there is even when cancelled.

    Args:
        plan: what.
        scratch: a folder for files that are needed meanwhile.
        say: gets a line of progress now and then.
        outcome: where the results go.

    Raises:
        TargetError: the mock workers did not start, or went away.
    """
    tokenizer = write_tokenizer(scratch / "model", long_token=plan.long_token)
    bench = _Bench(plan, Prompts(plan.prompt_bytes), outcome, say)
    # What stands now is never garbage; a collection in the middle of a block would be a delay.
    gc.collect()
    gc.freeze()
    for mode in plan.modes:
        async with open_fleet(plan.workers, gap_s=GAP_S, tokenizer=tokenizer) as fleet:
            async with _targets(plan, mode, fleet, scratch, say, outcome) as running:
                ready = [each for each in running if await bench.settle(each, mode, fleet)]
                await bench.rounds(ready, mode, fleet)


@contextlib.asynccontextmanager
async def _targets(
    plan: Plan, mode: Mode, fleet: Fleet, scratch: Path, say: Say, outcome: Outcome
) -> AsyncIterator[list[Running]]:
    """Those targets that could be started."""
    running = []
    async with contextlib.AsyncExitStack() as stack:
        for name in plan.targets:
            say(f"{mode}: starting {name}")
            try:
                target = await stack.enter_async_context(
                    open_target(name, mode, fleet, plan.choices, scratch)
                )
            except BatonError as error:
                outcome.problems.append(f"{mode}: {error.message}")
                say(f"{mode}: {error.message}")
                continue
            running.append(target)
            outcome.commands[f"{name} {mode}"] = target.command
        yield running


class _Bench:
    """Measures blocks, one after the other."""

    def __init__(self, plan: Plan, prompts: Prompts, outcome: Outcome, say: Say) -> None:
        self._plan = plan
        self._prompts = prompts
        self._outcome = outcome
        self._say = say
        self._numbers = itertools.count()

    def _body(self) -> bytes:
        return self._prompts.body(next(self._numbers), answer_tokens=self._plan.answer_tokens)

    async def settle(self, target: Running, mode: Mode, fleet: Fleet) -> bool:
        """Asks until the router serves as its mode says: it may still be checking workers, or a
        pair of them, or counting tokens for the first time. Returns whether it answers at all."""
        failure: LoadFailed | None = None
        for _ in range(_PROBES):
            before = await fleet.counts()
            try:
                async with open_load(target.url, 1) as load:
                    await load.run(self._body, 0.0)
                failure = None
                seen = (await fleet.counts()).minus(before)
                if mode is Mode.PLAIN or target.name == DIRECT or seen.pulled:
                    return True
            except LoadFailed as error:
                failure = error
            await asyncio.sleep(_PROBE_S)
        if failure is None:
            self._say(f"{mode}: {target.name} does not hand over")
            return True
        self._say(f"{mode}: {target.name} does not answer")
        self._outcome.problems.append(
            f"{target.name} {mode} does not answer: {failure}\n{target.said}"
        )
        return False

    async def rounds(self, running: Sequence[Running], mode: Mode, fleet: Fleet) -> None:
        """All rounds of a mode."""
        plan, by_name = self._plan, {target.name: target for target in running}
        for at_round in range(plan.rounds):
            for cell in plan.cells(mode):
                said = []
                for name in order([*by_name], at_round):
                    block = Block(target=name, cell=cell, round=at_round)
                    self._outcome.blocks.append(block)
                    await self._measure(by_name[name], block, fleet)
                    said.append(f"{name} {_words(block)}")
                self._say(f"round {at_round + 1}/{plan.rounds} {cell.name}: " + ", ".join(said))

    async def _measure(self, target: Running, block: Block, fleet: Fleet) -> None:
        try:
            with first_in_line() as first:
                self._outcome.client_first &= first
                samples = await (self._streams if block.cell.stream else self._whole)(
                    target, block, fleet
                )
        except (LoadFailed, cpu.TreeChanged) as error:
            block.detail = str(error)
            self._outcome.problems.append(
                f"{block.target}, {block.cell.name}, round {block.round + 1}: {error}"
            )
            return
        self._outcome.samples.setdefault((block.target, block.cell), []).append(samples)

    async def _whole(self, target: Running, block: Block, fleet: Fleet) -> list[float]:
        plan = self._plan
        async with open_load(target.url, block.cell.concurrency) as load:
            await load.run(self._body, plan.warm_s)
            meter = await _Meter.made(target, fleet)
            meter.read()
            answers = await load.run(self._body, plan.block_s)
            meter.read()
            await meter.report(block)
        block.wall_s = answers.wall_s
        block.requests = len(answers.latencies_s)
        block.failures, block.detail = answers.failures, answers.detail
        block.latencies_ms = percentiles_ms(answers.latencies_s)
        return answers.latencies_s

    async def _streams(self, target: Running, block: Block, fleet: Fleet) -> list[float]:
        """Streams that end before the block does, on a machine that stood still, are begun again
        with more tokens."""
        for spare_s in _SPARES_S:
            samples = await self._steady_streams(target, block, fleet, spare_s)
            if samples is not None:
                return samples
        raise LoadFailed(f"not all {block.cell.concurrency} streams ran for the whole block")

    async def _steady_streams(
        self, target: Running, block: Block, fleet: Fleet, spare_s: float
    ) -> list[float] | None:
        """Only the steady middle is measured, while all streams run: a stream's beginning and end
        cost what a request costs, which the other cells measure. None if there was none."""
        plan, count = self._plan, block.cell.concurrency
        start_s = count * GAP_S * (1 + 1 / count)
        tokens = round((start_s + plan.warm_s + plan.block_s + spare_s) / GAP_S)
        loop = asyncio.get_running_loop()

        def body() -> bytes:
            return self._prompts.body(next(self._numbers), answer_tokens=tokens, stream=True)

        async with open_load(target.url, count, streaming=True) as load:
            meter = await _Meter.made(target, fleet)
            await load.start_streams(body, GAP_S)
            await asyncio.sleep(plan.warm_s)
            meter.read()
            running, events, began_s = load.streaming(), load.events(), loop.time()
            await asyncio.sleep(plan.block_s)
            meter.read()
            block.events, block.wall_s = load.events() - events, loop.time() - began_s
            steady = running == count == load.streaming()
            answers, streams = await load.finish_streams()
            if answers.failures:
                raise LoadFailed(f"{answers.failures} streams failed; the first: {answers.detail}")
            if not steady:
                return None
            await meter.report(block)
        block.requests = len(answers.latencies_s)
        late_s = [late for each in streams for late in lateness_s(each.arrivals, GAP_S, tokens)]
        block.latencies_ms = percentiles_ms(late_s)
        firsts = [each.arrivals[0][0] - each.sent_s for each in streams]
        block.first_event_ms = 1e3 * statistics.median(firsts)
        return late_s


class _Meter:
    """CPU of all who take part between two readings, and what the workers saw meanwhile.

    Made before, and asked for its results after: both take longer than a measurement may be held
    up. A reading takes microseconds.
    """

    def __init__(self, target: Running, fleet: Fleet, counts: Counts) -> None:
        self._fleet = fleet
        self._router = None if target.pid is None else cpu.ProcessTree(target.pid)
        self._workers = cpu.ProcessTree(fleet.pid)
        self._readings: list[tuple[float, float, float]] = []
        self._counts = counts

    @classmethod
    async def made(cls, target: Running, fleet: Fleet) -> _Meter:
        return cls(target, fleet, await fleet.counts())

    def read(self) -> None:
        """Reads the clocks; to be called twice."""
        router_s = 0.0 if self._router is None else self._router.read_s()
        self._readings.append((router_s, self._workers.read_s(), time.process_time()))

    async def report(self, block: Block) -> None:
        """Writes what was spent into the block.

        Raises:
            TreeChanged: the router's processes are not those that it began with.
        """
        if self._router is not None:
            self._router.check()
        block.counts = (await self._fleet.counts()).minus(self._counts)
        first, last = self._readings
        if self._router is not None:
            block.router_cpu_s = last[0] - first[0]
        block.workers_cpu_s = last[1] - first[1]
        block.client_cpu_s = last[2] - first[2]


def _words(block: Block) -> str:
    if not block.measured:
        return "not measured"
    cost = "" if block.cpu_us is None else f"{block.cpu_us:.0f} us "
    assert block.latencies_ms is not None
    return f"{cost}p50 {block.latencies_ms[0]:.2f} ms"
