"""The calibration's own judgement: right figures pass, wrong ones and lost answers do not."""

from __future__ import annotations

import msgspec
import pytest

from benchmarks.calibrate import (
    CalibrationReport,
    Omission,
    Reach,
    closed_plan,
    compare,
    open_plan,
    unlike,
)
from benchmarks.mock import Truth, as_records
from benchmarks.records import Problem, RequestRecord, Run, RunMeta


def _truths(count: int = 40) -> list[Truth]:
    return [
        Truth(
            number=number,
            received_s=100.0 + number,
            started_s=100.0 + number,
            chunks_s=[100.1 + 1.01 * number + 0.05 * chunk for chunk in range(5)],
            chunk_tokens=[1] * 5,
            end_s=100.3 + 1.01 * number,
            prompt_tokens=10,
        )
        for number in range(count)
    ]


def _run(records: list[RequestRecord], *problems: Problem) -> Run:
    meta = RunMeta(
        id="r",
        started_wall_s=0.0,
        duration_s=50.0,
        ended_s=50.0,
        complete=True,
        salt="s",
        plan={},
        target={},
        problems=list(problems),
    )
    return Run(meta=meta, records=records)


def _later(seconds: float) -> list[RequestRecord]:
    """The truth, with each answer seen ``seconds`` late."""
    records = as_records(_truths(), 100.0)
    for record in records:
        assert record.first_content_s is not None
        assert record.end_s is not None
        record.first_content_s += seconds
        record.chunks_s = [at_s + seconds for at_s in record.chunks_s]
        record.end_s += seconds
    return records


def test_truth_is_seconds_since_the_runs_start() -> None:
    """A log line becomes a record of the same request, on the run's clock."""
    record = as_records(_truths(), 100.0)[3]
    assert (record.index, record.sent_s, record.output_tokens, record.chunks) == (3, 3.0, 5, 5)
    assert record.first_content_s == pytest.approx(0.1 + 3.03)
    assert record.end_s == pytest.approx(0.3 + 3.03)


def test_equal_records_are_right() -> None:
    """Nothing is off, in any figure, and every figure is there."""
    truth = as_records(_truths(), 100.0)
    checks = compare("completions", _run(_later(0.0)), truth)
    assert len(checks) == 20
    assert all(check.right for check in checks)
    assert unlike(_run(_later(0.0)), truth) == []


def test_what_is_late_by_more_than_both_bounds_is_wrong() -> None:
    """Ten milliseconds on a TTFT of some hundred are seen, half a millisecond is not; gaps
    between chunks are as they were."""
    truth = as_records(_truths(), 100.0)
    late = compare("completions", _run(_later(0.01)), truth)
    assert {check.figure for check in late if not check.right} >= {"ttft"}
    assert all(check.right for check in late if check.figure == "itl")
    assert all(check.right for check in compare("c", _run(_later(0.0005)), truth))


def test_lost_answers_tokens_and_invalid_runs_cannot_be_compared() -> None:
    """A percentile of other requests says nothing, however close it is."""
    truth = as_records(_truths(), 100.0)
    assert "39 whole answers" in unlike(_run(_later(0.0)[1:]), truth)[0]
    fewer = _later(0.0)
    fewer[0].output_tokens = 4
    assert unlike(_run(fewer), truth) == ["output_tokens: 199 at the client, 200 at the server"]
    invalid = _run(_later(0.0), Problem("client_lagged", "late"), Problem("note", "x", fatal=False))
    assert unlike(invalid, truth) == ["client_lagged: late"]


def test_plans_are_what_they_say() -> None:
    """Open: equal distances, a prompt of its own each. Closed: lanes whose prompts differ."""
    plan = open_plan(20, 2.0, output_tokens=3)
    assert [request.at_s for request in plan.requests[:3]] == [0.0, 0.05, 0.1]
    assert len({request.pieces[0].key for request in plan.requests}) == 40
    lanes = closed_plan(3, 2.0).lanes
    drawn = [lane.draw(number) for lane in lanes for number in range(5)]
    assert len({request.pieces[0].key for request in drawn}) == 15
    assert {request.lane for request in drawn} == {lane.name for lane in lanes}


def test_the_report_is_read_by_people_and_programs() -> None:
    """Text has every part; JSON comes back as it went."""
    truth = as_records(_truths(), 100.0)
    report = CalibrationReport(
        checks=compare("completions", _run(_later(0.01)), truth),
        problems=["client_lagged: late"],
        omission=Omission(
            stall_s=1.0,
            rate=100,
            lanes=4,
            expected_s=0.91,
            open_sched_p99_s=0.92,
            open_send_p99_s=0.92,
            closed_p99_s=0.012,
            shown=True,
        ),
        reach=[
            Reach(
                processes=2,
                offered_rps=1500,
                sent_rps=1203,
                lag_p99_s=0.4,
                cpu_s=0.0007,
                valid=False,
                why=["rate_not_reached"],
            )
        ],
        complete=False,
    )
    text = report.text()
    for part in ("NOT ACCURATE", "WRONG", "hidden", "no: rate_not_reached", "ended early", "late"):
        assert part in text
    raw = msgspec.json.encode(report)
    assert msgspec.json.decode(raw, type=CalibrationReport) == report
