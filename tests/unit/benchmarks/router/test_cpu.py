"""CPU time of process trees: differences that are exact, and changes that are noticed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from benchmarks.router.cpu import ProcessTree, TreeChanged

# Burns CPU when told to, and says how much it has used by its own count.
_BURNER = """
import subprocess, sys, time
for line in sys.stdin:
    what = line.strip()
    if what == "burn":
        until = time.process_time() + 0.15
        while time.process_time() < until:
            pass
    elif what == "child":
        child = subprocess.Popen(
            [sys.executable, "-c", "import sys, time\\n"
             "while time.process_time() < 0.15: pass\\n"
             "print(time.process_time(), flush=True)\\nsys.stdin.read()"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        print(child.stdout.readline().strip(), flush=True)
        continue
    elif what == "end child":
        child.stdin.close()
        child.wait()
        child.stdout.close()
    print(time.process_time(), flush=True)
"""
_SLACK_S = 0.05
"""Between a process's own count and ours it reads and writes a line."""


class Burner:
    """A process that burns CPU on demand."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _BURNER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, what: str) -> float:
        """Does it; returns the CPU seconds that whoever did it says to have used by then."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def end(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if not self.process.stdin.closed:
            self.process.stdin.close()
        self.process.wait(timeout=30)
        self.process.stdout.close()


@pytest.fixture
def burner() -> Iterator[Burner]:
    made = Burner()
    try:
        yield made
    finally:
        made.end()


def test_a_difference_is_what_the_process_says_itself(burner: Burner) -> None:
    """Two readings around a burst are as far apart as the process's own clock."""
    began_s = burner.tell("nothing")
    tree = ProcessTree(burner.process.pid)
    before_s = tree.read_s()
    used_s = burner.tell("burn") - began_s
    assert used_s >= 0.15
    assert tree.read_s() - before_s == pytest.approx(used_s, abs=_SLACK_S)
    tree.check()


def test_descendants_count(burner: Burner) -> None:
    """A router of several processes costs what all of them cost."""
    alone = ProcessTree(burner.process.pid)
    child_s = burner.tell("child")
    both = ProcessTree(burner.process.pid)
    assert both.read_s() - alone.read_s() >= child_s >= 0.15
    burner.tell("end child")


def test_a_process_that_began_meanwhile_is_noticed(burner: Burner) -> None:
    """What it spent was not read from its beginning, or was spent on its start."""
    burner.tell("nothing")
    tree = ProcessTree(burner.process.pid)
    burner.tell("child")
    with pytest.raises(TreeChanged, match=r"began [0-9]+"):
        tree.check()
    burner.tell("end child")


def test_a_process_that_ended_meanwhile_is_noticed(burner: Burner) -> None:
    """What it spent is gone with it."""
    burner.tell("child")
    tree = ProcessTree(burner.process.pid)
    burner.tell("end child")
    with pytest.raises(TreeChanged, match=r"ended [0-9]+"):
        tree.check()
    with pytest.raises(TreeChanged, match="has ended"):
        tree.read_s()


def test_a_root_that_is_gone_is_an_error(burner: Burner) -> None:
    """A router that crashed has no cost."""
    burner.end()
    with pytest.raises(TreeChanged, match="has ended"):
        ProcessTree(burner.process.pid)
