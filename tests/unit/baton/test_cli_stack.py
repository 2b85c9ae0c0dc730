"""The processes of ``baton up``: they come up together, are kept alive, and are gone at the end.

With real, small child processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from baton.cli.plan import Plan, Process
from baton.cli.stack import Sight, Stack, StartFailed, describe_status
from baton.process import Backoff
from tests.unit.baton.cli_fakes import Folder, Screen, fake_plan, runs


async def proved() -> None:
    """A proof that succeeds."""


def stack_of(folder: Path, plan: Plan, screen: Screen, **changes: Any) -> Stack:
    """A stack in a hurry, whose workers are looked at in ``folder``."""
    settings: dict[str, Any] = {
        "log_folder": folder / "logs",
        "board": screen,
        "check": Folder(folder).check,
        "clock": time.monotonic,
        "make_backoff": lambda: Backoff(first_s=0.01),
        "poll_s": 0.01,
        "watch_s": 0.01,
    }
    return Stack(plan, **{**settings, **changes})


@contextlib.asynccontextmanager
async def stopped_after(stack: Stack) -> AsyncIterator[list[int]]:
    """Stops the stack at the end, at once if it must; collects pids that have to be gone."""
    pids: list[int] = []
    try:
        yield pids
    finally:
        pids += [member.pid for member in stack.members if member.pid is not None]
        hurry = asyncio.Event()
        hurry.set()
        await stack.stop(hurry)
        assert not any(runs(pid) for pid in pids)


async def until(true: Callable[[], bool]) -> None:
    """Waits for something that a process does."""
    for _ in range(1000):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never happened")


async def test_all_come_up_and_all_are_gone(tmp_path: Path) -> None:
    """Ready after the proof; then a stop tells the router before any worker, and no process is
    left. What they said is in a log each."""
    screen, changes = Screen(), []
    plan = fake_plan(tmp_path, prefill="good", decode="good")
    stack: Stack = stack_of(tmp_path, plan, screen, on_change=lambda: changes.append(stack.ready))
    await stack.come_up(proved, 10)
    pids = [member.pid for member in stack.members]
    assert stack.ready
    assert changes == [False, True]
    assert all(runs(pid) for pid in pids)
    await stack.stop(asyncio.Event())
    assert not any(runs(pid) for pid in pids)
    order = Folder(tmp_path).order()
    assert order[0] == "router"
    assert sorted(order) == ["decode", "prefill", "router"]
    assert "hello from decode" in (tmp_path / "logs" / "decode.log").read_text()
    assert any(line.startswith("decode: ready") for line in screen.lines())
    assert any(line.startswith("router: ready") for line in screen.lines())


async def test_a_death_during_the_start_fails_it(tmp_path: Path) -> None:
    """The error names the process and its status, and shows the line that tells why."""
    plan = fake_plan(tmp_path, prefill="good", decode="broken")
    stack = stack_of(tmp_path, plan, Screen())
    async with stopped_after(stack):
        with pytest.raises(StartFailed, match=r"decode ended during the start \(status 2\)") as at:
            await stack.come_up(proved, 10)
    assert at.value.lines[-1] == "giving up"
    assert "ValueError: the model does not fit" in at.value.lines
    assert at.value.log == tmp_path / "logs" / "decode.log"
    assert not stack.ready


async def test_a_death_during_the_proof_fails_it(tmp_path: Path) -> None:
    """A worker that dies while the proof still waits for it is not waited for."""
    stack = stack_of(tmp_path, fake_plan(tmp_path, decode="good"), Screen())

    async def prove() -> None:
        os.kill(stack.members[1].pid or 0, signal.SIGKILL)
        await asyncio.sleep(60)

    async with stopped_after(stack):
        with pytest.raises(StartFailed, match=r"decode ended .* \(killed by SIGKILL\)"):
            await stack.come_up(prove, 10)


async def test_a_command_that_cannot_be_run(tmp_path: Path) -> None:
    """A missing program is a failed start, not a traceback; what was started before it stops."""
    plan = fake_plan(tmp_path)
    ghost = Process("ghost", plan.router.role, (str(tmp_path / "ghost"),), {}, "")
    stack = stack_of(tmp_path, dataclasses.replace(plan, workers=(ghost,)), Screen())
    async with stopped_after(stack) as pids:
        with pytest.raises(StartFailed, match="ghost cannot be started"):
            await stack.come_up(proved, 10)
    assert len(pids) == 1


async def test_what_is_missing_at_the_time_limit(tmp_path: Path) -> None:
    """The error says what is missing, in which state, and where the logs are."""
    plan = fake_plan(tmp_path, prefill="good", decode="slow")
    stack = stack_of(tmp_path, plan, Screen())
    async with stopped_after(stack):
        with pytest.raises(StartFailed) as caught:
            await stack.come_up(proved, 0.5)
    assert "not ready after 0.5 s" in caught.value.message
    assert "decode (starting)" in caught.value.message
    assert str(tmp_path / "logs") in caught.value.message


async def test_a_proof_that_fails(tmp_path: Path) -> None:
    """Its error is the start's."""
    stack = stack_of(tmp_path, fake_plan(tmp_path, decode="good"), Screen())

    async def prove() -> None:
        raise StartFailed("no answer")

    async with stopped_after(stack):
        with pytest.raises(StartFailed, match="no answer"):
            await stack.come_up(prove, 10)
    assert not stack.ready


async def test_an_engine_that_fails_again_and_again(tmp_path: Path) -> None:
    """A worker that starts its engine a fourth time is not waited for until the time limit."""
    screen, looks = Screen(), iter(range(100))

    async def check() -> dict[str, Sight]:
        return {"decode": Sight("starting", f"engine-{next(looks) // 2}")}

    stack = stack_of(tmp_path, fake_plan(tmp_path, decode="slow"), screen, check=check)
    async with stopped_after(stack):
        with pytest.raises(StartFailed, match="the engine of decode failed 3 times"):
            await stack.come_up(proved, 60)
    assert sum("its engine failed" in line for line in screen.lines()) == 2


async def test_a_death_later_is_mended(tmp_path: Path) -> None:
    """Once all is ready a dead worker is started again, and that is told."""
    screen, changes = Screen(), []
    stack: Stack = stack_of(
        tmp_path,
        fake_plan(tmp_path, decode="good"),
        screen,
        on_change=lambda: changes.append(stack.members[1].pid),
    )
    async with stopped_after(stack):
        await stack.come_up(proved, 10)
        first = stack.members[1].pid
        (tmp_path / "decode.ready").unlink()
        os.kill(first or 0, signal.SIGKILL)
        await until((tmp_path / "decode.ready").exists)
        await until(lambda: len(changes) == 3)
        assert changes == [first, first, stack.members[1].pid]
        assert stack.members[1].pid != first
    (said,) = [line for line in screen.lines() if "starting it again" in line]
    assert said.startswith("decode ended (killed by SIGKILL)")


async def test_watching_tells_of_changes(tmp_path: Path) -> None:
    """A worker that is away, and back, is told of once each."""
    screen = Screen()
    ready, away = {"decode": Sight("ready", "e")}, {"decode": Sight("warming", "e")}
    looks = iter([ready, ready, away, away, None, ready, ready])
    done = asyncio.Event()

    async def check() -> dict[str, Sight] | None:
        try:
            return next(looks)
        except StopIteration:
            done.set()
            return ready

    stack = stack_of(tmp_path, fake_plan(tmp_path, decode="slow"), screen, check=check)
    watching = asyncio.create_task(stack.watch())
    await done.wait()
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert [line.split(" (")[0] for line in screen.lines()] == [
        "decode is not ready",
        "decode is ready again",
    ]


async def test_a_stubborn_worker_is_killed(tmp_path: Path) -> None:
    """After its grace; and what a killed worker could not remove is swept up."""
    plan = fake_plan(tmp_path, decode="stubborn")
    plan = dataclasses.replace(plan, worker_grace_s=0.2)
    swept: list[bool] = []
    stack = stack_of(tmp_path, plan, Screen(), sweep=lambda: swept.append(True))
    await stack.come_up(proved, 10)
    pids = [member.pid for member in stack.members]
    await stack.stop(asyncio.Event())
    assert not any(runs(pid) for pid in pids)
    assert swept == [True]


async def test_a_second_request_skips_the_waiting(tmp_path: Path) -> None:
    """A worker that drains is told again, and leaves long before its grace is over, by itself."""
    plan = fake_plan(tmp_path, decode="busy")
    plan = dataclasses.replace(plan, router_grace_s=60.0, worker_grace_s=60.0)
    swept: list[bool] = []
    stack = stack_of(tmp_path, plan, Screen(), sweep=lambda: swept.append(True))
    await stack.come_up(proved, 10)
    pids = [member.pid for member in stack.members]
    hurry = asyncio.Event()
    stopping = asyncio.create_task(stack.stop(hurry))
    await until(lambda: (tmp_path / "order").exists() and "decode" in Folder(tmp_path).order())
    hurry.set()
    async with asyncio.timeout(10):
        await stopping
    assert not any(runs(pid) for pid in pids)
    assert Folder(tmp_path).order() == ["router", "decode", "decode"]
    assert swept == []


async def test_stopping_in_the_middle_of_a_start(tmp_path: Path) -> None:
    """Cancelled while it waits, a start leaves what it started to ``stop``, which ends it."""
    stack = stack_of(tmp_path, fake_plan(tmp_path, decode="slow"), Screen())
    starting = asyncio.create_task(stack.come_up(proved, 60))
    await until(lambda: all(member.pid is not None for member in stack.members))
    pids = [member.pid for member in stack.members]
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    await stack.stop(asyncio.Event())
    assert not any(runs(pid) for pid in pids)


async def test_stopping_what_never_started(tmp_path: Path) -> None:
    """Is nothing."""
    await stack_of(tmp_path, fake_plan(tmp_path, decode="good"), Screen()).stop(asyncio.Event())


@pytest.mark.parametrize(
    ("code", "words"), [(2, "status 2"), (-9, "killed by SIGKILL"), (-250, "killed by signal 250")]
)
def test_statuses_in_words(code: int, words: str) -> None:
    """A signal is called by its name."""
    assert describe_status(code) == words
