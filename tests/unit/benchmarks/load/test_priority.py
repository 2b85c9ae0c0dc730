"""Being first while measuring, and like everybody else afterwards."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from benchmarks.load.priority import first_in_line

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux's scheduler")


def policies() -> set[int]:
    """Of all threads of this process."""
    return {os.sched_getscheduler(int(name)) for name in os.listdir("/proc/self/task")}


def test_every_thread_is_first_and_none_stays_so() -> None:
    """The threads that were there, and one that was started meanwhile."""
    ended = threading.Event()
    threads = [threading.Thread(target=ended.wait) for _ in range(2)]
    threads[0].start()
    try:
        with first_in_line() as allowed:
            if not allowed or os.SCHED_RR not in policies():
                pytest.skip("this system does not allow it")
            threads[1].start()
            assert policies() == {os.SCHED_RR}
        assert policies() == {os.SCHED_OTHER}
    finally:
        ended.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join()


def test_where_it_is_refused_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither scheduler nor nice value: the run goes on as it was, and is told so."""

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    monkeypatch.setattr(os, "setpriority", refuse)
    with first_in_line() as allowed:
        assert not allowed
        assert os.getpriority(os.PRIO_PROCESS, 0) == nice
    assert policies() == {os.SCHED_OTHER}
