"""Runs a comparison: starts what is to be compared, measures block after block, keeps everything.

Each block is a run of its own with its own salt, after a warm-up of its own, in a folder of its
own; what was measured is on disk before the next block begins. An interruption, by a person or an
error, leaves a result that says that it is incomplete.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import shlex
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from baton.errors import BatonError, SettingsError
from baton.stopping import unless_stopped
from benchmarks.compare.arms import ArmSpec, block_order, block_salt, profile_slo
from benchmarks.compare.assemble import assemble
from benchmarks.compare.files import read_result, write_result
from benchmarks.compare.stacks import Stack, StackSettings
from benchmarks.comparison import Arm, Block, CompareResult
from benchmarks.engine_side import Scraper
from benchmarks.history import environment
from benchmarks.load import Progress, read_run, resolve, run
from benchmarks.metrics import summarise
from benchmarks.plan import Plan, Slo
from benchmarks.records import Problem, Run
from benchmarks.target import Api, Target
from benchmarks.workloads import Workload, build_plan

RECOMMENDED_PAIRS = 8


class Between(enum.StrEnum):
    """What happens to the other arms' engines while one arm is measured."""

    PARKED = "parked"
    RUNNING = "running"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class CompareOptions:
    """How a comparison is run.

    Attributes:
        model: of the profiles that are started: a folder or hub id instead of the profile's. Where
            all arms are endpoints, the model's name there.
        cluster_token: of the endpoints that run already, for a look at the engines behind them.
        force_output: whether answers are forced to their planned length.
        levels: factors on the workload's rates and concurrency.
        pairs: repetitions of each level and arm. Five are the least for an interval.
        duration_s: of a block, instead of the workload's.
        warmup_s: of the warm-up before each block.
        between: what the other arms do meanwhile.
        slo: replaces the service levels of workload and profile.
        command: what repeats the comparison.
    """

    model: str | None = None
    tokenizer: Path | None = None
    api: Api = Api.COMPLETIONS
    api_key: str | None = None
    cluster_token: str | None = None
    force_output: bool = True
    levels: tuple[float, ...] = (1.0,)
    pairs: int = RECOMMENDED_PAIRS
    duration_s: float | None = None
    warmup_s: float = 8.0
    seed: int | None = None
    processes: int = 1
    cpu_threads: int | None = None
    between: Between = Between.PARKED
    slo: Slo | None = None
    start_timeout_s: float = 900.0
    command: Sequence[str] = ()


@dataclass(slots=True)
class Events:
    """What a comparison tells whoever watches; each is optional."""

    say: Callable[[str], None] = lambda _: None
    block: Callable[[int, int, Block], None] = lambda _number, _count, _block: None
    progress: Callable[[Progress], None] = lambda _: None


class _Stopped(Exception):
    """Somebody wanted the comparison to end while something was being started."""


@dataclass(slots=True)
class _Comparison:
    specs: Sequence[ArmSpec]
    workload: Workload
    options: CompareOptions
    folder: Path
    events: Events
    stop: asyncio.Event
    result: CompareResult
    stacks: dict[str, Stack] = field(default_factory=dict)
    resident: set[str] = field(default_factory=set)

    async def measure(self) -> None:
        order = block_order(
            [spec.name for spec in self.specs], self.options.levels, self.options.pairs
        )
        if self.options.between is not Between.STOPPED:
            for spec in self.specs:
                if self.stop.is_set():
                    return
                async with self._serving(spec):
                    pass
        for number, (level, pair, name) in enumerate(order):
            if self.stop.is_set():
                return
            await self._block(number, len(order), level, pair, name)

    async def _block(self, number: int, count: int, level: float, pair: int, name: str) -> None:
        spec = next(spec for spec in self.specs if spec.name == name)
        salt = block_salt(self.result.id, name, level, pair)
        folder = f"blocks/{number:03d}-{name}-x{level:g}-{pair + 1}"
        block = Block(arm=name, level=level, pair=pair, order=number, salt=salt, folder=folder)
        self.events.block(number, count, block)
        async with self._serving(spec) as target:
            measured = await run(
                self.workload,
                target,
                seed=self._seed(pair),
                rate_scale=level,
                duration_s=self.options.duration_s,
                salt=salt,
                processes=self.options.processes,
                folder=self.folder / folder,
                warmup_s=self.options.warmup_s,
                on_progress=self.events.progress,
                stop=self.stop,
                observer=Scraper(),
            )
        block.problems = list(measured.meta.problems)
        block.summary = {
            **summarise(measured, self.result.slos),
            "client": msgspec.to_builtins(measured.meta.client),
        }
        if not measured.meta.complete:
            block.counted = False
        self.result.blocks.append(block)
        write_result(self.folder, self.result)

    def _seed(self, pair: int) -> int:
        """One schedule for all arms of a repetition; another one for each repetition, so that the
        verdict does not hang on the luck of one."""
        base = self.options.seed if self.options.seed is not None else self.workload.spec.seed
        return base + pair

    @contextlib.asynccontextmanager
    async def _serving(self, spec: ArmSpec) -> AsyncIterator[Target]:
        """The arm, ready to be measured; afterwards as ``between`` says."""
        if spec.url is not None:
            yield await self._target(spec, spec.url, self.options.cluster_token)
            return
        stack = self.stacks.get(spec.name)
        if stack is None:
            home = self.folder / "stacks" / spec.name
            settings = StackSettings(
                self.options.model, self.options.cpu_threads, self.options.start_timeout_s
            )
            stack = self.stacks[spec.name] = Stack(spec, home, settings, self.events.say)
        if spec.name not in self.resident:
            self.events.say(f"starting {spec.name}")
            await unless_stopped(stack.start(), self.stop)
            if self.stop.is_set():
                raise _Stopped
            self.resident.add(spec.name)
        elif self.options.between is Between.PARKED:
            await unless_stopped(stack.resume(), self.stop)
            if self.stop.is_set():
                raise _Stopped
        try:
            yield await self._target(spec, stack.url, stack.token)
        finally:
            if self.options.between is Between.PARKED:
                stack.park()
            elif self.options.between is Between.STOPPED:
                self.resident.discard(spec.name)
                await stack.stop()

    async def _target(self, spec: ArmSpec, url: str, token: str | None) -> Target:
        options = self.options
        target = Target(
            url=url,
            model=self._model_name(spec),
            api_key=options.api_key,
            api=options.api,
            tokenizer=options.tokenizer,
            force_output=options.force_output,
            cluster_token=token,
        )
        arm = self._arm(spec.name)
        if not arm.model:
            known = await resolve(target)
            arm.model, arm.url = known.model, url
            if known.version is not None:
                arm.versions = {"server": known.version}
        return msgspec.structs.replace(target, model=arm.model)

    def _model_name(self, spec: ArmSpec) -> str | None:
        """What to ask for; None asks for the only one there is."""
        if all(other.url is not None for other in self.specs) and self.options.model is not None:
            return self.options.model
        if spec.profile is not None and self.options.model is None:
            return spec.profile.served_name
        return None

    def _arm(self, name: str) -> Arm:
        return next(arm for arm in self.result.arms if arm.name == name)

    async def close(self) -> None:
        if self.stacks:
            self.events.say("stopping")
        await asyncio.gather(*(stack.stop() for stack in self.stacks.values()))


async def compare(
    specs: Sequence[ArmSpec],
    workload: Workload,
    options: CompareOptions,
    *,
    folder: Path,
    events: Events | None = None,
    stop: asyncio.Event | None = None,
) -> CompareResult:
    """Measures all arms and compares them with the first one.

    Args:
        specs: the arms.
        workload: what they are measured with.
        options: how.
        folder: where everything is written; made if needed. Its name is the result's id.
        events: told of progress.
        stop: set it to end early with what there is.

    Raises:
        SettingsError: the options make no sense together.
        WorkloadError: the workload or its trace is broken.
        TargetError: an endpoint cannot be measured.
        EngineStartError: a profile does not start.
    """
    check_options(specs, options)
    # Everything that can be wrong with the workload is found before anything starts.
    plans = [
        build_plan(workload, seed=options.seed, rate_scale=level, duration_s=options.duration_s)
        for level in options.levels
    ]
    slos = service_levels(specs, plans[0], options)
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    began = time.monotonic()
    here = environment()
    result = CompareResult(
        id=folder.name,
        created_wall_s=time.time(),
        took_s=0.0,
        command=shlex.join(options.command),
        complete=False,
        arms=[spec.describe() for spec in specs],
        workload={
            **workload.model_dump(mode="json", by_alias=True),
            "version": plans[0].version,
            "seed": plans[0].seed,
            "duration_s": plans[0].duration_s,
            "trace_sha256": plans[0].trace_sha256,
            "dropped": dict(plans[0].dropped),
        },
        slos=dict(slos),
        levels=list(options.levels),
        pairs=options.pairs,
        versions=here.versions,
        machine=here.machine,
        commit=here.commit,
    )
    write_result(folder, result)
    work = _Comparison(
        specs, workload, options, folder, events or Events(), stop or asyncio.Event(), result
    )
    try:
        with contextlib.suppress(_Stopped):
            await work.measure()
        result.complete = not work.stop.is_set()
    except BatonError as error:
        # With blocks on disk the error is part of the result; without, it is all there is.
        if not result.blocks:
            raise
        result.problems.append(Problem("failed", f"the comparison ended early: {error.message}"))
    finally:
        try:
            await work.close()
        finally:
            result.took_s = time.monotonic() - began
            write_result(folder, result)
    return analyse_folder(folder)


def check_options(specs: Sequence[ArmSpec], options: CompareOptions) -> None:
    """Finds out what makes no sense before anything is started.

    Raises:
        SettingsError: with what to do.
    """
    if options.pairs < 1:
        raise SettingsError("--pairs must be at least 1")
    if not options.levels or any(not 0 < level <= 1000 for level in options.levels):
        raise SettingsError("--levels are factors above 0, such as 0.5,1,1.5")
    if len(set(options.levels)) != len(options.levels):
        raise SettingsError("--levels has a factor twice")
    if options.cluster_token is not None and not any(spec.url for spec in specs):
        raise SettingsError(
            "--cluster-token is for endpoints that run already; profiles that are started have "
            "their own"
        )


def service_levels(
    specs: Sequence[ArmSpec], plan: Plan, options: CompareOptions
) -> Mapping[str, Slo]:
    """The service level of each class, one for all arms: what ``--slo`` says, else the workload,
    else the first profile that has one (by the order of arms)."""
    if options.slo is not None:
        return dict.fromkeys(plan.class_names, options.slo)
    if plan.slos:
        return plan.slos
    for spec in specs:
        if (slo := profile_slo(spec.profile)) != Slo():
            return dict.fromkeys(plan.class_names, slo)
    return {}


def analyse_folder(folder: Path) -> CompareResult:
    """Reads the blocks of a comparison and computes everything anew; writes ``compare.json``.

    Raises:
        SettingsError: there is no comparison in the folder.
    """
    result = read_result(folder)
    runs: dict[tuple[str, float, int], Run] = {}
    for block in result.blocks:
        found = read_run(folder / block.folder)
        found.meta.slos = dict(result.slos)
        runs[block.arm, block.level, block.pair] = found
    assemble(result, runs)
    write_result(folder, result)
    return result
