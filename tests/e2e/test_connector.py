"""Our connector's differences to the stock one, on real NIXL and real engines."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.e2e.stack import Stack

pytestmark = pytest.mark.engine

SCRIPT = """
import json, os, time
os.environ.setdefault("UCX_TLS", "tcp,self")
from kvtransfer.connector import progress_delay
from vllm.distributed.nixl_utils import NixlWrapper, nixl_agent_config

def idle_cost():
    # CPU seconds of this process per second of doing nothing.
    began, cpu = time.monotonic(), time.process_time()
    time.sleep(1.5)
    return (time.process_time() - cpu) / (time.monotonic() - began)

with progress_delay(1000):
    patient = NixlWrapper("patient", nixl_agent_config(num_threads=1))
ours = idle_cost()
stock = NixlWrapper("stock", nixl_agent_config(num_threads=1))
both = idle_cost()
import sys
bound = sys.modules[NixlWrapper.__module__].nixlBind
print(json.dumps({"ours": ours, "both": both, "binding": type(bound).__name__}))
"""


def test_the_progress_thread_leaves_the_core_alone() -> None:
    """An idle agent with the delay costs less than a fifth of one without, in the same process;
    afterwards NIXL's module is as it was."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    cost = json.loads(done.stdout.splitlines()[-1])
    stock = cost["both"] - cost["ours"]
    assert stock > 0.1, cost
    assert cost["ours"] < stock / 5, cost
    assert cost["binding"] == "module"


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core is all there is")
def test_engines_may_use_every_core(stack: Stack) -> None:
    """No thread of any engine is bound to fewer cores than this test: bound to the same one, two
    engines halve each other's speed while the next core idles."""
    ours = os.sched_getaffinity(0)
    for name in ("prefill", "decode"):
        leader = psutil.Process(stack.engine_pid(name))
        threads = 0
        for process in (leader, *leader.children(recursive=True)):
            for task in Path(f"/proc/{process.pid}/task").iterdir():
                # A thread may end while it is looked at.
                with contextlib.suppress(ProcessLookupError):
                    assert os.sched_getaffinity(int(task.name)) == ours, (name, process.cmdline())
                    threads += 1
        assert threads > 1
