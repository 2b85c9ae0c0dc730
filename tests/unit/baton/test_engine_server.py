"""The engine's supervisor, with small processes in the place of engines."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from baton.clock import VirtualClock
from baton.engine import Device, Engine, EngineSpec, GroupRank, server
from baton.process import Backoff
from baton.settings import free_port
from baton.types import EngineId, Load, Role, WorkerState
from tests.fakes import engine_process
from tests.fakes.waiting import until

KEY = "key-of-the-fake-engine"


class Supervised:
    """An engine under supervision, and what was seen of it."""

    def __init__(
        self, mode: str, port: int, *, group: GroupRank | None = None, **settings: Any
    ) -> None:
        self.mode = mode
        self.group = group
        self.specs: list[EngineSpec] = []
        self.states: list[WorkerState] = []
        self.pids: list[int] = []
        self.stop = asyncio.Event()
        self._port = port
        self.engine = Engine(
            "test", self._make_spec, on_change=self._on_change, stop_grace_s=2.0, **settings
        )
        self.engine._backoff = Backoff(first_s=0.01, most_s=0.05)
        self.task: asyncio.Task[None] | None = None

    def _make_spec(self, engine_id: EngineId, run_dir: Path) -> EngineSpec:
        spec = EngineSpec(
            name="test",
            role=Role.DECODE,
            device=Device.CPU,
            model=Path("/nowhere"),
            served_name=self.mode,
            host="127.0.0.1",
            port=self._port,
            api_key=KEY,
            engine_id=engine_id,
            run_dir=run_dir,
            side_channel_host="127.0.0.1",
            side_channel_port=1,
            block_size=32,
            lease_s=30,
            ucx_tls="tcp,self",
            group=self.group,
        )
        self.specs.append(spec)
        return spec

    def _on_change(self) -> None:
        self.states.append(self.engine.health.state)
        if self.engine.pid is not None and self.engine.pid not in self.pids:
            self.pids.append(self.engine.pid)

    def start(self) -> None:
        self.task = asyncio.create_task(self.engine.run(self.stop))

    async def ready(self, runs: int = 1) -> int:
        """Waits until the given run is ready; its pid."""
        await until(
            lambda: (
                len(self.specs) >= runs
                and self.engine.health.state is WorkerState.READY
                and self.engine.health.engine_id == self.specs[-1].engine_id
            ),
            what=f"run {runs} is ready",
        )
        assert self.engine.pid is not None
        return self.engine.pid

    async def end(self) -> None:
        self.stop.set()
        if self.task is not None:
            await asyncio.gather(self.task, return_exceptions=True)


def _command(spec: EngineSpec) -> list[str]:
    script = engine_process.__file__
    return [sys.executable, "-S", "-E", script, str(spec.port), spec.served_name, KEY]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Small processes, small intervals, and a temporary folder of the test's own."""
    monkeypatch.setattr(server, "command", _command)
    monkeypatch.setattr(server, "_POLL_S", 0.02)
    monkeypatch.setattr(server, "_WATCH_S", 0.05)
    monkeypatch.setattr(server, "_ANSWER_S", 0.2)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
async def made() -> AsyncIterator[list[Supervised]]:
    supervised: list[Supervised] = []
    yield supervised
    for each in supervised:
        await each.end()
        left = [pid for pid in each.pids if not _gone(pid)]
        assert left == [], "processes left behind"
        assert not any(spec.run_dir.exists() for spec in each.specs), "folders left behind"


def _gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def supervise(made: list[Supervised], mode: str = "good", **settings: Any) -> Supervised:
    each = Supervised(mode, free_port("127.0.0.1", 19_000), **settings)
    made.append(each)
    each.start()
    return each


async def test_a_good_engine(made: list[Supervised]) -> None:
    """Healthy, then proven by a generation, then ready; its limit and load are read."""
    each = supervise(made)
    await each.ready()
    assert each.states == [WorkerState.STARTING, WorkerState.WARMING, WorkerState.READY]
    assert each.specs[0].run_dir.is_dir()
    health = each.engine.health
    assert health.engine_id == each.specs[0].engine_id
    assert health.max_model_len == 4096
    assert health.version == "0.32.0-fake"
    assert health.transport == "tcp"
    assert health.restarts == 0
    await until(lambda: each.engine.health.load == Load(running=2, waiting=1, kv_usage=0.25))
    assert each.engine.health.load_read_s > 0


async def test_stop(made: list[Supervised]) -> None:
    """Stopping ends the process and the supervisor; nothing is started again."""
    each = supervise(made)
    pid = await each.ready()
    await each.end()
    assert _gone(pid)
    assert len(each.specs) == 1
    assert each.task is not None
    assert each.task.exception() is None


async def test_a_killed_engine(made: list[Supervised]) -> None:
    """Its death is noticed at once; the next run has another id, and is proven anew."""
    each = supervise(made)
    os.kill(await each.ready(), signal.SIGKILL)
    await each.ready(runs=2)
    assert each.states[3:] == [WorkerState.STARTING] * 2 + [WorkerState.WARMING, WorkerState.READY]
    assert each.specs[0].engine_id != each.specs[1].engine_id
    assert each.specs[0].run_dir != each.specs[1].run_dir
    health = each.engine.health
    assert health.restarts == 1
    assert "status -9" in (health.last_error or "")


async def test_an_api_server_that_dies_before_its_core(made: list[Supervised]) -> None:
    """A grandchild that keeps the output open does not hide the death, and is killed."""
    each = supervise(made, "good-with-core")
    pid = await each.ready()
    (core,) = psutil.Process(pid).children()
    os.kill(pid, signal.SIGKILL)
    await until(lambda: each.engine.health.state is not WorkerState.READY, timeout_s=1.0)
    await until(lambda: _gone(core.pid))
    await each.ready(runs=2)


@pytest.mark.parametrize(
    ("mode", "says"),
    [
        ("exits", "status 3 (ERROR 01-01 00:00:00 [fake.py:2] no such model)"),
        ("unhealthy", "not healthy after"),
        ("no-generation", "first generation failed"),
        ("empty-generation", "first generation failed"),
        ("no-models", "max_model_len"),
    ],
)
async def test_engines_that_do_not_come_up(made: list[Supervised], mode: str, says: str) -> None:
    """Never ready; the reason is kept; it is tried again and again until stopped."""
    each = supervise(made, mode, start_timeout_s=0.3)
    await until(lambda: each.engine.health.restarts >= 2)
    assert says in (each.engine.health.last_error or "")
    assert WorkerState.READY not in each.states
    assert each.engine.health.load == Load()


async def test_engines_that_fail_again_and_again(made: list[Supervised]) -> None:
    """After some in a row the supervisor calls it hopeless, and goes on trying; one that is ready
    ends that."""
    each = supervise(made, "exits")
    await until(lambda: each.engine.health.restarts == 3)
    assert not each.engine.hopeless()
    await until(lambda: each.engine.health.restarts >= 6)
    assert each.engine.hopeless()
    each.mode = "good"
    await each.ready(runs=7)
    assert not each.engine.hopeless()


async def test_a_long_time_without_an_engine(made: list[Supervised]) -> None:
    """Failed once, and none was ready for as long as one may take to start: hopeless as well."""
    clock = VirtualClock()
    each = supervise(made, "exits", start_timeout_s=1800.0, clock=clock)
    clock.advance(1700)
    await until(lambda: each.engine.health.restarts >= 1)
    each.stop.set()
    assert not each.engine.hopeless()
    clock.advance(101)
    assert each.engine.hopeless()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_whether_a_port_is_closed(made: list[Supervised], host: str) -> None:
    """A name may have several addresses, each of which refuses."""
    spec = dataclasses.replace(
        supervise(made)._make_spec(EngineId("x"), Path("/nowhere")), host=host
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        spec = dataclasses.replace(spec, port=taken.getsockname()[1])
        assert not await server._is_closed(spec)
    assert await server._is_closed(spec)


async def test_a_silent_engine(made: list[Supervised]) -> None:
    """Without an answer it is not called ready; when it answers again, the same run is."""
    each = supervise(made, silent_after_s=0.1, hung_after_s=60.0)
    pid = await each.ready()
    os.kill(pid, signal.SIGSTOP)
    await until(lambda: each.engine.health.state is WorkerState.WARMING)
    os.kill(pid, signal.SIGCONT)
    assert await each.ready() == pid
    assert each.engine.health.restarts == 0


async def test_a_hung_engine(made: list[Supervised]) -> None:
    """After a long silence it is killed and started again."""
    each = supervise(made, silent_after_s=0.1, hung_after_s=0.5)
    pid = await each.ready()
    os.kill(pid, signal.SIGSTOP)
    await each.ready(runs=2)
    assert _gone(pid)
    assert "gave no answer" in (each.engine.health.last_error or "")


async def test_an_engine_that_runs_once(made: list[Supervised]) -> None:
    """Under the id that it is given; when it ends, so does its supervisor, which says why."""
    each = supervise(made, only_run=EngineId("of-the-group"))
    pid = await each.ready()
    assert each.specs[0].engine_id == "of-the-group"
    os.kill(pid, signal.SIGKILL)
    assert each.task is not None
    await asyncio.wait_for(each.task, 5)
    assert len(each.specs) == 1
    assert each.engine.health.state is WorkerState.STARTING
    assert "status -9" in (each.engine.health.last_error or "")


async def test_ending_an_engine_at_once(made: list[Supervised]) -> None:
    """Even one that answers nothing; all of its processes are gone then."""
    each = supervise(made, "good-with-core", only_run=EngineId("of-the-group"))
    pid = await each.ready()
    (core,) = psutil.Process(pid).children()
    os.kill(pid, signal.SIGSTOP)
    each.engine.kill()
    assert each.task is not None
    await asyncio.wait_for(each.task, 5)
    assert _gone(pid)
    assert _gone(core.pid)
    each.engine.kill()


async def test_an_engine_that_closes_its_port(made: list[Supervised]) -> None:
    """It is dead and only cleans up: where others wait for its end, it is not given the time."""
    each = supervise(made, "closes", only_run=EngineId("of-the-group"))
    await each.ready()
    assert each.task is not None
    await asyncio.wait_for(each.task, 5)
    assert each.engine.health.last_error == "the engine closed its port"


async def test_a_node_that_serves_nothing(made: list[Supervised]) -> None:
    """A further node of an engine answers nobody: it is not hung for that, and ends with its
    process."""
    rank = GroupRank(
        nodes=2, rank=1, master_address="127.0.0.1", master_port=1, own_address="127.0.0.1"
    )
    each = supervise(
        made, "unhealthy", group=rank, only_run=EngineId("of-the-group"), start_timeout_s=0.1
    )
    await until(lambda: each.engine.pid is not None)
    await asyncio.sleep(0.3)
    assert each.task is not None
    assert not each.task.done()
    assert each.engine.health.state is WorkerState.STARTING
    each.engine.kill()
    await asyncio.wait_for(each.task, 5)


async def test_stop_of_a_hung_engine(made: list[Supervised]) -> None:
    """Stopping works on a process that is under SIGSTOP."""
    each = supervise(made)
    pid = await each.ready()
    os.kill(pid, signal.SIGSTOP)
    await each.end()
    assert _gone(pid)


async def test_a_cancelled_supervisor(made: list[Supervised]) -> None:
    """Cancelling leaves no process."""
    each = supervise(made)
    pid = await each.ready()
    assert each.task is not None
    each.task.cancel()
    await asyncio.gather(each.task, return_exceptions=True)
    await until(lambda: _gone(pid))
    await until(lambda: not each.specs[0].run_dir.exists())


async def test_stop_during_the_pause(made: list[Supervised]) -> None:
    """Nobody waits for the end of a back-off."""
    each = supervise(made, "exits")
    each.engine._backoff = Backoff(first_s=60.0, most_s=60.0)
    await until(lambda: each.engine.health.restarts == 1)
    async with asyncio.timeout(1):
        await each.end()


async def test_log_lines(made: list[Supervised], caplog: pytest.LogCaptureFixture) -> None:
    """The engine's lines are ours; its INFO is our DEBUG, its ERROR stays one."""
    caplog.set_level(logging.DEBUG, logger="baton.engine.test")
    each = supervise(made, "exits")
    await until(lambda: each.engine.health.restarts >= 1)
    said = {r.getMessage(): r.levelno for r in caplog.records if "fake.py" in r.getMessage()}
    levels = {text.split("[fake.py:")[1][0]: level for text, level in said.items()}
    assert levels["1"] == logging.DEBUG
    assert levels["2"] == logging.ERROR


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("(APIServer pid=1) INFO 11-20 10:00:00 [x.py:1] up", logging.DEBUG),
        ("(EngineCore pid=2) WARNING 11-20 10:00:00 [x.py:1] slow", logging.WARNING),
        ("ERROR 11-20 10:00:00 [x.py:1] INFO is not the level", logging.ERROR),
        ("Traceback (most recent call last):", logging.DEBUG),
        ("x" * 100 + " ERROR", logging.DEBUG),
        ("", logging.DEBUG),
    ],
)
def test_levels_of_lines(line: str, level: int) -> None:
    """The level that vLLM gave a line, where there is one near its beginning."""
    assert server._line_level(line) == level


@pytest.mark.parametrize(
    ("page", "load"),
    [
        ("", Load()),
        ('vllm:num_requests_running{engine="0"} 3.0\n', Load(running=3)),
        (
            '# HELP vllm:num_requests_running x 9\nvllm:num_requests_running{engine="0"} 1.0\n'
            'vllm:num_requests_running{engine="1"} 2.0\n'
            'vllm:num_requests_waiting{engine="0",model_name="a b"} 4.0\n'
            'vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 7.0\n'
            'vllm:kv_cache_usage_perc{engine="0"} 0.5\nprocess_cpu_seconds_total 1.5e+00\n',
            Load(running=3, waiting=4, kv_usage=0.5),
        ),
        ('vllm:kv_cache_usage_perc{engine="0"} 1.5e-05\n', Load(kv_usage=1.5e-05)),
    ],
)
def test_parse_load(page: str, load: Load) -> None:
    """The three gauges, summed over engines; names that only begin alike are others."""
    assert server.parse_load(page) == load


def test_stale_folders(tmp_path: Path) -> None:
    """Folders of dead supervisors are removed; ours, those of others and files are not."""
    dead = 2**22 + 1  # above the largest pid
    ours = server.run_dir_prefix()
    kept = [f"{ours}{os.getpid()}-abc", f"{ours}x-y", f"baton-000000-{dead}-abc", "other-1-2"]
    for name in (f"{ours}{dead}-abc", *kept):
        (tmp_path / name).mkdir()
    (tmp_path / f"{ours}{dead}-file").write_text("")
    server.remove_stale_run_dirs()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {*kept, f"{ours}{dead}-file"}
