"""One run, from a workload and a target to a result that says whether to believe it.

The order is fixed: the endpoint is looked at, warmed up with prompts that are never measured, the
requests are built, the servers' counters are read, then second zero. What was measured is on disk
all the while.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import msgspec

from baton.errors import SettingsError, WorkloadError
from benchmarks.engine_side import interruptions, lost_handoffs, warm_cache
from benchmarks.history import environment
from benchmarks.load.bodies import Writer
from benchmarks.load.crew import Crew, LocalCrew, requests_path
from benchmarks.load.endpoint import ResolvedTarget
from benchmarks.load.files import new_folder, write_meta, write_scrapes
from benchmarks.load.priority import first_in_line
from benchmarks.load.processes import ChildCrew, Job
from benchmarks.load.progress import Progress
from benchmarks.load.resolve import resolve
from benchmarks.load.shard import LATE_S
from benchmarks.load.validity import find_problems, planned_shared_share
from benchmarks.plan import Plan, Slo
from benchmarks.records import ClientHealth, Problem, Run, RunMeta, Scrape
from benchmarks.target import Target
from benchmarks.workloads import PromptWriter, Workload, build_plan

_LEAD_S = 0.25
_PROGRESS_S = 0.25
_WARMUP_SEED = 7_368_787
"""Added to the seed for the warm-up: far from the seeds of repetitions, which count up by one."""
_MAX_SEED = 2**53
MAX_PROCESSES = 64


class Observer(Protocol):
    """Watches the servers during a run, ``engine_side.Scraper``."""

    async def start(self, clock_zero: float, target: ResolvedTarget) -> None:
        """Begins; ``clock_zero`` is second zero on the monotonic clock, a moment ahead."""
        ...

    async def stop(self) -> list[Scrape]:
        """Ends; what was seen."""
        ...


@dataclass(slots=True)
class _Watch:
    """What a caller wants to hear and may say while a run goes on."""

    stop: asyncio.Event
    on_progress: Callable[[Progress], None]
    observer: Observer | None = None
    label: str = ""


@dataclass(slots=True)
class _Measured:
    health: ClientHealth = field(default_factory=ClientHealth)
    zero_wall_s: float = 0.0
    scrapes: list[Scrape] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


async def run(
    workload: Workload,
    target: Target,
    *,
    seed: int | None = None,
    rate_scale: float = 1.0,
    time_scale: float = 1.0,
    duration_s: float | None = None,
    salt: str | None = None,
    processes: int = 1,
    folder: Path | None = None,
    warmup_s: float = 0.0,
    slo: Slo | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    stop: asyncio.Event | None = None,
    observer: Observer | None = None,
    label: str = "",
) -> Run:
    """Measures one endpoint with one workload.

    Args:
        workload: what to send.
        target: whereto.
        seed: instead of the workload's.
        rate_scale: factor on rates and concurrency.
        time_scale: factor on all times.
        duration_s: sending time in seconds, instead of the workload's.
        salt: makes the prompts' text; None draws one.
        processes: that send; one means this one.
        folder: where the run is kept; None keeps nothing.
        warmup_s: seconds of other requests before; they are in no result.
        slo: service level of all classes, instead of the workload's.
        on_progress: called a few times a second; must not block.
        stop: set it to end early; the run is then not complete.
        observer: watches the servers.
        label: said with the progress.

    Raises:
        WorkloadError: the workload or its trace is broken.
        TargetError: the endpoint cannot be measured as asked.
        SettingsError: the folder holds a run already, or an option makes no sense.
    """
    if not 1 <= processes <= MAX_PROCESSES:
        raise SettingsError(f"processes must be from 1 to {MAX_PROCESSES} (got {processes})")
    watch = _Watch(stop or asyncio.Event(), on_progress or (lambda _: None), observer, label)
    plan = await asyncio.to_thread(
        build_plan,
        workload,
        seed=seed,
        rate_scale=rate_scale,
        time_scale=time_scale,
        duration_s=duration_s,
    )
    if slo is not None:
        plan = replace(plan, slos=dict.fromkeys(plan.class_names, slo))
    salt = salt if salt is not None else secrets.token_hex(8)
    if folder is not None:
        new_folder(folder)
    resolved = await resolve(target, _models(workload, plan))
    job = Job(
        workload=workload.model_dump(mode="json", by_alias=True),
        target=resolved,
        seed=plan.seed,
        rate_scale=rate_scale,
        time_scale=time_scale,
        duration_s=duration_s,
        salt=salt,
        shard=0,
        shards=processes,
        path="",
    )
    if warmup_s > 0 and not watch.stop.is_set():
        await _warm_up(workload, job, processes, warmup_s, watch)
    crew: Crew
    if processes > 1:
        crew = ChildCrew(job, processes, folder, most_s=_most_s(plan, resolved))
    else:
        crew = LocalCrew(plan, resolved, _writer(job), path=requests_path(folder))
    extra = {
        "rate_scale": rate_scale,
        "time_scale": time_scale,
        "warmup_s": warmup_s,
        "spec": workload.canonical_spec(),
    }
    return await _run_crew(crew, plan, resolved, salt, folder, watch, extra)


async def run_plan(
    plan: Plan,
    target: ResolvedTarget,
    writer: Writer,
    *,
    salt: str = "",
    folder: Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    stop: asyncio.Event | None = None,
    observer: Observer | None = None,
) -> Run:
    """Sends a plan from this process, as it is: nothing is looked at or warmed up before.

    Raises:
        SettingsError: the folder holds a run already.
    """
    watch = _Watch(stop or asyncio.Event(), on_progress or (lambda _: None), observer)
    if folder is not None:
        new_folder(folder)
    crew = LocalCrew(plan, target, writer, path=requests_path(folder))
    return await _run_crew(crew, plan, target, salt, folder, watch, {"rate_scale": 1.0})


def _models(workload: Workload, plan: Plan) -> set[str]:
    """Every model that the workload names: those of its classes, and those of a trace's rows."""
    classes = workload.spec.classes or {}
    named = {name for entry in classes.values() for name in entry.models or ()}
    return named | {request.model for request in plan.requests if request.model is not None}


def _most_s(plan: Plan, target: ResolvedTarget) -> float:
    """How long after second zero the last request has ended, whatever the endpoint does."""
    return plan.duration_s + LATE_S + target.timeout_s


def _writer(job: Job) -> PromptWriter:
    return PromptWriter(
        job.salt, tokenizer=job.target.tokenizer, tokens_per_word=job.target.tokens_per_word
    )


async def _warm_up(
    workload: Workload, job: Job, processes: int, warmup_s: float, watch: _Watch
) -> None:
    """The same kind of requests with other text and another schedule; nothing of it is kept."""
    other = msgspec.structs.replace(
        job,
        seed=(job.seed + _WARMUP_SEED) % _MAX_SEED,
        salt=f"{job.salt}/warm-up",
        duration_s=warmup_s,
    )
    try:
        plan = await asyncio.to_thread(
            build_plan,
            workload,
            seed=other.seed,
            rate_scale=job.rate_scale,
            time_scale=job.time_scale,
            duration_s=warmup_s,
        )
    except WorkloadError:
        # So few requests that none falls into the warm-up; the workload itself was sound.
        return
    crew: Crew
    if processes > 1:
        crew = ChildCrew(other, processes, None, most_s=_most_s(plan, job.target))
    else:
        crew = LocalCrew(plan, job.target, _writer(other), keep=False)
    quiet = _Watch(watch.stop, watch.on_progress, None, watch.label)
    try:
        await _conduct(crew, plan, job.target, quiet, phase="warm-up")
    finally:
        await crew.close()


async def _run_crew(
    crew: Crew,
    plan: Plan,
    target: ResolvedTarget,
    salt: str,
    folder: Path | None,
    watch: _Watch,
    extra: dict[str, Any],
) -> Run:
    """Runs, judges, and writes the result, whatever happens in between."""
    meta = await _new_meta(plan, target, salt, folder, extra)
    try:
        if folder is not None:
            write_meta(folder, meta)
        watch.on_progress(_progress(crew, plan, watch, "prepare", 0.0))
        measured = await _conduct(crew, plan, target, watch, phase="measure")
        records = await asyncio.to_thread(crew.records)
    finally:
        await crew.close()
    complete = not watch.stop.is_set()
    meta.started_wall_s = measured.zero_wall_s
    meta.ended_s = max((r.end_s for r in records if r.end_s is not None), default=0.0)
    meta.complete = complete
    meta.client = measured.health
    found = find_problems(
        records, measured.health, plan, force_output=target.force_output, complete=complete
    )
    meta.problems = _merged(crew.problems, found, measured.problems)
    result = Run(meta=meta, records=records, scrapes=measured.scrapes)
    meta.problems = _merged(meta.problems, _server_side(result, plan))
    if folder is not None:
        write_scrapes(folder, measured.scrapes)
        write_meta(folder, meta)
    return result


async def _conduct(
    crew: Crew, plan: Plan, target: ResolvedTarget, watch: _Watch, *, phase: str
) -> _Measured:
    """Prepares, agrees on second zero, sends, watches."""
    measured = _Measured(zero_wall_s=time.time())
    await crew.prepare()
    if watch.stop.is_set():
        return measured
    zero_s = time.monotonic() + _LEAD_S
    asked_s = zero_s
    async with _observing(watch, zero_s, target, measured):
        # A slow first look at the servers must not eat the beginning of the schedule.
        zero_s = max(zero_s, time.monotonic() + _LEAD_S / 5)
        measured.zero_wall_s = time.time() + zero_s - time.monotonic()
        telling = asyncio.create_task(_tell(crew, plan, watch, phase, zero_s), name="progress")
        try:
            with first_in_line():
                measured.health = await crew.run(zero_s, watch.stop)
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
    if zero_s != asked_s:
        moved_s = asked_s - zero_s
        measured.scrapes = [
            msgspec.structs.replace(scrape, at_s=scrape.at_s + moved_s)
            for scrape in measured.scrapes
        ]
    return measured


@contextlib.asynccontextmanager
async def _observing(
    watch: _Watch, zero_s: float, target: ResolvedTarget, measured: _Measured
) -> AsyncIterator[None]:
    if watch.observer is None:
        yield
        return
    await watch.observer.start(zero_s, target)
    try:
        yield
    finally:
        measured.scrapes = await watch.observer.stop()
        measured.problems += list(getattr(watch.observer, "problems", ()))


async def _tell(crew: Crew, plan: Plan, watch: _Watch, phase: str, zero_s: float) -> None:
    while True:
        elapsed_s = time.monotonic() - zero_s
        crew.tick()
        watch.on_progress(_progress(crew, plan, watch, phase, elapsed_s))
        await asyncio.sleep(_PROGRESS_S)


def _progress(crew: Crew, plan: Plan, watch: _Watch, phase: str, elapsed_s: float) -> Progress:
    counts = crew.counts()
    planned: int | None = len(plan.requests)
    for lane in plan.lanes:
        planned = None if lane.requests is None or planned is None else planned + lane.requests
    if phase == "measure" and elapsed_s >= plan.duration_s:
        phase = "drain"
    return Progress(
        phase=phase,
        done=counts.done,
        planned=planned,
        in_flight=counts.in_flight,
        errors=counts.errors,
        elapsed_s=max(0.0, elapsed_s),
        duration_s=plan.duration_s,
        eta_s=max(0.0, plan.duration_s - max(0.0, elapsed_s)),
        label=watch.label,
    )


def _server_side(run_: Run, plan: Plan) -> list[Problem]:
    """What the servers' own counters say against the run."""
    if not run_.scrapes:
        return []
    warm = warm_cache(run_.scrapes, planned_shared_share(plan, run_.records))
    lost = lost_handoffs(run_.scrapes)
    return [*interruptions(run_.scrapes), *(p for p in (warm, lost) if p is not None)]


def _merged(*rows: list[Problem]) -> list[Problem]:
    """Fatal ones first; the client's word on a warm cache is enough."""
    found: list[Problem] = []
    for problem in (problem for row in rows for problem in row):
        twice = problem.code == "warm_cache" and any(p.code == "warm_cache" for p in found)
        if not twice and problem not in found:
            found.append(problem)
    return sorted(found, key=lambda problem: not problem.fatal)


async def _new_meta(
    plan: Plan, target: ResolvedTarget, salt: str, folder: Path | None, extra: dict[str, Any]
) -> RunMeta:
    here = await asyncio.to_thread(environment)
    versions = dict(here.versions)
    if here.commit is not None:
        versions["baton_commit"] = here.commit
    if target.version is not None:
        versions["server"] = target.version
    now = datetime.now(UTC)
    return RunMeta(
        id=folder.name if folder is not None else f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}",
        started_wall_s=now.timestamp(),
        duration_s=plan.duration_s,
        ended_s=0.0,
        complete=False,
        salt=salt,
        plan={
            "workload": plan.workload,
            "version": plan.version,
            "seed": plan.seed,
            "trace_sha256": plan.trace_sha256,
            "dropped": dict(plan.dropped),
            "offered_rps": plan.offered_rps,
            "lanes": len(plan.lanes),
            **extra,
        },
        target={
            "url": target.url,
            "model": target.model,
            "api": target.api.value,
            "stream": target.stream,
            "force_output": target.force_output,
            "tokens_per_word": target.tokens_per_word,
            "timeout_s": target.timeout_s,
        },
        slos=dict(plan.slos),
        versions=versions,
        machine=dict(here.machine),
    )
