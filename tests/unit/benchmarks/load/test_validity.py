"""What speaks against a run, each at its threshold."""

from __future__ import annotations

import pytest

from benchmarks.load.health import LoopWatch, lag_of, percentile, worst
from benchmarks.load.sweep import backlog, saturation, search
from benchmarks.load.validity import expected_cached_tokens, find_problems, planned_shared_share
from benchmarks.plan import Piece, Plan
from benchmarks.records import ClientHealth, RequestRecord, Run, RunMeta
from tests.unit.benchmarks.load.plans import evenly, plan, request

GOOD = ClientHealth(lag_p50_s=0.0005, lag_p99_s=0.002, stall_p99_s=0.003, cpu_share=0.3)


def answered(index: int, **more: object) -> RequestRecord:
    at_s = index * 0.01
    fields: dict[str, object] = {
        "index": index, "class_name": "short", "scheduled_s": at_s, "sent_s": at_s + 0.001,
        "first_content_s": at_s + 0.101, "last_content_s": at_s + 0.201, "end_s": at_s + 0.202,
        "status": 200, "chunks": 11, "planned_prompt_tokens": 3, "prompt_tokens": 3,
        "planned_output_tokens": 11, "output_tokens": 11, **more,
    }  # fmt: skip
    return RequestRecord(**fields)  # type: ignore[arg-type]


def codes(
    records: list[RequestRecord], what: Plan, health: ClientHealth = GOOD, **more: bool
) -> list[tuple[str, bool]]:
    return [(p.code, p.fatal) for p in find_problems(records, health, what, **more)]


HUNDRED = [answered(n) for n in range(100)]


def test_sound_run() -> None:
    """A run as it should be has no problem."""
    assert codes(HUNDRED, evenly(100)) == []


def test_lag() -> None:
    """Late sends make a run invalid: over 10 ms, and over 5 % of the median TTFT."""
    late = ClientHealth(lag_p99_s=0.011)
    three = [answered(n, sent_s=n * 0.01 + 0.011) for n in range(3)] + HUNDRED[3:]
    assert codes(three, evenly(100), late) == [("client_lagged", True)]
    assert codes(three[2:], evenly(98), late) == [("client_lagged", False)]
    slow = [answered(n, first_content_s=n * 0.01 + 1.0, end_s=n * 0.01 + 2.0) for n in range(100)]
    assert codes(slow, evenly(100), late) == []


def test_stalls_and_cpu() -> None:
    """A stalled loop reads answers late; a busy process is worth a word."""
    for most_s, fatal in ((0.02, True), (0.012, False)):
        stalled = ClientHealth(stall_p99_s=0.012, stall_max_s=most_s)
        assert codes(HUNDRED, evenly(100), stalled) == [("client_lagged", fatal)]
    assert codes(HUNDRED, evenly(100), ClientHealth(cpu_share=0.9)) == [("client_lagged", False)]


def test_errors() -> None:
    """One percent of errors is noted, more is fatal."""
    one = [answered(0, error="http_503", status=503, detail="no worker"), *HUNDRED[1:]]
    assert codes(one, evenly(100)) == [("errors", False)]
    two = [answered(n, error="timeout") for n in range(2)] + HUNDRED[2:]
    assert codes(two, evenly(100)) == [("errors", True)]


def test_rate() -> None:
    """Under 98 % of the schedule sent is another load than the one named."""
    assert codes(HUNDRED[:98], evenly(100)) == []
    assert codes(HUNDRED[:97], evenly(100)) == [("rate_not_reached", True)]


def test_lengths() -> None:
    """Answers of another length than forced do not compare; unforced ones may be of any."""
    short = [answered(n, output_tokens=5) for n in range(2)] + HUNDRED[2:]
    assert codes(short, evenly(100)) == [("output_length", True)]
    assert codes(short, evenly(100), force_output=False) == []


def test_few_and_none() -> None:
    """No answer at all is fatal, a handful is noted."""
    assert codes(HUNDRED[:5], evenly(5)) == [("too_few", False)]
    assert ("too_few", True) in codes([answered(0, error="connect")], evenly(1))
    assert ("too_few", True) in codes([], plan(lanes=[]))


def test_interrupted() -> None:
    """An interrupted run is invalid, and not blamed for its rate besides."""
    assert codes(HUNDRED[:50], evenly(100), complete=False) == [("interrupted", True)]


def test_usage() -> None:
    """A server that counts no tokens is noted."""
    silent = [answered(n, output_tokens=None, prompt_tokens=None) for n in range(100)]
    assert codes(silent, evenly(100)) == [("no_usage", False)]


def prefixed(shared: int, own: int) -> Plan:
    return plan(
        [
            request(n, n * 0.01, pieces=(Piece("system", shared), Piece(f"own{n}", own)))
            for n in range(100)
        ]
    )


def test_warm_cache() -> None:
    """Cached tokens that the shared prefix explains are fine; more of them are a warm cache."""
    what = prefixed(600, 400)
    cold = [answered(n, prompt_tokens=1000, cached_tokens=600 if n else 0) for n in range(100)]
    assert codes(cold, what) == []
    assert planned_shared_share(what, cold) == pytest.approx(0.594)
    warm = [answered(n, prompt_tokens=1000, cached_tokens=992) for n in range(100)]
    assert codes(warm, what) == [("warm_cache", True)]


def test_chat_template_is_no_warm_cache() -> None:
    """A template's own tokens are cached from the second request on, which is nobody's fault."""
    records = [answered(n, prompt_tokens=80, cached_tokens=48) for n in range(100)]
    assert codes(records, prefixed(0, 32)) == []


def test_expected_cache_of_a_session() -> None:
    """A turn begins with the turns before it and their answers; a shorter piece of an equal key is
    shared whole, and what follows a difference is not shared."""
    what = plan(
        [
            request(0, 0.0, pieces=(Piece("a", 100),), session="s"),
            request(1, None, pieces=(Piece("b", 10),), session="s", after=0),
            request(2, 0.5, pieces=(Piece("a", 60), Piece("b", 10))),
            request(3, 0.6, pieces=(Piece("c", 5), Piece("a", 60))),
        ]
    )
    records = [
        answered(0, session="s", sent_s=0.0),
        answered(1, session="s", turn=1, sent_s=0.3),
        answered(2, sent_s=0.5),
        answered(3, sent_s=0.6),
    ]
    expected = expected_cached_tokens(what, records)
    assert [expected[None, n] for n in range(4)] == [0, 111, 60, 0]


def test_lag_leaves_out_what_is_not_ours() -> None:
    """Opening a connection is not the client's lag; lanes and later turns have no schedule."""
    assert lag_of(answered(0, sent_s=0.5, connect_s=0.4)) == pytest.approx(0.1)
    assert lag_of(answered(0, sent_s=0.5, lane="a")) == pytest.approx(0.5)
    assert lag_of(answered(0, sent_s=0.5, turn=1)) == pytest.approx(0.5)
    assert lag_of(answered(0, sent_s=None)) is None


def test_health_of_several() -> None:
    """The worst process speaks for all of them."""
    both = worst([ClientHealth(lag_p99_s=0.1, cpu_share=0.2), ClientHealth(cpu_share=0.9)])
    assert (both.lag_p99_s, both.cpu_share, both.processes) == (0.1, 0.9, 2)
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.0
    assert percentile([], 0.99) == 0.0
    assert LoopWatch(lambda _: None, lambda: 0.0).ordered() == []


def flow(seconds: float, growth: float) -> list[RequestRecord]:
    """100 requests a second for 10 s; each takes ``seconds`` and ``growth`` more per second."""
    return [
        answered(n, scheduled_s=n / 100, sent_s=n / 100, end_s=n / 100 * (1 + growth) + seconds)
        for n in range(1000)
    ]


def test_backlog() -> None:
    """Slow but steady is no saturation; a queue that grows is."""
    assert backlog(flow(3.0, 0.0), 10.0) is None
    assert backlog(flow(0.1, 0.02), 10.0) is None
    assert "in flight" in (backlog(flow(0.1, 0.3), 10.0) or "")


@pytest.mark.parametrize("capacity", [0.3, 1.7, 6.0])
async def test_search_closes_in(capacity: float) -> None:
    """The automatic sweep ends close below and above what the endpoint can take."""
    import asyncio

    tried: dict[float, bool] = {}

    async def measure(level: float) -> bool:
        tried[level] = level > capacity
        return tried[level]

    await search(measure, asyncio.Event(), bisections=3)
    good = max(level for level, bad in tried.items() if not bad)
    first_bad = min(level for level, bad in tried.items() if bad)
    assert good <= capacity < first_bad
    assert first_bad - good <= capacity * 0.25
    assert len(tried) <= 12


def closed(clients: int, answers: int) -> Run:
    """A second of a closed loop."""
    records = [answered(n, lane=f"lane-{n % clients}") for n in range(answers)]
    meta = RunMeta(
        id="r", started_wall_s=0.0, duration_s=1e6, ended_s=1e6, complete=True, salt="s", plan={},
        target={},
    )  # fmt: skip
    return Run(meta, records)


@pytest.mark.parametrize(
    ("clients", "answers", "saturated"),
    [(16, 104, True), (16, 106, False), (9, 100, True), (9, 101, False), (8, 90, False)],
)
def test_a_closed_loop_has_no_more_to_give(clients: int, answers: int, saturated: bool) -> None:
    """Five per cent more throughput are asked of twice the clients, and in proportion of fewer;
    of as many clients nothing."""
    assert saturation(closed(clients, answers), before=closed(8, 100)).saturated == saturated
