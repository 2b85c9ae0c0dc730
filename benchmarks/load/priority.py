"""Asks the system to let the load generator run first while it measures.

An instrument that waits for a core that a server computes on reports the server as slower than it
is. The generator takes a few per cent of a core, so that being first costs the servers nothing
that can be seen. Where it is not allowed (it takes CAP_SYS_NICE) nothing changes, and what lag
there is gets measured either way.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

_NICE = -15


@contextlib.contextmanager
def first_in_line() -> Iterator[bool]:
    """Raises the priority of the calling thread, which is to be the event loop's, and sets it
    back; gives whether that was allowed. Threads and processes started meanwhile inherit it."""
    try:
        before = os.getpriority(os.PRIO_PROCESS, 0)
        os.setpriority(os.PRIO_PROCESS, 0, min(before, _NICE))
    except OSError:
        yield False
        return
    try:
        yield True
    finally:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, before)
