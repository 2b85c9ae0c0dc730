"""The load generator against a small real HTTP server: what it sends, when, and what it notes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from baton.errors import SettingsError, TargetError, WorkloadError
from benchmarks.load import Progress, ResolvedTarget, read_run, run, run_plan, sweep
from benchmarks.load.processes import ChildCrew, Job
from benchmarks.plan import Plan
from benchmarks.records import Run, Scrape
from benchmarks.target import Api, Target
from benchmarks.workloads import Workload
from tests.fakes.waiting import until
from tests.unit.benchmarks.load.plans import Words, evenly, lane, plan, request
from tests.unit.benchmarks.load.scripted_server import ScriptedServer


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    async with ScriptedServer().running() as running:
        yield running


def stop_after(server: ScriptedServer, requests: int) -> tuple[asyncio.Event, asyncio.Task[None]]:
    """A wish to stop that comes when the server has had so many requests."""
    stop = asyncio.Event()

    async def watch() -> None:
        await until(lambda: len(server.requests) > requests, timeout_s=30.0)
        stop.set()

    return stop, asyncio.create_task(watch())


@pytest.fixture(autouse=True)
async def nothing_left() -> AsyncIterator[None]:
    """No task of the load generator outlives a test."""
    yield
    left = {task.get_name() for task in asyncio.all_tasks()}
    assert not left & {"loop-watch", "stop-watch", "progress", "stop-children", "load-0", "load-1"}


def target(server: ScriptedServer, **more: object) -> ResolvedTarget:
    return ResolvedTarget(url=server.url, model="m", **more)  # type: ignore[arg-type]


def workload(rate: float = 40.0, duration_s: float = 1.0, **arrivals: object) -> Workload:
    kind = arrivals or {"kind": "constant", "rate": rate}
    return Workload.model_validate(
        {
            "apiVersion": "baton/v1",
            "kind": "Workload",
            "metadata": {"name": "w"},
            "spec": {
                "duration_s": duration_s,
                "classes": {
                    "short": {
                        "arrivals": kind,
                        "prompt_tokens": 20,
                        "output_tokens": 4,
                    }
                },
            },
        }
    )


async def sent(what: Plan, server: ScriptedServer, **more: object) -> Run:
    return await run_plan(what, target(server, **more), Words())


async def test_one_request_in_full(server: ScriptedServer) -> None:
    """All that a record holds, from a streamed answer."""
    server.ttft_s, server.itl_s, server.cached = 0.05, 0.02, 2
    found = await sent(plan([request(0, 0.1, tenant="t", priority=5)]), server)
    (record,) = found.records
    assert (record.status, record.error, record.finish_reason) == (200, None, "length")
    assert (record.prompt_tokens, record.output_tokens, record.cached_tokens) == (3, 4, 2)
    assert (record.path, record.reason, record.worker) == ("local", "short", None)
    assert record.chunks == len(record.chunks_s) == 4
    assert record.sent_s is not None
    assert record.first_content_s is not None
    assert record.last_content_s is not None
    assert record.end_s is not None
    assert record.connect_s is not None
    assert record.sent_s >= 0.1
    assert record.first_content_s - record.sent_s >= 0.05
    assert record.first_content_s < record.last_content_s <= record.end_s
    (body,) = server.requests
    assert body == {
        "model": "m", "prompt": "k0.0 k0.1 k0.2", "max_tokens": 4, "min_tokens": 4,
        "ignore_eos": True, "temperature": 0, "stream": True,
        "stream_options": {"include_usage": True}, "user": "t", "priority": 5,
    }  # fmt: skip


async def test_chat_role_is_no_content(server: ScriptedServer) -> None:
    """The chunk with a role alone is not the first content; nothing is forced unless asked."""
    server.ttft_s = 0.01
    found = await sent(plan([request(0, 0.0)]), server, api=Api.CHAT, force_output=False)
    assert found.records[0].chunks == 4
    assert "ignore_eos" not in server.requests[0]
    assert server.requests[0]["messages"] == [{"role": "user", "content": "k0.0 k0.1 k0.2"}]


async def test_whole_answers(server: ScriptedServer) -> None:
    """Without a stream there is an end, and no first content that was not seen."""
    found = await sent(plan([request(0, 0.0)]), server, stream=False)
    (record,) = found.records
    assert (record.error, record.output_tokens, record.finish_reason) == (None, 4, "length")
    assert (record.first_content_s, record.chunks) == (None, 0)


@pytest.mark.parametrize(
    ("fault", "error", "detail"),
    [
        ("http_503", "http_503", "no worker"),
        ("error_event", "error_event", "engine died"),
        ("cut", "stream_cut", None),
        ("quiet_end", "stream_cut", None),
        ("disconnect", "disconnect", None),
        ("hang", "timeout", None),
        ("json", "bad_answer", "not a stream"),
        ("garbage", "bad_answer", None),
    ],
)
async def test_errors(server: ScriptedServer, fault: str, error: str, detail: str | None) -> None:
    """Each way to fail has its name, and makes the run invalid."""
    server.fault = fault
    timeout_s = 0.3 if fault == "hang" else 10.0
    found = await sent(plan([request(0, 0.0), request(1, 0.01)]), server, timeout_s=timeout_s)
    assert [record.error for record in found.records] == [error, error]
    assert all(record.end_s is not None for record in found.records)
    assert not found.meta.valid
    assert {p.code for p in found.meta.problems} >= {"errors", "too_few"}
    if detail is not None:
        assert detail in (found.records[0].detail or "")


async def test_nobody_there() -> None:
    """A refused connection is an error of its own; nothing was sent."""
    found = await run_plan(
        plan([request(0, 0.0)]), ResolvedTarget(url="http://127.0.0.1:9", model="m"), Words()
    )
    assert [(r.error, r.sent_s, r.status) for r in found.records] == [("connect", None, 0)]


async def test_open_loop_rate(server: ScriptedServer) -> None:
    """400 requests a second are sent as planned: sleeps of a millisecond do not add up."""
    found = await sent(evenly(800, 2.0), server)
    assert len(found.records) == 800
    assert Counter(r.error for r in found.records) == {None: 800}
    late = [r for r in found.records if r.sent_s is not None and r.sent_s > r.scheduled_s + 0.25]
    assert not late
    last = max(r.sent_s for r in found.records if r.sent_s is not None)
    assert last < 2.3


async def test_coordinated_omission(server: ScriptedServer) -> None:
    """A server that stands still for a second: the open loop's figures show what users wait, the
    closed loop's hide it behind the few requests that it had in flight."""
    server.ttft_s, server.stall_at = 0.005, (0.5, 1.0)

    async def slow_share(what: Plan) -> float:
        server.requests.clear()
        found = await sent(what, server)
        assert len(found.records) >= 50
        slow = sum(1 for r in found.records if (r.first_content_s or 0.0) - r.scheduled_s > 0.2)
        return slow / len(found.records)

    opened = await slow_share(evenly(200, 2.0))
    closed = await slow_share(plan(lanes=[lane("a"), lane("b")], duration_s=2.0))
    assert opened >= 0.3
    assert 0 < closed < opened / 5


async def test_slow_answers_hold_nothing_up(server: ScriptedServer) -> None:
    """Requests leave with any number of answers outstanding: there is no hidden bound on
    connections. Nobody is answered before all have come."""
    server.together = 300
    found = await sent(evenly(300, 0.5), server, timeout_s=30.0)
    assert Counter(r.error for r in found.records) == {None: 300}
    assert server.connections == 300


async def test_connections_are_reused(server: ScriptedServer) -> None:
    """One lane, one connection."""
    found = await sent(plan(lanes=[lane("a", requests=30)], duration_s=5.0), server)
    assert len(found.records) == 30
    assert server.connections == 1


async def test_session_carries_history(server: ScriptedServer) -> None:
    """A conversation's second turn holds the first one's prompt and what was answered."""
    turns = [request(0, 0.0, session="s"), request(1, None, session="s", after=0, think_s=0.05)]
    found = await sent(plan(turns), server, api=Api.CHAT)
    first, second = found.records
    assert second.scheduled_s == pytest.approx((first.end_s or 0.0) + 0.05)
    assert [m["content"] for m in server.requests[1]["messages"]] == [
        "k0.0 k0.1 k0.2", " w0 w1 w2 w3", "k1.0 k1.1 k1.2",
    ]  # fmt: skip


async def test_stop_keeps_what_there_is(server: ScriptedServer, tmp_path: Path) -> None:
    """Stopped in the middle: what was measured is on disk and readable, what was in flight is
    cancelled, no connection stays open."""
    server.ttft_s = 0.2
    folder = tmp_path / "run"
    stop, stopping = stop_after(server, 60)
    found = await run_plan(evenly(1000, 10.0), target(server), Words(), folder=folder, stop=stop)
    await stopping
    assert not found.meta.complete
    assert "interrupted" in {p.code for p in found.meta.problems}
    kinds = Counter(r.error for r in found.records)
    assert set(kinds) == {None, "cancelled"}
    assert kinds[None] > 10
    assert read_run(folder).records == found.records
    await until(lambda: not server.open, what="connections closed")


async def test_cancellation_keeps_what_there_is(server: ScriptedServer, tmp_path: Path) -> None:
    """The caller is cancelled: the folder can be read, and says that the run is not whole."""
    server.ttft_s = 0.1
    work = asyncio.create_task(
        run_plan(evenly(1000, 10.0), target(server), Words(), folder=tmp_path / "run")
    )
    await until(lambda: len(server.requests) > 30)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    found = read_run(tmp_path / "run")
    assert not found.meta.complete
    assert Counter(r.error for r in found.records)["cancelled"] > 0
    await until(lambda: not server.open, what="connections closed")


@pytest.mark.usefixtures("patient")
async def test_run_from_a_workload(server: ScriptedServer, tmp_path: Path) -> None:
    """The whole way: warm-up, measurement, result; no prompt twice, no key in any file."""
    seen: list[Progress] = []
    found = await run(
        workload(),
        Target(url=f"{server.url}/v1", api_key="sesame"),
        folder=tmp_path / "r",
        warmup_s=0.3,
        on_progress=seen.append,
    )
    assert found.meta.valid, found.meta.problems
    assert found.meta.complete
    assert len(found.records) == 40
    assert len(server.measured) > 40
    prompts = Counter(body["prompt"] for body in server.requests)
    assert max(prompts.values()) == 1
    assert read_run(tmp_path / "r") == found
    assert found.meta.id == "r"
    assert found.meta.plan["workload"] == "w"
    assert found.meta.plan["offered_rps"] == pytest.approx(40, rel=0.05)
    assert {"warm-up", "prepare", "measure"} <= {progress.phase for progress in seen}
    for path in (tmp_path / "r").iterdir():
        assert b"sesame" not in path.read_bytes()
    with pytest.raises(SettingsError, match="holds a run already"):
        await run(workload(), Target(url=server.url), folder=tmp_path / "r")


async def test_salts_and_seeds(server: ScriptedServer) -> None:
    """Equal seed and salt send equal prompts; another salt sends others on the same schedule."""
    first = await run(workload(20, 0.5), Target(url=server.url), salt="a")
    prompts = [{b["prompt"] for b in server.measured}]
    for salt in ("a", "b"):
        server.requests.clear()
        again = await run(workload(20, 0.5), Target(url=server.url), salt=salt)
        prompts.append({b["prompt"] for b in server.measured})
        assert [r.scheduled_s for r in again.records] == [r.scheduled_s for r in first.records]
        assert again.meta.plan["version"] == first.meta.plan["version"]
    assert prompts[0] == prompts[1]
    assert not prompts[0] & prompts[2]


class _Watcher:
    """An observer; ``slow_s`` is how long its first look takes."""

    def __init__(self, slow_s: float) -> None:
        self.slow_s = slow_s
        self.zero_s = 0.0

    async def start(self, clock_zero: float, target: ResolvedTarget) -> None:
        self.zero_s = clock_zero
        await asyncio.sleep(self.slow_s)

    async def stop(self) -> list[Scrape]:
        at_s = asyncio.get_running_loop().time() - self.zero_s
        return [Scrape(at_s=at_s, source="x", role="other", values={"a": 1.0})]


@pytest.mark.parametrize("slow_s", [0.0, 1.2])
async def test_observer(server: ScriptedServer, tmp_path: Path, slow_s: float) -> None:
    """A slow observer costs no request its time, and its looks are on the run's clock."""
    watcher = _Watcher(slow_s)
    found = await run_plan(
        evenly(20, 0.5), target(server), Words(), folder=tmp_path / "r", observer=watcher
    )
    assert len(found.records) == 20
    assert max((r.sent_s or 9.0) - r.scheduled_s for r in found.records) < 0.6
    (scrape,) = found.scrapes
    assert 0.45 <= scrape.at_s < 1.4
    assert read_run(tmp_path / "r").scrapes == found.scrapes


async def test_several_processes_send_the_same(server: ScriptedServer, tmp_path: Path) -> None:
    """Two processes send what one would: each request once, on one clock."""
    one = await run(workload(), Target(url=server.url), salt="s")
    alone = Counter(body["prompt"] for body in server.measured)
    server.requests.clear()
    two = await run(
        workload(), Target(url=server.url), salt="s", processes=2, folder=tmp_path / "r"
    )
    assert Counter(body["prompt"] for body in server.measured) == alone
    assert [r.index for r in two.records] == [r.index for r in one.records]
    assert {r.process for r in two.records} == {0, 1}
    assert two.meta.client.processes == 2
    assert max((r.sent_s or 9.0) - r.scheduled_s for r in two.records) < 0.6
    assert sorted(p.name for p in (tmp_path / "r").iterdir()) == [
        "requests.jsonl", "run.json", "scrapes.jsonl",
    ]  # fmt: skip
    assert read_run(tmp_path / "r") == two


def job(server: ScriptedServer, what: Workload) -> Job:
    return Job(
        workload=json.loads(what.model_dump_json(by_alias=True)),
        target=target(server, api_key="sesame", tokens_per_word=1.0),
        seed=0, rate_scale=1.0, time_scale=1.0, duration_s=None, salt="s", shard=0, shards=2,
        path="",
    )  # fmt: skip


def cmdline(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_child_is_killed(server: ScriptedServer, tmp_path: Path) -> None:
    """A process that dies leaves the other one at work, its own records on disk, and a problem."""
    crew = ChildCrew(job(server, workload(duration_s=4.0)), 2, tmp_path)
    try:
        await crew.prepare()
        assert not any(b"sesame" in cmdline(pid) for pid in crew.pids)
        loop = asyncio.get_running_loop()
        loop.call_later(2.5, os.kill, crew.pids[0], signal.SIGKILL)
        await crew.run(loop.time() + 0.1, asyncio.Event())
        records = crew.records()
    finally:
        await crew.close()
    assert [p.code for p in crew.problems] == ["process_died"]
    by = Counter(record.process for record in records)
    assert by[1] == 80
    assert 20 <= by[0] < 80
    assert not any(alive(pid) for pid in crew.pids)


async def test_children_stop_when_told(server: ScriptedServer, tmp_path: Path) -> None:
    """A stop reaches the children; what they have is merged."""
    crew = ChildCrew(job(server, workload(duration_s=60.0)), 2, tmp_path)
    try:
        await crew.prepare()
        stop, stopping = stop_after(server, 30)
        async with asyncio.timeout(20.0):
            await crew.run(asyncio.get_running_loop().time(), stop)
        await stopping
        assert crew.problems == []
        assert 20 <= len(crew.records()) <= 60 * 40 / 4
    finally:
        await crew.close()
    assert not any(alive(pid) for pid in crew.pids)


async def test_a_wedged_child_does_not_hold_the_run_up(
    server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that stands still is killed when the last answer must have come, and is named."""
    monkeypatch.setattr("benchmarks.load.processes._DRAIN_SPARE_S", 0.5)
    crew = ChildCrew(job(server, workload(duration_s=1.0)), 2, tmp_path, most_s=2.0)
    try:
        await crew.prepare()
        os.kill(crew.pids[0], signal.SIGSTOP)
        async with asyncio.timeout(30.0):
            await crew.run(asyncio.get_running_loop().time(), asyncio.Event())
        assert [p.code for p in crew.problems] == ["process_died"]
        assert {record.process for record in crew.records()} == {1}
    finally:
        await crew.close()
    assert not any(alive(pid) for pid in crew.pids)


async def test_cancelled_parent_leaves_no_child(server: ScriptedServer) -> None:
    """The parent is cancelled while children send: they are gone when it is."""
    crew = ChildCrew(job(server, workload(duration_s=60.0)), 2, None)

    async def work() -> None:
        try:
            await crew.prepare()
            await crew.run(asyncio.get_running_loop().time(), asyncio.Event())
        finally:
            await crew.close()

    task = asyncio.create_task(work())
    await until(lambda: len(server.requests) > 5, timeout_s=20.0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(crew.pids) == 2
    assert not any(alive(pid) for pid in crew.pids)


async def test_child_says_what_is_wrong(server: ScriptedServer) -> None:
    """A tokenizer that is not there is the same clear error from a child as from here."""
    wrong = job(server, workload())
    wrong.target = target(server, tokenizer=Path("/nowhere/tokenizer.json"))
    crew = ChildCrew(wrong, 1, None)
    try:
        with pytest.raises(TargetError, match="nowhere"):
            await crew.prepare()
    finally:
        await crew.close()


async def test_wrong_processes(server: ScriptedServer) -> None:
    """No process at all cannot send."""
    with pytest.raises(SettingsError, match="processes"):
        await run(workload(), Target(url=server.url), processes=0)
    with pytest.raises(WorkloadError):
        await run(workload(), Target(url=server.url), rate_scale=-1.0)


@pytest.mark.usefixtures("patient")
async def test_sweep_over_levels(server: ScriptedServer, tmp_path: Path) -> None:
    """Given levels are all run, each in its folder with its own prompts."""
    runs = await sweep(
        workload(20, 0.5), Target(url=server.url), [2.0, 1.0], folder=tmp_path, salt="s"
    )
    assert [r.meta.plan["rate_scale"] for r in runs] == [1.0, 2.0]
    assert [r.meta.id for r in runs] == ["02-x1", "01-x2"]
    assert [len(r.records) for r in runs] == [10, 20]
    assert [r.meta.plan["saturated_why"] for r in runs] == ["", ""], runs[0].meta.problems
    assert max(Counter(b["prompt"] for b in server.requests).values()) == 1
    assert read_run(tmp_path / "01-x2").meta == runs[1].meta
