"""Several runs of one workload at rising load, and where the endpoint stops keeping up.

Every level is a run of its own, with its own salt. The automatic sweep doubles the load until a
level is saturated, then halves the gap between the last good and the first saturated one a few
times; it never takes more than ``MOST_RUNS`` runs.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load.api import Observer, run
from benchmarks.load.files import write_meta
from benchmarks.load.progress import Progress
from benchmarks.metrics import summarise
from benchmarks.plan import Slo
from benchmarks.records import Problem, RequestRecord, Run
from benchmarks.target import Target
from benchmarks.workloads import Workload

MOST_RUNS = 12
BISECTIONS = 3
_MOST_DOUBLINGS = 7
ACHIEVED_SHARE = 0.95
ATTAINED_SHARE = 0.9
_GAIN = 0.05
"""A closed loop whose throughput grows by less than this share for twice the clients, and in
proportion for fewer, has no more."""
_LEVELS = (1e-3, 1e4)


@dataclass(frozen=True, slots=True)
class Saturation:
    """Whether an endpoint kept up, and what said so."""

    saturated: bool
    why: str = ""


def saturation(result: Run, *, before: Run | None = None) -> Saturation:
    """Judges one run of a sweep; ``before`` is the next lower level, for closed loops.

    Saturated means: the answers of the last two thirds of the sending time were fewer than 95 % of
    the requests, and the backlog grew by more than chance explains; or the service level was met by
    fewer than 90 % of the requests; or the client itself could not keep up.
    """
    if any(
        p.fatal and p.code in ("client_lagged", "rate_not_reached") for p in result.meta.problems
    ):
        return Saturation(True, "the load generator could not keep up")
    if any(p.fatal and p.code in ("errors", "too_few") for p in result.meta.problems):
        return Saturation(True, "too many requests failed")
    attained = summarise(result).get("all", {}).get("attainment", {}).get("value")
    if attained is not None and attained < ATTAINED_SHARE:
        return Saturation(True, f"{attained:.0%} of the requests met the service level")
    grown = backlog(result.records, result.meta.duration_s)
    if grown is not None:
        return Saturation(True, grown)
    if before is not None and all(record.lane is not None for record in result.records):
        more = _clients(result) / max(_clients(before), 1) - 1.0
        rate, lower = _rate(result), _rate(before)
        if more > 0 and rate < lower * (1.0 + _GAIN * more):
            return Saturation(True, f"{rate:.3g} requests/s, after {lower:.3g} with fewer clients")
    return Saturation(False)


def backlog(records: Sequence[RequestRecord], duration_s: float) -> str | None:
    """What says that the open loop's backlog grew over the last two thirds; None if it did not."""
    timed = [r for r in records if r.lane is None and r.sent_s is not None]
    begin_s = duration_s / 3
    arrived = sum(1 for r in timed if begin_s <= r.scheduled_s < duration_s)
    if not arrived:
        return None
    finished = sum(1 for r in timed if r.end_s is not None and begin_s <= r.end_s < duration_s)
    early, late = (
        sum(1 for r in timed if r.scheduled_s < at_s and (r.end_s is None or r.end_s >= at_s))
        for at_s in (begin_s, duration_s)
    )
    growth = late - early
    # In a steady state the number in flight spreads by its square root.
    chance = 3.0 * (2.0 * max(early, 1)) ** 0.5
    if finished < ACHIEVED_SHARE * arrived and growth > chance:
        return (
            f"{finished} answers to {arrived} requests of the last two thirds; "
            f"{late} in flight at the end, {early} at a third"
        )
    return None


async def sweep(
    workload: Workload,
    target: Target,
    levels: Sequence[float] | None = None,
    *,
    seed: int | None = None,
    time_scale: float = 1.0,
    duration_s: float | None = None,
    salt: str | None = None,
    processes: int = 1,
    folder: Path | None = None,
    warmup_s: float = 0.0,
    slo: Slo | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    stop: asyncio.Event | None = None,
    make_observer: Callable[[], Observer] | None = None,
    bisections: int = BISECTIONS,
) -> list[Run]:
    """Runs every level, or finds the levels by itself.

    Args:
        levels: factors on rates and concurrency, in the order of running; None finds them.
        folder: each run gets a folder in it, such as ``02-x1.5``; its name is the run's id.
        make_observer: one for each run.
        bisections: how often the gap is halved.
        workload, target, seed, time_scale, duration_s, salt, processes, warmup_s, slo,
            on_progress, stop: as for ``run``.

    Returns:
        The runs, by level; each one's ``meta.plan`` has ``saturated`` and ``saturated_why``.

    Raises:
        WorkloadError, TargetError, SettingsError: as ``run``.
    """
    stop = stop or asyncio.Event()
    base_salt = salt if salt is not None else secrets.token_hex(8)
    done: dict[float, Run] = {}
    folders: dict[float, Path] = {}

    async def measure(level: float) -> None:
        name = f"{len(done) + 1:02d}-x{level:g}"
        if folder is not None:
            folders[level] = folder / name
        done[level] = await run(
            workload,
            target,
            seed=seed,
            rate_scale=level,
            time_scale=time_scale,
            duration_s=duration_s,
            salt=f"{base_salt}/{name}",
            processes=processes,
            folder=folders.get(level),
            warmup_s=warmup_s,
            slo=slo,
            on_progress=on_progress,
            stop=stop,
            observer=make_observer() if make_observer is not None else None,
            label=f"x{level:g}",
        )

    def judge(level: float) -> bool:
        lower = max((known for known in done if known < level), default=None)
        judged = saturation(done[level], before=done[lower] if lower is not None else None)
        _note(done[level], judged, folders.get(level))
        return judged.saturated

    async def measure_and_judge(level: float) -> bool:
        await measure(level)
        return judge(level)

    if levels is not None:
        for level in levels:
            if stop.is_set():
                break
            if level not in done:
                await measure(level)
        # Whatever the order of running: closed loops are held against the next lower level.
        for level in sorted(done):
            judge(level)
    else:
        await search(measure_and_judge, stop, bisections=bisections)
    return [done[level] for level in sorted(done)]


async def search(
    measure: Callable[[float], Awaitable[bool]], stop: asyncio.Event, *, bisections: int
) -> None:
    """Doubles or halves from 1 until the load lies between good and saturated, then bisects.
    ``measure`` says whether a level is saturated; it is called ``MOST_RUNS`` times at most."""
    good: float | None = None
    bad: float | None = None
    level, runs = 1.0, 0
    for _ in range(_MOST_DOUBLINGS):
        if stop.is_set() or runs >= MOST_RUNS:
            return
        runs += 1
        if await measure(level):
            bad = level
        else:
            good = level
        if good is not None and bad is not None:
            break
        level = level * 2 if bad is None else level / 2
        if not _LEVELS[0] <= level <= _LEVELS[1]:
            return
    for _ in range(bisections):
        if good is None or bad is None or stop.is_set() or runs >= MOST_RUNS:
            return
        runs += 1
        middle = (good + bad) / 2
        if await measure(middle):
            bad = middle
        else:
            good = middle


def _note(result: Run, judged: Saturation, folder: Path | None) -> None:
    result.meta.plan["saturated"] = judged.saturated
    result.meta.plan["saturated_why"] = judged.why
    if judged.saturated:
        problem = Problem("saturated", f"The endpoint did not keep up: {judged.why}.", fatal=False)
        result.meta.problems = [*result.meta.problems, problem]
    if folder is not None:
        write_meta(folder, result.meta)


def _clients(result: Run) -> int:
    return len({record.lane for record in result.records})


def _rate(result: Run) -> float:
    """Sound answers per second of sending time."""
    duration_s = result.meta.duration_s
    ended = sum(
        1
        for r in result.records
        if r.error is None and r.end_s is not None and r.end_s <= duration_s
    )
    return ended / duration_s
