"""vLLM general plug-in, loaded in every process of an engine: API server, engine core, ranks.

It is the only place that reaches the engine core's process before its first computation.
"""

from __future__ import annotations

import os
import signal

from baton.engine.host import allow_amx
from baton.process import PARENT_VARIABLE, set_parent_death_signal


def install() -> None:
    """Asks for AMX, and ties an engine's inner processes to their parents.

    Does nothing to an engine that Baton did not start, so that installing Baton beside vLLM does
    not change how other servers of the same environment die.
    """
    allow_amx()
    if os.environ.get(PARENT_VARIABLE):
        set_parent_death_signal(signal.SIGKILL)
