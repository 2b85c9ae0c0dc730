"""``baton bench run``, ``compare``, ``calibrate``: from flags to a result on disk."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from rich.console import Console

from baton.cli.bench_model import RANDOM_100M, benchmark_model
from baton.cli.board import say
from baton.cli.signals import StopSignals
from baton.engine import Device, detect_device
from baton.errors import SettingsError
from benchmarks.calibrate import calibrate
from benchmarks.compare import (
    ArmSpec,
    Between,
    CompareOptions,
    Events,
    check_options,
    compare,
    parse_arms,
    parse_slo,
)
from benchmarks.comparison import Block, CompareResult
from benchmarks.engine_side import Scraper
from benchmarks.history import new_id, results_folder
from benchmarks.load import ProgressView, new_loop, run, sweep, write_parquet
from benchmarks.metrics import summarise
from benchmarks.records import Run
from benchmarks.report import show, show_run, write_reports
from benchmarks.target import Api, Target
from benchmarks.workloads import load_workload
from profiles import SourceKind

INVALID = 3
INTERRUPTED = 130

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RunFlags:
    """The flags of ``baton bench run``."""

    url: str
    workload: str
    model: str | None
    api: str
    api_key: str | None
    tokenizer: Path | None
    rate_scale: float
    time_scale: float
    duration_s: float | None
    warmup_s: float
    seed: int | None
    salt: str | None
    processes: int
    slo: str | None
    force_output: bool
    stream: bool
    timeout_s: float
    sweep: str | None
    metrics_urls: tuple[str, ...]
    cluster_token: str | None
    parquet: bool
    output: Path | None
    home: Path
    as_json: bool


@dataclass(frozen=True, slots=True)
class CompareFlags:
    """The flags of ``baton bench compare``."""

    arms: tuple[str, ...]
    workload: str
    model: str | None
    pairs: int
    levels: str
    duration_s: float | None
    warmup_s: float
    seed: int | None
    processes: int
    api: str
    api_key: str | None
    tokenizer: Path | None
    slo: str | None
    force_output: bool
    cluster_token: str | None
    between: str | None
    cpu_threads: int | None
    start_timeout_s: float
    output: Path | None
    home: Path
    as_json: bool


def run_run(flags: RunFlags) -> int:
    """Measures one endpoint; returns the exit status."""
    if flags.sweep is not None and flags.rate_scale != 1.0:
        raise SettingsError("--sweep sets the factor on the load by itself; leave out --rate-scale")
    workload = load_workload(flags.workload)
    target = Target(
        url=flags.url,
        model=flags.model,
        api_key=flags.api_key,
        api=Api(flags.api),
        tokenizer=flags.tokenizer,
        force_output=flags.force_output,
        stream=flags.stream,
        timeout_s=flags.timeout_s,
        cluster_token=flags.cluster_token,
        metrics_urls=flags.metrics_urls,
    )
    slo = parse_slo(flags.slo) if flags.slo else None
    folder = _folder(flags.output, flags.home, "run")

    async def work(stop: asyncio.Event) -> list[Run]:
        options: dict[str, Any] = {
            "seed": flags.seed,
            "time_scale": flags.time_scale,
            "duration_s": flags.duration_s,
            "salt": flags.salt,
            "processes": flags.processes,
            "warmup_s": flags.warmup_s,
            "slo": slo,
            "stop": stop,
        }
        with ProgressView(sys.stderr) as view:
            if flags.sweep is None:
                return [
                    await run(
                        workload,
                        target,
                        rate_scale=flags.rate_scale,
                        folder=folder,
                        on_progress=view.update,
                        observer=Scraper(),
                        **options,
                    )
                ]
            levels = None if flags.sweep == "auto" else parse_levels(flags.sweep, "--sweep")
            return await sweep(
                workload, target, levels, folder=folder, on_progress=view.update,
                make_observer=Scraper, **options,
            )  # fmt: skip

    runs = _interruptible(work)
    console = Console(file=sys.stdout, highlight=False)
    for found in runs:
        if flags.parquet:
            where = folder if len(runs) == 1 else folder / found.meta.id
            write_parquet(found, where / "requests.parquet")
        if flags.as_json:
            data = {"meta": found.meta, "summary": summarise(found)}
            sys.stdout.write(msgspec.json.encode(data).decode() + "\n")
        else:
            show_run(found, summarise(found), console)
    if not flags.as_json:
        sys.stdout.write(f"kept in {folder}\n")
    if any(not found.meta.complete for found in runs):
        return INTERRUPTED
    # A sweep ends in a run that cannot keep up, on purpose.
    judged = runs if flags.sweep is None else runs[:1]
    return 0 if all(found.meta.valid for found in judged) else INVALID


def run_compare(flags: CompareFlags) -> int:
    """Compares; returns the exit status."""
    specs = parse_arms(flags.arms)
    workload = load_workload(flags.workload)
    model = _model_wish(flags, specs)
    on_gpu = _has_gpu()
    options = CompareOptions(
        model=model,
        tokenizer=flags.tokenizer,
        api=Api(flags.api),
        api_key=flags.api_key,
        cluster_token=flags.cluster_token,
        force_output=flags.force_output,
        levels=parse_levels(flags.levels, "--levels"),
        pairs=flags.pairs,
        duration_s=flags.duration_s,
        warmup_s=flags.warmup_s,
        seed=flags.seed,
        processes=flags.processes,
        cpu_threads=flags.cpu_threads,
        between=Between(flags.between or ("stopped" if on_gpu else "parked")),
        slo=parse_slo(flags.slo) if flags.slo else None,
        start_timeout_s=flags.start_timeout_s,
        command=repeat_command(flags),
    )
    check_options(specs, options)
    started = any(spec.url is None for spec in specs)
    if started and model == RANDOM_100M:
        options = _with_model(options, benchmark_model(flags.home, _say))
    elif started and model is not None and Path(model).expanduser().is_dir():
        options = _with_model(options, Path(model).expanduser().resolve())
    folder = _folder(flags.output, flags.home, "compare")

    async def work(stop: asyncio.Event) -> CompareResult:
        with ProgressView(sys.stderr) as view:
            began = time.monotonic()

            def block(number: int, count: int, what: Block) -> None:
                left = ""
                if number:
                    seconds = (time.monotonic() - began) / number * (count - number)
                    left = f", about {seconds / 60:.0f} min left"
                view.say(f"block {number + 1} of {count}: {what.arm} x{what.level:g}{left}")

            events = Events(say=view.say, block=block, progress=view.update)
            return await compare(specs, workload, options, folder=folder, events=events, stop=stop)

    result = _interruptible(work)
    paths = write_reports(result, folder)
    if flags.as_json:
        sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
    else:
        show(result, Console(file=sys.stdout, highlight=False))
        sys.stdout.write("".join(f"{path}\n" for path in paths))
    if not result.complete:
        return INTERRUPTED
    return 0 if any(v.outcome != "unknown" for v in result.verdicts if v.primary) else INVALID


def run_calibrate(*, quick: bool, as_json: bool) -> int:
    """Checks the instrument; returns the exit status."""

    async def work(stop: asyncio.Event) -> Any:
        return await calibrate(quick=quick, say=_say, stop=stop)

    report = _interruptible(work)
    if as_json:
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    else:
        sys.stdout.write(report.text() + "\n")
    return 0 if report.accurate else INVALID


def parse_levels(text: str, flag: str) -> tuple[float, ...]:
    """Reads ``0.5,1,1.5``.

    Raises:
        SettingsError: not a list of positive numbers.
    """
    try:
        levels = tuple(float(part) for part in text.split(","))
    except ValueError:
        levels = ()
    if not levels or any(not 0 < level <= 1000 for level in levels):
        raise SettingsError(f"{flag} {text!r} is not understood; give factors, such as 0.5,1,1.5")
    return levels


def repeat_command(flags: CompareFlags) -> tuple[str, ...]:
    """What a person types to repeat the comparison; no keys."""
    words = ["baton", "bench", "compare", *flags.arms, "--workload", flags.workload]
    for flag, value, default in (
        ("--model", flags.model, None),
        ("--pairs", flags.pairs, 8),
        ("--levels", flags.levels, "1"),
        ("--duration", flags.duration_s, None),
        ("--warmup", flags.warmup_s, 8.0),
        ("--seed", flags.seed, None),
        ("--processes", flags.processes, 1),
        ("--api", flags.api, "completions"),
        ("--tokenizer", flags.tokenizer, None),
        ("--slo", flags.slo, None),
        ("--between", flags.between, None),
        ("--cpu-threads", flags.cpu_threads, None),
    ):
        if value != default:
            words += [flag, f"{value:g}" if isinstance(value, float) else str(value)]
    if not flags.force_output:
        words.append("--no-force-output")
    return tuple(words)


def _model_wish(flags: CompareFlags, specs: list[ArmSpec]) -> str | None:
    """The model for all profiles: asked for, or the random one where the demo's would do."""
    if flags.model is not None:
        return flags.model
    started = [spec.profile for spec in specs if spec.url is None and spec.profile is not None]
    if any(profile.spec.model.kind is SourceKind.DEMO for profile in started):
        return RANDOM_100M
    return None


def _with_model(options: CompareOptions, folder: Path) -> CompareOptions:
    tokenizer = options.tokenizer
    if tokenizer is None and (folder / "tokenizer.json").is_file():
        tokenizer = folder / "tokenizer.json"
    return replace(options, model=str(folder), tokenizer=tokenizer)


def _has_gpu() -> bool:
    return detect_device() is not Device.CPU


def _folder(asked: Path | None, home: Path, kind: str) -> Path:
    folder = asked.expanduser().resolve() if asked else results_folder(home) / new_id(kind)
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"{folder} is a file; name a folder with --output")
    if folder.exists() and any(folder.iterdir()):
        raise SettingsError(f"{folder} is not empty; name another folder with --output")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"{folder} cannot be made: {error.strerror}") from error
    return folder


def _say(sentence: str) -> None:
    say(sys.stderr, sentence)


def _interruptible(work: Callable[[asyncio.Event], Coroutine[Any, Any, T]]) -> T:
    """Runs ``work``; the first Ctrl-C asks it to end, the second one cancels it."""

    async def main() -> T:
        with StopSignals() as signals:
            task = asyncio.create_task(work(signals.first))
            second = asyncio.create_task(signals.second.wait())
            await asyncio.wait({task, second}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                task.cancel()
            second.cancel()
            await asyncio.gather(second, return_exceptions=True)
            try:
                return await task
            except asyncio.CancelledError:
                raise SettingsError("stopped at once; what was measured is in its folder") from None

    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(main())
