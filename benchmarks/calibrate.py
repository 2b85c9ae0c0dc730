"""Measures the instrument: what it says of a server whose every delay is known, on this machine.

Three questions. Are the figures right: a mock server logs when it really wrote each chunk, and
the same computation over that log must give the same percentiles. Is waiting seen: the mock
stands still for a second, and what a closed loop reports of that is put beside what an open loop
reports. How far does the generator go: rates are raised until the run calls itself invalid. It
says nothing about any real server.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from benchmarks.load import ResolvedTarget, run, run_plan
from benchmarks.metrics import ALL, measure
from benchmarks.mock import (
    Delay,
    MockProcess,
    Script,
    Shape,
    Stall,
    as_records,
    mock_process,
    read_truth,
)
from benchmarks.plan import Lane, Piece, Plan, PlannedRequest
from benchmarks.records import RequestRecord, Run
from benchmarks.target import Api, Target
from benchmarks.workloads import PromptWriter, Workload

SHARE = 0.02
FLOOR_S = 0.001
"""A figure is right when it is off by no more than the larger of the two."""

FIGURES = ("ttft", "itl", "tpot", "e2e")
STATISTICS = ("mean", "p50", "p90", "p95", "p99")
_BEFORE_S = 0.05
"""Requests that the mock had earlier than so long before second zero belong to no plan."""

_TOKENS_PER_WORD = 1.5
"""Four characters are a token to the mock."""

Say = Callable[[str], None]


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One figure as the instrument reports it, and as the server's log has it; in seconds."""

    endpoint: str
    figure: str
    statistic: str
    client_s: float
    truth_s: float
    n: int
    right: bool


class Omission(msgspec.Struct, frozen=True, kw_only=True):
    """What is reported of a server that stood still once, by open and by closed loop.

    Attributes:
        stall_s: how long it stood.
        expected_s: the p99 that the schedule makes certain.
        open_sched_p99_s, open_send_p99_s: TTFT in open loop from schedule and from send.
        closed_p99_s: TTFT in a closed loop, where nobody asks while the server stands.
        shown: whether the open loop shows the stall, and the closed one hides it.
    """

    stall_s: float
    rate: float
    lanes: int
    expected_s: float
    open_sched_p99_s: float
    open_send_p99_s: float
    closed_p99_s: float
    shown: bool


class Reach(msgspec.Struct, frozen=True, kw_only=True):
    """One rate of short requests: what was offered and what was sent, per second; ``cpu_s`` is
    the generator's per request. ``why`` holds the codes of what makes the run invalid."""

    processes: int
    offered_rps: float
    sent_rps: float
    lag_p99_s: float
    cpu_s: float
    valid: bool
    why: list[str] = []


class CalibrationReport(msgspec.Struct, kw_only=True):
    """Everything that was found. ``accurate`` is False as well if nothing could be checked."""

    checks: list[Check] = []
    problems: list[str] = []
    omission: Omission | None = None
    reach: list[Reach] = []
    complete: bool = True
    accurate: bool = False

    def text(self) -> str:
        """For a terminal."""
        return "\n".join(_report(self))


async def calibrate(
    *, quick: bool = False, say: Say = lambda _: None, stop: asyncio.Event | None = None
) -> CalibrationReport:
    """Runs all three; about two minutes, or half of one if ``quick``, without the third.

    Args:
        quick: accuracy and omission only, and shorter.
        say: told what is being done.
        stop: set it to end early with what there is.

    Raises:
        TargetError: the mock server does not start.
    """
    stop = stop or asyncio.Event()
    report = CalibrationReport()
    for api in Api:
        if not stop.is_set():
            say(f"measuring known delays over {api.value}")
            seconds = 8.0 if quick else 20.0
            measured, truth = await measure_known(api, duration_s=seconds, stop=stop)
            report.checks += compare(api.value, measured, truth)
            report.problems += unlike(measured, truth)
    if not stop.is_set():
        say("measuring a server that stands still for a second")
        report.omission = await provoke_omission(stop=stop)
    if not quick:
        for processes in (1, 2):
            await _find_reach(report.reach, processes, say, stop)
    report.complete = not stop.is_set()
    report.accurate = (
        bool(report.checks)
        and not report.problems
        and all(check.right for check in report.checks)
        and (report.omission is None or report.omission.shown)
    )
    return report


async def measure_known(
    api: Api,
    *,
    duration_s: float,
    rate: float = 50.0,
    output_tokens: int = 12,
    script: Script | None = None,
    stop: asyncio.Event | None = None,
) -> tuple[Run, list[RequestRecord]]:
    """A run against the mock, and what the mock's log says of the same requests.

    The default delays spread widely, so that every percentile is another number.
    """
    script = script or Script(
        seed=1, ttft=Delay(0.06, Shape.LOGNORMAL, 0.5), itl=Delay(0.02, Shape.LOGNORMAL, 0.4)
    )
    plan = open_plan(rate, duration_s, output_tokens=output_tokens)
    with tempfile.TemporaryDirectory(prefix="baton-calibrate-") as folder:
        log = Path(folder) / "truth.jsonl"
        async with mock_process(script, truth=log) as mock:
            measured = await send_to(mock, plan, api=api, stop=stop)
        truth = as_records(read_truth(log), _zero_s(measured))
    return measured, [record for record in truth if record.scheduled_s >= -_BEFORE_S]


async def send_to(
    mock: MockProcess,
    plan: Plan,
    *,
    api: Api = Api.COMPLETIONS,
    stop: asyncio.Event | None = None,
) -> Run:
    """Sends a plan to a mock, from this process. The mock's stalls count from its first request."""
    # Not looked at before: the mock's failures on order would meet the look as well.
    target = ResolvedTarget(url=mock.url, model="mock", api=api, tokens_per_word=_TOKENS_PER_WORD)
    writer = PromptWriter("calibrate", tokens_per_word=_TOKENS_PER_WORD)
    return await run_plan(plan, target, writer, stop=stop)


def open_plan(
    rate: float, duration_s: float, *, output_tokens: int = 1, prompt_tokens: int = 24
) -> Plan:
    """Requests at equal distances, ``rate`` per second, each with a prompt of its own."""
    requests = [
        _request(number, output_tokens, prompt_tokens, at_s=number / rate)
        for number in range(round(rate * duration_s))
    ]
    return _plan(duration_s, requests=requests)


def closed_plan(lanes: int, duration_s: float, *, output_tokens: int = 1) -> Plan:
    """``lanes`` places, each sending one request after the other."""

    def lane(number: int) -> Lane:
        name = f"lane-{number}"
        return Lane(
            name, ALL, lambda k: _request(k, output_tokens, 24, lane=name, key=f"{name}-{k}")
        )

    return _plan(duration_s, lanes=[lane(number) for number in range(lanes)])


def _request(
    number: int,
    output_tokens: int,
    prompt_tokens: int,
    *,
    at_s: float | None = None,
    lane: str | None = None,
    key: str | None = None,
) -> PlannedRequest:
    return PlannedRequest(
        index=number,
        class_name=ALL,
        pieces=(Piece(key or f"calibrate-{number}", prompt_tokens),),
        at_s=at_s,
        lane=lane,
        output_tokens=output_tokens,
    )


def _plan(
    duration_s: float,
    *,
    requests: Sequence[PlannedRequest] = (),
    lanes: Sequence[Lane] = (),
) -> Plan:
    return Plan(
        workload="calibrate",
        version="calibrate",
        seed=0,
        duration_s=duration_s,
        requests=tuple(requests),
        lanes=tuple(lanes),
    )


def _zero_s(measured: Run) -> float:
    """Second zero of the run on the monotonic clock, from its wall clock."""
    return measured.meta.started_wall_s - (time.time() - time.monotonic())


def _figures(
    records: Sequence[RequestRecord], duration_s: float
) -> Mapping[str, Mapping[str, float | None]]:
    return measure(records, duration_s, {})[ALL]


def compare(endpoint: str, measured: Run, truth: Sequence[RequestRecord]) -> list[Check]:
    """Every percentile of the client's records against the same of the server's log."""
    ours = _figures(measured.records, measured.meta.duration_s)
    theirs = _figures(truth, measured.meta.duration_s)
    checks = []
    for figure in FIGURES:
        for statistic in STATISTICS:
            client_s, truth_s = ours[figure][statistic], theirs[figure][statistic]
            if client_s is None or truth_s is None:
                continue
            checks.append(
                Check(
                    endpoint=endpoint,
                    figure=figure,
                    statistic=statistic,
                    client_s=client_s,
                    truth_s=truth_s,
                    n=int(ours[figure]["n"] or 0),
                    right=abs(client_s - truth_s) <= max(SHARE * truth_s, FLOOR_S),
                )
            )
    return checks


def unlike(measured: Run, truth: Sequence[RequestRecord]) -> list[str]:
    """What makes the two sides impossible to compare, in sentences; empty if nothing does."""
    found = [
        f"{problem.code}: {problem.text}" for problem in measured.meta.problems if problem.fatal
    ]
    whole = [record for record in measured.records if record.error is None]
    if len(whole) != len(truth):
        found.append(f"{len(whole)} whole answers at the client, {len(truth)} at the server")
    for name in ("output_tokens", "chunks"):
        client = sum(getattr(record, name) or 0 for record in whole)
        server = sum(getattr(record, name) or 0 for record in truth)
        if client != server:
            found.append(f"{name}: {client} at the client, {server} at the server")
    return found


async def provoke_omission(
    *,
    rate: float = 100.0,
    lanes: int = 4,
    duration_s: float = 10.0,
    stall_s: float = 1.0,
    stop: asyncio.Event | None = None,
) -> Omission:
    """Lets the mock stand still in the middle of an open and of a closed loop.

    In the open loop the share ``stall / duration`` of the requests is due in the stall and waits
    for its end, which fixes the p99. In the closed loop one request of each lane waits.
    """
    quick_s = 0.01
    script = Script(ttft=Delay(quick_s), itl=Delay(0.0), stalls=(Stall(duration_s / 2, stall_s),))
    found = []
    for plan in (open_plan(rate, duration_s), closed_plan(lanes, duration_s)):
        async with mock_process(script) as mock:
            measured = await send_to(mock, plan, stop=stop)
        found.append(_figures(measured.records, duration_s))
    expected_s = quick_s + stall_s - 0.01 * duration_s
    open_sched_s = found[0]["ttft_sched"]["p99"] or 0.0
    closed_s = found[1]["ttft"]["p99"] or 0.0
    return Omission(
        stall_s=stall_s,
        rate=rate,
        lanes=lanes,
        expected_s=expected_s,
        open_sched_p99_s=open_sched_s,
        open_send_p99_s=found[0]["ttft"]["p99"] or 0.0,
        closed_p99_s=closed_s,
        shown=open_sched_s >= 0.9 * expected_s and closed_s < expected_s / 4,
    )


async def find_reach(
    processes: int,
    offered_rps: float,
    *,
    duration_s: float = 4.0,
    stop: asyncio.Event | None = None,
) -> Reach:
    """One rate of short streams (8 tokens) from so many processes."""
    script = Script(ttft=Delay(0.01), itl=Delay(0.002))
    workload = Workload.model_validate(
        {
            "apiVersion": "baton/v1",
            "kind": "Workload",
            "metadata": {"name": "calibrate"},
            "spec": {
                "duration_s": duration_s,
                "classes": {
                    ALL: {
                        "arrivals": {"kind": "constant", "rate": offered_rps},
                        "prompt_tokens": 24,
                        "output_tokens": 8,
                    }
                },
            },
        }
    )
    async with mock_process(script) as mock:
        target = Target(url=mock.url, model="mock")
        measured = await run(workload, target, processes=processes, stop=stop)
    sent = [record for record in measured.records if record.sent_s is not None]
    within = sum((record.sent_s or 0.0) <= duration_s for record in sent)
    client = measured.meta.client
    cpu_s = client.cpu_share * client.processes * measured.meta.ended_s / max(1, len(sent))
    return Reach(
        processes=processes,
        offered_rps=offered_rps,
        sent_rps=within / duration_s,
        lag_p99_s=client.lag_p99_s,
        cpu_s=cpu_s,
        valid=measured.meta.valid,
        why=[problem.code for problem in measured.meta.problems if problem.fatal],
    )


async def _find_reach(found: list[Reach], processes: int, say: Say, stop: asyncio.Event) -> None:
    """Raises the rate until a run is invalid: 250, 500, then in steps of 500."""
    rate = 250.0
    while not stop.is_set():
        say(f"sending {rate:g} requests/s from {processes} process(es)")
        reach = await find_reach(processes, rate, stop=stop)
        if stop.is_set():
            return
        found.append(reach)
        if not reach.valid or rate >= 10_000:
            return
        rate = 500.0 if rate < 500 else rate + 500.0


def _report(report: CalibrationReport) -> list[str]:
    verdict = "accurate" if report.accurate else "NOT ACCURATE"
    lines = [f"instrument: {verdict} (within {SHARE:.0%} or {FLOOR_S * 1000:g} ms of the truth)"]
    lines += report.problems
    if not report.complete:
        lines.append("ended early: what follows is what was measured until then")
    if report.checks:
        lines += ["", "figure (ms)            client      truth        off"]
    for check in report.checks:
        name = f"{check.endpoint[:11]} {check.figure} {check.statistic}"
        off_ms = (check.client_s - check.truth_s) * 1000
        lines.append(
            f"{name:<22}{check.client_s * 1000:>9.2f}  {check.truth_s * 1000:>9.2f}  "
            f"{off_ms:>+9.3f}{'' if check.right else '  WRONG'}"
        )
    if report.omission is not None:
        lines += ["", *_omission_text(report.omission)]
    if report.reach:
        lines += ["", "processes  offered/s   sent/s  lag p99 ms  CPU/request ms  valid"]
    for reach in report.reach:
        lines.append(
            f"{reach.processes:>9}{reach.offered_rps:>11.0f}{reach.sent_rps:>9.0f}"
            f"{reach.lag_p99_s * 1000:>12.2f}{reach.cpu_s * 1000:>16.3f}  "
            f"{'yes' if reach.valid else 'no: ' + ', '.join(reach.why)}"
        )
    return lines


def _omission_text(found: Omission) -> list[str]:
    return [
        f"a server that stood still for {found.stall_s:g} s, TTFT p99 in ms "
        f"(certain from the schedule: {found.expected_s * 1000:.0f}):",
        f"  {found.rate:g} requests/s on schedule  {found.open_sched_p99_s * 1000:>7.0f}   "
        f"(from the send {found.open_send_p99_s * 1000:.0f})",
        f"  {found.lanes} lanes, closed loop        {found.closed_p99_s * 1000:>7.0f}   "
        "(nobody asks while it stands: the stall is hidden)",
    ]
