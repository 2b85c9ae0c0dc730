"""A further node's engine process ends soon after one of its ranks."""

from __future__ import annotations

import subprocess
import sys

import pytest

_NODE = """
import multiprocessing, os, signal, sys, threading, time
from baton.engine import launch
from baton.process import set_parent_death_signal

def rank():
    set_parent_death_signal(signal.SIGKILL)
    time.sleep(60)

if __name__ == "__main__":
    launch._LOOK_S, launch._LAST_MOMENT_S = 0.05, 0.1
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=rank, name=f"{name}-{i}", daemon=True)
             for i, name in enumerate(sys.argv[2:])]
    for each in ranks:
        each.start()
    threading.Thread(target=launch._end_with_ranks, daemon=True).start()
    time.sleep(0.2)
    os.kill(ranks[0].pid, signal.SIGKILL)
    time.sleep(float(sys.argv[1]))
    print("still here", flush=True)
    for each in ranks:
        each.kill()
    os._exit(0)
"""


@pytest.mark.parametrize(
    ("names", "wait_s", "status", "said"),
    [
        (["VllmWorker", "VllmWorker"], 30, 1, ""),
        (["VllmWorker"], 30, 1, ""),
        (["helper", "VllmWorker"], 0.5, 0, "still here\n"),
    ],
    ids=["one of two", "the only one", "another child"],
)
def test_a_rank_that_ends(names: list[str], wait_s: float, status: int, said: str) -> None:
    """With a status that says so, the other ranks or not; other children may come and go."""
    node = subprocess.run(
        [sys.executable, "-c", _NODE, str(wait_s), *names],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (node.returncode, node.stdout) == (status, said), node.stderr
