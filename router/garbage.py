"""The garbage collector, told what kind of process this is.

A router makes some hundred short-lived objects per request, nearly all of them freed by reference
counts; Python's defaults look for cycles among them every 700 objects, and now and then among
everything there is, models of the API and all. That was a sixth of the CPU of a request. Set once,
by the process's entry point only: it is a setting of the whole interpreter.
"""

from __future__ import annotations

import gc

_YOUNG = 20_000
"""Objects more than before, until the youngest are looked at: some tens of requests."""
_MIDDLE, _OLD = 20, 20


def calm_collector() -> None:
    """Collects what the start has left, sets aside what will live as long as the process, and looks
    less often from then on."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, _MIDDLE, _OLD)
