"""The instrument against a server whose delays are known: are its figures right, does it see
what it is easy not to see, and does it say so when it cannot be believed?"""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import pytest

from benchmarks.calibrate import (
    CalibrationReport,
    compare,
    measure_known,
    open_plan,
    provoke_omission,
    send_to,
    unlike,
)
from benchmarks.metrics import measure
from benchmarks.mock import Delay, Script, Shape, mock_process
from benchmarks.records import RequestRecord, Run
from benchmarks.target import Api

_ATTEMPTS = 4

SPREAD = Script(
    seed=1, ttft=Delay(0.15, Shape.LOGNORMAL, 0.5), itl=Delay(0.03, Shape.LOGNORMAL, 0.4)
)


async def believable(
    api: Api, script: Script, *, duration_s: float, rate: float, output_tokens: int = 12
) -> tuple[Run, list[RequestRecord]]:
    """A run that calls itself valid. Where neighbours leave the machine no time for one, there is
    nothing to check: the promise is about runs that say they can be believed."""
    for _ in range(_ATTEMPTS):
        run, truth = await measure_known(
            api, duration_s=duration_s, rate=rate, output_tokens=output_tokens, script=script
        )
        if run.meta.valid:
            return run, truth
    pytest.skip(f"the machine is too busy: {[p.text for p in run.meta.problems if p.fatal]}")


@pytest.mark.parametrize("api", list(Api))
async def test_every_percentile_is_within_two_percent_or_a_millisecond(api: Api) -> None:
    """TTFT, ITL, TPOT and E2E, their means and percentiles, against the times at which the
    server wrote: none of them is off by more than the larger of 2 % and 1 ms."""
    for attempt in range(_ATTEMPTS):
        run, truth = await believable(api, SPREAD, duration_s=3.0, rate=40)
        assert unlike(run, truth) == []
        checks = compare(api.value, run, truth)
        wrong = [check for check in checks if not check.right]
        # A neighbour can disturb a run without being noticed; a wrong instrument is always wrong.
        if not wrong:
            break
        assert attempt < _ATTEMPTS - 1, wrong
    assert len(checks) == 4 * 5
    assert len(run.records) == 120


async def test_chunks_are_not_tokens() -> None:
    """13 tokens in chunks of 4, 4, 4 and 1: ITL is the gap between chunks, and TPOT divides the 90
    ms after the first chunk by 12 tokens, not by 3 gaps."""
    script = Script(ttft=Delay(0.03), itl=Delay(0.01), tokens_per_chunk=4)
    run, truth = await believable(
        Api.COMPLETIONS, script, duration_s=2.0, rate=20, output_tokens=13
    )
    assert unlike(run, truth) == []
    figures = measure(run.records, run.meta.duration_s, {})["all"]
    assert figures["itl"]["p50"] == pytest.approx(0.04, rel=0.1)
    assert figures["tpot"]["p50"] == pytest.approx(0.0075, rel=0.1)
    assert {record.chunks for record in run.records} == {4}


async def test_a_stall_is_seen_from_the_schedule_and_hidden_by_a_closed_loop() -> None:
    """The server stands still for a second: the p99 from the schedule is nearly that, and a
    closed loop over the same server reports next to nothing."""
    found = await provoke_omission(rate=60, lanes=3, duration_s=3.0, stall_s=1.0)
    assert found.shown, found
    assert found.open_sched_p99_s >= 0.85
    assert found.closed_p99_s < 0.25


async def test_failures_are_counted_as_what_they_were() -> None:
    """Errors, error events and cut streams are told apart, and none of them is in a latency."""
    script = Script(
        ttft=Delay(0.01), itl=Delay(0.002), error_rate=0.2, error_event_rate=0.2, cut_rate=0.2
    )
    run, truth = await measure_known(Api.COMPLETIONS, duration_s=2.0, rate=100, script=script)
    names = {"error": "http_503", "error_event": "error_event", "cut": "stream_cut", None: None}
    ours = Counter(record.error for record in run.records)
    theirs = Counter(names[record.error] for record in truth)
    assert ours == theirs
    assert len(ours) == 4
    figures = measure(run.records, run.meta.duration_s, {})["all"]
    assert figures["ttft"]["n"] == ours[None]


async def test_a_starved_client_calls_its_run_invalid() -> None:
    """Something else takes the event loop half of the time: requests are sent late, and the run
    says that it is not the server that was measured."""

    async def hog() -> None:
        while True:
            time.sleep(0.15)  # noqa: ASYNC251 (blocking is the point)
            await asyncio.sleep(0.15)

    async with mock_process(Script(ttft=Delay(0.01), itl=Delay(0.002))) as mock:
        hogging = asyncio.create_task(hog())
        try:
            run = await send_to(mock, open_plan(50, 3.0))
        finally:
            hogging.cancel()
            await asyncio.gather(hogging, return_exceptions=True)
    assert not run.meta.valid
    assert "client_lagged" in [problem.code for problem in run.meta.problems if problem.fatal]


async def test_the_report_speaks_to_people() -> None:
    """Figures, how far they are off, and a word that says whether to believe them."""
    run, truth = await measure_known(Api.COMPLETIONS, duration_s=1.0, rate=20)
    checks = compare("completions", run, truth)
    said = CalibrationReport(checks=checks, accurate=False).text()
    assert "NOT ACCURATE" in said
    assert "completions ttft p99" in said
