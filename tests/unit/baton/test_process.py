"""Child processes: their lines, their ends, and that nothing of them is left."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from baton.process import PARENT_VARIABLE, Backoff, Child
from tests.fakes.waiting import until

PYTHON = (sys.executable, "-S", "-E", "-u")
REPOSITORY = Path(__file__).parents[3]


class Nursery:
    """Makes children and sees to their end."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.children: list[Child] = []

    async def start(self, code: str) -> Child:
        """A child that runs Python code."""
        child = Child("test", [*PYTHON, "-c", code], dict(os.environ), on_line=self.lines.append)
        self.children.append(child)
        await child.start()
        return child

    async def line(self, number: int = 1) -> str:
        """Waits for a line of output, by its number."""
        await until(lambda: len(self.lines) >= number)
        return self.lines[number - 1]


@pytest.fixture
async def nursery() -> AsyncIterator[Nursery]:
    nursery = Nursery()
    yield nursery
    for child in nursery.children:
        await child.stop(grace_s=0)


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


WAIT = "import time; print('up', flush=True); time.sleep(60)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "print('up', flush=True); time.sleep(60)"
)
WITH_GRANDCHILD = (
    "import subprocess, sys, time;"
    "p = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)']);"
    "print(p.pid, flush=True);"
)


async def test_lines_and_status(nursery: Nursery) -> None:
    """Both streams, line by line; the last one needs no newline; blank lines are left out."""
    child = await nursery.start(
        "import sys; print('out'); print('err', file=sys.stderr); print();"
        "sys.stdout.write('last'); sys.exit(7)"
    )
    assert await child.wait() == 7
    assert nursery.lines == ["out", "err", "last"]
    assert child.tail == ("out", "err", "last")
    assert child.returncode == 7


async def test_long_lines_and_bytes_that_are_no_text(nursery: Nursery) -> None:
    """Lines are cut at 16 KiB, with and without an end; what is no UTF-8 is shown as that."""
    child = await nursery.start(
        "import sys; w = sys.stdout.buffer.write;"
        "w(b'a' * 20000 + b'\\n'); w(b'b' * 100000); w(b'\\n'); w(b'\\xff\\r\\n')"
    )
    assert await child.wait() == 0
    assert nursery.lines[0] == "a" * 16384
    assert all(len(line) <= 16384 for line in nursery.lines)
    assert set(nursery.lines[1]) == {"b"}
    assert nursery.lines[-1] == "\ufffd"


async def test_the_tail_is_bounded(nursery: Nursery) -> None:
    """The last sixty lines are kept for error messages."""
    child = await nursery.start("for i in range(1000): print(i)")
    await child.wait()
    assert len(nursery.lines) == 1000
    assert child.tail == tuple(str(i) for i in range(940, 1000))


async def test_a_command_that_does_not_exist() -> None:
    """Is said at the start; stopping then does nothing."""
    child = Child("test", ["/nonexistent"], {}, on_line=print)
    with pytest.raises(FileNotFoundError):
        await child.start()
    assert await child.stop(grace_s=1) is None
    assert child.pid is None
    assert child.returncode is None


async def test_its_environment_names_us(nursery: Nursery) -> None:
    """The child gets what it was given, and our pid; it leads a group of its own."""
    child = await nursery.start(
        f"import os; print(os.environ['{PARENT_VARIABLE}'], os.getpgrp() == os.getpid())"
    )
    await child.wait()
    assert nursery.lines == [f"{os.getpid()} True"]


async def test_stop_asks_first(nursery: Nursery) -> None:
    """SIGTERM is enough for most, and then nobody waits for the grace."""
    child = await nursery.start(WAIT)
    await nursery.line()
    began_s = time.monotonic()
    assert await child.stop(grace_s=30) == -signal.SIGTERM
    assert time.monotonic() - began_s < 5
    assert await child.stop(grace_s=30) == -signal.SIGTERM


async def test_the_status_is_not_lost(nursery: Nursery) -> None:
    """However fast a child follows the SIGTERM, its status is known."""
    for _ in range(20):
        child = await nursery.start("import signal; print('up', flush=True); signal.pause()")
        await nursery.line(len(nursery.children))
        assert await child.stop(grace_s=30) == -signal.SIGTERM


async def test_stop_kills_after_the_grace(nursery: Nursery) -> None:
    """What ignores SIGTERM is killed."""
    child = await nursery.start(STUBBORN)
    await nursery.line()
    assert await child.stop(grace_s=0.1) == -signal.SIGKILL


async def test_stop_of_a_stopped_process(nursery: Nursery) -> None:
    """A process under SIGSTOP is woken to see the SIGTERM."""
    child = await nursery.start(WAIT)
    await nursery.line()
    assert child.pid is not None
    os.kill(child.pid, signal.SIGSTOP)
    assert await child.stop(grace_s=5) == -signal.SIGTERM


@pytest.mark.parametrize("child_ends", ["by itself", "by stop", "by a signal"])
async def test_grandchildren_end_too(nursery: Nursery, child_ends: str) -> None:
    """However a child ends, what it started is killed, and does not hold up ``wait`` by keeping
    the pipe open."""
    code = WITH_GRANDCHILD + ("pass" if child_ends == "by itself" else "time.sleep(60)")
    child = await nursery.start(code)
    grandchild = int(await nursery.line())
    began_s = time.monotonic()
    if child_ends == "by stop":
        await child.stop(grace_s=5)
    else:
        if child_ends == "by a signal":
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
        await child.wait()
    assert time.monotonic() - began_s < 3
    await until(lambda: is_gone(grandchild))


async def test_a_cancelled_stop_kills_at_once(nursery: Nursery) -> None:
    """Somebody who cannot wait for the grace leaves no process either."""
    child = await nursery.start(STUBBORN)
    await nursery.line()
    stopping = asyncio.create_task(child.stop(grace_s=60))
    await asyncio.sleep(0.05)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    await until(lambda: child.returncode is not None)
    assert await child.wait() == -signal.SIGKILL


async def test_kill_now(nursery: Nursery) -> None:
    """SIGKILL to the group, without waiting; after the end it does nothing."""
    child = await nursery.start(WITH_GRANDCHILD + "time.sleep(60)")
    grandchild = int(await nursery.line())
    child.kill_now()
    assert await child.wait() == -signal.SIGKILL
    await until(lambda: is_gone(grandchild))
    child.kill_now()


async def test_an_ended_child_signals_nobody(
    nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a child and its group are gone their number may be another's: it gets no signal."""
    child = await nursery.start("pass")
    await child.wait()
    sent: list[int] = []
    monkeypatch.setattr(os, "killpg", lambda pid, number: sent.append(pid))
    child.kill_now()
    await child.stop(grace_s=0)
    assert sent == []


# --- dying with the parent ----------------------------------------------------------------------

_MIDDLE = """
import os, subprocess, sys
env = dict(os.environ)
if sys.argv[1] == "tied":
    env["BATON_PARENT_PID"] = str(os.getpid())
elif sys.argv[1] == "orphan":
    env["BATON_PARENT_PID"] = "1"
code = (
    "import signal, time; from baton.process import die_with_parent;"
    "die_with_parent(signal.SIGTERM); print('alive', flush=True); time.sleep(60)"
)
child = subprocess.Popen([sys.executable, "-c", code], env=env)
print(child.pid, flush=True)
print(child.wait(), flush=True)
"""


def middle(how: str) -> subprocess.Popen[str]:
    env = {k: v for k, v in os.environ.items() if k != PARENT_VARIABLE}
    return subprocess.Popen(
        [sys.executable, "-u", "-c", _MIDDLE, how],
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env=env,
    )


@pytest.mark.parametrize("how", ["tied", "free"])
async def test_a_killed_parent(how: str) -> None:
    """A child that was told so dies with its parent; one that was not lives on."""
    parent = middle(how)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        assert parent.stdout.readline() == "alive\n"
        parent.kill()
        parent.wait()
        if how == "tied":
            await until(lambda: is_gone(child), timeout_s=2)
        else:
            await asyncio.sleep(0.2)
            assert not is_gone(child)
    finally:
        parent.stdout.close()
        if not is_gone(child):
            os.kill(child, signal.SIGKILL)


async def test_a_parent_that_is_gone_already() -> None:
    """A child whose parent died before it could ask ends itself."""
    parent = middle("orphan")
    said, _ = parent.communicate(timeout=10)
    assert said.split()[1] == str(-signal.SIGTERM)


# --- back-off -----------------------------------------------------------------------------------


def test_backoff_doubles_up_to_its_limit() -> None:
    """Each failure waits twice as long as the one before."""
    backoff = Backoff(first_s=0.5, most_s=5.0, healthy_after_s=60.0)
    delays = [backoff.next_delay_s(1.0) for _ in range(40)]
    assert delays[:5] == [0.5, 1.0, 2.0, 4.0, 5.0]
    assert set(delays[5:]) == {5.0}


def test_backoff_forgets_after_a_healthy_stretch() -> None:
    """A run that lasted starts the count anew."""
    backoff = Backoff(first_s=0.5, most_s=5.0, healthy_after_s=60.0)
    for _ in range(5):
        backoff.next_delay_s(1.0)
    assert backoff.next_delay_s(59.9) == 5.0
    assert backoff.next_delay_s(60.0) == 0.5
    assert backoff.next_delay_s(1.0) == 1.0
